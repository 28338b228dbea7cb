//! The tools: data in one registry, and what they do through a typed client.
//!
//! Tools do not decide access. Each declares the permission it needs, or that its arguments choose it; it can only be
//! run with a [`Permit`] for what its arguments ask for.

mod args;
mod deployments;
mod errors;
mod events;
mod list;
mod namespaces;
mod pod_view;
mod pods;
mod request;
mod resources;
mod services;
mod table;
mod whoami;

use std::sync::Arc;

use futures::future::BoxFuture;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::authn::Identity;
use crate::authz::{Class, Grants, Object, Permission, Permit, Target};

pub(crate) use resources::UNKNOWN_RESOURCE;

/// Every tool, sorted by name.
static REGISTRY: [Tool; 14] = [
    whoami::WHOAMI,
    deployments::LIST,
    deployments::RESTART,
    deployments::SCALE,
    events::LIST,
    namespaces::LIST,
    pods::DELETE,
    pods::GET,
    pods::LIST,
    pods::LOG,
    pods::RESTART,
    resources::GET,
    resources::LIST,
    services::LIST,
];

/// Every tool, sorted by name.
pub(crate) fn registry() -> &'static [Tool] {
    &REGISTRY
}

/// Every name by which the tools can be called.
pub(crate) fn names(tools: &'static [Tool]) -> impl Iterator<Item = &'static str> {
    tools.iter().flat_map(|tool| tool.aliases.iter().copied().chain([tool.name]))
}

/// One tool, as data.
pub(crate) struct Tool {
    /// Canonical name.
    pub(crate) name: &'static str,
    /// Other names accepted on call and never listed.
    pub(crate) aliases: &'static [&'static str],
    /// Name for people.
    pub(crate) title: &'static str,
    /// What it does, for the model.
    pub(crate) description: &'static str,
    /// What a caller needs; its class says how dangerous the tool is.
    pub(crate) needs: Needs,
    /// Whether calling it twice does no more than calling it once.
    pub(crate) idempotent: bool,
    /// JSON Schema of the arguments.
    pub(crate) input_schema: fn() -> Map<String, Value>,
    /// JSON Schema of the structured result.
    pub(crate) output_schema: fn() -> Map<String, Value>,
    /// Parses arguments by type.
    pub(crate) parse: fn(Map<String, Value>) -> Parsed,
}

/// What a caller needs to use a tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// One permission, whatever the arguments.
    Permission(Permission),
    /// This verb on the resource that the arguments name: any of the catalogue.
    Verb(&'static str),
}

impl Needs {
    /// Every permission that can open the tool. It is one, or the arguments choose among them.
    pub(crate) fn permissions(self) -> impl Iterator<Item = Permission> {
        let (fixed, verb) = match self {
            Needs::Permission(permission) => (Some(permission), None),
            Needs::Verb(verb) => (None, Some(verb)),
        };
        let any = verb
            .into_iter()
            .flat_map(|verb| Object::all().filter_map(move |object| Permission::named(object.name, verb)));
        fixed.into_iter().chain(any)
    }

    /// Whether the permission can open the tool.
    pub(crate) fn includes(self, permission: Permission) -> bool {
        self.permissions().any(|needed| needed == permission)
    }

    /// How dangerous the tool can be.
    pub(crate) fn class(self) -> Class {
        self.permissions().map(Permission::class).max().unwrap_or(Class::Read)
    }
}

/// A call whose arguments fit, or what does not.
pub(crate) type Parsed = Result<Box<dyn Invocation>, InvalidArguments>;

/// A tool with parsed arguments, ready to be authorized and run.
pub(crate) trait Invocation: Send {
    /// What the arguments ask to act on.
    fn target(&self) -> Target<'_>;

    /// The permission that its arguments choose, where the tool does not fix one.
    fn permission(&self) -> Option<Permission> {
        None
    }

    /// The resource it acts on, for the audit: `deployments/web`, or `pods`.
    fn resource(&self) -> String;

    /// Runs it. The permit is for the tool's permission on [`Invocation::target`].
    fn run(
        self: Box<Self>,
        context: Context,
        permit: Permit,
    ) -> BoxFuture<'static, Result<Output, ToolError>>;
}

/// What a tool may use.
#[derive(Clone)]
pub(crate) struct Context {
    /// The cluster, as this server's ServiceAccount.
    pub(crate) client: kube::Client,
    /// Who calls.
    pub(crate) identity: Identity,
    /// Names of the tools that the caller sees.
    pub(crate) tools: Arc<[&'static str]>,
    /// What the caller holds, to show what it may see.
    pub(crate) grants: Grants,
    /// Every namespace of the cluster, sorted by name.
    pub(crate) namespaces: Arc<[String]>,
}

/// What a tool answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    /// A compact table or text for the model.
    pub(crate) text: String,
    /// The same as data, after the output schema.
    pub(crate) structured: Value,
}

/// Arguments that do not fit the tool's schema; the text names the argument.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidArguments(pub(crate) String);

/// Why a tool failed. The text is for the model and says what to do; it never holds a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// The arguments fit the schema and still cannot work.
    #[error("{0}")]
    Invalid(String),
    /// The object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The API server refused: the server's ServiceAccount lacks a right that its roles should have given it.
    #[error("{0}")]
    Forbidden(String),
    /// The API server could not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody else changed the object meanwhile.
    #[error("{0}")]
    Conflict(String),
}

impl ToolError {
    /// Fixed word for audit and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            ToolError::Invalid(_) => "invalid",
            ToolError::NotFound(_) => "not_found",
            ToolError::Forbidden(_) => "forbidden",
            ToolError::Unavailable(_) => "unavailable",
            ToolError::Conflict(_) => "conflict",
        }
    }
}

/// An answer from its text and its data.
fn output(text: String, structured: &impl Serialize) -> Result<Output, ToolError> {
    let structured = serde_json::to_value(structured)
        .map_err(|_| ToolError::Unavailable("the answer cannot be written as JSON".into()))?;
    Ok(Output { text, structured })
}

/// The JSON Schema of what a tool answers, whole in itself.
fn output_schema<T: JsonSchema>() -> Map<String, Value> {
    let settings =
        SchemaSettings::draft2020_12().for_serialize().with(|settings| settings.inline_subschemas = true);
    match settings.into_generator().into_root_schema_for::<T>().to_value() {
        Value::Object(schema) => schema,
        other => unreachable!("the schema of an object is an object, not {other}"),
    }
}

#[cfg(test)]
mod tests;
