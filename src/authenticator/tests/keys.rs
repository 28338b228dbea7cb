//! Where issuers' keys come from, what is refused on the way, and how they are followed.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use super::fixture::*;
use crate::authenticator::https::{Fetch, LIMIT, Trust};
use crate::authenticator::issuers::Times;
use crate::authenticator::materials::Entries;
use crate::authn::{Method, Reason};

#[tokio::test]
async fn an_issuer_is_known_by_discovery_and_by_the_address_of_its_keys() {
    let key = Signing::new("k1");
    let issuer = Issuer::start(&[&key]).await;
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), times());
    let identity = fixture.token(&key.token(&issuer.url)).await.expect("proved");
    assert_eq!((identity.method, identity.subject.as_str()), (Method::Jwt, "ann"));
    assert_eq!(
        (identity.issuer.as_deref(), identity.credential_id.as_str()),
        (Some(issuer.url.as_str()), "t1")
    );
    assert!(identity.issued_at.is_some() && identity.expires_at.is_some());
    assert_eq!(fixture.token(&key.token("https://other.example")).await, Err(Reason::UnknownIssuer));
    fixture.stop().await;

    let mut spec = issuer.spec();
    (spec["issuer"], spec["jwksUrl"]) = (json!("somebody"), json!(format!("{}{KEYS}", issuer.url)));
    let fixture = follow(&json!({"jwt": [spec]}), issuer.entries(), times());
    assert!(fixture.token(&key.token("somebody")).await.is_ok());
    fixture.stop().await;
}

#[tokio::test]
async fn a_discovery_document_counts_only_for_the_issuer_that_it_names() {
    let key = Signing::new("k1");
    let issuer = Issuer::start(&[&key]).await;
    let keys = format!("{}{KEYS}", issuer.url);
    for other in [format!("{}/", issuer.url), issuer.url.to_uppercase(), "https://other.example".to_owned()] {
        issuer.discovery(&other, &keys);
        let patience = Times { patience: Duration::from_millis(300), ..times() };
        let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), patience);
        assert_eq!(fixture.token(&key.token(&issuer.url)).await, Err(Reason::IssuerUnavailable), "{other}");
        fixture.stop().await;
    }
    issuer.discovery(&issuer.url, &keys.replace("https:", "http:"));
    let patience = Times { patience: Duration::from_millis(300), ..times() };
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), patience);
    assert_eq!(fixture.token(&key.token(&issuer.url)).await, Err(Reason::IssuerUnavailable), "not https");
    assert_eq!(issuer.fetches(), 0);
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_fetched_is_bounded_in_place_size_and_time() {
    let issuer = Issuer::start(&[&Signing::new("k1")]).await;
    let trust = Trust::new(Some(issuer.ca.as_bytes()), true).expect("a CA");
    let url = format!("{}/document", issuer.url);
    issuer.answer("/document", Answer::Json("{}".to_owned()));
    assert_eq!(&*trust.get(&url).await.expect("a document"), b"{}");

    let inside = Trust::new(Some(issuer.ca.as_bytes()), false).expect("a CA");
    assert!(matches!(inside.get(&url).await, Err(Fetch::Private { .. })));
    for address in
        ["https://127.0.0.1/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://169.254.169.254/"]
    {
        assert!(matches!(inside.get(address).await, Err(Fetch::Private { .. })), "{address}");
    }
    let strangers = Trust::new(None, true).expect("the web");
    assert!(matches!(strangers.get(&url).await, Err(Fetch::Connect { .. })), "an unknown authority");
    let other_name = url.replace("localhost", "127.0.0.1");
    assert!(matches!(trust.get(&other_name).await, Err(Fetch::Connect { .. })), "another name");

    issuer.answer("/document", Answer::Redirect(format!("{}{KEYS}", issuer.url)));
    assert!(matches!(trust.get(&url).await, Err(Fetch::Redirect)));
    issuer.answer("/document", Answer::Status(StatusCode::INTERNAL_SERVER_ERROR));
    assert!(matches!(trust.get(&url).await, Err(Fetch::Status(_))));
    issuer.answer("/document", Answer::Json(" ".repeat(LIMIT)));
    assert!(trust.get(&url).await.is_ok());
    issuer.answer("/document", Answer::Json(" ".repeat(LIMIT + 1)));
    assert!(matches!(trust.get(&url).await, Err(Fetch::TooLarge)));
    issuer.answer("/document", Answer::Slow(Duration::from_secs(20)));
    let started = Instant::now();
    assert!(matches!(trust.get(&url).await, Err(Fetch::Time)));
    assert!(started.elapsed() < Duration::from_secs(8));
    assert_eq!(issuer.fetches(), 0, "no redirect was followed");
}

