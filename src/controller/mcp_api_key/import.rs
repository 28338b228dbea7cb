//! Keys that exist already: the Secret of the spec is read, judged, and known to servers by its salted hash alone.
//!
//! A changed Secret is a rotation: servers learn the new text, then it takes over, then the old one retires. A text
//! that was revoked is never taken in again.

mod files;
mod resolve;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use secrecy::{ExposeSecret, SecretString};

use crate::api::conditions::{REASON_INVALID, REASON_NOT_FOUND, REASON_REVOKED, REASON_WEAK_KEY};
use crate::api::{ImportReference, KeyGeneration, KeyState, McpApiKey, McpApiKeyStatus, names};
use crate::authn::imported::AddImportedKey;
use crate::authn::key_rules::{self, WeakKey};
use crate::authn::{ApiKey, api_key};
use crate::controller::Context;
use crate::controller::engine::Transient;
use crate::k8s::apply::text;

use super::generations::{self, is_living};
use super::{Change, Found, MAX_STEPS, Problem, Rules, acceptance, secret, this_second, write_change};

pub(super) use files::clean;
use resolve::Resolved;

/// Takes the key as far as it goes now.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn take(
    context: &Context,
    api: &Api<McpApiKey>,
    key: &mut McpApiKey,
    problem: &mut Option<Problem>,
) -> Result<Found, Transient> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &key.namespace().unwrap_or_default());
    for _ in 0..MAX_STEPS {
        let rules = Rules::of(&key.spec);
        let status = key.status.clone().unwrap_or_default();
        if let Some(change) = ended(key, &status, &rules, this_second()) {
            if write_change(context, api, key, change).await? {
                continue;
            }
            return Ok(Found::Raced);
        }
        if rules.are_over(Timestamp::now()) || problem.is_some() {
            return Ok(Found::Settled);
        }
        let resolved = match identify(context, &secrets, key, &rules).await? {
            Ok(Some(resolved)) => resolved,
            Ok(None) => return Ok(Found::Raced),
            Err(found) => {
                *problem = Some(found);
                return Ok(Found::Settled);
            }
        };
        let step = next_step(&status, resolved, &rules, this_second());
        let change = match step {
            Step::Write(change) => change,
            Step::Problem(found) => {
                *problem = Some(found);
                return Ok(Found::Settled);
            }
            Step::Full => return Ok(Found::Settled),
            Step::Rest => {
                // What the operator made before the key was imported has been replaced.
                secret::remove(&secrets, key).await?;
                return Ok(Found::Settled);
            }
            Step::Ask(id) => {
                let answers = acceptance::ask(context, key, &id).await;
                if !answers.is_complete() {
                    return Ok(Found::Waiting(answers));
                }
                taken_over(&status, &id, &rules, this_second())
            }
        };
        if !write_change(context, api, key, change).await? {
            return Ok(Found::Raced);
        }
    }
    Ok(Found::Raced)
}

/// What ends by itself or because somebody asked for it.
fn ended(key: &McpApiKey, status: &McpApiKeyStatus, rules: &Rules, now: Timestamp) -> Option<Change> {
    let revoke = key.annotations().get(names::REVOKE_ANNOTATION);
    if revoke.is_some() && revoke != status.handled_revoke.as_ref() {
        let mut change = Change::of(status, generations::revoked(&status.keys, |_| true));
        change.handled_revoke = revoke.cloned();
        return Some(change);
    }
    let aged = generations::aged(&status.keys, rules, now);
    (aged != status.keys).then(|| Change::of(status, aged))
}

/// What is to be done about a text that was read.
#[derive(Debug, PartialEq)]
enum Step {
    /// It is in use.
    Rest,
    /// As many generations as a status can hold are still accepted; it waits until one of them ends.
    Full,
    /// The status is written.
    Write(Change),
    /// The replicas are asked whether they accept this generation.
    Ask(String),
    /// Somebody must put another key into the Secret.
    Problem(Problem),
}

/// Decides by what the text is.
fn next_step(status: &McpApiKeyStatus, resolved: Resolved, rules: &Rules, now: Timestamp) -> Step {
    let keys = &status.keys;
    match resolved {
        Resolved::Over(id) => Step::Problem(over(keys, &id)),
        Resolved::New { .. } if !generations::have_room(keys) => Step::Full,
        Resolved::New { id, digest } => {
            // What was under way is given up: another text has taken its place before anybody accepted it.
            let keys = generations::revoked(keys, |generation| generation.state == KeyState::Pending);
            Step::Write(Change::of(status, generations::begun(&keys, &id, &digest, rules, now)))
        }
        Resolved::Known(id) => {
            let state = keys.iter().find(|generation| generation.id == id).map(|generation| generation.state);
            let surplus = |generation: &KeyGeneration| {
                generation.id != id
                    && match generation.state {
                        KeyState::Pending => true,
                        KeyState::Active => state == Some(KeyState::Active),
                        _ => false,
                    }
            };
            if keys.iter().any(surplus) {
                return Step::Write(Change::of(status, generations::revoked(keys, surplus)));
            }
            match state {
                Some(KeyState::Pending) => Step::Ask(id),
                _ => Step::Rest,
            }
        }
    }
}

/// Every replica accepts the generation: it is the one in use from now on.
fn taken_over(status: &McpApiKeyStatus, id: &str, rules: &Rules, now: Timestamp) -> Change {
    let mut change = Change::of(status, generations::promoted(&status.keys, id, rules, now));
    if status.keys.iter().any(|generation| generation.id != id) {
        change.last_rotated_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    }
    change
}

