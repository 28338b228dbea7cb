use serde_json::json;

use super::*;

fn pods() -> &'static Object {
    Object::find("pods").expect("it is there")
}

fn secrets() -> Object {
    Object { name: SECRETS, qualified: SECRETS, plural: SECRETS, kind: "Secret", ..pods().clone() }
}

fn shown_as(object: &Object, found: Value) -> Result<Value, String> {
    let Value::Object(found) = found else { panic!("an object") };
    shown(object, found).map(Value::Object).map_err(|error| error.to_string())
}

#[test]
fn an_object_is_shown_without_annotations_and_what_its_programs_are_started_with() {
    let container = json!({"name": "web", "image": "web:1", "command": ["run"], "args": ["--password=x"],
        "env": [{"name": "A", "value": "secret"}, {"name": "B", "valueFrom": {"fieldRef": {}}}]});
    let found = json!({
        "kind": "Rollout",
        "metadata": {"name": "web", "labels": {"app": "web"}, "managedFields": [{}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "secret"}},
        "spec": {"template": {"spec": {"containers": [container.clone()], "initContainers": [container]}}},
    });
    let shown = shown_as(pods(), found).expect("shown");
    let container = json!({"name": "web", "image": "web:1",
        "env": [{"name": "A", "value": LEFT_OUT}, {"name": "B", "valueFrom": {"fieldRef": {}}}]});
    let expected = json!({
        "kind": "Rollout",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"template": {"spec": {"containers": [container.clone()], "initContainers": [container]}}},
    });
    assert_eq!(shown, expected);
}

#[test]
fn values_of_a_secret_are_shown_as_text_so_that_keys_in_them_are_masked_later() {
    let found = json!({"type": "Opaque", "metadata": {"name": "db"}, "data": {"password": "aHVudGVyMg==", "key": "/w=="}});
    let shown = shown_as(&secrets(), found).expect("shown");
    assert_eq!(shown["data"], json!({"password": "hunter2", "key": "<1 bytes, not text>"}));
}

#[test]
fn secrets_of_portcullis_itself_are_not_shown_to_anybody() {
    let owner = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "name": "ops"});
    for found in [
        json!({"type": "portcullis.dev/api-key", "metadata": {}, "data": {"api-key": "eA=="}}),
        json!({"type": "kubernetes.io/tls", "metadata": {"ownerReferences": [owner]}, "data": {}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "portcullis"}}, "data": {}}),
    ] {
        let error = shown_as(&secrets(), found.clone()).expect_err("refused");
        assert!(error.contains("no tool shows it"), "{found}: {error}");
    }
}

#[test]
fn a_resource_is_found_with_and_without_its_group_and_chooses_the_permission() {
    let call = |resource: &str| {
        let given = json!({"resource": resource, "namespace": "shop", "name": "web"});
        (GET.parse)(given.as_object().expect("an object").clone()).expect("valid")
    };
    for resource in ["deployments", "deployments.apps"] {
        let call = call(resource);
        assert_eq!(call.permission(), Some(Permission::of("deployments", "get")), "{resource}");
        assert_eq!(
            (call.target(), call.resource()),
            (Target::Namespace("shop"), "deployments/web".to_owned())
        );
    }
    for resource in ["deployments.core", "secrets", "namespaces", "tools", "widgets.example.com"] {
        assert_eq!(call(resource).permission(), None, "{resource}");
    }
}
