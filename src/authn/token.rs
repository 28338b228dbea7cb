//! The endpoint's own tokens: short, signed with Ed25519, for this endpoint only (RFC 9068).
//!
//! Pure: keys, the time and randomness are arguments, but for the making of a signing key. The keys live in a Secret,
//! newest last: a pending one verifies everywhere before it signs, a retiring one verifies until its last token has
//! ended. A token tells which credential it was made for, and ends with it.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::claims::{Claims, LEEWAY};
use super::jwks::{InvalidKeySet, KeySet};
use super::jwt::{Unverified, is_scope};
use super::{Identity, Method, Origin, Reason};
use crate::api::{JwtAlgorithm, SigningKeyState};

/// How long a token may last.
pub(crate) const LONGEST: SignedDuration = SignedDuration::from_hours(1);
/// What a token calls itself.
const MEDIA_TYPE: &str = "at+jwt";

/// The keys of a server's own tokens, as they stand in its Secret.
#[derive(Serialize, Deserialize, Clone, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct SigningKeys {
    /// Newest last; at most one of them signs.
    pub(crate) keys: Vec<SigningKey>,
}

/// One signing key. It has no `Debug`: it is a secret.
#[derive(Serialize, Deserialize, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SigningKey {
    /// Its id, the `kid` of tokens.
    pub(crate) kid: String,
    /// PKCS#8 in base64.
    pub(crate) private_key: String,
    /// The public key in base64url: the `x` of its JWK.
    pub(crate) public_key: String,
    /// When it was made.
    pub(crate) created_at: Timestamp,
    /// Where it is in its life.
    pub(crate) state: SigningKeyState,
    /// From when it verifies no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<Timestamp>,
}

/// A signing key could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot make a signing key")]
pub(crate) struct GenerateSigningKey;

/// Why the keys of own tokens are refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidSigningKeys {
    /// They are not in the form of [`SigningKeys`]. The cause is left out: it could quote a secret.
    #[error("is not a list of signing keys in JSON")]
    Read,
    /// A private key is damaged or does not belong to its public key.
    #[error("keys[{0}] is damaged")]
    Damaged(usize),
    /// More than one key would sign.
    #[error("has more than one active key")]
    TwoActive,
    /// The public keys cannot be used.
    #[error("has public keys that cannot be used")]
    Public(#[source] InvalidKeySet),
}

/// Why no token is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MintToken {
    /// No key signs at the moment.
    #[error("no signing key is active")]
    NoKey,
    /// The caller was proved in a way that tokens are not made for: by a token, or not at all.
    #[error("tokens are not made for this kind of credential")]
    Method,
    /// A scope has no meaning here or goes beyond those of the credential.
    #[error("a scope is unknown or goes beyond the credential")]
    Scope,
    /// The credential ends before a token could be used.
    #[error("the credential is about to end")]
    Ended,
    /// The caller has names that no token may hold, or more groups and scopes than one has room for.
    #[error("the token would not be accepted")]
    Unusable,
}

impl SigningKey {
    /// Makes a key that is to be published first and signs later.
    ///
    /// # Errors
    /// [`GenerateSigningKey`] when the source of randomness fails.
    pub(crate) fn generate(kid: [u8; 8], now: Timestamp) -> Result<Self, GenerateSigningKey> {
        let pair = Ed25519KeyPair::generate().map_err(|_| GenerateSigningKey)?;
        let document = pair.to_pkcs8().map_err(|_| GenerateSigningKey)?;
        Ok(Self {
            kid: HEXLOWER.encode(&kid),
            private_key: BASE64_STANDARD.encode(document.as_ref()),
            public_key: BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
            created_at: now,
            state: SigningKeyState::Pending,
            not_after: None,
        })
    }

    /// The pair, if it is whole and belongs together.
    fn pair(&self) -> Option<Ed25519KeyPair> {
        let document = BASE64_STANDARD.decode(&self.private_key).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8(&document).ok()?;
        (BASE64_URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()) == self.public_key).then_some(pair)
    }
}

/// The keys of own tokens, ready for use.
pub(crate) struct OwnTokens {
    keys: KeySet,
    published: Vec<Published>,
    signer: Option<Signer>,
}

/// The public half of a key.
struct Published {
    kid: String,
    public_key: String,
    not_after: Option<Timestamp>,
}

