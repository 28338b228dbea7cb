//! Fifty rotations of an API key under load over three replicas. The name begins with `serial_`: it stops the operator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use portcullis::api::{KeyState, McpApiKey};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::{OPERATOR_NAMESPACE, client, eventually, try_kubectl};
use crate::load::{Load, Shown, key_id, print_times};
use crate::server::{Endpoint, Wishes, key, secret};
use crate::wire::Wire;

const ROTATIONS: usize = 50;
/// Rotations during which the operator's pod is killed.
const KILLS: [usize; 4] = [8, 20, 32, 44];
const KEY: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: load}
spec:
  identity: load
  servers: [ops]
  roles: [{name: viewer}]
  rotation: {overlapMinutes: 1, keepExpired: false}
";

/// What the tests see of the key as time goes by.
#[derive(Default)]
struct Seen {
    /// Every plaintext that the Secret has held, newest last.
    plaintexts: Vec<String>,
    /// End of each generation, by its id.
    ends: BTreeMap<String, Timestamp>,
}

/// Follows Secret and status of the key by watches, as a program would that reloads its key.
fn follow(client: &kube::Client, namespace: &str, seen: &Arc<Mutex<Seen>>, tasks: &mut JoinSet<()>) {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let of_secret = watcher::Config::default().fields("metadata.name=load-mcp-key");
    let found = seen.clone();
    tasks.spawn(async move {
        let changes = watcher(secrets, of_secret).applied_objects();
        let taken = changes.try_for_each(|secret| {
            let value = secret.data.as_ref().and_then(|data| data.get("api-key"));
            if let Some(text) = value.and_then(|value| String::from_utf8(value.0.clone()).ok()) {
                let mut seen = found.lock().expect("not poisoned");
                if seen.plaintexts.last() != Some(&text) {
                    seen.plaintexts.push(text);
                }
            }
            std::future::ready(Ok(()))
        });
        let _ = taken.await;
    });
    let keys = Api::<McpApiKey>::namespaced(client.clone(), namespace);
    let of_key = watcher::Config::default().fields("metadata.name=load");
    let found = seen.clone();
    tasks.spawn(async move {
        let changes = watcher(keys, of_key).applied_objects();
        let taken = changes.try_for_each(|key| {
            let mut seen = found.lock().expect("not poisoned");
            for generation in key.status.iter().flat_map(|status| &status.keys) {
                if let Some(end) = &generation.not_after {
                    seen.ends.insert(generation.id.clone(), end.0);
                }
            }
            std::future::ready(Ok(()))
        });
        let _ = taken.await;
    });
}

/// What the holder of old keys saw.
#[derive(Default)]
struct Old {
    asked: usize,
    /// Answers that should have been others, with the seconds to the end of the key.
    wrong: Vec<(String, f64, StatusCode)>,
    /// Keys that were accepted before their end and refused after it.
    ended: BTreeMap<String, (bool, bool)>,
}

