//! The request driver: every message passes here, from top to bottom, whichever transport brought it.
//!
//! ```text
//! authenticate -> envelope -> fresh policy? -> the MCP library -> (a tool: see `call`) -> outcome recorded -> answer
//! ```
//!
//! One audit event per message, recorded before the answer leaves, and also when nobody waits for the answer any more.
//! Tools know nothing of this; transports know only [`Answer`].

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
use super::handler::Handler;
use super::listener::Connection;
use super::toolbox::Toolbox;
use crate::audit::{AuditLog, Event, Kind, Outcome};
use crate::authenticator::{Authenticator, Presented};
use crate::authn::{Identity, Reason, credential};
use crate::authz::{Class, Role};
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
    /// Its roles.
    pub(super) roles: Arc<[Arc<Role>]>,
    /// The policy of this request.
    pub(super) snapshot: Arc<Snapshot>,
    /// Where it calls from.
    pub(super) client_ip: IpAddr,
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
        let credential = credential::take(headers);
        let presented = Presented { credential, certificate: connection.certificate.clone(), client_ip };
        let proved = self.core.authenticator.prove(&snapshot, presented).await.and_then(|identity| {
            let roles = snapshot.admit(&identity, client_ip, Timestamp::now())?;
            Ok((identity, roles))
        });
        let (auth_type, result) = match &proved {
            Ok((identity, _)) => (identity.method.as_str(), "success"),
            Err(Reason::Missing) => ("none", Reason::Missing.as_str()),
            Err(reason) => ("apikey", reason.as_str()),
        };
        self.core.metrics.authentications.get_or_create(&Authentication { auth_type, result }).inc();
        match proved {
            Ok((identity, roles)) => Ok(Caller { identity, roles, snapshot, client_ip }),
            Err(reason) => {
                self.refused_login(reason, auth_type, client_ip).await;
                Err(reason)
            }
        }
    }

    /// Judges a caller again, by the policy of now: a message takes as long to come in as its sender likes. A key that
    /// has ended meanwhile is recorded.
    ///
    /// # Errors
    /// [`Reason`], for which every answer is the same.
    pub(super) async fn authenticate_again(&self, caller: Caller) -> Result<Caller, Reason> {
        let Caller { identity, client_ip, .. } = caller;
        let snapshot = self.core.policy.load();
        match snapshot.admit(&identity, client_ip, Timestamp::now()) {
            Ok(roles) => Ok(Caller { identity, roles, snapshot, client_ip }),
            Err(reason) => {
                let auth_type = identity.method.as_str();
                let labels = Authentication { auth_type, result: reason.as_str() };
                self.core.metrics.authentications.get_or_create(&labels).inc();
                self.refused_login(reason, auth_type, client_ip).await;
                Err(reason)
            }
        }
    }

    async fn refused_login(&self, reason: Reason, auth_type: &str, client_ip: IpAddr) {
        let user = if reason == Reason::Missing { "anonymous" } else { "unknown" };
        let event = Event {
            user: user.to_owned(),
            auth_type: auth_type.to_owned(),
            error_message: Some(reason.to_string()),
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
        if !self.core.policy.is_fresh(Timestamp::now(), Class::Read) {
            let text = "the API server has been out of reach for too long: the policy is out of date";
            let answer = error::answer(envelope.id, error::INTERNAL_ERROR, text);
            let answer = Answer::error(StatusCode::SERVICE_UNAVAILABLE, answer);
            return Some((Verdict::denied("stale_policy", text.to_owned()), answer));
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
