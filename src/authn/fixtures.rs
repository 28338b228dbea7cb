//! An issuer with a key of every kind, and somebody who would like to be it: made anew in every run of the tests.

use std::sync::OnceLock;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RsaKeyPair,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use super::jwks::KeySet;
use super::jwt::{IssuerRules, Unverified, verify};
use super::{Identity, Reason};
use crate::api::{JwtAlgorithm, JwtIssuerSpec, SecretKeyReference};

pub(super) const ISSUER: &str = "https://login.example.com";
pub(super) const AUDIENCE: &str = "https://ops-mcp.agents.svc/mcp";
/// 2026-01-01.
pub(super) const NOW: i64 = 1_767_225_600;

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that can sign.
pub(super) struct TestKey {
    pub(super) kid: String,
    pub(super) algorithm: Algorithm,
    pub(super) signing: EncodingKey,
    /// The public key, with `alg`; of a shared key nothing but its type.
    pub(super) jwk: Value,
}

impl TestKey {
    /// A new key; RSA keys of the same owner share one pair, because making one takes long.
    pub(super) fn generate(algorithm: Algorithm, kid: &str, rsa: &RsaPair) -> Self {
        let (signing, mut jwk) = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => {
                let (curve, name) = match algorithm {
                    Algorithm::ES256 => (&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
                    _ => (&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
                };
                let pair = EcdsaKeyPair::generate(curve).expect("a pair");
                let document = pair.to_pkcs8v1().expect("a document");
                let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
                let jwk = json!({"kty": "EC", "crv": name, "x": encode(x), "y": encode(y)});
                (EncodingKey::from_ec_der(document.as_ref()), jwk)
            }
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::generate().expect("a pair");
                let document = pair.to_pkcs8().expect("a document");
                let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())});
                (EncodingKey::from_ed_der(document.as_ref()), jwk)
            }
            Algorithm::HS256 => {
                let shared: Vec<u8> = (0..40_u8).map(|byte| byte.wrapping_mul(37) ^ 0x5a).collect();
                (EncodingKey::from_secret(&shared), json!({"kty": "oct"}))
            }
            _ => {
                let jwk = json!({"kty": "RSA", "n": encode(&rsa.modulus), "e": encode(&rsa.exponent)});
                (EncodingKey::from_rsa_der(&rsa.private), jwk)
            }
        };
        jwk["alg"] = format!("{algorithm:?}").into();
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        Self { kid: kid.to_owned(), algorithm, signing, jwk }
    }

    pub(super) fn header(&self) -> Value {
        json!({"alg": format!("{:?}", self.algorithm), "kid": self.kid, "typ": "JWT"})
    }

    /// A token of these texts, with a signature that fits.
    pub(super) fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, self.algorithm);
        format!("{message}.{}", signature.expect("a signature"))
    }

    /// A token with the usual header.
    pub(super) fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }
}

/// The DER and the public numbers of an RSA pair.
pub(super) struct RsaPair {
    pub(super) private: Vec<u8>,
    pub(super) modulus: Vec<u8>,
    pub(super) exponent: Vec<u8>,
}

impl RsaPair {
    pub(super) fn generate() -> Self {
        let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).expect("a pair");
        let document: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("a document");
        let read = RsaKeyPair::from_pkcs8(document.as_ref()).expect("a pair");
        let numbers = read.public_key();
        Self {
            // The library signs with PKCS#1, which PKCS#8 wraps: 26 bytes with keys of this size.
            private: document.as_ref()[26..].to_vec(),
            modulus: numbers.modulus().big_endian_without_leading_zero().to_vec(),
            exponent: numbers.exponent().big_endian_without_leading_zero().to_vec(),
        }
    }
}

/// The issuer, the servers' rules for it, and the forger.
pub(super) struct World {
    /// One key of each algorithm; the last is the shared one of HS256.
    pub(super) keys: Vec<TestKey>,
    /// The forger's keys, with the same ids.
    pub(super) forgers: Vec<TestKey>,
    pub(super) public: KeySet,
    pub(super) shared: KeySet,
    pub(super) public_rules: IssuerRules,
    pub(super) shared_rules: IssuerRules,
}

pub(super) const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::PS256,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
    Algorithm::HS256,
];

pub(super) fn spec() -> JwtIssuerSpec {
    JwtIssuerSpec { issuer: ISSUER.into(), ..JwtIssuerSpec::default() }
}

pub(super) fn key_set<'a>(keys: impl IntoIterator<Item = &'a TestKey>) -> KeySet {
    let keys: Vec<&Value> = keys.into_iter().map(|key| &key.jwk).collect();
    let json = json!({"keys": keys}).to_string();
    KeySet::from_json(json.as_bytes(), &IssuerRules::from_spec(&spec(), AUDIENCE).algorithms)
        .expect("a key set")
}

pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let make = || -> Vec<TestKey> {
            let rsa = RsaPair::generate();
            ALGORITHMS.map(|one| TestKey::generate(one, &format!("key-{one:?}"), &rsa)).into()
        };
        let keys = make();
        let mut forgers = make();
        let other = EncodingKey::from_secret(&[7; 40]);
        forgers.last_mut().expect("six keys").signing = other;
        let public = key_set(keys.iter().filter(|key| key.algorithm != Algorithm::HS256));
        let shared = KeySet::from_hmac(keys[5].signing.as_bytes()).expect("a shared key");
        let reference = SecretKeyReference { name: "issuer".into(), key: "hmac".into() };
        World {
            keys,
            forgers,
            public,
            shared,
            public_rules: IssuerRules::from_spec(&spec(), AUDIENCE),
            shared_rules: IssuerRules::from_spec(
                &JwtIssuerSpec { hmac_secret: Some(reference), ..spec() },
                AUDIENCE,
            ),
        }
    })
}

impl World {
    pub(super) fn key(&self, algorithm: Algorithm) -> &TestKey {
        self.keys.iter().find(|key| key.algorithm == algorithm).expect("one of each")
    }

    /// Reads and proves a token as a server does that trusts keys of this kind.
    pub(super) fn judge(&self, algorithm: Algorithm, token: &str) -> Result<Identity, Reason> {
        let (rules, keys) = match algorithm {
            Algorithm::HS256 => (&self.shared_rules, &self.shared),
            _ => (&self.public_rules, &self.public),
        };
        verify(&Unverified::parse(token)?, rules, keys, at(NOW))
    }
}

/// Claims that are accepted.
pub(super) fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW + 300, "nbf": NOW, "iat": NOW, "jti": "token-1",
        "groups": ["sre", "dev"], "scope": "openid k8s:pods:list",
    })
}

/// Claims with one of them in another way; None: without it.
pub(super) fn claims_with(name: &str, value: Option<Value>) -> Value {
    let mut claims = claims();
    let members = claims.as_object_mut().expect("an object");
    match value {
        Some(value) => members.insert(name.to_owned(), value),
        None => members.remove(name),
    };
    claims
}

/// Every algorithm that public keys may have.
pub(super) fn asymmetric() -> Vec<JwtAlgorithm> {
    world().public_rules.algorithms.clone()
}
