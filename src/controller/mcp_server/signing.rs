//! The keys of a server's own tokens: a Secret that this operator alone writes, each time only if nobody else has
//! written it since it was read. How far a rotation is stands there and nowhere else.

mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};

use crate::api::conditions::{
    REASON_NAME_CONFLICT, REASON_PROGRESSING, REASON_READY, REASON_ROTATION_BLOCKED,
};
use crate::api::replica::{ReplicaState, StateQuestion};
use crate::api::{AuthenticationStatus, McpServer, SigningKeyStatus, names};
use crate::authn::token::{OwnTokens, SigningKey, SigningKeys};
use crate::controller::engine::Transient;
use crate::controller::{Context, PERIOD, replicas};
use crate::k8s::apply::text;
use crate::k8s::condition::Finding;

use super::desired;
use super::observe::is_owned_by;
use super::validate::ValidatedServer;
use plan::{Asked, Awaited, Change, Held};

/// Annotation of the Secret: how long tokens of its keys last at most, in seconds.
const LIFETIME_ANNOTATION: &str = "portcullis.dev/longest-lifetime";
/// Annotation of the Secret: when its keys were last changed.
const CHANGED_ANNOTATION: &str = "portcullis.dev/changed-at";
/// Time between two looks at a rotation that is under way.
const LOOK: Duration = Duration::from_secs(1);
/// A replica that does not answer for this long blocks a rotation.
const ANSWERS_WITHIN: SignedDuration = SignedDuration::from_secs(60);
/// So does one that answers and has not learned of the keys: a kubelet looks at Secrets once in a minute or so.
const LEARNS_WITHIN: SignedDuration = SignedDuration::from_secs(150);
/// Steps that one pass takes at most.
const STEPS: usize = 4;

/// What a look at the keys has found.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// What the status says; nothing where the server has no tokens of its own.
    pub(super) status: Option<AuthenticationStatus>,
    /// The condition, where the server has tokens of its own.
    pub(super) finding: Option<Finding>,
    /// When to look again.
    pub(super) next_look: Duration,
}

/// What the ready replicas of a server answer.
#[derive(Default)]
struct Answers {
    /// All of them, if all have answered.
    states: Option<Vec<ReplicaState>>,
    /// Each pod with what it said, or why it said nothing.
    each: Vec<(String, Result<ReplicaState, String>)>,
}

/// Brings the keys a step further, or several, and says how they are. `live` is the Secret as it was just read.
///
/// # Errors
/// [`Transient`] when the Secret cannot be written or is somebody else's.
pub(super) async fn keep(
    context: &Context,
    server: &McpServer,
    valid: &ValidatedServer<'_>,
    live: Option<&Secret>,
) -> Result<Seen, Transient> {
    let api = Api::<Secret>::namespaced(context.client.clone(), valid.namespace);
    if !valid.spec.authentication.tokens.enabled {
        if let Some(live) = live.filter(|live| is_ours(live, valid)) {
            context.applier.delete(&api, live).await.map_err(Transient::apply)?;
        }
        return Ok(Seen { status: None, finding: None, next_look: PERIOD });
    }
    if let Some(live) = live.filter(|live| !is_ours(live, valid)) {
        let name = live.name_any();
        let message = format!(
            "Secret {name:?} exists and was not made by the operator; delete it or choose another name for the server"
        );
        return Err(Transient { reason: REASON_NAME_CONFLICT, message });
    }
    let before = server.status.as_ref().and_then(|status| status.authentication.clone()).unwrap_or_default();
    let mut live = live.cloned();
    let mut asked = asked(server);
    let mut is_newest = false;
    let mut answers = Answers::default();
    let mut is_outrun = false;
    for _ in 0..STEPS {
        let now = now();
        let held = live.as_ref().and_then(read);
        answers = ask(context, valid, held.as_ref(), &before).await;
        let make = || make(now);
        let Some((next, change)) = plan::next(held.as_ref(), &asked, answers.states.as_deref(), now, make)?
        else {
            break;
        };
        if !is_newest {
            // What is asked for is read from the object itself: a copy that is behind would ask for it twice.
            is_newest = true;
            let newest = newest_asked(context, valid).await?;
            if newest.as_ref() != Some(&asked) {
                let Some(newest) = newest else { break };
                asked = newest;
                continue;
            }
        }
        match write(&api, valid, live.as_ref(), &next).await? {
            Some(written) => live = Some(written),
            // Somebody else was first; the next look sees what they did.
            None => {
                is_outrun = true;
                break;
            }
        }
        tell(context, server, &change).await;
    }
    let held = live.as_ref().and_then(read).unwrap_or_default();
    let seen = seen(&held, &before, &answers, now());
    Ok(if is_outrun { Seen { next_look: LOOK, ..seen } } else { seen })
}

