//! Tokens of ServiceAccounts, confirmed by the API server (TokenReview), and its answers for a short while.
//!
//! Only tokens that say they are of the cluster's own issuer are shown to the API server. At most so many at a time are,
//! and an answer is good for a minute and never beyond the end of the token.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;
use kube::api::PostParams;
use moka::sync::Cache;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::places::Places;
use crate::api::names;
use crate::authn::jwt::Unverified;
use crate::authn::{Identity, KUBERNETES, Method, Reason};

/// Time in which the API server must have answered.
const TIME: Duration = Duration::from_secs(5);
/// How long a confirmation is good for, and a refusal.
const CONFIRMED: Duration = Duration::from_secs(60);
const REFUSED: Duration = Duration::from_secs(5);
/// Most answers that are kept.
const ANSWERS: u64 = 4096;
/// Tokens that are shown to the API server at a time, and those that wait for that.
const AT_A_TIME: usize = 16;
const WAITING: usize = 256;
/// How long the name of the cluster's issuer is kept, and how long that it is not known.
const ISSUER_KNOWN: Duration = Duration::from_secs(60);
const ISSUER_UNKNOWN: Duration = Duration::from_secs(5);

/// Where the API server puts the id of a token.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Asks the API server.
pub(super) struct Reviews {
    client: kube::Client,
    /// The token that the process itself has, where it runs in a pod.
    token_file: Option<PathBuf>,
    issuer: Mutex<Option<(Instant, Option<String>)>>,
    answers: Cache<[u8; 32], Answer>,
    places: Places,
}

#[derive(Clone)]
struct Answer {
    outcome: Result<Identity, Reason>,
    good_for: Duration,
}

/// Each answer is good for a time of its own.
struct GoodFor;

impl moka::Expiry<[u8; 32], Answer> for GoodFor {
    fn expire_after_create(&self, _: &[u8; 32], answer: &Answer, _: Instant) -> Option<Duration> {
        Some(answer.good_for)
    }

    fn expire_after_update(
        &self,
        _: &[u8; 32],
        answer: &Answer,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(answer.good_for)
    }
}

impl Reviews {
    /// Asks the API server of this client. The file is the process's own token, if it has one.
    pub(super) fn new(client: kube::Client, token_file: Option<PathBuf>) -> Self {
        let answers = Cache::builder().max_capacity(ANSWERS).expire_after(GoodFor).build();
        let places = Places::new(AT_A_TIME, WAITING);
        Self { client, token_file, issuer: Mutex::default(), answers, places }
    }

    /// Proves the token of a ServiceAccount that was made for one of these audiences.
    ///
    /// # Errors
    /// [`Reason::UnknownIssuer`] when it does not say that it is one of this cluster, or [`Reason`] why it is not
    /// confirmed.
    pub(super) async fn verify(
        &self,
        text: &str,
        token: &Unverified<'_>,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Identity, Reason> {
        let key = cache_key(text, audiences);
        if let Some(answer) = self.answers.get(&key) {
            return answer.outcome;
        }
        let asking = async {
            if self.issuer().await.as_deref() != Some(token.issuer()) {
                return Err(Reason::UnknownIssuer);
            }
            let _place = self.places.take().await?;
            // Somebody with the same token may have had the place before.
            if let Some(answer) = self.answers.get(&key) {
                return answer.outcome;
            }
            let status = self.ask(text, audiences).await?;
            let answer = judge(&status, text, audiences, now);
            self.answers.insert(key, answer.clone());
            answer.outcome
        };
        tokio::time::timeout(TIME, asking).await.unwrap_or(Err(Reason::ReviewFailed))
    }

