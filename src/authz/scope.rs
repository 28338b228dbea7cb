//! Where a role counts: one namespace, those that names, patterns or labels choose, or all of them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::api::ClusterMcpRoleSpec;

use super::role::InvalidRole;

/// Labels of namespaces, by name.
pub(crate) type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

/// The namespaces in which a role counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One namespace.
    Namespace(String),
    /// Those that one of the patterns matches.
    Patterns(Vec<NamespacePattern>),
    /// Those whose labels match, at the time when the role was read.
    Selected(Selected),
    /// Every namespace there is.
    All,
}

/// Namespaces that were chosen by their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selected {
    /// The selector as `kubectl` writes it.
    written: String,
    /// The namespaces.
    namespaces: BTreeSet<String>,
}

impl Scope {
    /// Reads the scope of a cluster role.
    ///
    /// # Errors
    /// [`InvalidRole`] names the field at fault.
    pub(super) fn of(
        spec: &ClusterMcpRoleSpec,
        operator_namespace: &str,
        namespaces: &NamespaceLabels,
    ) -> Result<Self, InvalidRole> {
        match (spec.all_namespaces, spec.namespaces.as_slice(), &spec.namespace_selector) {
            (true, [], None) => Ok(Scope::All),
            (false, names, None) => Ok(Scope::Patterns(patterns(names, operator_namespace)?)),
            (false, [], Some(selector)) => {
                Ok(Scope::Selected(Selected::of(selector, operator_namespace, namespaces)?))
            }
            _ => Err(InvalidRole::TwoScopes),
        }
    }

    /// Whether the namespace is inside.
    pub(crate) fn covers(&self, namespace: &str) -> bool {
        match self {
            Scope::Namespace(own) => own == namespace,
            Scope::Patterns(patterns) => patterns.iter().any(|pattern| pattern.matches(namespace)),
            Scope::Selected(selected) => selected.namespaces.contains(namespace),
            Scope::All => true,
        }
    }

    /// What was written: names, patterns, or a selector. None: every namespace.
    pub(crate) fn written(&self) -> Option<Vec<&str>> {
        match self {
            Scope::Namespace(own) => Some(vec![own]),
            Scope::Patterns(patterns) => Some(patterns.iter().map(|pattern| pattern.text.as_str()).collect()),
            Scope::Selected(selected) => Some(vec![selected.written.as_str()]),
            Scope::All => None,
        }
    }

    /// Whether no namespace at all is inside.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Scope::Patterns(patterns) => patterns.is_empty(),
            Scope::Selected(selected) => selected.namespaces.is_empty(),
            Scope::Namespace(_) | Scope::All => false,
        }
    }

    /// Namespaces that it names itself. What else it covers, its globs say.
    pub(super) fn named(&self) -> Vec<&str> {
        match self {
            Scope::Namespace(own) => vec![own],
            Scope::Patterns(patterns) => {
                let literal = patterns.iter().filter(|pattern| !pattern.is_glob());
                literal.map(|pattern| pattern.text.as_str()).collect()
            }
            Scope::Selected(selected) => selected.namespaces.iter().map(String::as_str).collect(),
            Scope::All => Vec::new(),
        }
    }

    /// Its globs.
    pub(super) fn globs(&self) -> impl Iterator<Item = &NamespacePattern> {
        let patterns = match self {
            Scope::Patterns(patterns) => patterns.as_slice(),
            Scope::Namespace(_) | Scope::Selected(_) | Scope::All => &[],
        };
        patterns.iter().filter(|pattern| pattern.is_glob())
    }
}

