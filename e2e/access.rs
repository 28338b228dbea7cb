//! The main job: real clients list and scale real workloads, and are refused where their role ends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{eventually, kubectl, object, objects};
use crate::mcp_client::Client;
use crate::server::{Endpoint, Wishes, key};
use crate::wire::Wire;

fn replicas(endpoint: &Endpoint, deployment: &str) -> i64 {
    let deployment = object(endpoint.namespace(), "deployment", deployment).expect("the Deployment");
    deployment["spec"]["replicas"].as_i64().expect("a number")
}

fn recorded(events: &[Value], user: &str, tool: &str, result: &str) -> bool {
    events.iter().any(|event| event["user"] == user && event["tool"] == tool && event["result"] == result)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_lists_what_its_role_allows_and_is_refused_elsewhere() {
    let endpoint = Endpoint::start("access", 1).await;
    endpoint.workload("web", 1).await;
    let namespace = endpoint.namespace().to_owned();
    for client in Client::ALL {
        let tools = client.tools(&endpoint, &endpoint.viewer).expect("the viewer may list");
        assert!(tools.contains(&"pods_list".to_owned()), "{client:?}: {tools:?}");
        assert!(!tools.contains(&"deployments_scale".to_owned()), "{client:?}: {tools:?}");

        let here = json!({"namespace": namespace});
        let listed = client.call(&endpoint, &endpoint.viewer, "pods_list", &here).expect("allowed");
        assert!(listed["text"].as_str().is_some_and(|text| text.contains("web-")), "{client:?}: {listed}");
        assert!(listed["structured"]["items"].as_array().is_some_and(|items| !items.is_empty()));

        let elsewhere = json!({"namespace": "kube-system"});
        let refused = client.call(&endpoint, &endpoint.viewer, "pods_list", &elsewhere);
        assert!(refused.is_err(), "{client:?} listed kube-system: {refused:?}");

        let scale = json!({"namespace": namespace, "name": "web", "replicas": 5});
        let refused = client.call(&endpoint, &endpoint.viewer, "deployments_scale", &scale);
        assert!(refused.is_err(), "{client:?}: the viewer scaled: {refused:?}");
        assert_eq!(replicas(&endpoint, "web"), 1, "{client:?}");
    }
    let events = endpoint.audit(&[]);
    assert!(recorded(&events, "viewer", "pods_list", "success"));
    assert!(recorded(&events, "viewer", "pods_list", "denied"));
    assert!(recorded(&events, "viewer", "deployments_scale", "denied"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_scales_a_deployment_and_the_pods_change() {
    let endpoint = Endpoint::start("scale", 1).await;
    endpoint.workload("web", 1).await;
    let namespace = endpoint.namespace().to_owned();
    for (client, wanted) in [(Client::PythonModern, 3), (Client::NpmSse, 1)] {
        let scale = json!({"namespace": namespace, "name": "web", "replicas": wanted});
        client.call(&endpoint, &endpoint.admin, "deployments_scale", &scale).expect("the admin may scale");
        eventually("the pods follow", Duration::from_secs(60), async || {
            let pods = objects(&["pods", "-n", &namespace, "-l", "app=web"]);
            let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
            (running == wanted && pods.len() == wanted).then_some(())
        })
        .await;
    }
    let alias = json!({"namespace": namespace, "name": "web", "replicas": 2});
    Client::NpmHandshake
        .call(&endpoint, &endpoint.admin, "k8s_scale_deployment", &alias)
        .expect("the name of the older documents is accepted");
    assert_eq!(replicas(&endpoint, "web"), 2);
    let events = endpoint.audit(&["--tool", "deployments_scale"]);
    assert!(recorded(&events, "admin", "deployments_scale", "intent"));
    assert!(recorded(&events, "admin", "deployments_scale", "success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_line_written_by_a_pod_comes_back() {
    let endpoint = Endpoint::start("log", 1).await;
    endpoint.workload("web", 1).await;
    let pods = objects(&["pods", "-n", endpoint.namespace(), "-l", "app=web"]);
    let pod = pods[0]["metadata"]["name"].as_str().expect("a name");
    let arguments = json!({"namespace": endpoint.namespace(), "name": pod, "tailLines": 20});
    let log = eventually("the Pod has written its first line", Duration::from_secs(20), async || {
        let log = Client::PythonModern.call(&endpoint, &endpoint.viewer, "pods_log", &arguments).ok()?;
        log["text"].as_str().filter(|text| text.contains("CoreDNS")).map(str::to_owned)
    })
    .await;
    assert!(log.contains("CoreDNS-"), "{log}");
    assert!(recorded(&endpoint.audit(&[]), "viewer", "pods_log", "success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_edited_with_kubectl_takes_effect() {
    let endpoint = Endpoint::start("edit", 1).await;
    endpoint.workload("web", 1).await;
    let client = Client::PythonModern;
    let scale = json!({"namespace": endpoint.namespace(), "name": "web", "replicas": 2});
    client.call(&endpoint, &endpoint.viewer, "deployments_scale", &scale).expect_err("not yet");
    let patch = |permissions: Value| {
        let patch = json!({"spec": {"permissions": permissions}}).to_string();
        kubectl(&["patch", "-n", endpoint.namespace(), "mcprole", "viewer", "--type=merge", "-p", &patch]);
    };
    patch(json!(["k8s:pods:list", "k8s:deployments:scale"]));
    eventually("the new permission counts", Duration::from_secs(10), async || {
        client.call(&endpoint, &endpoint.viewer, "deployments_scale", &scale).ok()
    })
    .await;
    patch(json!(["k8s:pods:list"]));
    eventually("the permission is gone again", Duration::from_secs(10), async || {
        client.call(&endpoint, &endpoint.viewer, "deployments_scale", &scale).err()
    })
    .await;
}

/// Each way to change something that has not a test of its own, with the permission that it needs.
const CHANGES: [(&str, &str); 3] = [
    ("k8s:pods:restart", "pods_restart"),
    ("k8s:pods:delete", "pods_delete"),
    ("k8s:deployments:restart", "deployments_restart"),
];

const ONE: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: one}
spec: {permissions: ['k8s:pods:restart']}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: one}
spec: {identity: one, servers: [ops], roles: [{kind: McpRole, name: one}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn each_permission_to_change_something_suffices_for_its_tool_and_opens_no_other() {
    let endpoint = Endpoint::start_with("one", Wishes { manifests: ONE, ..Wishes::default() }).await;
    endpoint.workload("web", 1).await;
    let namespace = endpoint.namespace().to_owned();
    // What the server's account may do comes from no other role then.
    kubectl(&["delete", "-n", &namespace, "mcprole", "admin", "viewer"]);
    let (one, wire) = (key(&namespace, "one").await, Wire::new(&endpoint));
    for (permission, tool) in CHANGES {
        let patch = json!({"spec": {"permissions": [permission]}}).to_string();
        kubectl(&["patch", "-n", &namespace, "mcprole", "one", "--type=merge", "-p", &patch]);
        let tools = eventually(&format!("{tool} is listed"), Duration::from_secs(20), async || {
            let listed = wire.call_raw(&one, "tools/list", json!({})).await.ok()?;
            let tools: Vec<String> = listed["tools"]
                .as_array()?
                .iter()
                .filter_map(|found| Some(found["name"].as_str()?.to_owned()))
                .collect();
            tools.contains(&tool.to_owned()).then_some(tools)
        })
        .await;
        assert_eq!(tools, [tool], "{permission}");
        let (pod, before) = running_pod(&namespace).await;
        let name = if tool.starts_with("pods") { pod.as_str() } else { "web" };
        for (_, other) in CHANGES.iter().filter(|(_, other)| *other != tool) {
            let refused = wire.tool(&one, other, json!({"namespace": namespace, "name": name})).await;
            assert!(refused.is_err(), "{permission} opens {other}: {refused:?}");
        }
        // The binding may follow the role a little later than the endpoint does.
        eventually(&format!("{tool} is carried out"), Duration::from_secs(20), async || {
            let answer = wire.tool(&one, tool, json!({"namespace": namespace, "name": name})).await.ok()?;
            (answer["isError"] != true).then_some(())
        })
        .await;
        eventually("another Pod runs", Duration::from_secs(60), async || {
            let (_, now) = running_pod(&namespace).await;
            (now != before).then_some(())
        })
        .await;
    }
    let events = endpoint.audit(&[]);
    for (_, tool) in CHANGES {
        assert!(recorded(&events, "one", tool, "success"), "{tool}");
        assert!(recorded(&events, "one", tool, "denied"), "{tool}");
    }
}

/// Name and uid of the one Pod of the workload that runs and is not going away.
async fn running_pod(namespace: &str) -> (String, String) {
    eventually("one Pod runs", Duration::from_secs(60), async || {
        let pods = objects(&["pods", "-n", namespace, "-l", "app=web"]);
        let text = |pod: &Value, field: &str| pod["metadata"][field].as_str().map(str::to_owned);
        match pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect::<Vec<_>>()[..]
        {
            [pod] if pod["status"]["phase"] == "Running" => Some((text(pod, "name")?, text(pod, "uid")?)),
            _ => None,
        }
    })
    .await
}
