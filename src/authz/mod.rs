//! May they: one pure function from grants and an action to a permit or a denial.
//!
//! A *permission* is a named right (`k8s:pods:list`). A *role* holds patterns of permissions and a scope of
//! namespaces; what a caller holds through its roles are *grants*. An *action* is one permission on one target.
//! For example, a caller with the role `viewer` of namespace `agents`, which holds `k8s:pods:*`, gets a permit for
//! (`k8s:pods:list`, namespace `agents`) and a denial for (`k8s:pods:list`, namespace `kube-system`).
//!
//! Deny is the default and roles only add. A tenant only takes away. No I/O, no clock.

pub(crate) mod anomaly;
pub(crate) mod catalogue;
#[cfg(feature = "bench")]
pub(crate) mod cedar;
pub(crate) mod extension;
mod globs;
mod grants;
pub(crate) mod inheritance;
#[cfg(test)]
mod model;
pub(crate) mod permission;
#[cfg(test)]
pub(crate) mod random;
pub(crate) mod role;
pub(crate) mod scope;
mod suggestion;
mod violation;

use std::fmt;
use std::sync::Arc;

pub(crate) use catalogue::{Class, Object, Permission, Place};
pub(crate) use grants::{Confinement, Grants, GrantsKey, Roles};
pub(crate) use inheritance::Parent;
pub(crate) use permission::within_scopes;
pub(crate) use role::{Role, RoleId};
pub(crate) use scope::{NamespaceLabels, Scope};
pub(crate) use suggestion::suggestion;
pub(crate) use violation::Violation;

/// What a call acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// Somewhere, not known yet: used for listing tools and for lists that fan out over what is permitted.
    Anywhere,
    /// One namespace. The empty name stands for all of them, as it does to the API server, and needs the right on all.
    Namespace(&'a str),
}

/// Proof that [`authorize`] said yes. It can be made nowhere else, and tools cannot be called without one.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    permission: Permission,
    namespaces: Namespaces,
    role: Arc<Role>,
}

/// The namespaces that a permit covers.
#[derive(Clone, Debug)]
enum Namespaces {
    /// Exactly this one.
    One(String),
    /// Every one that a role among these covers and the caller's tenant has.
    Within(Grants),
    /// Every one, since it is for objects without a namespace.
    Cluster,
    /// None: it is for the endpoint itself.
    None,
}

impl Permit {
    /// The role that decided.
    pub(crate) fn role(&self) -> &RoleId {
        self.role.id()
    }

    /// What of the role decided: the pattern, and where the role has it from.
    pub(crate) fn rule(&self) -> String {
        let Some(source) = self.role.source(self.permission) else { return String::new() };
        match &source.inherited_from {
            Some(parent) => format!("{} inherited from {parent}", source.pattern),
            None => source.pattern.to_string(),
        }
    }

    /// Whether the permit covers every namespace, so that one cluster-wide list will do.
    pub(crate) fn is_cluster_wide(&self) -> bool {
        match &self.namespaces {
            Namespaces::Within(grants) => grants.is_unbounded(),
            Namespaces::Cluster => true,
            Namespaces::One(_) | Namespaces::None => false,
        }
    }

    /// Whether the permit covers the namespace.
    pub(crate) fn covers(&self, namespace: &str) -> bool {
        match &self.namespaces {
            Namespaces::One(one) => one == namespace,
            Namespaces::Within(grants) => grants.reach(namespace),
            Namespaces::Cluster | Namespaces::None => false,
        }
    }
}

/// Why an action was refused. The text is for the audit; callers get a shorter one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Denial {
    /// The permission that was asked for.
    pub(crate) permission: Permission,
    /// The namespace, or none for "anywhere". Empty: every one.
    pub(crate) namespace: Option<String>,
    /// Number of roles that were asked.
    pub(crate) roles: usize,
    /// What was against it.
    pub(crate) cause: Cause,
}

