//! Why a proved caller is served nothing at all, whatever it asks for: the same for messages of MCP and for what the
//! endpoint does beside them. It is asked after the credential and before anything is done.

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::json;
use serde_json::value::RawValue;

use super::draft::Verdict;
use super::request::{Answer, Caller, Core};
use super::transport::{Endpoint, json};
use crate::audit::{Event, Kind, Outcome};
use crate::authn::Identity;
use crate::authz::{Class, Violation};
use crate::mcp::error;

/// Why nothing is done for a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unserved {
    /// A caller cannot be made without an identity; that the identity names somebody and says what proved it is not the
    /// compiler's to know.
    #[error("the identity names nobody, or not what proved it")]
    NamesNobody,
    /// Nobody knows any more what the caller may do, nor whether it still may come in.
    #[error("the API server has been out of reach for too long: the policy is out of date")]
    StalePolicy,
}

impl Core {
    /// Why nothing is done for this identity now, if so.
    pub(super) fn unserved(&self, identity: &Identity) -> Option<Unserved> {
        if !identity.is_somebody() {
            return Some(Unserved::NamesNobody);
        }
        let fresh = self.policy.is_fresh(Timestamp::now(), Class::Read);
        (!fresh).then_some(Unserved::StalePolicy)
    }
}

impl Unserved {
    fn violation(self) -> Option<Violation> {
        match self {
            Unserved::NamesNobody => Some(Violation::NoIdentity),
            Unserved::StalePolicy => None,
        }
    }

    /// Fixed word for the audit.
    fn reason(self) -> &'static str {
        self.violation().map_or("stale_policy", Violation::as_str)
    }

    /// How a message goes that is refused for it.
    pub(super) fn verdict(self) -> Verdict {
        match self.violation() {
            Some(violation) => Verdict::violation(violation, self.to_string()),
            None => Verdict::denied(self.reason(), self.to_string()),
        }
    }

    /// The answer to a message.
    pub(super) fn answer(self, id: Option<&RawValue>) -> Answer {
        let (status, code, text) = match self {
            Unserved::NamesNobody => {
                (StatusCode::UNAUTHORIZED, error::INVALID_REQUEST, "unauthorized".to_owned())
            }
            Unserved::StalePolicy => {
                (StatusCode::SERVICE_UNAVAILABLE, error::INTERNAL_ERROR, self.to_string())
            }
        };
        Answer::error(status, error::answer(id, code, &text))
    }
}

impl Endpoint {
    /// The answer to a request that is no message, where nothing is done for its caller. It is recorded as that of a
    /// message is.
    pub(super) async fn refuse_unserved(&self, caller: &Caller, action: &str) -> Option<Response<Body>> {
        let core = &self.driver.core;
        let unserved = core.unserved(&caller.identity)?;
        let mut event = self.event_of(caller, action, Outcome::Denied, unserved.reason());
        event.error_message = Some(unserved.to_string());
        if let Some(violation) = unserved.violation() {
            core.metrics.count_violation(violation.as_str());
            event = Event { event_type: Kind::SecurityViolation, ..event };
        }
        core.record(event).await;
        Some(match unserved {
            Unserved::NamesNobody => self.unauthorized(),
            // The words of RFC 6749, 4.1.2.1, which clients of the path for tokens read.
            Unserved::StalePolicy => json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"error": "temporarily_unavailable", "error_description": unserved.to_string()}),
            ),
        })
    }
}
