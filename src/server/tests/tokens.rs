use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::fixture::*;
use super::streams::Stream;
use crate::api::{BlockedKind, BlockedSubject, MaterialKind, SigningKeyState, names};
use crate::audit::{Kind, Outcome};
use crate::authn::token::{SigningKey, SigningKeys};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// Gives the endpoint a key to sign with.
pub(super) fn set_signing_key(fixture: &Fixture) {
    let mut key = SigningKey::generate([7; 8], Timestamp::now()).expect("a key");
    key.state = SigningKeyState::Active;
    let keys = serde_json::to_vec(&SigningKeys { keys: vec![key] }).expect("JSON");
    let secret = names::signing_secret("ops");
    let path = names::material_path(MaterialKind::Secret, &secret, names::SIGNING_DATA);
    fixture.materials.set([(path, Arc::from(keys))].into());
}

fn enable(fixture: &Fixture) {
    fixture.publish_server(|spec| spec.authentication.tokens.enabled = true);
}

async fn start_with_tokens() -> Fixture {
    let fixture = start().await;
    set_signing_key(&fixture);
    enable(&fixture);
    fixture
}

pub(super) async fn exchange(fixture: &Fixture, credential: &str, asked: Value) -> Reply {
    let headers = [("authorization", &*format!("Bearer {credential}"))];
    fixture.reply(fixture.post("/auth/token", &headers, asked.to_string())).await
}

/// A token for the first key.
async fn token(fixture: &Fixture, asked: Value) -> String {
    let reply = exchange(fixture, &fixture.key, asked).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    reply.json()["access_token"].as_str().expect("a token").to_owned()
}

async fn called(fixture: &Fixture, token: &str, tool: &str) -> Reply {
    let bearer = format!("Bearer {token}");
    let body = call(tool, json!({"namespace": "agents"})).to_string();
    fixture.reply(fixture.post("/mcp", &[("authorization", &bearer)], body)).await
}

#[tokio::test]
async fn a_key_is_exchanged_for_a_token_that_works_like_it() {
    let fixture = start_with_tokens().await;
    let reply = exchange(&fixture, &fixture.key, json!({"grant_type": EXCHANGE, "expires_in": 120})).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.headers["cache-control"], "no-store");
    let answer = reply.json();
    assert_eq!((&answer["token_type"], &answer["expires_in"]), (&json!("Bearer"), &json!(120)));
    assert_eq!(answer["issued_token_type"], "urn:ietf:params:oauth:token-type:access_token");
    let token = answer["access_token"].as_str().expect("a token");
    let event = fixture.last_event();
    assert_eq!((event.event_type, event.action.as_str()), (Kind::Authentication, "token/issue"));
    assert_eq!((event.result, event.user.as_str()), (Outcome::Success, "ci-bot"));
    let jti = event.metadata["jti"].clone();
    assert!(!serde_json::to_string(&event).expect("JSON").contains(token), "the token is not on record");
    assert_eq!(called(&fixture, token, "echo").await.status, StatusCode::OK);
    assert_eq!(fixture.last_event().auth_type, "token");
    let bearer = format!("Bearer {token}");
    let told = fixture.get("/auth/whoami", &[("authorization", &bearer)]).await.json();
    assert_eq!((&told["method"], &told["subject"]), (&json!("token"), &json!("ci-bot")));
    assert_eq!((&told["key"], &told["credentialId"]), (&json!("ci"), &json!(jti)));
    let form = [("x-api-key", &*fixture.key), ("content-type", "application/x-www-form-urlencoded")];
    let posted = fixture.post("/auth/token", &form, "scope=k8s:pods:list");
    assert_eq!(fixture.reply(posted).await.json()["scope"], "k8s:pods:list");
    let nothing = fixture.post("/auth/token", &form[..1], "");
    assert_eq!(fixture.reply(nothing).await.json()["expires_in"], 900);
    fixture.stop().await;
}

#[tokio::test]
async fn the_endpoint_gives_tokens_only_where_they_are_asked_for() {
    let fixture = start().await;
    set_signing_key(&fixture);
    let refused = exchange(&fixture, &fixture.key, json!({})).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert_eq!(fixture.get("/.well-known/jwks.json", &[]).await.status, StatusCode::NOT_FOUND);
    enable(&fixture);
    let anonymous = fixture.reply(fixture.post("/auth/token", &[], "{}")).await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    let keys = fixture.get("/.well-known/jwks.json", &[]).await;
    assert_eq!(keys.headers["cache-control"], "public, max-age=60");
    let keys = keys.json();
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("OKP"), &json!("EdDSA")));
    assert_eq!(keys["keys"][0]["d"], Value::Null, "the private half stays");
    fixture.materials.set(Default::default());
    let without = exchange(&fixture, &fixture.key, json!({})).await;
    assert_eq!(without.status, StatusCode::SERVICE_UNAVAILABLE);
    fixture.stop().await;
}

