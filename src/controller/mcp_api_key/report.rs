//! The whole status of a key, from what a pass found. Pure: the time is an argument.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;

use crate::api::conditions::{
    ACCEPTED, EXPIRING, READY, REASON_ACCEPTED, REASON_DISABLED, REASON_EXPIRED,
    REASON_NAMESPACE_NOT_OPTED_IN, REASON_NOT_EXPIRING, REASON_NOT_ROTATING, REASON_PENDING, REASON_READY,
    REASON_ROTATION_BLOCKED, REASON_WAITING_FOR_REPLICAS, REASON_WITHIN_ONE_DAY, REASON_WITHIN_SEVEN_DAYS,
    ROTATING,
};
use crate::api::{KeyGeneration, KeyState, McpApiKey, McpApiKeyStatus, SecretReference, names};
use crate::controller::{PERIOD, namespaces};
use crate::k8s::condition::Finding;

use super::generations::{self, Rules};
use super::plan::asks_to_rotate;
use super::{Acceptance, Found, Problem};

/// A replica that has been silent for so long holds a rotation up.
const SILENCE: SignedDuration = SignedDuration::from_secs(60);
/// The hash of an imported key reaches a pod by its mounted Secret, which takes a minute or two.
const MOUNTED_WITHIN: SignedDuration = SignedDuration::from_secs(180);
/// Times before the end of a key at which it is told of.
const NOTICES: [SignedDuration; 2] = [SignedDuration::from_hours(7 * 24), SignedDuration::from_hours(24)];

/// What a status is made from.
pub(super) struct View<'a> {
    /// The object as last written.
    pub(super) key: &'a McpApiKey,
    /// How far the pass came.
    pub(super) found: &'a Found,
    /// Why the object cannot work as it is written.
    pub(super) problem: Option<&'a Problem>,
    /// Roles that do not exist.
    pub(super) missing: &'a [String],
}

/// The whole status of a key.
pub(super) fn key_status(view: &View<'_>, now: Timestamp) -> McpApiKeyStatus {
    let key = view.key;
    let before = key.status.clone().unwrap_or_default();
    let rules = Rules::of(&key.spec);
    let generation = key.metadata.generation;
    let accepted = accepted(view);
    let ready = ready(view, &before, &accepted, &rules, now);
    let condition =
        |type_: &str, finding: Finding| finding.into_condition(type_, &before.conditions, generation, now);
    let mut conditions = vec![condition(ACCEPTED, accepted), condition(READY, ready)];
    match rotating(view, &before, &rules, now) {
        Some(finding) => conditions.push(condition(ROTATING, finding)),
        None => conditions.extend(previous(&before, ROTATING).cloned()),
    }
    conditions.push(condition(EXPIRING, expiring(&before, &rules, now)));
    let has_secret = match view.found {
        Found::NotOptedIn | Found::Failed(_) | Found::Raced => before.secret_ref.is_some(),
        Found::Settled | Found::Waiting(_) => {
            key.spec.import.is_none() && generations::active(&before.keys).is_some()
        }
    };
    McpApiKeyStatus {
        secret_ref: has_secret.then(|| SecretReference { name: names::key_secret(&key.name_any()) }),
        next_rotation_at: generations::next_rotation(&before.keys, &rules).map(Time),
        observed_generation: generation,
        conditions,
        ..before
    }
}

fn previous<'a>(status: &'a McpApiKeyStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn accepted(view: &View<'_>) -> Finding {
    match (view.found, view.problem) {
        (Found::NotOptedIn, _) => Finding::no(
            REASON_NAMESPACE_NOT_OPTED_IN,
            namespaces::opt_in_message(&view.key.namespace().unwrap_or_default()),
        ),
        (_, Some(problem)) => Finding::no(problem.reason, &problem.message),
        _ if view.missing.is_empty() => Finding::yes(REASON_ACCEPTED, "the key is known to its servers"),
        _ => Finding::yes(
            REASON_ACCEPTED,
            format!("these roles do not exist and grant nothing: {}", view.missing.join(", ")),
        ),
    }
}

fn ready(
    view: &View<'_>,
    status: &McpApiKeyStatus,
    accepted: &Finding,
    rules: &Rules,
    now: Timestamp,
) -> Finding {
    let spec = &view.key.spec;
    match (view.found, view.problem) {
        (Found::NotOptedIn, _) => return accepted.clone(),
        _ if !spec.enabled => return Finding::no(REASON_DISABLED, "spec.enabled is false"),
        _ if rules.are_over(now) => {
            let end = rules.expires_at.unwrap_or(now);
            return Finding::no(REASON_EXPIRED, format!("spec.expiresAt, {end}, has passed"));
        }
        (Found::Failed(error), _) => return Finding::no(error.reason, &error.message),
        (_, Some(problem)) if problem.is_fatal => return accepted.clone(),
        _ => {}
    }
    match (generations::active(&status.keys), &spec.import) {
        (Some(_), None) => {
            let name = names::key_secret(&view.key.name_any());
            Finding::yes(REASON_READY, format!("Secret {name:?} holds the key"))
        }
        (Some(_), Some(_)) => Finding::yes(REASON_READY, "the imported key is in use"),
        (None, _) if view.problem.is_some() => accepted.clone(),
        (None, _) => Finding::no(REASON_PENDING, "no generation of the key is in use yet"),
    }
}

