//! What is done to every request before anybody knows that it is MCP: Host, Origin, path, size and time.
//!
//! Paths come from the live `McpServer`. Credentials are proved before a body is read, and still hold after.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::about;
use super::call::{Against, aim};
use super::client_tls::Asking;
use super::hosts::{Foreign, OwnHosts};
use super::listener::Connection;
use super::oauth;
use super::peers::Peers;
use super::request::{Answer, Caller, Channel, Driver};
use super::sse::{self, Delivery, NotTheirs, Sessions};
use super::token;
use super::usage::Usage;
use crate::api::{ClientCertificateMode, McpServerSpec};
use crate::audit::{Event, Kind, Outcome};
use crate::authz::Violation;
use crate::index::Snapshot;
use crate::mcp::{Envelope, error};

/// Most bytes of one message.
pub(super) const BODY_LIMIT: usize = 4 << 20;
/// Time in which a message must have come in.
const BODY_TIME: Duration = Duration::from_secs(15);
/// Time in which a request must be answered. Tools end earlier by themselves.
const REQUEST_TIME: Duration = Duration::from_secs(60);

/// Time between two looks whether the credential of a call still counts.
const CREDENTIAL_POLL: Duration = Duration::from_millis(500);
/// Fixed word for the audit.
const INSUFFICIENT_SCOPE: &str = "insufficient_scope";
/// Word for it in the audit.
const OPEN_STREAM: &str = "sse/open";

/// The endpoint for clients.
pub(super) struct Endpoint {
    /// Drives messages.
    pub(super) driver: Driver,
    /// The SSE streams of this replica.
    pub(super) sessions: Arc<Sessions>,
    /// The other replicas, if there can be any.
    pub(super) peers: Option<Arc<Peers>>,
    /// Names of this endpoint.
    pub(super) hosts: OwnHosts,
    /// How keys are used here.
    pub(super) usage: Usage,
}

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Mcp,
    Stream,
    Messages,
    WhoAmI,
    Metadata,
    Token,
    Keys,
}

impl Route {
    /// The one method of the path.
    fn method(self) -> Method {
        match self {
            Route::Mcp | Route::Messages | Route::Token => Method::POST,
            Route::Stream | Route::WhoAmI | Route::Metadata | Route::Keys => Method::GET,
        }
    }
}

/// What a path stands for. The paths that the spec names come first.
fn route(spec: &McpServerSpec, resource: &str, path: &str) -> Option<Route> {
    let (transports, sse) = (&spec.transports, &spec.transports.sse);
    if path == transports.streamable_http.path {
        Some(Route::Mcp)
    } else if sse.enabled && (path == sse.path || sse.aliases.iter().any(|alias| alias == path)) {
        Some(Route::Stream)
    } else if sse.enabled && path == sse.messages_path {
        Some(Route::Messages)
    } else if path == about::WHO_AM_I {
        Some(Route::WhoAmI)
    } else if spec.authentication.tokens.enabled && path == token::TOKEN {
        Some(Route::Token)
    } else if spec.authentication.tokens.enabled && path == token::KEYS {
        Some(Route::Keys)
    } else if oauth::is_metadata(spec, resource, path) {
        Some(Route::Metadata)
    } else {
        None
    }
}

impl Endpoint {
    /// What is asked of clients in a handshake now.
    pub(super) fn asking(&self) -> Asking {
        let core = &self.driver.core;
        let snapshot = core.policy.load();
        let Some(server) = &snapshot.server else { return Asking::default() };
        let mode = server.spec.authentication.client_certificates.mode;
        Asking { mode, authorities: core.authenticator.client_ca(&snapshot) }
    }

