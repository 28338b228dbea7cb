//! JSON Web Tokens of issuers that a server trusts (RFC 7519, 8725, 9068).
//!
//! Pure: keys and the time are arguments. A token is read without being believed ([`Unverified`]), then proved by a key
//! that its issuer has, with an algorithm that this key has, and only then its claims say who is calling.

use std::fmt;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::claims::{Claims, LEEWAY, is_plain, parse_object};
use super::jwks::{KeySet, algorithm};
use super::{ANONYMOUS, BASIC, CERTIFICATE, Identity, KUBERNETES, Method, Reason};
use crate::api::{ClaimsSpec, JwtAlgorithm, JwtIssuerSpec, ScopesMode};

/// Most bytes of a token.
pub(crate) const MAX_LENGTH: usize = 16 * 1024;
/// Fewest bytes of a token.
const MIN_LENGTH: usize = 32;
/// How long a token of an issuer may last.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// Members of a header that bring a key along, or an address to fetch one from.
const KEYS_ALONG: [&str; 4] = ["jwk", "jku", "x5c", "x5u"];
/// What a trusted issuer's token may call itself; the case does not matter.
const TYPES: [&str; 3] = ["JWT", "at+jwt", "application/at+jwt"];
/// Beginnings of the scopes that mean something here.
const SCOPES: [&str; 2] = ["k8s:", "mcp:"];

/// Algorithms of RSA keys.
pub(super) const RSA: &[JwtAlgorithm] = &[
    JwtAlgorithm::RS256,
    JwtAlgorithm::RS384,
    JwtAlgorithm::RS512,
    JwtAlgorithm::PS256,
    JwtAlgorithm::PS384,
    JwtAlgorithm::PS512,
];
/// Algorithms of other keys that come in pairs.
const OTHERS: &[JwtAlgorithm] = &[JwtAlgorithm::ES256, JwtAlgorithm::ES384, JwtAlgorithm::EdDSA];

/// A token whose form is right and of which nothing is proved yet.
pub(crate) struct Unverified<'a> {
    /// What was signed: header and claims, as they came.
    message: &'a str,
    signature: &'a str,
    /// None: not one of those that any key may have.
    algorithm: Option<JwtAlgorithm>,
    key_id: Option<String>,
    media_type: Option<String>,
    claims: Claims,
}

impl<'a> Unverified<'a> {
    /// Reads a token: three parts in strict base64url, of which two are JSON objects.
    ///
    /// # Errors
    /// [`Reason`] says why it can be no token that anybody would accept.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Reason> {
        if text.len() > MAX_LENGTH {
            return Err(Reason::TooLarge);
        }
        if text.len() < MIN_LENGTH {
            return Err(Reason::MalformedToken);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Reason::MalformedToken);
        };
        let decode = |part| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::MalformedToken);
        let header = parse_object(&decode(header)?).ok_or(Reason::MalformedToken)?;
        if header.contains_key("crit") {
            return Err(Reason::CriticalHeader);
        }
        if KEYS_ALONG.iter().any(|member| header.contains_key(*member)) {
            return Err(Reason::MalformedToken);
        }
        let text_of = |member: &str| match header.get(member) {
            None => Ok(None),
            Some(Value::String(text)) if is_plain(text) => Ok(Some(text.clone())),
            Some(_) => Err(Reason::MalformedToken),
        };
        let name = text_of("alg")?.ok_or(Reason::MalformedToken)?;
        if name.eq_ignore_ascii_case("none") {
            return Err(Reason::Algorithm);
        }
        let claims = Claims::parse(&decode(claims)?).ok_or(Reason::MalformedToken)?;
        if decode(signature)?.is_empty() {
            return Err(Reason::MalformedToken);
        }
        Ok(Self {
            message: text.rsplit_once('.').ok_or(Reason::MalformedToken)?.0,
            signature,
            algorithm: algorithm(&name),
            key_id: text_of("kid")?,
            media_type: text_of("typ")?,
            claims,
        })
    }

    /// Who claims to have made it; empty when that is missing or no text. Good only for choosing who is to be asked.
    pub(crate) fn issuer(&self) -> &str {
        self.claims.text("iss").ok().flatten().unwrap_or_default()
    }

    /// The key by which it wants to be proved.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// What it calls itself.
    pub(super) fn media_type(&self) -> Option<&str> {
        self.media_type.as_deref()
    }

    /// Proves the signature and gives the claims, which still have to be judged.
    pub(super) fn prove(&self, keys: &KeySet, allowed: &[JwtAlgorithm]) -> Result<&Claims, Reason> {
        let algorithm = self.algorithm.filter(|algorithm| allowed.contains(algorithm));
        let algorithm = algorithm.ok_or(Reason::Algorithm)?;
        keys.prove(self.key_id(), algorithm, self.message, self.signature)?;
        Ok(&self.claims)
    }

    /// Id of a token that has none: of what was signed, because some signatures can be rewritten without the key.
    fn fingerprint(&self) -> String {
        let digest = digest::digest(&digest::SHA256, self.message.as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(&digest.as_ref()[..12])
    }
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unverified({:?}, {:?})", self.issuer(), self.key_id)
    }
}

