use http::StatusCode;
use serde_json::json;

use super::authority::*;
use super::fixture::*;
use crate::api::names;
use crate::api::replica::{MAX_ASKED, STATE_PATH};

#[tokio::test]
async fn the_operator_learns_which_keys_a_replica_accepts_and_when_each_was_used() {
    let authority = Authority::new();
    let (own, operator) = (authority.leaf(&own_uri()), authority.leaf(names::OPERATOR_URI));
    let address = "127.0.0.1:0".parse().expect("an address");
    let fixture = start_with(Setup { internal: Some((address, own.path())), ..Setup::default() }).await;
    let (address, tls) = (fixture.internal.expect("internal"), authority.client(operator.path()));
    let (used, unused) = (key_id(&fixture.key), key_id(&fixture.other_key));
    let question = json!({"keys": [used, unused, "0000000000000000"]});
    let (status, state) = ask(address, tls.clone(), STATE_PATH, &question).await.expect("an answer");
    assert_eq!(status, StatusCode::OK);
    assert_eq!(state["acceptedKeys"], json!([used, unused]));
    assert_eq!(state["lastUsed"], json!({}));
    let before = jiff::Timestamp::now().as_second();
    fixture.message(&json!({"jsonrpc": "2.0", "id": 1, "method": "ping"})).await;
    let (_, state) = ask(address, tls.clone(), STATE_PATH, &question).await.expect("an answer");
    assert!(state["lastUsed"][&used].as_i64().expect("used") >= before, "{state}");
    assert_eq!(state["lastUsed"].as_object().map(serde_json::Map::len), Some(1), "{state}");
    fixture.publish(|objects| {
        objects.keys.remove("ci");
    });
    eventually_async("the key is forgotten", || async {
        let (_, state) = ask(address, tls.clone(), STATE_PATH, &question).await.expect("an answer");
        state["acceptedKeys"] == json!([unused]) && state["lastUsed"] == json!({})
    })
    .await;
    fixture.stop().await;
}

#[tokio::test]
async fn only_the_operator_may_ask_and_not_for_too_much() {
    let authority = Authority::new();
    let (own, operator) = (authority.leaf(&own_uri()), authority.leaf(names::OPERATOR_URI));
    let address = "127.0.0.1:0".parse().expect("an address");
    let fixture = start_with(Setup { internal: Some((address, own.path())), ..Setup::default() }).await;
    let (address, tls) = (fixture.internal.expect("internal"), authority.client(operator.path()));
    let many = |number: usize| json!({"keys": vec!["0000000000000000"; number]});
    for (question, expected) in [
        (many(MAX_ASKED), StatusCode::OK),
        (many(MAX_ASKED + 1), StatusCode::BAD_REQUEST),
        (json!({"keys": [7]}), StatusCode::BAD_REQUEST),
        (json!({"key": []}), StatusCode::BAD_REQUEST),
        (json!({}), StatusCode::OK),
    ] {
        let (status, _) = ask(address, tls.clone(), STATE_PATH, &question).await.expect("an answer");
        assert_eq!(status, expected);
    }
    let replica = ask(address, authority.client(own.path()), STATE_PATH, &json!({})).await;
    assert_eq!(replica.map(|(status, _)| status), Some(StatusCode::FORBIDDEN));
    let public = fixture.post(STATE_PATH, &[("x-api-key", &fixture.key)], "{}");
    assert_eq!(fixture.reply(public).await.status, StatusCode::NOT_FOUND);
    fixture.stop().await;
}
