use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::fixture::*;
use crate::audit::{Kind, Outcome};

/// What a client of 2026-07-28 puts into every request.
fn stateless(method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    });
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

async fn stateless_reply(fixture: &Fixture, method: &str, name: Option<&str>, params: Value) -> Reply {
    let key = fixture.key.clone();
    let mut headers =
        vec![("x-api-key", key.as_str()), ("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
    headers.extend(name.map(|name| ("mcp-name", name)));
    fixture.reply(fixture.post("/mcp", &headers, stateless(method, params).to_string())).await
}

fn names(list: &Value) -> Vec<&str> {
    let tools = list["result"]["tools"].as_array().expect("tools");
    tools.iter().map(|tool| tool["name"].as_str().expect("a name")).collect()
}

const LISTED: [&str; 6] = ["echo", "large", "panic", "resources_list", "slow", "write"];

#[tokio::test]
async fn clients_of_the_handshake_initialize_and_list_what_they_may_use() {
    let fixture = start().await;
    let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let reply = fixture.message(&initialize).await.json();
    assert_eq!(reply["result"]["serverInfo"]["name"], "portcullis");
    assert_eq!(reply["result"]["protocolVersion"], "2025-11-25");
    assert_eq!(reply["result"]["capabilities"], json!({"tools": {}}));
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let reply = fixture.message(&initialized).await;
    assert_eq!((reply.status, reply.text.as_str()), (StatusCode::ACCEPTED, ""));
    let list = fixture.message(&json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).await.json();
    assert_eq!(names(&list), LISTED);
    let actions: Vec<_> = fixture.events().into_iter().map(|event| event.action).collect();
    assert_eq!(actions, ["tools/list", "notifications/initialized", "initialize"]);
    fixture.stop().await;
}

#[tokio::test]
async fn clients_of_the_current_revision_discover_list_and_call() {
    let fixture = start().await;
    let reply = stateless_reply(&fixture, "server/discover", None, json!({})).await.json();
    assert!(
        reply["result"]["supportedVersions"].as_array().expect("versions").contains(&json!("2026-07-28"))
    );
    let list = stateless_reply(&fixture, "tools/list", None, json!({})).await.json();
    assert_eq!(names(&list), LISTED);
    assert_eq!((&list["result"]["cacheScope"], &list["result"]["ttlMs"]), (&json!("private"), &json!(0)));
    let tool = &list["result"]["tools"][5];
    let annotations = json!({"title": "write", "readOnlyHint": false, "destructiveHint": false,
        "idempotentHint": true, "openWorldHint": false});
    assert_eq!(tool["annotations"], annotations);
    let params = json!({"name": "echo", "arguments": {"namespace": "agents"}});
    let reply = stateless_reply(&fixture, "tools/call", Some("echo"), params).await.json();
    assert_eq!(reply["result"]["structuredContent"], json!({"namespace": "agents"}));
    let params = json!({"name": "echo", "arguments": {"namespace": "agents"}});
    let reply = stateless_reply(&fixture, "tools/call", Some("write"), params).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "the header and the body name different tools");
    assert_eq!(fixture.last_event().result, Outcome::Failure);
    fixture.stop().await;
}

#[tokio::test]
async fn what_portcullis_does_not_have_is_answered_empty() {
    let fixture = start().await;
    for (method, field) in [
        ("prompts/list", "prompts"),
        ("resources/list", "resources"),
        ("resources/templates/list", "resourceTemplates"),
    ] {
        let reply = fixture.message(&json!({"jsonrpc": "2.0", "id": 1, "method": method})).await.json();
        assert_eq!(reply["result"][field], json!([]), "{method}");
    }
    let read = json!({"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "test://x"}});
    assert_eq!(fixture.message(&read).await.json()["error"]["code"], -32002);
    let reply =
        stateless_reply(&fixture, "resources/read", Some("test://x"), json!({"uri": "test://x"})).await;
    assert_eq!(reply.json()["error"]["code"], -32602);
    let reply = fixture.message(&json!({"jsonrpc": "2.0", "id": 1, "method": "no/such"})).await;
    assert_eq!(reply.json()["error"]["code"], -32601);
    assert_eq!(fixture.last_event().reason.as_deref(), Some("method_not_found"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_call_is_run_answered_and_on_record() {
    let fixture = start().await;
    for name in ["echo", "echo_alias"] {
        let reply = fixture.call(name, json!({"namespace": "agents"})).await.json();
        assert_eq!(reply["result"]["content"], json!([{"type": "text", "text": "agents"}]), "{reply}");
        assert_eq!(reply["result"]["structuredContent"], json!({"namespace": "agents"}));
        let event = fixture.last_event();
        assert_eq!((event.event_type, event.result), (Kind::McpRequest, Outcome::Success));
        assert_eq!((event.user.as_str(), event.credential_id), ("ci-bot", Some(key_id(&fixture.key))));
        assert_eq!((event.tool.as_deref(), event.namespace.as_deref()), (Some("echo"), Some("agents")));
        assert_eq!(event.reason.as_deref(), Some("McpRole agents/viewer"));
    }
    assert_eq!(fixture.events().len(), 2, "reading leaves one event per call");
    let body = call("echo", json!({"namespace": "agents"})).to_string();
    fixture.reply(fixture.post("/mcp", &[("x-api-key", &fixture.other_key)], body)).await;
    let event = fixture.last_event();
    assert_eq!((event.user.as_str(), event.credential_id), ("other-bot", Some(key_id(&fixture.other_key))));
    fixture.stop().await;
}

#[tokio::test]
async fn a_tool_that_must_not_be_known_is_answered_as_one_that_does_not_exist() {
    let fixture = start().await;
    for name in ["no_such_tool", "not_granted", "forbidden_by_spec"] {
        let reply = fixture.call(name, json!({"namespace": "agents"})).await;
        let error = json!({"code": -32602, "message": format!("unknown tool: {name}")});
        assert_eq!((reply.status, &reply.json()["error"]), (StatusCode::OK, &error));
        let event = fixture.last_event();
        assert_eq!((event.event_type, event.result), (Kind::Authorization, Outcome::Denied));
        assert_eq!((event.tool.as_deref(), event.reason.as_deref()), (Some(name), Some("unknown_tool")));
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_listed_tool_that_is_refused_for_its_arguments_says_so() {
    let fixture = start().await;
    let reply = fixture.call("echo", json!({"namespace": "kube-system"})).await.json();
    assert_eq!(reply["result"]["isError"], true);
    let text = "permission denied: k8s:pods:list in namespace \"kube-system\"";
    assert_eq!(reply["result"]["content"][0]["text"], text);
    let event = fixture.last_event();
    assert_eq!((event.event_type, event.result), (Kind::Authorization, Outcome::Denied));
    assert_eq!(event.namespace.as_deref(), Some("kube-system"));
    let reply = fixture.call("echo", json!({})).await.json();
    assert_eq!(reply["result"]["content"][0]["text"], "invalid arguments: namespace is missing");
    assert_eq!(fixture.last_event().reason.as_deref(), Some("invalid_arguments"));
    // A key where a name belongs is not said back.
    let reply = fixture.call("echo", json!({"namespace": fixture.key})).await.json();
    let text = reply["result"]["content"][0]["text"].as_str().expect("a text");
    assert!(text.starts_with("permission denied") && !text.contains(&fixture.key), "{text}");
    fixture.stop().await;
}

#[tokio::test]
async fn a_resource_that_must_not_be_known_is_answered_as_one_that_does_not_exist() {
    let fixture = start().await;
    let call = async |arguments: Value| {
        let reply = fixture.call("resources_list", arguments).await.json();
        assert_eq!(reply["result"]["isError"], true, "{reply}");
        reply["result"]["content"][0]["text"].as_str().expect("a text").to_owned()
    };
    let nothing = call(json!({"resource": "widgets.example.com"})).await;
    assert!(nothing.contains("names nothing that you may use this tool on"), "{nothing}");
    for arguments in [
        json!({"resource": "services"}),
        json!({"resource": "services", "namespace": "agents"}),
        json!({"resource": "services", "continue": "none of ours"}),
        json!({"resource": "secrets"}),
        // A permission without objects to be read.
        json!({"resource": "namespaces"}),
    ] {
        assert_eq!(call(arguments.clone()).await, nothing, "{arguments}");
    }
    let elsewhere = call(json!({"resource": "pods", "namespace": "kube-system"})).await;
    assert_eq!(elsewhere, "permission denied: k8s:pods:list in namespace \"kube-system\"");
    let event = fixture.events().into_iter().find(|event| event.resource.as_deref() == Some("services"));
    let event = event.expect("the refusal is on record as what it was");
    assert_eq!((event.result, event.metadata["permission"].as_str()), (Outcome::Denied, "k8s:services:list"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_resource_that_the_server_denies_is_answered_alike_and_counts_as_nothing_else() {
    let fixture = start().await;
    fixture.publish(|objects| {
        let role = Arc::make_mut(objects.roles.get_mut("viewer").expect("there"));
        role.spec.permissions = vec!["k8s:pods:list".to_owned(), "k8s:services:list".to_owned()];
        let server = Arc::make_mut(objects.server.as_mut().expect("there"));
        server.spec.tools.deny = vec!["pods_list".to_owned()];
    });
    let call = async |arguments: Value| {
        let reply = fixture.call("resources_list", arguments).await.json();
        reply["result"]["content"][0]["text"].as_str().expect("a text").to_owned()
    };
    let nothing = call(json!({"resource": "widgets.example.com"})).await;
    assert_eq!(call(json!({"resource": "pods", "namespace": "agents"})).await, nothing);
    let event = fixture.last_event();
    assert_eq!((event.result, event.reason.as_deref()), (Outcome::Denied, Some("permission")));
    let message = "the server does not offer the tool for k8s:pods:list";
    assert_eq!(event.error_message.as_deref(), Some(message));
    assert_eq!((&*event.metadata["permission"], event.metadata.get("rule")), ("k8s:pods:list", None));
    let counted = |result: &str| {
        let labels = format!(r#"{{resource="pods",action="list",result="{result}"}}"#);
        fixture.counted(&format!("mcp_authorization_checks_total{labels}"))
    };
    assert_eq!((counted("denied"), counted("allowed")), (Some(1), None));
    fixture.stop().await;
}

#[tokio::test]
async fn a_change_is_on_record_before_it_happens_and_without_a_record_it_does_not_happen() {
    let mut fixture = start().await;
    let before = WRITES.load(Ordering::SeqCst);
    fixture.call("write", json!({"namespace": "agents"})).await;
    let events = fixture.events();
    assert_eq!(
        events.iter().map(|event| event.result).collect::<Vec<_>>(),
        [Outcome::Success, Outcome::Intent]
    );
    assert_eq!(events[0].request_id, events[1].request_id);
    assert_eq!(WRITES.load(Ordering::SeqCst), before + 1);
    fixture.break_audit().await;
    let reply = fixture.call("write", json!({"namespace": "agents"})).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reply.json()["error"]["code"], -32603);
    assert_eq!(WRITES.load(Ordering::SeqCst), before + 1, "nothing was changed without a record");
    let reply = fixture.call("echo", json!({"namespace": "agents"})).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "nothing is shown without a record");
    fixture.stop().await;
}

#[tokio::test]
async fn a_panic_a_slow_tool_and_too_much_are_answers() {
    let fixture = start().await;
    for (tool, text, reason) in [
        ("panic", "failed unexpectedly", "panic"),
        ("slow", "did not finish within", "deadline"),
        ("large", "ask for less", "result_too_large"),
    ] {
        let reply = fixture.call(tool, json!({"namespace": "agents"})).await.json();
        assert_eq!(reply["result"]["isError"], true, "{tool}");
        let message = reply["result"]["content"][0]["text"].as_str().expect("text").to_owned();
        assert!(message.contains(text), "{message}");
        let event = fixture.last_event();
        assert_eq!((event.result, event.reason.as_deref()), (Outcome::Failure, Some(reason)));
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_is_on_record() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let body = call("slow", json!({"namespace": "agents"})).to_string();
    let request = fixture.post("/mcp", &[("x-api-key", &key)], body);
    let waiting = tokio::time::timeout(Duration::from_millis(150), fixture.open(request)).await;
    assert!(waiting.is_err(), "the tool takes longer");
    eventually("the record", || fixture.events().first().is_some_and(|e| e.result == Outcome::Cancelled))
        .await;
    let event = fixture.last_event();
    assert_eq!((event.tool.as_deref(), event.user.as_str()), (Some("slow"), "ci-bot"));
    assert_eq!(fixture.events().len(), 1);
    fixture.stop().await;
}

#[tokio::test]
async fn the_endpoint_speaks_http_2_and_any_accept_header_will_do() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let reply = fixture.reply(fixture.post("/mcp", &[("x-api-key", &key), ("accept", "*/*")], ping)).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(fixture.status_over_http_2("localhost", ping).await, StatusCode::OK);
    assert_eq!(fixture.status_over_http_2("evil.example.com", ping).await, StatusCode::FORBIDDEN);
    fixture.stop().await;
}
