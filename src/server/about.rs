//! What the endpoint says of itself and of its callers, beside MCP: `whoami` and OAuth metadata.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::oauth;
use super::request::Caller;
use super::transport::{Endpoint, json, text};
use crate::audit::Outcome;
use crate::index::Snapshot;

/// Path at which callers learn who they are.
pub(super) const WHO_AM_I: &str = "/auth/whoami";
/// Word for it in the audit.
const TELL: &str = "auth/whoami";

impl Endpoint {
    /// URL by which clients know this endpoint.
    pub(super) fn resource(&self, snapshot: &Snapshot) -> String {
        self.driver.core.authenticator.resource(snapshot)
    }

    /// The one answer to every credential that proves nothing.
    pub(super) fn unauthorized(&self) -> Response<Body> {
        let mut response = json(StatusCode::UNAUTHORIZED, &json!({"error": "unauthorized"}));
        let snapshot = self.driver.core.policy.load();
        if let Some(server) = &snapshot.server {
            let challenges = oauth::challenges(&server.spec.authentication, &self.resource(&snapshot));
            for challenge in challenges {
                response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
            }
        }
        response
    }

    /// The metadata of RFC 9728, which needs no credential.
    pub(super) fn metadata(&self, snapshot: &Snapshot) -> Response<Body> {
        let spec = snapshot.server.as_ref().map(|server| &server.spec.authentication);
        let (resource, name) = (self.resource(snapshot), &self.driver.core.server);
        match spec.and_then(|spec| oauth::metadata(spec, &resource, name)) {
            Some(metadata) => public(&metadata),
            None => text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    /// Tells a caller who it is and what it holds.
    pub(super) async fn who_am_i(&self, caller: &Caller) -> Response<Body> {
        if let Some(refused) = self.refuse_unserved(caller, TELL).await {
            return refused;
        }
        let recorded = self.event_of(caller, TELL, Outcome::Success, "told");
        if !self.driver.core.record(recorded).await {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the request could not be recorded in the audit");
        }
        let identity = &caller.identity;
        json(
            StatusCode::OK,
            &json!({
                "server": self.driver.core.server,
                "method": identity.method.as_str(),
                "subject": identity.subject,
                "issuer": identity.issuer,
                "groups": identity.groups,
                "tenant": identity.tenant,
                "scopes": identity.scopes,
                "credentialId": identity.credential_id,
                "key": identity.key,
                "expiresAt": identity.expires_at,
                "roles": caller.grants.roles().map(|role| role.id().to_string()).collect::<Vec<_>>(),
            }),
        )
    }
}

/// An answer that anybody may keep for a minute.
pub(super) fn public(value: &Value) -> Response<Body> {
    let mut response = json(StatusCode::OK, value);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60"));
    response
}
