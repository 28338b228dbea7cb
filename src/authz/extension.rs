//! What an administrator adds to the catalogue: resources of the cluster, any CRD's for example, and Secrets.
//!
//! The chart's values `catalogue` are handed to every process as JSON. They are read once, when it starts, and hold for
//! its life, so that a permission is a position in one table. Broken ones stop the process: half a catalogue would
//! take rights away in silence.

use std::sync::OnceLock;

use serde::Deserialize;

use super::catalogue::{Class, Entry, KUBERNETES, OBJECTS, Object, Permission, Place, Rule, SECRETS};
use super::permission::{EXTRAS, MAX_LENGTH};

/// Most permissions that can be added.
const MOST: usize = 200;

/// The one of this process.
static INSTALLED: OnceLock<Extension> = OnceLock::new();

/// Verbs that a resource can be given, and how dangerous each is.
const VERBS: [(&str, Class); 7] = [
    ("get", Class::Read),
    ("list", Class::Read),
    ("watch", Class::Read),
    ("create", Class::Write),
    ("update", Class::Write),
    ("patch", Class::Write),
    ("delete", Class::Destructive),
];

/// Further rows of the catalogue.
#[derive(Debug, Default)]
pub(crate) struct Extension {
    /// As it was written, to hand it on.
    text: String,
    objects: Vec<Object>,
    entries: Vec<Entry>,
}