/// What is against an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No role grants it there.
    NoRole,
    /// The caller belongs to a tenant, and the namespace to another one or to none.
    OtherTenant {
        /// Tenant of the caller.
        tenant: String,
        /// Tenant of the namespace.
        owner: Option<String>,
    },
    /// The caller must belong to a tenant and does not.
    NoTenant,
}

impl Cause {
    /// Whether the caller tried to cross the border of a tenant.
    pub(crate) fn is_tenancy(&self) -> bool {
        *self != Cause::NoRole
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.namespace.as_deref() {
            Some("") => "in every namespace".to_owned(),
            Some(namespace) => format!("in namespace {namespace:?}"),
            None => "anywhere".to_owned(),
        };
        match &self.cause {
            Cause::NoRole => write!(f, "none of {} roles grants {} {place}", self.roles, self.permission),
            Cause::OtherTenant { tenant, owner } => {
                let owner =
                    owner.as_ref().map_or("no tenant".to_owned(), |owner| format!("tenant {owner:?}"));
                write!(
                    f,
                    "the caller belongs to tenant {tenant:?} and asked for {} {place}, of {owner}",
                    self.permission
                )
            }
            Cause::NoTenant => write!(f, "the caller belongs to no tenant and asked for {}", self.permission),
        }
    }
}

/// Decides whether the grants allow the permission on the target.
///
/// # Errors
/// [`Denial`] when no role grants it, or a tenant is in the way: deny is the default.
pub(crate) fn authorize(
    grants: &Grants,
    permission: Permission,
    target: Target<'_>,
) -> Result<Permit, Denial> {
    let namespace = match target {
        Target::Namespace(namespace) => Some(namespace),
        Target::Anywhere => None,
    };
    let denial =
        |cause| Denial { permission, namespace: namespace.map(str::to_owned), roles: grants.count(), cause };
    if let Some(cause) = outside_tenant(grants, permission, namespace) {
        return Err(denial(cause));
    }
    let permit = |role: &Arc<Role>, namespaces| Permit { permission, namespaces, role: role.clone() };
    let decided = match (permission.entry().place, namespace) {
        (Place::Endpoint, _) => grants.at_all(permission).map(|role| permit(role, Namespaces::None)),
        (Place::Cluster, _) => grants.everywhere(permission).map(|role| permit(role, Namespaces::Cluster)),
        (Place::Namespaces, Some("")) => grants.everywhere(permission).map(|role| {
            let within = grants.somewhere(permission).unwrap_or_default();
            permit(role, Namespaces::Within(within))
        }),
        (Place::Namespaces, Some(namespace)) => grants
            .inside(permission, namespace)
            .map(|role| permit(role, Namespaces::One(namespace.to_owned()))),
        (Place::Namespaces, None) => grants.somewhere(permission).and_then(|within| {
            let role = within.at_all(permission)?.clone();
            Some(permit(&role, Namespaces::Within(within)))
        }),
    };
    decided.ok_or_else(|| denial(Cause::NoRole))
}

/// What of the caller's tenant is against the action, whatever the roles say.
fn outside_tenant(grants: &Grants, permission: Permission, namespace: Option<&str>) -> Option<Cause> {
    let place = permission.entry().place;
    match (grants.confinement(), namespace) {
        (Confinement::None, _) => None,
        (Confinement::Nowhere, _) => Some(Cause::NoTenant),
        (Confinement::Tenant(_), _) if place == Place::Endpoint => None,
        // What has no namespace belongs to no tenant.
        (Confinement::Tenant(tenant), _) if place == Place::Cluster => {
            Some(Cause::OtherTenant { tenant: tenant.to_string(), owner: None })
        }
        (Confinement::Tenant(_), None) => None,
        (Confinement::Tenant(_), Some(namespace)) if grants.is_open(namespace) => None,
        (Confinement::Tenant(tenant), Some(namespace)) => Some(Cause::OtherTenant {
            tenant: tenant.to_string(),
            owner: grants.tenant_of(namespace).map(str::to_owned),
        }),
    }
}

#[cfg(test)]
mod tests;
