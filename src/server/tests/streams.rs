use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::fixture::*;
use crate::audit::Outcome;

/// The reading end of a stream.
pub(super) struct Stream {
    body: Incoming,
    buffer: String,
}

impl Stream {
    /// Opens a stream and reads where to post.
    pub(super) async fn open(fixture: &Fixture, path: &str, key: &str) -> (Self, String) {
        Self::open_with(fixture, path, ("x-api-key", key)).await
    }

    /// Opens a stream with any credential.
    pub(super) async fn open_with(
        fixture: &Fixture,
        path: &str,
        (name, value): (&str, &str),
    ) -> (Self, String) {
        let request = Request::get(path).header("host", "localhost").header(name, value);
        let response = fixture.open(request.body(Full::default()).expect("a request")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self { body: response.into_body(), buffer: String::new() };
        let (event, data) = stream.next().await.expect("an event");
        assert_eq!(event, "endpoint");
        assert!(data.starts_with("/messages?sessionId="), "{data}");
        (stream, data)
    }

    /// The next event, or none at the end.
    pub(super) async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().to_owned()
                };
                let found = (field("event: "), field("data: "));
                self.buffer = rest.to_owned();
                return Some(found);
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(5), self.body.frame()).await.expect("in time")?;
            let data: Bytes = frame.ok()?.into_data().ok()?;
            self.buffer.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }

    /// The next message.
    pub(super) async fn message(&mut self) -> Value {
        let (event, data) = self.next().await.expect("a message");
        assert_eq!(event, "message");
        serde_json::from_str(&data).expect("JSON")
    }
}

async fn post(fixture: &Fixture, path: &str, key: &str, body: &Value) -> Reply {
    fixture.reply(fixture.post(path, &[("x-api-key", key)], body.to_string())).await
}

#[tokio::test]
async fn a_session_goes_from_the_handshake_to_a_call() {
    let fixture = start().await;
    let key = fixture.key.clone();
    for path in ["/sse", "/api/aggregate/sse"] {
        let (mut stream, messages) = Stream::open(&fixture, path, &key).await;
        let discover = json!({"jsonrpc": "2.0", "id": 0, "method": "server/discover", "params": {}});
        assert_eq!(post(&fixture, &messages, &key, &discover).await.status, StatusCode::ACCEPTED);
        assert_eq!(stream.message().await["error"]["code"], -32601, "clients fall back to the handshake");
        let initialize = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        post(&fixture, &messages, &key, &initialize).await;
        assert_eq!(stream.message().await["result"]["protocolVersion"], "2024-11-05");
        let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        assert_eq!(post(&fixture, &messages, &key, &initialized).await.status, StatusCode::ACCEPTED);
        post(&fixture, &messages, &key, &call("echo", json!({"namespace": "agents"}))).await;
        let answer = stream.message().await;
        assert_eq!(answer["result"]["content"][0]["text"], "agents", "{answer}");
        let event = fixture.last_event();
        assert_eq!((event.tool.as_deref(), event.metadata["transport"].as_str()), (Some("echo"), "sse"));
    }
    fixture.stop().await;
}

#[tokio::test]
async fn the_session_of_somebody_else_does_not_exist() {
    let fixture = start().await;
    let (key, other) = (fixture.key.clone(), fixture.other_key.clone());
    let (_stream, messages) = Stream::open(&fixture, "/sse", &key).await;
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    let reply = post(&fixture, &messages, &other, &ping).await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    let event = fixture.last_event();
    assert_eq!((event.result, event.reason.as_deref()), (Outcome::Denied, Some("integrity_violation")));
    assert_eq!(event.user, "other-bot");
    let damaged = format!("{messages}A");
    for path in [damaged.as_str(), "/messages?sessionId=nonsense", "/messages"] {
        assert_eq!(post(&fixture, path, &key, &ping).await.text, reply.text, "{path}");
    }
    let nobody = fixture.post(&messages, &[], ping.to_string());
    assert_eq!(fixture.reply(nobody).await.status, StatusCode::UNAUTHORIZED);
    fixture.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_key_and_its_session_with_the_stream() {
    let fixture = start().await;
    let (key, other) = (fixture.key.clone(), fixture.other_key.clone());
    let (mut stream, messages) = Stream::open(&fixture, "/sse", &key).await;
    let (mut others, _) = Stream::open(&fixture, "/sse", &other).await;
    fixture.publish(|objects| {
        let key = objects.keys.get_mut("ci").expect("there");
        std::sync::Arc::make_mut(key).spec.enabled = false;
    });
    let ended = tokio::time::timeout(Duration::from_secs(2), stream.next()).await.expect("in time");
    assert_eq!(ended, None);
    fixture.publish(|_| {});
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    assert_eq!(post(&fixture, &messages, &key, &ping).await.status, StatusCode::NOT_FOUND);
    assert!(tokio::time::timeout(Duration::from_millis(200), others.next()).await.is_err(), "still open");
    fixture.stop().await;
}

#[tokio::test]
async fn a_cancelled_request_ends_and_the_stream_goes_on() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let (mut stream, messages) = Stream::open(&fixture, "/sse", &key).await;
    post(&fixture, &messages, &key, &call("slow", json!({"namespace": "agents"}))).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    post(&fixture, &messages, &key, &cancel).await;
    post(&fixture, &messages, &key, &json!({"jsonrpc": "2.0", "id": 2, "method": "ping"})).await;
    assert_eq!(stream.message().await["id"], 2);
    eventually("the record", || fixture.events().iter().any(|e| e.result == Outcome::Cancelled)).await;
    fixture.stop().await;
}

#[tokio::test]
async fn streams_of_one_credential_are_counted_and_ended_on_drain() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let mut streams = Vec::new();
    for _ in 0..256 {
        streams.push(Stream::open(&fixture, "/sse", &key).await.0);
    }
    let request = Request::get("/sse").header("host", "localhost").header("x-api-key", &key);
    let reply = fixture.reply(request.body(Full::default()).expect("a request")).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fixture.last_event().reason.as_deref(), Some("too_many_sessions"));
    drop(streams.split_off(1));
    fixture.stop().await;
    assert_eq!(streams[0].next().await, None);
}

#[tokio::test]
async fn a_message_that_is_being_worked_on_is_answered_on_drain() {
    let fixture = start().await;
    let key = fixture.key.clone();
    let (mut stream, messages) = Stream::open(&fixture, "/sse", &key).await;
    post(&fixture, &messages, &key, &call("slow", json!({"namespace": "agents"}))).await;
    // It takes half a second, and draining begins before.
    let (_, answer) = tokio::join!(fixture.stop(), stream.message());
    assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(1), &json!(true)));
    assert_eq!(stream.next().await, None);
}
