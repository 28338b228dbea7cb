use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::fixture::*;
use super::streams::Stream;
use super::tokens::{exchange, set_signing_key};
use crate::api::{AnomalyDetectionSpec, AnomalyMode, AnomalySensitivity, McpServerSpec};
use crate::audit::{Event, Kind, Outcome};
use crate::authz::Violation;
use crate::index::Objects;

/// Addresses of this machine that are in different networks.
const HOME: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const ABROAD: Ipv4Addr = Ipv4Addr::new(127, 0, 99, 1);

fn here() -> Value {
    json!({"namespace": "agents"})
}

fn server_of(objects: &mut Objects) -> &mut McpServerSpec {
    &mut Arc::make_mut(objects.server.as_mut().expect("there")).spec
}

/// Lets the role of both keys do this and watches for anomalies in this mode.
fn set(fixture: &Fixture, permissions: &[&str], mode: AnomalyMode) {
    fixture.publish(|objects| {
        let role = Arc::make_mut(objects.roles.get_mut("viewer").expect("there"));
        role.spec.permissions = permissions.iter().map(|&permission| permission.to_owned()).collect();
        server_of(objects).monitoring.anomaly_detection =
            AnomalyDetectionSpec { mode, sensitivity: AnomalySensitivity::High };
    });
}

/// Messages on one connection from an address, and the answer to the last of them.
async fn from(fixture: &Fixture, address: Ipv4Addr, key: &str, bodies: &[Value]) -> Value {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((address, 0).into()).expect("an address of this machine");
    let stream = socket.connect(fixture.address).await.expect("connects");
    let tls =
        tokio_rustls::TlsConnector::from(Arc::new(trusting_builder(&fixture.ca()).with_no_client_auth()));
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TokioIo::new(tls.connect(name, stream).await.expect("a handshake"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("a connection");
    let connection = tokio::spawn(connection);
    let mut last = Value::Null;
    for body in bodies {
        sender.ready().await.expect("open");
        let request = fixture.post("/mcp", &[("x-api-key", key)], body.to_string());
        let answer = sender.send_request(request).await.expect("an answer");
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        last = serde_json::from_slice(&bytes).expect("JSON");
    }
    connection.abort();
    last
}

fn violations(events: &[Event]) -> Vec<&Event> {
    events.iter().filter(|event| event.event_type == Kind::SecurityViolation).collect()
}

/// What the record says of a violation, in words.
fn said(event: &Event) -> (Outcome, &str, Option<&str>) {
    let anomaly = event.metadata.get("anomaly").map(String::as_str);
    (event.result, event.reason.as_deref().unwrap_or_default(), anomaly)
}

fn is_refused(answer: &Value) -> bool {
    let text = &answer["result"]["content"][0]["text"];
    answer["result"]["isError"] == true && text.as_str().is_some_and(|text| text == "permission denied")
}

#[tokio::test]
async fn every_type_of_violation_is_counted_from_zero_and_nobody_is_named_there() {
    let fixture = start().await;
    for violation in Violation::ALL {
        assert_eq!(fixture.violations(violation.as_str()), 0);
    }
    fixture.stop().await;
}

#[tokio::test]
async fn an_identity_that_names_nobody_reaches_nothing() {
    let fixture = start().await;
    for nobody in ["", " "] {
        fixture.publish_key(|key| key.identity = nobody.to_owned());
        for message in [call("echo", here()), json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})] {
            let reply = fixture.message(&message).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
            assert_eq!(reply.json()["error"]["message"], "unauthorized");
            let event = fixture.last_event();
            assert_eq!(event.event_type, Kind::SecurityViolation);
            assert_eq!(said(&event), (Outcome::Denied, "no_identity", None));
        }
    }
    assert_eq!(fixture.violations("no_identity"), 4);
    fixture.stop().await;
}

