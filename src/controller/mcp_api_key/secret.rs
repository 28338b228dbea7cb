//! The Secret of a key: the only place that holds its text.
//!
//! It is made, replaced and deleted by the version that was read, and never tried again with what was decided before:
//! whoever comes too late decides anew.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{from_value, json};

use crate::api::conditions::REASON_NAME_CONFLICT;
use crate::api::{GROUP, McpApiKey, VERSION, names};
use crate::authn::{ApiKey, api_key};
use crate::controller::engine::Transient;
use crate::k8s::apply::text;

use super::plan::{Entry, Held, Seen, Write};

/// The Secret as it was read.
#[derive(Debug)]
pub(super) struct Live {
    secret: Option<Secret>,
    /// What it holds.
    pub(super) seen: Seen,
}

/// Reads the Secret of a key. One that is going away holds nothing any more.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn read(api: &Api<Secret>, name: &str, key: &McpApiKey) -> Result<Live, Transient> {
    let failed = |error| Transient::apply(format!("failed to read Secret {name:?}: {}", text(&error)));
    Ok(look_at(api.get_opt(name).await.map_err(failed)?, key))
}

fn look_at(secret: Option<Secret>, key: &McpApiKey) -> Live {
    let seen = match &secret {
        None => Seen::Absent,
        Some(secret) if !is_ours(secret, key) => Seen::Foreign,
        Some(secret) if secret.metadata.deletion_timestamp.is_some() => Seen::Absent,
        Some(secret) => Seen::Ours(Held {
            current: entry(secret, names::API_KEY_DATA),
            next: entry(secret, names::NEXT_API_KEY_DATA),
            made_for: secret.annotations().get(names::ROTATE_ANNOTATION).cloned(),
        }),
    };
    Live { secret, seen }
}

fn is_ours(secret: &Secret, key: &McpApiKey) -> bool {
    secret.owner_references().iter().any(|owner| Some(&owner.uid) == key.metadata.uid.as_ref())
}

fn bytes<'a>(secret: &'a Secret, entry: &str) -> Option<&'a ByteString> {
    secret.data.as_ref()?.get(entry)
}

fn entry(secret: &Secret, name: &str) -> Entry {
    let Some(bytes) = bytes(secret, name) else { return Entry::Absent };
    match std::str::from_utf8(&bytes.0).ok().and_then(|text| ApiKey::parse(text).ok()) {
        Some(key) => Entry::Key { id: key.id().to_owned(), digest: api_key::format_digest(&key.digest()) },
        None => Entry::Foreign,
    }
}

/// What to tell when the name of a Secret is taken.
pub(super) fn conflict(name: &str) -> Transient {
    Transient {
        reason: REASON_NAME_CONFLICT,
        message: format!(
            "Secret {name:?} exists and was not made by the operator; delete it or choose another name"
        ),
    }
}

/// Carries out a write. Says whether it was made: it is not when the Secret has changed since it was read.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn write(
    api: &Api<Secret>,
    key: &McpApiKey,
    live: &Live,
    write: Write,
) -> Result<bool, Transient> {
    if write == Write::Delete {
        return match &live.secret {
            Some(secret) => delete(api, secret).await,
            None => Ok(false),
        };
    }
    let held = |entry: &str| live.secret.as_ref().and_then(|secret| bytes(secret, entry)).cloned();
    let (current, next) = (held(names::API_KEY_DATA), held(names::NEXT_API_KEY_DATA));
    let mut made_for = None;
    let (current, next) = match write {
        Write::Stage { keeps_current } => {
            let fresh = generate()?;
            tracing::info!(id = fresh.id(), "Key generated");
            made_for = Some(key.annotations().get(names::ROTATE_ANNOTATION).cloned().unwrap_or_default());
            (current.filter(|_| keeps_current), Some(ByteString(fresh.expose().as_bytes().to_vec())))
        }
        Write::Publish => (next, None),
        Write::Withdraw => (None, next),
        Write::Unstage => (current, None),
        Write::Strip | Write::Delete => (None, None),
    };
    store(api, live, secret(key, current, next, made_for)).await
}

/// Corrects what others changed about our Secret but for its texts.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn keep_shape(api: &Api<Secret>, key: &McpApiKey, live: &Live) -> Result<(), Transient> {
    let (Seen::Ours(_), Some(found)) = (&live.seen, &live.secret) else { return Ok(()) };
    let held = |entry: &str| bytes(found, entry).cloned();
    let wanted = secret(key, held(names::API_KEY_DATA), held(names::NEXT_API_KEY_DATA), None);
    let has_labels = wanted.labels().iter().all(|(label, value)| found.labels().get(label) == Some(value));
    let data = |secret: &Secret| secret.data.clone().unwrap_or_default();
    if !has_labels || found.owner_references() != wanted.owner_references() || data(found) != data(&wanted) {
        // Whoever was faster has corrected or changed it; the next pass looks again.
        store(api, live, wanted).await?;
    }
    Ok(())
}

