//! `McpApiKey`: generates the key, publishes its digest in the status and its text in the owner's Secret.
//!
//! The digest goes first: a key that a person can read is always one that the endpoint already knows. Stopped
//! anywhere, the next pass finds which step was last and goes on; there are never two active generations.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource, ResourceExt};
use serde_json::{from_value, json};

use crate::api::conditions::{
    ACCEPTED, READY, REASON_ACCEPTED, REASON_DISABLED, REASON_EXPIRED, REASON_NAME_CONFLICT,
    REASON_NAMESPACE_NOT_OPTED_IN, REASON_READY,
};
use crate::api::{
    GROUP, KeyGeneration, McpApiKey, McpApiKeyStatus, RoleKind, SecretReference, VERSION, names,
};
use crate::authn::ApiKey;
use crate::k8s::apply::{self, text};
use crate::k8s::condition::Finding;
use crate::k8s::event;
use crate::k8s::watch::{Guarded, find};

use super::engine::{Outcome, Transient};
use super::status::{Stale, write};
use super::{Context, PERIOD, namespaces};

use plan::{Step, next_step};

/// What a pass found out.
enum Found {
    /// The key is published.
    Published(Vec<KeyGeneration>),
    /// No administrator let servers into the namespace.
    NotOptedIn,
    /// Something failed that may go away.
    Failed(Transient),
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
    let Some(found) = find(&context.cluster.namespaces, "", &namespace)
        .filter(|found| found.metadata.deletion_timestamp.is_none())
    else {
        return Ok(Outcome::Settled(None));
    };
    let api = Api::<McpApiKey>::namespaced(context.client.clone(), &namespace);
    // Which generations there are is decided on the newest object only, never on a copy that may be old.
    let Some(key) = api.get_opt(&key.name_any()).await.map_err(|error| {
        Transient::apply(format!("failed to read McpApiKey {:?}: {}", key.name_any(), text(&error)))
    })?
    else {
        return Ok(Outcome::Settled(None));
    };
    let found = if namespaces::is_opted_in(found.labels()) {
        publish(&context, &api, key.clone()).await
    } else {
        (key.clone(), Found::NotOptedIn)
    };
    let (key, found) = found;
    let now = Timestamp::now();
    let status = key_status(&key, &found, &missing_roles(&context, &key), now);
    if write(&api, &key, key.status.as_ref(), &status, Stale::Refused).await?.is_some()
        && !matches!(found, Found::NotOptedIn)
    {
        let before = key.status.as_ref().map_or(&[][..], |status| &status.conditions);
        for condition in event::changed(before, &status.conditions) {
            event::tell(&context.recorder, &key.object_ref(&()), condition).await;
        }
    }
    match found {
        Found::Published(_) => Ok(Outcome::Settled(Some(next_look(&key, now)))),
        Found::NotOptedIn => Ok(Outcome::Invalid(None)),
        Found::Failed(error) => Err(error),
    }
}

/// Secrets are not watched, and an expiry is nobody's event.
fn next_look(key: &McpApiKey, now: Timestamp) -> Duration {
    let left = key.spec.expires_at.as_ref().map(|end| end.0.duration_since(now));
    match left.and_then(|left| Duration::try_from(left).ok()) {
        Some(left) => PERIOD.min(left + Duration::from_millis(50)),
        None => PERIOD,
    }
}

/// Brings the generations and the Secret together, one step at a time. Gives back the object as last written.
async fn publish(context: &Arc<Context>, api: &Api<McpApiKey>, mut key: McpApiKey) -> (McpApiKey, Found) {
    let namespace = key.namespace().unwrap_or_default();
    let room = context.namespaces.room(&namespace);
    let _working = room.work().await;
    if let Err(error) = namespaces::enter(context, &namespace).await {
        return (key, Found::Failed(error));
    }
    match steps(context, api, &mut key).await {
        Ok(generations) => (key, Found::Published(generations)),
        Err(error) => (key, Found::Failed(error)),
    }
}

async fn steps(
    context: &Context,
    api: &Api<McpApiKey>,
    key: &mut McpApiKey,
) -> Result<Vec<KeyGeneration>, Transient> {
    let name = names::key_secret(&key.name_any());
    let secrets = Api::<Secret>::namespaced(context.client.clone(), &key.namespace().unwrap_or_default());
    let live = secrets
        .get_opt(&name)
        .await
        .map_err(|error| Transient::apply(format!("failed to read Secret {name:?}: {}", text(&error))))?;
    let is_ours = live.as_ref().is_none_or(|live| {
        live.owner_references().iter().any(|owner| Some(&owner.uid) == key.metadata.uid.as_ref())
    });
    if !is_ours {
        return Err(conflict(&name));
    }
    let held = live.as_ref().and_then(held_key);
    let generations = key.status.as_ref().map_or_else(Vec::new, |status| status.keys.clone());
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    match next_step(generations, held.as_ref(), now) {
        Step::Keep(generations) => {
            if let (Some(live), Some(held)) = (live, held) {
                ensure_secret(context, &secrets, Some(live), &secret(key, &held)).await?;
            }
            Ok(generations)
        }
        Step::Adopt(generations) => {
            tracing::info!("Key adopted");
            write_generations(api, key, generations.clone()).await?;
            Ok(generations)
        }
        Step::Generate(make) => {
            let fresh = generate()?;
            let generations = make(&fresh, now);
            write_generations(api, key, generations.clone()).await?;
            tracing::info!(id = fresh.id(), "Key generated");
            ensure_secret(context, &secrets, live, &secret(key, &fresh)).await?;
            Ok(generations)
        }
    }
}

