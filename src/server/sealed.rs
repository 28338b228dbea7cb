//! Session ids of the SSE transport: sealed, so that only replicas of this server can make or read one.
//!
//! An id says where its stream lives and whose it is. The key comes from the private key that all replicas share; when
//! that changes, replicas see it at different times, so the old key seals for a while longer and opens for good.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::authn::Identity;

/// Time in which every replica has seen a new key: a Secret volume takes up to a minute or two.
const SPREAD: Duration = Duration::from_secs(180);
/// Keys that are kept.
const KEYS: usize = 3;

/// Where a stream lives and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionId {
    /// Address of the replica.
    pub(super) pod_ip: IpAddr,
    /// Number of the stream there, random.
    pub(super) number: u64,
    /// Whose it is.
    pub(super) principal: String,
}

impl SessionId {
    /// Whether the stream is this caller's.
    pub(super) fn belongs_to(&self, identity: &Identity) -> bool {
        self.principal == identity.principal()
    }
}

/// Seals and opens ids.
pub(super) struct Sealer {
    /// `<namespace>/<name>`: an id of another server does not open, whatever its key.
    context: String,
    keys: Mutex<Vec<(Instant, LessSafeKey)>>,
}

impl Sealer {
    /// A sealer without a key, which must [`Sealer::learn`] one before it is used.
    pub(super) fn empty(context: &str) -> Self {
        Self { context: context.to_owned(), keys: Mutex::default() }
    }

    /// A sealer whose ids no other process opens.
    pub(super) fn random(context: &str) -> Self {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).expect("the system has randomness");
        let sealer = Self::empty(context);
        sealer.learn(&secret, Instant::now());
        sealer
    }

    /// Takes a new key, from which ids are sealed when every replica has it.
    pub(super) fn learn(&self, secret: &[u8], now: Instant) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.push((now, derive(secret)));
        if keys.len() > KEYS {
            keys.remove(0);
        }
    }

    /// Writes an id as text.
    pub(super) fn seal(&self, id: &SessionId, now: Instant) -> String {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).expect("the system has randomness");
        let mut sealed = serde_json::to_vec(id).expect("strings and numbers are JSON");
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let spread = keys.iter().rev().find(|(since, _)| now.duration_since(*since) >= SPREAD);
        let (_, key) = spread.or(keys.first()).expect("there is a key from the start");
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(self.context.as_bytes()),
            &mut sealed,
        )
        .expect("an id is far below the limit of the cipher");
        BASE64_URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())
    }

    /// Reads an id, if a replica of this server wrote it.
    pub(super) fn open(&self, text: &str) -> Option<SessionId> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().rev().find_map(|(_, key)| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut sealed = sealed.to_vec();
            let plain = key.open_in_place(nonce, Aad::from(self.context.as_bytes()), &mut sealed).ok()?;
            serde_json::from_slice(plain).ok()
        })
    }
}

fn derive(secret: &[u8]) -> LessSafeKey {
    let extracted = Salt::new(HKDF_SHA256, b"portcullis").extract(secret);
    let expanded = extracted.expand(&[b"sse session id"], &AES_256_GCM).expect("the length is the cipher's");
    LessSafeKey::new(UnboundKey::from(expanded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(context: &str, secret: &[u8]) -> Sealer {
        let sealer = Sealer::empty(context);
        sealer.learn(secret, Instant::now());
        sealer
    }

    fn id() -> SessionId {
        SessionId {
            pod_ip: "10.0.0.7".parse().expect("an address"),
            number: 7,
            principal: "apikey ci-bot".into(),
        }
    }

    #[test]
    fn an_id_opens_on_every_replica_and_nowhere_else() {
        let now = Instant::now();
        let text = sealer("agents/ops", b"key").seal(&id(), now);
        assert_eq!(sealer("agents/ops", b"key").open(&text), Some(id()));
        assert_eq!(sealer("agents/other", b"key").open(&text), None);
        assert_eq!(sealer("agents/ops", b"other").open(&text), None);
        assert!(!text.contains("ci-bot"));
    }

    #[test]
    fn a_damaged_id_does_not_open() {
        let sealer = Sealer::random("agents/ops");
        let text = sealer.seal(&id(), Instant::now());
        for at in 0..text.len() - 1 {
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            let mut damaged = text.clone();
            damaged.replace_range(at..=at, other);
            assert_eq!(sealer.open(&damaged), None, "at {at}");
        }
        for nonsense in ["", "AAAA", "%%", &text[..20]] {
            assert_eq!(sealer.open(nonsense), None);
        }
    }

    #[test]
    fn a_new_key_does_not_break_ids_while_it_spreads() {
        let start = Instant::now();
        let (ahead, behind) = (sealer("s", b"old"), sealer("s", b"old"));
        let before = ahead.seal(&id(), start);
        ahead.learn(b"new", start);
        assert_eq!(ahead.open(&before), Some(id()));
        assert_eq!(
            behind.open(&ahead.seal(&id(), start)),
            Some(id()),
            "the other replica has the old key only"
        );
        let late = ahead.seal(&id(), start + SPREAD);
        assert_eq!(sealer("s", b"new").open(&late), Some(id()));
    }
}
