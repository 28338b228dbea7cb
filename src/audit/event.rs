//! One schema for everything that is recorded, and the one place where it is redacted.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A credential was presented, or was missing.
    Authentication,
    /// A decision was made for or against a caller, before anything ran.
    Authorization,
    /// An MCP request ran.
    McpRequest,
}

impl Kind {
    /// Prefix of the event's id.
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Kind::Authentication => "auth",
            Kind::Authorization => "authz",
            Kind::McpRequest => "mcp",
        }
    }

    /// The word for it in the record.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Authentication => "authentication",
            Kind::Authorization => "authorization",
            Kind::McpRequest => "mcp_request",
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It is about to happen: recorded before anything changes.
    Intent,
    /// It happened.
    Success,
    /// It was tried and failed.
    Failure,
    /// It was refused.
    Denied,
    /// The client left before the answer.
    Cancelled,
}

impl Outcome {
    /// The word for it in the record.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Outcome::Intent => "intent",
            Outcome::Success => "success",
            Outcome::Failure => "failure",
            Outcome::Denied => "denied",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// One line of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// `auth_…`, `authz_…` or `mcp_…` and a ULID, given by the log when it is recorded.
    #[serde(default)]
    pub(crate) event_id: String,
    /// When it happened.
    pub(crate) timestamp: Timestamp,
    /// What it is about.
    pub(crate) event_type: Kind,
    /// Joins the events of one request: intent and outcome carry the same.
    pub(crate) request_id: String,
    /// `<namespace>/<name>` of the server.
    pub(crate) server: String,
    /// The caller; `anonymous` without a credential, `unknown` with one that proves nothing.
    pub(crate) user: String,
    /// Method of authentication, or `none`.
    pub(crate) auth_type: String,
    /// Id of the credential, never its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) credential_id: Option<String>,
    /// Address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_ip: Option<String>,
    /// What was asked: an MCP method, or `authenticate`.
    pub(crate) action: String,
    /// The tool, for a `tools/call`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tool: Option<String>,
    /// The resource that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<String>,
    /// The namespace that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// Arguments of the tool, redacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) params: Option<Value>,
    /// How it went.
    pub(crate) result: Outcome,
    /// Fixed word for why it did not succeed, or the role that granted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What went wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error_message: Option<String>,
    /// Time from the request to its end, in milliseconds.
    #[serde(default)]
    pub(crate) duration_ms: u64,
    /// Number of equal events that this one stands for: floods of one refusal are gathered.
    #[serde(default = "one")]
    pub(crate) count: u64,
    /// Anything else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) metadata: BTreeMap<String, String>,
}

fn one() -> u64 {
    1
}
