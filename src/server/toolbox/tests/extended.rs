//! The same with an extended catalogue. It is one for the life of a process, so these run in processes of their own.

use super::*;
use crate::alone::alone;
use crate::authz::extension::Extension;
use crate::authz::{Grants, NamespaceLabels, Role};

const EXTENSION: &str = r#"{
    "extra": [
        {"group": "example.com", "resource": "widgets", "kind": "Widget", "version": "v1", "scope": "Namespaced",
         "verbs": ["get", "list", "create"]},
        {"group": "example.com", "resource": "fleets", "kind": "Fleet", "version": "v1beta1", "scope": "Cluster",
         "verbs": ["get", "list"]}
    ],
    "secrets": {"read": true}
}"#;

/// Extends the catalogue of this process if it is one of its own. Else runs the test in one that is.
fn extended(test: &str) -> bool {
    let is_alone = alone(&format!("server::toolbox::tests::extended::{test}"));
    if is_alone {
        Extension::parse(EXTENSION).and_then(Extension::install).expect("valid, and the first");
    }
    is_alone
}

fn role(permissions: &[&str], scope: Value) -> Arc<Role> {
    let mut spec = json!({"permissions": permissions, "servers": [{"namespace": "agents", "name": "ops"}]});
    spec.as_object_mut().expect("an object").extend(scope.as_object().expect("an object").clone());
    let role: Arc<ClusterMcpRole> = parse("ClusterMcpRole", json!({"name": "fleet"}), spec);
    let labels = NamespaceLabels::new();
    Arc::new(Role::from_cluster_role(&role, OPERATOR_NAMESPACE, &labels, &|_| None).expect("valid"))
}

fn names_of(role: &Role) -> Vec<String> {
    role.permissions().iter().map(ToString::to_string).collect()
}

#[test]
fn tools_and_calls_stay_in_step_whatever_is_added_to_the_catalogue() {
    if !extended("tools_and_calls_stay_in_step_whatever_is_added_to_the_catalogue") {
        return;
    }
    let (toolbox, mut random) = (Toolbox::new(registry()), Random(0x9E37_79B9_7F4A_7C15));
    for _ in 0..200 {
        listed_and_found_alike(&toolbox, &caller(random_objects(&mut random), None));
    }
    let widgets = objects(&json!({}));
    let role = parse(
        "McpRole",
        json!({"name": "one", "namespace": "agents"}),
        json!({"permissions": ["k8s:widgets.example.com:get"]}),
    );
    let caller = caller(Objects { roles: BTreeMap::from([("one".to_owned(), role)]), ..widgets }, None);
    assert_eq!(listed_and_found_alike(&toolbox, &caller), BTreeSet::from(["resources_get".to_owned()]));
    // Reading Secrets is not as harmless as reading anything else.
    let get = registry().iter().find(|tool| tool.name == "resources_get").expect("it is there");
    assert_eq!(get.needs.class(), Class::Sensitive);
}

#[test]
fn wildcards_stand_for_what_was_added_and_resources_for_all_of_it_but_secrets() {
    if !extended("wildcards_stand_for_what_was_added_and_resources_for_all_of_it_but_secrets") {
        return;
    }
    let granted = |pattern: &str| names_of(&role(&[pattern], json!({"allNamespaces": true})));
    let widgets =
        ["k8s:widgets.example.com:create", "k8s:widgets.example.com:get", "k8s:widgets.example.com:list"];
    assert_eq!(granted("k8s:widgets.example.com:*"), widgets);
    assert_eq!(granted("k8s:resources:create"), widgets[..1]);
    let fleets = ["k8s:fleets.example.com:get", "k8s:fleets.example.com:list"];
    assert_eq!(granted("k8s:resources:*"), [&fleets[..], &widgets[..]].concat());
    assert_eq!(granted("k8s:secrets:*"), ["k8s:secrets:get", "k8s:secrets:list"]);
    let everything = granted("k8s:*");
    for name in fleets.into_iter().chain(widgets).chain(["k8s:secrets:get", "k8s:pods:list"]) {
        assert!(everything.iter().any(|granted| granted == name), "{name}");
    }
}

#[test]
fn managing_secrets_can_be_granted_where_the_values_say_so_and_opens_no_tool() {
    if !alone(
        "server::toolbox::tests::extended::managing_secrets_can_be_granted_where_the_values_say_so_and_opens_no_tool",
    ) {
        return;
    }
    let extension = Extension::parse(r#"{"secrets": {"manage": true}}"#).expect("valid");
    extension.install().expect("the first");
    let manage = Permission::named("secrets", "manage").expect("it was added");
    for pattern in ["k8s:secrets:manage", "k8s:secrets:*", "k8s:*:manage"] {
        let role = role(&[pattern], json!({"allNamespaces": true}));
        assert_eq!(names_of(&role), ["k8s:secrets:manage"], "{pattern}");
        assert!(authorize(&Grants::all_of([role]), manage, Target::Namespace("agents")).is_ok());
    }
    assert!(names_of(&role(&["k8s:*"], json!({"allNamespaces": true}))).contains(&manage.to_string()));
    let role = parse(
        "McpRole",
        json!({"name": "keeper", "namespace": "agents"}),
        json!({"permissions": ["k8s:secrets:manage"]}),
    );
    let keeper = BTreeMap::from([("keeper".to_owned(), role)]);
    let caller = caller(Objects { roles: keeper, ..objects(&json!({})) }, None);
    let toolbox = Toolbox::new(registry());
    assert_eq!(listed_and_found_alike(&toolbox, &caller), BTreeSet::new());
    assert!(registry().iter().all(|tool| !tool.needs.includes(manage)), "no tool needs it");
}