/// The chart's values `catalogue`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    extra: Vec<Extra>,
    #[serde(default)]
    secrets: Secrets,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extra {
    #[serde(default)]
    group: String,
    resource: String,
    kind: String,
    version: String,
    scope: Scope,
    verbs: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Scope {
    Namespaced,
    Cluster,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Secrets {
    read: bool,
    manage: bool,
}

/// Why the catalogue cannot be extended so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidExtension {
    /// It is not JSON of the right shape.
    #[error("cannot read the catalogue")]
    Parse(#[source] serde_json::Error),
    /// A field of a resource is not of its form.
    #[error("catalogue.extra[{index}].{field}: {text:?} must be {form}")]
    Field {
        /// Position in the list.
        index: usize,
        /// The field.
        field: &'static str,
        /// What stands there.
        text: String,
        /// What should.
        form: &'static str,
    },
    /// A resource has no verbs.
    #[error("catalogue.extra[{index}].verbs: name at least one")]
    NoVerbs {
        /// Position in the list.
        index: usize,
    },
    /// The resource must not be added this way.
    #[error("catalogue.extra[{index}]: {why}")]
    Reserved {
        /// Position in the list.
        index: usize,
        /// What it means instead.
        why: &'static str,
    },
    /// What is known about a resource cannot be changed.
    #[error("catalogue.extra[{index}]: {resource} is {kind} of version {version} in namespaces")]
    Differs {
        /// Position in the list.
        index: usize,
        /// The resource.
        resource: &'static str,
        /// Its kind.
        kind: &'static str,
        /// Its version.
        version: &'static str,
    },
    /// A permission is there already.
    #[error("catalogue.extra[{index}]: k8s:{resource}:{verb} is in the catalogue already")]
    Duplicate {
        /// Position in the list.
        index: usize,
        /// The resource.
        resource: String,
        /// The verb.
        verb: String,
    },
    /// A permission would be longer than a role may write.
    #[error("catalogue.extra[{index}]: {resource} is too long a name for a permission")]
    TooLong {
        /// Position in the list.
        index: usize,
        /// The resource.
        resource: String,
    },
    /// They are too many.
    #[error("the catalogue is extended by more than {MOST} permissions")]
    TooMany,
    /// It can be done once.
    #[error("the catalogue was extended before")]
    Again,
}

impl Extension {
    /// Reads the chart's values `catalogue` as JSON. Nothing at all adds nothing.
    ///
    /// # Errors
    /// [`InvalidExtension`] names the field at fault.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidExtension> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let written: Written = serde_json::from_str(text).map_err(InvalidExtension::Parse)?;
        let mut extension = Self { text: text.to_owned(), ..Self::default() };
        for (index, extra) in written.extra.into_iter().enumerate() {
            extension.add(index, extra)?;
        }
        extension.add_secrets(&written.secrets);
        if extension.entries.len() > MOST {
            return Err(InvalidExtension::TooMany);
        }
        Ok(extension)
    }

    /// Makes it the one of this process.
    ///
    /// # Errors
    /// [`InvalidExtension::Again`] when there is one.
    pub(crate) fn install(self) -> Result<(), InvalidExtension> {
        INSTALLED.set(self).map_err(|_| InvalidExtension::Again)
    }

    fn add(&mut self, index: usize, extra: Extra) -> Result<(), InvalidExtension> {
        extra.check(index)?;
        let qualified = match extra.group.as_str() {
            "" => extra.resource.clone(),
            group => format!("{}.{group}", extra.resource),
        };
        let known = OBJECTS.iter().chain(&self.objects).find(|object| object.qualified == qualified);
        let place = if extra.scope == Scope::Cluster { Place::Cluster } else { Place::Namespaces };
        let object = match known {
            Some(known)
                if (known.kind, known.version, known.place) != (&extra.kind, &extra.version, place) =>
            {
                let Object { qualified: resource, kind, version, .. } = *known;
                return Err(InvalidExtension::Differs { index, resource, kind, version });
            }
            Some(known) => known.clone(),
            // Rows of the table are static everywhere. These live as long as the process, which reads them once, so
            // nothing is lost by never freeing them.
            None => {
                let qualified: &str = qualified.leak();
                Object {
                    name: qualified,
                    qualified,
                    group: extra.group.leak(),
                    version: extra.version.leak(),
                    plural: extra.resource.leak(),
                    kind: extra.kind.leak(),
                    place,
                }
            }
        };
        let name = object.name;
        for verb in extra.verbs {
            let Some((verb, class)) = VERBS.into_iter().find(|(known, _)| *known == verb) else {
                let form = "get, list, watch, create, update, patch or delete";
                return Err(InvalidExtension::Field { index, field: "verbs", text: verb, form });
            };
            if format!("{KUBERNETES}:{name}:{verb}").len() > MAX_LENGTH {
                return Err(InvalidExtension::TooLong { index, resource: name.to_owned() });
            }
            let mut added = self.entries.iter();
            if Permission::built_in(KUBERNETES, name, verb).is_some()
                || added.any(|entry| entry.resource == name && entry.verb == verb)
            {
                let (resource, verb) = (name.to_owned(), verb.to_owned());
                return Err(InvalidExtension::Duplicate { index, resource, verb });
            }
            self.entries.push(entry(&object, verb, class, vec![verb]));
        }
        self.add_object(object);
        Ok(())
    }

    fn add_secrets(&mut self, secrets: &Secrets) {
        let object = Object {
            name: SECRETS,
            qualified: SECRETS,
            group: "",
            version: "v1",
            plural: SECRETS,
            kind: "Secret",
            place: Place::Namespaces,
        };
        if secrets.read {
            self.entries.push(entry(&object, "get", Class::Sensitive, vec!["get"]));
            self.entries.push(entry(&object, "list", Class::Sensitive, vec!["list"]));
        }
        if secrets.manage {
            let verbs = vec!["create", "update", "delete"];
            self.entries.push(entry(&object, "manage", Class::Destructive, verbs));
        }
        if secrets.read || secrets.manage {
            self.add_object(object);
        }
    }

    fn add_object(&mut self, object: Object) {
        if !OBJECTS.iter().chain(&self.objects).any(|known| known.qualified == object.qualified) {
            self.objects.push(object);
        }
    }
}

impl Extra {
    fn check(&self, index: usize) -> Result<(), InvalidExtension> {
        let invalid = |field, text: &str, form| {
            Err(InvalidExtension::Field { index, field, text: text.to_owned(), form })
        };
        let alphanumeric = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric());
        if !self.group.is_empty() && !self.group.split('.').all(is_label) {
            return invalid("group", &self.group, "an API group, such as \"cert-manager.io\"");
        }
        if !is_label(&self.resource) {
            return invalid("resource", &self.resource, "a resource in the plural, such as \"certificates\"");
        }
        if !alphanumeric(&self.kind) || self.kind.len() > 63 {
            return invalid("kind", &self.kind, "a kind, such as \"Certificate\"");
        }
        if !alphanumeric(&self.version) || !is_label(&self.version) {
            return invalid("version", &self.version, "a version, such as \"v1\"");
        }
        let why = match (self.group.as_str(), self.resource.as_str()) {
            ("", SECRETS) => "permissions on Secrets are added by catalogue.secrets",
            ("", EXTRAS) => "in a permission, \"resources\" stands for every resource of catalogue.extra",
            _ if self.verbs.is_empty() => return Err(InvalidExtension::NoVerbs { index }),
            _ => return Ok(()),
        };
        Err(InvalidExtension::Reserved { index, why })
    }
}

/// A row of one rule.
fn entry(object: &Object, verb: &'static str, class: Class, verbs: Vec<&'static str>) -> Entry {
    let rule = Rule { group: object.group, resource: object.plural, verbs: verbs.leak() };
    Entry {
        family: KUBERNETES,
        place: object.place,
        resource: object.name,
        verb,
        class,
        rules: vec![rule].leak(),
    }
}

fn is_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !text.starts_with('-') && !text.ends_with('-');
    !text.is_empty() && text.len() <= 63 && edges && text.chars().all(plain)
}

/// The rows that this process has beyond the built-in ones.
pub(super) fn entries() -> &'static [Entry] {
    INSTALLED.get().map_or(&[], |extension| &extension.entries)
}

/// The objects that this process knows beyond the built-in ones.
pub(super) fn objects() -> &'static [Object] {
    INSTALLED.get().map_or(&[], |extension| &extension.objects)
}

/// What extends the catalogue of this process, as it was written. None: nothing does.
pub(crate) fn text() -> Option<&'static str> {
    INSTALLED.get().filter(|extension| !extension.entries.is_empty()).map(|extension| extension.text.as_str())
}

#[cfg(test)]
mod tests;