/// Whether the Secret belongs to this very server.
fn is_ours(live: &Secret, valid: &ValidatedServer<'_>) -> bool {
    is_owned_by(live, valid.uid)
}

/// The time in whole seconds, as the API server keeps it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// What the server asks for, as it is written.
fn asked(server: &McpServer) -> Asked {
    let annotation = |name: &str| server.annotations().get(name).cloned();
    let tokens = &server.spec.authentication.tokens;
    Asked {
        rotate: annotation(names::ROTATE_ANNOTATION),
        revoke: annotation(names::REVOKE_ANNOTATION),
        lifetime: SignedDuration::from_secs(i64::from(tokens.lifetime_seconds)),
        rotation: SignedDuration::from_hours(i64::from(tokens.rotation_hours)),
    }
}

/// What the server asks for now; nothing if it is gone, is another, or has no tokens of its own any more.
async fn newest_asked(context: &Context, valid: &ValidatedServer<'_>) -> Result<Option<Asked>, Transient> {
    let api = Api::<McpServer>::namespaced(context.client.clone(), valid.namespace);
    let found = api.get_opt(valid.name).await.map_err(|error| {
        Transient::apply(format!("failed to read McpServer {:?}: {}", valid.name, text(&error)))
    })?;
    let found = found.filter(|server| {
        server.metadata.uid.as_deref() == Some(valid.uid) && server.spec.authentication.tokens.enabled
    });
    Ok(found.map(|server| asked(&server)))
}

fn make(now: Timestamp) -> Result<SigningKey, Transient> {
    let mut kid = [0; 8];
    aws_lc_rs::rand::fill(&mut kid).map_err(|_| Transient::apply("no randomness for a signing key"))?;
    SigningKey::generate(kid, now).map_err(Transient::apply)
}

/// What a Secret holds. One that the endpoint could not use holds nothing.
fn read(secret: &Secret) -> Option<Held> {
    let bytes = &secret.data.as_ref()?.get(names::SIGNING_DATA)?.0;
    if let Err(error) = OwnTokens::from_json(bytes) {
        tracing::warn!(secret = secret.name_any(), %error, "Signing keys cannot be read");
        return None;
    }
    let SigningKeys { keys } = serde_json::from_slice(bytes).ok()?;
    let annotation = |name: &str| secret.annotations().get(name);
    Some(Held {
        keys,
        handled_rotate: annotation(names::ROTATE_ANNOTATION).cloned(),
        handled_revoke: annotation(names::REVOKE_ANNOTATION).cloned(),
        // Without a word it is the longest that there is.
        longest_lifetime: annotation(LIFETIME_ANNOTATION)
            .and_then(|text| text.parse().ok())
            .map_or(crate::authn::token::LONGEST, SignedDuration::from_secs),
        changed_at: annotation(CHANGED_ANNOTATION).and_then(|text| text.parse().ok()),
    })
}

