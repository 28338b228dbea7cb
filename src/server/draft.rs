//! The audit event of one message while it is being made, and the guard that gets it recorded in every case.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;
use ulid::Ulid;

use super::request::{Answer, Caller, Channel, Core};
use crate::audit::{Event, Kind, Outcome};
use crate::authz::anomaly::Anomaly;
use crate::authz::{Permission, Violation};
use crate::mcp::error;

/// One message of a caller, on its way.
pub(super) struct Call {
    /// Whose message it is.
    pub(super) caller: Caller,
    /// How it came.
    pub(super) channel: Channel,
    /// Joins its events.
    pub(super) request_id: String,
    /// Its method.
    pub(super) method: String,
    at: Timestamp,
    started: Instant,
    draft: Mutex<Draft>,
}

/// What is known of the message so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    /// The tool, as its canonical name once that is known.
    pub(super) tool: Option<String>,
    /// What the tool acts on.
    pub(super) resource: Option<String>,
    /// Where the tool acts.
    pub(super) namespace: Option<String>,
    /// Arguments of the tool.
    pub(super) params: Option<Value>,
    /// What was decided, and by what.
    pub(super) decision: Option<Decision>,
    /// Whether the intent is on record.
    pub(super) intended: bool,
    verdict: Option<Verdict>,
}

/// What was decided of a tool, and by what.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    /// What the tool needs.
    pub(super) permission: Permission,
    /// The role that granted it, and what of it.
    pub(super) granted_by: Option<(String, String)>,
}

/// How a message went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    outcome: Outcome,
    violation: Option<Violation>,
    /// The rule of the detector that was met.
    anomaly: Option<&'static str>,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    /// It went well.
    pub(super) fn success() -> Self {
        Self { outcome: Outcome::Success, violation: None, anomaly: None, reason: None, message: None }
    }

    /// It was tried and failed.
    pub(super) fn failure(reason: &'static str, message: String) -> Self {
        let (reason, message) = (Some(reason), Some(message));
        Self { outcome: Outcome::Failure, reason, message, ..Self::success() }
    }

    /// It was refused.
    pub(super) fn denied(reason: &'static str, message: String) -> Self {
        Self { outcome: Outcome::Denied, ..Self::failure(reason, message) }
    }

    /// It was refused because it broke a rule of the endpoint.
    pub(super) fn violation(violation: Violation, message: String) -> Self {
        Self { violation: Some(violation), ..Self::denied(violation.as_str(), message) }
    }

    /// It was refused because it is unlike its caller.
    pub(super) fn anomalous(anomaly: &Anomaly) -> Self {
        let refused = Self::violation(Violation::AnomalousRequest, anomaly.to_string());
        Self { anomaly: Some(anomaly.as_str()), ..refused }
    }

    /// It was let through where it might have been refused.
    pub(super) fn observed(self) -> Self {
        Self { outcome: Outcome::Observed, ..self }
    }

    /// The client left before the answer.
    pub(super) fn cancelled() -> Self {
        Self { outcome: Outcome::Cancelled, reason: Some("cancelled"), ..Self::success() }
    }

    /// The rule that was broken.
    pub(super) fn broken(&self) -> Option<Violation> {
        self.violation
    }

    /// Fixed word for metrics.
    pub(super) fn as_str(&self) -> &'static str {
        self.outcome.as_str()
    }
}

impl Call {
    /// Begins the draft.
    pub(super) fn new(caller: Caller, channel: Channel, method: String, tool: Option<String>) -> Self {
        Self {
            caller,
            channel,
            request_id: request_id(),
            method,
            at: Timestamp::now(),
            started: Instant::now(),
            draft: Mutex::new(Draft { tool, ..Draft::default() }),
        }
    }

    /// What is known so far, to add to it. Never held across an await.
    pub(super) fn draft(&self) -> MutexGuard<'_, Draft> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how it went. The first word counts.
    pub(super) fn decide(&self, verdict: Verdict) {
        self.draft().verdict.get_or_insert(verdict);
    }

