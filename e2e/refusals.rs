//! Who is not let in, and what a malformed request gets: the protocol's error, an audit event, and nothing else.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::cluster::{eventually, kubectl, objects};
use crate::mcp_client::Client;
use crate::server::Endpoint;
use crate::wire::Wire;

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_no_key_and_a_disabled_key_are_refused_and_recorded() {
    let endpoint = Endpoint::start("keys", 1).await;
    let mut wrong = endpoint.viewer.clone();
    wrong.replace_range(30..31, if &wrong[30..31] == "A" { "B" } else { "A" });
    for client in Client::ALL {
        for key in [wrong.as_str(), "", "hello"] {
            client.tools(&endpoint, key).expect_err("nobody knows this key");
        }
    }
    kubectl(&[
        "patch",
        "-n",
        endpoint.namespace(),
        "mcpapikey",
        "viewer",
        "--type=merge",
        "-p",
        r#"{"spec":{"enabled":false}}"#,
    ]);
    eventually("the disabled key is refused", Duration::from_secs(5), async || {
        Client::PythonModern.tools(&endpoint, &endpoint.viewer).err()
    })
    .await;
    let events = endpoint.audit(&["--type", "authentication"]);
    for reason in ["missing", "unknown_form", "disabled"] {
        assert!(
            events.iter().any(|event| event["reason"] == reason && event["result"] == "failure"),
            "{reason}: {events:?}"
        );
    }
    eventually("an administrator sees it as an Event", Duration::from_secs(90), async || {
        let events = objects(&["events.events.k8s.io", "-n", endpoint.namespace()]);
        let of_server = |event: &&Value| event["regarding"]["kind"] == "McpServer";
        events.iter().filter(of_server).any(|event| event["reason"] == "AuthenticationFailed").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_a_key_is_accepted_and_two_at_once_are_not() {
    let endpoint = Endpoint::start("forms", 1).await;
    let wire = Wire::new(&endpoint);
    let send = async |headers: &[(&str, String)]| {
        let mut request = wire.request("POST", "/mcp");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        wire.send(request.body(Full::from(LIST)).expect("a request")).await.expect("an answer")
    };
    let key = &endpoint.viewer;
    for headers in [
        [("x-api-key", key.clone())],
        [("authorization", format!("Bearer {key}"))],
        [("authorization", format!("ApiKey {key}"))],
    ] {
        assert_eq!(send(&headers).await.status(), StatusCode::OK, "{}", headers[0].0);
    }
    for headers in [
        vec![("x-api-key", key.clone()), ("authorization", format!("Bearer {key}"))],
        vec![("x-api-key", key.clone()), ("x-api-key", key.clone())],
        vec![],
    ] {
        let answer = send(&headers).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(answer.headers().contains_key("www-authenticate"));
    }
    let query = wire.request("POST", &format!("/mcp?api_key={key}")).body(Full::from(LIST));
    let answer = wire.send(query.expect("a request")).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "a key in the address is no credential");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_gets_the_protocols_error_and_nothing_falls_over() {
    let endpoint = Endpoint::start("bad", 1).await;
    let wire = Wire::new(&endpoint);
    let post = async |body: Vec<u8>| {
        let request: Request<Full<Bytes>> = wire
            .request("POST", "/mcp")
            .header("x-api-key", &endpoint.viewer)
            .body(Full::from(body))
            .expect("a request");
        let answer = wire.send(request).await.expect("an answer");
        let body: Value = serde_json::from_slice(answer.body()).unwrap_or(Value::Null);
        (answer.status(), body["error"]["code"].as_i64())
    };
    for (body, code) in [
        (&b"{"[..], -32700),
        (b"\xff\xfe", -32700),
        (b"", -32700),
        (b"[]", -32600),
        (b"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]", -32600),
        (b"{}", -32600),
        (b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"tools/list\"}", -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}", -32600),
        (b"42", -32600),
    ] {
        let (status, found) = post(body.to_vec()).await;
        let text = String::from_utf8_lossy(body);
        assert_eq!(found, Some(code), "{status} for {text:?}");
        assert!(status.is_client_error(), "{status} for {text:?}");
    }
    let deep = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{}{}}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    assert!(post(deep.into_bytes()).await.0.is_client_error());
    let large = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{}\"}}", "x".repeat(5 << 20));
    let request = wire.request("POST", "/mcp").header("x-api-key", &endpoint.viewer).body(Full::from(large));
    // The server may close the connection before the body is all sent; a refusal is what counts.
    if let Ok(answer) = wire.send(request.expect("a request")).await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    let foreign = wire.request("POST", "/mcp").header("x-api-key", &endpoint.viewer);
    let foreign = foreign.header("origin", "https://evil.example").body(Full::from(LIST)).expect("a request");
    assert_eq!(wire.send(foreign).await.expect("an answer").status(), StatusCode::FORBIDDEN);

    let unknown =
        wire.tool(&endpoint.viewer, "no_such_tool", json!({})).await.expect_err("unknown").to_string();
    let hidden =
        wire.tool(&endpoint.viewer, "deployments_scale", json!({})).await.expect_err("hidden").to_string();
    assert_eq!(unknown.replace("no_such_tool", "T"), hidden.replace("deployments_scale", "T"));

    for (arguments, names) in [
        (json!({"namespace": "UPPER"}), "namespace"),
        (json!({"namespace": 7}), "namespace"),
        (json!({"limit": 0}), "limit"),
        (json!({"confirm": true}), "confirm"),
        (json!({"continue": "%%%"}), "continue"),
    ] {
        let answer = wire.tool(&endpoint.viewer, "pods_list", arguments.clone()).await.expect("a result");
        assert_eq!(answer["isError"], true, "{arguments}");
        let text = answer["content"][0]["text"].as_str().unwrap_or_default();
        assert!(text.contains(names), "{arguments}: {text}");
    }
    wire.tool(&endpoint.viewer, "pods_list", json!({})).await.expect("it still answers");
}