/// What a server asks of the tokens of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssuerRules {
    /// The `iss` of its tokens.
    pub(crate) issuer: String,
    /// What `aud` must name, one of these.
    pub(crate) audiences: Vec<String>,
    /// Algorithms that its keys may have.
    pub(crate) algorithms: Vec<JwtAlgorithm>,
    /// Which claims say who is calling.
    pub(crate) claims: ClaimsSpec,
    /// Whether a token without scopes of ours may do nothing.
    pub(crate) scopes: ScopesMode,
}

impl IssuerRules {
    /// The rules that a server's spec makes. HS256 counts with a shared key and with nothing else, whatever the spec
    /// lists, because a public key must never be taken for a shared one.
    pub(crate) fn from_spec(spec: &JwtIssuerSpec, default_audience: &str) -> Self {
        let shared = spec.hmac_secret.is_some();
        let listed =
            |algorithm: &JwtAlgorithm| spec.algorithms.is_empty() || spec.algorithms.contains(algorithm);
        let possible = if shared { vec![JwtAlgorithm::HS256] } else { [RSA, OTHERS].concat() };
        let audiences = match &spec.audiences[..] {
            [] => vec![default_audience.to_owned()],
            audiences => audiences.to_vec(),
        };
        Self {
            issuer: spec.issuer.clone(),
            audiences,
            algorithms: possible.into_iter().filter(listed).collect(),
            claims: spec.claims.clone(),
            scopes: spec.scopes,
        }
    }
}

/// Proves a token of an issuer and says who is calling.
///
/// # Errors
/// [`Reason`] says why it proves nothing.
pub(crate) fn verify(
    token: &Unverified<'_>,
    rules: &IssuerRules,
    keys: &KeySet,
    now: Timestamp,
) -> Result<Identity, Reason> {
    let typed = |name: &str| TYPES.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
    if !token.media_type().is_none_or(typed) {
        return Err(Reason::TokenType);
    }
    let claims = token.prove(keys, &rules.algorithms)?;
    let issuer = claims.required_text("iss")?;
    if issuer != rules.issuer || [KUBERNETES, BASIC, CERTIFICATE, ANONYMOUS].contains(&issuer) {
        return Err(Reason::UnknownIssuer);
    }
    let audiences = claims.texts("aud")?.ok_or(Reason::Claim)?;
    let ours = |audience: &&str| rules.audiences.iter().any(|own| same_audience(own, audience));
    if !audiences.iter().any(ours) {
        return Err(Reason::Audience);
    }
    let validity = claims.validity(now, LONGEST)?;
    let names = &rules.claims;
    let subject = claims.required_text(&names.user)?;
    let credential_id = claims.text("jti")?.map_or_else(|| token.fingerprint(), str::to_owned);
    // Where tenants are told apart by a claim, a token without it belongs to nobody.
    let tenant = names.tenant.as_deref().map(|name| claims.required_text(name)).transpose()?;
    let groups = claims.texts(&names.groups)?.unwrap_or_default();
    Ok(Identity {
        issuer: Some(issuer.to_owned()),
        groups: groups.into_iter().map(str::to_owned).collect(),
        tenant: tenant.map(str::to_owned),
        scopes: scopes(claims, &names.scopes, rules.scopes)?,
        issued_at: validity.issued_at,
        expires_at: Some(validity.expires_at.checked_add(LEEWAY).map_err(|_| Reason::Claim)?),
        ..Identity::new(Method::Jwt, subject, credential_id)
    })
}

/// Scopes that narrow the caller: those that mean something here.
fn scopes(claims: &Claims, name: &str, mode: ScopesMode) -> Result<Option<Vec<String>>, Reason> {
    let words = claims.words(name)?.unwrap_or_default();
    let ours: Vec<String> = words.into_iter().filter(|word| is_scope(word)).map(str::to_owned).collect();
    Ok(match mode {
        ScopesMode::Optional if ours.is_empty() => None,
        ScopesMode::Optional | ScopesMode::Required => Some(ours),
    })
}

/// Whether a scope is one of those that mean something here.
pub(super) fn is_scope(word: &str) -> bool {
    SCOPES.iter().any(|start| word.starts_with(start)) && is_plain(word) && !word.contains(' ')
}

/// Whether two audiences are the same: exactly, but for the case of a URL's scheme and host (RFC 3986, 6.2.2.1).
fn same_audience(own: &str, claimed: &str) -> bool {
    let parts = |url: &str| {
        let host = url.find("://")? + 3;
        Some(url[host..].find(['/', '?', '#']).map_or(url.len(), |end| host + end))
    };
    match (parts(own), parts(claimed)) {
        (Some(a), Some(b)) if a == b => {
            own[..a].eq_ignore_ascii_case(&claimed[..b]) && own[a..] == claimed[b..]
        }
        _ => own == claimed,
    }
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
