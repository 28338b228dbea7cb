//! Passwords and imported keys: proved, remembered, throttled, and ended with their hash.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use data_encoding::HEXLOWER;
use secrecy::SecretString;
use serde_json::json;

use super::fixture::*;
use crate::authenticator::materials::Entries;
use crate::authn::imported::ImportedKeys;
use crate::authn::{Credential, Identity, Method, Origin, Reason, password};
use crate::index::{Objects, Snapshot};

const PASSWORD: &str = "correct horse battery staple";
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 8));

fn users(lines: &str) -> Entries {
    Entries::from([(secret("users", "users"), lines.as_bytes().into())])
}

fn line(user: &str, password: &str, salt: u8) -> String {
    format!("{user}:{}:operators", password::hash(password.as_bytes(), [salt; 16]).expect("hashed"))
}

fn basic(user: &str, password: &str) -> Result<Credential, Reason> {
    Ok(Credential::Basic { user: user.to_owned(), password: SecretString::from(password) })
}

fn spec() -> serde_json::Value {
    json!({"basic": {"enabled": true, "users": {"name": "users", "key": "users"}}})
}

#[tokio::test]
async fn a_password_proves_its_user_until_it_is_changed() {
    let fixture = follow(&spec(), users(&line("ann", PASSWORD, 1)), times());
    let identity = fixture.prove_from(HERE, basic("ann", PASSWORD)).await.expect("proved");
    assert_eq!((identity.method, identity.subject.as_str()), (Method::Basic, "ann"));
    assert_eq!(
        (identity.issuer.as_deref(), &identity.groups[..]),
        (Some("basic"), &["operators".to_owned()][..])
    );
    assert!(identity.credential_id.starts_with("basic:") && identity.credential_id.len() == 18);
    for (user, word) in [("ann", "wrong"), ("bob", PASSWORD), ("ann", "")] {
        assert_eq!(fixture.prove_from(HERE, basic(user, word)).await, Err(Reason::WrongPassword), "{user}");
    }
    let token = Identity {
        method: Method::Token,
        origin: Some(Origin { method: Method::Basic, credential_id: identity.credential_id.clone() }),
        credential_id: "jti".into(),
        ..identity.clone()
    };
    assert!(fixture.authenticator.still_holds(&identity) && fixture.authenticator.still_holds(&token));
    // Salted anew it is another credential, and what was proved before is asked for again.
    fixture.authenticator.materials.set(users(&line("ann", PASSWORD, 2)));
    let again = fixture.prove_from(HERE, basic("ann", PASSWORD)).await.expect("proved");
    assert_ne!(again.credential_id, identity.credential_id);
    assert!(!fixture.authenticator.still_holds(&identity) && !fixture.authenticator.still_holds(&token));
    assert!(fixture.authenticator.still_holds(&again));
    fixture.authenticator.materials.set(users(&line("ann", "something else", 3)));
    assert_eq!(fixture.prove_from(HERE, basic("ann", PASSWORD)).await, Err(Reason::WrongPassword));
    fixture.policy.publish(snapshot(&json!({})));
    assert_eq!(fixture.prove_from(HERE, basic("ann", "something else")).await, Err(Reason::MethodDisabled));
    fixture.stop().await;
}

#[tokio::test]
async fn failures_are_throttled_before_hashing_and_do_not_hold_up_who_is_right() {
    let lines = format!("{}\n{}\n", line("ann", PASSWORD, 1), line("bob", PASSWORD, 2));
    let fixture = follow(&spec(), users(&lines), times());
    assert!(fixture.prove_from(HERE, basic("ann", PASSWORD)).await.is_ok());
    let started = Instant::now();
    let failures = failures_until_throttled(&fixture, |_| "ann".to_owned()).await;
    // An attempt comes back every 12 seconds, and a machine may be slow.
    let returned = started.elapsed().as_secs() as usize / 12;
    assert!((5..=5 + returned).contains(&failures), "{failures}");
    let hash = started.elapsed() / failures as u32;

    let refused = Instant::now();
    for _ in 0..500 {
        let _ = fixture.prove_from(HERE, basic("ann", "wrong")).await;
        assert!(fixture.prove_from(HERE, basic("ann", PASSWORD)).await.is_ok(), "remembered");
    }
    assert!(refused.elapsed() < hash * 50, "something was hashed: {:?}, {hash:?} each", refused.elapsed());

    assert!(fixture.prove_from(HERE, basic("bob", PASSWORD)).await.is_ok(), "another user");
    assert!(fixture.prove_from(THERE, basic("ann", PASSWORD)).await.is_ok(), "another address");
    let all = failures + failures_until_throttled(&fixture, |i| format!("user{i}")).await;
    let returned = started.elapsed().as_secs() as usize / 6;
    assert!((20..=20 + returned).contains(&all), "{all} failures of one address, {returned} came back");
    fixture.stop().await;
}

