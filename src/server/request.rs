//! The request driver: every message passes here, from top to bottom, whichever transport brought it.
//!
//! ```text
//! authenticate -> envelope -> fresh policy? -> the MCP library -> (a tool: see `call`) -> outcome recorded -> answer
//! ```
//!
//! One audit event per message, recorded before the answer leaves, and also when nobody waits for the answer any more.
//! Tools know nothing of this; transports know only [`Answer`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info_span};

use super::draft::{Call, Recorder, Verdict};
use super::habits::Habits;
use super::handler::Handler;
use super::listener::Connection;
use super::toolbox::Toolbox;
use crate::audit::{AuditLog, Event, Kind, Outcome};
use crate::authenticator::{Authenticator, Certificate, Presented};
use crate::authn::{Credential, Identity, Method, Reason, credential, imported};
use crate::authz::Grants;
use crate::index::{Policy, Snapshot};
use crate::mcp::{self, Envelope, error};
use crate::metrics::{Authentication, Metrics, Transport};

/// What every request needs, shared by all.
pub(super) struct Core {
    /// `<namespace>/<name>` of the server.
    pub(super) server: String,
    /// The cluster, as this server's ServiceAccount.
    pub(super) client: kube::Client,
    /// Who may do what.
    pub(super) policy: Policy,
    /// The record.
    pub(super) audit: AuditLog,
    /// The counters.
    pub(super) metrics: Arc<Metrics>,
    /// The tools.
    pub(super) toolbox: Toolbox,
    /// Proves who is calling.
    pub(super) authenticator: Authenticator,
    /// What callers usually do.
    pub(super) habits: Habits,
    /// Tasks that record what nobody waits for.
    pub(super) recording: TaskTracker,
    /// One for each tool that may run at a time.
    pub(super) places: Semaphore,
    /// Longest time a tool may take.
    pub(super) deadline: Duration,
}

/// A caller who has proved who it is, and the policy under which its request is judged.
#[derive(Clone)]
pub(super) struct Caller {
    /// Who it is.
    pub(super) identity: Identity,
    /// What it holds.
    pub(super) grants: Grants,
    /// The policy of this request.
    pub(super) snapshot: Arc<Snapshot>,
    /// Where it calls from.
    pub(super) client_ip: IpAddr,
    /// Fingerprint of a certificate that proved nothing and is on record.
    pub(super) certificate: Option<String>,
}

impl Caller {
    /// What the record says of how it was proved.
    pub(super) fn proof(&self) -> BTreeMap<String, String> {
        let mut proof = proof(&self.identity);
        proof.extend(shown(self.certificate.clone()));
        proof
    }
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Streamable HTTP.
    StreamableHttp,
    /// HTTP+SSE of 2024-11-05, which has the handshake era only.
    Sse,
}

impl Channel {
    /// The word for it in metrics and audit.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Channel::StreamableHttp => "streamable_http",
            Channel::Sse => "sse",
        }
    }
}

/// What to send back.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status of HTTP.
    pub(super) status: StatusCode,
    /// JSON, or nothing for a notification.
    pub(super) body: Bytes,
}

impl Answer {
    /// An error of JSON-RPC.
    pub(super) fn error(status: StatusCode, body: Vec<u8>) -> Self {
        Self { status, body: body.into() }
    }
}

/// Drives requests. Clones share everything.
#[derive(Clone)]
pub(super) struct Driver {
    /// What every request needs.
    pub(super) core: Arc<Core>,
    library: StreamableHttpService<Handler, NeverSessionManager>,
}

impl Driver {
    /// Puts the library behind the driver: without sessions, answering in JSON.
    pub(super) fn new(core: Arc<Core>) -> Self {
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(true)
            .disable_allowed_hosts()
            .disable_allowed_origins();
        let handler = Handler(core.clone());
        let sessions = Arc::new(NeverSessionManager::default());
        Self { core, library: StreamableHttpService::new(move || Ok(handler.clone()), sessions, config) }
    }

