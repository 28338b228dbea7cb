//! The counters. Labels have few values: who did it stands in the audit, never here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an authentication.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Authentication {
    /// Method, or `none`.
    pub(crate) auth_type: &'static str,
    /// `success`, or the reason of the failure.
    pub(crate) result: &'static str,
}

/// Labels of an authorization.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Authorization {
    /// Resource of the permission.
    pub(crate) resource: &'static str,
    /// Verb of the permission.
    pub(crate) action: &'static str,
    /// `allowed` or `denied`.
    pub(crate) result: &'static str,
}

/// Labels of a security violation. Who it was stands in the audit.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SecurityViolation {
    violation_type: &'static str,
}

/// Labels of a tool call.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ToolCall {
    /// Canonical name of the tool.
    pub(crate) tool: &'static str,
    /// How it went.
    pub(crate) result: &'static str,
}

/// Labels of a request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Transport {
    /// `streamable_http` or `sse`.
    pub(crate) transport: &'static str,
}

/// Labels of a reconcile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Reconcile {
    /// Kind of the object.
    pub(crate) kind: &'static str,
    /// `success`, `invalid` or the reason of the failure.
    pub(crate) result: &'static str,
}

/// Every counter of the process; those of the other half stay at zero.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Credentials presented.
    pub(crate) authentications: Family<Authentication, Counter>,
    /// Decisions made.
    pub(crate) authorizations: Family<Authorization, Counter>,
    /// Rules of the endpoint that were broken.
    security_violations: Family<SecurityViolation, Counter>,
    /// Tools called.
    pub(crate) tool_calls: Family<ToolCall, Counter>,
    /// Time of a tool call.
    pub(crate) tool_call_duration: Histogram,
    /// Requests by transport.
    pub(crate) requests: Family<Transport, Counter>,
    /// Open SSE streams.
    pub(crate) sse_sessions: Gauge,
    /// Panics that became answers.
    pub(crate) panics: Counter,
    /// Audit events recorded.
    pub(crate) audit_events: Counter,
    /// Audit events that could not be recorded.
    pub(crate) audit_failures: Counter,
    /// Refusals of which no Kubernetes Event tells; they are on record.
    pub(crate) audit_notifications_dropped: Counter,
    /// Reconciles.
    pub(crate) reconciles: Family<Reconcile, Counter>,
}

impl Metrics {
    /// Registers every counter.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            authentications: Family::default(),
            authorizations: Family::default(),
            security_violations: Family::default(),
            tool_calls: Family::default(),
            tool_call_duration: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
            requests: Family::default(),
            sse_sessions: Gauge::default(),
            panics: Counter::default(),
            audit_events: Counter::default(),
            audit_failures: Counter::default(),
            audit_notifications_dropped: Counter::default(),
            reconciles: Family::default(),
        };
        let m = &metrics;
        registry.register("mcp_authentication_attempts", "Credentials presented", m.authentications.clone());
        registry.register("mcp_authorization_checks", "Decisions made", m.authorizations.clone());
        registry.register(
            "mcp_security_violations",
            "Rules of the endpoint that were broken",
            m.security_violations.clone(),
        );
        registry.register("mcp_tool_calls", "Tools called", m.tool_calls.clone());
        registry.register_with_unit(
            "mcp_tool_call_duration",
            "Time of a tool call",
            Unit::Seconds,
            m.tool_call_duration.clone(),
        );
        registry.register("mcp_requests", "Requests by transport", m.requests.clone());
        registry.register("mcp_sse_sessions", "Open SSE streams", m.sse_sessions.clone());
        registry.register("mcp_panics", "Panics that became answers", m.panics.clone());
        registry.register("mcp_audit_events", "Audit events recorded", m.audit_events.clone());
        registry.register(
            "mcp_audit_failures",
            "Audit events that could not be recorded",
            m.audit_failures.clone(),
        );
        registry.register(
            "mcp_audit_notifications_dropped",
            "Refusals of which no Kubernetes Event tells",
            m.audit_notifications_dropped.clone(),
        );
        registry.register("portcullis_reconciles", "Reconciles by kind and result", m.reconciles.clone());
        metrics
    }

    /// Shows a rule of the endpoint before it is broken for the first time: an alert needs a zero to rise from.
    pub(crate) fn expect_violation(&self, violation_type: &'static str) {
        drop(self.security_violations.get_or_create(&SecurityViolation { violation_type }));
    }

    /// Counts a rule of the endpoint that was broken.
    pub(crate) fn count_violation(&self, violation_type: &'static str) {
        self.security_violations.get_or_create(&SecurityViolation { violation_type }).inc();
    }
}
