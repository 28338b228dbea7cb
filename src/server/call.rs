//! One call of a tool, read top to bottom:
//! `usual? -> tool -> arguments -> authorize -> a place -> fresh policy? -> intent recorded -> authorize again -> run ->
//! redact, cap`.
//!
//! It always ends in an answer: a panic and a tool that takes too long are answers too. The caller records the outcome.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::draft::{Call, Decision, Verdict};
use super::habits::Unusual;
use super::request::{Caller, Core};
use super::result;
use super::toolbox::{opens, usable};
use crate::audit::without_secrets;
use crate::authn::Reason;
use crate::authz::anomaly::Anomaly;
use crate::authz::{
    Class, Confinement, Denial, Permission, Permit, Target, Violation, authorize, within_scopes,
};
use crate::metrics::{Authorization, ToolCall};
use crate::tools::{Context, Invocation, Needs, Output, Tool, ToolError, UNKNOWN_RESOURCE};

/// Why there is no tool to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTool {
    /// The caller knows none of that name: there is none, or it must not know.
    Unknown,
    /// Its roles reach there, and the scopes of its credential do not.
    OutOfScope(Permission),
}

/// Why a call has no result. The text is for the model.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("invalid arguments: {0}")]
    Arguments(String),
    #[error("permission denied: {} {}", .0.permission, place(.0))]
    Denied(Denial),
    #[error("permission denied: {permission} {}", place_of(namespace.as_ref()))]
    Withdrawn { permission: Permission, namespace: Option<String>, why: String },
    #[error("permission denied")]
    Unusual(Anomaly),
    /// The arguments name a resource that there is none of, or one of which the caller must not know.
    #[error("invalid arguments: {UNKNOWN_RESOURCE}")]
    Resource(Option<Against>),
    #[error("permission denied: {}", Against::Scopes(*.0))]
    Scope(Permission),
    #[error("the API server has been out of reach for too long; only reading is possible until it is back")]
    Stale,
    #[error("the call could not be recorded in the audit, so it was not run")]
    NotRecorded,
    #[error("too many tools are running; try again later")]
    Busy,
    #[error("the tool did not finish within {0} seconds; what it had begun may have happened")]
    Deadline(u64),
    #[error("the call was cancelled")]
    Cancelled,
    #[error("{0}")]
    Tool(ToolError),
    #[error("the tool failed unexpectedly")]
    Panic,
    #[error("{0}")]
    TooLarge(result::TooLarge),
}

/// What is against a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum Against {
    /// No role grants it there, or the tenant is in the way.
    #[error("{0}")]
    Roles(Denial),
    /// A role grants it, and the spec of the server denies it.
    #[error("the server does not offer the tool for {0}")]
    Spec(Permission),
    /// A role grants it, and the credential is not for it.
    #[error("the scopes of the credential do not reach to {0}")]
    Scopes(Permission),
}

fn place(denial: &Denial) -> String {
    place_of(denial.namespace.as_ref())
}

fn place_of(namespace: Option<&String>) -> String {
    namespace.map_or("anywhere".to_owned(), |namespace| format!("in namespace {namespace:?}"))
}

impl Refusal {
    fn verdict(&self) -> Verdict {
        match self {
            Refusal::Denied(denial) | Refusal::Resource(Some(Against::Roles(denial)))
                if denial.cause.is_tenancy() =>
            {
                Verdict::violation(Violation::TenantIsolation, denial.to_string())
            }
            Refusal::Denied(denial) => Verdict::denied("permission", denial.to_string()),
            Refusal::Resource(Some(against)) => Verdict::denied("permission", against.to_string()),
            Refusal::Withdrawn { why, .. } => Verdict::violation(Violation::StalePermit, why.clone()),
            Refusal::Unusual(anomaly) => Verdict::anomalous(anomaly),
            Refusal::Resource(None) => Verdict::failure("invalid_arguments", self.to_string()),
            Refusal::Scope(_) => Verdict::denied("insufficient_scope", self.to_string()),
            Refusal::Stale => Verdict::denied("stale_policy", self.to_string()),
            Refusal::NotRecorded => Verdict::denied("not_recorded", self.to_string()),
            Refusal::Cancelled => Verdict::cancelled(),
            Refusal::Arguments(_) => Verdict::failure("invalid_arguments", self.to_string()),
            Refusal::Busy => Verdict::failure("too_many_calls", self.to_string()),
            Refusal::Deadline(_) => Verdict::failure("deadline", self.to_string()),
            Refusal::Tool(error) => Verdict::failure(error.reason(), self.to_string()),
            Refusal::Panic => Verdict::failure("panic", self.to_string()),
            Refusal::TooLarge(_) => Verdict::failure("result_too_large", self.to_string()),
        }
    }
}

