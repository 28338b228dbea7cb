//! The tools as clients see them: which ones a server offers, which of those a caller may see, and their descriptions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rmcp::model::{Tool as Description, ToolAnnotations};

use crate::api::ToolsSpec;
use crate::authn::Method;
use crate::authz::scope::wildcard;
use crate::authz::{Class, GrantsKey, Permission, Target, authorize, within_scopes};
use crate::index::Snapshot;
use crate::tools::{Needs, Tool, registry};

use super::request::Caller;

/// Every tool there is, found by name or alias, in the order of the names.
pub(super) struct Toolbox {
    tools: Vec<(&'static Tool, Description)>,
    by_name: HashMap<&'static str, usize>,
    lists: Mutex<Lists>,
}

/// Lists that were made for one snapshot, by the roles of the caller; the operator has none and sees everything.
#[derive(Default)]
struct Lists {
    snapshot: Arc<Snapshot>,
    made: HashMap<(bool, GrantsKey), Shown>,
}

/// The tools that a caller sees.
#[derive(Clone)]
struct Shown {
    descriptions: Arc<[Description]>,
    names: Arc<[&'static str]>,
}

impl Toolbox {
    /// Describes the tools once.
    pub(super) fn new(tools: &'static [Tool]) -> Self {
        let mut tools: Vec<_> = tools.iter().map(|tool| (tool, describe(tool))).collect();
        tools.sort_by_key(|(tool, _)| tool.name);
        let numbered = tools.iter().enumerate();
        let by_name = numbered
            .flat_map(|(i, (tool, _))| {
                tool.aliases.iter().copied().chain([tool.name]).map(move |name| (name, i))
            })
            .collect();
        Self { tools, by_name, lists: Mutex::default() }
    }

    /// The tool with this name or alias, whoever asks.
    pub(super) fn describe(&self, name: &str) -> Option<&Description> {
        self.by_name.get(name).map(|i| &self.tools[*i].1)
    }

    /// The tool with this name or alias, if the server offers it and the caller may use it somewhere.
    pub(super) fn find(&self, name: &str, caller: &Caller) -> Option<&'static Tool> {
        let tool = self.by_name.get(name).map(|i| self.tools[*i].0)?;
        let callable = caller.identity.method != Method::Operator;
        (callable && shows(tool, caller)).then_some(tool)
    }

    /// The tool with this name and what it needs, if the caller may use it and the scopes of its credential do not reach
    /// that far, whatever the arguments are.
    pub(super) fn short_of_scope(&self, name: &str, caller: &Caller) -> Option<(&'static Tool, Permission)> {
        let scopes = caller.identity.scopes.as_ref()?;
        let tool = self.find(name, caller)?;
        let mut usable = usable(tool, caller).peekable();
        let needed = *usable.peek()?;
        (!usable.any(|permission| within_scopes(scopes, permission))).then_some((tool, needed))
    }

    /// The tools that the caller sees, by name.
    pub(super) fn list(&self, caller: &Caller) -> Arc<[Description]> {
        self.shown(caller).descriptions
    }

    /// Names of the tools that the caller sees.
    pub(super) fn names(&self, caller: &Caller) -> Arc<[&'static str]> {
        self.shown(caller).names
    }

    fn shown(&self, caller: &Caller) -> Shown {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&lists.snapshot, &caller.snapshot) {
            *lists = Lists { snapshot: caller.snapshot.clone(), made: HashMap::new() };
        }
        let key = (caller.identity.method == Method::Operator, caller.grants.key());
        if let Some(made) = lists.made.get(&key) {
            return made.clone();
        }
        let shown: Vec<_> = self.tools.iter().filter(|(tool, _)| shows(tool, caller)).collect();
        let made = Shown {
            descriptions: shown.iter().map(|(_, description)| description.clone()).collect(),
            names: shown.iter().map(|(tool, _)| tool.name).collect(),
        };
        lists.made.insert(key, made.clone());
        made
    }
}

/// Whether the server offers the tool and the caller may use it somewhere. The operator sees what is offered.
fn shows(tool: &Tool, caller: &Caller) -> bool {
    let offered = caller.snapshot.server.as_ref().is_some_and(|server| offers(&server.spec.tools, tool));
    let allowed = || caller.identity.method == Method::Operator || usable(tool, caller).next().is_some();
    offered && allowed()
}

/// The permissions that open the tool on this server and that the roles of the caller grant somewhere.
pub(super) fn usable(tool: &Tool, caller: &Caller) -> impl Iterator<Item = Permission> {
    let spec = caller.snapshot.server.as_ref().map(|server| &server.spec.tools);
    let spec = spec.filter(|spec| offers(spec, tool));
    let allowed = move |permission: &Permission| {
        spec.is_some_and(|spec| !is_denied(spec, *permission))
            && authorize(&caller.grants, *permission, Target::Anywhere).is_ok()
    };
    tool.needs.permissions().filter(allowed)
}

/// Whether the spec of a server lets the tool be used with the permission. Denying a tool denies what it does to the
/// tools that could do it too, for any resource.
pub(crate) fn opens(spec: &ToolsSpec, tool: &Tool, permission: Permission) -> bool {
    offers(spec, tool) && tool.needs.includes(permission) && !is_denied(spec, permission)
}

/// Whether the spec of a server denies the tool that the permission is there for.
fn is_denied(spec: &ToolsSpec, permission: Permission) -> bool {
    registry().iter().any(|tool| tool.needs == Needs::Permission(permission) && denies(spec, tool))
}

/// Whether the spec of a server lets the tool in at all.
pub(crate) fn offers(spec: &ToolsSpec, tool: &Tool) -> bool {
    let named = |patterns: &[String]| patterns.iter().any(|pattern| wildcard(pattern, tool.name));
    (spec.allow.is_empty() || named(&spec.allow))
        && !denies(spec, tool)
        && (!spec.read_only || tool.needs.class().is_read_only())
}

/// Whether the spec of a server denies the tool, by any of the names that it answers to.
fn denies(spec: &ToolsSpec, tool: &Tool) -> bool {
    let by = |pattern: &String| {
        wildcard(pattern, tool.name) || tool.aliases.iter().any(|alias| wildcard(pattern, alias))
    };
    spec.deny.iter().any(by)
}

fn describe(tool: &Tool) -> Description {
    let class = tool.needs.class();
    let annotations = ToolAnnotations::with_title(tool.title)
        .read_only(class.is_read_only())
        .destructive(class == Class::Destructive)
        .idempotent(tool.idempotent)
        .open_world(false);
    Description::new(tool.name, tool.description, Arc::new((tool.input_schema)()))
        .with_title(tool.title)
        .with_raw_output_schema(Arc::new((tool.output_schema)()))
        .with_annotations(annotations)
}

#[cfg(test)]
mod tests;
