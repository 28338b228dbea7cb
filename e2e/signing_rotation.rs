//! Twenty rotations of the key that signs the endpoint's own tokens, under load over three replicas.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::StatusCode;
use kube::Api;
use kube::api::{Patch, PatchParams};
use portcullis::api::{McpServer, SigningKeyState};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::{client, eventually};
use crate::load::{Load, Shown, print_times};
use crate::server::{Endpoint, Wishes};
use crate::wire::Wire;

const ROTATIONS: usize = 20;
/// Tokens that are in use at a time.
const TOKENS: usize = 64;

/// Header (0) or claims (1) of a token.
pub(crate) fn part(token: &str, number: usize) -> Value {
    let text = token.split('.').nth(number).expect("three parts");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).expect("base64url")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn serial_twenty_rotations_of_the_signing_key_under_load_fail_no_request() {
    let spec = "authentication: {tokens: {enabled: true, lifetimeSeconds: 300}}";
    let endpoint = Endpoint::start_with("signing", Wishes { replicas: 3, spec, ..Wishes::default() }).await;
    let first = eventually("tokens are made", Duration::from_secs(60), async || {
        endpoint.token(&endpoint.viewer).await.ok()
    })
    .await;
    assert_eq!(part(&first, 1)["aud"], endpoint.resource());
    let endpoint = Arc::new(endpoint);
    let tokens = Arc::new(RwLock::new(vec![first]));

    let stop = CancellationToken::new();
    let exchanging = tokio::spawn({
        let (endpoint, tokens, stop) = (endpoint.clone(), tokens.clone(), stop.clone());
        async move {
            let mut refused = Vec::new();
            while !stop.is_cancelled() {
                match endpoint.token(&endpoint.viewer).await {
                    Ok(token) => {
                        let mut tokens = tokens.write().expect("not poisoned");
                        tokens.push(token);
                        if tokens.len() > TOKENS {
                            tokens.remove(0);
                        }
                    }
                    Err(error) => refused.push(error.to_string()),
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            refused
        }
    });
    let credential = {
        let (tokens, turn) = (tokens.clone(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        move || {
            let tokens = tokens.read().expect("not poisoned");
            // Every other request has the newest token, the others all that are in use.
            let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let place = if turn.is_multiple_of(2) { tokens.len() - 1 } else { turn % tokens.len() };
            let token = &tokens[place];
            Shown::token(token, part(token, 0)["kid"].to_string())
        }
    };
    let ways: Vec<Wire> = endpoint.replicas().await.into_iter().chain([Wire::new(&endpoint)]).collect();
    let load = Load::start(&ways, 8, 500, credential);
    tokio::time::sleep(Duration::from_secs(2)).await;

    let servers = Api::<McpServer>::namespaced(client().await, endpoint.namespace());
    let (mut kids, mut times) = (BTreeSet::new(), Vec::new());
    for number in 1..=ROTATIONS {
        let began = Instant::now();
        let value = format!("rotation-{number}");
        let annotate = json!({"metadata": {"annotations": {"portcullis.dev/rotate": value}}});
        servers.patch("ops", &PatchParams::default(), &Patch::Merge(&annotate)).await.expect("annotated");
        let kid = eventually(&format!("rotation {number} is done"), Duration::from_secs(120), async || {
            let status = servers.get("ops").await.ok()?.status?.authentication?;
            let active = status.signing_keys.iter().rfind(|key| key.state == SigningKeyState::Active)?;
            let pending = status.signing_keys.iter().any(|key| key.state == SigningKeyState::Pending);
            let done = status.handled_rotate.as_ref() == Some(&value) && !pending;
            (done && !kids.contains(&active.kid)).then(|| active.kid.clone())
        })
        .await;
        kids.insert(kid.clone());
        eventually("tokens are signed with it", Duration::from_secs(30), async || {
            let newest = tokens.read().expect("not poisoned").last().cloned()?;
            (part(&newest, 0)["kid"] == kid).then_some(())
        })
        .await;
        times.push(began.elapsed());
        assert_eq!(load.refused(), 0, "during rotation {number}");
    }
    stop.cancel();
    let refused = exchanging.await.expect("the exchange");
    let mut outcome = load.stop().await;
    print_times(times);
    outcome.assert_none_refused("20 rotations of the signing key");
    assert!(refused.is_empty(), "exchanges for a token that failed: {refused:?}");
    assert!(outcome.rate() > 450.0, "{:.0} a second", outcome.rate());
    let status = servers.get("ops").await.expect("the server").status.expect("a status");
    let keys = status.authentication.expect("of authentication").signing_keys;
    assert_eq!(keys.iter().filter(|key| key.state == SigningKeyState::Active).count(), 1, "{keys:?}");
    let answer = Wire::new(&endpoint).list_as(&[("x-api-key", &endpoint.viewer)]).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}
