//! One method for each form of credential, by the spec and the entries of now.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::KeyPair;
use secrecy::SecretString;
use serde_json::json;

use super::fixture::*;
use crate::api::SigningKeyState;
use crate::authenticator::materials::Entries;
use crate::authenticator::{Certificate, Presented};
use crate::authn::token::{OwnTokens, SigningKey, SigningKeys};
use crate::authn::{Credential, Identity, Method, Reason};

#[tokio::test]
async fn nothing_is_anonymous_only_where_the_server_says_so() {
    let fixture = follow(&json!({}), Entries::new(), times());
    let nothing = || fixture.prove_from(HERE, Err(Reason::Missing));
    assert_eq!(nothing().await, Err(Reason::Missing));
    fixture.policy.publish(snapshot(&json!({"anonymous": {"unsafeEnabled": true}})));
    assert_eq!(nothing().await, Ok(Identity::anonymous()));
    let ambiguous = fixture.prove_from(HERE, Err(Reason::Ambiguous)).await;
    assert_eq!(ambiguous, Err(Reason::Ambiguous), "what is wrong is not nothing");
    fixture.stop().await;
}

#[tokio::test]
async fn a_verified_certificate_names_the_caller_unless_another_credential_does() {
    let fixture = follow(&json!({}), Entries::new(), times());
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ann");
    let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
    let present = |verified, credential| {
        let shown = Certificate { der: Arc::new(certificate.der().clone()), verified };
        let presented = Presented { credential, certificate: Some(shown), client_ip: HERE, is_secure: true };
        let snapshot = fixture.policy.load();
        let authenticator = fixture.authenticator.clone();
        async move { authenticator.prove(&snapshot, presented).await }
    };
    let proved = present(true, Err(Reason::Missing)).await.expect("named");
    assert_eq!((proved.method, proved.subject.as_str()), (Method::ClientCertificate, "ann"));
    assert_eq!(present(false, Err(Reason::Missing)).await, Err(Reason::Missing));
    let key = Credential::ApiKey(crate::authn::ApiKey::generate([1; 10], [2; 32]));
    assert_eq!(present(true, Ok(key)).await, Err(Reason::UnknownKey), "the key is the caller's");
    fixture.stop().await;
}

#[tokio::test]
async fn own_tokens_are_known_by_the_resource_and_follow_their_keys() {
    let now = Timestamp::now();
    let mut key = SigningKey::generate([1; 8], now).expect("a key");
    key.state = SigningKeyState::Active;
    let json = serde_json::to_vec(&SigningKeys { keys: vec![key] }).expect("JSON");
    let own = OwnTokens::from_json(&json).expect("keys");
    let caller =
        Identity { key: Some("ci".into()), ..Identity::new(Method::ApiKey, "ci-bot", "0123456789abcdef") };
    let mint = |resource: &str| {
        own.mint(&caller, resource, None, SignedDuration::from_mins(5), now, [7; 16]).expect("a token")
    };
    let token = mint(RESOURCE);
    let entries = Entries::from([(secret("ops-mcp-signing", "keys.json"), json.into())]);
    let fixture = follow(&json!({}), entries, times());
    assert_eq!(fixture.token(&token).await, Err(Reason::MethodDisabled));
    fixture.policy.publish(snapshot(&json!({"tokens": {"enabled": true}})));
    let identity = fixture.token(&token).await.expect("proved");
    assert_eq!((identity.method, identity.subject.as_str()), (Method::Token, "ci-bot"));
    assert_eq!(fixture.token(&mint("https://other.example/mcp")).await, Err(Reason::UnknownIssuer));
    assert!(fixture.authenticator.own_tokens().is_some_and(|own| own.signing_key().is_some()));

    let elsewhere = json!({"tokens": {"enabled": true}, "resource": "https://other.example/mcp"});
    fixture.policy.publish(snapshot(&elsewhere));
    assert_eq!(fixture.authenticator.resource(&fixture.policy.load()), "https://other.example/mcp");
    assert_eq!(fixture.token(&token).await, Err(Reason::UnknownIssuer), "the endpoint has another name now");
    assert!(fixture.token(&mint("https://other.example/mcp")).await.is_ok());
    fixture.authenticator.materials.set(Entries::new());
    assert_eq!(fixture.token(&mint("https://other.example/mcp")).await, Err(Reason::IssuerUnavailable));
    assert!(fixture.authenticator.own_tokens().is_none());
    fixture.stop().await;
}

#[tokio::test]
async fn tokens_of_unknown_issuers_are_shown_to_nobody() {
    let token = Signing::new("k1").token("https://other.example");
    let fixture = follow(&json!({"serviceAccounts": {"enabled": true}}), Entries::new(), times());
    // The API server of this test answers nobody, so its issuer is not known, and nothing is one of its tokens.
    assert_eq!(fixture.token(&token).await, Err(Reason::UnknownIssuer));
    for text in ["a.b.c", "", "e30.e30.e30"] {
        assert_eq!(fixture.token(text).await, Err(Reason::MalformedToken), "{text:?}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn the_certificate_authorities_of_clients_are_those_of_the_entry() {
    let spec =
        json!({"clientCertificates": {"mode": "VerifyIfGiven", "ca": {"name": "clients", "key": "ca.crt"}}});
    let fixture = follow(&spec, Entries::new(), times());
    let ca = || fixture.authenticator.client_ca(&fixture.policy.load());
    assert!(ca().is_none());
    let entries = Entries::from([("configmap/clients/ca.crt".to_owned(), b"PEM"[..].into())]);
    fixture.authenticator.materials.set(entries);
    assert_eq!(ca().as_deref(), Some(&b"PEM"[..]));
    fixture.stop().await;
}

#[tokio::test]
async fn a_server_that_is_not_there_proves_nothing_but_keys() {
    let fixture = follow(&json!({"anonymous": {"unsafeEnabled": true}}), Entries::new(), times());
    fixture.policy.publish(crate::index::Snapshot::default());
    assert_eq!(fixture.prove_from(HERE, Err(Reason::Missing)).await, Err(Reason::MethodDisabled));
    let text = SecretString::from("x");
    let imported = fixture.prove_from(HERE, Ok(Credential::ImportedKey(text))).await;
    assert_eq!(imported, Err(Reason::MethodDisabled));
    fixture.stop().await;
}
