use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::api::{ClusterMcpRole, McpApiKey, McpRole, names};
use crate::authn::Identity;
use crate::authz::Object;
use crate::authz::random::Random;
use crate::index::Objects;
use crate::tools::{Needs, registry};

mod extended;

const OPERATOR_NAMESPACE: &str = "portcullis-system";

fn parse<K: DeserializeOwned>(kind: &str, metadata: Value, spec: Value) -> Arc<K> {
    let object =
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
    Arc::new(serde_json::from_value(object).expect("an object of the kind"))
}

/// A server without limits of its own and a key for it without roles, where cluster roles count.
fn objects(tools: &Value) -> Objects {
    let labels = BTreeMap::from([(names::NAMESPACE_LABEL.to_owned(), names::NAMESPACE_CLUSTER.to_owned())]);
    Objects {
        server: Some(parse(
            "McpServer",
            json!({"name": "ops", "namespace": "agents"}),
            json!({"tools": tools}),
        )),
        namespaces: BTreeMap::from([("agents".to_owned(), labels)]),
        ..Objects::default()
    }
}

/// A key with roles.
fn key(name: &str, id: &str, roles: &Value) -> Arc<McpApiKey> {
    let key = json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey",
        "metadata": {"name": name, "namespace": "agents"},
        "spec": {"identity": format!("{name}-bot"), "servers": ["ops"], "roles": roles},
        "status": {"keys": [{"id": id, "digest": format!("sha256:{}", "ab".repeat(32)),
            "createdAt": "2026-01-01T00:00:00Z", "state": "Active"}]},
    });
    Arc::new(serde_json::from_value(key).expect("a key"))
}

/// A caller with a key that names every role of the objects.
fn caller(mut objects: Objects, scopes: Option<Vec<String>>) -> Caller {
    let role = |kind: &str, name: &String| json!({"kind": kind, "name": name});
    let roles: Vec<Value> = (objects.roles.keys().map(|name| role("McpRole", name)))
        .chain(objects.cluster_roles.keys().map(|name| role("ClusterMcpRole", name)))
        .collect();
    objects.keys.insert("ci".to_owned(), key("ci", "k1", &json!(roles)));
    let snapshot = Arc::new(Snapshot::build(&objects, "agents", "ops", OPERATOR_NAMESPACE));
    let identity = Identity { scopes, ..Identity::new(Method::ApiKey, "ci-bot", "k1") };
    Caller {
        grants: snapshot.grants_of_key("k1").expect("there is a key"),
        identity,
        snapshot,
        client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        certificate: None,
    }
}

/// The roles of the sample, by name.
fn presets() -> BTreeMap<String, Arc<ClusterMcpRole>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples/roles-presets.yaml");
    let text = fs::read_to_string(path).expect("the sample can be read");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let role = |document| serde_json::from_value::<ClusterMcpRole>(document).expect("a cluster role");
    documents.into_iter().map(role).map(|role| (role.name_any(), Arc::new(role))).collect()
}

/// A caller with one preset, by its name.
fn preset_callers() -> BTreeMap<String, Caller> {
    let with = |(name, role): (String, Arc<ClusterMcpRole>)| {
        let cluster_roles = BTreeMap::from([(name.clone(), role)]);
        (name, caller(Objects { cluster_roles, ..objects(&json!({})) }, None))
    };
    presets().into_iter().map(with).collect()
}

/// Names that a tool answers to.
fn all_names(tool: &Tool) -> impl Iterator<Item = &'static str> {
    tool.aliases.iter().copied().chain([tool.name])
}