fn over(keys: &[KeyGeneration], id: &str) -> Problem {
    let is_revoked = keys.iter().any(|g| g.id == id && g.state == KeyState::Revoked);
    let what = if is_revoked { "was revoked" } else { "has reached spec.rotation.maxAgeHours" };
    Problem {
        reason: if is_revoked { REASON_REVOKED } else { crate::api::conditions::REASON_EXPIRED },
        message: format!(
            "spec.import.secretRef: this key {what} and is not imported again; put another one into the Secret"
        ),
        is_fatal: false,
    }
}

/// Whether a text must not be taken in again.
fn is_over(generation: &KeyGeneration, rules: &Rules, now: Timestamp) -> bool {
    match generation.state {
        KeyState::Revoked => true,
        KeyState::Expired => rules.end_of(generation).is_some_and(|end| end <= now),
        _ => false,
    }
}

/// Which generation the text of the Secret is. None: somebody else wrote to a server's hashes in between.
async fn identify(
    context: &Context,
    secrets: &Api<Secret>,
    key: &McpApiKey,
    rules: &Rules,
) -> Result<Result<Option<Resolved>, Problem>, Transient> {
    let Some(import) = &key.spec.import else { return Ok(Ok(None)) };
    let reference = &import.secret_ref;
    let name = &reference.name;
    let failed = |error| Transient::apply(format!("failed to read Secret {name:?}: {}", text(&error)));
    let found = secrets.get_opt(name).await.map_err(failed)?;
    let plain = match source(reference, found.as_ref()) {
        Ok(plain) => plain,
        Err(problem) => return Ok(Err(problem)),
    };
    match ApiKey::parse(plain.expose_secret()) {
        Ok(own) => Ok(match taken_elsewhere(context, key, own.id()) {
            Some(problem) => Err(problem),
            None => {
                files::forget(context, secrets, key).await?;
                Ok(Some(resolve_own(key, &own, rules)))
            }
        }),
        Err(_) => files::resolve(context, secrets, key, rules, plain).await,
    }
}

/// What a key in our own format is: it needs no salt, and its digest says it all.
fn resolve_own(key: &McpApiKey, own: &ApiKey, rules: &Rules) -> Resolved {
    let (id, digest) = (own.id().to_owned(), api_key::format_digest(&own.digest()));
    let keys = key.status.as_ref().map_or(&[][..], |status| &status.keys);
    let found = keys.iter().find(|generation| generation.id == id && generation.digest == digest);
    match found {
        Some(found) if is_over(found, rules, Timestamp::now()) => Resolved::Over(id),
        Some(found) if is_living(found) && found.state != KeyState::Retiring => Resolved::Known(id),
        _ => Resolved::New { id, digest },
    }
}

/// A key of ours has one owner: whose it is could not be said otherwise.
fn taken_elsewhere(context: &Context, key: &McpApiKey, id: &str) -> Option<Problem> {
    let holds = |other: &McpApiKey| {
        let keys = other.status.as_ref().map_or(&[][..], |status| &status.keys);
        other.uid() != key.uid()
            && other.namespace() == key.namespace()
            && keys.iter().any(|generation| generation.id == id)
    };
    let others = context.cluster.keys.state();
    let other = others.iter().filter_map(|other| other.0.as_ref().ok()).find(|other| holds(other))?;
    Some(taken(&other.name_any()))
}

fn taken(other: &str) -> Problem {
    Problem {
        reason: REASON_INVALID,
        message: format!(
            "spec.import.secretRef: McpApiKey {other:?} has the same key; a key can have one owner only"
        ),
        is_fatal: false,
    }
}

/// The text of the Secret, if it may be imported.
fn source(reference: &ImportReference, secret: Option<&Secret>) -> Result<SecretString, Problem> {
    let ImportReference { name, key: entry } = reference;
    let problem = |reason, message| Problem { reason, message, is_fatal: false };
    let missing = |what: String| {
        problem(
            REASON_NOT_FOUND,
            format!("spec.import.secretRef: {what}; what was imported before stays in use"),
        )
    };
    let secret = secret.ok_or_else(|| missing(format!("Secret {name:?} does not exist")))?;
    // Tokens, certificates and the Secrets of servers are nobody's API key.
    if let Some(type_) = secret.type_.as_deref().filter(|type_| *type_ != "Opaque") {
        let message = format!(
            "spec.import.secretRef.name: Secret {name:?} is of type {type_:?}; put the key into one of type \"Opaque\""
        );
        return Err(problem(REASON_INVALID, message));
    }
    let bytes = secret.data.as_ref().and_then(|data| data.get(entry));
    let bytes = bytes.ok_or_else(|| missing(format!("Secret {name:?} has no entry {entry:?}")))?;
    let weak = |why: String| {
        let message = format!(
            "spec.import.secretRef: the key {why}; put a random one of 32 characters or more into the Secret, or leave spec.import out"
        );
        problem(REASON_WEAK_KEY, message)
    };
    let plain = std::str::from_utf8(&bytes.0).map_err(|_| weak("is not text".to_owned()))?;
    // The line end that editors and `echo` add is not part of a key.
    let plain = plain.strip_suffix('\n').map_or(plain, |plain| plain.strip_suffix('\r').unwrap_or(plain));
    match key_rules::check(plain) {
        Ok(_) => {}
        Err(WeakKey::Reserved) if ApiKey::parse(plain).is_ok() => {}
        Err(error) => return Err(weak(error.to_string())),
    }
    Ok(SecretString::from(plain))
}

/// What to tell when a text cannot be taken in.
fn refused(error: &AddImportedKey) -> Result<Problem, Transient> {
    match error {
        AddImportedKey::Taken { key } => Ok(taken(key)),
        other => Err(Transient::apply(other)),
    }
}

#[cfg(test)]
mod tests;
