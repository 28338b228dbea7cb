//! What a case is: the fields, the attack, what the tenant writes, and what becomes of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The cases of one kind, and what others have made before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// Objects of others.
    pub(super) given: Vec<Value>,
    /// What the tenant tries.
    pub(super) cases: Vec<Case>,
}

impl Table {
    pub(super) fn parse(text: &str) -> Self {
        serde_saphyr::from_str(text).expect("a table of cases")
    }
}

/// Something that the tenant tries.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// Paths of the fields that are tried.
    fields: Vec<String>,
    /// What is done with them.
    attack: Attack,
    /// Object that the tenant makes.
    #[serde(default)]
    tenant: Option<Value>,
    /// Object of others that it changes.
    #[serde(default)]
    pub(super) patch: Option<Value>,
    /// How it deletes the object before it makes it once more.
    #[serde(default)]
    pub(super) again: Option<Again>,
    /// Part of the message with which the API server refuses it.
    #[serde(default)]
    pub(super) refused: Option<String>,
    /// What the operator says of it, as `Type=Status/Reason`.
    #[serde(default)]
    pub(super) becomes: Option<String>,
}

impl Case {
    /// What the tenant writes.
    pub(super) fn object(&self) -> &Value {
        self.tenant.as_ref().or(self.patch.as_ref()).expect("a case has an object")
    }
}

/// What is done with a field.
#[derive(Serialize, Deserialize)]
enum Attack {
    /// It names something in another namespace.
    AnotherNamespace,
    /// It holds a path.
    Traversal,
    /// It holds a pattern.
    Glob,
    /// It names something that somebody else made, for another purpose.
    ForeignObject,
    /// Labels are those of the operator's objects.
    LabelSpoof,
    /// Owner, finalizer or status are as the operator would write them.
    OwnerSpoof,
    /// The name was another object's before.
    RecreatedName,
    /// Annotations ask for something.
    AnnotationOverride,
    /// It changes what pods or callers are like.
    Template,
}

/// How an object is deleted before it is made again.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Again {
    /// Its children stay.
    Orphan,
    /// Its children go later.
    Background,
    /// Its children stay, and the operator cannot clean up.
    WithoutFinalizer,
}