/// How many wrong passwords are tried before an attempt is throttled, each of the user of its number.
async fn failures_until_throttled(fixture: &Fixture, user: impl Fn(usize) -> String) -> usize {
    for i in 0..200 {
        match fixture.prove_from(HERE, basic(&user(i), "wrong")).await {
            Err(Reason::WrongPassword) => {}
            Err(Reason::Throttled) => return i,
            other => panic!("{other:?}"),
        }
    }
    panic!("nobody is throttled");
}

#[tokio::test]
async fn too_many_at_a_time_are_refused_and_cost_nobody_an_attempt() {
    let fixture = follow(&spec(), users(&line("ann", PASSWORD, 1)), times());
    let address = |i: u8| IpAddr::V4(Ipv4Addr::new(10, 1, 0, i));
    let attempts = (0..100).map(|i| fixture.prove_from(address(i), basic("ann", "wrong")));
    let outcomes = futures::future::join_all(attempts).await;
    let count = |reason| outcomes.iter().filter(|outcome| **outcome == Err(reason)).count();
    let (overloaded, wrong) = (count(Reason::Overloaded), count(Reason::WrongPassword));
    assert_eq!(overloaded + wrong, 100);
    assert!(overloaded >= 50 && wrong >= 34, "{overloaded} {wrong}");
    assert_eq!(outcomes[99], Err(Reason::Overloaded));
    for _ in 0..5 {
        let outcome = fixture.prove_from(address(99), basic("ann", "wrong")).await;
        assert_eq!(outcome, Err(Reason::WrongPassword), "what was not tried is no failure");
    }
    fixture.stop().await;
}

/// A snapshot with one imported key whose status has this digest.
fn with_key(id: &str, digest: &str) -> Snapshot {
    let key = json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey",
        "metadata": {"name": "old", "namespace": "agents"},
        "spec": {"identity": "old-bot", "servers": ["ops"], "roles": []},
        "status": {"keys": [{"id": id, "digest": digest, "createdAt": "2026-01-01T00:00:00Z", "state": "Active"}]},
    });
    let labels = [(crate::api::names::NAMESPACE_LABEL.to_owned(), "local".to_owned())];
    let objects = Objects {
        server: snapshot(&json!({})).server,
        keys: [("old".to_owned(), std::sync::Arc::new(serde_json::from_value(key).expect("a key")))].into(),
        namespaces: [("agents".to_owned(), labels.into())].into(),
        ..Objects::default()
    };
    Snapshot::build(&objects, "agents", "ops", "portcullis-system")
}

#[tokio::test]
async fn an_imported_key_counts_when_its_object_and_its_hash_belong_together() {
    let text = "Vq7!pL2#zR9&wK4$xN6";
    let mut keys = ImportedKeys::new([5; 32]);
    let id = "imp0123456789abc".to_owned();
    let added = keys.add(id.clone(), "old", text, [9; 16]).expect("added");
    let hex = HEXLOWER.encode(&added.fingerprint());
    let json = serde_json::to_vec(&keys).expect("JSON");
    let entries = Entries::from([(secret("ops-mcp-imported", "imported.json"), json.into())]);
    let fixture = follow(&json!({}), entries.clone(), times());
    let present =
        |text: &str| fixture.prove_from(HERE, Ok(Credential::ImportedKey(SecretString::from(text))));
    assert_eq!(present(text).await, Err(Reason::UnknownKey), "there is no object");
    fixture.policy.publish(with_key(&id, &format!("argon2id:{}", "ab".repeat(32))));
    assert_eq!(present(text).await, Err(Reason::UnknownKey), "the object is about another hash");
    assert!(fixture.authenticator.accepted(&fixture.policy.load(), std::slice::from_ref(&id)).is_empty());
    fixture.policy.publish(with_key(&id, &format!("argon2id:{hex}")));
    for _ in 0..50 {
        let identity = present(text).await.expect("proved");
        assert_eq!((identity.method, identity.subject.as_str()), (Method::ApiKey, "old-bot"));
        assert_eq!((identity.credential_id.as_str(), identity.key.as_deref()), (id.as_str(), Some("old")));
        assert!(fixture.authenticator.still_holds(&identity));
    }
    let asked = [id.clone(), "unknown".to_owned()];
    assert_eq!(fixture.authenticator.accepted(&fixture.policy.load(), &asked), std::slice::from_ref(&id));
    assert_eq!(present("Vq7!pL2#zR9&wK4$xN7").await, Err(Reason::UnknownKey));
    let identity = present(text).await.expect("proved");
    fixture.authenticator.materials.set(Entries::new());
    assert_eq!(present(text).await, Err(Reason::UnknownKey), "its hash is gone");
    assert!(!fixture.authenticator.still_holds(&identity));
    assert!(fixture.authenticator.accepted(&fixture.policy.load(), &asked).is_empty());
    fixture.stop().await;
}
