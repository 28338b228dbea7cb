//! From a key as it is written, and what a pass found, to its whole status.

use jiff::{SignedDuration, ToSpan};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::report::{View, key_status, next_look};
use super::*;
use crate::api::{KeyGeneration, KeyState, McpApiKeyStatus, SecretReference};
use crate::controller::PERIOD;

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().expect("a time")
}

fn generation(id: &str, state: KeyState) -> KeyGeneration {
    KeyGeneration {
        not_after: None,
        id: id.into(),
        digest: "sha256:00".into(),
        created_at: Time(now()),
        state,
    }
}

/// A key with an active generation.
fn key(more: &str) -> McpApiKey {
    let mut key: McpApiKey = serde_saphyr::from_str(&format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {{name: ci, namespace: agents, uid: u, generation: 4}}, spec: {{identity: ci, servers: [ops]{more}}}}}"
    ))
    .expect("a key");
    let keys = vec![generation("k1", KeyState::Active)];
    key.status = Some(McpApiKeyStatus { keys, ..McpApiKeyStatus::default() });
    key
}

fn rotating_key() -> McpApiKey {
    let mut key = key("");
    key.status.as_mut().expect("a status").keys.push(generation("k2", KeyState::Pending));
    key
}

fn status_at(key: &McpApiKey, found: &Found, problem: Option<&Problem>, now: Timestamp) -> McpApiKeyStatus {
    key_status(&View { key, found, problem, missing: &[] }, now)
}

fn words(status: &McpApiKeyStatus) -> Vec<String> {
    status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
}

fn conditions(key: &McpApiKey, found: &Found) -> Vec<String> {
    words(&status_at(key, found, None, now()))
}

fn waits(accepting: usize) -> Found {
    Found::Waiting(Acceptance { accepting, replicas: 3, silent: None })
}

#[test]
fn a_published_key_is_ready_and_names_its_secret() {
    let status = status_at(&key(""), &Found::Settled, None, now());
    assert_eq!(status.secret_ref, Some(SecretReference { name: "ci-mcp-key".into() }));
    assert_eq!(status.observed_generation, Some(4));
    assert_eq!(
        words(&status),
        [
            "Accepted=True Accepted",
            "Ready=True Ready",
            "Rotating=False NotRotating",
            "Expiring=False NotExpiring"
        ]
    );
}

#[test]
fn a_second_look_at_a_settled_key_changes_nothing() {
    let mut key = key(", rotation: {}");
    key.status = Some(status_at(&key, &Found::Settled, None, now()));
    let later = now() + 59.minutes();
    assert_eq!(key.status, Some(status_at(&key, &Found::Settled, None, later)));
}

#[test]
fn a_key_that_is_switched_off_or_over_is_not_ready_and_says_why() {
    assert_eq!(conditions(&key(", enabled: false"), &Found::Settled)[1], "Ready=False Disabled");
    let over = conditions(&key(", expiresAt: '2026-11-23T10:00:00Z'"), &Found::Settled);
    assert_eq!((over[1].as_str(), over[3].as_str()), ("Ready=False Expired", "Expiring=False Expired"));
    let soon = conditions(&key(", expiresAt: '2026-11-23T10:00:01Z'"), &Found::Settled);
    assert_eq!(soon[1], "Ready=True Ready");
}

#[test]
fn a_role_that_does_not_exist_is_named_and_the_key_still_works() {
    let missing = ["McpRole \"absent\"".to_owned()];
    let view = View { key: &key(""), found: &Found::Settled, problem: None, missing: &missing };
    let status = key_status(&view, now());
    assert_eq!(status.conditions[0].status, "True");
    assert!(status.conditions[0].message.contains("McpRole \"absent\""));
}

#[test]
fn what_fails_keeps_what_was_known() {
    let key = rotating_key();
    let waiting = status_at(&key, &waits(1), None, now());
    let mut later = key.clone();
    later.status = Some(waiting.clone());
    let failed = Found::Failed(secret::conflict("ci-mcp-key"));
    let status = status_at(&later, &failed, None, now());
    assert_eq!((&status.keys, &status.secret_ref), (&waiting.keys, &waiting.secret_ref));
    assert_eq!(
        words(&status)[..3],
        ["Accepted=True Accepted", "Ready=False NameConflict", "Rotating=True WaitingForReplicas"]
    );
    assert_eq!(conditions(&key, &Found::NotOptedIn)[0], "Accepted=False NamespaceNotOptedIn");
}

#[test]
fn a_network_that_is_none_is_named_and_the_key_is_accepted_nowhere() {
    let key = key(", allowedCidrs: [10.0.0.0/8, '10.0.0.0/33']");
    let problem = invalid_network(&key).expect("the second is none");
    assert!(problem.message.starts_with("spec.allowedCidrs[1]: \"10.0.0.0/33\" is not a CIDR"));
    let status = status_at(&key, &Found::Settled, Some(&problem), now());
    assert_eq!(words(&status)[..2], ["Accepted=False Invalid", "Ready=False Invalid"]);
    assert_eq!(
        invalid_network(&self::key(", allowedCidrs: [10.0.0.0/8, '2001:db8::/32', 192.0.2.1/32]")),
        None
    );
}