    /// Proves who is calling. The headers leave here without credentials; a failure is recorded.
    ///
    /// # Errors
    /// [`Reason`], for which every answer is the same.
    pub(super) async fn authenticate(
        &self,
        headers: &mut HeaderMap,
        connection: &Connection,
    ) -> Result<Caller, Reason> {
        let snapshot = self.core.policy.load();
        let client_ip = connection.address.ip();
        let scheme = scheme(headers);
        let credential = credential::take(headers);
        let verified = connection.certificate.as_ref().is_some_and(|shown| shown.verified);
        let attempted = attempted(&credential, scheme, verified);
        let certificate = connection.certificate.as_ref().filter(|shown| !shown.verified);
        let certificate = certificate.map(Certificate::fingerprint);
        let presented = Presented {
            credential,
            certificate: connection.certificate.clone(),
            client_ip,
            is_secure: connection.is_secure,
        };
        let proved = self.core.authenticator.prove(&snapshot, presented).await;
        let admitted = match &proved {
            Ok(identity) => snapshot.admit(identity, client_ip, Timestamp::now()),
            Err(reason) => Err(*reason),
        };
        let auth_type = proved.as_ref().map_or(attempted, |identity| identity.method.as_str());
        let result = admitted.as_ref().map_or_else(|reason| reason.as_str(), |_| "success");
        self.core.metrics.authentications.get_or_create(&Authentication { auth_type, result }).inc();
        let (identity, reason) = match (proved, admitted) {
            (Ok(identity), Ok(grants)) => {
                return Ok(Caller { identity, grants, snapshot, client_ip, certificate });
            }
            (proved, Err(reason)) => (proved.ok(), reason),
            (Err(reason), Ok(_)) => (None, reason),
        };
        let refused = Refused { reason, auth_type, identity: identity.as_ref(), certificate };
        self.refused_login(refused, client_ip).await;
        Err(reason)
    }

    /// Judges a caller again, by the policy of now: a message takes as long to come in as its sender likes. A credential
    /// that has ended meanwhile is recorded.
    ///
    /// # Errors
    /// [`Reason`], for which every answer is the same.
    pub(super) async fn authenticate_again(&self, caller: Caller) -> Result<Caller, Reason> {
        let Caller { identity, client_ip, certificate, .. } = caller;
        let snapshot = self.core.policy.load();
        let admitted = snapshot.admit(&identity, client_ip, Timestamp::now());
        let holds = self.core.authenticator.still_holds(&identity);
        match admitted.and_then(|grants| if holds { Ok(grants) } else { Err(Reason::Revoked) }) {
            Ok(grants) => {
                let tenant = snapshot.tenant(&identity).map(str::to_owned);
                let identity = Identity { tenant, ..identity };
                Ok(Caller { identity, grants, snapshot, client_ip, certificate })
            }
            Err(reason) => {
                let auth_type = identity.method.as_str();
                let labels = Authentication { auth_type, result: reason.as_str() };
                self.core.metrics.authentications.get_or_create(&labels).inc();
                let refused = Refused { reason, auth_type, identity: Some(&identity), certificate };
                self.refused_login(refused, client_ip).await;
                Err(reason)
            }
        }
    }

    async fn refused_login(&self, refused: Refused<'_>, client_ip: IpAddr) {
        let Refused { reason, auth_type, identity, certificate } = refused;
        let user = match identity {
            Some(identity) => &identity.subject,
            None if auth_type == NOTHING => "anonymous",
            None => "unknown",
        };
        let mut metadata = identity.map(proof).unwrap_or_default();
        metadata.insert("auth_type".to_owned(), auth_type.to_owned());
        metadata.extend(shown(certificate));
        let event = Event {
            user: user.to_owned(),
            auth_type: auth_type.to_owned(),
            credential_id: identity.map(|identity| identity.credential_id.clone()),
            error_message: Some(reason.to_string()),
            metadata,
            ..self.core.event(
                Kind::Authentication,
                "authenticate",
                Outcome::Failure,
                reason.as_str(),
                client_ip,
            )
        };
        self.core.record(event).await;
    }

    /// Answers one message of a caller.
    pub(super) async fn message(
        &self,
        caller: Caller,
        channel: Channel,
        headers: HeaderMap,
        body: Bytes,
    ) -> Answer {
        self.core.metrics.requests.get_or_create(&Transport { transport: channel.as_str() }).inc();
        let parsed = Envelope::parse(&body);
        let (method, tool) = match &parsed {
            Ok(envelope) => (bounded(&envelope.method), envelope.tool.as_deref().map(bounded)),
            Err(_) => ("invalid".to_owned(), None),
        };
        let call = Arc::new(Call::new(caller, channel, method, tool));
        let recorder = Recorder::new(self.core.clone(), call.clone());
        let span = info_span!(
            "request",
            request_id = call.request_id,
            method = call.method,
            transport = channel.as_str(),
            user = call.caller.identity.subject,
            tool = tracing::field::Empty,
            result = tracing::field::Empty,
        );
        let envelope = match parsed {
            Ok(envelope) => envelope,
            Err(invalid) => {
                let verdict = Verdict::failure(invalid.reason(), invalid.to_string());
                let answer = error::answer(None, invalid.code(), &invalid.to_string());
                let answer = Answer::error(StatusCode::BAD_REQUEST, answer);
                return recorder.finish(verdict, None, answer).instrument(span).await;
            }
        };
        self.judged(recorder, call, &envelope, headers, body.clone()).instrument(span).await
    }

