use http::StatusCode;
use serde_json::{Value, json};

use super::fixture::*;
use crate::api::JwtIssuerSpec;
use crate::audit::Outcome;

const METADATA: &str = "/.well-known/oauth-protected-resource";

fn with_issuer(fixture: &Fixture) {
    fixture.publish_server(|spec| {
        let issuer = JwtIssuerSpec { issuer: "https://id.example.com".into(), ..JwtIssuerSpec::default() };
        spec.authentication.jwt = vec![issuer];
        spec.authentication.basic.enabled = true;
    });
}

fn challenges(reply: &Reply) -> Vec<&str> {
    let values = reply.headers.get_all("www-authenticate").iter();
    values.map(|value| value.to_str().expect("text")).collect()
}

#[tokio::test]
async fn metadata_is_at_the_three_places_and_needs_no_credential() {
    let fixture = start().await;
    assert_eq!(fixture.get(METADATA, &[]).await.status, StatusCode::NOT_FOUND, "there is no issuer");
    with_issuer(&fixture);
    let reply = fixture.post("/mcp", &[], "{}");
    let reply = fixture.reply(reply).await;
    let challenge = challenges(&reply)[0].to_owned();
    let url = challenge.split("resource_metadata=\"").nth(1).and_then(|rest| rest.split('"').next());
    let told = url.and_then(|url| url.strip_prefix("https://ops-mcp.agents.svc")).expect("a path");
    let mut seen: Vec<Value> = Vec::new();
    for path in [METADATA, "/.well-known/oauth-protected-resource/mcp", told] {
        let reply = fixture.get(path, &[]).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        assert_eq!(reply.headers["cache-control"], "public, max-age=60");
        seen.push(reply.json());
    }
    assert_eq!(seen[0]["resource"], "https://ops-mcp.agents.svc/mcp");
    assert_eq!(seen[0]["authorization_servers"], json!(["https://id.example.com"]));
    assert!(seen.iter().all(|metadata| *metadata == seen[0]));
    let elsewhere = fixture.get("/.well-known/oauth-protected-resource/other", &[]).await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND);
    fixture.stop().await;
}

#[tokio::test]
async fn every_failure_looks_the_same_and_says_how_to_come_in() {
    let fixture = start().await;
    with_issuer(&fixture);
    let (unknown, own) = (unknown_key(), fixture.key.clone());
    let bearer = format!("Bearer {own}");
    let mut damaged = own.clone();
    damaged.pop();
    let cases: [&[(&str, &str)]; 5] = [
        &[],
        &[("x-api-key", &unknown)],
        &[("x-api-key", &damaged)],
        &[("authorization", "Basic YTpi")],
        &[("authorization", &bearer), ("x-api-key", &own)],
    ];
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let mut seen = Vec::new();
    for headers in cases {
        for path in ["/mcp", "/messages"] {
            let Reply { status, mut headers, text } =
                fixture.reply(fixture.post(path, headers, ping.clone())).await;
            headers.remove("date");
            seen.push((status, headers, text));
        }
    }
    assert!(seen.iter().all(|reply| *reply == seen[0]), "{seen:#?}");
    assert_eq!(seen[0].0, StatusCode::UNAUTHORIZED);
    let reply = fixture.reply(fixture.post("/mcp", &[], ping)).await;
    let challenges = challenges(&reply);
    assert!(challenges[0].starts_with("Bearer realm=\"portcullis\", resource_metadata="), "{challenges:?}");
    assert!(challenges[0].ends_with(", scope=\"k8s:*:list\""), "{challenges:?}");
    assert_eq!(challenges[1..], ["Basic realm=\"portcullis\", charset=\"UTF-8\""]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_caller_learns_who_it_is_and_nobody_else_does() {
    let fixture = start().await;
    let reply = fixture.get("/auth/whoami", &[("x-api-key", &fixture.key)]).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["cache-control"], "no-store");
    let told = reply.json();
    assert_eq!((&told["method"], &told["subject"]), (&json!("apikey"), &json!("ci-bot")));
    assert_eq!((&told["key"], &told["server"]), (&json!("ci"), &json!("agents/ops")));
    assert_eq!(told["roles"], json!(["McpRole agents/viewer"]));
    assert_eq!(told["credentialId"], json!(key_id(&fixture.key)));
    assert!(!reply.text.contains(&fixture.key));
    let event = fixture.last_event();
    assert_eq!((event.action.as_str(), event.result), ("auth/whoami", Outcome::Success));
    assert_eq!(fixture.get("/auth/whoami", &[]).await.status, StatusCode::UNAUTHORIZED);
    let posted = fixture.post("/auth/whoami", &[("x-api-key", &fixture.key)], "{}");
    assert_eq!(fixture.reply(posted).await.status, StatusCode::METHOD_NOT_ALLOWED);
    fixture.stop().await;
}