/// Goes on using every key that was there until two seconds after its end, and judges each answer.
async fn use_old_keys(wire: Wire, seen: Arc<Mutex<Seen>>, stop: CancellationToken) -> Old {
    let mut old = Old::default();
    let mut connection = wire.connect().await.expect("a connection");
    let second = jiff::SignedDuration::from_secs(1);
    while !stop.is_cancelled() {
        let turn: Vec<(String, Timestamp)> = {
            let seen = seen.lock().expect("not poisoned");
            let before_last = seen.plaintexts.len().saturating_sub(1);
            let known = seen.plaintexts[..before_last].iter();
            known.filter_map(|key| Some((key.clone(), *seen.ends.get(key_id(key))?))).collect()
        };
        for (key, end) in turn {
            let began = Timestamp::now();
            if began > end + second * 3 {
                continue;
            }
            // Around the end the answers are close together; long before it they need not be.
            if began < end - second * 3 && old.asked % 8 != 0 {
                old.asked += 1;
                continue;
            }
            old.asked += 1;
            let request = wire.list(&[("x-api-key", &key)], false);
            let Ok(answer) = crate::wire::exchange(&mut connection, request).await else {
                connection = wire.connect().await.expect("a connection");
                continue;
            };
            let (passed, ended) = (answer.status() == StatusCode::OK, Timestamp::now());
            let state = old.ended.entry(key_id(&key).to_owned()).or_default();
            state.0 |= passed;
            state.1 |= !passed && began >= end - second;
            let must_pass = ended < end - second;
            let must_not = began > end + second;
            if (must_pass && !passed) || (must_not && passed) {
                let to_end = began.duration_since(end).as_secs_f64();
                old.wrong.push((key_id(&key).to_owned(), to_end, answer.status()));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    old
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn serial_fifty_rotations_of_a_key_under_load_refuse_no_request_that_should_pass() {
    let wishes = Wishes { replicas: 3, manifests: KEY, ..Wishes::default() };
    let endpoint = Endpoint::start_with("rotate", wishes).await;
    let namespace = endpoint.namespace().to_owned();
    let client = client().await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let first = key(&namespace, "load").await;
    seen.lock().expect("not poisoned").plaintexts.push(first);
    let mut following = JoinSet::new();
    follow(&client, &namespace, &seen, &mut following);

    let wires = endpoint.replicas().await;
    let wire = Wire::new(&endpoint);
    let newest = seen.clone();
    let credential = move || {
        let seen = newest.lock().expect("not poisoned");
        Shown::key(seen.plaintexts.last().expect("there is one"))
    };
    let stop = CancellationToken::new();
    let old = tokio::spawn(use_old_keys(wire.clone(), seen.clone(), stop.clone()));
    let ways: Vec<Wire> = wires.into_iter().chain([wire]).collect();
    let load = Load::start(&ways, 8, 500, credential);

    let keys = Api::<McpApiKey>::namespaced(client.clone(), &namespace);
    let mut times = Vec::new();
    for number in 1..=ROTATIONS {
        let began = Instant::now();
        let value = format!("rotation-{number}");
        let annotate = json!({"metadata": {"annotations": {"portcullis.dev/rotate": value}}});
        keys.patch("load", &PatchParams::default(), &Patch::Merge(&annotate)).await.expect("annotated");
        if KILLS.contains(&number) {
            // At another moment of the rotation each time.
            tokio::time::sleep(Duration::from_millis(number as u64 * 12)).await;
            let arguments =
                ["delete", "pod", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=portcullis"];
            let output = try_kubectl(&[&arguments[..], &["--force", "--grace-period=0"]].concat(), "");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        eventually(&format!("rotation {number} is done"), Duration::from_secs(120), async || {
            let key = keys.get("load").await.ok()?;
            let status = key.status?;
            let pending = status.keys.iter().any(|generation| generation.state == KeyState::Pending);
            (status.handled_rotate.as_ref() == Some(&value) && !pending).then_some(())
        })
        .await;
        assert_eq!(load.refused(), 0, "during rotation {number}");
        times.push(began.elapsed());
        // Of what the status holds at a time there may be 32: an overlap of a minute and this pace keep below it.
        tokio::time::sleep(Duration::from_millis(2_500).saturating_sub(began.elapsed())).await;
    }
    // The last of the old keys ends.
    tokio::time::sleep(Duration::from_secs(65)).await;
    stop.cancel();
    let old = old.await.expect("the holder of old keys");
    let mut outcome = load.stop().await;
    print_times(times);
    outcome.assert_none_refused("50 rotations of a key");
    assert!(outcome.rate() > 450.0, "{:.0} a second", outcome.rate());

    let (kept, gone) = (
        old.ended.values().filter(|(passed, _)| *passed).count(),
        old.ended.values().filter(|(_, refused)| *refused).count(),
    );
    eprintln!(
        "old keys: {} questions about {} keys, {kept} passed, {gone} ended",
        old.asked,
        old.ended.len()
    );
    assert!(old.wrong.is_empty(), "answers on the wrong side of the end: {:?}", old.wrong);
    let plaintexts = seen.lock().expect("not poisoned").plaintexts.clone();
    assert_eq!(plaintexts.len(), ROTATIONS + 1, "each rotation published one key");
    assert!(kept >= ROTATIONS && gone >= ROTATIONS, "every old key was seen to live and to end");

    let status = keys.get("load").await.expect("the key").status.expect("its status");
    let active: Vec<_> =
        status.keys.iter().filter(|generation| generation.state == KeyState::Active).collect();
    assert_eq!(active.len(), 1, "{:?}", status.keys);
    assert_eq!(active[0].id, key_id(plaintexts.last().expect("the newest")));
    assert!(status.keys.iter().all(|generation| generation.state != KeyState::Pending), "{:?}", status.keys);
    assert_eq!(secret(&namespace, "load-mcp-key", "next-api-key"), None);
    following.shutdown().await;
}