/// Calls a tool for the caller of the message. `Err` inside is text for a tool error.
///
/// # Errors
/// [`NoTool`] whether the tool does not exist, must not be known, or is out of the credential's scopes.
pub(super) async fn run(
    core: &Arc<Core>,
    call: &Call,
    name: &str,
    arguments: Map<String, Value>,
    cancelled: CancellationToken,
) -> Result<Result<Output, String>, NoTool> {
    call.draft().params = Some(Value::Object(arguments.clone()));
    // Whether or not there is such a tool, so that a refusal says nothing of that.
    if let Err(refusal) = heed(core, call, core.habits.judge_call(&call.caller)).await {
        let (verdict, text) = (refusal.verdict(), refusal.to_string());
        call.decide(verdict);
        return Ok(Err(text));
    }
    let Some(tool) = core.toolbox.find(name, &call.caller) else {
        core.habits.note_refusal(&call.caller);
        call.decide(match call.caller.grants.confinement() {
            Confinement::Nowhere => {
                let text = "the caller must belong to a tenant and does not".to_owned();
                Verdict::violation(Violation::TenantIsolation, text)
            }
            _ => Verdict::denied("unknown_tool", "no such tool for this caller".to_owned()),
        });
        return Err(NoTool::Unknown);
    };
    // Over Streamable HTTP such a call is refused before it gets here; a permit needs the roles and the scopes anyway.
    if let Some((tool, needed)) = core.toolbox.short_of_scope(name, &call.caller) {
        let (resource, namespace) = aim(tool, arguments).unzip();
        let mut draft = call.draft();
        draft.tool = Some(tool.name.to_owned());
        (draft.resource, draft.namespace) = (resource, namespace.flatten());
        draft.decision = Some(Decision { permission: needed, granted_by: None });
        drop(draft);
        call.decide(Verdict::denied("insufficient_scope", Against::Scopes(needed).to_string()));
        return Err(NoTool::OutOfScope(needed));
    }
    let guarded = AssertUnwindSafe(attempt(core, call, tool, arguments, cancelled)).catch_unwind().await;
    let outcome = guarded.unwrap_or_else(|_| {
        core.metrics.panics.inc();
        Err(Refusal::Panic)
    });
    let (verdict, answer) = match outcome {
        Ok(output) => (Verdict::success(), Ok(output)),
        // It may repeat an argument, and somebody may have put a key where a name belongs.
        Err(refusal) => (refusal.verdict(), Err(without_secrets(refusal.to_string()))),
    };
    let labels = ToolCall { tool: tool.name, result: verdict.as_str() };
    core.metrics.tool_calls.get_or_create(&labels).inc();
    core.metrics.tool_call_duration.observe(call.elapsed().as_secs_f64());
    call.decide(verdict);
    Ok(answer)
}

async fn attempt(
    core: &Arc<Core>,
    call: &Call,
    tool: &'static Tool,
    arguments: Map<String, Value>,
    cancelled: CancellationToken,
) -> Result<Output, Refusal> {
    call.draft().tool = Some(tool.name.to_owned());
    let invocation = (tool.parse)(arguments).map_err(|invalid| Refusal::Arguments(invalid.0))?;
    let permission = match tool.needs {
        Needs::Permission(permission) => permission,
        // A resource that there is none of counts like one that is not granted, or the count would tell them apart.
        Needs::Verb(_) => invocation.permission().ok_or_else(|| {
            core.habits.note_refusal(&call.caller);
            Refusal::Resource(None)
        })?,
    };
    let permit = decide(core, call, tool, permission, &*invocation).inspect_err(|refusal| {
        // A credential that is too narrow is not a caller that tries its luck.
        if !matches!(refusal, Refusal::Scope(_)) {
            core.habits.note_refusal(&call.caller);
        }
    })?;
    let class = permission.class();
    heed(core, call, core.habits.judge_class(&call.caller, class)).await?;
    // Before the intent, which says that something is about to happen. Waiting and running together must end before
    // the request does.
    let place = tokio::select! {
        place = tokio::time::timeout(core.deadline / 2, core.places.acquire()) => place,
        () = cancelled.cancelled() => return Err(Refusal::Cancelled),
    };
    let _place = place.map_err(|_| Refusal::Busy)?;
    if !core.policy.is_fresh(Timestamp::now(), class) {
        return Err(Refusal::Stale);
    }
    intend(core, call, class).await?;
    if cancelled.is_cancelled() {
        return Err(Refusal::Cancelled);
    }
    let (permit, caller) = still_permitted(core, call, tool, (permission, permit), &*invocation)?;
    let context = Context {
        client: core.client.clone(),
        identity: caller.identity.clone(),
        tools: core.toolbox.names(&caller),
        grants: caller.grants.clone(),
        namespaces: caller.snapshot.namespaces.clone(),
    };
    let output = tokio::select! {
        biased;
        output = tokio::time::timeout(core.deadline, invocation.run(context, permit)) => output,
        () = cancelled.cancelled() => return Err(Refusal::Cancelled),
    };
    let output = output.map_err(|_| Refusal::Deadline(core.deadline.as_secs()))?.map_err(Refusal::Tool)?;
    result::checked(output).map_err(Refusal::TooLarge)
}