impl Selected {
    /// An empty selector chooses everything by Kubernetes' convention; here that must be said by `allNamespaces`.
    fn of(
        selector: &LabelSelector,
        operator_namespace: &str,
        namespaces: &NamespaceLabels,
    ) -> Result<Self, InvalidRole> {
        let labels = selector.match_labels.as_ref().is_some_and(|labels| !labels.is_empty());
        let expressions = selector.match_expressions.as_deref().unwrap_or_default();
        if !labels && expressions.is_empty() {
            return Err(InvalidRole::EmptySelector);
        }
        for (index, requirement) in expressions.iter().enumerate() {
            let has_values = requirement.values.as_ref().is_some_and(|values| !values.is_empty());
            match (requirement.operator.as_str(), has_values) {
                ("In" | "NotIn", true) | ("Exists" | "DoesNotExist", false) => {}
                _ => return Err(InvalidRole::Selector { index }),
            }
        }
        let parsed = Selector::try_from(selector.clone()).map_err(|_| InvalidRole::EmptySelector)?;
        let chosen = namespaces
            .iter()
            .filter(|(name, labels)| !is_protected(name, operator_namespace) && parsed.matches(labels));
        Ok(Self {
            written: format!("selector {parsed}"),
            namespaces: chosen.map(|(name, _)| name.clone()).collect(),
        })
    }
}

/// A namespace by name or by pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespacePattern {
    text: String,
    operator_namespace: String,
}

impl NamespacePattern {
    /// What was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn is_glob(&self) -> bool {
        self.text.contains('*')
    }

    /// Whether the namespace matches. A pattern with `*` matches neither `kube-*` nor the operator's own namespace:
    /// only their literal names do, so that nobody reaches them by accident.
    pub(crate) fn matches(&self, namespace: &str) -> bool {
        if !self.is_glob() {
            return self.text == namespace;
        }
        !is_protected(namespace, &self.operator_namespace) && wildcard(&self.text, namespace)
    }
}

/// Whether only its literal name reaches the namespace.
fn is_protected(namespace: &str, operator_namespace: &str) -> bool {
    namespace.starts_with(PROTECTED_PREFIX) || namespace == operator_namespace
}

const PROTECTED_PREFIX: &str = "kube-";

/// Whether the text matches the pattern, where `*` stands for any run of characters.
///
/// What stands between two of them is looked for where it comes first, so nothing is tried twice.
pub(crate) fn wildcard(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut pieces = rest.split('*');
    let last = pieces.next_back().unwrap_or_default();
    for piece in pieces {
        let Some((_, after)) = text.split_once(piece) else { return false };
        text = after;
    }
    text.ends_with(last)
}

