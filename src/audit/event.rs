//! One schema for everything that is recorded.
//!
//! `redact.rs` goes over every event before it is recorded; nothing else has to.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
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
    /// A rule of the endpoint was broken; `reason` has its name.
    SecurityViolation,
}

impl Kind {
    /// Prefix of the event's id.
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Kind::Authentication => "auth",
            Kind::Authorization => "authz",
            Kind::McpRequest => "mcp",
            Kind::SecurityViolation => "sec",
        }
    }

    /// The word for it in the record.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Authentication => "authentication",
            Kind::Authorization => "authorization",
            Kind::McpRequest => "mcp_request",
            Kind::SecurityViolation => "security_violation",
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
    /// It was let through, and might have been refused: an anomaly where those are only watched.
    Observed,
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
            Outcome::Observed => "observed",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// One line of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// `auth_…`, `authz_…`, `mcp_…` or `sec_…` and a ULID, given by the log when it is recorded.
    #[serde(default)]
    pub(crate) event_id: String,
    /// When it happened. Written with six decimals always, so that texts sort as times do.
    #[serde(serialize_with = "microseconds")]
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

/// Actions by which refusals are told apart: those that the endpoint names itself, and the methods of MCP that it has.
/// Any other stands for one kind.
const ACTIONS: &[&str] = &[
    "auth/whoami",
    "authenticate",
    "connect",
    "initialize",
    "notifications/cancelled",
    "notifications/initialized",
    "ping",
    "receive",
    "server/discover",
    "sse/message",
    "sse/open",
    "token/issue",
    "tools/call",
    "tools/list",
];
/// Stands for an action that is none of these.
const UNKNOWN_ACTION: &str = "unknown";

impl Event {
    /// Whether it says that somebody was kept out, or might have been: only such events may be gathered, and these are
    /// what an administrator is notified of. What was observed has an event of its own beside the one of its request.
    pub(crate) fn is_refusal(&self) -> bool {
        match self.result {
            Outcome::Denied | Outcome::Observed => true,
            Outcome::Failure => self.event_type == Kind::Authentication,
            Outcome::Intent | Outcome::Success | Outcome::Cancelled => false,
        }
    }

    /// What was asked, in a word that no caller makes up: one of the tools, or else one of the actions. Callers write
    /// names of tools and methods as they like, and could fill whatever is kept by them.
    pub(super) fn asked(&self, tools: &[&str]) -> &str {
        let tool = self.tool.as_deref().filter(|tool| tools.contains(tool));
        tool.or(ACTIONS.iter().copied().find(|action| *action == self.action)).unwrap_or(UNKNOWN_ACTION)
    }
}

fn one() -> u64 {
    1
}

/// Writes a time as it stands in the record: `2026-11-23T10:41:50.000000Z`.
pub(super) fn time_text(timestamp: Timestamp) -> String {
    format!("{timestamp:.6}")
}

fn microseconds<S: Serializer>(timestamp: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{timestamp:.6}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An event as the endpoint makes it; tests change what they are about.
    pub(in crate::audit) fn event(user: &str, event_type: Kind, result: Outcome) -> Event {
        Event {
            event_id: String::new(),
            timestamp: "2026-11-23T10:41:50Z".parse().expect("a time"),
            event_type,
            request_id: "request-1".into(),
            server: "agents/ops".into(),
            user: user.into(),
            auth_type: "apikey".into(),
            credential_id: Some("0123456789abcdef".into()),
            client_ip: Some("10.0.0.7".into()),
            action: "tools/call".into(),
            tool: Some("pods_list".into()),
            resource: Some("pods".into()),
            namespace: Some("agents".into()),
            params: Some(serde_json::json!({"namespace": "agents"})),
            result,
            reason: None,
            error_message: None,
            duration_ms: 3,
            count: 1,
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn an_event_is_written_with_the_documented_names_and_reads_back() {
        let event = event("ci-bot", Kind::McpRequest, Outcome::Success);
        let text = serde_json::to_string(&event).expect("an event has a JSON form");
        assert!(text.contains(r#""timestamp":"2026-11-23T10:41:50.000000Z""#), "{text}");
        assert!(text.contains(r#""event_type":"mcp_request""#), "{text}");
        assert!(text.contains(r#""result":"success""#), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).expect("it reads back"), event);
    }

    #[test]
    fn refusals_are_denials_and_failed_logins_and_nothing_else() {
        let refusal = |kind, result| event("ci-bot", kind, result).is_refusal();
        assert!(refusal(Kind::Authentication, Outcome::Failure));
        assert!(refusal(Kind::Authentication, Outcome::Denied));
        assert!(refusal(Kind::Authorization, Outcome::Denied));
        assert!(refusal(Kind::SecurityViolation, Outcome::Observed));
        assert!(!refusal(Kind::McpRequest, Outcome::Failure), "a tool that fails is not a refusal");
        for result in [Outcome::Intent, Outcome::Success, Outcome::Cancelled] {
            assert!(!refusal(Kind::McpRequest, result));
        }
    }
}
