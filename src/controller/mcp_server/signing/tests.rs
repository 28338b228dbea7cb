//! From the Secret and the answers of replicas to the status, and back.

use serde_json::json;

use super::*;
use crate::api::SigningKeyState;
use crate::controller::mcp_server::validate::{Referred, validate};

fn server() -> McpServer {
    serde_json::from_value(json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "ops", "namespace": "agents", "uid": "u1"},
        "spec": {"authentication": {"tokens": {"enabled": true}}}}))
    .expect("a server")
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn start() -> Timestamp {
    at("2026-11-23T10:00:00Z")
}

/// One key that signs, and one that is to follow.
fn held() -> Held {
    let key = |seed: u8, state| SigningKey {
        state,
        ..SigningKey::generate([seed; 8], start()).expect("randomness")
    };
    Held {
        keys: vec![key(1, SigningKeyState::Active), key(2, SigningKeyState::Pending)],
        handled_rotate: Some("a".into()),
        handled_revoke: None,
        longest_lifetime: SignedDuration::from_secs(900),
        changed_at: Some(start()),
    }
}

fn answers(each: Vec<(&str, Result<ReplicaState, String>)>) -> Answers {
    let each: Vec<_> = each.into_iter().map(|(pod, answer)| (pod.to_owned(), answer)).collect();
    Answers { states: each.iter().map(|(_, answer)| answer.as_ref().ok().cloned()).collect(), each }
}

fn condition(held: &Held, answers: &Answers, seconds: i64) -> String {
    let now = start() + SignedDuration::from_secs(seconds);
    let seen = seen(held, &AuthenticationStatus::default(), answers, now);
    let finding = seen.finding.expect("a finding");
    format!("{:?} {} {}", finding.status, finding.reason, finding.message)
}

#[test]
fn what_is_written_into_the_secret_is_read_from_it() {
    let server = server();
    let valid = validate(&server, &Referred::default(), |_| false).expect("valid");
    let mut live = secret(&valid, None, &held());
    assert_eq!(live.name_any(), "ops-mcp-signing");
    assert_eq!(live.type_.as_deref(), Some("portcullis.dev/signing-keys"));
    assert!(is_ours(&live, &valid));
    live.metadata.resource_version = Some("7".into());
    live.metadata.annotations.get_or_insert_default().insert("theirs".into(), "kept".into());
    let found = read(&live).expect("keys");
    assert_eq!(found.handled_rotate.as_deref(), Some("a"));
    assert_eq!((found.longest_lifetime.as_secs(), found.changed_at), (900, Some(start())));
    let next = secret(&valid, Some(&live), &Held { handled_rotate: None, ..found });
    assert_eq!(next.metadata.resource_version.as_deref(), Some("7"), "what was read stands in the write");
    assert_eq!(next.annotations().get("theirs").map(String::as_str), Some("kept"));
    assert!(!next.annotations().contains_key("portcullis.dev/rotate"));
    assert_eq!(next.data, live.data);
}

#[test]
fn keys_that_the_endpoint_could_not_use_are_none() {
    let server = server();
    let valid = validate(&server, &Referred::default(), |_| false).expect("valid");
    let mut damaged = held();
    damaged.keys[1].private_key = damaged.keys[0].private_key.clone();
    assert!(read(&secret(&valid, None, &damaged)).is_none());
    assert!(read(&Secret::default()).is_none());
}

#[test]
fn the_status_has_every_key_and_no_secret() {
    let seen = seen(&held(), &AuthenticationStatus::default(), &Answers::default(), start());
    let status = json!(seen.status);
    assert_eq!(
        status["signingKeys"][0],
        json!({"kid": "0101010101010101", "createdAt": "2026-11-23T10:00:00Z", "state": "Active"})
    );
    assert_eq!(status["signingKeys"][1]["state"], "Pending");
    assert_eq!(status["handledRotate"], json!(null), "it is not carried out yet");
    assert!(!status.to_string().contains(&held().keys[0].private_key));
    assert_eq!(seen.next_look, LOOK);
}

#[test]
fn a_replica_that_holds_up_a_rotation_is_named_after_a_while() {
    let knows = ReplicaState {
        verification_keys: vec!["0101010101010101".into(), "0202020202020202".into()],
        ..ReplicaState::default()
    };
    let silent = answers(vec![("ops-1", Ok(knows.clone())), ("ops-2", Err("did not answer".into()))]);
    assert!(
        condition(&held(), &silent, 59).starts_with("Some(true) Ready key 0101010101010101 signs; key 02")
    );
    let blocked = condition(&held(), &silent, 60);
    assert!(
        blocked.starts_with("Some(false) RotationBlocked") && blocked.contains("\"ops-2\" does not answer"),
        "{blocked}"
    );
    let behind = answers(vec![("ops-1", Ok(knows)), ("ops-2", Ok(ReplicaState::default()))]);
    assert!(
        condition(&held(), &behind, 149).starts_with("Some(true) Ready"),
        "its kubelet may be about to look"
    );
    let blocked = condition(&held(), &behind, 150);
    assert!(blocked.contains("\"ops-2\" does not know of it"), "{blocked}");
    assert!(condition(&held(), &answers(vec![]), 60).contains("no replica is ready"));
}

#[test]
fn a_revocation_is_told_when_no_replica_knows_a_revoked_key() {
    let mut held = held();
    held.keys.truncate(1);
    held.handled_revoke = Some("leaked".into());
    let status = |answers: &Answers| {
        seen(&held, &AuthenticationStatus::default(), answers, start())
            .status
            .expect("a status")
            .handled_revoke
    };
    let knows = |keys: &[&str]| ReplicaState {
        verification_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        signing_key: Some("0101010101010101".into()),
        ..ReplicaState::default()
    };
    let new = knows(&["0101010101010101"]);
    let old = knows(&["0101010101010101", "0909090909090909"]);
    assert_eq!(status(&answers(vec![("a", Ok(new.clone())), ("b", Ok(old))])), None);
    assert_eq!(status(&answers(vec![("a", Ok(new.clone())), ("b", Err("late".into()))])), None);
    assert_eq!(status(&answers(vec![])), None);
    assert_eq!(status(&answers(vec![("a", Ok(new))])).as_deref(), Some("leaked"));
}

#[test]
fn settled_keys_are_looked_at_when_one_of_them_ends() {
    let mut held = held();
    held.keys[0].state = SigningKeyState::Retiring;
    held.keys[0].not_after = Some(start() + SignedDuration::from_secs(20));
    held.keys[1].state = SigningKeyState::Active;
    let seen = seen(&held, &AuthenticationStatus::default(), &Answers::default(), start());
    assert_eq!(seen.next_look, Duration::from_secs(21));
    assert_eq!(seen.finding.expect("a finding").message, "key 0202020202020202 signs");
}