    /// Answers a request of a client.
    pub(super) async fn answer(
        self: Arc<Self>,
        connection: Connection,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let snapshot = self.driver.core.policy.load();
        let Some(server) = &snapshot.server else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "not ready");
        };
        let origin = match self.hosts.check(request.uri(), request.headers(), &server.spec) {
            Ok(origin) => origin.and_then(|origin| HeaderValue::from_str(origin).ok()),
            Err(foreign) => return self.refuse_foreign(foreign, connection).await,
        };
        let Some(route) = route(&server.spec, &self.resource(&snapshot), request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "not found");
        };
        let answering = self.routed(route, &snapshot, connection, request);
        let answered = tokio::time::timeout(REQUEST_TIME, answering).await;
        let mut response = answered.unwrap_or_else(|_| text(StatusCode::GATEWAY_TIMEOUT, "took too long"));
        let headers = response.headers_mut();
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
            let exposed = HeaderValue::from_static("www-authenticate, retry-after");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        response
    }

    async fn routed(
        &self,
        route: Route,
        snapshot: &Snapshot,
        connection: Connection,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let method = route.method();
        if request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN) {
            return preflight();
        }
        if *request.method() != method {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
            let allow = if method == Method::GET { "GET" } else { "POST" };
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            return response;
        }
        match route {
            Route::Metadata => return self.metadata(snapshot),
            Route::Keys => return self.keys(),
            _ => {}
        }
        if lacks_certificate(snapshot, &connection) {
            return self.refuse_connection(&connection).await;
        }
        let Ok(caller) = self.driver.authenticate(request.headers_mut(), &connection).await else {
            return self.unauthorized();
        };
        if let Err(wait) = self.usage.note(&caller.snapshot, &caller.identity, Timestamp::now()) {
            return self.refuse_rate(&caller, wait).await;
        }
        match route {
            Route::Metadata => self.metadata(snapshot),
            Route::Keys => self.keys(),
            Route::Token => self.token(caller, request).await,
            Route::WhoAmI => self.who_am_i(&caller).await,
            Route::Mcp => {
                let (headers, body) = match receive(request).await {
                    Ok(received) => received,
                    Err(refusal) => return self.refuse_body(caller, Channel::StreamableHttp, refusal).await,
                };
                let Ok(caller) = self.driver.authenticate_again(caller).await else {
                    return self.unauthorized();
                };
                self.asked(caller, headers, body).await
            }
            Route::Stream => self.open_stream(&caller).await,
            Route::Messages => {
                let query = request.uri().query().unwrap_or_default();
                let session = query.split('&').find_map(|pair| pair.strip_prefix("sessionId="));
                let session = session.unwrap_or_default().to_owned();
                match receive(request).await {
                    Ok((_, body)) => match self.driver.authenticate_again(caller).await {
                        Ok(caller) => self.posted(caller, &session, body).await,
                        Err(_) => self.unauthorized(),
                    },
                    Err(refusal) => self.refuse_body(caller, Channel::Sse, refusal).await,
                }
            }
        }
    }

    /// A message over Streamable HTTP. Its work ends when its credential does.
    async fn asked(&self, caller: Caller, headers: HeaderMap, body: Bytes) -> Response<Body> {
        if let Some(refused) = self.refuse_scope(&caller, &body).await {
            return refused;
        }
        let mut message = pin!(self.driver.message(caller.clone(), Channel::StreamableHttp, headers, body));
        loop {
            if let Ok(answer) = tokio::time::timeout(CREDENTIAL_POLL, &mut message).await {
                return respond(answer);
            }
            if self.driver.authenticate_again(caller.clone()).await.is_err() {
                tracing::info!(user = caller.identity.subject, "call ended with its credential");
                return self.unauthorized();
            }
        }
    }

    /// Refuses a call of a tool to which the roles of the caller reach and the scopes of its credential do not. Such a
    /// refusal must be one of HTTP, so that clients know to get a wider token.
    async fn refuse_scope(&self, caller: &Caller, body: &[u8]) -> Option<Response<Body>> {
        // Most credentials have no scopes: their messages are read once, later.
        caller.identity.scopes.as_ref()?;
        let envelope = Envelope::parse(body).ok()?;
        let core = &self.driver.core;
        let (tool, needed) = core.toolbox.short_of_scope(envelope.tool.as_deref()?, caller)?;
        let mut event = self.event_of(caller, "tools/call", Outcome::Denied, INSUFFICIENT_SCOPE);
        event.tool = Some(tool.name.to_owned());
        let (resource, namespace) = arguments(body).and_then(|given| aim(tool, given)).unzip();
        (event.resource, event.namespace) = (resource, namespace.flatten());
        event.error_message = Some(Against::Scopes(needed).to_string());
        event.metadata.insert("permission".to_owned(), needed.to_string());
        event.metadata.insert("transport".to_owned(), Channel::StreamableHttp.as_str().to_owned());
        core.record(event).await;
        let message = format!("insufficient scope: {needed} is needed");
        let answer = error::answer(envelope.id, error::FORBIDDEN, &message);
        let mut response = respond(Answer::error(StatusCode::FORBIDDEN, answer));
        let server = caller.snapshot.server.as_ref()?;
        let challenge =
            oauth::insufficient_scope(&server.spec.authentication, &self.resource(&caller.snapshot), needed);
        response.headers_mut().extend(challenge.map(|challenge| (header::WWW_AUTHENTICATE, challenge)));
        Some(response)
    }

    /// Refuses a key that is used more often than it may be.
    async fn refuse_rate(&self, caller: &Caller, wait: Duration) -> Response<Body> {
        let event = self.event_of(caller, "receive", Outcome::Denied, "rate_limit");
        self.driver.core.record(event).await;
        let mut response = json(StatusCode::TOO_MANY_REQUESTS, &json!({"error": "too many requests"}));
        let seconds = HeaderValue::from(wait.as_secs() + 1);
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
        response
    }

    /// Refuses a request on a connection from before certificates were needed.
    async fn refuse_connection(&self, connection: &Connection) -> Response<Body> {
        let (core, client_ip) = (&self.driver.core, connection.address.ip());
        let reason = "certificate_required";
        let event = core.event(Kind::Authentication, "authenticate", Outcome::Failure, reason, client_ip);
        core.record(event).await;
        self.unauthorized()
    }

    async fn open_stream(&self, caller: &Caller) -> Response<Body> {
        if let Some(refused) = self.refuse_unserved(caller, OPEN_STREAM).await {
            return refused;
        }
        let messages =
            caller.snapshot.server.as_ref().map(|server| &server.spec.transports.sse.messages_path);
        let opened = self.sessions.open(caller, messages.map_or("", String::as_str));
        let (result, reason) = match &opened {
            Ok(_) => (Outcome::Success, "opened"),
            Err(sse::TooMany) => (Outcome::Denied, "too_many_sessions"),
        };
        let recorded = self.driver.core.record(self.event_of(caller, OPEN_STREAM, result, reason)).await;
        match opened {
            Ok(response) if recorded => response,
            Ok(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the request could not be recorded in the audit"),
            Err(sse::TooMany) => busy("too many sessions"),
        }
    }

    /// A message for a stream, which may live on another replica.
    async fn posted(&self, caller: Caller, session: &str, body: Bytes) -> Response<Body> {
        let id = match self.sessions.read(session, &caller.identity) {
            Ok(id) => id,
            Err(not_theirs) => return self.refuse_session(&caller, not_theirs).await,
        };
        if Envelope::parse(&body).is_err() {
            return respond(self.driver.message(caller, Channel::Sse, HeaderMap::new(), body).await);
        }
        if self.sessions.is_here(&id) {
            let identity = caller.clone();
            let delivery = self.sessions.deliver(&self.driver, &id, caller, body);
            return self.delivered(&identity, delivery).await;
        }
        let Some(peers) = &self.peers else { return sse::response(Delivery::Gone) };
        match peers.forward(id.pod_ip, session, &caller, body).await {
            Ok(StatusCode::ACCEPTED) => sse::response(Delivery::Accepted),
            Ok(StatusCode::SERVICE_UNAVAILABLE) => sse::response(Delivery::Busy),
            Ok(_) => sse::response(Delivery::Gone),
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "message not passed on");
                self.delivered(&caller, Delivery::Gone).await
            }
        }
    }

    /// Answers as if there were no such session, whatever is wrong with its id. One that was tampered with, or got into
    /// other hands, is on record as that; a replica that has started again knows none from before.
    async fn refuse_session(&self, caller: &Caller, not_theirs: NotTheirs) -> Response<Body> {
        let Some(what) = not_theirs.violation() else { return self.delivered(caller, Delivery::Gone).await };
        let violation = Violation::Integrity.as_str();
        let core = &self.driver.core;
        core.metrics.count_violation(violation);
        let mut event = self.event_of(caller, "sse/message", Outcome::Denied, violation);
        event.event_type = Kind::SecurityViolation;
        event.error_message = Some(what.to_owned());
        core.record(event).await;
        sse::response(Delivery::Gone)
    }

    /// Records what was not taken on; what was taken on records itself.
    pub(super) async fn delivered(&self, caller: &Caller, delivery: Delivery) -> Response<Body> {
        let reason = match delivery {
            Delivery::Accepted => return sse::response(delivery),
            Delivery::Busy => "too_many_messages",
            Delivery::Gone => "unknown_session",
        };
        let event = self.event_of(caller, "sse/message", Outcome::Failure, reason);
        self.driver.core.record(event).await;
        sse::response(delivery)
    }

    async fn refuse_foreign(&self, foreign: Foreign, connection: Connection) -> Response<Body> {
        let client_ip = connection.address.ip();
        let core = &self.driver.core;
        core.record(core.event(Kind::Authorization, "connect", Outcome::Denied, foreign.reason(), client_ip))
            .await;
        text(StatusCode::FORBIDDEN, &foreign.to_string())
    }

    async fn refuse_body(&self, caller: Caller, channel: Channel, refusal: Unreadable) -> Response<Body> {
        let (status, reason) = match refusal {
            Unreadable::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Unreadable::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Unreadable::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow"),
            Unreadable::Broken => (StatusCode::BAD_REQUEST, "broken_body"),
        };
        let mut event = self.event_of(&caller, "receive", Outcome::Failure, reason);
        event.metadata.insert("transport".to_owned(), channel.as_str().to_owned());
        self.driver.core.record(event).await;
        let body = error::answer(None, error::INVALID_REQUEST, &format!("invalid request: {refusal}"));
        respond(Answer::error(status, body))
    }

    /// An event of a caller that stands for no message.
    pub(super) fn event_of(&self, caller: &Caller, action: &str, result: Outcome, reason: &str) -> Event {
        let kind = if result == Outcome::Denied { Kind::Authorization } else { Kind::McpRequest };
        Event {
            user: caller.identity.subject.clone(),
            auth_type: caller.identity.method.as_str().to_owned(),
            credential_id: Some(caller.identity.credential_id.clone()),
            metadata: caller.proof(),
            ..self.driver.core.event(kind, action, result, reason, caller.client_ip)
        }
    }
}

