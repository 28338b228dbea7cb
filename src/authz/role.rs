//! Roles as the decision uses them, and the one conversion from what people write.
//!
//! The operator's `Accepted` condition and the endpoint's snapshot call the same conversion, so a role is Accepted
//! exactly when it grants.

use std::fmt;

use crate::api::{ClusterMcpRole, McpRole, RoleKind, Subject, SubjectKind, names};

use super::catalogue::Permission;
use super::inheritance::{InvalidParent, Parents, Source, inherited};
use super::permission::{ParsePattern, Pattern};
use super::scope::{NamespaceLabels, Scope};

/// A role by kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RoleId {
    /// Kind of the role.
    pub(crate) kind: RoleKind,
    /// Its namespace; empty for a `ClusterMcpRole`.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

impl fmt::Display for RoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RoleKind::McpRole => write!(f, "McpRole {}/{}", self.namespace, self.name),
            RoleKind::ClusterMcpRole => write!(f, "ClusterMcpRole {}", self.name),
        }
    }
}

/// A role that grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    id: RoleId,
    /// Sorted, each once.
    permissions: Vec<Permission>,
    /// What grants each of them, in the same order: a position among the sources.
    granted_by: Vec<usize>,
    sources: Vec<Source>,
    scope: Scope,
    servers: Servers,
    subjects: Vec<Holder>,
}

/// Somebody who holds a role by proving who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// User, group, or ServiceAccount as the user name that Kubernetes gives it.
    pub(crate) name: HolderName,
    /// Who must vouch for the name. None: anybody whom the server trusts.
    pub(crate) issuer: Option<String>,
}

/// What a holder is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HolderName {
    /// The name of a user.
    User(String),
    /// The name of a group.
    Group(String),
}

/// The servers that a role counts for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Servers {
    /// Every one of a namespace.
    Namespace(String),
    /// These, by namespace and name.
    Named(Vec<(String, String)>),
}

/// Why a role grants nothing: the field and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRole {
    /// A permission is not one.
    #[error("spec.permissions[{index}]: {text:?} {source}")]
    Permission {
        /// Position in the list.
        index: usize,
        /// What stands there.
        text: String,
        /// What is wrong with it.
        source: ParsePattern,
    },
    /// There are neither permissions nor roles to inherit from.
    #[error("spec.permissions: name at least one permission, or a role in spec.inherits")]
    NoPermissions,
    /// Nothing can be inherited from a role.
    #[error("spec.inherits[{index}]: {source}")]
    Inherits {
        /// Position in the list.
        index: usize,
        /// Why not.
        source: InvalidParent,
    },
    /// A namespace is neither a name nor a pattern.
    #[error("spec.namespaces[{index}]: {text:?} must be a namespace or a pattern such as \"feature-*\"")]
    Namespace {
        /// Position in the list.
        index: usize,
        /// What stands there.
        text: String,
    },
    /// A pattern of which nothing that it matches may be reached by a pattern.
    #[error(
        "spec.namespaces[{index}]: {text:?} matches nothing: namespaces of the system count by their whole names only"
    )]
    ProtectedPattern {
        /// Position in the list.
        index: usize,
        /// What stands there.
        text: String,
    },
    /// More than one of patterns, a selector and all namespaces.
    #[error("spec.namespaces, spec.namespaceSelector and spec.allNamespaces exclude each other: keep one")]
    TwoScopes,
    /// A selector without requirements.
    #[error("spec.namespaceSelector: name at least one label; for every namespace set spec.allNamespaces")]
    EmptySelector,
    /// A requirement of a selector that is none.
    #[error(
        "spec.namespaceSelector.matchExpressions[{index}]: the operators are In and NotIn with values, Exists and DoesNotExist without"
    )]
    Selector {
        /// Position in the list.
        index: usize,
    },
    /// A cluster role names no server.
    #[error("spec.servers: name at least one server")]
    NoServers,
    /// A user or group of a cluster role without an issuer.
    #[error("spec.subjects[{index}].issuer: name who vouches for {name:?}")]
    NoIssuer {
        /// Position in the list.
        index: usize,
        /// Who stands there.
        name: String,
    },
    /// A ServiceAccount of a cluster role without a namespace.
    #[error("spec.subjects[{index}].namespace: name the namespace of ServiceAccount {name:?}")]
    NoNamespace {
        /// Position in the list.
        index: usize,
        /// Who stands there.
        name: String,
    },
}

impl InvalidRole {
    /// Whether a permission is well formed but not in the catalogue.
    pub(crate) fn is_unknown_permission(&self) -> bool {
        matches!(self, InvalidRole::Permission { source: ParsePattern::Unknown, .. })
    }

    /// Whether a role that it inherits from may be at fault.
    pub(crate) fn is_inherited(&self) -> bool {
        matches!(self, InvalidRole::Inherits { .. })
    }
}

impl Role {
    /// Converts a namespaced role. The parents are the roles of its namespace.
    ///
    /// # Errors
    /// [`InvalidRole`] names the field at fault.
    pub(crate) fn from_role(role: &McpRole, parents: Parents<'_>) -> Result<Self, InvalidRole> {
        let namespace = role.metadata.namespace.clone().unwrap_or_default();
        let named = |name: &String| (namespace.clone(), name.clone());
        let servers = match role.spec.servers.as_slice() {
            [] => Servers::Namespace(namespace.clone()),
            names => Servers::Named(names.iter().map(named).collect()),
        };
        let name = role.metadata.name.clone().unwrap_or_default();
        let sources = sources(&name, &role.spec.permissions, &role.spec.inherits, parents)?;
        let subjects = holders(&role.spec.subjects, Some(&namespace))?;
        let id = RoleId { kind: RoleKind::McpRole, namespace: namespace.clone(), name };
        Ok(Self::new(id, sources, Scope::Namespace(namespace), servers, subjects))
    }