    async fn ask(&self, text: &str, audiences: &[String]) -> Result<TokenReviewStatus, Reason> {
        let spec = TokenReviewSpec { audiences: Some(audiences.to_vec()), token: Some(text.to_owned()) };
        let review = TokenReview { spec, ..TokenReview::default() };
        match Api::all(self.client.clone()).create(&PostParams::default(), &review).await {
            Ok(TokenReview { status, .. }) => status.ok_or(Reason::ReviewFailed),
            Err(error) => {
                tracing::warn!(%error, "the API server was not asked for a token of a ServiceAccount");
                Err(Reason::ReviewFailed)
            }
        }
    }

    /// The cluster's own issuer. The one who holds the lock asks for all who wait.
    async fn issuer(&self) -> Option<String> {
        let mut known = self.issuer.lock().await;
        if let Some((at, issuer)) = known.as_ref() {
            let good_for = if issuer.is_some() { ISSUER_KNOWN } else { ISSUER_UNKNOWN };
            if at.elapsed() < good_for {
                return issuer.clone();
            }
        }
        let found = match self.issuer_of_own_token().await {
            Some(issuer) => Some(issuer),
            None => self.issuer_of_discovery().await,
        };
        if found.is_none() {
            tracing::warn!("the issuer of the cluster is not known: tokens of ServiceAccounts are refused");
        }
        *known = Some((Instant::now(), found.clone()));
        found
    }

    async fn issuer_of_own_token(&self) -> Option<String> {
        let text = tokio::fs::read_to_string(self.token_file.as_ref()?).await.ok()?;
        let token = Unverified::parse(text.trim()).ok()?;
        Some(token.issuer().to_owned())
    }

    async fn issuer_of_discovery(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
        }
        let request = Request::get("/.well-known/openid-configuration").body(Vec::new()).ok()?;
        let document: Document = self.client.request(request).await.ok()?;
        Some(document.issuer)
    }
}

/// What an answer is kept by: the token and what it must be for.
fn cache_key(text: &str, audiences: &[String]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in std::iter::once(text).chain(audiences.iter().map(String::as_str)) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// What the API server's answer means, and for how long.
fn judge(status: &TokenReviewStatus, text: &str, audiences: &[String], now: Timestamp) -> Answer {
    match identify(status, text, audiences) {
        Ok(identity) => {
            let left = identity.expires_at.map(|end| Duration::try_from(end.duration_since(now)));
            let good_for = left.map_or(CONFIRMED, |left| left.unwrap_or_default().min(CONFIRMED));
            Answer { outcome: Ok(identity), good_for }
        }
        Err(reason) => Answer { outcome: Err(reason), good_for: REFUSED },
    }
}

fn identify(status: &TokenReviewStatus, text: &str, audiences: &[String]) -> Result<Identity, Reason> {
    let failed = status.error.as_ref().is_some_and(|error| !error.is_empty());
    if status.authenticated != Some(true) || failed {
        return Err(Reason::NotConfirmed);
    }
    // An API server that does not know audiences answers without them, and has not looked at them.
    let confirmed: BTreeSet<&String> = status.audiences.iter().flatten().collect();
    if !audiences.iter().any(|audience| confirmed.contains(audience)) {
        return Err(Reason::Audience);
    }
    let user = status.user.as_ref().ok_or(Reason::NotConfirmed)?;
    let name = user.username.as_deref().unwrap_or_default();
    let parts: Vec<&str> =
        name.strip_prefix(names::SERVICE_ACCOUNT_PREFIX).ok_or(Reason::NotConfirmed)?.split(':').collect();
    if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
        return Err(Reason::NotConfirmed);
    }
    let id = user.extra.as_ref().and_then(|extra| extra.get(CREDENTIAL_ID)?.first());
    let id = id.cloned().unwrap_or_else(|| super::hex_digest(text.as_bytes(), 16));
    let Times { exp, iat } = times_of(text).ok_or(Reason::Claim)?;
    Ok(Identity {
        issuer: Some(KUBERNETES.to_owned()),
        groups: user.groups.clone().unwrap_or_default(),
        issued_at: iat.and_then(|iat| Timestamp::from_second(iat).ok()),
        expires_at: Some(Timestamp::from_second(exp).map_err(|_| Reason::Claim)?),
        ..Identity::new(Method::ServiceAccount, name, id)
    })
}

