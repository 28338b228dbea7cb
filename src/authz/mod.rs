//! May they: one pure function from grants and an action to a permit or a denial.
//!
//! A *permission* is a named right (`k8s:pods:list`). A *role* holds patterns of permissions and a scope of
//! namespaces; what a caller holds through its roles are *grants*. An *action* is one permission on one target.
//! For example, a caller with the role `viewer` of namespace `agents`, which holds `k8s:pods:*`, gets a permit for
//! (`k8s:pods:list`, namespace `agents`) and a denial for (`k8s:pods:list`, namespace `kube-system`).
//!
//! Deny is the default and roles only add. No I/O, no clock.

pub(crate) mod catalogue;
#[cfg(test)]
mod model;
pub(crate) mod permission;
#[cfg(test)]
pub(crate) mod random;
pub(crate) mod role;
mod suggestion;

use std::fmt;
use std::sync::Arc;

pub(crate) use catalogue::{Class, Permission};
pub(crate) use permission::within_scopes;
pub(crate) use role::{Role, RoleId, Scope};
pub(crate) use suggestion::suggestion;

/// What a call acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// Somewhere, not known yet: used for listing tools and for lists that fan out over what is permitted.
    Anywhere,
    /// One namespace.
    Namespace(&'a str),
}

/// Proof that [`authorize`] said yes. It can be made nowhere else, and tools cannot be called without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    namespaces: Namespaces,
    role: RoleId,
}

/// The namespaces that a permit covers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Namespaces {
    /// Exactly this one.
    One(String),
    /// Every one that a scope of these covers.
    Within(Vec<Scope>),
}

impl Permit {
    /// The role that decided.
    pub(crate) fn role(&self) -> &RoleId {
        &self.role
    }

    /// Whether the permit covers every namespace, so that one cluster-wide list will do.
    pub(crate) fn is_cluster_wide(&self) -> bool {
        matches!(&self.namespaces, Namespaces::Within(scopes) if scopes.contains(&Scope::All))
    }

    /// Whether the permit covers the namespace.
    pub(crate) fn covers(&self, namespace: &str) -> bool {
        match &self.namespaces {
            Namespaces::One(one) => one == namespace,
            Namespaces::Within(scopes) => scopes.iter().any(|scope| scope.covers(namespace)),
        }
    }
}

/// Why an action was refused. The text is for the audit; callers get a shorter one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Denial {
    /// The permission that no role grants there.
    pub(crate) permission: Permission,
    /// The namespace, or none for "anywhere".
    pub(crate) namespace: Option<String>,
    /// Number of roles that were asked.
    pub(crate) roles: usize,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "none of {} roles grants {} ", self.roles, self.permission)?;
        match &self.namespace {
            Some(namespace) => write!(f, "in namespace {namespace:?}"),
            None => f.write_str("anywhere"),
        }
    }
}

/// Decides whether the roles allow the permission on the target.
///
/// # Errors
/// [`Denial`] when no role grants it: deny is the default.
pub(crate) fn authorize(
    roles: &[Arc<Role>],
    permission: Permission,
    target: Target<'_>,
) -> Result<Permit, Denial> {
    let granting = roles.iter().filter(|role| role.grants(permission));
    let denial = |namespace: Option<&str>| Denial {
        permission,
        namespace: namespace.map(str::to_owned),
        roles: roles.len(),
    };
    match target {
        Target::Namespace(namespace) => granting
            .into_iter()
            .find(|role| role.scope().covers(namespace))
            .map(|role| Permit { namespaces: Namespaces::One(namespace.to_owned()), role: role.id().clone() })
            .ok_or_else(|| denial(Some(namespace))),
        Target::Anywhere => {
            let granting: Vec<_> = granting.filter(|role| !role.scope().is_empty()).collect();
            let first = granting.first().ok_or_else(|| denial(None))?;
            Ok(Permit {
                namespaces: Namespaces::Within(granting.iter().map(|role| role.scope().clone()).collect()),
                role: first.id().clone(),
            })
        }
    }
}

#[cfg(test)]
mod tests;
