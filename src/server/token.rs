//! `POST /auth/token`: a short token of the endpoint's own for another credential, and the public keys of such tokens.
//!
//! The credential comes in the headers, as everywhere; the body may ask for less. Names and answers are those of RFC 8693
//! and RFC 6749. A token leaves only after its id is on record; the token itself stands nowhere.

use axum::body::Body;
use axum::extract::Query;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;

use super::about::public;
use super::request::Caller;
use super::transport::{Endpoint, json, read, text};
use crate::audit::{Event, Kind, Outcome};
use crate::authn::claims::LEEWAY;
use crate::authn::jwt::Unverified;
use crate::authn::token::MintToken;
use crate::authn::{Identity, Method};
use crate::authz::permission::Pattern;

/// Path of the exchange.
pub(super) const TOKEN: &str = "/auth/token";
/// Path of the public keys.
pub(super) const KEYS: &str = "/.well-known/jwks.json";
/// Word for it in the audit.
const ISSUE: &str = "token/issue";
/// Most bytes of what is asked for.
const BODY_LIMIT: usize = 16 << 10;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// What a caller asks for, each part of which may be left out. What is not known is not looked at (RFC 6749, 3.2).
#[derive(Debug, Default, Deserialize)]
struct Asked {
    grant_type: Option<String>,
    scope: Option<String>,
    expires_in: Option<i64>,
    resource: Option<String>,
    audience: Option<String>,
    requested_token_type: Option<String>,
    /// The credential is in the headers, so that there is one place for it.
    subject_token: Option<serde::de::IgnoredAny>,
    actor_token: Option<serde::de::IgnoredAny>,
}

/// Why there is no token: the code of RFC 6749, 5.2, or RFC 8693, 2.2.2, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    what: &'static str,
}

impl Refusal {
    const fn new(code: &'static str, what: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, what }
    }

    const fn unavailable(what: &'static str) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "temporarily_unavailable", what }
    }
}

impl From<MintToken> for Refusal {
    fn from(error: MintToken) -> Self {
        match error {
            MintToken::NoKey => Self::unavailable("there is no key to sign with yet"),
            MintToken::Method => METHOD,
            MintToken::Scope => SCOPE,
            MintToken::Ended => Self::new("invalid_grant", "the credential is about to end"),
            MintToken::Unusable => Self::new("invalid_request", "a token for this caller would be too large"),
        }
    }
}

const METHOD: Refusal = Refusal::new(
    "unauthorized_client",
    "tokens are given for API keys, passwords and the tokens of ServiceAccounts only",
);
const SCOPE: Refusal =
    Refusal::new("invalid_scope", "scopes are permissions such as k8s:pods:list, and only narrow");

/// A token and what is to be said of it.
struct Issued {
    token: String,
    /// The identity that the token proves.
    identity: Identity,
    seconds: i64,
}

impl Endpoint {
    /// Gives a token to a proved caller.
    pub(super) async fn token(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let asked = match read(body, BODY_LIMIT).await {
            Ok(body) => asked(&parts.headers, &body),
            Err(_) => Err(Refusal::new("invalid_request", "the body did not come in whole, or is too large")),
        };
        let Ok(caller) = self.driver.authenticate_again(caller).await else {
            return self.unauthorized();
        };
        if let Some(refused) = self.refuse_unserved(&caller, ISSUE).await {
            return refused;
        }
        match asked.and_then(|asked| self.issue(&caller, &asked)) {
            Ok(issued) => self.hand_over(&caller, issued).await,
            Err(refusal) => self.refuse_token(&caller, refusal).await,
        }
    }

    /// The public keys of the endpoint's own tokens, for whoever wants to check one.
    pub(super) fn keys(&self) -> Response<Body> {
        match self.driver.core.authenticator.own_tokens() {
            Some(tokens) => public(&tokens.jwks()),
            None => text(StatusCode::SERVICE_UNAVAILABLE, "there are no keys yet"),
        }
    }