#[tokio::test]
async fn a_storm_of_unknown_keys_makes_one_fetch_and_a_known_one_is_not_held_up() {
    let (key, stranger) = (Signing::new("k1"), Signing::new("unknown"));
    let issuer = Issuer::start(&[&key]).await;
    let times = Times { asked: Duration::from_secs(10), ..times() };
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), times);
    assert!(fixture.token(&key.token(&issuer.url)).await.is_ok());
    let before = issuer.fetches();
    let token = stranger.token(&issuer.url);
    let storm = futures::future::join_all((0..1_000).map(|_| fixture.token(&token)));
    let good = key.token(&issuer.url);
    let known = async {
        let started = Instant::now();
        assert!(fixture.token(&good).await.is_ok());
        started.elapsed()
    };
    let (storm, known) = tokio::join!(storm, known);
    assert!(storm.iter().all(|proved| *proved == Err(Reason::UnknownSigningKey)));
    assert!(known < Duration::from_secs(3), "{known:?}");
    for _ in 0..100 {
        assert_eq!(fixture.token(&token).await, Err(Reason::UnknownSigningKey));
    }
    assert!(issuer.fetches() - before <= 2, "{} fetches", issuer.fetches() - before);
    fixture.stop().await;
}

#[tokio::test]
async fn a_rotation_is_followed_without_a_failed_request() {
    let times = Times { asked: Duration::from_millis(100), ..times() };
    let mut keys = vec![Signing::new("k0")];
    let issuer = Issuer::start(&[&keys[0]]).await;
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), times);
    for round in 1..=10 {
        keys.push(Signing::new(&format!("k{round}")));
        let (old, new) = (&keys[round - 1], &keys[round]);
        issuer.publish(&[old, new]);
        // The new key signs at once, and the old one's tokens are still about.
        let tokens = [old.token(&issuer.url), new.token(&issuer.url)];
        let requests = (0..50).map(|i| fixture.token(&tokens[i % 2]));
        for proved in futures::future::join_all(requests).await {
            assert!(proved.is_ok(), "round {round}: {proved:?}");
        }
    }
    let last = keys.last().expect("a key");
    issuer.publish(&[last]);
    assert!(fixture.token(&last.token(&issuer.url)).await.is_ok());
    fixture.stop().await;
}

#[tokio::test]
async fn nothing_is_fetched_for_those_who_were_served_already() {
    let times = Times { asked: Duration::from_millis(200), ..times() };
    let keys = [Signing::new("k0"), Signing::new("k1")];
    let issuer = Issuer::start(&[&keys[0]]).await;
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), times);
    assert!(fixture.token(&keys[0].token(&issuer.url)).await.is_ok());
    issuer.publish(&[&keys[0], &keys[1]]);
    let token = keys[1].token(&issuer.url);
    let requests = (0..50).map(|_| fixture.token(&token));
    assert!(futures::future::join_all(requests).await.iter().all(Result::is_ok));
    let fetches = issuer.fetches();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(issuer.fetches(), fetches, "the next change would have to wait for it");
    fixture.stop().await;
}

#[tokio::test]
async fn unknown_keys_of_an_issuer_that_is_out_of_reach_are_refused_without_waiting() {
    let (key, stranger) = (Signing::new("k1"), Signing::new("unknown"));
    let issuer = Issuer::start(&[&key]).await;
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), times());
    assert!(fixture.token(&key.token(&issuer.url)).await.is_ok());
    issuer.answer(KEYS, Answer::Status(StatusCode::BAD_GATEWAY));
    let token = stranger.token(&issuer.url);
    // The first may wait for its turn to ask, and finds out.
    assert_eq!(fixture.token(&token).await, Err(Reason::UnknownSigningKey));
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(fixture.token(&token).await, Err(Reason::UnknownSigningKey));
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    fixture.stop().await;
}