    /// How it went, if that is decided.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.draft().verdict.clone()
    }

    /// Time since the message came.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The event as it stands. A refusal is a decision; everything else is a request that ran.
    pub(super) fn event(&self, server: &str, verdict: Verdict) -> Event {
        let draft = self.draft().clone();
        let identity = &self.caller.identity;
        let event_type = match (verdict.outcome, verdict.violation) {
            (_, Some(_)) => Kind::SecurityViolation,
            (Outcome::Denied, None) => Kind::Authorization,
            _ => Kind::McpRequest,
        };
        let mut metadata = self.caller.proof();
        metadata.insert("transport".to_owned(), self.channel.as_str().to_owned());
        metadata.extend(verdict.anomaly.map(|rule| ("anomaly".to_owned(), rule.to_owned())));
        let mut role = None;
        if let Some(decision) = draft.decision {
            metadata.insert("permission".to_owned(), decision.permission.to_string());
            if let Some((granting, rule)) = decision.granted_by {
                metadata.insert("rule".to_owned(), rule);
                role = Some(granting);
            }
        }
        Event {
            event_id: String::new(),
            timestamp: self.at,
            event_type,
            request_id: self.request_id.clone(),
            server: server.to_owned(),
            user: identity.subject.clone(),
            auth_type: identity.method.as_str().to_owned(),
            credential_id: Some(identity.credential_id.clone()),
            client_ip: Some(self.caller.client_ip.to_string()),
            action: self.method.clone(),
            tool: draft.tool,
            resource: draft.resource,
            namespace: draft.namespace,
            params: draft.params,
            result: verdict.outcome,
            reason: verdict.reason.map(str::to_owned).or(role),
            error_message: verdict.message,
            duration_ms: u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX),
            count: 1,
            metadata,
        }
    }

    /// The event of an effect that is about to happen.
    pub(super) fn intent(&self, server: &str) -> Event {
        self.event(server, Verdict { outcome: Outcome::Intent, ..Verdict::success() })
    }
}

/// Gets the event of a message recorded exactly once: with its outcome, or as cancelled when it is dropped
/// before there is one.
pub(super) struct Recorder {
    core: Arc<Core>,
    call: Option<Arc<Call>>,
}

impl Recorder {
    /// Takes charge of the event.
    pub(super) fn new(core: Arc<Core>, call: Arc<Call>) -> Self {
        Self { core, call: Some(call) }
    }

    /// Records the outcome and lets the answer go. What nobody could record is not answered, unless its intent is on
    /// record: then it has happened, and the caller should know.
    pub(super) async fn finish(mut self, verdict: Verdict, id: Option<&RawValue>, answer: Answer) -> Answer {
        let Some(call) = self.call.take() else { return answer };
        if let Some(violation) = verdict.broken() {
            self.core.metrics.count_violation(violation.as_str());
        }
        let span = tracing::Span::current();
        span.record("result", verdict.as_str());
        if let Some(tool) = &call.draft().tool {
            span.record("tool", tool.as_str());
        }
        let intended = call.draft().intended;
        let (core, event) = (self.core.clone(), call.event(&self.core.server, verdict));
        // Recorded by a task of its own, so that a client who hangs up now neither loses nor doubles it.
        let recorded = self.core.recording.spawn(async move { core.audit.record(event).await }).await;
        if matches!(recorded, Ok(Ok(()))) || intended {
            return answer;
        }
        tracing::error!("an outcome could not be recorded");
        let text = "the request could not be recorded in the audit";
        Answer::error(StatusCode::SERVICE_UNAVAILABLE, error::answer(id, error::INTERNAL_ERROR, text))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let Some(call) = self.call.take() else { return };
        // A tool that has decided has happened, whether or not anybody hears of it.
        let verdict = call.verdict().unwrap_or_else(Verdict::cancelled);
        if let Some(violation) = verdict.broken() {
            self.core.metrics.count_violation(violation.as_str());
        }
        let (core, event) = (self.core.clone(), call.event(&self.core.server, verdict));
        self.core.recording.spawn(async move {
            if core.audit.record(event).await.is_err() {
                tracing::error!("a request that was left could not be recorded");
            }
        });
    }
}

/// A new id for the events of one request.
pub(super) fn request_id() -> String {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).expect("the system has randomness");
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Ulid::from_parts(milliseconds, u128::from_be_bytes(random)).to_string()
}