    /// Converts a cluster-scoped role. Patterns and selectors leave the operator's own namespace out. The parents are
    /// the other cluster-scoped roles.
    ///
    /// # Errors
    /// [`InvalidRole`] names the field at fault.
    pub(crate) fn from_cluster_role(
        role: &ClusterMcpRole,
        operator_namespace: &str,
        namespaces: &NamespaceLabels,
        parents: Parents<'_>,
    ) -> Result<Self, InvalidRole> {
        let scope = Scope::of(&role.spec, operator_namespace, namespaces)?;
        if role.spec.servers.is_empty() {
            return Err(InvalidRole::NoServers);
        }
        let named = role.spec.servers.iter().map(|s| (s.namespace.clone(), s.name.clone()));
        let name = role.metadata.name.clone().unwrap_or_default();
        let sources = sources(&name, &role.spec.permissions, &role.spec.inherits, parents)?;
        let subjects = holders(&role.spec.subjects, None)?;
        let id = RoleId { kind: RoleKind::ClusterMcpRole, namespace: String::new(), name };
        Ok(Self::new(id, sources, scope, Servers::Named(named.collect()), subjects))
    }

    /// Of two sources that grant the same, the first one counts as what decided.
    fn new(id: RoleId, sources: Vec<Source>, scope: Scope, servers: Servers, subjects: Vec<Holder>) -> Self {
        let first = |permission: Permission| {
            let found = sources.iter().position(|source| source.pattern.matches(permission));
            found.map(|source| (permission, source))
        };
        let mut granted: Vec<(Permission, usize)> = Permission::all().filter_map(first).collect();
        granted.sort();
        let (permissions, granted_by) = granted.into_iter().unzip();
        Self { id, permissions, granted_by, sources, scope, servers, subjects }
    }

    /// Kind, namespace and name.
    pub(crate) fn id(&self) -> &RoleId {
        &self.id
    }

    /// Every permission, sorted, each once.
    pub(crate) fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    /// The namespaces in which it counts.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Who holds it by proving who they are.
    pub(crate) fn subjects(&self) -> &[Holder] {
        &self.subjects
    }

    /// Whether the permission is among the role's.
    pub(crate) fn grants(&self, permission: Permission) -> bool {
        self.permissions.binary_search(&permission).is_ok()
    }

    /// What of the role grants the permission: the pattern, and the role that it was inherited from.
    pub(crate) fn source(&self, permission: Permission) -> Option<&Source> {
        let index = self.permissions.binary_search(&permission).ok()?;
        self.sources.get(self.granted_by[index])
    }

    /// Whether the role counts for the server.
    pub(crate) fn selects(&self, namespace: &str, server: &str) -> bool {
        match &self.servers {
            Servers::Namespace(own) => own == namespace,
            Servers::Named(named) => named.iter().any(|(ns, name)| ns == namespace && name == server),
        }
    }
}

/// Every pattern of a role, its own before those that it inherits.
fn sources(
    own: &str,
    texts: &[String],
    inherits: &[String],
    parents: Parents<'_>,
) -> Result<Vec<Source>, InvalidRole> {
    if texts.is_empty() && inherits.is_empty() {
        return Err(InvalidRole::NoPermissions);
    }
    let parse = |(index, text): (usize, &String)| match Pattern::parse(text) {
        Ok(pattern) => Ok(Source { pattern, inherited_from: None }),
        Err(source) => Err(InvalidRole::Permission { index, text: text.clone(), source }),
    };
    let mut sources: Vec<Source> = texts.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let parents = inherited(own, inherits, parents)
        .map_err(|(index, source)| InvalidRole::Inherits { index, source })?;
    sources.extend(parents);
    Ok(sources)
}

/// Who holds a role. In a cluster role every user and group names its issuer, because the administrator of one server
/// must not make up users of another.
fn holders(subjects: &[Subject], namespace: Option<&str>) -> Result<Vec<Holder>, InvalidRole> {
    let convert = |(index, subject): (usize, &Subject)| {
        let name = subject.name.clone();
        let issuer = match (&subject.issuer, namespace) {
            (None, None) if subject.kind != SubjectKind::ServiceAccount => {
                return Err(InvalidRole::NoIssuer { index, name });
            }
            (issuer, _) => issuer.clone(),
        };
        Ok(match subject.kind {
            SubjectKind::User => Holder { name: HolderName::User(name), issuer },
            SubjectKind::Group => Holder { name: HolderName::Group(name), issuer },
            SubjectKind::ServiceAccount => {
                let namespace = subject.namespace.as_deref().or(namespace);
                let namespace = namespace.ok_or(InvalidRole::NoNamespace { index, name: name.clone() })?;
                let user = format!("{}{namespace}:{name}", names::SERVICE_ACCOUNT_PREFIX);
                Holder { name: HolderName::User(user), issuer: Some("kubernetes".to_owned()) }
            }
        })
    };
    subjects.iter().enumerate().map(convert).collect()
}