#[tokio::test]
async fn keys_outlive_a_failure_of_their_issuer_for_a_while_and_other_changes_of_the_spec() {
    let times = Times {
        refresh: Duration::from_millis(50),
        keep: Duration::from_secs(2),
        patience: Duration::ZERO,
        ..times()
    };
    let key = Signing::new("k1");
    let issuer = Issuer::start(&[&key]).await;
    let fixture = follow(&json!({"jwt": [issuer.spec()]}), issuer.entries(), times);
    let token = key.token(&issuer.url);
    let started = Instant::now();
    while fixture.token(&token).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(5), "never loaded");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    issuer.answer(KEYS, Answer::Status(StatusCode::BAD_GATEWAY));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let failing = issuer.fetches();
    assert!(failing >= 2, "it is asked again by itself");
    assert!(fixture.token(&token).await.is_ok(), "the last good keys count");
    fixture.policy.publish(snapshot(&json!({"jwt": [issuer.spec()], "anonymous": {"unsafeEnabled": true}})));
    assert!(fixture.token(&token).await.is_ok(), "another part of the spec has changed");
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    assert_eq!(fixture.token(&token).await, Err(Reason::IssuerUnavailable), "not for ever");
    fixture.policy.publish(snapshot(&json!({})));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ended = issuer.fetches();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(issuer.fetches(), ended, "nobody follows an issuer that the spec does not name");
    assert_eq!(fixture.token(&token).await, Err(Reason::UnknownIssuer));
    fixture.stop().await;
}

#[tokio::test]
async fn keys_in_a_secret_or_a_config_map_are_followed() {
    let (key, next) = (Signing::new("k1"), Signing::new("k2"));
    let spec = json!({"jwt": [{"issuer": "https://a.example", "jwks": {"kind": "Secret", "name": "a", "key": "jwks.json"}}]});
    let fixture = follow(&spec, Entries::new(), times());
    let token = |key: &Signing| key.token("https://a.example");
    assert_eq!(fixture.token(&token(&key)).await, Err(Reason::IssuerUnavailable));
    let entries = |text: String| Entries::from([(secret("a", "jwks.json"), text.into_bytes().into())]);
    fixture.authenticator.materials.set(entries(key_set(&[&key])));
    assert!(fixture.token(&token(&key)).await.is_ok());
    assert_eq!(fixture.token(&token(&next)).await, Err(Reason::UnknownSigningKey));
    fixture.authenticator.materials.set(entries(key_set(&[&next])));
    assert!(fixture.token(&token(&next)).await.is_ok());
    assert_eq!(fixture.token(&token(&key)).await, Err(Reason::UnknownSigningKey));
    fixture.authenticator.materials.set(entries("broken".to_owned()));
    assert_eq!(fixture.token(&token(&next)).await, Err(Reason::IssuerUnavailable));
    fixture.stop().await;
}

#[tokio::test]
async fn a_shared_key_must_be_long_and_its_last_newline_does_not_count() {
    use base64::Engine;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;

    let shared = b"0f3A9kQ2mZ7xC1vB8nL5sD4gH6jP0wEr";
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iss": "a", "aud": RESOURCE, "sub": "ann", "iat": now, "exp": now + 60}).to_string();
    let message = format!("{}.{}", BASE64.encode(r#"{"alg":"HS256"}"#), BASE64.encode(claims));
    let mac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, shared);
    let tag = aws_lc_rs::hmac::sign(&mac, message.as_bytes());
    let token = format!("{message}.{}", BASE64.encode(tag.as_ref()));
    let spec = json!({"jwt": [{"issuer": "a", "hmacSecret": {"name": "a", "key": "secret"}}]});
    let entries = |bytes: &[u8]| Entries::from([(secret("a", "secret"), bytes.into())]);
    let fixture = follow(&spec, entries(&shared[..31]), times());
    assert_eq!(fixture.token(&token).await, Err(Reason::IssuerUnavailable), "31 bytes");
    for ending in ["", "\n", "\r\n"] {
        fixture.authenticator.materials.set(entries(&[&shared[..], ending.as_bytes()].concat()));
        assert!(fixture.token(&token).await.is_ok(), "{ending:?}");
    }
    fixture.authenticator.materials.set(entries(&[&shared[..], b"\n\n"].concat()));
    assert_eq!(fixture.token(&token).await, Err(Reason::Signature), "only one is trimmed");
    fixture.stop().await;
}
