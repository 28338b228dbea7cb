use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::*;
use crate::audit::{Kind, Outcome};
use crate::server::transport::BODY_LIMIT;

#[tokio::test]
async fn every_credential_that_proves_nothing_gets_the_same_answer_and_its_own_reason_on_record() {
    let fixture = start().await;
    let (key, unknown) = (fixture.key.clone(), unknown_key());
    let bearer = format!("Bearer {key}");
    // The id of a real key with the secret of another one does not pass the checksum; this one is well formed.
    type Case<'a> = (Vec<(&'a str, &'a str)>, &'a str, &'a str, &'a str);
    let token = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJodHRwczovL2EuZXhhbXBsZSJ9.c2lnbmF0dXJl";
    let cases: Vec<Case<'_>> = vec![
        (vec![], "missing", "anonymous", "none"),
        (vec![("x-api-key", &unknown)], "unknown_key", "unknown", "apikey"),
        (vec![("x-api-key", &key), ("authorization", &bearer)], "ambiguous", "unknown", "bearer"),
        (vec![("x-api-key", &key), ("x-api-key", &key)], "ambiguous", "unknown", "apikey"),
        (vec![("authorization", "Basic YTpi")], "method_disabled", "unknown", "basic"),
        (vec![("authorization", "Basic %")], "unknown_form", "unknown", "basic"),
        (vec![("authorization", "Negotiate YTpi")], "unknown_form", "unknown", "unknown"),
        (vec![("authorization", &key)], "unknown_form", "unknown", "unknown"),
        (vec![("authorization", token)], "unknown_issuer", "unknown", "bearer"),
    ];
    let mut answers = Vec::new();
    for (headers, reason, user, auth_type) in cases {
        let reply = fixture.reply(fixture.post("/mcp", &headers, "{}")).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reason}");
        assert_eq!(reply.headers["www-authenticate"], "Bearer realm=\"portcullis\"");
        let event = fixture.last_event();
        assert_eq!((event.event_type, event.result), (Kind::Authentication, Outcome::Failure));
        assert_eq!((event.reason.as_deref(), event.user.as_str()), (Some(reason), user));
        assert_eq!((event.auth_type.as_str(), event.metadata["auth_type"].as_str()), (auth_type, auth_type));
        assert_eq!(event.client_ip.as_deref(), Some("127.0.0.1"));
        answers.push(reply.text);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let in_query = fixture.post(&format!("/mcp?api_key={key}"), &[], "{}");
    assert_eq!(fixture.reply(in_query).await.status, StatusCode::UNAUTHORIZED);
    let record = format!("{:?}", fixture.events());
    assert!(!record.contains(&key) && !record.contains(&unknown), "a key is on record");
    fixture.stop().await;
}