fn conflict(name: &str) -> Transient {
    Transient {
        reason: REASON_NAME_CONFLICT,
        message: format!(
            "Secret {name:?} exists and was not made by the operator; delete it or choose another name"
        ),
    }
}

/// The key that a Secret holds, if it holds one.
fn held_key(secret: &Secret) -> Option<ApiKey> {
    let bytes = secret.data.as_ref()?.get(names::API_KEY_DATA)?;
    ApiKey::parse(std::str::from_utf8(&bytes.0).ok()?).ok()
}

fn generate() -> Result<ApiKey, Transient> {
    let (mut id, mut secret) = ([0; 10], [0; 32]);
    aws_lc_rs::rand::fill(&mut id)
        .and_then(|()| aws_lc_rs::rand::fill(&mut secret))
        .map_err(|_| Transient::apply("no randomness for a key"))?;
    Ok(ApiKey::generate(id, secret))
}

/// Writes the generations before anything else is done with them. Refused when the object has changed since.
async fn write_generations(
    api: &Api<McpApiKey>,
    key: &mut McpApiKey,
    generations: Vec<KeyGeneration>,
) -> Result<(), Transient> {
    let mut status = key.status.clone().unwrap_or_default();
    status.keys = generations;
    if let Some(written) = write(api, key, key.status.as_ref(), &status, Stale::Refused).await? {
        // Conditions are told as a change from what they were before this pass.
        let before = key.status.as_ref().map(|status| status.conditions.clone());
        *key = written;
        if let (Some(status), Some(before)) = (key.status.as_mut(), before) {
            status.conditions = before;
        }
    }
    Ok(())
}

async fn ensure_secret(
    context: &Context,
    secrets: &Api<Secret>,
    live: Option<Secret>,
    desired: &Secret,
) -> Result<(), Transient> {
    match context.applier.ensure(secrets, live, desired).await {
        Ok(_) => Ok(()),
        Err(apply::Error::NameConflict { name, .. }) => Err(conflict(&name)),
        Err(error) => Err(Transient::apply(error)),
    }
}

/// The Secret that holds the plaintext: the only place that does.
fn secret(key: &McpApiKey, text: &ApiKey) -> Secret {
    let name = key.name_any();
    let data =
        BTreeMap::from([(names::API_KEY_DATA.to_owned(), ByteString(text.expose().as_bytes().to_vec()))]);
    let metadata = from_value(json!({
        "name": names::key_secret(&name),
        "namespace": key.namespace(),
        "labels": {
            "app.kubernetes.io/name": "portcullis-key",
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/part-of": "portcullis",
            "app.kubernetes.io/managed-by": names::FIELD_MANAGER,
            names::KEY_LABEL: name,
        },
        "ownerReferences": [{
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "McpApiKey",
            "name": name,
            "uid": key.uid().unwrap_or_default(),
            "controller": true,
        }],
    }))
    .expect("the shape of metadata");
    Secret {
        metadata,
        type_: Some(names::API_KEY_SECRET_TYPE.to_owned()),
        data: Some(data),
        ..Secret::default()
    }
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

/// The whole status of a key. Pure.
fn key_status(key: &McpApiKey, found: &Found, missing: &[String], now: Timestamp) -> McpApiKeyStatus {
    let before = key.status.clone().unwrap_or_default();
    let generation = key.metadata.generation;
    let (keys, secret_ref) = match found {
        Found::Published(keys) => {
            (keys.clone(), Some(SecretReference { name: names::key_secret(&key.name_any()) }))
        }
        Found::NotOptedIn | Found::Failed(_) => (before.keys, before.secret_ref),
    };
    let accepted = match found {
        Found::NotOptedIn => Finding::no(
            REASON_NAMESPACE_NOT_OPTED_IN,
            namespaces::opt_in_message(&key.namespace().unwrap_or_default()),
        ),
        _ if missing.is_empty() => Finding::yes(REASON_ACCEPTED, "the key is known to its servers"),
        _ => Finding::yes(
            REASON_ACCEPTED,
            format!("these roles do not exist and grant nothing: {}", missing.join(", ")),
        ),
    };
    let expired = key.spec.expires_at.as_ref().filter(|end| end.0 <= now);
    let ready = match (found, expired) {
        (Found::NotOptedIn, _) => accepted.clone(),
        (_, _) if !key.spec.enabled => Finding::no(REASON_DISABLED, "spec.enabled is false"),
        (_, Some(end)) => Finding::no(REASON_EXPIRED, format!("spec.expiresAt, {}, has passed", end.0)),
        (Found::Failed(error), _) => Finding::no(error.reason, &error.message),
        (Found::Published(_), _) => Finding::yes(
            REASON_READY,
            format!("Secret {:?} holds the key", names::key_secret(&key.name_any())),
        ),
    };
    let condition =
        |type_: &str, finding: Finding| finding.into_condition(type_, &before.conditions, generation, now);
    McpApiKeyStatus {
        keys,
        secret_ref,
        last_rotated_at: before.last_rotated_at,
        next_rotation_at: before.next_rotation_at,
        last_used_at: before.last_used_at,
        handled_rotate: before.handled_rotate,
        handled_revoke: before.handled_revoke,
        observed_generation: generation,
        conditions: vec![condition(ACCEPTED, accepted), condition(READY, ready)],
    }
}

#[cfg(test)]
mod tests;