/// The key that signs.
struct Signer {
    kid: String,
    pair: Ed25519KeyPair,
}

/// The claim that says what a token was made for.
#[derive(Serialize)]
struct MadeFor<'a> {
    method: Method,
    credential_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

/// Members of [`MadeFor`].
const MADE_FOR: [&str; 6] = ["method", "credential_id", "issuer", "groups", "tenant", "key"];

impl OwnTokens {
    /// Reads the keys from the entry of their Secret.
    ///
    /// # Errors
    /// [`InvalidSigningKeys`] says what is wrong with them.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, InvalidSigningKeys> {
        let list: SigningKeys = serde_json::from_slice(json).map_err(|_| InvalidSigningKeys::Read)?;
        let mut signer = None;
        for (index, key) in list.keys.iter().enumerate() {
            let pair = key.pair().ok_or(InvalidSigningKeys::Damaged(index))?;
            if key.state != SigningKeyState::Active {
                continue;
            }
            if signer.replace(Signer { kid: key.kid.clone(), pair }).is_some() {
                return Err(InvalidSigningKeys::TwoActive);
            }
        }
        let publics: Vec<Vec<u8>> = list
            .keys
            .iter()
            .map(|key| BASE64_URL_SAFE_NO_PAD.decode(&key.public_key))
            .collect::<Result<_, _>>()
            .map_err(|_| InvalidSigningKeys::Read)?;
        let named = list.keys.iter().zip(&publics).map(|(key, public)| (key.kid.as_str(), public.as_slice()));
        let keys = KeySet::from_ed25519(named).map_err(InvalidSigningKeys::Public)?;
        let published = list.keys.into_iter().map(|key| Published {
            kid: key.kid,
            public_key: key.public_key,
            not_after: key.not_after,
        });
        Ok(Self { keys, published: published.collect(), signer })
    }

    /// Id of the key that signs.
    pub(crate) fn signing_key(&self) -> Option<&str> {
        self.signer.as_ref().map(|signer| signer.kid.as_str())
    }

    /// Ids of the keys that verify.
    pub(crate) fn verification_keys(&self) -> Vec<String> {
        self.published.iter().map(|key| key.kid.clone()).collect()
    }

    /// The public keys as a key set (RFC 7517, 8037).
    pub(crate) fn jwks(&self) -> Value {
        let keys = self.published.iter().map(|key| {
            json!({"kty": "OKP", "crv": "Ed25519", "x": key.public_key, "kid": key.kid, "use": "sig", "alg": "EdDSA"})
        });
        json!({"keys": keys.collect::<Vec<_>>()})
    }

    /// Makes a token for a proved caller. It lasts as long as asked for, an hour at most, and never longer than the
    /// credential that it is made for; its scopes never go beyond those of the credential.
    ///
    /// # Errors
    /// [`MintToken`] says why there is none.
    pub(crate) fn mint(
        &self,
        identity: &Identity,
        resource: &str,
        scopes: Option<Vec<String>>,
        lifetime: SignedDuration,
        now: Timestamp,
        jti: [u8; 16],
    ) -> Result<String, MintToken> {
        let signer = self.signer.as_ref().ok_or(MintToken::NoKey)?;
        if !is_origin(identity.method) {
            return Err(MintToken::Method);
        }
        let scopes = narrow(identity.scopes.as_deref(), scopes)?;
        // Whole seconds, rounded down; the tolerance at the end must not outlast the credential either.
        let left = identity.expires_at.map(|end| end.duration_since(now) - LEEWAY);
        let lifetime = left.into_iter().fold(lifetime.min(LONGEST), SignedDuration::min).as_secs();
        if lifetime <= 0 {
            return Err(MintToken::Ended);
        }
        let made_for = MadeFor {
            method: identity.method,
            credential_id: &identity.credential_id,
            issuer: identity.issuer.as_deref(),
            groups: &identity.groups,
            tenant: identity.tenant.as_deref(),
            key: identity.key.as_deref(),
        };
        let start = now.as_second();
        let mut claims = json!({
            "iss": resource, "aud": resource, "sub": identity.subject, "exp": start + lifetime, "nbf": start,
            "iat": start, "jti": HEXLOWER.encode(&jti), "pcl": made_for,
        });
        if let Some(scopes) = scopes {
            claims["scope"] = scopes.join(" ").into();
        }
        let header = json!({"alg": "EdDSA", "kid": signer.kid, "typ": MEDIA_TYPE});
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(signer.pair.sign(message.as_bytes()).as_ref());
        let token = format!("{message}.{signature}");
        // Nobody is given a token that would be refused: its own reader is asked.
        let accepted = Unverified::parse(&token).and_then(|token| self.verify(&token, resource, now));
        if accepted.is_ok() { Ok(token) } else { Err(MintToken::Unusable) }
    }

    /// Proves a token of this endpoint's own and says who is calling.
    ///
    /// # Errors
    /// [`Reason`] says why it proves nothing.
    pub(crate) fn verify(
        &self,
        token: &Unverified<'_>,
        resource: &str,
        now: Timestamp,
    ) -> Result<Identity, Reason> {
        if token.media_type() != Some(MEDIA_TYPE) {
            return Err(Reason::TokenType);
        }
        let kid = token.key_id().ok_or(Reason::UnknownSigningKey)?;
        let claims = token.prove(&self.keys, &[JwtAlgorithm::EdDSA])?;
        let ended = |key: &Published| key.kid == kid && key.not_after.is_some_and(|end| end <= now);
        if self.published.iter().any(ended) {
            return Err(Reason::UnknownSigningKey);
        }
        if claims.required_text("iss")? != resource {
            return Err(Reason::UnknownIssuer);
        }
        if claims.required_text("aud")? != resource {
            return Err(Reason::Audience);
        }
        let validity = claims.validity(now, LONGEST)?;
        if validity.not_before.is_none() || validity.issued_at.is_none() {
            return Err(Reason::Claim);
        }
        let subject = claims.required_text("sub")?;
        let made_for = made_for(claims)?;
        let issuer = made_for.text("issuer")?.map(str::to_owned);
        let groups = made_for.texts("groups")?.unwrap_or_default();
        let words = claims.words("scope")?;
        let scopes =
            words.map(|words| words.into_iter().filter(|word| is_scope(word)).map(str::to_owned).collect());
        let origin = Origin {
            method: origin_method(&made_for)?,
            credential_id: made_for.required_text("credential_id")?.to_owned(),
        };
        Ok(Identity {
            issuer,
            groups: groups.into_iter().map(str::to_owned).collect(),
            tenant: made_for.text("tenant")?.map(str::to_owned),
            scopes,
            origin: Some(origin),
            key: made_for.text("key")?.map(str::to_owned),
            issued_at: validity.issued_at,
            expires_at: Some(validity.expires_at.checked_add(LEEWAY).map_err(|_| Reason::Claim)?),
            ..Identity::new(Method::Token, subject, claims.required_text("jti")?)
        })
    }
}

