use serde_json::{Value, json};

use super::*;
use crate::authz::Permission;
use crate::authz::permission::{ParsePattern, Pattern};

fn widgets() -> Value {
    json!({"group": "example.com", "resource": "widgets", "kind": "Widget", "version": "v1", "scope": "Namespaced",
        "verbs": ["get", "create", "delete"]})
}

fn with(field: &str, value: Value) -> Value {
    let mut extra = widgets();
    extra[field] = value;
    extra
}

fn parse(extra: &[Value]) -> Result<Extension, String> {
    Extension::parse(&json!({"extra": extra}).to_string()).map_err(|error| error.to_string())
}

#[test]
fn a_resource_becomes_one_permission_for_each_verb_under_its_name_with_the_group() {
    let extension = parse(&[widgets(), with("group", json!(""))]).expect("valid");
    let rows: Vec<_> =
        extension.entries.iter().map(|entry| (entry.resource, entry.verb, entry.class)).collect();
    let of = |resource| {
        [("get", Class::Read), ("create", Class::Write), ("delete", Class::Destructive)]
            .map(|(verb, class)| (resource, verb, class))
    };
    assert_eq!(rows, [of("widgets.example.com"), of("widgets")].concat());
    let rule = Rule { group: "example.com", resource: "widgets", verbs: &["get"] };
    assert_eq!(extension.entries[0].rules, [rule]);
    assert!(extension.entries.iter().all(Entry::is_extra));
    let path = |index: usize, namespace| extension.objects[index].path(namespace);
    assert_eq!(path(0, Some("shop")), "/apis/example.com/v1/namespaces/shop/widgets");
    assert_eq!(path(1, None), "/api/v1/widgets");
}

#[test]
fn a_resource_of_the_catalogue_can_be_given_more_verbs_under_the_name_it_has() {
    let more = json!({"group": "apps", "resource": "deployments", "kind": "Deployment", "version": "v1",
        "scope": "Namespaced", "verbs": ["delete"]});
    let extension = parse(std::slice::from_ref(&more)).expect("valid");
    assert_eq!((extension.entries[0].resource, extension.objects.len()), ("deployments", 0));
    let mut other = more;
    other["version"] = json!("v1beta1");
    assert_eq!(
        parse(&[other]).unwrap_err(),
        "catalogue.extra[0]: deployments.apps is Deployment of version v1 in namespaces"
    );
}

#[test]
fn secrets_are_there_only_when_the_values_say_so_and_resources_does_not_mean_them() {
    let names = |text: &str| -> Vec<(&'static str, Class)> {
        let extension = Extension::parse(text).expect("valid");
        assert!(extension.entries.iter().all(|entry| entry.resource == "secrets" && !entry.is_extra()));
        extension.entries.iter().map(|entry| (entry.verb, entry.class)).collect()
    };
    assert_eq!(names(""), []);
    assert_eq!(names(r#"{"extra": [], "secrets": {"read": false, "manage": false}}"#), []);
    let read = [("get", Class::Sensitive), ("list", Class::Sensitive)];
    assert_eq!(names(r#"{"secrets": {"read": true}}"#), read);
    assert_eq!(names(r#"{"secrets": {"manage": true}}"#), [("manage", Class::Destructive)]);
}

#[test]
fn what_cannot_be_added_is_named_with_its_place() {
    for (extra, error) in [
        (
            with("verbs", json!(["exec"])),
            "catalogue.extra[0].verbs: \"exec\" must be get, list, watch, create",
        ),
        (with("verbs", json!(["*"])), "catalogue.extra[0].verbs: \"*\" must be"),
        (with("verbs", json!([])), "catalogue.extra[0].verbs: name at least one"),
        (with("verbs", json!(["get", "get"])), "k8s:widgets.example.com:get is in the catalogue already"),
        (with("resource", json!("*")), "catalogue.extra[0].resource: \"*\" must be a resource in the plural"),
        (with("resource", json!("pods/exec")), "catalogue.extra[0].resource: \"pods/exec\" must be"),
        (
            with("group", json!("Example.com")),
            "catalogue.extra[0].group: \"Example.com\" must be an API group",
        ),
        (with("group", json!("a..b")), "catalogue.extra[0].group: \"a..b\" must be"),
        (with("group", json!("a.".repeat(60) + "b")), "is too long a name for a permission"),
        (with("kind", json!("")), "catalogue.extra[0].kind: \"\" must be a kind"),
        (with("version", json!("v1/../..")), "catalogue.extra[0].version: \"v1/../..\" must be a version"),
    ] {
        let found = parse(&[extra]).expect_err(error);
        assert!(found.contains(error), "{found}");
    }
    let core = |resource: &str, kind: &str| json!({"resource": resource, "kind": kind, "version": "v1", "scope": "Namespaced", "verbs": ["get"]});
    for (extra, error) in [
        (core("pods", "Pod"), "catalogue.extra[1]: k8s:pods:get is in the catalogue already"),
        (
            core("secrets", "Secret"),
            "catalogue.extra[1]: permissions on Secrets are added by catalogue.secrets",
        ),
        (core("resources", "Resource"), "stands for every resource of catalogue.extra"),
        (widgets(), "catalogue.extra[1]: k8s:widgets.example.com:get is in the catalogue already"),
    ] {
        let found = parse(&[widgets(), extra]).expect_err(error);
        assert!(found.contains(error), "{found}");
    }
    for text in ["{", "[1]", r#"{"extras": []}"#, r#"{"secrets": {"write": true}}"#, r#"{"extra": [{}]}"#] {
        assert!(Extension::parse(text).is_err(), "{text}");
    }
}

#[test]
fn no_more_are_added_than_the_policies_can_ask_for() {
    let many = |count: usize| -> Vec<Value> {
        let extra = |number| {
            let mut extra = with("resource", json!(format!("widgets-{number}")));
            extra["verbs"] = json!(["get"]);
            extra
        };
        (0..count).map(extra).collect()
    };
    assert_eq!(parse(&many(MOST)).expect("valid").entries.len(), MOST);
    assert!(parse(&many(MOST + 1)).expect_err("too many").contains("more than 200"));
}

#[test]
fn patterns_are_read_against_the_whole_table() {
    let extension = parse(&[widgets()]).expect("valid");
    let read = |text: &str| {
        let catalogue = Permission::all().map(|known| -> &Entry { known.entry() }).chain(&extension.entries);
        let pattern = Pattern::parse_among(text, catalogue)?;
        let found = extension.entries.iter().filter(|entry| pattern.stands_for(entry));
        Ok(found.map(|entry| entry.verb).collect::<Vec<_>>())
    };
    for text in ["k8s:widgets.example.com:*", "k8s:resources:*", "k8s:*", "*"] {
        assert_eq!(read(text), Ok(vec!["get", "create", "delete"]), "{text}");
    }
    for text in ["k8s:widgets.example.com:create", "k8s:resources:create", "k8s:*:create"] {
        assert_eq!(read(text), Ok(vec!["create"]), "{text}");
    }
    assert_eq!(read("k8s:pods:*"), Ok(vec![]));
    for text in
        ["k8s:widgets:get", "k8s:widgets.example.org:get", "k8s:widgets.example.com:patch", "k8s:secrets:*"]
    {
        assert_eq!(read(text), Err(ParsePattern::Unknown), "{text}");
    }
}
