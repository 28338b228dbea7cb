//! Writing children: made by POST, kept as they should be, never taken over, and not written when nothing is to change.
//!
//! Server-side apply would leave what others added, so a child that differs is replaced whole, with the version and the
//! uid that were read. The API server fills in defaults; its answer to our own write is remembered (as a digest), and
//! a child that still is that answer is left alone. A replace that changes nothing is not stored by the API server.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Mutex;

use aws_lc_rs::digest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::names;

/// Looks at a child that others write at the same time, before it is left for later.
const ATTEMPTS: usize = 3;

/// What was written, and what the API server made of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Settled {
    desired: [u8; 32],
    answer: [u8; 32],
}

/// Remembers what was settled, by kind, namespace, name and uid.
#[derive(Default)]
pub(crate) struct Applier {
    settled: Mutex<HashMap<String, Settled>>,
}

/// Why a child is not as it should be. The texts name the child.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The name is taken by an object that is not ours.
    #[error("{kind} {name:?} exists and was not made by the operator; delete it or choose another name")]
    NameConflict {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The child is going away; its successor comes after it.
    #[error("{kind} {name:?} is being deleted")]
    AwaitDeletion {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The child changed each time it was looked at.
    #[error("{kind} {name:?} is being changed by somebody else")]
    Unsteady {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A request was refused or not answered.
    #[error("failed to {verb} {kind} {name:?}: {}", text(.source))]
    Request {
        /// What was tried.
        verb: &'static str,
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
}

impl Error {
    fn request<K: Resource<DynamicType = ()>>(verb: &'static str, name: &str, source: kube::Error) -> Self {
        Error::Request {
            verb,
            kind: K::kind(&()).into_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        }
    }
}

/// What the API server said, without the dump of the whole answer that the client's text has.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl Applier {
    /// Makes sure that the child exists as desired. `live` is what a watch has seen, if anything.
    ///
    /// # Errors
    /// [`Error::NameConflict`] when the name is taken by another's object; nothing is written then.
    pub(crate) async fn ensure<K>(&self, api: &Api<K>, live: Option<K>, desired: &K) -> Result<K, Error>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
    {
        let mut live = live;
        for _ in 0..ATTEMPTS {
            let result = match live.take() {
                Some(live) => self.keep(api, live, desired).await,
                None => self.create(api, desired).await,
            };
            match result {
                // The watch was behind: what it had seen is not what is there, so look once more.
                Err(Error::Request { source, .. }) if is_stale(&source) => {}
                result => return result,
            }
            let name = desired.name_any();
            live = api.get_opt(&name).await.map_err(|error| Error::request::<K>("read", &name, error))?;
        }
        Err(Error::Unsteady { kind: K::kind(&()).into_owned(), name: desired.name_any() })
    }

    async fn create<K>(&self, api: &Api<K>, desired: &K) -> Result<K, Error>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
    {
        let name = desired.name_any();
        let created = api
            .create(&parameters(), desired)
            .await
            .map_err(|error| Error::request::<K>("create", &name, error))?;
        tracing::info!(kind = %K::kind(&()), name, "Child created");
        self.remember(&created, desired);
        Ok(created)
    }

    async fn keep<K>(&self, api: &Api<K>, live: K, desired: &K) -> Result<K, Error>
    where
        K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Debug,
    {
        let (kind, name) = (K::kind(&()).into_owned(), desired.name_any());
        if live.meta().deletion_timestamp.is_some() {
            return Err(Error::AwaitDeletion { kind, name });
        }
        if !is_ours(&live, desired) {
            return Err(Error::NameConflict { kind, name });
        }
        if self.is_settled(&live, desired) {
            return Ok(live);
        }
        let next = replacement(&live, desired);
        let answer = api
            .replace(&name, &parameters(), &next)
            .await
            .map_err(|error| Error::request::<K>("replace", &name, error))?;
        if answer.resource_version() != live.resource_version() {
            tracing::info!(kind, name, "Child replaced");
        }
        self.remember(&answer, desired);
        Ok(answer)
    }

    fn is_settled<K>(&self, live: &K, desired: &K) -> bool
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let now = Settled { desired: content(desired), answer: content(live) };
        metadata_holds(live, desired)
            && self.settled.lock().expect("no holder panics").get(&key(live)) == Some(&now)
    }

    fn remember<K>(&self, answer: &K, desired: &K)
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let settled = Settled { desired: content(desired), answer: content(answer) };
        self.settled.lock().expect("no holder panics").insert(key(answer), settled);
    }

    /// Deletes exactly this object. One that is gone, or is another by now, is left alone.
    ///
    /// # Errors
    /// [`Error::Request`] when the API server refuses or does not answer.
    pub(crate) async fn delete<K>(&self, api: &Api<K>, live: &K) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.settled.lock().expect("no holder panics").remove(&key(live));
        let name = live.name_any();
        let preconditions = Preconditions { uid: live.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match api.delete(&name, &parameters).await {
            Ok(_) => {
                tracing::info!(kind = %K::kind(&()), name, "Child deleted");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(Error::request::<K>("delete", &name, error)),
        }
    }
}

fn is_stale(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found() || status.is_already_exists())
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let namespace = object.namespace().unwrap_or_default();
    let uid = object.uid().unwrap_or_default();
    format!("{}/{namespace}/{}/{uid}", K::kind(&()), object.name_any())
}

