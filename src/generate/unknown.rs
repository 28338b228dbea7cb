//! The admission policies on permissions that the catalogue does not have. A role that names one grants nothing by it
//! today; it would the day an administrator extends the catalogue, and nobody would have asked its author. So naming
//! one takes the right to everything.

use std::collections::{BTreeMap, BTreeSet};

use crate::authz::Permission;
use crate::authz::catalogue::Object;

/// Verbs by the resource as permissions write it. For a resource and for a verb, `*` stands for all of them.
type Verbs = BTreeMap<&'static str, BTreeSet<&'static str>>;

/// The permissions of a family that are built in.
fn verbs(family: &str) -> Verbs {
    let mut verbs = Verbs::new();
    for entry in Permission::all().map(Permission::entry).filter(|entry| entry.family == family) {
        let qualified = Object::find(entry.resource).map(|object| object.qualified);
        for resource in [Some("*"), Some(entry.resource), qualified].into_iter().flatten() {
            verbs.entry(resource).or_default().extend(["*", entry.verb]);
        }
    }
    verbs
}

/// A map of CEL, which writes them as JSON does.
fn map(family: &str) -> String {
    serde_json::json!(verbs(family)).to_string()
}

/// The variables of the policy and its rule, which lets through who passes the check `asked`.
pub(super) fn rule(asked: &str, place: &str) -> String {
    let (built_in, endpoint) = (map("k8s"), map("mcp"));
    format!(
        "  variables:
    - name: builtIn
      expression: >-
        {built_in}
    - name: added
      expression: >-
        {{{{ include \"portcullis.extensionVerbs\" . }}}}
    - name: endpoint
      expression: >-
        {endpoint}
    - name: unknown
      expression: >-
        object.spec.?permissions.orValue([]).filter(p, ![p.split(':')].exists(s,
        s == ['*'] || (s.size() == 2 && s[0] in ['k8s', 'mcp', '*'] && s[1] == '*') || (s.size() == 3 &&
        ((s[0] in ['k8s', '*'] && s[1] in variables.builtIn && s[2] in variables.builtIn[s[1]]) ||
        (s[0] in ['k8s', '*'] && s[1] in variables.added && s[2] in variables.added[s[1]]) ||
        (s[0] in ['mcp', '*'] && s[1] in variables.endpoint && s[2] in variables.endpoint[s[1]])))))
  validations:
    - expression: >-
        variables.unknown.size() == 0 ||
        {asked}
      messageExpression: >-
        'spec.permissions names ' + variables.unknown[0] + ', which is not in the catalogue of permissions; to name it
        ahead takes the right to everything {place}'
      reason: Forbidden
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::permission::Pattern;

    /// As the policy reads a permission, without what values add.
    fn is_known(text: &str) -> bool {
        let among = |family: &str, resource: &str, verb: &str| {
            verbs(family).get(resource).is_some_and(|verbs| verbs.contains(verb))
        };
        match text.split(':').collect::<Vec<_>>()[..] {
            ["*"] | ["k8s" | "mcp" | "*", "*"] => true,
            ["*", resource, verb] => among("k8s", resource, verb) || among("mcp", resource, verb),
            [family, resource, verb] => among(family, resource, verb),
            _ => false,
        }
    }

    #[test]
    fn what_is_known_is_what_is_a_pattern_of_the_catalogue() {
        let families = ["k8s", "mcp", "*", "", "other"];
        let resources: Vec<&str> = (verbs("k8s").keys().chain(verbs("mcp").keys()).copied())
            .chain(["", "secrets", "resources", "pods.", "pods.apps", "Pods", "po*", "widgets.example.com"])
            .collect();
        let verbs: Vec<&str> = (verbs("k8s")["*"].iter().chain(&verbs("mcp")["*"]).copied())
            .chain(["", "create", "manage", "li*", "*:*"])
            .collect();
        let mut valid = 0;
        for family in families {
            let two = resources.iter().map(|resource| format!("{family}:{resource}"));
            let three = resources
                .iter()
                .flat_map(|resource| verbs.iter().map(move |verb| format!("{family}:{resource}:{verb}")));
            for text in two.chain(three).chain([family.to_owned()]) {
                let is_valid = Pattern::parse(&text).is_ok();
                assert_eq!(is_known(&text), is_valid, "{text}");
                valid += usize::from(is_valid);
            }
        }
        assert!(valid > 100, "{valid} say little");
    }
}
