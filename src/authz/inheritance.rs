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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::McpRoleSpec;
    use crate::authz::role::InvalidRole;
    use crate::authz::{Permission, Role};

    /// Roles of one namespace, each `name: permissions: parents`.
    fn roles(lines: &[(&str, &[&str], &[&str])]) -> BTreeMap<String, McpRole> {
        let role = |(name, permissions, inherits): &(&str, &[&str], &[&str])| {
            let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let (permissions, inherits) = (texts(permissions), texts(inherits));
            let spec = McpRoleSpec { permissions, inherits, ..McpRoleSpec::default() };
            let mut role = McpRole::new(name, spec);
            role.metadata.namespace = Some("agents".to_owned());
            ((*name).to_owned(), role)
        };
        lines.iter().map(role).collect()
    }

    fn convert(roles: &BTreeMap<String, McpRole>, name: &str) -> Result<Role, InvalidRole> {
        Role::from_role(&roles[name], &|parent| roles.get(parent).map(Parent::from))
    }

    fn granted(role: &Role) -> Vec<String> {
        role.permissions().iter().map(Permission::to_string).collect()
    }

    #[test]
    fn a_role_has_its_own_permissions_and_those_of_every_role_behind_it() {
        let roles = roles(&[
            ("viewer", &["k8s:pods:list"], &[]),
            ("logs", &["k8s:pods:logs"], &["viewer"]),
            ("operator", &["k8s:deployments:scale"], &["logs", "viewer"]),
            ("renamed", &[], &["operator"]),
        ]);
        let all = ["k8s:deployments:scale", "k8s:pods:list", "k8s:pods:logs"];
        assert_eq!(granted(&convert(&roles, "operator").expect("accepted")), all);
        assert_eq!(granted(&convert(&roles, "renamed").expect("accepted")), all);
        assert_eq!(granted(&convert(&roles, "viewer").expect("accepted")), ["k8s:pods:list"]);
    }

    #[test]
    fn what_grants_a_permission_is_the_roles_own_pattern_before_an_inherited_one() {
        let roles = roles(&[
            ("base", &["k8s:pods:list", "k8s:services:*"], &[]),
            ("role", &["k8s:pods:*"], &["base"]),
        ]);
        let role = convert(&roles, "role").expect("accepted");
        let source = |resource, verb| role.source(Permission::of(resource, verb)).cloned();
        let own = source("pods", "list").expect("granted");
        assert_eq!((own.pattern.to_string().as_str(), own.inherited_from), ("k8s:pods:*", None));
        let inherited = source("services", "get").expect("granted");
        assert_eq!(inherited.pattern.to_string(), "k8s:services:*");
        assert_eq!(inherited.inherited_from.as_deref(), Some("base"));
        assert_eq!(source("deployments", "list"), None);
    }

    #[test]
    fn roles_that_inherit_in_a_circle_are_refused_and_the_circle_is_named() {
        let roles = roles(&[
            ("a", &["k8s:pods:list"], &["b"]),
            ("b", &["k8s:pods:get"], &["c"]),
            ("c", &["k8s:pods:logs"], &["b"]),
            ("itself", &["k8s:pods:list"], &["itself"]),
        ]);
        for (name, message) in [
            ("a", "spec.inherits[0]: roles inherit in a circle: b -> c -> b"),
            ("b", "spec.inherits[0]: roles inherit in a circle: b -> c -> b"),
            ("c", "spec.inherits[0]: roles inherit in a circle: c -> b -> c"),
            ("itself", "spec.inherits[0]: roles inherit in a circle: itself -> itself"),
        ] {
            assert_eq!(convert(&roles, name).expect_err(name).to_string(), message);
        }
    }

    #[test]
    fn a_role_with_a_missing_or_broken_parent_grants_nothing_and_names_it() {
        let roles = roles(&[
            ("good", &["k8s:pods:list"], &[]),
            ("broken", &["k8s:secrets:manage"], &[]),
            ("empty", &[], &[]),
            ("one", &["k8s:pods:list"], &["good", "gone"]),
            ("two", &["k8s:pods:list"], &["broken"]),
            ("three", &["k8s:pods:list"], &["two"]),
            ("four", &["k8s:pods:list"], &["empty"]),
        ]);
        for (name, message) in [
            ("one", "spec.inherits[1]: there is no role \"gone\""),
            (
                "two",
                "spec.inherits[0]: role \"broken\" is not accepted: \"k8s:secrets:manage\" is not in the catalogue of permissions",
            ),
            (
                "three",
                "spec.inherits[0]: role \"broken\" is not accepted: \"k8s:secrets:manage\" is not in the catalogue of permissions",
            ),
            ("four", "spec.inherits[0]: role \"empty\" is not accepted: it names no permissions"),
        ] {
            assert!(convert(&roles, name).expect_err(name).to_string().starts_with(message), "{name}");
        }
        assert!(convert(&roles, "good").is_ok());
    }

    #[test]
    fn both_kinds_of_role_pass_on_their_permissions_and_their_parents() {
        let spec = serde_json::json!({"permissions": ["k8s:pods:list"], "inherits": ["base"], "servers": []});
        let local = McpRole::new("a", serde_json::from_value(spec.clone()).expect("a spec"));
        let wide = ClusterMcpRole::new("a", serde_json::from_value(spec).expect("a spec"));
        for Parent { permissions, inherits } in [Parent::from(&local), Parent::from(&wide)] {
            assert_eq!(
                (&*permissions, &*inherits),
                (&["k8s:pods:list".to_owned()][..], &["base".to_owned()][..])
            );
        }
    }

    #[test]
    fn a_role_inherits_from_a_bounded_number_of_others_however_they_are_arranged() {
        let names: Vec<String> = (0..100).map(|number| format!("r{number}")).collect();
        let mut chain = BTreeMap::new();
        for (number, name) in names.iter().enumerate() {
            let next = names.get(number + 1).map(|next| vec![next.as_str()]).unwrap_or_default();
            chain.extend(roles(&[(name, &["k8s:pods:list"], &next)]));
        }
        let last = names.len() - 1;
        assert!(convert(&chain, &names[last - MOST]).is_ok(), "as many as may be");
        for first in [0, last - MOST - 1] {
            let refused = convert(&chain, &names[first]).expect_err("too many").to_string();
            assert_eq!(refused, format!("spec.inherits[0]: inherits from more than {MOST} roles"));
        }
        // A ladder has exponentially many ways down and few roles.
        let mut ladder = BTreeMap::new();
        for step in 0..30 {
            let below = [format!("a{}", step + 1), format!("b{}", step + 1)];
            let below: Vec<&str> =
                if step < 29 { below.iter().map(String::as_str).collect() } else { vec![] };
            let names = [format!("a{step}"), format!("b{step}")];
            ladder.extend(roles(
                &names.each_ref().map(|name| (name.as_str(), &["k8s:pods:list"][..], &below[..])),
            ));
        }
        assert!(convert(&ladder, "a0").is_ok());
    }
}