/// When a token begins and ends.
#[derive(Deserialize)]
struct Times {
    exp: i64,
    iat: Option<i64>,
}

/// The times of a token that the API server has confirmed, by its own claims.
fn times_of(text: &str) -> Option<Times> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OURS: &str = "https://ops-mcp.agents.svc/mcp";

    fn token(claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(claims))
    }

    fn status(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["https://other", OURS],
            "user": {
                "username": "system:serviceaccount:team-a:agent",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:team-a"],
                "extra": {CREDENTIAL_ID: ["JTI=0d9e"]},
            },
        });
        change(&mut status);
        serde_json::from_value(status).expect("a status")
    }

    fn judged(change: impl FnOnce(&mut Value)) -> Answer {
        let text = token(&json!({"exp": 1_000}));
        judge(&status(change), &text, &[OURS.to_owned()], Timestamp::from_second(970).expect("in range"))
    }

    #[test]
    fn a_confirmed_token_is_its_service_account_until_it_ends() {
        let Answer { outcome, good_for } = judged(|_| {});
        let identity = outcome.expect("confirmed");
        assert_eq!(identity.subject, "system:serviceaccount:team-a:agent");
        assert_eq!(
            (identity.method, identity.issuer.as_deref()),
            (Method::ServiceAccount, Some("kubernetes"))
        );
        assert_eq!(identity.groups, ["system:serviceaccounts", "system:serviceaccounts:team-a"]);
        assert_eq!(identity.credential_id, "JTI=0d9e");
        assert_eq!(identity.expires_at.map(Timestamp::as_second), Some(1_000));
        assert_eq!(good_for, Duration::from_secs(30), "not beyond its end");
        let long =
            judge(&status(|_| {}), &token(&json!({"exp": 9_000})), &[OURS.to_owned()], Timestamp::UNIX_EPOCH);
        assert_eq!(long.good_for, CONFIRMED);
        let unnamed = judged(|status| status["user"]["extra"] = json!({})).outcome.expect("confirmed");
        assert_eq!(unnamed.credential_id.len(), 16);
    }

    #[test]
    fn anything_else_is_refused_and_soon_asked_again() {
        type Change = fn(&mut Value);
        let cases: [(Change, Reason); 9] = [
            (|status| status["authenticated"] = json!(false), Reason::NotConfirmed),
            (|status| status["authenticated"] = Value::Null, Reason::NotConfirmed),
            (|status| status["error"] = json!("no"), Reason::NotConfirmed),
            (|status| status["audiences"] = json!(["https://other"]), Reason::Audience),
            (|status| status["audiences"] = Value::Null, Reason::Audience),
            (|status| status["user"] = Value::Null, Reason::NotConfirmed),
            (|status| status["user"]["username"] = json!("admin"), Reason::NotConfirmed),
            (|status| status["user"]["username"] = json!("system:serviceaccount:a"), Reason::NotConfirmed),
            (
                |status| status["user"]["username"] = json!("system:serviceaccount:a:b:c"),
                Reason::NotConfirmed,
            ),
        ];
        for (change, reason) in cases {
            let answer = judged(change);
            assert_eq!((answer.outcome, answer.good_for), (Err(reason), REFUSED));
        }
        let endless = judge(&status(|_| {}), &token(&json!({})), &[OURS.to_owned()], Timestamp::UNIX_EPOCH);
        assert_eq!(endless.outcome, Err(Reason::Claim));
    }

    #[test]
    fn an_answer_is_for_one_token_and_one_set_of_audiences() {
        let (a, b) = (["a".to_owned()], ["b".to_owned()]);
        let keys = [cache_key("t", &a), cache_key("t", &b), cache_key("ta", &[]), cache_key("t", &[])];
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 4);
    }
}