/// Whether the live object is ours: it has our owner, or, where there can be no owner, our labels or our very content.
fn is_ours<K: Resource<DynamicType = ()> + Serialize>(live: &K, desired: &K) -> bool {
    match desired.owner_references() {
        [] => labels_hold(live.labels(), desired.labels()) || content(live) == content(desired),
        wanted => {
            wanted.iter().all(|owner| live.owner_references().iter().any(|other| other.uid == owner.uid))
        }
    }
}

fn labels_hold(live: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| live.get(key) == Some(value))
}

/// Whether the metadata that we set is as we set it. Others may add labels and annotations: they are how tools mark
/// what they have seen.
fn metadata_holds<K: Resource>(live: &K, desired: &K) -> bool {
    let owners = |object: &K| -> Vec<OwnerReference> { object.owner_references().to_vec() };
    labels_hold(live.labels(), desired.labels())
        && labels_hold(live.annotations(), desired.annotations())
        && owners(live) == owners(desired)
}

/// Digest of everything but metadata and status.
fn content<K: Serialize>(object: &K) -> [u8; 32] {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(map) = value.as_object_mut() {
        map.remove("metadata");
        map.remove("status");
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, value.to_string().as_bytes()).as_ref());
    bytes
}

/// What is written over the live object: everything as desired, with the marks of others kept.
fn replacement<K: Resource + Clone>(live: &K, desired: &K) -> K {
    let mut next = desired.clone();
    let mut labels = live.labels().clone();
    labels.extend(desired.labels().clone());
    let mut annotations = live.annotations().clone();
    annotations.extend(desired.annotations().clone());
    let meta = next.meta_mut();
    meta.labels = Some(labels);
    meta.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
    meta.finalizers = live.meta().finalizers.clone();
    meta.uid = live.uid();
    meta.resource_version = live.resource_version();
    next
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Secret, Service};
    use serde_json::json;

    use super::*;

    fn service(text: serde_json::Value) -> Service {
        serde_json::from_value(text).expect("a Service")
    }

    fn desired() -> Service {
        service(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "ops-mcp", "namespace": "agents", "labels": {"a": "1"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "ops", "uid": "u1"}]},
            "spec": {"ports": [{"port": 443}]}}))
    }

    /// As the API server answers: with a uid, defaults and a status.
    fn answer(spec: serde_json::Value) -> Service {
        let mut live = desired();
        live.metadata.uid = Some("s1".into());
        live.metadata.resource_version = Some("7".into());
        live.spec = serde_json::from_value(spec).expect("a spec");
        live
    }

    fn defaulted() -> serde_json::Value {
        json!({"ports": [{"port": 443, "protocol": "TCP"}], "clusterIP": "10.0.0.1"})
    }

    #[test]
    fn a_child_that_is_still_the_answer_to_our_write_is_left_alone() {
        let applier = Applier::default();
        let live = answer(defaulted());
        assert!(!applier.is_settled(&live, &desired()), "nothing was written yet");
        applier.remember(&live, &desired());
        let mut marked = live.clone();
        marked.metadata.annotations = Some([("tool".to_owned(), "seen".to_owned())].into());
        marked.metadata.resource_version = Some("8".into());
        assert!(applier.is_settled(&marked, &desired()));
    }

    #[test]
    fn what_others_add_or_change_is_noticed() {
        let applier = Applier::default();
        applier.remember(&answer(defaulted()), &desired());
        let added = json!({"ports": [{"port": 443, "protocol": "TCP"}], "clusterIP": "10.0.0.1",
            "externalIPs": ["192.0.2.1"]});
        assert!(!applier.is_settled(&answer(added), &desired()));
        let mut unlabelled = answer(defaulted());
        unlabelled.metadata.labels = None;
        assert!(!applier.is_settled(&unlabelled, &desired()));
        let mut wanted = desired();
        wanted.spec.as_mut().expect("a spec").type_ = Some("NodePort".into());
        assert!(!applier.is_settled(&answer(defaulted()), &wanted));
    }

    #[test]
    fn an_object_of_another_owner_is_not_ours() {
        let mut foreign = answer(defaulted());
        assert!(is_ours(&foreign, &desired()));
        foreign.metadata.owner_references.as_mut().expect("owners")[0].uid = "u2".into();
        assert!(!is_ours(&foreign, &desired()));
        foreign.metadata.owner_references = None;
        assert!(!is_ours(&foreign, &desired()));
    }

    #[test]
    fn without_an_owner_labels_or_the_very_content_decide() {
        let secret = |labels: serde_json::Value, data: &str| -> Secret {
            serde_json::from_value(json!({"metadata": {"name": "x", "labels": labels}, "data": {"k": data}}))
                .expect("a Secret")
        };
        let wanted = secret(json!({"a": "1"}), "AA==");
        assert!(is_ours(&secret(json!({"a": "1"}), "AQ=="), &wanted));
        assert!(is_ours(&secret(json!({}), "AA=="), &wanted));
        assert!(!is_ours(&secret(json!({}), "AQ=="), &wanted));
    }

    #[test]
    fn a_replacement_carries_the_version_that_was_read_and_the_marks_of_others() {
        let mut live = answer(defaulted());
        live.metadata.labels.as_mut().expect("labels").insert("theirs".into(), "2".into());
        live.metadata.finalizers = Some(vec!["cloud/load-balancer".into()]);
        let next = replacement(&live, &desired());
        assert_eq!(next.metadata.uid.as_deref(), Some("s1"));
        assert_eq!(next.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(next.labels().len(), 2);
        assert_eq!(next.finalizers(), ["cloud/load-balancer"]);
        assert_eq!(next.spec, desired().spec);
    }
}