/// Whether a successor is under way. None: nobody knows, and what was said stays.
fn rotating(view: &View<'_>, status: &McpApiKeyStatus, rules: &Rules, now: Timestamp) -> Option<Finding> {
    let none = Finding::no(REASON_NOT_ROTATING, "no new key is under way");
    match view.found {
        Found::Waiting(answers) => Some(waiting(view.key, status, answers, now)),
        Found::Settled => {
            let rotate = view.key.annotations().get(names::ROTATE_ANNOTATION).map(String::as_str);
            let due = generations::active(&status.keys).and_then(|active| rules.due(active));
            let is_wanted = view.key.spec.import.is_none()
                && (asks_to_rotate(rotate, status) || due.is_some_and(|due| due <= now));
            let is_held_up = is_wanted && !rules.are_over(now);
            Some(match (is_held_up, view.problem) {
                (true, Some(problem)) => Finding::no(REASON_ROTATION_BLOCKED, &problem.message),
                (true, None) if !generations::have_room(&status.keys) => Finding::no(
                    REASON_ROTATION_BLOCKED,
                    "as many keys as a status can hold are still accepted; the next one waits until one of them ends",
                ),
                _ => none,
            })
        }
        Found::NotOptedIn | Found::Failed(_) | Found::Raced if previous(status, ROTATING).is_some() => None,
        Found::NotOptedIn | Found::Failed(_) | Found::Raced => Some(none),
    }
}

fn waiting(key: &McpApiKey, status: &McpApiKeyStatus, answers: &Acceptance, now: Timestamp) -> Finding {
    let pending = status.keys.iter().find(|generation| generation.state == KeyState::Pending);
    let patience = if key.spec.import.is_some() { MOUNTED_WITHIN } else { SILENCE };
    let since = pending.map(|pending| pending.created_at.0);
    match since.filter(|since| generations::after(*since, patience) <= now) {
        Some(since) => Finding::no(
            REASON_ROTATION_BLOCKED,
            format!("waiting since {since}: {}; the old key stays in use", answers.describe()),
        ),
        None => Finding::yes(REASON_WAITING_FOR_REPLICAS, answers.describe()),
    }
}

/// When callers will find themselves without a key: at the end of the key, or where an overdue or impossible rotation
/// lets the active generation run out.
fn end(keys: &[KeyGeneration], rules: &Rules, now: Timestamp) -> Option<Timestamp> {
    let active = generations::active(keys);
    let is_replaced = active.and_then(|active| rules.due(active)).is_some_and(|due| due > now);
    let by_age = active.and_then(|active| active.not_after.as_ref()).filter(|_| !is_replaced);
    by_age.map(|end| end.0).into_iter().chain(rules.expires_at).min()
}

fn expiring(status: &McpApiKeyStatus, rules: &Rules, now: Timestamp) -> Finding {
    let Some(end) = end(&status.keys, rules, now) else {
        return Finding::no(REASON_NOT_EXPIRING, "the key has no end that is not preceded by a new one");
    };
    let left = end.duration_since(now);
    let message = format!("the key ends at {end}");
    match left {
        left if left <= SignedDuration::ZERO => {
            Finding::no(REASON_EXPIRED, format!("the key has ended at {end}"))
        }
        left if left <= NOTICES[1] => Finding::yes(REASON_WITHIN_ONE_DAY, message),
        left if left <= NOTICES[0] => Finding::yes(REASON_WITHIN_SEVEN_DAYS, message),
        _ => Finding::no(REASON_NOT_EXPIRING, message),
    }
}

/// Secrets are not watched, and what time brings is nobody's event.
pub(super) fn next_look(key: &McpApiKey, now: Timestamp) -> Duration {
    let rules = Rules::of(&key.spec);
    let keys = key.status.as_ref().map_or(&[][..], |status| &status.keys);
    let end = end(keys, &rules, now);
    let notices = NOTICES.iter().filter_map(|notice| end?.checked_sub(*notice).ok());
    let times = notices.chain(generations::next_change(keys, &rules, now)).filter(|time| *time > now);
    let left = times.min().and_then(|time| Duration::try_from(time.duration_since(now)).ok());
    left.map_or(PERIOD, |left| PERIOD.min(left + Duration::from_millis(50)))
}