/// The Secret as it should be.
fn secret(valid: &ValidatedServer<'_>, live: Option<&Secret>, held: &Held) -> Secret {
    let json = serde_json::to_vec(&SigningKeys { keys: held.keys.clone() }).expect("keys are JSON");
    let data = BTreeMap::from([(names::SIGNING_DATA.to_owned(), ByteString(json))]);
    let mut secret = desired::signing(valid, data);
    // Others mark what they have seen; their marks stay.
    let mut annotations = live.map(|live| live.annotations().clone()).unwrap_or_default();
    let ours = [
        (names::ROTATE_ANNOTATION, held.handled_rotate.clone()),
        (names::REVOKE_ANNOTATION, held.handled_revoke.clone()),
        (LIFETIME_ANNOTATION, Some(held.longest_lifetime.as_secs().to_string())),
        (CHANGED_ANNOTATION, held.changed_at.map(|at| at.to_string())),
    ];
    for (name, value) in ours {
        match value {
            Some(value) => annotations.insert(name.to_owned(), value),
            None => annotations.remove(name),
        };
    }
    secret.metadata.annotations = Some(annotations);
    if let Some(live) = live {
        let mut labels = live.labels().clone();
        labels.extend(secret.metadata.labels.take().unwrap_or_default());
        secret.metadata.labels = Some(labels);
        secret.metadata.uid = live.uid();
        secret.metadata.resource_version = live.resource_version();
    }
    secret
}

/// Writes the Secret if it is as it was read. Gives it back as it is then; nothing if somebody else was first.
async fn write(
    api: &Api<Secret>,
    valid: &ValidatedServer<'_>,
    live: Option<&Secret>,
    held: &Held,
) -> Result<Option<Secret>, Transient> {
    let secret = secret(valid, live, held);
    let name = secret.name_any();
    let parameters =
        PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let written = match live {
        Some(_) => api.replace(&name, &parameters, &secret).await,
        None => api.create(&parameters, &secret).await,
    };
    match written {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status))
            if status.is_conflict() || status.is_already_exists() || status.is_not_found() =>
        {
            Ok(None)
        }
        Err(error) => Err(Transient::apply(format!("failed to write Secret {name:?}: {}", text(&error)))),
    }
}

/// Asks every ready replica, if anything is waited for.
async fn ask(
    context: &Context,
    valid: &ValidatedServer<'_>,
    held: Option<&Held>,
    before: &AuthenticationStatus,
) -> Answers {
    if held.is_some_and(|held| {
        held.active().is_some() && held.awaited(before.handled_revoke.as_deref()).is_none()
    }) {
        return Answers::default();
    }
    match replicas::ask_each(context, valid.namespace, valid.name, &StateQuestion::default()).await {
        Ok(answers) => {
            let each: Vec<_> = answers
                .into_iter()
                .map(|(pod, answer)| (pod.name, answer.map_err(|error| error.to_string())))
                .collect();
            let states = each.iter().map(|(_, answer)| answer.as_ref().ok().cloned()).collect();
            Answers { states, each }
        }
        Err(error) => {
            tracing::debug!(%error, "Replicas not asked");
            Answers { states: None, each: vec![("(all)".to_owned(), Err(error.to_string()))] }
        }
    }
}

