//! The keys of issuers: found by discovery, by address, or in a Secret or ConfigMap, and followed as they change.
//!
//! One task for each issuer fetches, and nobody else: requests with an unknown key ask it to, at most once in four seconds
//! for all of them together, and wait for what it finds for a while. What was fetched last is kept when the issuer cannot
//! be reached, for a day.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::https::{Fetch, InvalidAuthorities, Trust};
use super::materials::Entries;
use crate::api::{JwtAlgorithm, JwtIssuerSpec, MaterialReference, names};
use crate::authn::jwks::{InvalidKeySet, KeySet};
use crate::authn::jwt::{self, IssuerRules, Unverified};
use crate::authn::{Identity, Reason};

/// Most requests that wait for the keys of one issuer.
const WAITING: usize = 1024;

/// How often keys are fetched, and how long somebody waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Between two fetches that succeed.
    pub(super) refresh: Duration,
    /// From a fetch that fails to the next; doubled each time, up to the time above.
    pub(super) retry: Duration,
    /// Between two fetches that requests ask for.
    pub(super) asked: Duration,
    /// Longest wait of a request for one.
    pub(super) patience: Duration,
    /// How long keys are good for when the issuer cannot be reached.
    pub(super) keep: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            refresh: seconds(300),
            retry: seconds(1),
            // Shorter than the patience, so that whoever asks sees the end of the next fetch.
            asked: seconds(4),
            patience: seconds(5),
            keep: seconds(24 * 60 * 60),
        }
    }
}

/// Why an issuer's keys could not be had.
#[derive(Debug, thiserror::Error)]
enum LoadKeys {
    #[error("fetch {what}")]
    Fetch {
        what: &'static str,
        #[source]
        source: Fetch,
    },
    #[error("trust the issuer's address")]
    Trust(#[source] InvalidAuthorities),
    #[error("the entry with the certificate authorities is not there")]
    NoAuthorities,
    #[error("read the discovery document")]
    Discovery(#[source] serde_json::Error),
    #[error("the discovery document is another issuer's")]
    OtherIssuer,
    #[error("read the key set")]
    KeySet(#[source] InvalidKeySet),
}

/// An issuer that the spec names.
pub(super) struct Issuer {
    rules: IssuerRules,
    keys: Keys,
}

enum Keys {
    /// From a Secret or ConfigMap.
    Given(KeySet),
    /// From the issuer.
    Fetched(Arc<Remote>),
    /// What the spec refers to is not there or cannot be used.
    Missing,
}

impl Issuer {
    /// Reads one issuer of a spec. Tokens are for this audience unless it names others.
    pub(super) fn new(spec: &JwtIssuerSpec, resource: &str, entries: &Entries, remotes: &Remotes) -> Self {
        let rules = IssuerRules::from_spec(spec, resource);
        let given = |keys: Result<KeySet, InvalidKeySet>| match keys {
            Ok(keys) => Keys::Given(keys),
            Err(error) => {
                tracing::warn!(issuer = spec.issuer, %error, "keys of an issuer cannot be used");
                Keys::Missing
            }
        };
        let keys = if let Some(secret) = &spec.hmac_secret {
            let content = entry(entries, &secret.clone().into());
            content.map_or(Keys::Missing, |content| given(KeySet::from_hmac(without_newline(content))))
        } else if let Some(reference) = &spec.jwks {
            let content = entry(entries, reference);
            content.map_or(Keys::Missing, |content| given(KeySet::from_json(content, &rules.algorithms)))
        } else {
            Keys::Fetched(remotes.of(Target {
                issuer: spec.issuer.clone(),
                jwks_url: spec.jwks_url.clone(),
                algorithms: rules.algorithms.clone(),
                authorities: spec.ca.as_ref().map(|reference| entry(entries, reference).cloned()),
                allow_private: spec.allow_private_addresses,
            }))
        };
        Self { rules, keys }
    }

    /// Proves a token of this issuer.
    ///
    /// # Errors
    /// [`Reason`] says why it proves nothing.
    pub(super) async fn verify(&self, token: &Unverified<'_>, now: Timestamp) -> Result<Identity, Reason> {
        match &self.keys {
            Keys::Given(keys) => jwt::verify(token, &self.rules, keys, now),
            Keys::Missing => Err(Reason::IssuerUnavailable),
            Keys::Fetched(remote) => {
                let prove = |keys: Option<&Loaded>| {
                    let keys = keys.ok_or(Reason::IssuerUnavailable)?;
                    jwt::verify(token, &self.rules, &keys.keys, now)
                };
                // A key without an id cannot be missed, so a signature that does not fit may be by a new one.
                let is_outdated = |reason| match reason {
                    Reason::IssuerUnavailable | Reason::UnknownSigningKey => true,
                    Reason::Signature => token.key_id().is_none(),
                    _ => false,
                };
                remote.prove(prove, is_outdated).await
            }
        }
    }

    /// Where the keys are fetched from, if they are.
    pub(super) fn remote(&self) -> Option<&Arc<Remote>> {
        match &self.keys {
            Keys::Fetched(remote) => Some(remote),
            Keys::Given(_) | Keys::Missing => None,
        }
    }
}

fn entry<'a>(entries: &'a Entries, reference: &MaterialReference) -> Option<&'a Arc<[u8]>> {
    entries.get(&names::material_path(reference.kind, &reference.name, &reference.key))
}

/// Files often end in a newline that nobody meant.
fn without_newline(content: &[u8]) -> &[u8] {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content.strip_suffix(b"\r").unwrap_or(content)
}

/// What decides which keys are fetched.
#[derive(Clone, PartialEq, Eq)]
struct Target {
    issuer: String,
    jwks_url: Option<String>,
    algorithms: Vec<JwtAlgorithm>,
    /// PEM; the inner none: the spec refers to what is not there.
    authorities: Option<Option<Arc<[u8]>>>,
    allow_private: bool,
}

/// The keys that one issuer publishes.
pub(super) struct Remote {
    target: Target,
    times: Times,
    current: ArcSwapOption<Loaded>,
    asked: Notify,
    attempts: watch::Sender<Attempts>,
    /// One for each request that may wait for a fetch.
    waiting: Semaphore,
}

struct Loaded {
    keys: KeySet,
    at: Instant,
}

/// Fetches so far.
#[derive(Clone, Copy, Debug)]
struct Attempts {
    begun: u64,
    ended: u64,
    /// Whether the last one failed.
    failed: bool,
    /// From when a request may cause another.
    open: Instant,
}

impl Remote {
    fn new(target: Target, times: Times) -> Self {
        let attempts = Attempts { begun: 0, ended: 0, failed: false, open: Instant::now() };
        let (current, asked, waiting) = (ArcSwapOption::empty(), Notify::new(), Semaphore::new(WAITING));
        Self { target, times, current, asked, attempts: watch::Sender::new(attempts), waiting }
    }