impl fmt::Debug for OwnTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnTokens({:?}, signing: {:?})", self.keys, self.signing_key())
    }
}

/// The claim `pcl`, with members that are known and no others.
fn made_for(claims: &Claims) -> Result<Claims, Reason> {
    let made_for = claims.object("pcl")?.ok_or(Reason::Claim)?;
    if made_for.names().all(|name| MADE_FOR.contains(&name)) { Ok(made_for) } else { Err(Reason::Claim) }
}

fn origin_method(made_for: &Claims) -> Result<Method, Reason> {
    let method = made_for.value("method").ok_or(Reason::Claim)?;
    let method = Method::deserialize(method).map_err(|_| Reason::Claim)?;
    if is_origin(method) { Ok(method) } else { Err(Reason::Claim) }
}

/// Whether tokens may be made for callers proved like this: a token must not beget tokens.
fn is_origin(method: Method) -> bool {
    match method {
        Method::ApiKey | Method::Jwt | Method::ServiceAccount | Method::Basic | Method::ClientCertificate => {
            true
        }
        Method::Token | Method::Anonymous | Method::Operator => false,
    }
}

/// The scopes of a token: those asked for if the credential has them, or else the credential's own.
fn narrow(held: Option<&[String]>, asked: Option<Vec<String>>) -> Result<Option<Vec<String>>, MintToken> {
    let Some(asked) = asked else { return Ok(held.map(<[String]>::to_vec)) };
    let granted = |scope: &String| is_scope(scope) && held.is_none_or(|held| held.contains(scope));
    if asked.iter().all(granted) { Ok(Some(asked)) } else { Err(MintToken::Scope) }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