/// Why a message did not come in whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// It says that it is not JSON.
    #[error("Content-Type must be application/json")]
    MediaType,
    /// It is larger than a message may be.
    #[error("the message has more than {BODY_LIMIT} bytes")]
    TooLarge,
    /// It did not come in time.
    #[error("the message did not come in time")]
    TooSlow,
    /// The connection broke.
    #[error("the message did not come in whole")]
    Broken,
}

/// Reads the message of a request.
pub(super) async fn receive(request: Request<Incoming>) -> Result<(HeaderMap, Bytes), Unreadable> {
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    if !essence.trim().eq_ignore_ascii_case("application/json") {
        return Err(Unreadable::MediaType);
    }
    Ok((parts.headers, read(body, BODY_LIMIT).await?))
}

/// Reads a body of at most so many bytes.
pub(super) async fn read(body: Incoming, limit: usize) -> Result<Bytes, Unreadable> {
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Unreadable::TooLarge),
        Ok(Err(_)) => Err(Unreadable::Broken),
        Err(_) => Err(Unreadable::TooSlow),
    }
}

/// The arguments of a call of a tool.
fn arguments(message: &[u8]) -> Option<Map<String, Value>> {
    let mut message: Value = serde_json::from_slice(message).ok()?;
    match message.pointer_mut("/params/arguments").map(Value::take) {
        Some(Value::Object(arguments)) => Some(arguments),
        _ => None,
    }
}

/// An answer of the driver as a response.
pub(super) fn respond(answer: Answer) -> Response<Body> {
    let empty = answer.body.is_empty();
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    if !empty {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

/// A response in plain text.
pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn busy(message: &str) -> Response<Body> {
    text(StatusCode::SERVICE_UNAVAILABLE, message)
}

/// A response in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(value).expect("texts, numbers and times are JSON");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Whether the spec asks for a certificate that the connection does not have: it may be older than the spec.
fn lacks_certificate(snapshot: &Snapshot, connection: &Connection) -> bool {
    let Some(server) = &snapshot.server else { return true };
    let verified = connection.certificate.as_ref().map(|certificate| certificate.verified);
    match server.spec.authentication.client_certificates.mode {
        ClientCertificateMode::RequireAny => verified.is_none(),
        ClientCertificateMode::RequireAndVerify => verified != Some(true),
        _ => false,
    }
}

/// Tells the browser of an allowed origin what its page may send.
fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    let allowed =
        "authorization, x-api-key, content-type, accept, mcp-protocol-version, mcp-method, mcp-name";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}