#[tokio::test]
async fn a_policy_that_is_too_old_tells_nobody_who_they_are_and_gives_no_token_and_no_stream() {
    let then = |minutes| jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
    let policy = crate::index::Policy::remote_for_tests(then(59));
    let fixture = start_with(Setup { policy: Some(policy.clone()), ..Setup::default() }).await;
    set_signing_key(&fixture);
    fixture.publish(|objects| server_of(objects).authentication.tokens.enabled = true);
    let key = fixture.key.clone();
    let proof = [("x-api-key", key.as_str())];
    assert_eq!(fixture.get("/auth/whoami", &proof).await.status, StatusCode::OK);
    assert_eq!(exchange(&fixture, &key, json!({})).await.status, StatusCode::OK);
    Stream::open(&fixture, "/sse", &key).await;
    policy.set_contact(then(61), then(61));
    for (path, action) in
        [("/auth/whoami", "auth/whoami"), ("/auth/token", "token/issue"), ("/sse", "sse/open")]
    {
        let before = fixture.events().len();
        let reply = match path {
            "/auth/token" => exchange(&fixture, &key, json!({})).await,
            _ => fixture.get(path, &proof).await,
        };
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let text = "the API server has been out of reach for too long: the policy is out of date";
        let told = json!({"error": "temporarily_unavailable", "error_description": text});
        assert_eq!(reply.json(), told, "{path}");
        let event = fixture.last_event();
        assert_eq!(fixture.events().len(), before + 1, "{path}");
        assert_eq!((event.event_type, event.action.as_str()), (Kind::Authorization, action));
        assert_eq!((event.user.as_str(), event.error_message.as_deref()), ("ci-bot", Some(text)));
        assert_eq!(said(&event), (Outcome::Denied, "stale_policy", None));
    }
    fixture.stop().await;
}

#[tokio::test]
async fn an_identity_that_names_nobody_gets_no_token_and_no_stream() {
    let fixture = start().await;
    set_signing_key(&fixture);
    fixture.publish(|objects| {
        server_of(objects).authentication.tokens.enabled = true;
        Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.identity = " ".to_owned();
    });
    let key = fixture.key.clone();
    for path in ["/auth/whoami", "/auth/token", "/sse"] {
        let reply = match path {
            "/auth/token" => exchange(&fixture, &key, json!({})).await,
            _ => fixture.get(path, &[("x-api-key", &key)]).await,
        };
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(reply.json(), json!({"error": "unauthorized"}), "{path}");
        let event = fixture.last_event();
        assert_eq!(event.event_type, Kind::SecurityViolation, "{path}");
        assert_eq!(said(&event), (Outcome::Denied, "no_identity", None));
    }
    assert_eq!(fixture.violations("no_identity"), 3);
    fixture.stop().await;
}

/// What the record says of a key that is switched off.
const DISABLED: &str = "disabled";

