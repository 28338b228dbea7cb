//! The compiled policy: every role that counts for a server as sets of bits, so that a decision is a few words of
//! `and`, whatever the number of roles, keys and namespaces.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use fixedbitset::FixedBitSet;

use crate::api::{Tenancy, names};

use super::catalogue::{Permission, Place};
use super::globs::Globs;
use super::role::Role;
use super::scope::{NamespaceLabels, Scope};

/// The roles that count for a server.
#[derive(Debug, Default)]
pub(crate) struct Roles {
    /// In the order of their names, so that it is always the same role that decides.
    roles: Vec<Arc<Role>>,
    /// Those that name a permission and count somewhere, by its position in the catalogue.
    granting: Vec<FixedBitSet>,
    /// Those that name a permission that is used in namespaces.
    namespaced: FixedBitSet,
    /// Those that cover every namespace there is.
    everywhere: FixedBitSet,
    /// Those that cover a namespace that exists or that a role names.
    covering: HashMap<String, FixedBitSet>,
    /// Those that cover others, by their globs.
    globs: Globs,
    /// The tenants of namespaces.
    tenants: HashMap<String, String>,
    /// Those that cover a namespace of a tenant.
    within_tenant: HashMap<String, FixedBitSet>,
}

impl Roles {
    /// Compiles roles for a cluster with these namespaces.
    pub(crate) fn compile(mut roles: Vec<Arc<Role>>, namespaces: &NamespaceLabels) -> Self {
        roles.sort_by(|a, b| a.id().cmp(b.id()));
        // A role that covers no namespace grants nothing, not even what is used outside of namespaces.
        let grants = |role: &Role, permission| !role.scope().is_empty() && role.grants(permission);
        let granting = Permission::all().map(|permission| those(&roles, |role| grants(role, permission)));
        let granting = granting.collect();
        let is_namespaced = |permission: &Permission| permission.entry().place == Place::Namespaces;
        let namespaced = those(&roles, |role| role.permissions().iter().any(is_namespaced));
        let everywhere = those(&roles, |role| *role.scope() == Scope::All);
        let globs = Globs::of(&roles);
        let covering = covering(&roles, &everywhere, &globs, namespaces);
        let tenant = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get(names::TENANT_LABEL).filter(|tenant| !tenant.is_empty()).cloned()
        };
        let tenants: HashMap<String, String> =
            namespaces.iter().filter_map(|(name, labels)| Some((name.clone(), tenant(labels)?))).collect();
        let mut within_tenant: HashMap<String, FixedBitSet> = HashMap::new();
        for (namespace, tenant) in &tenants {
            if let Some(covering) = covering.get(namespace) {
                let within = within_tenant.entry(tenant.clone());
                within.or_insert_with(|| FixedBitSet::with_capacity(roles.len())).union_with(covering);
            }
        }
        Self { roles, granting, namespaced, everywhere, covering, globs, tenants, within_tenant }
    }

    /// Every role, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Role>> {
        self.roles.iter()
    }

    /// The position of a role.
    #[cfg(test)]
    pub(crate) fn position(&self, id: &super::RoleId) -> Option<usize> {
        self.roles.binary_search_by(|role| role.id().cmp(id)).ok()
    }

    /// The role at a position.
    pub(crate) fn at(&self, position: usize) -> &Arc<Role> {
        &self.roles[position]
    }

    /// Number of roles.
    pub(crate) fn len(&self) -> usize {
        self.roles.len()
    }

    /// Whether any namespace belongs to a tenant.
    pub(crate) fn has_tenants(&self) -> bool {
        !self.tenants.is_empty()
    }

    /// The tenant of a namespace.
    pub(crate) fn tenant_of(&self, namespace: &str) -> Option<&str> {
        self.tenants.get(namespace).map(String::as_str)
    }

    /// The roles that cover a namespace. Of one that neither exists nor is named, everything is known from the globs.
    fn covering(&self, namespace: &str) -> Cow<'_, FixedBitSet> {
        match self.covering.get(namespace) {
            Some(known) => Cow::Borrowed(known),
            None => {
                let mut covering = self.everywhere.clone();
                self.globs.add_covering(namespace, &mut covering);
                Cow::Owned(covering)
            }
        }
    }
}