/// Holds that every tool is found by each of its names exactly when it is listed. Returns the names of those that are.
fn listed_and_found_alike(toolbox: &Toolbox, caller: &Caller) -> BTreeSet<String> {
    let listed: BTreeSet<String> =
        toolbox.list(caller).iter().map(|description| description.name.to_string()).collect();
    for tool in registry() {
        for name in all_names(tool) {
            let found = toolbox.find(name, caller).map(|found| found.name);
            let expected = listed.contains(tool.name).then_some(tool.name);
            assert_eq!(found, expected, "{name} with {:?}", caller.grants);
            // What must not be known is not given away by what it would need, either.
            let short = toolbox.short_of_scope(name, caller);
            assert!(expected.is_some() || short.is_none(), "{name} with {:?}", caller.grants);
        }
    }
    for (object, tool) in Object::all().flat_map(|object| registry().iter().map(move |tool| (object, tool))) {
        let Needs::Verb(verb) = tool.needs else { continue };
        let given = json!({"resource": object.qualified, "name": "web"});
        let mut given = given.as_object().expect("an object").clone();
        given.retain(|name, _| (tool.input_schema)()["properties"].get(name).is_some());
        let chosen = (tool.parse)(given).expect("valid").permission();
        assert_eq!(chosen, Permission::named(object.name, verb), "{} {object:?}", tool.name);
        // What can be called is listed, and what its own tool is denied for cannot be had by another.
        let mut usable = usable(tool, caller);
        let callable = chosen.is_some_and(|chosen| usable.any(|permission| permission == chosen));
        assert!(!callable || listed.contains(tool.name), "{} {object:?}", tool.name);
    }
    listed
}

#[test]
fn a_tool_is_denied_by_any_of_its_names() {
    let tool = crate::tools::registry().iter().find(|tool| tool.aliases.contains(&"list_pods"));
    let tool = tool.expect("it is there");
    let denying = |pattern: &str| ToolsSpec { deny: vec![pattern.to_owned()], ..ToolsSpec::default() };
    assert!(offers(&denying("list_services"), tool));
    for pattern in [tool.name, "list_pods", "k8s_*"] {
        assert!(!offers(&denying(pattern), tool), "{pattern}");
    }
}

#[test]
fn what_is_denied_by_its_own_tool_cannot_be_had_by_a_tool_for_any_resource() {
    let list = registry().iter().find(|tool| tool.name == "resources_list").expect("it is there");
    let spec = ToolsSpec { deny: vec!["list_pods".to_owned()], ..ToolsSpec::default() };
    assert!(offers(&spec, list));
    assert!(!opens(&spec, list, Permission::of("pods", "list")));
    assert!(opens(&spec, list, Permission::of("services", "list")));
}

#[test]
fn a_tool_that_a_preset_does_not_list_is_unknown_to_its_callers() {
    let toolbox = Toolbox::new(registry());
    let listed: BTreeMap<String, usize> = preset_callers()
        .iter()
        .map(|(name, caller)| (name.clone(), listed_and_found_alike(&toolbox, caller).len()))
        .collect();
    assert_eq!(listed.keys().collect::<Vec<_>>(), ["admin", "developer", "operator", "viewer"]);
    assert!(listed["viewer"] > 0 && listed["viewer"] < listed["admin"], "{listed:?}");
    let of_cluster = registry()
        .iter()
        .filter(|tool| tool.needs.permissions().all(|permission| permission.entry().family == "k8s"));
    assert_eq!(listed["admin"], of_cluster.count(), "everything but what is the endpoint's own");
}

#[test]
fn without_a_role_every_tool_is_unknown() {
    let toolbox = Toolbox::new(registry());
    assert!(listed_and_found_alike(&toolbox, &caller(objects(&json!({})), None)).is_empty());
    let mut operator = caller(objects(&json!({})), None);
    operator.identity = Identity::new(Method::Operator, "operator", "internal");
    assert_eq!(toolbox.list(&operator).len(), registry().len(), "the operator's handshake lists");
    for name in registry().iter().flat_map(all_names) {
        assert!(toolbox.find(name, &operator).is_none(), "and does nothing else: {name}");
    }
}

#[test]
fn callers_of_one_policy_each_see_their_own_tools() {
    let mut objects = objects(&json!({}));
    for (name, permission) in [("one", "k8s:pods:logs"), ("two", "k8s:deployments:scale")] {
        let role = parse(
            "McpRole",
            json!({"name": name, "namespace": "agents"}),
            json!({"permissions": [permission]}),
        );
        objects.roles.insert(name.to_owned(), role);
        let roles = json!([{"kind": "McpRole", "name": name}]);
        objects.keys.insert(name.to_owned(), key(name, name, &roles));
    }
    let both = caller(objects, None);
    let holder = |name: &str| Caller {
        identity: Identity::new(Method::ApiKey, name, name),
        grants: both.snapshot.grants_of_key(name).expect("there is a key"),
        ..both.clone()
    };
    let (one, two) = (holder("one"), holder("two"));
    let toolbox = Toolbox::new(registry());
    for _ in 0..2 {
        for (caller, tools) in [
            (&one, &["pods_log"][..]),
            (&two, &["deployments_scale"]),
            (&both, &["deployments_scale", "pods_log"]),
        ] {
            let list = toolbox.list(caller);
            assert_eq!(list.iter().map(|tool| &*tool.name).collect::<Vec<_>>(), tools);
            assert_eq!(*toolbox.names(caller), *tools);
        }
    }
}

