//! `McpApiKey`: from the wish for a key to one that its owner can read, and through its rotations to its end.
//!
//! The digest goes first: a key that a person can read is always one that the endpoint already knows. [`plan`] decides
//! for keys that the operator makes, [`import`] for those that exist already; [`report`] says what came of it.

mod acceptance;
mod events;
mod generations;
mod import;
mod last_use;
mod pass;
mod plan;
mod report;
mod secret;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt};

use crate::api::conditions::REASON_INVALID;
use crate::api::{McpApiKey, RoleKind};
use crate::index::snapshot::admits_servers;
use crate::k8s::apply::text;
use crate::k8s::watch::{Guarded, find};

use super::engine::{Outcome, Transient};
use super::status::{Stale, Written, try_write};
use super::{Context, namespaces};

use acceptance::Acceptance;
use generations::Rules;
use plan::Change;

pub(super) use last_use::sweep;

/// While replicas learn of a key, it is looked at this often.
const WAITING: Duration = Duration::from_secs(1);
/// Pause after a write that came too late: somebody else was at it.
const RACED: Duration = Duration::from_millis(200);
/// Most writes of one pass. More are needed only when people keep changing the object.
const MAX_STEPS: usize = 16;

/// How far a pass came.
#[derive(Debug)]
enum Found {
    /// Status and Secret agree.
    Settled,
    /// Replicas do not accept the pending generation yet.
    Waiting(Acceptance),
    /// No administrator let servers into the namespace.
    NotOptedIn,
    /// Something failed that may go away.
    Failed(Transient),
    /// Somebody else wrote in between, or the object is gone: the next pass sees what there is.
    Raced,
}

/// Why the object cannot work as it is written; somebody must change something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    /// Reason, from `api::conditions`.
    reason: &'static str,
    /// The field at fault and what to do.
    message: String,
    /// Whether even a generation that there is already cannot be used.
    is_fatal: bool,
}

/// The object as last written, and how a pass over it went.
struct Pass {
    key: McpApiKey,
    found: Found,
    problem: Option<Problem>,
}

/// Reconciles a key.
pub(super) async fn reconcile(
    context: Arc<Context>,
    object: Arc<Guarded<McpApiKey>>,
) -> Result<Outcome, Transient> {
    let Ok(key) = &object.0 else { return Ok(Outcome::Invalid(None)) };
    if key.meta().deletion_timestamp.is_some() {
        return Ok(Outcome::Settled(None));
    }
    let namespace = key.namespace().unwrap_or_default();
    let Some(labels) = find(&context.cluster.namespaces, "", &namespace)
        .filter(|found| found.metadata.deletion_timestamp.is_none())
        .map(|found| found.metadata.labels.unwrap_or_default())
    else {
        return Ok(Outcome::Settled(None));
    };
    let api = Api::<McpApiKey>::namespaced(context.client.clone(), &namespace);
    // Which generations there are is decided on the newest object only, never on a copy that may be old.
    let newest = read(&api, &key.name_any()).await?;
    let Some(key) = newest.filter(|key| key.meta().deletion_timestamp.is_none()) else {
        return Ok(Outcome::Settled(None));
    };
    let pass = if admits_servers(&labels) {
        publish(&context, &api, key).await
    } else {
        Pass { key, found: Found::NotOptedIn, problem: None }
    };
    tell(&context, &api, pass).await
}

async fn read(api: &Api<McpApiKey>, name: &str) -> Result<Option<McpApiKey>, Transient> {
    let failed = |error| Transient::apply(format!("failed to read McpApiKey {name:?}: {}", text(&error)));
    api.get_opt(name).await.map_err(failed)
}