#[tokio::test]
async fn each_form_of_the_credential_is_accepted() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let (bearer, api_key) = (format!("Bearer {key}"), format!("ApiKey {key}"));
    for header in [("x-api-key", &key), ("authorization", &bearer), ("authorization", &api_key)] {
        let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
        let reply = fixture.reply(fixture.post("/mcp", &[(header.0, header.1)], ping)).await;
        assert_eq!((reply.status, &reply.json()["result"]), (StatusCode::OK, &json!({})), "{}", header.0);
        let event = fixture.last_event();
        assert_eq!((event.event_type, event.result), (Kind::McpRequest, Outcome::Success));
        assert_eq!((event.user.as_str(), event.auth_type.as_str()), ("ci-bot", "apikey"));
        assert_eq!(
            (event.metadata["key_type"].as_str(), event.metadata["key"].as_str()),
            ("generated", "ci")
        );
        assert_eq!(event.action, "ping");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_disabled_key_is_refused_from_the_next_request_on() {
    let fixture = start().await;
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    assert_eq!(fixture.message(&ping).await.status, StatusCode::OK);
    fixture.publish(|objects| {
        let key = objects.keys.get_mut("ci").expect("there");
        std::sync::Arc::make_mut(key).spec.enabled = false;
    });
    assert_eq!(fixture.message(&ping).await.status, StatusCode::UNAUTHORIZED);
    let event = fixture.last_event();
    assert_eq!((event.reason.as_deref(), event.user.as_str()), (Some("disabled"), "ci-bot"), "it was proved");
    fixture.stop().await;
}

#[tokio::test]
async fn a_foreign_host_or_origin_is_refused_before_anything_is_read() {
    let fixture = start().await;
    let (key, ping) = (fixture.key.clone(), r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#);
    let cases = [
        ("evil.example.com", None, Some("host_not_allowed")),
        ("localhost", Some("https://evil.example.com"), Some("origin_not_allowed")),
        ("ops-mcp.agents.svc", Some("http://localhost:3000"), Some("origin_not_allowed")),
        ("localhost:8443", Some("http://localhost:3000"), None),
        ("ops-mcp.agents.svc.cluster.local", Some("https://console.example.com"), None),
        ("ops-mcp", None, None),
    ];
    for (host, origin, refused) in cases {
        let mut headers = vec![("host", host), ("x-api-key", key.as_str())];
        headers.extend(origin.map(|origin| ("origin", origin)));
        let reply = fixture.reply(fixture.post("/mcp", &headers, ping)).await;
        let allowed = reply.headers.get("access-control-allow-origin").and_then(|v| v.to_str().ok());
        match refused {
            None => {
                assert_eq!(reply.status, StatusCode::OK, "{host} {origin:?}");
                assert_eq!(allowed, origin);
            }
            Some(reason) => {
                assert_eq!(reply.status, StatusCode::FORBIDDEN, "{host} {origin:?}");
                assert_eq!(allowed, None);
                let event = fixture.last_event();
                assert_eq!((event.result, event.reason.as_deref()), (Outcome::Denied, Some(reason)));
                assert_eq!(event.user, "anonymous");
            }
        }
    }
    fixture.stop().await;
}

#[tokio::test]
async fn other_methods_and_paths_are_not_there() {
    let fixture = start().await;
    for method in ["GET", "DELETE", "PUT"] {
        let mut request = fixture.post("/mcp", &[], "");
        *request.method_mut() = method.parse().expect("a method");
        let reply = fixture.reply(request).await;
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(reply.headers["allow"], "POST");
    }
    assert_eq!(fixture.reply(fixture.post("/elsewhere", &[], "")).await.status, StatusCode::NOT_FOUND);
    fixture.stop().await;
}

#[tokio::test]
async fn a_message_must_be_json_and_not_too_large() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let large = "x".repeat(BODY_LIMIT + 1);
    let reply = fixture.reply(fixture.post("/mcp", &[("x-api-key", &key)], large)).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    let event = fixture.last_event();
    assert_eq!((event.user.as_str(), event.reason.as_deref()), ("ci-bot", Some("too_large")));
    let text = [("x-api-key", key.as_str()), ("content-type", "text/plain")];
    let reply = fixture.reply(fixture.post("/mcp", &text, "{}")).await;
    assert_eq!(reply.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for (body, code, reason) in [
        ("{", -32700, "parse_error"),
        ("[]", -32600, "batch"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}"#, -32602, "invalid_params"),
    ] {
        let reply = fixture.reply(fixture.post("/mcp", &[("x-api-key", &key)], body)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        let json = reply.json();
        assert_eq!((&json["error"]["code"], &json["id"]), (&json!(code), &json!(null)), "{body}");
        let event = fixture.last_event();
        assert_eq!((event.result, event.reason.as_deref()), (Outcome::Failure, Some(reason)), "{body}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_policy_that_is_too_old_serves_nothing() {
    let old = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(30);
    let policy = crate::index::Policy::remote_for_tests(old);
    let fixture = start_with(Setup { policy: Some(policy.clone()), ..Setup::default() }).await;
    fixture.publish(|_| {});
    let read = fixture.call("echo", json!({"namespace": "agents"})).await.json();
    assert_eq!(read["result"]["isError"], false, "{read}");
    let write = fixture.call("write", json!({"namespace": "agents"})).await.json();
    assert_eq!(write["result"]["isError"], true, "{write}");
    let event = fixture.last_event();
    assert_eq!((event.result, event.reason.as_deref()), (Outcome::Denied, Some("stale_policy")));
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(61);
    policy.set_contact(then, then);
    let reply = fixture.call("echo", json!({"namespace": "agents"})).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fixture.last_event().reason.as_deref(), Some("stale_policy"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_key_that_ends_while_its_message_comes_in_is_refused() {
    let fixture = start().await;
    let mut stream = fixture.connect().await;
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
        fixture.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The server asks for the body once it has accepted the key.
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.expect("an answer");
    assert!(go_on.starts_with(b"HTTP/1.1 100"));
    fixture.publish(|objects| {
        let key = objects.keys.get_mut("ci").expect("there");
        std::sync::Arc::make_mut(key).spec.enabled = false;
    });
    stream.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert_eq!(fixture.last_event().reason.as_deref(), Some("disabled"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let fixture = start().await;
    let mut stream = fixture.connect().await;
    let closed = tokio::time::timeout(std::time::Duration::from_secs(15), stream.read(&mut [0])).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    fixture.stop().await;
}
