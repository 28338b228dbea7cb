//! Globs of namespaces, each with the roles that name it. One that begins or ends with something is found by that, so
//! that a namespace is compared with few of them, however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use fixedbitset::FixedBitSet;

use super::role::Role;
use super::scope::NamespacePattern;

/// Every glob of some roles.
#[derive(Debug, Default)]
pub(super) struct Globs {
    /// By what stands before their first `*`.
    beginning: Anchored,
    /// By what stands behind their last `*`, of those that begin with one.
    ending: Anchored,
    /// Those that begin and end with `*`.
    floating: Vec<Glob>,
}

/// Globs by the text that is fixed at one end of them.
#[derive(Debug, Default)]
struct Anchored {
    globs: HashMap<String, Vec<Glob>>,
    /// Lengths of the texts.
    lengths: BTreeSet<usize>,
}

/// One glob and the roles that name it.
#[derive(Debug)]
struct Glob {
    pattern: NamespacePattern,
    roles: FixedBitSet,
}

impl Globs {
    /// Every glob of these roles.
    pub(super) fn of(roles: &[Arc<Role>]) -> Self {
        let mut distinct: BTreeMap<&str, Glob> = BTreeMap::new();
        for (position, role) in roles.iter().enumerate() {
            for pattern in role.scope().globs() {
                let new =
                    || Glob { pattern: pattern.clone(), roles: FixedBitSet::with_capacity(roles.len()) };
                distinct.entry(pattern.text()).or_insert_with(new).roles.insert(position);
            }
        }
        let mut globs = Self::default();
        distinct.into_values().for_each(|glob| globs.add(glob));
        globs
    }

    fn add(&mut self, glob: Glob) {
        let text = glob.pattern.text();
        let begins = text.split('*').next().unwrap_or_default().to_owned();
        let ends = text.rsplit('*').next().unwrap_or_default().to_owned();
        if !begins.is_empty() {
            self.beginning.add(begins, glob);
        } else if !ends.is_empty() {
            self.ending.add(ends, glob);
        } else {
            self.floating.push(glob);
        }
    }

    /// Adds the roles of which a glob matches the namespace.
    pub(super) fn add_covering(&self, namespace: &str, roles: &mut FixedBitSet) {
        let beginnings = self.beginning.lengths.iter().filter_map(|length| namespace.get(..*length));
        let ends = self.ending.lengths.iter();
        let ends = ends.filter_map(|length| namespace.get(namespace.len().checked_sub(*length)?..));
        let beginning = beginnings.filter_map(|text| self.beginning.globs.get(text)).flatten();
        let ending = ends.filter_map(|text| self.ending.globs.get(text)).flatten();
        beginning
            .chain(ending)
            .chain(&self.floating)
            .filter(|glob| glob.pattern.matches(namespace))
            .for_each(|glob| roles.union_with(&glob.roles));
    }
}

impl Anchored {
    fn add(&mut self, text: String, glob: Glob) {
        self.lengths.insert(text.len());
        self.globs.entry(text).or_default().push(glob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ClusterMcpRoleSpec;
    use crate::authz::NamespaceLabels;
    use crate::authz::scope::Scope;

    #[test]
    fn a_glob_is_found_by_what_it_begins_with_or_else_ends_with_and_is_not_looked_at_otherwise() {
        let spec = ClusterMcpRoleSpec {
            namespaces: ["team-*", "a*z", "*-dev", "*x*", "*"].map(str::to_owned).into(),
            ..ClusterMcpRoleSpec::default()
        };
        let scope = Scope::of(&spec, "portcullis-system", &NamespaceLabels::new()).expect("valid");
        let mut globs = Globs::default();
        for pattern in scope.globs() {
            globs.add(Glob { pattern: pattern.clone(), roles: FixedBitSet::new() });
        }
        let keys = |anchored: &Anchored| {
            let mut keys: Vec<String> = anchored.globs.keys().cloned().collect();
            keys.sort_unstable();
            keys
        };
        assert_eq!(keys(&globs.beginning), ["a", "team-"]);
        assert_eq!(keys(&globs.ending), ["-dev"]);
        let floating: Vec<&str> = globs.floating.iter().map(|glob| glob.pattern.text()).collect();
        assert_eq!(floating, ["*x*", "*"]);
    }
}
