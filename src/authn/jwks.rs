//! Keys that prove tokens: a key set of an issuer (RFC 7517), or the one shared key of HS256.
//!
//! Pure. What a key may be used for is settled here, once, when the set is read: a token can choose among the keys by id
//! and never what is done with them. Entries for other purposes are passed over; one that is weak, damaged or secret
//! spoils the whole set, because somebody must look at it.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;
use serde_json::{Map, Value};

use super::claims::{is_plain, parse_object};
use super::{Reason, jwt};
use crate::api::JwtAlgorithm;

/// Most entries of a key set.
const MAX_KEYS: usize = 64;
/// Most bytes of a key set.
const MAX_BYTES: usize = 1024 * 1024;
/// Fewest bytes of a shared key.
const MIN_SHARED: usize = 32;
/// Fewest different bytes of a shared key: 32 random bytes have more, even when they are written in hexadecimal.
const MIN_DIFFERENT: usize = 8;
/// Shared keys that stand in public documents and are long enough to be tried.
const PUBLISHED: &[&str] = &[
    "a-string-secret-at-least-256-bits-long",
    "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
];

/// Keys that prove the tokens of one issuer.
pub(crate) struct KeySet(Vec<Key>);

/// One key, with what it may be used for.
struct Key {
    /// Its `kid`. The shared key of HS256 has none.
    id: Option<String>,
    /// Algorithms that it may be used with; more than one only for RSA keys that do not say.
    algorithms: Vec<JwtAlgorithm>,
    key: DecodingKey,
}

/// Why a key set is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidKeySet {
    /// It is not a JSON object with a list `keys`, or a member stands twice.
    #[error("is not a key set in JSON")]
    Read,
    /// It is larger than any that is read.
    #[error("has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// It has more keys than any that is read.
    #[error("has more than {MAX_KEYS} keys")]
    TooMany,
    /// An entry holds a private or a shared key, which then is no secret any more.
    #[error("keys[{0}] holds a private or shared key")]
    Secret(usize),
    /// A member that the key needs is missing or damaged, or members contradict each other.
    #[error("keys[{0}] is damaged or contradicts itself")]
    Damaged(usize),
    /// An RSA key of fewer than 2048 or more than 8192 bits, or with an exponent below 65537.
    #[error("keys[{0}] is a weak RSA key")]
    Weak(usize),
    /// Two keys have the same id.
    #[error("keys[{0}] has the id of another key")]
    SameId(usize),
    /// Nothing in it may be used.
    #[error("has no key that may be used")]
    Empty,
    /// A shared key is too short.
    #[error("is shorter than {MIN_SHARED} bytes")]
    Short,
    /// A shared key is not random: it was published or repeats itself.
    #[error("is not a random key")]
    NotRandom,
}

