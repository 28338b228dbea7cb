use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use super::fixture::*;
use crate::api::RateLimitSpec;
use crate::audit::{Kind, Outcome};

#[tokio::test]
async fn a_key_that_is_used_too_often_is_told_when_to_come_back() {
    let fixture = start().await;
    fixture.publish_key(|key| {
        key.rate_limit = Some(RateLimitSpec { requests_per_minute: 2, burst: Some(2) });
    });
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"});
    for _ in 0..2 {
        assert_eq!(fixture.message(&ping).await.status, StatusCode::OK);
    }
    let reply = fixture.message(&ping).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = reply.headers["retry-after"].to_str().expect("text").parse().expect("a number");
    assert!((1..=31).contains(&wait), "{wait}");
    let event = fixture.last_event();
    assert_eq!((event.event_type, event.result), (Kind::Authorization, Outcome::Denied));
    assert_eq!((event.reason.as_deref(), event.user.as_str()), (Some("rate_limit"), "ci-bot"));
    let stream = fixture.get("/sse", &[("x-api-key", &fixture.key)]).await;
    assert_eq!(stream.status, StatusCode::TOO_MANY_REQUESTS, "every way in counts");
    let other = fixture.post("/mcp", &[("x-api-key", &fixture.other_key)], ping.to_string());
    assert_eq!(fixture.reply(other).await.status, StatusCode::OK, "another key has a rate of its own");
    fixture.publish(|_| {});
    assert_eq!(fixture.message(&ping).await.status, StatusCode::OK, "the limit is gone");
    fixture.stop().await;
}

#[tokio::test]
async fn a_call_ends_with_its_key() {
    let fixture = start_with(Setup { call: Some(Duration::from_secs(20)), ..Setup::default() }).await;
    let slow = call("slow", json!({"namespace": "agents"}));
    let started = Instant::now();
    let (reply, ()) = tokio::join!(fixture.message(&slow), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fixture.publish_key(|key| key.enabled = false);
    });
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    eventually("the record", || fixture.events().iter().any(|e| e.result == Outcome::Cancelled)).await;
    fixture.stop().await;
}