/// Refuses what is unlike the caller, or records it and lets it through, as the server's spec says.
async fn heed(core: &Arc<Core>, call: &Call, unusual: Option<Unusual>) -> Result<(), Refusal> {
    let Some(Unusual { anomaly, is_refused }) = unusual else { return Ok(()) };
    if is_refused {
        return Err(Refusal::Unusual(anomaly));
    }
    core.metrics.count_violation(Violation::AnomalousRequest.as_str());
    core.record(call.event(&core.server, Verdict::anomalous(&anomaly).observed())).await;
    Ok(())
}

/// Judges the call once more when nothing is left to wait for: a place and the record may have taken long enough for the
/// caller, its roles or the tool to be withdrawn. What runs sees the policy of now.
fn still_permitted<'a>(
    core: &Core,
    call: &'a Call,
    tool: &'static Tool,
    (permission, permit): (Permission, Permit),
    invocation: &dyn Invocation,
) -> Result<(Permit, Cow<'a, Caller>), Refusal> {
    let withdrawn = |why: String| Refusal::Withdrawn {
        permission,
        namespace: namespace(invocation),
        why: format!("the permit was withdrawn before the call ran: {why}"),
    };
    let (caller, snapshot) = (&call.caller, core.policy.load());
    let admitted = snapshot.admit(&caller.identity, caller.client_ip, Timestamp::now());
    let grants = admitted.map_err(|reason| withdrawn(reason.to_string()))?;
    if !core.authenticator.still_holds(&caller.identity) {
        return Err(withdrawn(Reason::Revoked.to_string()));
    }
    if Arc::ptr_eq(&snapshot, &caller.snapshot) {
        return Ok((permit, Cow::Borrowed(caller)));
    }
    let caller = Caller { grants, snapshot, ..caller.clone() };
    let permit = permitted(core, call, &caller, (tool, permission), invocation)
        .map_err(|against| withdrawn(against.to_string()))?;
    Ok((permit, Cow::Owned(caller)))
}

/// Asks whether the caller may do this, here: by its roles, by the server's spec, and by the scopes of its credential.
fn permitted(
    core: &Core,
    call: &Call,
    caller: &Caller,
    (tool, permission): (&'static Tool, Permission),
    invocation: &dyn Invocation,
) -> Result<Permit, Against> {
    let (server, scopes) = (caller.snapshot.server.as_ref(), caller.identity.scopes.as_ref());
    let is_open = server.is_some_and(|server| opens(&server.spec.tools, tool, permission));
    let is_within = scopes.is_none_or(|scopes| within_scopes(scopes, permission));
    let decided = match authorize(&caller.grants, permission, invocation.target()) {
        Err(denial) => Err(Against::Roles(denial)),
        Ok(_) if !is_open => Err(Against::Spec(permission)),
        Ok(_) if !is_within => Err(Against::Scopes(permission)),
        Ok(permit) => Ok(permit),
    };
    let (entry, result) = (permission.entry(), if decided.is_ok() { "allowed" } else { "denied" });
    let labels = Authorization { resource: entry.resource, action: entry.verb, result };
    core.metrics.authorizations.get_or_create(&labels).inc();
    let mut draft = call.draft();
    draft.resource = Some(invocation.resource());
    draft.namespace = namespace(invocation);
    let granted_by = decided.as_ref().ok().map(|permit| (permit.role().to_string(), permit.rule()));
    draft.decision = Some(Decision { permission, granted_by });
    decided
}

/// What a call acts on and where, as far as its arguments say, for the record of a call that gets no further.
pub(super) fn aim(tool: &Tool, arguments: Map<String, Value>) -> Option<(String, Option<String>)> {
    let invocation = (tool.parse)(arguments).ok()?;
    Some((invocation.resource(), namespace(&*invocation)))
}

fn namespace(invocation: &dyn Invocation) -> Option<String> {
    match invocation.target() {
        Target::Namespace(namespace) => Some(namespace.to_owned()),
        Target::Anywhere => None,
    }
}

/// Asks whether the caller may do this, here. Of resources that do not exist and of those on which the caller may use the
/// tool nowhere the answer is the same.
fn decide(
    core: &Core,
    call: &Call,
    tool: &'static Tool,
    permission: Permission,
    invocation: &dyn Invocation,
) -> Result<Permit, Refusal> {
    permitted(core, call, &call.caller, (tool, permission), invocation).map_err(|against| {
        match (usable(tool, &call.caller).any(|usable| usable == permission), against) {
            (true, Against::Roles(denial)) => Refusal::Denied(denial),
            (true, Against::Scopes(permission)) => Refusal::Scope(permission),
            (_, against) => Refusal::Resource(Some(against)),
        }
    })
}

/// Records what is about to change or reveal something. No record, no effect.
async fn intend(core: &Core, call: &Call, class: Class) -> Result<(), Refusal> {
    if !class.records_intent() {
        return Ok(());
    }
    let event = call.intent(&core.server);
    core.audit.record(event).await.map_err(|_| Refusal::NotRecorded)?;
    call.draft().intended = true;
    Ok(())
}