    /// The last keys that were fetched, unless that is too long ago.
    fn loaded(&self) -> Option<Arc<Loaded>> {
        self.current.load_full().filter(|loaded| loaded.at.elapsed() <= self.times.keep)
    }

    /// Proves something with the keys of now, and again with newer ones if these are outdated.
    async fn prove(
        &self,
        prove: impl Fn(Option<&Loaded>) -> Result<Identity, Reason>,
        is_outdated: impl Fn(Reason) -> bool,
    ) -> Result<Identity, Reason> {
        let first = prove(self.loaded().as_deref());
        if !matches!(first, Err(reason) if is_outdated(reason)) {
            return first;
        }
        let Ok(_waiting) = self.waiting.try_acquire() else { return first };
        let mut attempts = self.attempts.subscribe();
        let begun = attempts.borrow().begun;
        let deadline = Instant::now() + self.times.patience;
        self.asked.notify_one();
        loop {
            let state = *attempts.borrow_and_update();
            let outcome = prove(self.loaded().as_deref());
            let idle = state.begun == state.ended;
            // An issuer that cannot be reached is tried again by itself; nobody waits for that.
            let closed = state.open > if state.failed { Instant::now() } else { deadline };
            let is_over = state.ended > begun || (idle && closed);
            if is_over || !matches!(outcome, Err(reason) if is_outdated(reason)) {
                return outcome;
            }
            if !matches!(tokio::time::timeout_at(deadline, attempts.changed()).await, Ok(Ok(()))) {
                return outcome;
            }
        }
    }