/// Calls wait for a place while what permits one of them is withdrawn; it never runs.
async fn withdrawn_while_it_waits(withdraw: impl FnOnce(&mut Objects), why: &str) {
    let setup = Setup { call: Some(Duration::from_secs(20)), ..Setup::default() };
    let fixture = start_with(setup).await;
    set(&fixture, &["k8s:deployments:restart"], AnomalyMode::Disabled);
    let gate = call("gate", here());
    let (key, other) = (fixture.key.clone(), fixture.other_key.clone());
    let holding = futures::future::join_all((0..64).map(|_| {
        let request = fixture.post("/mcp", &[("x-api-key", &other)], gate.to_string());
        fixture.reply(request)
    }));
    let withdrawing = async {
        let intents = || fixture.events().iter().filter(|event| event.result == Outcome::Intent).count();
        eventually("every place is taken", || intents() == 64).await;
        let judged =
            r#"mcp_authorization_checks_total{resource="deployments",action="restart",result="allowed"}"#;
        let request = fixture.post("/mcp", &[("x-api-key", &key)], gate.to_string());
        let waiting = fixture.reply(request);
        let freeing = async {
            eventually("it is permitted and waits", || fixture.counted(judged) == Some(65)).await;
            fixture.publish(withdraw);
            GATE.add_permits(64);
        };
        tokio::join!(waiting, freeing).0
    };
    let (held, waited) = tokio::join!(holding, withdrawing);
    assert_eq!(GATE.available_permits(), 0, "the others have run, and it has not");
    assert!(held.iter().all(|reply| reply.status == StatusCode::OK));
    if why == DISABLED && waited.status == StatusCode::UNAUTHORIZED {
        // The look after running requests, twice a second, came first.
        return fixture.stop().await;
    }
    assert_eq!(waited.status, StatusCode::OK, "{waited:?}");
    let text = "permission denied: k8s:deployments:restart in namespace \"agents\"";
    assert_eq!(waited.json()["result"]["content"][0]["text"], text);
    let events = fixture.events();
    let [violation] = violations(&events)[..] else { panic!("{events:?}") };
    assert_eq!(said(violation), (Outcome::Denied, "stale_permit", None));
    assert!(violation.error_message.as_ref().is_some_and(|text| text.contains(why)), "{violation:?}");
    let same = events.iter().filter(|event| event.request_id == violation.request_id);
    let results: Vec<_> = same.map(|event| event.result).collect();
    assert_eq!(results, [Outcome::Denied, Outcome::Intent], "the intent has its outcome");
    assert_eq!(fixture.violations("stale_permit"), 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_call_that_waits_while_its_role_its_tool_or_its_key_is_withdrawn_never_runs() {
    let restart = |objects: &mut Objects| {
        let role = Arc::make_mut(objects.roles.get_mut("viewer").expect("there"));
        role.spec.permissions = vec!["k8s:deployments:restart".to_owned()];
    };
    withdrawn_while_it_waits(
        |objects| {
            restart(objects);
            Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.roles.clear();
        },
        "none of 0 roles grants k8s:deployments:restart",
    )
    .await;
    withdrawn_while_it_waits(
        |objects| {
            restart(objects);
            server_of(objects).tools.deny = vec!["gate".to_owned()];
        },
        "does not offer the tool",
    )
    .await;
    withdrawn_while_it_waits(
        |objects| {
            restart(objects);
            Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.enabled = false;
        },
        DISABLED,
    )
    .await;
}

#[tokio::test]
async fn a_call_that_waits_while_the_server_denies_its_resource_never_runs() {
    let setup = Setup { call: Some(Duration::from_secs(20)), ..Setup::default() };
    let fixture = start_with(setup).await;
    let granted = ["k8s:deployments:restart", "k8s:pods:list", "k8s:services:list"];
    set(&fixture, &granted, AnomalyMode::Disabled);
    let gate = call("gate", here());
    let other = fixture.other_key.clone();
    let holding = futures::future::join_all((0..64).map(|_| {
        let request = fixture.post("/mcp", &[("x-api-key", &other)], gate.to_string());
        fixture.reply(request)
    }));
    let denying = async {
        let intents = || fixture.events().iter().filter(|event| event.result == Outcome::Intent).count();
        eventually("every place is taken", || intents() == 64).await;
        let judged = r#"mcp_authorization_checks_total{resource="pods",action="list",result="allowed"}"#;
        let waiting = fixture.call("resources_list", json!({"resource": "pods", "namespace": "agents"}));
        let freeing = async {
            eventually("it is permitted and waits", || fixture.counted(judged) == Some(1)).await;
            fixture.publish(|objects| {
                let role = Arc::make_mut(objects.roles.get_mut("viewer").expect("there"));
                role.spec.permissions = granted.map(str::to_owned).to_vec();
                server_of(objects).tools.deny = vec!["pods_list".to_owned()];
            });
            GATE.add_permits(64);
        };
        tokio::join!(waiting, freeing).0
    };
    let (_, waited) = tokio::join!(holding, denying);
    let text = "permission denied: k8s:pods:list in namespace \"agents\"";
    assert_eq!(waited.json()["result"]["content"][0]["text"], text);
    let events = fixture.events();
    let [violation] = violations(&events)[..] else { panic!("{events:?}") };
    assert_eq!(said(violation), (Outcome::Denied, "stale_permit", None));
    fixture.stop().await;
}

#[tokio::test]
async fn a_well_known_key_from_another_network_is_refused_until_a_person_names_the_network() {
    let fixture = start().await;
    set(&fixture, &["k8s:pods:list"], AnomalyMode::Enforce);
    let (key, other) = (fixture.key.clone(), fixture.other_key.clone());
    let echo = call("echo", here());
    let answer = from(&fixture, HOME, &key, &vec![echo.clone(); 50]).await;
    assert_eq!(answer["result"]["content"][0]["text"], "agents");
    let known = from(&fixture, ABROAD, &key, std::slice::from_ref(&echo)).await;
    assert!(is_refused(&known), "{known}");
    let event = fixture.last_event();
    assert_eq!(said(&event), (Outcome::Denied, "anomalous_request", Some("new_network")));
    let what = "a call from 127.0.99.0/24; the 50 calls before came from 127.0.0.0/24";
    assert_eq!(event.error_message.as_deref(), Some(what));
    let unknown = from(&fixture, ABROAD, &key, &[call("no_such_tool", here())]).await;
    assert_eq!(unknown, known, "nothing is told of which tools there are");
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let list = from(&fixture, ABROAD, &key, &[list]).await;
    assert_eq!(list["result"]["tools"].as_array().map(Vec::len), Some(5), "{list}");
    let home = from(&fixture, HOME, &key, std::slice::from_ref(&echo)).await;
    assert_eq!(home["result"]["content"][0]["text"], "agents", "the owner goes on");
    let somebody = from(&fixture, ABROAD, &other, std::slice::from_ref(&echo)).await;
    assert_eq!(somebody["result"]["content"][0]["text"], "agents", "another key is used from there");
    assert_eq!(fixture.violations("anomalous_request"), 2);
    fixture.publish(|objects| {
        server_of(objects).monitoring.anomaly_detection.mode = AnomalyMode::Enforce;
        server_of(objects).monitoring.anomaly_detection.sensitivity = AnomalySensitivity::High;
        let spec = &mut Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec;
        spec.allowed_cidrs = vec!["127.0.0.0/16".to_owned()];
    });
    let accepted = from(&fixture, ABROAD, &key, &[echo]).await;
    assert_eq!(accepted["result"]["content"][0]["text"], "agents");
    fixture.stop().await;
}

#[tokio::test]
async fn where_anomalies_are_only_observed_the_request_is_answered_and_has_an_event_more() {
    let fixture = start().await;
    set(&fixture, &["k8s:pods:list"], AnomalyMode::Observe);
    let key = fixture.key.clone();
    let echo = call("echo", here());
    from(&fixture, HOME, &key, &vec![echo.clone(); 50]).await;
    let answer = from(&fixture, ABROAD, &key, std::slice::from_ref(&echo)).await;
    assert_eq!(answer["result"]["content"][0]["text"], "agents");
    let events = fixture.events();
    let [observed] = violations(&events)[..] else { panic!("{events:?}") };
    assert_eq!(said(observed), (Outcome::Observed, "anomalous_request", Some("new_network")));
    let own = &events[0];
    assert_eq!((own.event_type, own.result), (Kind::McpRequest, Outcome::Success));
    assert_eq!(own.request_id, observed.request_id);
    assert_eq!(own.metadata.get("anomaly"), None, "its own event is as ever");
    assert_eq!(fixture.violations("anomalous_request"), 1);
    set(&fixture, &["k8s:pods:list"], AnomalyMode::Disabled);
    from(&fixture, Ipv4Addr::new(127, 0, 98, 1), &key, &[echo]).await;
    assert_eq!(fixture.violations("anomalous_request"), 1, "nobody looks");
    fixture.stop().await;
}

#[tokio::test]
async fn who_probes_for_tools_and_namespaces_is_refused_what_it_may_do_too() {
    let fixture = start().await;
    set(&fixture, &["k8s:pods:list"], AnomalyMode::Enforce);
    let key = fixture.key.clone();
    let elsewhere = call("echo", json!({"namespace": "kube-system"}));
    let probes: Vec<_> = [call("no_such_tool", here()), elsewhere].into_iter().cycle().take(11).collect();
    from(&fixture, HOME, &key, &probes).await;
    let answer = from(&fixture, HOME, &key, &[call("echo", here())]).await;
    assert!(is_refused(&answer), "{answer}");
    assert_eq!(said(&fixture.last_event()), (Outcome::Denied, "anomalous_request", Some("many_refusals")));
    fixture.stop().await;
}

#[tokio::test]
async fn who_guesses_resources_is_counted_whether_they_are_there_or_not() {
    for guess in ["services", "no-such-resource"] {
        let fixture = start().await;
        set(&fixture, &["k8s:pods:list"], AnomalyMode::Enforce);
        let key = fixture.key.clone();
        let guess = call("resources_list", json!({"resource": guess, "namespace": "agents"}));
        from(&fixture, HOME, &key, &vec![guess; 11]).await;
        let answer = from(&fixture, HOME, &key, &[call("echo", here())]).await;
        assert!(is_refused(&answer), "{answer}");
        assert_eq!(
            said(&fixture.last_event()),
            (Outcome::Denied, "anomalous_request", Some("many_refusals"))
        );
        fixture.stop().await;
    }
}

#[tokio::test]
async fn the_first_destructive_call_of_a_reader_is_refused_for_a_while() {
    let fixture = start().await;
    set(&fixture, &["k8s:pods:*"], AnomalyMode::Enforce);
    let (key, other) = (fixture.key.clone(), fixture.other_key.clone());
    let delete = call("delete", here());
    from(&fixture, HOME, &key, &vec![call("echo", here()); 200]).await;
    let answer = from(&fixture, HOME, &key, std::slice::from_ref(&delete)).await;
    assert!(is_refused(&answer), "{answer}");
    let event = fixture.last_event();
    assert_eq!(said(&event), (Outcome::Denied, "anomalous_request", Some("first_destructive_call")));
    assert_eq!(event.metadata["permission"], "k8s:pods:delete", "the role would have granted it");
    let answer = from(&fixture, HOME, &other, &[delete]).await;
    assert_eq!(answer["result"]["content"][0]["text"], "agents", "it was never a reader");
    fixture.stop().await;
}

#[tokio::test]
async fn a_session_id_that_was_changed_or_stolen_is_a_violation_and_one_from_before_a_restart_is_not() {
    let fixture = start().await;
    let (key, other) = (fixture.key.clone(), fixture.other_key.clone());
    let (_stream, messages) = Stream::open(&fixture, "/sse", &key).await;
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let post = async |path: &str, key: &str| {
        let reply = fixture.reply(fixture.post(path, &[("x-api-key", key)], ping.clone())).await;
        assert_eq!((reply.status, reply.text.as_str()), (StatusCode::NOT_FOUND, "no such session"));
        fixture.last_event()
    };
    let stolen = post(&messages, &other).await;
    assert_eq!(said(&stolen), (Outcome::Denied, "integrity_violation", None));
    assert_eq!(stolen.error_message.as_deref(), Some("the session belongs to another caller"));
    let (middle, mut forged) = (messages.len() - 40, messages.clone());
    let other_letter = if &messages[middle..=middle] == "A" { "B" } else { "A" };
    forged.replace_range(middle..=middle, other_letter);
    let event = post(&forged, &key).await;
    assert_eq!(event.event_type, Kind::SecurityViolation);
    assert_eq!(event.error_message.as_deref(), Some("the seal of the session id is broken"));
    assert_eq!((event.user.as_str(), fixture.violations("integrity_violation")), ("ci-bot", 2));

    let before = start().await;
    let (_stream, from_before) = Stream::open(&before, "/sse", &before.key).await;
    for path in [from_before.as_str(), "/messages?sessionId=nonsense", "/messages"] {
        let event = post(path, &key).await;
        assert_eq!(said(&event), (Outcome::Failure, "unknown_session", None), "{path}");
        assert_eq!(event.event_type, Kind::McpRequest);
    }
    assert_eq!(fixture.violations("integrity_violation"), 2);
    before.stop().await;
    fixture.stop().await;
}
