//! What each tool asks of the API server, which gives everything to everybody here: only what the call is about.

use std::sync::Arc;

use serde_json::{Value, json};

use super::api_server::{ApiServer, UID, VERSION};
use super::fixture::*;
use crate::tools::{Tool, registry};

/// An endpoint with the real tools whose caller may do everything in the namespace `agents` and nothing elsewhere.
async fn start_with_everything() -> (Fixture, ApiServer) {
    let api = ApiServer::start().await;
    let setup = Setup { client: Some(api.client.clone()), tools: Some(registry()), ..Setup::default() };
    let fixture = start_with(setup).await;
    fixture.publish(|objects| {
        let role = Arc::make_mut(objects.roles.get_mut("viewer").expect("there"));
        role.spec.permissions = vec!["*".to_owned()];
    });
    (fixture, api)
}

/// Tools that act in a namespace.
fn namespaced() -> impl Iterator<Item = &'static Tool> {
    registry().iter().filter(|tool| (tool.input_schema)()["properties"].get("namespace").is_some())
}

/// What a tool is given to act in a namespace, on the object `api-7` if it is for one.
fn arguments(tool: &Tool, namespace: &str) -> Value {
    let mut given = json!({"namespace": namespace});
    for required in (tool.input_schema)()["required"].as_array().into_iter().flatten() {
        match required.as_str().expect("a name") {
            "namespace" => {}
            "name" => given["name"] = json!("api-7"),
            "resource" => given["resource"] = json!("services"),
            "replicas" => given["replicas"] = json!(3),
            other => panic!("what is the argument {other} of {}?", tool.name),
        }
    }
    given
}

/// All that the API server may be asked by the tool, sorted.
fn requests(tool: &Tool) -> Vec<String> {
    let (core, apps) = ("/api/v1/namespaces/agents", "/apis/apps/v1/namespaces/agents");
    match tool.name {
        "pods_list" => vec![format!("GET {core}/pods")],
        "pods_get" => vec![format!("GET {core}/pods/api-7")],
        "pods_log" => vec![format!("GET {core}/pods/api-7/log")],
        "pods_delete" => vec![format!("DELETE {core}/pods/api-7")],
        "pods_restart" => vec![format!("DELETE {core}/pods/api-7"), format!("GET {core}/pods/api-7")],
        "services_list" | "resources_list" => vec![format!("GET {core}/services")],
        "resources_get" => vec![format!("GET {core}/services/api-7")],
        "events_list" => vec![format!("GET {core}/events")],
        "deployments_list" => vec![format!("GET {apps}/deployments")],
        "deployments_scale" => {
            ["GET", "PATCH"].map(|verb| format!("{verb} {apps}/deployments/api-7/scale")).to_vec()
        }
        "deployments_restart" => {
            ["GET", "PATCH"].map(|verb| format!("{verb} {apps}/deployments/api-7")).to_vec()
        }
        other => panic!("say what {other} may ask"),
    }
}

#[tokio::test]
async fn each_tool_asks_the_api_server_only_in_the_namespace_of_its_permit() {
    let (fixture, api) = start_with_everything().await;
    for tool in namespaced() {
        let answer = fixture.call(tool.name, arguments(tool, "agents")).await.json();
        assert_eq!(answer["result"]["isError"], false, "{}: {answer}", tool.name);
        assert_eq!(api.asked(), requests(tool), "{}", tool.name);
        let refused = fixture.call(tool.name, arguments(tool, "shop")).await.json();
        let text = refused["result"]["content"][0]["text"].as_str().expect("a text");
        assert!(text.starts_with("permission denied: ") && text.ends_with("in namespace \"shop\""), "{text}");
        assert_eq!(api.asked(), [""; 0], "{}", tool.name);
    }
    // A list of what the caller may see is one of this namespace.
    for tool in namespaced().filter(|tool| tool.name.ends_with("_list")) {
        let mut everywhere = arguments(tool, "agents");
        everywhere.as_object_mut().expect("an object").remove("namespace");
        let answer = fixture.call(tool.name, everywhere).await.json();
        assert_eq!(answer["result"]["isError"], false, "{}: {answer}", tool.name);
        assert_eq!(api.asked(), requests(tool), "{}", tool.name);
    }
    fixture.stop().await;
}

#[tokio::test]
async fn what_changes_an_object_is_sent_with_what_makes_it_that_object() {
    let (fixture, api) = start_with_everything().await;
    let sent = async |tool: &str, more: Value| {
        let mut given = json!({"namespace": "agents", "name": "api-7"});
        given.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer = fixture.call(tool, given).await.json();
        assert_eq!(answer["result"]["isError"], false, "{tool}: {answer}");
        let mut sent = api.sent().into_iter().map(|(_, body)| body);
        (sent.next().expect("something is sent"), sent.next(), answer["result"]["structuredContent"].clone())
    };
    let (delete, None, _) = sent("pods_delete", json!({"gracePeriodSeconds": 7})).await else {
        panic!("one request")
    };
    assert_eq!((&delete["gracePeriodSeconds"], &delete["preconditions"]), (&json!(7), &Value::Null));
    let (delete, None, _) = sent("pods_delete", json!({})).await else { panic!("one request") };
    assert_eq!(delete["gracePeriodSeconds"], Value::Null, "as the Pod itself says");
    let (restart, None, told) = sent("pods_restart", json!({})).await else { panic!("one request") };
    assert_eq!(
        (&restart["preconditions"], &restart["gracePeriodSeconds"]),
        (&json!({"uid": UID}), &Value::Null)
    );
    assert_eq!(told["owner"], "ReplicaSet/owner");
    let (scale, None, told) = sent("deployments_scale", json!({"replicas": 3})).await else {
        panic!("one request")
    };
    assert_eq!(scale, json!({"metadata": {"resourceVersion": VERSION}, "spec": {"replicas": 3}}));
    assert_eq!((&told["previousReplicas"], &told["replicas"]), (&json!(1), &json!(3)));
    let (restart, None, told) = sent("deployments_restart", json!({})).await else { panic!("one request") };
    let annotations = &restart["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["kubectl.kubernetes.io/restartedAt"], told["restartedAt"]);
    fixture.stop().await;
}