impl KeySet {
    /// Reads a key set, with those of its keys that have one of these algorithms.
    ///
    /// # Errors
    /// [`InvalidKeySet`] says what is wrong with it.
    pub(crate) fn from_json(json: &[u8], allowed: &[JwtAlgorithm]) -> Result<Self, InvalidKeySet> {
        if json.len() > MAX_BYTES {
            return Err(InvalidKeySet::TooLarge);
        }
        let mut members = parse_object(json).ok_or(InvalidKeySet::Read)?;
        let Some(Value::Array(entries)) = members.remove("keys") else { return Err(InvalidKeySet::Read) };
        if entries.len() > MAX_KEYS {
            return Err(InvalidKeySet::TooMany);
        }
        let mut keys: Vec<Key> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let members = entry.as_object().ok_or(InvalidKeySet::Damaged(index))?;
            let Some(key) = read_key(members, allowed).map_err(|flaw| flaw.at(index))? else { continue };
            if key.id.is_some() && keys.iter().any(|other| other.id == key.id) {
                return Err(InvalidKeySet::SameId(index));
            }
            keys.push(key);
        }
        if keys.is_empty() { Err(InvalidKeySet::Empty) } else { Ok(Self(keys)) }
    }

    /// The set of the one shared key of HS256.
    ///
    /// # Errors
    /// [`InvalidKeySet`] when it is short, published or not random.
    pub(crate) fn from_hmac(shared: &[u8]) -> Result<Self, InvalidKeySet> {
        if shared.len() < MIN_SHARED {
            return Err(InvalidKeySet::Short);
        }
        let decoded = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes == shared);
        let trimmed = shared.trim_ascii();
        let published = PUBLISHED.iter().any(|text| text.as_bytes() == trimmed || decoded(text));
        let mut different = shared.to_vec();
        different.sort_unstable();
        different.dedup();
        if published || different.len() < MIN_DIFFERENT {
            return Err(InvalidKeySet::NotRandom);
        }
        let key = DecodingKey::from_secret(shared);
        Ok(Self(vec![Key { id: None, algorithms: vec![JwtAlgorithm::HS256], key }]))
    }

    /// A set of Ed25519 keys by their ids.
    ///
    /// # Errors
    /// [`InvalidKeySet`] when a key is none or two have the same id.
    pub(super) fn from_ed25519<'a>(
        keys: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, InvalidKeySet> {
        let mut set: Vec<Key> = Vec::new();
        for (index, (id, public)) in keys.enumerate() {
            if !is_plain(id) || ParsedPublicKey::new(&ED25519, public).is_err() {
                return Err(InvalidKeySet::Damaged(index));
            }
            if set.iter().any(|other| other.id.as_deref() == Some(id)) {
                return Err(InvalidKeySet::SameId(index));
            }
            let (id, key) = (Some(id.to_owned()), DecodingKey::from_ed_der(public));
            set.push(Key { id, algorithms: vec![JwtAlgorithm::EdDSA], key });
        }
        if set.len() > MAX_KEYS { Err(InvalidKeySet::TooMany) } else { Ok(Self(set)) }
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is a key of this id.
    #[cfg(test)]
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// Checks a signature: `text` is its base64url form.
    ///
    /// A token with an id is proved by the key of that id and no other, except by a shared key, which has none. A token
    /// without an id is proved by the one key that has its algorithm, if it is the only one.
    pub(super) fn prove(
        &self,
        id: Option<&str>,
        algorithm: JwtAlgorithm,
        message: &str,
        text: &str,
    ) -> Result<(), Reason> {
        let mut fitting = self.0.iter().filter(|key| key.answers_to(id)).peekable();
        fitting.peek().ok_or(Reason::UnknownSigningKey)?;
        let mut fitting = fitting.filter(|key| key.algorithms.contains(&algorithm));
        let key = fitting.next().ok_or(Reason::Algorithm)?;
        if fitting.next().is_some() {
            return Err(Reason::UnknownSigningKey);
        }
        let genuine = jsonwebtoken::crypto::verify(text, message.as_bytes(), &key.key, cipher(algorithm));
        if genuine.unwrap_or(false) { Ok(()) } else { Err(Reason::Signature) }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl Key {
    /// Whether a token that names this id, or none, may be proved by the key.
    fn answers_to(&self, id: Option<&str>) -> bool {
        id.is_none() || self.id.as_deref() == id || self.algorithms == [JwtAlgorithm::HS256]
    }
}

/// What is wrong with one entry.
enum Flaw {
    Secret,
    Damaged,
    Weak,
}

impl Flaw {
    fn at(self, index: usize) -> InvalidKeySet {
        match self {
            Flaw::Secret => InvalidKeySet::Secret(index),
            Flaw::Damaged => InvalidKeySet::Damaged(index),
            Flaw::Weak => InvalidKeySet::Weak(index),
        }
    }
}

/// Reads one entry; None for a key of another purpose, type or algorithm.
fn read_key(entry: &Map<String, Value>, allowed: &[JwtAlgorithm]) -> Result<Option<Key>, Flaw> {
    let text = |name: &str| match entry.get(name) {
        None => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or(Flaw::Damaged),
    };
    let kind = text("kty")?.ok_or(Flaw::Damaged)?;
    if entry.contains_key("d") || kind == "oct" {
        return Err(Flaw::Secret);
    }
    let operations = match entry.get("key_ops") {
        None => None,
        Some(Value::Array(operations)) => Some(operations),
        Some(_) => return Err(Flaw::Damaged),
    };
    if operations.is_some_and(|list| !list.iter().any(|operation| operation == "verify"))
        || text("use")?.is_some_and(|purpose| purpose != "sig")
    {
        return Ok(None);
    }
    let possible = match (kind, text("crv")?) {
        ("RSA", _) => jwt::RSA,
        ("EC", Some("P-256")) => &[JwtAlgorithm::ES256],
        ("EC", Some("P-384")) => &[JwtAlgorithm::ES384],
        ("OKP", Some("Ed25519")) => &[JwtAlgorithm::EdDSA],
        ("EC" | "OKP", None) => return Err(Flaw::Damaged),
        _ => return Ok(None),
    };
    let algorithms: Vec<JwtAlgorithm> = match text("alg")? {
        None => possible.to_vec(),
        Some(name) => match algorithm(name) {
            None => return Ok(None),
            Some(named) if possible.contains(&named) => vec![named],
            Some(_) => return Err(Flaw::Damaged),
        },
    };
    let algorithms: Vec<_> = algorithms.into_iter().filter(|one| allowed.contains(one)).collect();
    if algorithms.is_empty() {
        return Ok(None);
    }
    let id = text("kid")?.map(str::to_owned);
    if id.as_deref().is_some_and(|id| !is_plain(id)) {
        return Err(Flaw::Damaged);
    }
    let bytes = |name: &str| {
        let text = text(name)?.ok_or(Flaw::Damaged)?;
        BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Flaw::Damaged)
    };
    let key = match possible {
        [JwtAlgorithm::ES256] => elliptic(&bytes("x")?, &bytes("y")?, 32, &ECDSA_P256_SHA256_FIXED)?,
        [JwtAlgorithm::ES384] => elliptic(&bytes("x")?, &bytes("y")?, 48, &ECDSA_P384_SHA384_FIXED)?,
        [JwtAlgorithm::EdDSA] => {
            let public = bytes("x")?;
            ParsedPublicKey::new(&ED25519, &public).map_err(|_| Flaw::Damaged)?;
            DecodingKey::from_ed_der(&public)
        }
        _ => rsa(&bytes("n")?, &bytes("e")?)?,
    };
    Ok(Some(Key { id, algorithms, key }))
}

/// A point of a curve, checked to lie on it.
fn elliptic(
    x: &[u8],
    y: &[u8],
    length: usize,
    curve: &'static dyn VerificationAlgorithm,
) -> Result<DecodingKey, Flaw> {
    if x.len() != length || y.len() != length {
        return Err(Flaw::Damaged);
    }
    let point = [&[4], x, y].concat();
    ParsedPublicKey::new(curve, &point).map_err(|_| Flaw::Damaged)?;
    Ok(DecodingKey::from_ec_der(&point))
}

/// An RSA key of sound size. Some issuers write a zero before the modulus; it does not count.
fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, Flaw> {
    let significant = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let (modulus, exponent) = (&modulus[significant(modulus)..], &exponent[significant(exponent)..]);
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    let size = exponent.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()));
    if !(2048..=8192).contains(&bits) || size.is_some_and(|size| size < 65537) {
        return Err(Flaw::Weak);
    }
    // An even number is no exponent and no modulus; an exponent of more than 32 bits only costs time.
    let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    if !odd(modulus) || !odd(exponent) || size.is_none_or(|size| size > u32::MAX.into()) {
        return Err(Flaw::Damaged);
    }
    RsaPublicKeyComponents { n: modulus, e: exponent }
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .map_err(|_| Flaw::Damaged)?;
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

/// The algorithm of this name, if it is one that tokens may have.
pub(super) fn algorithm(name: &str) -> Option<JwtAlgorithm> {
    let name: serde::de::value::StrDeserializer<'_, ValueError> = name.into_deserializer();
    JwtAlgorithm::deserialize(name).ok()
}

/// The library's word for an algorithm.
fn cipher(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::RS256 => Algorithm::RS256,
        JwtAlgorithm::RS384 => Algorithm::RS384,
        JwtAlgorithm::RS512 => Algorithm::RS512,
        JwtAlgorithm::PS256 => Algorithm::PS256,
        JwtAlgorithm::PS384 => Algorithm::PS384,
        JwtAlgorithm::PS512 => Algorithm::PS512,
        JwtAlgorithm::ES256 => Algorithm::ES256,
        JwtAlgorithm::ES384 => Algorithm::ES384,
        JwtAlgorithm::EdDSA => Algorithm::EdDSA,
        JwtAlgorithm::HS256 => Algorithm::HS256,
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