/// How the keys are, in the status and in its condition. Pure.
fn seen(held: &Held, before: &AuthenticationStatus, answers: &Answers, now: Timestamp) -> Seen {
    let awaited = held.awaited(before.handled_revoke.as_deref());
    let is_forgotten = match &awaited {
        Some(awaited @ Awaited::Forget(..)) => plan::is_done(awaited, answers.states.as_deref()),
        Some(Awaited::Verify(_)) => held.handled_revoke == before.handled_revoke,
        _ => true,
    };
    let awaited = awaited.filter(|awaited| !(is_forgotten && matches!(awaited, Awaited::Forget(..))));
    let handled_rotate = if held.pending().is_some() { &before.handled_rotate } else { &held.handled_rotate };
    let handled_revoke = if is_forgotten { &held.handled_revoke } else { &before.handled_revoke };
    let keys = held.keys.iter().map(|key| SigningKeyStatus {
        kid: key.kid.clone(),
        created_at: Time(key.created_at),
        state: key.state,
    });
    let ends = held.next_end().map(|end| end.duration_since(now));
    let ends = ends.map_or(PERIOD, |left| Duration::try_from(left).unwrap_or_default() + LOOK);
    Seen {
        status: Some(AuthenticationStatus {
            signing_keys: keys.collect(),
            handled_rotate: handled_rotate.clone(),
            handled_revoke: handled_revoke.clone(),
        }),
        finding: Some(finding(held, awaited.as_ref(), answers, now)),
        next_look: if awaited.is_some() || held.active().is_none() { LOOK } else { ends.min(PERIOD) },
    }
}

/// The condition: what signs, what is waited for, and which pod holds it up.
fn finding(held: &Held, awaited: Option<&Awaited>, answers: &Answers, now: Timestamp) -> Finding {
    let what = match awaited {
        None if held.active().is_none() => "there is no key yet".to_owned(),
        None => String::new(),
        Some(Awaited::Verify(kid)) => format!("key {kid} signs once every replica verifies with it"),
        Some(Awaited::Sign(kid)) => format!("every replica is to sign with key {kid}"),
        Some(Awaited::Forget(kid, _)) => {
            format!("no token is accepted until every replica knows that key {kid} replaces all others")
        }
    };
    let since = held.changed_at.unwrap_or(now);
    let blocking = awaited.and_then(|awaited| blocking(awaited, answers, now.duration_since(since)));
    match (blocking, held.active()) {
        (Some(blocking), _) => {
            Finding::no(REASON_ROTATION_BLOCKED, format!("since {since}: {what}; {blocking}"))
        }
        (None, None) => Finding::no(REASON_PROGRESSING, what),
        (None, Some(active)) if what.is_empty() => {
            Finding::yes(REASON_READY, format!("key {} signs", active.kid))
        }
        (None, Some(active)) => Finding::yes(REASON_READY, format!("key {} signs; {what}", active.kid)),
    }
}

/// The first replica that has held up a step for too long.
fn blocking(awaited: &Awaited, answers: &Answers, waited: SignedDuration) -> Option<String> {
    let blocks = |(pod, answer): &(String, Result<ReplicaState, String>)| match answer {
        Ok(state) if awaited.is_done_by(state) => None,
        Ok(_) => (waited >= LEARNS_WITHIN).then(|| format!("pod {pod:?} does not know of it")),
        Err(error) => (waited >= ANSWERS_WITHIN).then(|| format!("pod {pod:?} does not answer: {error}")),
    };
    answers.each.iter().find_map(blocks).or_else(|| {
        (answers.each.is_empty() && waited >= ANSWERS_WITHIN).then(|| "no replica is ready".to_owned())
    })
}

/// Tells what was done. The Secret is the record, so what cannot be told is only logged.
async fn tell(context: &Context, server: &McpServer, change: &Change) {
    let (reason, note) = match change {
        Change::Created(kid) => ("SigningKeyCreated", format!("key {kid} for the endpoint's own tokens")),
        Change::Rotated(kid) => ("SigningKeyRotated", format!("key {kid} signs the endpoint's own tokens")),
        Change::Revoked(kid) => (
            "SigningKeyRevoked",
            format!("key {kid} replaces all others; tokens that were made before are not accepted any more"),
        ),
        Change::Announced | Change::Noted => return,
    };
    tracing::info!(reason, note, "Signing keys changed");
    let event = Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        note: Some(note),
        action: "KeepSigningKeys".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &server.object_ref(&())).await {
        tracing::debug!(%error, "Event not published");
    }
}

#[cfg(test)]
mod tests;