    async fn judged(
        &self,
        recorder: Recorder,
        call: Arc<Call>,
        envelope: &Envelope<'_>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Answer {
        if let Some((verdict, answer)) = self.refused(&call, envelope) {
            return recorder.finish(verdict, envelope.id, answer).await;
        }
        let request = for_library(call.clone(), headers, body);
        let response = self.library.handle(request).await;
        let (status, json) = (response.status(), is_json(response.headers()));
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        if !status.is_success() && !json {
            // The library answers some malformed messages with plain text; clients read JSON-RPC.
            let text = "invalid request: the message does not fit its method";
            let verdict = Verdict::failure("invalid_request", text.to_owned());
            let status = if status.is_server_error() { status } else { StatusCode::BAD_REQUEST };
            let answer = error::answer(envelope.id, error::INVALID_REQUEST, text);
            return recorder.finish(verdict, envelope.id, Answer::error(status, answer)).await;
        }
        let verdict = call.verdict().unwrap_or_else(|| verdict_of(&body));
        recorder.finish(verdict, envelope.id, Answer { status, body }).await
    }

    /// What is refused before the library sees it.
    fn refused(&self, call: &Call, envelope: &Envelope<'_>) -> Option<(Verdict, Answer)> {
        // The one way to the tools, for every transport and every proof.
        if let Some(unserved) = self.core.unserved(&call.caller.identity) {
            return Some((unserved.verdict(), unserved.answer(envelope.id)));
        }
        if call.channel != Channel::Sse {
            return None;
        }
        if envelope.method == "server/discover" {
            let answer =
                error::answer(envelope.id, error::METHOD_NOT_FOUND, "method not found: server/discover");
            let verdict = Verdict::failure("method_not_found", "HTTP+SSE has the handshake only".to_owned());
            return Some((verdict, Answer::error(StatusCode::OK, answer)));
        }
        let revision =
            envelope.revision.as_deref().filter(|revision| *revision >= mcp::STATELESS_REVISION)?;
        let data = serde_json::json!({"supported": mcp::HANDSHAKE_REVISIONS, "requested": bounded(revision)});
        let text = "unsupported protocol version: HTTP+SSE has the handshake only";
        let answer = error::with_data(envelope.id, error::UNSUPPORTED_PROTOCOL_VERSION, text, Some(data));
        let verdict = Verdict::failure("unsupported_protocol_version", text.to_owned());
        Some((verdict, Answer::error(StatusCode::OK, answer)))
    }
}

impl Core {
    /// The common part of an event that stands for no message.
    pub(super) fn event(
        &self,
        event_type: Kind,
        action: &str,
        result: Outcome,
        reason: &str,
        client_ip: IpAddr,
    ) -> Event {
        Event {
            event_id: String::new(),
            timestamp: Timestamp::now(),
            event_type,
            request_id: super::draft::request_id(),
            server: self.server.clone(),
            user: "anonymous".to_owned(),
            auth_type: "none".to_owned(),
            credential_id: None,
            client_ip: Some(client_ip.to_string()),
            action: action.to_owned(),
            tool: None,
            resource: None,
            namespace: None,
            params: None,
            result,
            reason: Some(reason.to_owned()),
            error_message: None,
            duration_ms: 0,
            count: 1,
            metadata: std::collections::BTreeMap::new(),
        }
    }

    /// Records an event, also when the caller hangs up meanwhile, and says whether it is on record. A refusal stands
    /// either way.
    pub(super) async fn record(self: &Arc<Self>, event: Event) -> bool {
        let core = self.clone();
        let task = self.recording.spawn(async move { core.audit.record(event).await });
        let recorded = matches!(task.await, Ok(Ok(())));
        if !recorded {
            tracing::error!("an event could not be recorded");
        }
        recorded
    }
}

/// Who was refused, and why.
struct Refused<'a> {
    reason: Reason,
    auth_type: &'static str,
    /// None: the credential proved nobody.
    identity: Option<&'a Identity>,
    certificate: Option<String>,
}

/// The word for a request that presents nothing.
const NOTHING: &str = "none";

/// The scheme that a request names, as one of a few words: what is not known is not repeated.
fn scheme(headers: &HeaderMap) -> &'static str {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return if headers.contains_key("x-api-key") { Method::ApiKey.as_str() } else { "unknown" };
    };
    let named = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
    let known = ["bearer", "basic", "apikey"];
    known.into_iter().find(|known| named.eq_ignore_ascii_case(known.as_bytes())).unwrap_or("unknown")
}