/// Every permission and every wildcard over a part of one.
fn patterns() -> Vec<String> {
    let of = |permission: Permission| {
        let entry = permission.entry();
        let (family, resource, verb) = (entry.family, entry.resource, entry.verb);
        [permission.to_string(), format!("{family}:{resource}:*"), format!("{family}:*:{verb}")]
    };
    let all: BTreeSet<String> = Permission::all().flat_map(of).chain(["k8s:*".to_owned()]).collect();
    all.into_iter().collect()
}

/// Up to two roles of each kind, and limits of the server's own now and then.
fn random_objects(random: &mut Random) -> Objects {
    let name = |tool: &'static Tool| [tool.name].into_iter().chain(tool.aliases.first().copied());
    let mut names: Vec<String> = registry().iter().flat_map(name).map(str::to_owned).collect();
    names.extend(["*_list".to_owned(), "pods_*".to_owned(), "k8s_*".to_owned()]);
    let tools = match random.below(4) {
        0 => json!({"deny": random.some(&names, 3), "readOnly": random.below(2) == 0}),
        1 => json!({"allow": random.some(&names, 6), "deny": random.some(&names, 1)}),
        _ => json!({}),
    };
    let mut objects = objects(&tools);
    let (patterns, namespaces) = (patterns(), ["default", "team-*", "*", "kube-system"].map(str::to_owned));
    let permissions = |random: &mut Random| -> Vec<String> {
        (0..=random.below(3)).map(|_| random.pick(&patterns).clone()).collect()
    };
    for number in 0..random.below(3) {
        let (name, spec) = (format!("role-{number}"), json!({"permissions": permissions(random)}));
        let role: Arc<McpRole> = parse("McpRole", json!({"name": name, "namespace": "agents"}), spec);
        objects.roles.insert(name, role);
    }
    for number in 0..random.below(3) {
        let name = format!("cluster-role-{number}");
        let server = if random.below(8) == 0 { "other" } else { "ops" };
        let spec = json!({"permissions": permissions(random), "namespaces": random.some(&namespaces, 2),
            "servers": [{"namespace": "agents", "name": server}]});
        let role: Arc<ClusterMcpRole> = parse("ClusterMcpRole", json!({"name": name}), spec);
        objects.cluster_roles.insert(name, role);
    }
    objects
}

#[test]
fn a_tool_that_is_not_listed_is_unknown_when_called_whatever_the_roles() {
    let (toolbox, mut random) = (Toolbox::new(registry()), Random(0x9E37_79B9_7F4A_7C15));
    let mut lists: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for _ in 0..200 {
        let listed = listed_and_found_alike(&toolbox, &caller(random_objects(&mut random), None));
        for tool in registry() {
            lists.entry(tool.name).or_default()[usize::from(listed.contains(tool.name))] += 1;
        }
    }
    for (tool, [unlisted, listed]) in lists {
        assert!(unlisted > 10 && listed > 10, "{tool}: {listed} and {unlisted} say little");
    }
}

#[test]
fn the_scopes_of_a_credential_only_ever_take_tools_away() {
    let (toolbox, mut random) = (Toolbox::new(registry()), Random(0xD1B5_4A32_D192_ED03));
    let patterns = patterns();
    let mut taken = 0;
    for _ in 0..200 {
        let objects = random_objects(&mut random);
        let scopes = random.some(&patterns, 3);
        let narrowed = caller(objects.clone(), Some(scopes.clone()));
        let whole = listed_and_found_alike(&toolbox, &caller(objects, None));
        assert!(listed_and_found_alike(&toolbox, &narrowed).is_subset(&whole));
        for tool in registry() {
            for name in all_names(tool) {
                let callable = toolbox.find(name, &narrowed).is_some()
                    && toolbox.short_of_scope(name, &narrowed).is_none();
                let mut usable = super::usable(tool, &narrowed);
                let expected =
                    whole.contains(tool.name) && usable.any(|permission| within_scopes(&scopes, permission));
                assert_eq!(callable, expected, "{name} within {scopes:?}");
                taken += usize::from(whole.contains(tool.name) && !callable);
            }
        }
    }
    assert!(taken > 100, "{taken} say little");
}