/// Brings the generations and the Secret together, one step at a time.
async fn publish(context: &Arc<Context>, api: &Api<McpApiKey>, mut key: McpApiKey) -> Pass {
    let namespace = key.namespace().unwrap_or_default();
    let room = context.namespaces.room(&namespace);
    let _working = room.work().await;
    if let Err(error) = namespaces::enter(context, &namespace).await {
        return Pass { key, found: Found::Failed(error), problem: None };
    }
    let mut problem = invalid_network(&key);
    let done = if key.spec.import.is_some() {
        import::take(context, api, &mut key, &mut problem).await
    } else {
        pass::take(context, api, &mut key, problem.is_none()).await
    };
    Pass { key, found: done.unwrap_or_else(Found::Failed), problem }
}

/// The first of the allowed networks that is none. Such a key is accepted nowhere.
fn invalid_network(key: &McpApiKey) -> Option<Problem> {
    let mut networks = key.spec.allowed_cidrs.iter().enumerate();
    let (index, text) = networks.find(|(_, text)| text.parse::<IpNet>().is_err())?;
    Some(Problem {
        reason: REASON_INVALID,
        message: format!(
            "spec.allowedCidrs[{index}]: {text:?} is not a CIDR such as 10.0.0.0/8 or 2001:db8::/32; the key is accepted from nowhere"
        ),
        is_fatal: true,
    })
}

/// Writes what came of a pass, tells of it, and says when to look again.
async fn tell(context: &Context, api: &Api<McpApiKey>, pass: Pass) -> Result<Outcome, Transient> {
    let Pass { key, found, problem } = pass;
    if matches!(found, Found::Raced) {
        return Ok(Outcome::Settled(Some(RACED)));
    }
    let now = Timestamp::now();
    let missing = missing_roles(context, &key);
    let view = report::View { key: &key, found: &found, problem: problem.as_ref(), missing: &missing };
    let status = report::key_status(&view, now);
    match try_write(api, &key, key.status.as_ref(), &status, Stale::Refused).await? {
        Written::Raced => return Ok(Outcome::Settled(Some(RACED))),
        Written::Done(_) if !matches!(found, Found::NotOptedIn) => {
            let before = key.status.as_ref().map_or(&[][..], |status| &status.conditions);
            events::tell_conditions(context, &key, before, &status.conditions).await;
        }
        Written::Done(_) | Written::Same | Written::Gone => {}
    }
    match found {
        Found::Settled if problem.is_some() => Ok(Outcome::Invalid(Some(report::next_look(&key, now)))),
        Found::Settled | Found::Raced => Ok(Outcome::Settled(Some(report::next_look(&key, now)))),
        Found::Waiting(_) => Ok(Outcome::Settled(Some(WAITING))),
        Found::NotOptedIn => Ok(Outcome::Invalid(None)),
        Found::Failed(error) => Err(error),
    }
}

/// Now, as finely as times are written.
fn this_second() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

/// Writes the generations before anything else is done with them, and tells what happened to them. Says whether it was
/// written: it is not when the object has changed since.
async fn write_change(
    context: &Context,
    api: &Api<McpApiKey>,
    key: &mut McpApiKey,
    change: Change,
) -> Result<bool, Transient> {
    let before = key.status.clone().unwrap_or_default();
    let mut status = before.clone();
    change.apply(&mut status);
    match try_write(api, key, key.status.as_ref(), &status, Stale::Refused).await? {
        Written::Done(written) => *key = written,
        Written::Raced | Written::Gone | Written::Same => return Ok(false),
    }
    events::tell_generations(context, key, &before.keys, &status.keys).await;
    Ok(true)
}

/// Roles that the key names and that do not exist, in words. They grant nothing; the key works without them.
fn missing_roles(context: &Context, key: &McpApiKey) -> Vec<String> {
    let namespace = key.namespace().unwrap_or_default();
    let exists = |kind: RoleKind, name: &str| match kind {
        RoleKind::McpRole => find(&context.cluster.roles, &namespace, name).is_some(),
        RoleKind::ClusterMcpRole => find(&context.cluster.cluster_roles, "", name).is_some(),
    };
    let missing = key.spec.roles.iter().filter(|role| !exists(role.kind, &role.name));
    missing.map(|role| format!("{:?} {:?}", role.kind, role.name)).collect()
}

#[cfg(test)]
mod tests;
