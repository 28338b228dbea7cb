//! Session ids of the SSE transport: sealed, so that only replicas of this server can make or read one.
//!
//! An id says where its stream lives and whose it is. The key comes from the private key that all replicas share; when
//! that changes, replicas see it at different times, so the old key seals for a while longer and opens for good. An id
//! names its key, so that one whose key is gone, which happens, is told from one that was tampered with.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::authn::Identity;

/// Time in which every replica has seen a new key: a Secret volume takes up to a minute or two.
const SPREAD: Duration = Duration::from_secs(180);
/// Keys that are kept.
const KEYS: usize = 3;
/// Bytes of the name of a key.
const NAME_LEN: usize = 8;

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

/// Why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenId {
    /// It has another form, or a key sealed it that is not known here: the process has been started again, or the key has
    /// been replaced long ago.
    Unknown,
    /// It names a key that is known, and that key did not seal it: not this text, or not for this server.
    Forged,
}

/// A key, its name, and since when it is known.
struct Key {
    since: Instant,
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

/// Seals and opens ids.
pub(super) struct Sealer {
    /// `<namespace>/<name>`: an id of another server does not open, whatever its key.
    context: String,
    keys: Mutex<Vec<Key>>,
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
        keys.push(derive(secret, now));
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
        let spread = keys.iter().rev().find(|key| now.duration_since(key.since) >= SPREAD);
        let Key { name, key, .. } = spread.or(keys.first()).expect("there is a key from the start");
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(self.context.as_bytes()),
            &mut sealed,
        )
        .expect("an id is far below the limit of the cipher");
        BASE64_URL_SAFE_NO_PAD.encode([&name[..], &nonce, &sealed].concat())
    }

    /// Reads an id that a replica of this server wrote.
    ///
    /// # Errors
    /// [`OpenId`] tells what is forged from what is not known any more.
    pub(super) fn open(&self, text: &str) -> Result<SessionId, OpenId> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| OpenId::Unknown)?;
        let (name, rest) = bytes.split_at_checked(NAME_LEN).ok_or(OpenId::Unknown)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(OpenId::Unknown)?;
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().rev().find(|key| key.name == name).ok_or(OpenId::Unknown)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenId::Unknown)?;
        let mut sealed = sealed.to_vec();
        let opened = key.key.open_in_place(nonce, Aad::from(self.context.as_bytes()), &mut sealed);
        // What opens and does not read is of another version of this program.
        serde_json::from_slice(opened.map_err(|_| OpenId::Forged)?).map_err(|_| OpenId::Unknown)
    }
}

/// Length of the name of a key.
struct NameLength;

impl KeyType for NameLength {
    fn len(&self) -> usize {
        NAME_LEN
    }
}

fn derive(secret: &[u8], since: Instant) -> Key {
    let extracted = Salt::new(HKDF_SHA256, b"portcullis").extract(secret);
    let expanded = extracted.expand(&[b"sse session id"], &AES_256_GCM).expect("the length is the cipher's");
    // Independent of the key, so that it may be seen.
    let named = extracted.expand(&[b"sse session key name"], NameLength).expect("the length is small");
    let mut name = [0; NAME_LEN];
    named.fill(&mut name).expect("the length is the same");
    Key { since, name, key: LessSafeKey::new(UnboundKey::from(expanded)) }
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
        assert_eq!(sealer("agents/ops", b"key").open(&text), Ok(id()));
        assert_eq!(sealer("agents/other", b"key").open(&text), Err(OpenId::Forged));
        assert_eq!(sealer("agents/ops", b"other").open(&text), Err(OpenId::Unknown));
        assert!(!text.contains("ci-bot"));
    }

    /// Characters that are the name of the key and nothing else; the next one has a part of it.
    const NAME_TEXT: usize = 10;

    #[test]
    fn a_damaged_id_does_not_open() {
        let sealer = Sealer::random("agents/ops");
        let text = sealer.seal(&id(), Instant::now());
        for at in 0..text.len() - 1 {
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            let mut damaged = text.clone();
            damaged.replace_range(at..=at, other);
            let error = sealer.open(&damaged).expect_err("it is damaged");
            let expected = if at < NAME_TEXT { OpenId::Unknown } else { OpenId::Forged };
            assert!(error == expected || at == NAME_TEXT, "{error:?} at {at}");
        }
        for nonsense in ["", "AAAA", "%%", &text[..20]] {
            assert_eq!(sealer.open(nonsense), Err(OpenId::Unknown));
        }
    }

    #[test]
    fn an_id_of_a_key_that_is_gone_is_unknown_and_not_forged() {
        let now = Instant::now();
        let sealer = sealer("s", b"first");
        let old = sealer.seal(&id(), now);
        for secret in [b"second", b"third!", b"fourth"] {
            assert_eq!(sealer.open(&old), Ok(id()));
            sealer.learn(secret, now);
        }
        assert_eq!(sealer.open(&old), Err(OpenId::Unknown));
        let restarted = Sealer::random("s");
        assert_eq!(restarted.open(&Sealer::random("s").seal(&id(), now)), Err(OpenId::Unknown));
    }

    #[test]
    fn a_new_key_does_not_break_ids_while_it_spreads() {
        let start = Instant::now();
        let (ahead, behind) = (sealer("s", b"old"), sealer("s", b"old"));
        let before = ahead.seal(&id(), start);
        ahead.learn(b"new", start);
        assert_eq!(ahead.open(&before), Ok(id()));
        assert_eq!(
            behind.open(&ahead.seal(&id(), start)),
            Ok(id()),
            "the other replica has the old key only"
        );
        let late = ahead.seal(&id(), start + SPREAD);
        assert_eq!(sealer("s", b"new").open(&late), Ok(id()));
    }
}
