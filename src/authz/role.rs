//! Roles as the decision uses them, and the one conversion from what people write.
//!
//! The operator's `Accepted` condition and the endpoint's snapshot call the same conversion, so a role is Accepted
//! exactly when it grants.

use std::fmt;

use crate::api::{ClusterMcpRole, McpRole, RoleKind, Subject, SubjectKind, names};

use super::catalogue::Permission;
use super::permission::{ParsePattern, Pattern};

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

/// The namespaces in which a role counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One namespace.
    Namespace(String),
    /// Those that one of the patterns matches.
    Patterns(Vec<NamespacePattern>),
    /// Every namespace there is.
    All,
}

impl Scope {
    /// Whether the namespace is inside.
    pub(crate) fn covers(&self, namespace: &str) -> bool {
        match self {
            Scope::Namespace(own) => own == namespace,
            Scope::Patterns(patterns) => patterns.iter().any(|p| p.matches(namespace)),
            Scope::All => true,
        }
    }

    /// What was written: names and patterns. None: every namespace.
    pub(crate) fn written(&self) -> Option<Vec<&str>> {
        match self {
            Scope::Namespace(own) => Some(vec![own]),
            Scope::Patterns(patterns) => Some(patterns.iter().map(|pattern| pattern.text.as_str()).collect()),
            Scope::All => None,
        }
    }

    /// Whether no namespace at all can be inside.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Scope::Patterns(patterns) if patterns.is_empty())
    }
}

/// A namespace by name or by pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespacePattern {
    text: String,
    operator_namespace: String,
}

impl NamespacePattern {
    /// Whether the namespace matches. A pattern with `*` matches neither `kube-*` nor the operator's own namespace:
    /// only their literal names do, so that nobody reaches them by accident.
    pub(crate) fn matches(&self, namespace: &str) -> bool {
        if !self.text.contains('*') {
            return self.text == namespace;
        }
        let protected = namespace.starts_with("kube-") || namespace == self.operator_namespace;
        !protected && wildcard(&self.text, namespace)
    }
}

/// Whether the text matches the pattern, where `*` stands for any run of characters.
///
/// Two pointers and one point to come back to: linear in practice, quadratic at worst, never exponential.
pub(crate) fn wildcard(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            p = star_p + 1;
            t = star_t + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// A role that grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    id: RoleId,
    permissions: Vec<Permission>,
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
    /// The list of permissions is empty.
    #[error("spec.permissions: name at least one permission")]
    NoPermissions,
    /// A namespace is neither a name nor a pattern.
    #[error("spec.namespaces[{index}]: {text:?} must be a namespace or a pattern such as \"feature-*\"")]
    Namespace {
        /// Position in the list.
        index: usize,
        /// What stands there.
        text: String,
    },
    /// Patterns and all namespaces at once.
    #[error("spec.allNamespaces: remove spec.namespaces, or set spec.allNamespaces to false")]
    TwoScopes,
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
}

impl Role {
    /// Converts a namespaced role.
    ///
    /// # Errors
    /// [`InvalidRole`] names the field at fault.
    pub(crate) fn from_role(role: &McpRole) -> Result<Self, InvalidRole> {
        let namespace = role.metadata.namespace.clone().unwrap_or_default();
        let named = |name: &String| (namespace.clone(), name.clone());
        let servers = match role.spec.servers.as_slice() {
            [] => Servers::Namespace(namespace.clone()),
            names => Servers::Named(names.iter().map(named).collect()),
        };
        Ok(Self {
            id: RoleId {
                kind: RoleKind::McpRole,
                namespace: namespace.clone(),
                name: role.metadata.name.clone().unwrap_or_default(),
            },
            permissions: permissions(&role.spec.permissions)?,
            subjects: holders(&role.spec.subjects, Some(&namespace))?,
            scope: Scope::Namespace(namespace),
            servers,
        })
    }

    /// Converts a cluster-scoped role. Patterns leave the operator's own namespace out.
    ///
    /// # Errors
    /// [`InvalidRole`] names the field at fault.
    pub(crate) fn from_cluster_role(
        role: &ClusterMcpRole,
        operator_namespace: &str,
    ) -> Result<Self, InvalidRole> {
        let scope = match (role.spec.all_namespaces, role.spec.namespaces.as_slice()) {
            (true, []) => Scope::All,
            (true, _) => return Err(InvalidRole::TwoScopes),
            (false, names) => Scope::Patterns(namespace_patterns(names, operator_namespace)?),
        };
        if role.spec.servers.is_empty() {
            return Err(InvalidRole::NoServers);
        }
        let named = role.spec.servers.iter().map(|s| (s.namespace.clone(), s.name.clone()));
        Ok(Self {
            id: RoleId {
                kind: RoleKind::ClusterMcpRole,
                namespace: String::new(),
                name: role.metadata.name.clone().unwrap_or_default(),
            },
            permissions: permissions(&role.spec.permissions)?,
            subjects: holders(&role.spec.subjects, None)?,
            scope,
            servers: Servers::Named(named.collect()),
        })
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

    /// Whether the role counts for the server.
    pub(crate) fn selects(&self, namespace: &str, server: &str) -> bool {
        match &self.servers {
            Servers::Namespace(own) => own == namespace,
            Servers::Named(named) => named.iter().any(|(ns, name)| ns == namespace && name == server),
        }
    }
}

fn permissions(texts: &[String]) -> Result<Vec<Permission>, InvalidRole> {
    if texts.is_empty() {
        return Err(InvalidRole::NoPermissions);
    }
    let mut granted = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let pattern = Pattern::parse(text).map_err(|source| InvalidRole::Permission {
            index,
            text: text.clone(),
            source,
        })?;
        granted.extend(Permission::all().filter(|permission| pattern.matches(*permission)));
    }
    granted.sort();
    granted.dedup();
    Ok(granted)
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

fn namespace_patterns(
    texts: &[String],
    operator_namespace: &str,
) -> Result<Vec<NamespacePattern>, InvalidRole> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '*';
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            if text.is_empty() || text.len() > 63 || !text.chars().all(plain) {
                return Err(InvalidRole::Namespace { index, text: text.clone() });
            }
            Ok(NamespacePattern { text: text.clone(), operator_namespace: operator_namespace.to_owned() })
        })
        .collect()
}