#[test]
fn a_weak_import_leaves_the_key_that_was_imported_before_in_use() {
    let import = ", import: {secretRef: {name: old-key}}";
    let problem =
        Problem { reason: "WeakKey", message: "spec.import.secretRef: weak".into(), is_fatal: false };
    let status = status_at(&key(import), &Found::Settled, Some(&problem), now());
    assert_eq!(words(&status)[..2], ["Accepted=False WeakKey", "Ready=True Ready"]);
    assert_eq!(status.secret_ref, None, "the operator makes no Secret for it");
    let mut first = key(import);
    first.status = None;
    let status = status_at(&first, &Found::Settled, Some(&problem), now());
    assert_eq!(words(&status)[..2], ["Accepted=False WeakKey", "Ready=False WeakKey"]);
}

#[test]
fn a_rotation_says_how_many_replicas_it_waits_for_and_when_it_is_held_up() {
    let key = rotating_key();
    let status = status_at(&key, &waits(2), None, now() + 59.seconds());
    assert_eq!(words(&status)[1..3], ["Ready=True Ready", "Rotating=True WaitingForReplicas"]);
    assert_eq!(status.conditions[2].message, "2 of 3 ready replicas accept the new key");
    let status = status_at(&key, &waits(2), None, now() + 60.seconds());
    assert_eq!(words(&status)[1..3], ["Ready=True Ready", "Rotating=False RotationBlocked"]);
    let mut imported = self::key(", import: {secretRef: {name: old-key}}");
    imported.status.clone_from(&key.status);
    let status = status_at(&imported, &waits(2), None, now() + 60.seconds());
    assert_eq!(words(&status)[2], "Rotating=True WaitingForReplicas", "a mounted Secret takes longer");
}

#[test]
fn a_rotation_that_cannot_begin_says_why() {
    let mut key = key("");
    key.annotations_mut().insert("portcullis.dev/rotate".into(), "now".into());
    let retiring = (0..31).map(|i| generation(&i.to_string(), KeyState::Retiring));
    key.status.as_mut().expect("a status").keys.extend(retiring);
    assert_eq!(conditions(&key, &Found::Settled)[2], "Rotating=False RotationBlocked");
}

#[test]
fn the_end_of_a_key_is_announced_a_week_and_a_day_before() {
    let expiring = |left: SignedDuration| {
        let end = now() + left;
        conditions(&key(&format!(", expiresAt: '{end}'")), &Found::Settled)[3].clone()
    };
    let day = SignedDuration::from_hours(24);
    let second = SignedDuration::from_secs(1);
    assert_eq!(expiring(day * 7 + second), "Expiring=False NotExpiring");
    assert_eq!(expiring(day * 7), "Expiring=True WithinSevenDays");
    assert_eq!(expiring(day + second), "Expiring=True WithinSevenDays");
    assert_eq!(expiring(day), "Expiring=True WithinOneDay");
}

#[test]
fn a_key_that_is_replaced_in_time_does_not_expire_and_an_overdue_one_does() {
    let mut key = key(", rotation: {intervalHours: 24, maxAgeHours: 26, overlapMinutes: 60}");
    let end = now() + 26.hours();
    key.status.as_mut().expect("a status").keys[0].not_after = Some(Time(end));
    let at = |hours: i64| words(&status_at(&key, &Found::Settled, None, now() + hours.hours()))[3].clone();
    assert_eq!(at(23), "Expiring=False NotExpiring");
    assert_eq!(at(25), "Expiring=True WithinOneDay");
    let status = status_at(&key, &Found::Settled, None, now());
    assert_eq!(status.next_rotation_at, Some(Time(now() + 24.hours())));
}

#[test]
fn a_key_is_looked_at_when_something_is_due_and_every_minute() {
    let look = |more: &str| next_look(&key(more), now());
    assert_eq!(look(""), PERIOD);
    let is_soon = |look: Duration| look > Duration::from_secs(10) && look < Duration::from_secs(11);
    let soon = now() + 10.seconds();
    assert!(is_soon(look(&format!(", expiresAt: '{soon}'"))));
    let notice = soon + 24.hours();
    assert!(is_soon(look(&format!(", expiresAt: '{notice}'"))), "an announcement is due");
    assert_eq!(look(", expiresAt: '2020-01-01T00:00:00Z'"), PERIOD);
    let mut retiring = key("");
    let keys = &mut retiring.status.as_mut().expect("a status").keys;
    keys.push(KeyGeneration { not_after: Some(Time(soon)), ..generation("k0", KeyState::Retiring) });
    assert!(is_soon(next_look(&retiring, now())), "an overlap is over");
}