    fn issue(&self, caller: &Caller, asked: &Asked) -> Result<Issued, Refusal> {
        if !matches!(caller.identity.method, Method::ApiKey | Method::Basic | Method::ServiceAccount) {
            return Err(METHOD);
        }
        let authenticator = &self.driver.core.authenticator;
        let resource = authenticator.resource(&caller.snapshot);
        let scopes = check(asked, &resource)?;
        let unavailable = Refusal::unavailable("there is no key to sign with yet");
        let server = caller.snapshot.server.as_ref().ok_or(unavailable)?;
        let longest = i64::from(server.spec.authentication.tokens.lifetime_seconds);
        let lifetime =
            SignedDuration::from_secs(asked.expires_in.map_or(longest, |asked| asked.min(longest)));
        let tokens = authenticator.own_tokens().ok_or(unavailable)?;
        let mut jti = [0; 16];
        aws_lc_rs::rand::fill(&mut jti).expect("the system has randomness");
        let now = Timestamp::now();
        let token = tokens.mint(&caller.identity, &resource, scopes, lifetime, now, jti)?;
        let proved = Unverified::parse(&token).and_then(|token| tokens.verify(&token, &resource, now));
        let identity = proved.map_err(|_| Refusal::from(MintToken::Unusable))?;
        let end = identity.expires_at.map_or(now, |end| end - LEEWAY);
        Ok(Issued { token, identity, seconds: end.as_second() - now.as_second() })
    }

    /// Records that there is a token, and only then lets it go.
    async fn hand_over(&self, caller: &Caller, issued: Issued) -> Response<Body> {
        let Issued { token, identity, seconds } = issued;
        let scope = identity.scopes.map(|scopes| scopes.join(" "));
        let mut event = Event {
            event_type: Kind::Authentication,
            ..self.event_of(caller, ISSUE, Outcome::Success, "issued")
        };
        event.metadata.insert("jti".to_owned(), identity.credential_id);
        event.metadata.insert("expires_in".to_owned(), seconds.to_string());
        event.metadata.extend(scope.clone().map(|scope| ("scope".to_owned(), scope)));
        if !self.driver.core.record(event).await {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the request could not be recorded in the audit");
        }
        let mut answer = json!({
            "access_token": token,
            "token_type": "Bearer",
            "issued_token_type": ACCESS_TOKEN,
            "expires_in": seconds,
        });
        if let Some(scope) = scope {
            answer["scope"] = scope.into();
        }
        json(StatusCode::OK, &answer)
    }

    async fn refuse_token(&self, caller: &Caller, refusal: Refusal) -> Response<Body> {
        let mut event = Event {
            event_type: Kind::Authentication,
            ..self.event_of(caller, ISSUE, Outcome::Failure, refusal.code)
        };
        event.error_message = Some(refusal.what.to_owned());
        self.driver.core.record(event).await;
        json(refusal.status, &json!({"error": refusal.code, "error_description": refusal.what}))
    }
}

/// Reads what is asked for, from JSON or a form. Nothing asks for the default.
fn asked(headers: &HeaderMap, body: &[u8]) -> Result<Asked, Refusal> {
    if body.is_empty() {
        return Ok(Asked::default());
    }
    let unreadable = Refusal::new("invalid_request", "the body is not what its type says");
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        serde_json::from_slice(body).map_err(|_| unreadable)
    } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        // A form is written as a query is.
        let uri = Uri::try_from([b"/?", body].concat()).map_err(|_| unreadable)?;
        Query::try_from_uri(&uri).map(|Query(asked)| asked).map_err(|_| unreadable)
    } else {
        Err(Refusal::new("invalid_request", "the body must be JSON or a form"))
    }
}