/// Namespaces of the second table.
const PLACES: [&str; 9] = [
    "agents",
    "default",
    "development",
    "feature-login",
    "features",
    "kube-system",
    OPERATOR_NAMESPACE,
    "production",
    "staging",
];

const LEGEND: &str = "\
The roles of manifests/samples/roles-presets.yaml against every tool. Made by the test
the_presets_allow_what_their_table_says; when a change is meant, run it with UPDATE_GOLDEN=1 and read the difference.

allowed     in every namespace, and in all of them at once
namespaced  in the namespaces of the second table, which a list without a namespace shows together; elsewhere a call is
            refused with a tool error
hidden      not listed, and a call is answered as one of an unknown tool

A tool that needs k8s:<resource>:<verb> is allowed on the resources that the role names with that verb.
";

/// What a caller may do with a tool, in a word.
fn verdict(toolbox: &Toolbox, caller: &Caller, tool: &Tool) -> &'static str {
    if toolbox.find(tool.name, caller).is_none() {
        return "hidden";
    }
    let everywhere = |permission| {
        authorize(&caller.grants, permission, Target::Anywhere).is_ok_and(|permit| permit.is_cluster_wide())
    };
    if usable(tool, caller).all(everywhere) { "allowed" } else { "namespaced" }
}

/// Whether a caller may use the tools that it sees in a namespace.
fn reach(toolbox: &Toolbox, caller: &Caller, namespace: &str) -> &'static str {
    let seen = registry().iter().filter(|tool| toolbox.find(tool.name, caller).is_some());
    let target = Target::Namespace(namespace);
    let needed = seen.flat_map(|tool| usable(tool, caller));
    let allowed: BTreeSet<bool> =
        needed.map(|permission| authorize(&caller.grants, permission, target).is_ok()).collect();
    match (allowed.contains(&true), allowed.contains(&false)) {
        (true, true) => "some",
        (true, false) => "yes",
        (false, _) => "no",
    }
}

/// The table as people read it.
fn table() -> String {
    let (toolbox, callers) = (Toolbox::new(registry()), preset_callers());
    let mut text = LEGEND.to_owned();
    let mut row = |first: [&str; 3], cells: Vec<&str>| {
        let [tool, permission, class] = first;
        let mut line = format!("{tool:<20} {permission:<24} {class:<12}");
        for cell in cells {
            write!(line, " {cell:<11}").expect("text can be written");
        }
        writeln!(text, "{}", line.trim_end()).expect("text can be written");
    };
    let head = || callers.keys().map(String::as_str).collect::<Vec<_>>();
    row([""; 3], vec![]);
    row(["TOOL", "PERMISSION", "CLASS"], head());
    for tool in registry() {
        let class = json!(tool.needs.class());
        let permission = match tool.needs {
            Needs::Permission(permission) => permission.to_string(),
            Needs::Verb(verb) => format!("k8s:<resource>:{verb}"),
        };
        let first = [tool.name, &permission, class.as_str().expect("a word")];
        row(first, callers.values().map(|caller| verdict(&toolbox, caller, tool)).collect());
    }
    row([""; 3], vec![]);
    row(["NAMESPACE", "", ""], head());
    for place in PLACES {
        row([place, "", ""], callers.values().map(|caller| reach(&toolbox, caller, place)).collect());
    }
    text
}

#[test]
fn the_presets_allow_what_their_table_says() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/authz/testdata/presets.txt");
    let actual = table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("it has one")).expect("the directory can be made");
        fs::write(&path, &actual).expect("the golden file can be written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == actual,
        "what the presets allow has changed: run `UPDATE_GOLDEN=1 cargo test --lib server::toolbox` and read the \
         difference of {}; now it is\n{actual}",
        path.display()
    );
}
