//! The internal port: the operator may list and ask what the replica knows, the replicas of this server pass messages
//! on, nobody else gets in.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;

use super::listener::Connection;
use super::peers::{Described, MESSAGES};
use super::request::{Caller, Channel};
use super::sse::{self, Delivery};
use super::tls::Peer;
use super::transport::{Endpoint, json, receive, respond, text};
use crate::api::replica::{MAX_ASKED, ReplicaState, STATE_PATH, StateQuestion};
use crate::authn::{self, Identity};
use crate::authz::Grants;

/// Path of the operator's handshake.
const MCP: &str = "/mcp";

/// Answers a request of a peer.
pub(super) async fn answer(
    endpoint: Arc<Endpoint>,
    connection: Connection,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    }
    match (connection.peer, request.uri().path()) {
        (Peer::Operator, MCP) => operator(&endpoint, connection, request).await,
        (Peer::Replica, MESSAGES) => passed_on(&endpoint, request).await,
        (Peer::Operator, STATE_PATH) => state(&endpoint, request).await,
        (_, MCP | MESSAGES | STATE_PATH) => text(StatusCode::FORBIDDEN, "forbidden"),
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

/// The operator's handshake: an identity that may list and nothing else.
async fn operator(endpoint: &Endpoint, connection: Connection, request: Request<Incoming>) -> Response<Body> {
    let caller = Caller {
        identity: Identity::new(authn::Method::Operator, "operator", "operator"),
        grants: Grants::default(),
        snapshot: endpoint.driver.core.policy.load(),
        client_ip: connection.address.ip(),
        certificate: None,
    };
    match receive(request).await {
        Ok((headers, body)) => {
            respond(endpoint.driver.message(caller, Channel::StreamableHttp, headers, body).await)
        }
        Err(unreadable) => text(StatusCode::BAD_REQUEST, &unreadable.to_string()),
    }
}

/// What this replica knows of the keys that the operator asks for.
async fn state(endpoint: &Endpoint, request: Request<Incoming>) -> Response<Body> {
    let body = match receive(request).await {
        Ok((_, body)) => body,
        Err(unreadable) => return text(StatusCode::BAD_REQUEST, &unreadable.to_string()),
    };
    let question: StateQuestion = match serde_json::from_slice(&body) {
        Ok(question) => question,
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("not a question: {error}")),
    };
    if question.keys.len() > MAX_ASKED {
        return text(StatusCode::BAD_REQUEST, "too many keys in one question");
    }
    let snapshot = endpoint.driver.core.policy.load();
    let authenticator = &endpoint.driver.core.authenticator;
    let tokens = authenticator.own_tokens();
    let state = ReplicaState {
        accepted_keys: authenticator.accepted(&snapshot, &question.keys),
        verification_keys: tokens.as_ref().map(|tokens| tokens.verification_keys()).unwrap_or_default(),
        signing_key: tokens.as_ref().and_then(|tokens| tokens.signing_key().map(str::to_owned)),
        last_used: question
            .keys
            .iter()
            .filter_map(|id| Some((id.clone(), endpoint.usage.last_used(id)?)))
            .collect(),
    };
    json(StatusCode::OK, &state)
}

/// A message that another replica took in for a stream that lives here.
async fn passed_on(endpoint: &Endpoint, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut request = Request::new(body);
    request
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    let Some(described) = Described::read(&parts.headers) else {
        return text(StatusCode::BAD_REQUEST, "the caller is not described");
    };
    let Ok((_, body)) = receive(request).await else {
        return text(StatusCode::BAD_REQUEST, "the message did not come in whole");
    };
    let snapshot = endpoint.driver.core.policy.load();
    let Described { identity, client_ip, .. } = described;
    // The other replica has proved who it is; whether it may come in is judged by the policy of this one.
    let admitted = snapshot.admit(&identity, client_ip, Timestamp::now());
    let Ok(grants) = admitted else { return sse::response(Delivery::Gone) };
    let caller = Caller { identity, grants, snapshot, client_ip, certificate: None };
    let id = endpoint.sessions.read(described.session, &caller.identity);
    match id.ok().filter(|id| endpoint.sessions.is_here(id)) {
        Some(id) => {
            let owner = caller.clone();
            let delivery = endpoint.sessions.deliver(&endpoint.driver, &id, caller, body);
            endpoint.delivered(&owner, delivery).await
        }
        None => endpoint.delivered(&caller, Delivery::Gone).await,
    }
}