    /// Fetches the keys now, in time, and when asked, until told to stop.
    async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let (mut due, mut failures) = (Instant::now(), 0_u32);
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(due) => false,
                () = self.asked_in_time() => true,
            };
            self.attempts.send_modify(|attempts| {
                attempts.begun += 1;
                if asked {
                    attempts.open = Instant::now() + self.times.asked;
                }
            });
            let Some(fetched) = stop.run_until_cancelled(self.fetch()).await else { return };
            let failed = fetched.is_err();
            let wait = match fetched {
                Ok(keys) => {
                    failures = 0;
                    tracing::debug!(
                        issuer = self.target.issuer,
                        keys = keys.len(),
                        "keys of an issuer fetched"
                    );
                    self.current.store(Some(Arc::new(Loaded { keys, at: Instant::now() })));
                    self.times.refresh
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let error = anyhow::Error::from(error);
                    tracing::warn!(
                        issuer = self.target.issuer,
                        error = format!("{error:#}"),
                        "keys of an issuer were not fetched"
                    );
                    let doubled = 2_u32.saturating_pow(failures.min(16) - 1);
                    self.times.retry.saturating_mul(doubled).min(self.times.refresh)
                }
            };
            due = Instant::now() + jittered(wait);
            self.attempts
                .send_modify(|attempts| (attempts.ended, attempts.failed) = (attempts.begun, failed));
        }
    }

    /// Ends when a request asks for a fetch and there may be one.
    async fn asked_in_time(&self) {
        loop {
            self.asked.notified().await;
            let open = self.attempts.borrow().open;
            tokio::time::sleep_until(open).await;
            // The fetch that was under way may have served whoever asked. Another for nobody would make the next wait.
            if self.waiting.available_permits() < WAITING {
                return;
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, LoadKeys> {
        let target = &self.target;
        let authorities = match &target.authorities {
            None => None,
            Some(pem) => Some(pem.as_deref().ok_or(LoadKeys::NoAuthorities)?),
        };
        let trust = Trust::new(authorities, target.allow_private).map_err(LoadKeys::Trust)?;
        let url = match &target.jwks_url {
            Some(url) => url.clone(),
            None => self.discover(&trust).await?,
        };
        let document = trust.get(&url).await;
        let document = document.map_err(|source| LoadKeys::Fetch { what: "the key set", source })?;
        KeySet::from_json(&document, &target.algorithms).map_err(LoadKeys::KeySet)
    }

    /// Address of the key set, as the issuer's own document has it.
    async fn discover(&self, trust: &Trust) -> Result<String, LoadKeys> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let issuer = &self.target.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer));
        let document = trust.get(&url).await;
        let document =
            document.map_err(|source| LoadKeys::Fetch { what: "the discovery document", source })?;
        let document: Document = serde_json::from_slice(&document).map_err(LoadKeys::Discovery)?;
        if document.issuer == *issuer { Ok(document.jwks_uri) } else { Err(LoadKeys::OtherIssuer) }
    }
}

/// A time between nine and eleven tenths of this one, so that replicas do not ask all at once.
fn jittered(time: Duration) -> Duration {
    let mut random = [0; 2];
    aws_lc_rs::rand::fill(&mut random).expect("the system has randomness");
    time.mul_f64(0.9 + 0.2 * f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX))
}

/// Issuers whose keys are fetched. What was fetched outlives a change of the spec that does not concern it.
pub(super) struct Remotes {
    times: Times,
    known: Mutex<Vec<Arc<Remote>>>,
}

impl Remotes {
    /// None yet.
    pub(super) fn new(times: Times) -> Self {
        Self { times, known: Mutex::default() }
    }

    fn of(&self, target: Target) -> Arc<Remote> {
        let mut known = self.known();
        if let Some(remote) = known.iter().find(|remote| remote.target == target) {
            return remote.clone();
        }
        let remote = Arc::new(Remote::new(target, self.times));
        known.push(remote.clone());
        remote
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Remote>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tasks that fetch.
#[derive(Default)]
pub(super) struct Following {
    tasks: JoinSet<()>,
    followed: Vec<(Arc<Remote>, CancellationToken)>,
}

impl Following {
    /// Fetches for these issuers from now on, and for no others.
    pub(super) fn set(&mut self, remotes: &Remotes, used: &[Arc<Remote>]) {
        let is_used = |remote: &Arc<Remote>| used.iter().any(|other| Arc::ptr_eq(remote, other));
        remotes.known().retain(is_used);
        self.followed.retain(|(remote, stop)| {
            let stays = is_used(remote);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for remote in used {
            if !self.followed.iter().any(|(other, _)| Arc::ptr_eq(remote, other)) {
                let stop = CancellationToken::new();
                self.tasks.spawn(remote.clone().follow(stop.clone()));
                self.followed.push((remote.clone(), stop));
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }

    /// Ends every task.
    pub(super) async fn end(mut self) {
        self.followed.iter().for_each(|(_, stop)| stop.cancel());
        while self.tasks.join_next().await.is_some() {}
    }
}