/// Checks what is asked for, and gives the scopes.
fn check(asked: &Asked, resource: &str) -> Result<Option<Vec<String>>, Refusal> {
    if asked.grant_type.as_deref().is_some_and(|grant| grant != EXCHANGE) {
        return Err(Refusal::new(
            "unsupported_grant_type",
            "the grant type is that of a token exchange, or none",
        ));
    }
    if asked.subject_token.is_some() || asked.actor_token.is_some() {
        return Err(Refusal::new("invalid_request", "the credential goes into the header Authorization"));
    }
    if [&asked.resource, &asked.audience].into_iter().flatten().any(|target| target != resource) {
        return Err(Refusal::new("invalid_target", "tokens are for this endpoint only"));
    }
    if asked.requested_token_type.as_deref().is_some_and(|kind| kind != ACCESS_TOKEN && kind != JWT) {
        return Err(Refusal::new("invalid_request", "there are access tokens only"));
    }
    if asked.expires_in.is_some_and(|seconds| seconds < 1) {
        return Err(Refusal::new("invalid_request", "expires_in is a number of seconds, at least one"));
    }
    let scopes: Option<Vec<String>> =
        asked.scope.as_ref().map(|scope| scope.split_ascii_whitespace().map(str::to_owned).collect());
    let is_permission = |scope: &String| Pattern::parse(scope).is_ok();
    match scopes {
        Some(scopes) if scopes.is_empty() || !scopes.iter().all(is_permission) => Err(SCOPE),
        scopes => Ok(scopes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOURCE: &str = "https://ops.example.com/mcp";

    fn outcome(media_type: &'static str, body: &str) -> Result<Option<Vec<String>>, &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, media_type.parse().expect("a value"));
        let asked = asked(&headers, body.as_bytes());
        asked.and_then(|asked| check(&asked, RESOURCE)).map_err(|refusal| refusal.code)
    }

    #[test]
    fn json_and_forms_ask_for_the_same() {
        let scopes = Ok(Some(vec!["k8s:pods:list".to_owned(), "k8s:*:get".to_owned()]));
        let form = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&scope=k8s:pods:list+k8s:*:get\
            &expires_in=60&resource=https%3A%2F%2Fops.example.com%2Fmcp&other=x";
        assert_eq!(outcome("application/x-www-form-urlencoded", form), scopes);
        let json = json!({"grant_type": EXCHANGE, "scope": "k8s:pods:list k8s:*:get", "expires_in": 60,
            "audience": RESOURCE, "requested_token_type": ACCESS_TOKEN, "other": 7});
        assert_eq!(outcome("application/json; charset=utf-8", &json.to_string()), scopes);
        assert_eq!(outcome("text/plain", ""), Ok(None), "nothing asks for the default");
    }

    #[test]
    fn what_cannot_be_given_is_refused_with_the_code_of_the_standard() {
        for (body, code) in [
            (r#"{"grant_type":"password"}"#, "unsupported_grant_type"),
            (r#"{"grant_type":"client_credentials"}"#, "unsupported_grant_type"),
            (r#"{"subject_token":"x"}"#, "invalid_request"),
            (r#"{"resource":"https://other.example.com/mcp"}"#, "invalid_target"),
            (r#"{"audience":"other"}"#, "invalid_target"),
            (r#"{"requested_token_type":"urn:ietf:params:oauth:token-type:saml2"}"#, "invalid_request"),
            (r#"{"expires_in":0}"#, "invalid_request"),
            (r#"{"expires_in":-5}"#, "invalid_request"),
            (r#"{"scope":""}"#, "invalid_scope"),
            (r#"{"scope":"k8s:pods:list admin"}"#, "invalid_scope"),
            (r#"{"scope":"k8s:pods:exec"}"#, "invalid_scope"),
            (r#"{"scope":"k8s:*","scope":"k8s:pods:list"}"#, "invalid_request"),
            (r#"{"scope":7}"#, "invalid_request"),
            ("[]", "invalid_request"),
            ("{", "invalid_request"),
        ] {
            assert_eq!(outcome("application/json", body), Err(code), "{body}");
        }
        let twice = outcome("application/x-www-form-urlencoded", "scope=k8s:*&scope=k8s:pods:list");
        assert_eq!(twice, Err("invalid_request"));
        assert_eq!(outcome("text/plain", "scope=k8s:*"), Err("invalid_request"));
    }
}
