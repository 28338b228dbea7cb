use std::fs;
use std::net::SocketAddr;

use http::StatusCode;
use serde_json::json;

use super::authority::*;
use super::fixture::*;
use super::streams::Stream;
use crate::api::names;
use crate::audit::Outcome;

#[tokio::test]
async fn the_operator_may_list_and_nothing_else() {
    let authority = Authority::new();
    let (own, operator) = (authority.leaf(&own_uri()), authority.leaf(names::OPERATOR_URI));
    let address = "127.0.0.1:0".parse().expect("an address");
    let fixture = start_with(Setup { internal: Some((address, own.path())), ..Setup::default() }).await;
    let (address, tls) = (fixture.internal.expect("internal"), authority.client(operator.path()));
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let (status, answer) = ask(address, tls.clone(), "/mcp", &list).await.expect("an answer");
    assert_eq!(status, StatusCode::OK);
    let tools = answer["result"]["tools"].as_array().expect("tools");
    assert_eq!(tools.len(), 8, "all that the server offers, whoever may use it");
    assert_eq!(fixture.last_event().auth_type, "operator");
    let (_, answer) = ask(address, tls.clone(), "/mcp", &call("echo", json!({"namespace": "agents"})))
        .await
        .expect("an answer");
    assert_eq!(answer["error"]["code"], -32602);
    assert_eq!(fixture.last_event().result, Outcome::Denied);
    let (status, _) = ask(address, tls, "/internal/sse/messages", &list).await.expect("an answer");
    assert_eq!(status, StatusCode::FORBIDDEN);
    fixture.stop().await;
}

#[tokio::test]
async fn nobody_else_gets_into_the_internal_port() {
    let authority = Authority::new();
    let own = authority.leaf(&own_uri());
    let address = "127.0.0.1:0".parse().expect("an address");
    let fixture = start_with(Setup { internal: Some((address, own.path())), ..Setup::default() }).await;
    let address = fixture.internal.expect("internal");
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let other_server = authority.leaf(&names::internal_uri("agents", "other"));
    assert_eq!(ask(address, authority.client(other_server.path()), "/mcp", &list).await, None);
    let stranger = Authority::new();
    let forged = stranger.leaf(&own_uri());
    fs::copy(own.path().join("ca.crt"), forged.path().join("ca.crt")).expect("copied");
    assert_eq!(ask(address, stranger.client(forged.path()), "/mcp", &list).await, None);
    let replica = ask(address, authority.client(own.path()), "/mcp", &list).await;
    assert_eq!(
        replica.map(|(status, _)| status),
        Some(StatusCode::FORBIDDEN),
        "a replica is not the operator"
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_message_reaches_the_stream_whichever_replica_gets_it() {
    let authority = Authority::new();
    let own = authority.leaf(&own_uri());
    let first_address = "127.0.0.1:0".parse().expect("an address");
    let first = start_with(Setup { internal: Some((first_address, own.path())), ..Setup::default() }).await;
    let port = first.internal.expect("internal").port();
    let second_address = SocketAddr::from(([127, 0, 0, 2], port));
    let internal = Some((second_address, own.path()));
    let second = start_with(Setup { internal, shared: Some(first.objects()), ..Setup::default() }).await;
    let (key, other) = (first.key.clone(), first.other_key.clone());
    let (mut stream, messages) = Stream::open(&first, "/sse", &key).await;
    for round in 0..3 {
        let mut message = call("echo", json!({"namespace": "agents"}));
        message["id"] = json!(round);
        let request = second.post(&messages, &[("x-api-key", &key)], message.to_string());
        assert_eq!(second.reply(request).await.status, StatusCode::ACCEPTED);
        let answer = stream.message().await;
        assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(round), &json!(false)), "{answer}");
    }
    let event = first.last_event();
    assert_eq!((event.tool.as_deref(), event.client_ip.as_deref()), (Some("echo"), Some("127.0.0.1")));
    let foreign = second.post(&messages, &[("x-api-key", &other)], call("echo", json!({})).to_string());
    assert_eq!(second.reply(foreign).await.status, StatusCode::NOT_FOUND);
    drop(stream);
    first.stop().await;
    let late = second.post(&messages, &[("x-api-key", &key)], call("echo", json!({})).to_string());
    assert_eq!(second.reply(late).await.status, StatusCode::NOT_FOUND, "the replica is gone");
    assert_eq!(second.last_event().reason.as_deref(), Some("unknown_session"));
    second.stop().await;
}
