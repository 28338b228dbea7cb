//! The documents of a directory: read, filled in with variables, decoded, each with the place where it is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::{CustomResourceExt, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::entries::{Entries, Place};
use super::environment::{Environment, Substituted, substitute};
use super::{LoadFiles, read_error, schema};
use crate::api::{self, ClusterMcpRole, MaterialKind, McpApiKey, McpRole, McpServer};

/// Something and where it is written.
#[derive(Debug)]
pub(super) struct Placed<K> {
    /// Where it is written. None: variables say so.
    pub(super) place: Option<Place>,
    /// What is written there.
    pub(super) object: K,
}

/// The objects of the documents, before they are known to fit together.
#[derive(Default)]
pub(super) struct Found {
    /// Every `McpServer`.
    pub(super) servers: Vec<Placed<McpServer>>,
    /// Every `McpRole`.
    pub(super) roles: Vec<Placed<McpRole>>,
    /// Every `ClusterMcpRole`.
    pub(super) cluster_roles: Vec<Placed<ClusterMcpRole>>,
    /// Every `McpApiKey`.
    pub(super) keys: Vec<Placed<McpApiKey>>,
    /// What Secrets and ConfigMaps hold.
    pub(super) entries: Entries,
    /// Files that variables name: a change of one is a change of the directory.
    pub(super) files: Vec<PathBuf>,
}

impl Found {
    /// Takes in every document of a directory.
    ///
    /// # Errors
    /// [`LoadFiles`] names the file, the document and the field.
    pub(super) fn read(&mut self, directory: &Path, environment: &Environment) -> Result<(), LoadFiles> {
        for path in yaml_files(directory)? {
            let text = fs::read_to_string(&path).map_err(|source| read_error(&path, source))?;
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| {
                LoadFiles::Syntax { path: path.clone(), text: first_line(&error.to_string()) }
            })?;
            for (index, document) in documents.into_iter().enumerate().filter(|(_, d)| !d.is_null()) {
                let place = Place { path: path.clone(), document: index + 1 };
                self.take(document, &place, environment).map_err(|text| place.refuse(text))?;
            }
        }
        Ok(())
    }

    fn take(&mut self, mut document: Value, place: &Place, environment: &Environment) -> Result<(), String> {
        let Substituted { fields, files } = substitute(&mut document, environment)?;
        self.files.extend(files);
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
        let ours = format!("{}/{}", api::GROUP, api::VERSION);
        let kind = text("kind").to_owned();
        let expected = match kind.as_str() {
            "McpServer" | "McpRole" | "ClusterMcpRole" | "McpApiKey" => ours.as_str(),
            "Secret" | "ConfigMap" => "v1",
            other => {
                return Err(format!(
                    "kind: must be McpServer, McpRole, ClusterMcpRole, McpApiKey, Secret or ConfigMap, not {other:?}"
                ));
            }
        };
        if text("apiVersion") != expected {
            return Err(format!("apiVersion: must be {expected:?}, not {:?}", text("apiVersion")));
        }
        match kind.as_str() {
            "McpServer" => self.servers.push(decode(document, place, &fields)?),
            "McpRole" => self.roles.push(decode(document, place, &fields)?),
            "ClusterMcpRole" => self.cluster_roles.push(decode(document, place, &fields)?),
            "McpApiKey" => self.keys.push(decode(document, place, &fields)?),
            "Secret" => self.entries.take(MaterialKind::Secret, &document, place)?,
            _ => self.entries.take(MaterialKind::ConfigMap, &document, place)?,
        }
        Ok(())
    }
}

fn decode<K: CustomResourceExt + DeserializeOwned>(
    document: Value,
    place: &Place,
    substituted: &[String],
) -> Result<Placed<K>, String> {
    if document.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("metadata.name: is missing".to_owned());
    }
    schema::check(&K::crd(), &document)?;
    let object = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        // The message may repeat the value, which may be a secret that a variable holds.
        let hidden = substituted.iter().any(|field| path == "." || field.starts_with(&path));
        match hidden {
            true => format!("{path}: what the variable holds does not fit here; it is always a text"),
            false => format!("{path}: {}", error.inner()),
        }
    })?;
    Ok(Placed { place: Some(place.clone()), object })
}

/// Where objects are written, by their names.
pub(super) fn places<K: ResourceExt>(objects: &[Placed<K>]) -> BTreeMap<String, Place> {
    let placed =
        objects.iter().filter_map(|Placed { object, place }| Some((object.name_any(), place.clone()?)));
    placed.collect()
}

/// Objects by name, all of the server's namespace.
pub(super) fn by_name<K: Resource<DynamicType = ()>>(
    objects: Vec<Placed<K>>,
    namespace: Option<&str>,
    directory: &Path,
) -> Result<BTreeMap<String, Arc<K>>, LoadFiles> {
    let mut named = BTreeMap::new();
    for Placed { mut object, place } in objects {
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        let refuse = |text: String| match &place {
            Some(place) => place.refuse(text),
            None => LoadFiles::Object { path: directory.to_owned(), text },
        };
        if let Some(namespace) = namespace {
            let own = object.meta_mut().namespace.get_or_insert_with(|| namespace.to_owned());
            if own != namespace {
                return Err(refuse(format!(
                    "metadata.namespace: must be the server's, {namespace:?}, not {own:?}"
                )));
            }
        }
        if named.insert(name.clone(), Arc::new(object)).is_some() {
            return Err(refuse(format!("metadata.name: {kind} {name} is there twice")));
        }
    }
    Ok(named)
}

/// The YAML files of a directory, in the order of their names.
pub(super) fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>, LoadFiles> {
    let error = |source| read_error(directory, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