fn patterns(texts: &[String], operator_namespace: &str) -> Result<Vec<NamespacePattern>, InvalidRole> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '*';
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            if text.is_empty() || text.len() > 63 || !text.chars().all(plain) {
                return Err(InvalidRole::Namespace { index, text: text.clone() });
            }
            if text.starts_with(PROTECTED_PREFIX) && text.contains('*') {
                return Err(InvalidRole::ProtectedPattern { index, text: text.clone() });
            }
            Ok(NamespacePattern { text: text.clone(), operator_namespace: operator_namespace.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespaces() -> NamespaceLabels {
        let labelled = [
            ("team-a", vec![("team", "a"), ("stage", "prod")]),
            ("team-b", vec![("team", "b")]),
            ("plain", vec![]),
            ("kube-system", vec![("team", "a")]),
            ("portcullis-system", vec![("team", "a")]),
        ];
        let labels = |labels: Vec<(&str, &str)>| {
            labels.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        labelled.into_iter().map(|(name, found)| (name.to_owned(), labels(found))).collect()
    }

    fn scope(spec: &Value) -> Result<Scope, InvalidRole> {
        let mut whole = json!({"permissions": ["k8s:pods:list"], "servers": []});
        whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
        let spec = serde_json::from_value(whole).expect("a spec");
        Scope::of(&spec, "portcullis-system", &namespaces())
    }

    fn covered(selector: &Value) -> Vec<String> {
        let scope = scope(&json!({"namespaceSelector": selector})).expect("valid");
        namespaces().into_keys().filter(|name| scope.covers(name)).collect()
    }

    #[test]
    fn a_selector_chooses_namespaces_by_their_labels_and_never_those_of_the_system() {
        assert_eq!(covered(&json!({"matchLabels": {"team": "a"}})), ["team-a"]);
        assert_eq!(covered(&json!({"matchLabels": {"team": "a", "stage": "test"}})), [""; 0]);
        let expression = |operator: &str, values: Value| {
            let mut requirement = json!({"key": "team", "operator": operator});
            if !values.is_null() {
                requirement["values"] = values;
            }
            covered(&json!({"matchExpressions": [requirement]}))
        };
        assert_eq!(expression("In", json!(["a", "b"])), ["team-a", "team-b"]);
        assert_eq!(expression("NotIn", json!(["a"])), ["plain", "team-b"]);
        assert_eq!(expression("Exists", Value::Null), ["team-a", "team-b"]);
        assert_eq!(expression("DoesNotExist", Value::Null), ["plain"]);
    }

    #[test]
    fn a_scope_that_says_two_things_or_nothing_names_the_field_at_fault() {
        let selector = json!({"matchLabels": {"team": "a"}});
        for (spec, message) in [
            (
                json!({"namespaces": ["a"], "namespaceSelector": selector}),
                "spec.namespaces, spec.namespaceSel",
            ),
            (
                json!({"allNamespaces": true, "namespaceSelector": selector}),
                "spec.namespaces, spec.namespaceSel",
            ),
            (json!({"allNamespaces": true, "namespaces": ["a"]}), "spec.namespaces, spec.namespaceSel"),
            (json!({"namespaceSelector": {}}), "spec.namespaceSelector: name at least one label"),
            (json!({"namespaceSelector": {"matchLabels": {}}}), "spec.namespaceSelector: name at least one"),
            (
                json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"},
                    {"key": "a", "operator": "In"}]}}),
                "spec.namespaceSelector.matchExpressions[1]: the operators are",
            ),
            (
                json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
                "spec.namespaceSelector.matchExpressions[0]: the operators are",
            ),
            (json!({"namespaces": ["a", "kube-*"]}), "spec.namespaces[1]: \"kube-*\" matches nothing"),
        ] {
            let error = scope(&spec).expect_err("invalid").to_string();
            assert!(error.starts_with(message), "{spec}: {error}");
        }
    }

    #[test]
    fn names_cover_themselves_and_patterns_what_they_match() {
        let own = Scope::Namespace("team-a".to_owned());
        let names = scope(&json!({"namespaces": ["team-a", "kube-system"]})).expect("valid");
        let globs = scope(&json!({"namespaces": ["team-*", "*-system"]})).expect("valid");
        let all = scope(&json!({"allNamespaces": true})).expect("valid");
        for (namespace, covered) in [
            ("team-a", [true, true, true, true]),
            ("team-b", [false, false, true, true]),
            ("kube-system", [false, true, false, true]),
            ("portcullis-system", [false, false, false, true]),
            ("plain", [false, false, false, true]),
        ] {
            assert_eq!(
                [&own, &names, &globs, &all].map(|scope| scope.covers(namespace)),
                covered,
                "{namespace}"
            );
        }
    }

    #[test]
    fn what_cannot_be_a_namespace_is_refused_with_its_place() {
        let named = |name: &str| scope(&json!({"namespaces": ["a", name]}));
        assert!(named(&"a".repeat(63)).is_ok());
        for name in ["", "Team", "a_b", "a.b", "a/b", &"a".repeat(64)] {
            let invalid = InvalidRole::Namespace { index: 1, text: name.to_owned() };
            assert_eq!(named(name), Err(invalid), "{name}");
        }
    }

    #[test]
    fn a_selector_that_no_namespace_fits_grants_nowhere() {
        let nowhere = scope(&json!({"namespaceSelector": {"matchLabels": {"team": "none"}}})).expect("valid");
        assert!(nowhere.is_empty());
        assert_eq!(nowhere.written(), Some(vec!["selector team=none"]));
    }
}
