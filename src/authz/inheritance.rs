//! Roles that inherit: a role has its own patterns of permissions and those of the roles that it names, and of theirs.
//!
//! Only permissions are inherited; where they count, for which servers and for whom the inheriting role says itself. A
//! role that is missing, broken or inherits itself breaks every role that inherits from it: none of them grants.

use std::collections::BTreeSet;

use crate::api::{ClusterMcpRole, McpRole};

use super::permission::{ParsePattern, Pattern};

/// Most roles that one role may inherit from, over all steps.
const MOST: usize = 64;

/// The part of a role that others inherit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parent {
    /// `spec.permissions`.
    pub(crate) permissions: Vec<String>,
    /// `spec.inherits`.
    pub(crate) inherits: Vec<String>,
}

impl From<&McpRole> for Parent {
    fn from(role: &McpRole) -> Self {
        Self { permissions: role.spec.permissions.clone(), inherits: role.spec.inherits.clone() }
    }
}

impl From<&ClusterMcpRole> for Parent {
    fn from(role: &ClusterMcpRole) -> Self {
        Self { permissions: role.spec.permissions.clone(), inherits: role.spec.inherits.clone() }
    }
}

/// Finds a role of the same kind and namespace by its name. One that is being deleted is not found.
pub(crate) type Parents<'a> = &'a dyn Fn(&str) -> Option<Parent>;

/// A pattern of a role, and the role that it was inherited from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The pattern.
    pub(super) pattern: Pattern,
    /// Name of the role that wrote it; none: the role itself.
    pub(super) inherited_from: Option<String>,
}

/// Why nothing can be inherited from a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidParent {
    /// There is none of that name.
    #[error("there is no role {0:?}")]
    Missing(String),
    /// Following the roles leads back.
    #[error("roles inherit in a circle: {0}")]
    Cycle(String),
    /// One of its permissions is not one.
    #[error("role {name:?} is not accepted: {text:?} {source}")]
    Permission {
        /// The role.
        name: String,
        /// The permission.
        text: String,
        /// What is wrong with it.
        source: ParsePattern,
    },
    /// It names neither permissions nor roles.
    #[error("role {0:?} is not accepted: it names no permissions")]
    Empty(String),
    /// They are too many.
    #[error("inherits from more than {MOST} roles")]
    TooMany,
}

/// The patterns of every role that one named `own` inherits from.
///
/// # Errors
/// Position in `inherits`, and why nothing can be inherited from there.
pub(super) fn inherited(
    own: &str,
    inherits: &[String],
    parents: Parents<'_>,
) -> Result<Vec<Source>, (usize, InvalidParent)> {
    let mut walk = Walk { parents, path: vec![own.to_owned()], done: BTreeSet::new(), found: Vec::new() };
    for (index, name) in inherits.iter().enumerate() {
        walk.visit(name).map_err(|invalid| (index, invalid))?;
    }
    Ok(walk.found)
}

struct Walk<'a> {
    parents: Parents<'a>,
    /// From the role itself to the one that is looked at.
    path: Vec<String>,
    done: BTreeSet<String>,
    found: Vec<Source>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str) -> Result<(), InvalidParent> {
        if let Some(start) = self.path.iter().position(|passed| passed == name) {
            let circle = self.path[start..].iter().map(String::as_str).chain([name]);
            return Err(InvalidParent::Cycle(circle.collect::<Vec<_>>().join(" -> ")));
        }
        if self.done.contains(name) {
            return Ok(());
        }
        if self.done.len() + self.path.len() > MOST {
            return Err(InvalidParent::TooMany);
        }
        let parent = (self.parents)(name).ok_or_else(|| InvalidParent::Missing(name.to_owned()))?;
        if parent.permissions.is_empty() && parent.inherits.is_empty() {
            return Err(InvalidParent::Empty(name.to_owned()));
        }
        for text in &parent.permissions {
            let pattern = Pattern::parse(text).map_err(|source| InvalidParent::Permission {
                name: name.to_owned(),
                text: text.clone(),
                source,
            })?;
            self.found.push(Source { pattern, inherited_from: Some(name.to_owned()) });
        }
        self.path.push(name.to_owned());
        for next in &parent.inherits {
            self.visit(next)?;
        }
        self.path.pop();
        self.done.insert(name.to_owned());
        Ok(())
    }
}