/// Makes or replaces the Secret, with the marks of others kept.
async fn store(api: &Api<Secret>, live: &Live, mut wanted: Secret) -> Result<bool, Transient> {
    let name = wanted.name_any();
    let parameters =
        PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let stored = match &live.secret {
        None => api.create(&parameters, &wanted).await,
        Some(found) if found.metadata.deletion_timestamp.is_some() => {
            return Err(Transient::apply(format!("Secret {name:?} is being deleted")));
        }
        Some(found) => {
            let mut labels = found.labels().clone();
            labels.append(wanted.labels_mut());
            let mut annotations = found.annotations().clone();
            annotations.append(wanted.annotations_mut());
            wanted.metadata.labels = Some(labels);
            wanted.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
            wanted.metadata.finalizers.clone_from(&found.metadata.finalizers);
            wanted.metadata.uid.clone_from(&found.metadata.uid);
            wanted.metadata.resource_version.clone_from(&found.metadata.resource_version);
            wanted.type_.clone_from(&found.type_);
            api.replace(&name, &parameters, &wanted).await
        }
    };
    finish("write", &name, stored.map(|_| ()))
}

async fn delete(api: &Api<Secret>, found: &Secret) -> Result<bool, Transient> {
    let preconditions = Preconditions { uid: found.uid(), resource_version: found.resource_version() };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    let name = found.name_any();
    finish("delete", &name, api.delete(&name, &parameters).await.map(|_| ()))
}

fn finish(verb: &str, name: &str, result: Result<(), kube::Error>) -> Result<bool, Transient> {
    match result {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status))
            if status.is_conflict() || status.is_not_found() || status.is_already_exists() =>
        {
            Ok(false)
        }
        Err(error) => Err(Transient::apply(format!("failed to {verb} Secret {name:?}: {}", text(&error)))),
    }
}

/// Deletes the Secret of a key that is imported by now.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn remove(api: &Api<Secret>, key: &McpApiKey) -> Result<(), Transient> {
    let live = read(api, &names::key_secret(&key.name_any()), key).await?;
    if let (Seen::Ours(_), Some(found)) = (&live.seen, &live.secret) {
        delete(api, found).await?;
    }
    Ok(())
}

fn generate() -> Result<ApiKey, Transient> {
    Ok(ApiKey::generate(random()?, random()?))
}

/// Random bytes.
///
/// # Errors
/// [`Transient`] when there are none.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Transient> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Transient::apply("no randomness for a key"))?;
    Ok(bytes)
}

fn secret(
    key: &McpApiKey,
    current: Option<ByteString>,
    next: Option<ByteString>,
    made_for: Option<String>,
) -> Secret {
    let name = key.name_any();
    let entries = [(names::API_KEY_DATA, current), (names::NEXT_API_KEY_DATA, next)];
    let data = entries.into_iter().filter_map(|(entry, bytes)| Some((entry.to_owned(), bytes?)));
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
        "annotations": made_for.map(|wish| BTreeMap::from([(names::ROTATE_ANNOTATION, wish)])),
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
        data: Some(data.collect()),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> McpApiKey {
        serde_saphyr::from_str(
            "{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {name: ci, namespace: agents, uid: u}, spec: {identity: ci, servers: [ops]}}",
        )
        .expect("a key")
    }

    fn text(seed: u8) -> (ApiKey, ByteString) {
        let text = ApiKey::generate([seed; 10], [seed; 32]);
        let bytes = ByteString(text.expose().as_bytes().to_vec());
        (text, bytes)
    }

    #[test]
    fn the_secret_is_owned_by_the_key_and_holds_nothing_else() {
        let (current, bytes) = text(1);
        let secret = secret(&key(), Some(bytes), None, None);
        assert_eq!(secret.name_any(), "ci-mcp-key");
        assert_eq!(secret.type_.as_deref(), Some("portcullis.dev/api-key"));
        assert_eq!(secret.labels()["portcullis.dev/key"], "ci");
        assert_eq!(secret.owner_references()[0].uid, "u");
        assert_eq!(secret.data.as_ref().map(BTreeMap::len), Some(1));
        let Seen::Ours(held) = look_at(Some(secret), &key()).seen else { panic!("it is ours") };
        let digest = api_key::format_digest(&current.digest());
        assert_eq!(held.current, Entry::Key { id: current.id().to_owned(), digest });
        assert_eq!((held.next, held.made_for), (Entry::Absent, None));
    }

    #[test]
    fn a_text_that_is_staged_is_not_the_one_that_callers_read() {
        let secret = secret(&key(), Some(text(1).1), Some(text(2).1), Some("wish".into()));
        let Seen::Ours(held) = look_at(Some(secret), &key()).seen else { panic!("it is ours") };
        assert!(matches!(&held.next, Entry::Key { id, .. } if id == text(2).0.id()));
        assert_eq!(held.made_for.as_deref(), Some("wish"));
    }

    #[test]
    fn a_secret_of_another_owner_or_one_that_goes_is_not_used() {
        let mut theirs = secret(&key(), Some(text(1).1), None, None);
        theirs.metadata.owner_references.as_mut().expect("owners")[0].uid = "other".into();
        assert_eq!(look_at(Some(theirs), &key()).seen, Seen::Foreign);
        let mut going = secret(&key(), Some(text(1).1), None, None);
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(look_at(Some(going), &key()).seen, Seen::Absent);
        let broken = secret(&key(), Some(ByteString(b"pcl_broken".to_vec())), None, None);
        assert!(matches!(
            look_at(Some(broken), &key()).seen,
            Seen::Ours(Held { current: Entry::Foreign, .. })
        ));
        assert_eq!(look_at(None, &key()).seen, Seen::Absent);
    }
}