/// The method that a request tries, by the form of its credential.
fn attempted(credential: &Result<Credential, Reason>, scheme: &'static str, verified: bool) -> &'static str {
    match credential {
        Ok(Credential::ApiKey(_) | Credential::ImportedKey(_)) => Method::ApiKey.as_str(),
        Ok(Credential::Jwt(_)) => Method::Jwt.as_str(),
        Ok(Credential::Basic { .. }) => Method::Basic.as_str(),
        Err(Reason::Missing) if verified => Method::ClientCertificate.as_str(),
        Err(Reason::Missing) => NOTHING,
        Err(_) => scheme,
    }
}

/// What the record says of how a caller was proved, beside the method and the id of the credential.
fn proof(identity: &Identity) -> BTreeMap<String, String> {
    let kind = match identity.method {
        Method::ApiKey if identity.credential_id.starts_with(imported::ID_PREFIX) => {
            Some(("key_type", "imported"))
        }
        Method::ApiKey => Some(("key_type", "generated")),
        Method::Jwt => Some(("token_type", "jwt")),
        Method::Token => Some(("token_type", "own")),
        Method::ServiceAccount => Some(("token_type", "serviceaccount")),
        Method::Basic | Method::ClientCertificate | Method::Anonymous | Method::Operator => None,
    };
    let origin = identity.origin.as_ref();
    [
        kind.map(|(name, kind)| (name, kind.to_owned())),
        identity.issuer.clone().map(|issuer| ("issuer", issuer)),
        identity.key.clone().map(|key| ("key", key)),
        identity.tenant.clone().map(|tenant| ("tenant", tenant)),
        identity.issued_at.map(|time| ("issued_at", time.to_string())),
        identity.expires_at.map(|time| ("expires_at", time.to_string())),
        origin.map(|origin| ("made_for", origin.method.as_str().to_owned())),
        origin.map(|origin| ("made_for_credential", origin.credential_id.clone())),
    ]
    .into_iter()
    .flatten()
    .map(|(name, value)| (name.to_owned(), bounded(&value)))
    .collect()
}

fn shown(fingerprint: Option<String>) -> Option<(String, String)> {
    fingerprint.map(|fingerprint| ("unverified_certificate".to_owned(), fingerprint))
}

/// The message as the library wants it: with an Accept header that names both types, and a Host, which requests of
/// HTTP/2 do not have. Both were judged before, or do not matter.
fn for_library(call: Arc<Call>, mut headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.remove(header::ORIGIN);
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = HttpMethod::POST;
    *request.headers_mut() = headers;
    request.extensions_mut().insert(call);
    request
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

#[derive(Deserialize)]
struct AnswerHead {
    error: Option<ErrorHead>,
}

#[derive(Deserialize)]
struct ErrorHead {
    code: i32,
    message: String,
}

/// How a message went that no tool had a part in.
fn verdict_of(body: &[u8]) -> Verdict {
    match serde_json::from_slice::<AnswerHead>(body) {
        Ok(AnswerHead { error: Some(error) }) => Verdict::failure(reason_of(error.code), error.message),
        _ => Verdict::success(),
    }
}

fn reason_of(code: i32) -> &'static str {
    match code {
        error::METHOD_NOT_FOUND => "method_not_found",
        error::INVALID_PARAMS => "invalid_params",
        error::INVALID_REQUEST => "invalid_request",
        error::UNSUPPORTED_PROTOCOL_VERSION => "unsupported_protocol_version",
        error::INTERNAL_ERROR => "internal_error",
        _ => "protocol_error",
    }
}

/// Text of a client for the record, cut where it would fill it.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::Origin;

    #[test]
    fn the_record_says_how_a_caller_was_proved_and_from_when_until_when() {
        let time = |second| Some(Timestamp::from_second(second).expect("in range"));
        let token = Identity {
            issuer: Some("https://a.example".into()),
            issued_at: time(0),
            expires_at: time(60),
            ..Identity::new(Method::Jwt, "ann", "t1")
        };
        let said = proof(&token);
        assert_eq!((said["token_type"].as_str(), said["issuer"].as_str()), ("jwt", "https://a.example"));
        assert_eq!(said["issued_at"], "1970-01-01T00:00:00Z");
        assert_eq!(said["expires_at"], "1970-01-01T00:01:00Z");
        let imported =
            Identity { key: Some("old".into()), ..Identity::new(Method::ApiKey, "bot", "imp0123456789abc") };
        assert_eq!(proof(&imported)["key_type"], "imported");
        let origin = Origin { method: Method::Basic, credential_id: "basic:0123456789ab".into() };
        let own = Identity { origin: Some(origin), ..Identity::new(Method::Token, "ann", "t2") };
        assert_eq!((proof(&own)["token_type"].as_str(), proof(&own)["made_for"].as_str()), ("own", "basic"));
    }

    #[test]
    fn a_scheme_is_named_only_if_it_is_known() {
        let named = |name: &'static str, value: &'static str| {
            scheme(&HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(named("authorization", "bEarer x"), "bearer");
        assert_eq!(named("authorization", "secret"), "unknown");
        assert_eq!(named("x-api-key", "secret"), "apikey");
        assert_eq!(scheme(&HeaderMap::new()), "unknown");
    }
}
