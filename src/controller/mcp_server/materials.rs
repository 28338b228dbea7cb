//! What the entries hold that a spec refers to. Secrets and ConfigMaps are read by name, never listed or watched.
//!
//! The values stay here: whoever judges them says what is wrong with an entry, never what stands in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;

use crate::api::{AuthenticationSpec, MaterialKind, MaterialReference};
use crate::controller::Context;
use crate::controller::engine::Transient;
use crate::k8s::apply::text;

/// Objects by kind and name; those that do not exist are not in it.
#[derive(Default)]
pub(super) struct Materials(BTreeMap<(MaterialKind, String), Material>);

/// What one object holds.
#[derive(Default)]
pub(super) struct Material {
    /// Type of a Secret; empty for a ConfigMap.
    pub(super) type_: String,
    /// Its entries.
    pub(super) entries: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for Materials {
    /// Names alone: the values are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Materials {
    /// The object of a reference, if it exists.
    pub(super) fn find(&self, reference: &MaterialReference) -> Option<&Material> {
        self.0.get(&(reference.kind, reference.name.clone()))
    }

    /// The bytes of an entry, if there are any.
    pub(super) fn entry(&self, reference: &MaterialReference) -> Option<&[u8]> {
        self.find(reference)?.entries.get(&reference.key).map(Vec::as_slice)
    }

    /// Adds an object.
    pub(super) fn insert(&mut self, kind: MaterialKind, name: impl Into<String>, material: Material) {
        self.0.insert((kind, name.into()), material);
    }
}

/// Reads every object that the spec refers to.
///
/// # Errors
/// [`Transient`] when one cannot be read. One that does not exist is no error.
pub(super) async fn read(
    context: &Context,
    namespace: &str,
    spec: &AuthenticationSpec,
) -> Result<Materials, Transient> {
    let wanted: BTreeSet<(MaterialKind, String)> =
        spec.references().into_iter().map(|(_, reference)| (reference.kind, reference.name)).collect();
    let mut found = Materials::default();
    for (kind, name) in wanted {
        let material = match kind {
            MaterialKind::Secret => {
                let api = Api::<Secret>::namespaced(context.client.clone(), namespace);
                api.get_opt(&name).await.map(|secret| secret.map(of_secret))
            }
            MaterialKind::ConfigMap => {
                let api = Api::<ConfigMap>::namespaced(context.client.clone(), namespace);
                api.get_opt(&name).await.map(|map| map.map(of_config_map))
            }
        };
        let material = material.map_err(|error| {
            Transient::apply(format!("failed to read {kind:?} {name:?}: {}", text(&error)))
        })?;
        if let Some(material) = material {
            found.insert(kind, name, material);
        }
    }
    Ok(found)
}

fn of_secret(secret: Secret) -> Material {
    let data = secret.data.unwrap_or_default();
    Material {
        type_: secret.type_.unwrap_or_default(),
        entries: data.into_iter().map(|(key, value)| (key, value.0)).collect(),
    }
}

fn of_config_map(map: ConfigMap) -> Material {
    let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    Material { type_: String::new(), entries: text.chain(binary).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_secret_holds_is_never_shown() {
        let mut materials = Materials::default();
        let entries = BTreeMap::from([("users".to_owned(), b"hunter2".to_vec())]);
        materials.insert(MaterialKind::Secret, "people", Material { type_: "Opaque".into(), entries });
        let shown = format!("{materials:?}");
        assert!(shown.contains("people") && !shown.contains("hunter2") && !shown.contains("104"), "{shown}");
    }
}