#[tokio::test]
async fn a_token_is_not_exchanged_for_another_and_never_asked_for_in_vain() {
    let mut fixture = start_with_tokens().await;
    let own = token(&fixture, json!({})).await;
    let refused = exchange(&fixture, &own, json!({})).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]),
        (StatusCode::BAD_REQUEST, &json!("unauthorized_client"))
    );
    let event = fixture.last_event();
    assert_eq!((event.action.as_str(), event.result), ("token/issue", Outcome::Failure));
    let refused = exchange(&fixture, &fixture.key, json!({"grant_type": "password"})).await;
    assert_eq!(refused.json()["error"], "unsupported_grant_type");
    let padding = "x".repeat(20 << 10);
    let refused = exchange(&fixture, &fixture.key, json!({"padding": padding})).await;
    assert_eq!(refused.json()["error"], "invalid_request");
    fixture.break_audit().await;
    let unrecorded = exchange(&fixture, &fixture.key, json!({})).await;
    assert_eq!(unrecorded.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!unrecorded.text.contains("eyJ"), "what is not on record is not given");
    fixture.stop().await;
}

#[tokio::test]
async fn a_token_ends_with_its_key_and_before_it() {
    let fixture = start_with_tokens().await;
    let own = token(&fixture, json!({})).await;
    assert_eq!(called(&fixture, &own, "echo").await.status, StatusCode::OK);
    let (mut stream, _) =
        Stream::open_with(&fixture, "/sse", ("authorization", &format!("Bearer {own}"))).await;
    let jti = fixture.events().into_iter().find_map(|event| event.metadata.get("jti").cloned());
    let blocked =
        BlockedSubject { kind: BlockedKind::Credential, name: jti.expect("on record"), issuer: None };
    fixture.publish_server(|spec| {
        spec.authentication.tokens.enabled = true;
        spec.authentication.blocked = vec![blocked];
    });
    let ended = tokio::time::timeout(std::time::Duration::from_secs(2), stream.next()).await;
    assert_eq!(ended.expect("in time"), None);
    assert_eq!(called(&fixture, &own, "echo").await.status, StatusCode::UNAUTHORIZED);
    enable(&fixture);
    assert_eq!(called(&fixture, &own, "echo").await.status, StatusCode::OK);
    let end = Timestamp::now() + SignedDuration::from_secs(100);
    fixture.publish(|objects| {
        Arc::make_mut(objects.server.as_mut().expect("there")).spec.authentication.tokens.enabled = true;
        Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.expires_at = Some(Time(end));
    });
    let reply = exchange(&fixture, &fixture.key, json!({"expires_in": 600})).await;
    let seconds = reply.json()["expires_in"].as_i64().expect("seconds");
    assert!((60..=100).contains(&seconds), "{seconds}");
    fixture.publish(|objects| {
        Arc::make_mut(objects.server.as_mut().expect("there")).spec.authentication.tokens.enabled = true;
        Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.enabled = false;
    });
    assert_eq!(called(&fixture, &own, "echo").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(fixture.last_event().reason.as_deref(), Some("disabled"));
    fixture.stop().await;
}

/// Enables tokens and lets the role of both keys grant these.
fn grant(fixture: &Fixture, permissions: &[&str]) {
    fixture.publish(|objects| {
        Arc::make_mut(objects.server.as_mut().expect("there")).spec.authentication.tokens.enabled = true;
        let role = Arc::make_mut(objects.roles.get_mut("viewer").expect("there"));
        role.spec.permissions = permissions.iter().map(|&permission| permission.to_owned()).collect();
    });
}

#[tokio::test]
async fn a_token_loses_what_the_role_of_its_key_loses_while_it_lives() {
    let fixture = start_with_tokens().await;
    let own = token(&fixture, json!({})).await;
    let bearer = format!("Bearer {own}");
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    let listed = async || {
        let reply =
            fixture.reply(fixture.post("/mcp", &[("authorization", &bearer)], list.clone())).await.json();
        let tools = reply["result"]["tools"].as_array().expect("tools").iter();
        tools.map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert!(listed().await.contains(&"echo".to_owned()));
    assert_eq!(called(&fixture, &own, "echo").await.json()["result"]["isError"], json!(false));
    grant(&fixture, &["k8s:deployments:scale"]);
    let refused = called(&fixture, &own, "echo").await.json();
    let unknown = json!({"code": -32602, "message": "unknown tool: echo"});
    assert_eq!(refused["error"], unknown, "{refused}");
    let event = fixture.last_event();
    assert_eq!((event.auth_type.as_str(), event.result), ("token", Outcome::Denied));
    assert_eq!(listed().await, ["write"]);
    assert_eq!(called(&fixture, &own, "write").await.json()["result"]["isError"], json!(false));
    fixture.stop().await;
}

#[tokio::test]
async fn a_resource_out_of_the_scopes_is_refused_and_counts_as_nothing_else() {
    let fixture = start_with_tokens().await;
    grant(&fixture, &["k8s:pods:list", "k8s:services:list"]);
    let narrow = token(&fixture, json!({"scope": "k8s:services:list"})).await;
    let bearer = format!("Bearer {narrow}");
    let ask = async |resource: &str| {
        let body = call("resources_list", json!({"resource": resource, "namespace": "agents"})).to_string();
        let reply = fixture.reply(fixture.post("/mcp", &[("authorization", &bearer)], body)).await;
        reply.json()["result"]["content"][0]["text"].as_str().expect("a text").to_owned()
    };
    let text = "permission denied: the scopes of the credential do not reach to k8s:pods:list";
    assert_eq!(ask("pods").await, text);
    let event = fixture.last_event();
    assert_eq!((event.event_type, event.result), (Kind::Authorization, Outcome::Denied));
    assert_eq!(event.reason.as_deref(), Some("insufficient_scope"));
    assert_eq!((event.tool.as_deref(), event.namespace.as_deref()), (Some("resources_list"), Some("agents")));
    assert_eq!((event.resource.as_deref(), &*event.metadata["permission"]), (Some("pods"), "k8s:pods:list"));
    assert_eq!(event.metadata.get("rule"), None, "{event:?}");
    let counted = |result: &str| {
        let labels = format!(r#"{{resource="pods",action="list",result="{result}"}}"#);
        fixture.counted(&format!("mcp_authorization_checks_total{labels}"))
    };
    assert_eq!((counted("denied"), counted("allowed")), (Some(1), None));
    // No cluster is there to answer, but it is asked.
    assert!(!ask("services").await.starts_with("permission denied"), "within the scopes");
    // Of what no role grants nothing is said, whatever the scopes are.
    assert!(ask("secrets").await.starts_with("invalid arguments"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_token_whose_scopes_fall_short_is_told_what_it_needs() {
    let fixture = start_with_tokens().await;
    let narrow = token(&fixture, json!({"scope": "k8s:services:list k8s:deployments:*"})).await;
    assert_eq!(called(&fixture, &narrow, "write").await.json()["result"]["isError"], json!(false));
    for modern in [false, true] {
        let mut body = call("echo", json!({"namespace": "agents"}));
        let bearer = format!("Bearer {narrow}");
        let mut headers = vec![("authorization", bearer.as_str())];
        if modern {
            body["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {}});
            headers.extend([
                ("mcp-protocol-version", "2026-07-28"),
                ("mcp-method", "tools/call"),
                ("mcp-name", "echo"),
            ]);
        }
        let reply = fixture.reply(fixture.post("/mcp", &headers, body.to_string())).await;
        assert_eq!(reply.status, StatusCode::FORBIDDEN, "{reply:?}");
        let challenge = reply.headers["www-authenticate"].to_str().expect("text").to_owned();
        assert!(challenge.contains(r#"error="insufficient_scope", scope="k8s:pods:list""#), "{challenge}");
        assert_eq!((&reply.json()["id"], &reply.json()["error"]["code"]), (&json!(1), &json!(403)));
        let event = fixture.last_event();
        assert_eq!((event.event_type, event.result), (Kind::Authorization, Outcome::Denied));
        assert_eq!(
            (event.reason.as_deref(), event.tool.as_deref()),
            (Some("insufficient_scope"), Some("echo"))
        );
        assert_eq!(event.metadata["permission"], "k8s:pods:list", "what was asked for");
        assert_eq!((event.namespace.as_deref(), event.resource.as_deref()), (Some("agents"), Some("pods")));
        assert_eq!(event.metadata.get("rule"), None, "{event:?}");
    }
    // The scope is there, and no role is: scopes never add.
    let reply = called(&fixture, &narrow, "not_granted").await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (StatusCode::OK, &json!(-32602)));
    let bearer = format!("Bearer {narrow}");
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).to_string();
    let listed = fixture.reply(fixture.post("/mcp", &[("authorization", &bearer)], list)).await.json();
    let names = listed["result"]["tools"].as_array().expect("tools").iter().map(|tool| &tool["name"]);
    assert!(names.collect::<Vec<_>>().contains(&&json!("echo")), "the list is by roles: {listed}");
    fixture.stop().await;
}

#[tokio::test]
async fn over_sse_a_scope_that_falls_short_is_an_error_in_the_stream() {
    let fixture = start_with_tokens().await;
    let narrow = token(&fixture, json!({"scope": "k8s:services:list"})).await;
    let bearer = format!("Bearer {narrow}");
    let (mut stream, messages) = Stream::open_with(&fixture, "/sse", ("authorization", &bearer)).await;
    let body = call("echo", json!({"namespace": "agents"})).to_string();
    let posted = fixture.reply(fixture.post(&messages, &[("authorization", &bearer)], body)).await;
    assert_eq!(posted.status, StatusCode::ACCEPTED);
    let answer = stream.message().await;
    assert_eq!(answer["error"]["code"], 403, "{answer}");
    assert_eq!(answer["error"]["data"], json!({"scope": "k8s:pods:list"}));
    let event = fixture.last_event();
    assert_eq!((event.result, event.reason.as_deref()), (Outcome::Denied, Some("insufficient_scope")));
    assert_eq!(
        (&*event.metadata["permission"], event.namespace.as_deref()),
        ("k8s:pods:list", Some("agents"))
    );
    fixture.stop().await;
}
