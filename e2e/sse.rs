//! Legacy HTTP+SSE over several replicas behind a plain Service: every message is answered on its own stream.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::server::Endpoint;
use crate::wire::Wire;

/// An open stream and the path to which its messages go.
struct Stream {
    body: hyper::body::Incoming,
    buffer: String,
    messages: String,
    _connection: crate::wire::Connection,
}

impl Stream {
    async fn open(wire: &Wire, key: &str, path: &str) -> Self {
        let mut connection = wire.connect().await.expect("a connection");
        let request = wire.request("GET", path).header("x-api-key", key);
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        connection.ready().await.expect("open");
        let answer = connection.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let mut stream = Self {
            body: answer.into_body(),
            buffer: String::new(),
            messages: String::new(),
            _connection: connection,
        };
        let (event, data) = stream.next().await;
        assert_eq!(event, "endpoint");
        assert!(data.starts_with('/'), "a path, so that scheme, host and port stay the same: {data}");
        stream.messages = data;
        stream
    }

    /// The next event, comments left out.
    async fn next(&mut self) -> (String, String) {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                let field = |name: &str| {
                    let lines = block.lines().filter_map(|line| line.strip_prefix(name));
                    lines.map(str::trim).collect::<Vec<_>>().join("\n")
                };
                if block.lines().all(|line| line.is_empty() || line.starts_with(':')) {
                    continue;
                }
                return (field("event:"), field("data:"));
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await;
            let frame = frame.expect("an event in time").expect("the stream goes on").expect("no error");
            if let Ok(data) = frame.into_data() {
                self.buffer.push_str(&String::from_utf8_lossy(&data).replace("\r\n", "\n"));
            }
        }
    }
}

async fn post(wire: &Wire, key: &str, path: &str, message: Value) -> StatusCode {
    let request = wire.request("POST", path).header("x-api-key", key);
    let request = request.body(Full::from(message.to_string())).expect("a request");
    wire.send(request).await.expect("an answer").status()
}

fn initialize(id: usize) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": "initialize", "params": {
        "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_sessions_over_three_replicas_each_get_their_own_answers() {
    let endpoint = Endpoint::start("sse", 3).await;
    let wire = Wire::new(&endpoint);
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..100_usize {
        let (wire, key) = (wire.clone(), endpoint.viewer.clone());
        let path = if number % 2 == 0 { "/sse" } else { "/api/aggregate/sse" };
        sessions.spawn(async move {
            let mut stream = Stream::open(&wire, &key, path).await;
            let messages = stream.messages.clone();
            let id = 1_000 * number;
            assert_eq!(post(&wire, &key, &messages, initialize(id)).await, StatusCode::ACCEPTED);
            let (event, data) = stream.next().await;
            let answer: Value = serde_json::from_str(&data).expect("JSON");
            assert_eq!((event.as_str(), answer["id"].as_u64()), ("message", Some(id as u64)), "{data}");
            let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
            assert_eq!(post(&wire, &key, &messages, ready).await, StatusCode::ACCEPTED);
            for step in 1..=5 {
                let list = json!({"jsonrpc": "2.0", "id": id + step, "method": "tools/list"});
                assert_eq!(post(&wire, &key, &messages, list).await, StatusCode::ACCEPTED);
                let (_, data) = stream.next().await;
                let answer: Value = serde_json::from_str(&data).expect("JSON");
                assert_eq!(answer["id"].as_u64(), Some((id + step) as u64), "{data}");
                assert!(answer["result"]["tools"].is_array(), "{data}");
            }
            stream
        });
    }
    let streams = sessions.join_all().await;
    assert_eq!(streams.len(), 100);

    let of_viewer = streams[0].messages.clone();
    let foreign = post(&wire, &endpoint.admin, &of_viewer, initialize(1)).await;
    assert_eq!(foreign, StatusCode::NOT_FOUND, "somebody else's session id");
    let mut damaged = of_viewer.clone();
    let last = damaged.pop().expect("an id");
    damaged.push(if last == 'A' { 'B' } else { 'A' });
    assert_eq!(post(&wire, &endpoint.viewer, &damaged, initialize(1)).await, StatusCode::NOT_FOUND);
    let anonymous = wire.request("POST", &of_viewer).body(Full::from(initialize(1).to_string()));
    let answer = wire.send(anonymous.expect("a request")).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}
