//! From a key as it is written, and what a pass found, to its whole status.

use jiff::ToSpan;

use super::*;
use crate::api::KeyState;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().expect("a time")
}

fn key(more: &str) -> McpApiKey {
    serde_saphyr::from_str(&format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {{name: ci, namespace: agents, uid: u, generation: 4}}, spec: {{identity: ci, servers: [ops]{more}}}}}"
    ))
    .expect("a key")
}

fn generations() -> Vec<KeyGeneration> {
    vec![KeyGeneration {
        not_after: None,
        id: "k1".into(),
        digest: "sha256:00".into(),
        created_at: Time(now()),
        state: KeyState::Active,
    }]
}

fn conditions(key: &McpApiKey, found: &Found) -> Vec<String> {
    let status = key_status(key, found, &[], now());
    status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
}

#[test]
fn a_published_key_is_ready_and_names_its_secret() {
    let status = key_status(&key(""), &Found::Published(generations()), &[], now());
    assert_eq!(status.secret_ref, Some(SecretReference { name: "ci-mcp-key".into() }));
    assert_eq!(status.keys, generations());
    assert_eq!(status.observed_generation, Some(4));
    assert_eq!(
        conditions(&key(""), &Found::Published(generations())),
        ["Accepted=True Accepted", "Ready=True Ready"]
    );
}

#[test]
fn a_key_that_is_switched_off_or_over_is_not_ready_and_says_why() {
    let found = Found::Published(generations());
    assert_eq!(conditions(&key(", enabled: false"), &found)[1], "Ready=False Disabled");
    assert_eq!(conditions(&key(", expiresAt: '2026-11-23T10:00:00Z'"), &found)[1], "Ready=False Expired");
    assert_eq!(conditions(&key(", expiresAt: '2026-11-23T10:00:01Z'"), &found)[1], "Ready=True Ready");
}

#[test]
fn a_role_that_does_not_exist_is_named_and_the_key_still_works() {
    let missing = ["McpRole \"absent\"".to_owned()];
    let status = key_status(&key(""), &Found::Published(generations()), &missing, now());
    assert_eq!(status.conditions[0].status, "True");
    assert!(status.conditions[0].message.contains("McpRole \"absent\""));
}

#[test]
fn what_fails_keeps_the_generations_that_were_known() {
    let mut key = key("");
    key.status = Some(McpApiKeyStatus { keys: generations(), ..McpApiKeyStatus::default() });
    let found = Found::Failed(conflict("ci-mcp-key"));
    assert_eq!(key_status(&key, &found, &[], now()).keys, generations());
    assert_eq!(conditions(&key, &found), ["Accepted=True Accepted", "Ready=False NameConflict"]);
    assert_eq!(conditions(&key, &Found::NotOptedIn)[0], "Accepted=False NamespaceNotOptedIn");
}

#[test]
fn a_key_is_looked_at_when_it_ends_and_every_minute() {
    assert_eq!(next_look(&key(""), now()), PERIOD);
    let soon = now() + 10.seconds();
    let look = next_look(&key(&format!(", expiresAt: '{soon}'")), now());
    assert!(look > Duration::from_secs(10) && look < Duration::from_secs(11), "{look:?}");
    assert_eq!(next_look(&key(", expiresAt: '2020-01-01T00:00:00Z'"), now()), PERIOD);
}

#[test]
fn the_secret_is_owned_by_the_key_and_holds_nothing_else() {
    let text = ApiKey::generate([1; 10], [2; 32]);
    let secret = secret(&key(""), &text);
    assert_eq!(secret.name_any(), "ci-mcp-key");
    assert_eq!(secret.type_.as_deref(), Some("portcullis.dev/api-key"));
    assert_eq!(secret.labels()["portcullis.dev/key"], "ci");
    assert_eq!(secret.owner_references()[0].uid, "u");
    assert_eq!(held_key(&secret), Some(text));
    assert_eq!(secret.data.map(|data| data.len()), Some(1));
}
