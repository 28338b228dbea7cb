//! Writing a status: whole, by server-side apply, and only if it differs.

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::api::{GROUP, VERSION, names};
use crate::k8s::apply::text;

use super::engine::Transient;

/// Whether a write that was decided on an old copy may still be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// It may: the next look corrects it.
    Allowed,
    /// It may not: it is refused when the object has changed since.
    Refused,
}

/// How a write ended.
pub(super) enum Written<K> {
    /// The status was there already.
    Same,
    /// It was written; this is the object as it is now.
    Done(K),
    /// The object is gone.
    Gone,
    /// The object has changed since it was read, and nothing was written.
    Raced,
}

/// Writes the status unless it is there already. Gives the object back as it is then, if it was written.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer. An object that is gone is no error.
pub(super) async fn write<K, S>(
    api: &Api<K>,
    object: &K,
    before: Option<&S>,
    status: &S,
    stale: Stale,
) -> Result<Option<K>, Transient>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    S: PartialEq + Serialize,
{
    match try_write(api, object, before, status, stale).await? {
        Written::Done(written) => Ok(Some(written)),
        Written::Same | Written::Gone => Ok(None),
        Written::Raced => Err(Transient::apply(format!(
            "failed to write the status of {} {:?}: it has changed",
            K::kind(&()),
            object.name_any()
        ))),
    }
}

/// As [`write`], for those who have to know that they came too late.
///
/// # Errors
/// [`Transient`] when the API server refuses or does not answer.
pub(super) async fn try_write<K, S>(
    api: &Api<K>,
    object: &K,
    before: Option<&S>,
    status: &S,
    stale: Stale,
) -> Result<Written<K>, Transient>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    S: PartialEq + Serialize,
{
    if before == Some(status) {
        return Ok(Written::Same);
    }
    let name = object.name_any();
    let mut metadata = json!({"uid": object.uid()});
    if stale == Stale::Refused {
        metadata["resourceVersion"] = json!(object.resource_version());
    }
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": K::kind(&()),
        "metadata": metadata,
        "status": status,
    });
    let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
    match api.patch_status(&name, &parameters, &Patch::Apply(&patch)).await {
        Ok(written) => {
            tracing::info!("Status written");
            Ok(Written::Done(written))
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Written::Gone),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Written::Raced),
        Err(error) => Err(Transient::apply(format!(
            "failed to write the status of {} {name:?}: {}",
            K::kind(&()),
            text(&error)
        ))),
    }
}