fn those(roles: &[Arc<Role>], is_one: impl Fn(&Role) -> bool) -> FixedBitSet {
    let mut set = FixedBitSet::with_capacity(roles.len());
    roles.iter().enumerate().filter(|(_, role)| is_one(role)).for_each(|(position, _)| set.insert(position));
    set
}

fn covering(
    roles: &[Arc<Role>],
    everywhere: &FixedBitSet,
    globs: &Globs,
    namespaces: &NamespaceLabels,
) -> HashMap<String, FixedBitSet> {
    let mut covering: HashMap<String, FixedBitSet> = HashMap::new();
    let unnamed = |name: &str| {
        let mut covering = everywhere.clone();
        globs.add_covering(name, &mut covering);
        covering
    };
    for name in namespaces.keys() {
        covering.insert(name.clone(), unnamed(name));
    }
    for (position, role) in roles.iter().enumerate() {
        for name in role.scope().named() {
            match covering.get_mut(name) {
                Some(covering) => covering.insert(position),
                None => {
                    let mut new = unnamed(name);
                    new.insert(position);
                    covering.insert(name.to_owned(), new);
                }
            }
        }
    }
    covering
}

/// Where a caller may act at all, whatever its roles say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Confinement {
    /// Wherever its roles reach.
    #[default]
    None,
    /// In the namespaces of this tenant.
    Tenant(Arc<str>),
    /// Nowhere: it must belong to a tenant and does not.
    Nowhere,
}

impl Confinement {
    /// Where a caller with this tenant may act on a server with this rule.
    pub(crate) fn of(tenant: Option<&str>, tenancy: Tenancy) -> Self {
        match (tenant.filter(|tenant| !tenant.is_empty()), tenancy) {
            (Some(tenant), _) => Confinement::Tenant(tenant.into()),
            (None, Tenancy::IfGiven) => Confinement::None,
            (None, Tenancy::Required) => Confinement::Nowhere,
        }
    }
}

/// What a caller holds: some of the roles of a server, and where it may act at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    roles: Arc<Roles>,
    held: Arc<FixedBitSet>,
    confinement: Confinement,
}

/// What tells one caller's grants from another's of the same policy.
pub(crate) type GrantsKey = (Arc<FixedBitSet>, Confinement);

impl Grants {
    /// The roles at these positions.
    pub(crate) fn new(roles: Arc<Roles>, held: Arc<FixedBitSet>, confinement: Confinement) -> Self {
        Self { roles, held, confinement }
    }

    /// Every one of these roles, in a cluster of which no namespaces are known.
    #[cfg(test)]
    pub(crate) fn all_of(roles: impl IntoIterator<Item = Arc<Role>>) -> Self {
        let roles = Roles::compile(roles.into_iter().collect(), &NamespaceLabels::new());
        let mut held = FixedBitSet::with_capacity(roles.len());
        held.insert_range(..);
        Self::new(roles.into(), held.into(), Confinement::None)
    }

    /// The roles, in the order of their names.
    pub(crate) fn roles(&self) -> impl Iterator<Item = &Arc<Role>> {
        self.held.ones().map(|position| self.roles.at(position))
    }

    /// Number of roles.
    pub(crate) fn count(&self) -> usize {
        self.held.count_ones(..)
    }

    /// Where the caller may act at all.
    pub(crate) fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// What tells them from other grants of the same policy.
    pub(crate) fn key(&self) -> GrantsKey {
        (self.held.clone(), self.confinement.clone())
    }

    /// Whether the caller's tenant has the namespace, if the caller is confined to one.
    pub(crate) fn is_open(&self, namespace: &str) -> bool {
        match &self.confinement {
            Confinement::None => true,
            Confinement::Tenant(tenant) => {
                self.roles.tenants.get(namespace).is_some_and(|owner| **owner == **tenant)
            }
            Confinement::Nowhere => false,
        }
    }

    /// The tenant of a namespace.
    pub(crate) fn tenant_of(&self, namespace: &str) -> Option<&str> {
        self.roles.tenant_of(namespace)
    }

    /// Whether some role grants anything in the namespace. The empty name stands for all of them.
    pub(crate) fn reach(&self, namespace: &str) -> bool {
        if namespace.is_empty() {
            return self.is_unbounded();
        }
        let covering = self.roles.covering(namespace);
        self.is_open(namespace) && first_of_all([&self.held, &covering, &self.roles.namespaced]).is_some()
    }

