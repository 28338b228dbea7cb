//! What `benches/` measures: the proving of credentials and decisions, as a request does them. Only with the feature
//! `bench`.
//!
//! A thin front: everything behind it is the code that a server runs, with nothing left out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::api::{JwtIssuerSpec, SigningKeyState};
use crate::authn::jwks::KeySet;
use crate::authn::jwt::{IssuerRules, Unverified, verify};
use crate::authn::token::{OwnTokens, SigningKey, SigningKeys};
use crate::authn::{ApiKey, Identity, KeyRecord, Method, Verifier, authenticate_key};
use crate::index::snapshot::Key;

mod policy;

pub use policy::{Policy, Question};

const RESOURCE: &str = "https://ops-mcp.agents.svc/mcp";
/// Keys that are presented in turn: as many in every case, so that the finding is compared and not how much of the keys
/// the processor still remembers.
const PRESENTED: usize = 10;

/// A server that knows many API keys.
pub struct ApiKeys {
    known: HashMap<String, Key>,
    presented: Vec<String>,
}

impl ApiKeys {
    /// Makes so many keys and keeps some of them to present.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let keys: Vec<ApiKey> = (0..count).map(key).collect();
        let step = count.div_ceil(PRESENTED).max(1);
        let presented = keys.iter().step_by(step).map(|key| key.expose().to_owned()).collect();
        let known = keys.iter().map(|key| (key.id().to_owned(), known(key))).collect();
        Self { known, presented }
    }

    /// Reads, finds, proves and judges a key that somebody presents: another one each turn.
    #[must_use]
    pub fn prove(&self, turn: usize, now: Timestamp) -> bool {
        let text = &self.presented[turn % self.presented.len()];
        let Ok(key) = ApiKey::parse(text) else { return false };
        let record = self.known.get(key.id()).map(|known| &known.record);
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        authenticate_key(&key, record).is_ok()
            && record.is_some_and(|record| record.usable(here, now).is_ok())
    }
}

fn key(number: usize) -> ApiKey {
    let scattered = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &number.to_le_bytes());
    let (mut id, mut secret) = ([0; 10], [0; 32]);
    id.copy_from_slice(&scattered.as_ref()[..10]);
    secret.copy_from_slice(scattered.as_ref());
    ApiKey::generate(id, secret)
}

fn known(key: &ApiKey) -> Key {
    let record = KeyRecord {
        verifier: Verifier::Sha256(key.digest()),
        name: key.id().to_owned(),
        identity: key.id().to_owned(),
        tenant: None,
        enabled: true,
        revoked: false,
        expires_at: None,
        opens_server: true,
        allowed: Vec::new(),
        rate_limit: None,
    };
    Key { record, held: Arc::default() }
}

/// A server that trusts one issuer of tokens.
pub struct Issuer {
    rules: IssuerRules,
    keys: KeySet,
}

impl Issuer {
    /// Trusts the issuer of this name with this key set; the audience is `audience`.
    #[must_use]
    pub fn new(issuer: &str, audience: &str, jwks: &[u8]) -> Option<Self> {
        let spec = JwtIssuerSpec { issuer: issuer.to_owned(), ..JwtIssuerSpec::default() };
        let rules = IssuerRules::from_spec(&spec, audience);
        let keys = KeySet::from_json(jwks, &rules.algorithms).ok()?;
        Some(Self { rules, keys })
    }

    /// Reads and proves a token.
    #[must_use]
    pub fn prove(&self, token: &str, now: Timestamp) -> bool {
        Unverified::parse(token).and_then(|token| verify(&token, &self.rules, &self.keys, now)).is_ok()
    }
}

/// A server with tokens of its own.
pub struct Endpoint(OwnTokens);

impl Endpoint {
    /// Makes a signing key.
    #[must_use]
    pub fn new(now: Timestamp) -> Option<Self> {
        let key = SigningKey { state: SigningKeyState::Active, ..SigningKey::generate([1; 8], now).ok()? };
        let json = serde_json::to_vec(&SigningKeys { keys: vec![key] }).ok()?;
        OwnTokens::from_json(&json).ok().map(Self)
    }

    /// Makes a token.
    #[must_use]
    pub fn mint(&self, now: Timestamp) -> Option<String> {
        let caller = Identity::new(Method::ApiKey, "ci-bot", "0123456789abcdef");
        self.0.mint(&caller, RESOURCE, None, SignedDuration::from_mins(15), now, [7; 16]).ok()
    }

    /// Reads and proves a token.
    #[must_use]
    pub fn prove(&self, token: &str, now: Timestamp) -> bool {
        Unverified::parse(token).and_then(|token| self.0.verify(&token, RESOURCE, now)).is_ok()
    }
}
