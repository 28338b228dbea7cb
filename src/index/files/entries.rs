//! Secrets and ConfigMaps among the documents: their entries, each with the place where it is written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::LoadFiles;
use crate::api::{MaterialKind, MaterialReference, names};

/// Where something is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file.
    pub(super) path: PathBuf,
    /// The document of it, counted from 1.
    pub(super) document: usize,
}

impl Place {
    /// The error that names this place.
    pub(super) fn refuse(&self, text: String) -> LoadFiles {
        LoadFiles::Document { path: self.path.clone(), document: self.document, text }
    }
}

/// One entry.
#[derive(Clone)]
pub(super) struct Entry {
    /// What it holds.
    pub(super) content: Arc<[u8]>,
    /// Where its object is written. None: it was made here.
    pub(super) place: Option<Place>,
    /// The field, such as `stringData.api-key`.
    pub(super) field: String,
}

/// Every entry by its path, as [`names::material_path`] makes it.
#[derive(Default)]
pub(super) struct Entries {
    entries: BTreeMap<String, Entry>,
    /// Namespace of each object by kind and name.
    objects: BTreeMap<(MaterialKind, String), (Option<String>, Place)>,
}

impl Entries {
    /// Takes the entries of a Secret or ConfigMap.
    ///
    /// # Errors
    /// A text for people that begins with the field. It never shows a value.
    pub(super) fn take(&mut self, kind: MaterialKind, document: &Value, place: &Place) -> Result<(), String> {
        let name = document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if !is_object_name(name) {
            return Err("metadata.name: must have lower-case letters, digits, '-' and '.' only".to_owned());
        }
        let namespace = document.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
        let (texts, encoded) = match kind {
            MaterialKind::Secret => ("stringData", "data"),
            MaterialKind::ConfigMap => ("data", "binaryData"),
        };
        let fields = document.as_object().ok_or("a document must be an object")?;
        for field in fields.keys() {
            let known = ["apiVersion", "kind", "metadata", "immutable", texts, encoded];
            let is_type = field == "type" && kind == MaterialKind::Secret;
            if !is_type && !known.contains(&field.as_str()) {
                return Err(format!("{field}: no such field"));
            }
        }
        let object = (kind, name.to_owned());
        if self.objects.insert(object, (namespace, place.clone())).is_some() {
            return Err(format!("metadata.name: {kind:?} {name} is there twice"));
        }
        // As in Kubernetes, `stringData` takes the place of `data`.
        for (field, is_encoded) in [(encoded, true), (texts, false)] {
            for (key, value) in entries(fields, field)? {
                let field = format!("{field}.{key}");
                let text = value.as_str().ok_or_else(|| format!("{field}: must be a text"))?;
                let content = match is_encoded {
                    // Wrapped lines are usual in YAML.
                    true => STANDARD
                        .decode(text.split_ascii_whitespace().collect::<String>())
                        .map_err(|_| format!("{field}: is not base64"))?,
                    false => text.as_bytes().to_vec(),
                };
                let entry = Entry { content: content.into(), place: Some(place.clone()), field };
                let path = names::material_path(kind, name, key);
                if self.entries.insert(path, entry).is_some() && kind == MaterialKind::ConfigMap {
                    return Err(format!("data.{key}: is in binaryData as well"));
                }
            }
        }
        Ok(())
    }

    /// Adds an entry that no document holds.
    pub(super) fn put(&mut self, path: String, content: Vec<u8>) {
        let entry = Entry { content: content.into(), place: None, field: String::new() };
        self.entries.insert(path, entry);
    }

    /// The entry that a field refers to.
    ///
    /// # Errors
    /// A text for people that says what is missing.
    pub(super) fn find(&self, reference: &MaterialReference) -> Result<&Entry, String> {
        let MaterialReference { kind, name, key } = reference;
        let found = self.entries.get(&names::material_path(*kind, name, key));
        found.ok_or_else(|| match self.objects.contains_key(&(*kind, name.clone())) {
            true => format!("{kind:?} {name:?} has no entry {key:?}"),
            false => format!("there is no document of {kind:?} {name:?} in the directory"),
        })
    }

    /// Refuses objects of another namespace than the server's.
    ///
    /// # Errors
    /// [`LoadFiles`] names the first.
    pub(super) fn check_namespace(&self, expected: &str) -> Result<(), LoadFiles> {
        for (namespace, place) in self.objects.values() {
            if let Some(own) = namespace.as_deref().filter(|own| *own != expected) {
                return Err(place
                    .refuse(format!("metadata.namespace: must be the server's, {expected:?}, not {own:?}")));
            }
        }
        Ok(())
    }
}

fn entries<'a>(
    fields: &'a Map<String, Value>,
    field: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)>, String> {
    let entries = match fields.get(field) {
        None | Some(Value::Null) => None,
        Some(Value::Object(entries)) => Some(entries),
        Some(_) => return Err(format!("{field}: must be an object")),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    for key in entries.into_iter().flat_map(Map::keys) {
        if !(1..=253).contains(&key.len()) || !key.chars().all(plain) || key == "." || key.starts_with("..") {
            return Err(format!("{field}: {key:?} must have letters, digits, '-', '.' and '_' only"));
        }
    }
    Ok(entries.into_iter().flatten())
}

fn is_object_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= 253 && name.chars().all(plain) && ends(name.chars().next()) && ends(name.chars().last())
}