    /// The first role that grants the permission in the namespace.
    pub(super) fn inside(&self, permission: Permission, namespace: &str) -> Option<&Arc<Role>> {
        self.first(permission, &self.roles.covering(namespace))
    }

    /// The first role that grants the permission in every namespace there is.
    pub(super) fn everywhere(&self, permission: Permission) -> Option<&Arc<Role>> {
        self.first(permission, &self.roles.everywhere)
    }

    /// The first role that grants the permission, wherever it counts.
    pub(super) fn at_all(&self, permission: Permission) -> Option<&Arc<Role>> {
        self.first(permission, &self.held)
    }

    /// The roles that grant the permission in a namespace that the caller may act in. None: there is none.
    pub(super) fn somewhere(&self, permission: Permission) -> Option<Grants> {
        let mut held = (*self.held).clone();
        held.intersect_with(self.roles.granting.get(permission.index())?);
        match &self.confinement {
            Confinement::None => {}
            Confinement::Tenant(tenant) => held.intersect_with(self.roles.within_tenant.get(&**tenant)?),
            Confinement::Nowhere => return None,
        }
        (!held.is_clear()).then(|| Grants::new(self.roles.clone(), held.into(), self.confinement.clone()))
    }

    /// Whether one of the roles covers every namespace, and nothing confines the caller.
    pub(super) fn is_unbounded(&self) -> bool {
        self.confinement == Confinement::None && !self.held.is_disjoint(&self.roles.everywhere)
    }

    fn first(&self, permission: Permission, among: &FixedBitSet) -> Option<&Arc<Role>> {
        let granting = self.roles.granting.get(permission.index())?;
        first_of_all([&self.held, granting, among]).map(|position| self.roles.at(position))
    }
}

/// The first position that is in each of the sets, word by word: many positions of one set alone cost nothing.
fn first_of_all(sets: [&FixedBitSet; 3]) -> Option<usize> {
    let [a, b, c] = sets.map(FixedBitSet::as_slice);
    let mut words = a.iter().zip(b).zip(c).map(|((a, b), c)| a & b & c).enumerate();
    let (index, word) = words.find(|(_, word)| *word != 0)?;
    Some(index * usize::BITS as usize + word.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::McpRole;

    /// Roles `r000`, `r001` and so on of the namespace `agents`; the last of them lists pods, the others services.
    fn roles(count: usize) -> Roles {
        let role = |number: usize| {
            let permission = if number + 1 == count { "k8s:pods:list" } else { "k8s:services:list" };
            let role: McpRole = serde_json::from_value(json!({
                "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
                "metadata": {"name": format!("r{number:03}"), "namespace": "agents"},
                "spec": {"permissions": [permission]},
            }))
            .expect("a role");
            Arc::new(Role::from_role(&role, &|_| None).expect("valid"))
        };
        Roles::compile((0..count).rev().map(role).collect(), &NamespaceLabels::new())
    }

    #[test]
    fn the_role_that_decides_is_found_however_many_stand_before_it() {
        for count in [1, 63, 64, 65, 128, 129, 200] {
            let roles = Arc::new(roles(count));
            let mut held = FixedBitSet::with_capacity(count);
            held.insert_range(..);
            let all = Grants::new(roles.clone(), Arc::new(held.clone()), Confinement::None);
            let found = all.inside(Permission::of("pods", "list"), "agents").expect("granted");
            assert_eq!(found.id().name, format!("r{:03}", count - 1));
            held.set(count - 1, false);
            let fewer = Grants::new(roles, held.into(), Confinement::None);
            assert!(fewer.inside(Permission::of("pods", "list"), "agents").is_none());
        }
    }

    #[test]
    fn what_somebody_holds_is_told_in_the_order_of_names() {
        let roles = Arc::new(roles(3));
        let names = |roles: &mut dyn Iterator<Item = &Arc<Role>>| -> Vec<String> {
            roles.map(|role| role.id().name.clone()).collect()
        };
        assert_eq!(names(&mut roles.iter()), ["r000", "r001", "r002"]);
        let held: FixedBitSet = [0, 2].into_iter().collect();
        let grants = Grants::new(roles, held.into(), Confinement::None);
        assert_eq!((names(&mut grants.roles()), grants.count()), (vec!["r000".into(), "r002".into()], 2));
    }
}
