//! Admission policies that look at authors: who writes a role must hold every right that it names, and who binds a
//! role to a key must have the verb `bind` on it.
//!
//! A check by `authorizer` costs 350,000 of the 1,000,000 that an expression and of the 10,000,000 that a policy may
//! spend. So there are at most two checks in an expression and [`CHECKS_PER_POLICY`] in a policy, and policies are
//! repeated over slices of what they check. What an administrator adds to the catalogue by values is checked alike, by
//! policies that Helm repeats.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::authz::Permission;

use super::{File, HEADER, LABELS, unknown};

/// Checks by `authorizer` that the budget of one policy allows, with some room.
const CHECKS_PER_POLICY: usize = 26;
/// Most roles of a key, as in its schema.
const ROLES_PER_KEY: usize = 64;
/// Roles of a key that one policy looks at; two checks ask first for the right to bind every role.
const ROLES_PER_POLICY: usize = CHECKS_PER_POLICY - 2;
/// Most roles that a role may name to inherit from, as in its schema.
const PARENTS_PER_ROLE: usize = 16;
/// Settled objects may be touched (finalizers, labels) without asking again who wrote them.
const SPEC_CHANGED: &str = "oldObject == null || object.spec != oldObject.spec";

/// What a role names, for the checks that follow.
const PERMISSIONS: &str = "  variables:\n    - name: permissions\n      expression: object.spec.?permissions.orValue([])\n  validations:\n";

/// One right on the cluster, as `authorizer` asks for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
}

/// A kind of role and how its rights are asked for.
struct RoleKind {
    policy: &'static str,
    plural: &'static str,
    /// Follows the resource in the check.
    scope: &'static str,
    /// Ends the sentence of the refusal.
    place: &'static str,
}

const ROLE: RoleKind = RoleKind {
    policy: "portcullis-role-author",
    plural: "mcproles",
    scope: ".namespace(request.namespace)",
    place: "in this namespace",
};

const CLUSTER_ROLE: RoleKind = RoleKind {
    policy: "portcullis-cluster-role-author",
    plural: "clustermcproles",
    scope: "",
    place: "in every namespace",
};

/// The file with every policy on authors.
pub(super) fn file() -> File {
    let mut text = format!("{HEADER}{{{{- if .Values.admissionPolicies.enabled }}}}\n");
    for kind in [ROLE, CLUSTER_ROLE] {
        role_authors(&mut text, &kind);
        extension_authors(&mut text, &kind);
        inheritance(&mut text, &kind);
        unknown_permissions(&mut text, &kind);
    }
    key_authors(&mut text);
    text.push_str("{{- end }}\n");
    ("charts/portcullis/templates/admission/authors.yaml".into(), text)
}

/// Every right behind the catalogue, with the permissions that need it by their resource.
fn rights() -> BTreeMap<Right, BTreeMap<&'static str, Vec<&'static str>>> {
    let mut rights: BTreeMap<Right, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for permission in Permission::all() {
        let entry = permission.entry();
        for rule in entry.rules {
            for verb in rule.verbs {
                let right = Right { group: rule.group, resource: rule.resource, verb };
                rights.entry(right).or_default().entry(entry.resource).or_default().push(entry.verb);
            }
        }
    }
    rights
}

/// The regular expression of the patterns that stand for one of the permissions. It takes any group after the
/// resource's dot: a pattern with a wrong group grants nothing, so asking too much of its author does no harm.
fn patterns(needed_by: &BTreeMap<&'static str, Vec<&'static str>>) -> String {
    let forms = needed_by
        .iter()
        .map(|(resource, verbs)| format!("([*]|{resource}([.].*)?):([*]|{})", verbs.join("|")))
        .collect::<Vec<_>>();
    matching(&forms.join("|"))
}

/// The regular expression of patterns whose second and third segment have one of the forms.
fn matching(forms: &str) -> String {
    format!("^([*]|(k8s|[*]):([*]|{forms}))$")
}

fn role_authors(text: &mut String, kind: &RoleKind) {
    let rights: Vec<_> = rights().into_iter().collect();
    for (index, slice) in rights.chunks(CHECKS_PER_POLICY).enumerate() {
        let name = numbered(kind.policy, index);
        policy(text, &name, kind.plural, SPEC_CHANGED);
        text.push_str(PERMISSIONS);
        for (Right { group, resource, verb }, needed_by) in slice {
            let asked = match resource.split_once('/') {
                Some((resource, subresource)) => format!("'{resource}').subresource('{subresource}'"),
                None => format!("'{resource}'"),
            };
            let right = format!("{resource}:{verb}");
            let check = format!(
                "authorizer.group('{group}').resource({asked}){}.check('{verb}').allowed()",
                kind.scope
            );
            validation(text, kind, &patterns(needed_by), &check, &right);
        }
        binding(text, &name);
    }
}

/// A role that names one of the patterns is refused to who does not pass the check for the right.
fn validation(text: &mut String, kind: &RoleKind, patterns: &str, check: &str, right: &str) {
    let _ = write!(
        text,
        "    - expression: >-\n        \
         !variables.permissions.exists(p, p.matches('{patterns}')) ||\n        \
         {check}\n      \
         message: spec.permissions names more than you may do, you do not hold {right} {}\n      \
         reason: Forbidden\n",
        kind.place,
    );
}

/// The same for what the chart's values add to the catalogue: Helm repeats the policy over slices of the rights.
fn extension_authors(text: &mut String, kind: &RoleKind) {
    let name = format!("{}-extension{{{{ if $index }}}}-{{{{ add1 $index }}}}{{{{ end }}}}", kind.policy);
    let mut repeated = String::new();
    policy(&mut repeated, &name, kind.plural, SPEC_CHANGED);
    repeated.push_str(PERMISSIONS);
    repeated.push_str("    {{- range $slice }}\n");
    let check = format!(
        "authorizer.group('{{{{ .of.group }}}}').resource('{{{{ .of.resource }}}}'){}.check('{{{{ .verb }}}}').allowed()",
        kind.scope
    );
    let patterns =
        matching("([*]{{ if .of.extra }}|resources{{ end }}|{{ .of.pattern }}):([*]|{{ .of.verb }})");
    validation(&mut repeated, kind, &patterns, &check, "{{ .of.name }}:{{ .verb }}");
    repeated.push_str("    {{- end }}\n");
    binding(&mut repeated, &name);
    let _ = write!(
        text,
        "{{{{- range $index, $slice := chunk {CHECKS_PER_POLICY} (include \"portcullis.extensionRights\" . | fromJsonArray) }}}}\n\
         {}{{{{- end }}}}\n",
        // Inside the repetition the dot is a slice.
        repeated.replace("\"portcullis.labels\" .", "\"portcullis.labels\" $"),
    );
}

/// Inheriting passes on what somebody else was trusted with, as binding does.
fn inheritance(text: &mut String, kind: &RoleKind) {
    let RoleKind { plural, scope, .. } = kind;
    let name = format!("{}-inheritance", kind.policy);
    policy(text, &name, plural, SPEC_CHANGED);
    let _ = write!(
        text,
        "  variables:\n    - name: inherits\n      expression: object.spec.?inherits.orValue([])\n    \
         - name: bindsEvery\n      expression: >-\n        \
         authorizer.group('portcullis.dev').resource('{plural}'){scope}.check('bind').allowed()\n  validations:\n",
    );
    for position in 0..PARENTS_PER_ROLE {
        let _ = write!(
            text,
            "    - expression: >-\n        \
             variables.inherits.size() <= {position} || variables.bindsEvery ||\n        \
             authorizer.group('portcullis.dev').resource('{plural}'){scope}.name(variables.inherits[{position}]).check('bind').allowed()\n      \
             messageExpression: \"'spec.inherits[{position}]: you do not hold bind on ' + variables.inherits[{position}]\"\n      \
             reason: Forbidden\n",
        );
    }
    binding(text, &name);
}

/// What is not in the catalogue grants nothing, as long as nobody adds it.
fn unknown_permissions(text: &mut String, kind: &RoleKind) {
    let name = format!("{}-unknown", kind.policy);
    policy(text, &name, kind.plural, SPEC_CHANGED);
    let everything = format!("authorizer.group('*').resource('*'){}.check('*').allowed()", kind.scope);
    text.push_str(&unknown::rule(&everything, kind.place));
    binding(text, &name);
}

fn key_authors(text: &mut String) {
    for (index, first) in (0..ROLES_PER_KEY).step_by(ROLES_PER_POLICY).enumerate() {
        let name = numbered("portcullis-key-author", index);
        // A key that is switched off opens nothing, so anybody who may write it may also stop it.
        let enabled = format!("({SPEC_CHANGED}) && object.spec.enabled");
        policy(text, &name, "mcpapikeys", &enabled);
        text.push_str(
            "  variables:\n    - name: roles\n      expression: \"has(object.spec.roles) ? object.spec.roles : []\"\n    \
             - name: bindsEveryRole\n      expression: >-\n        \
             authorizer.group('portcullis.dev').resource('mcproles').namespace(request.namespace).check('bind').allowed()\n    \
             - name: bindsEveryClusterRole\n      expression: >-\n        \
             authorizer.group('portcullis.dev').resource('clustermcproles').check('bind').allowed()\n  validations:\n",
        );
        for position in first..ROLES_PER_KEY.min(first + ROLES_PER_POLICY) {
            let _ = write!(
                text,
                "    - expression: >-\n        \
                 variables.roles.size() <= {position} ||\n        \
                 (variables.roles[{position}].kind == 'ClusterMcpRole' ?\n        \
                 (variables.bindsEveryClusterRole || authorizer.group('portcullis.dev').resource('clustermcproles').name(variables.roles[{position}].name).check('bind').allowed()) :\n        \
                 (variables.bindsEveryRole || authorizer.group('portcullis.dev').resource('mcproles').namespace(request.namespace).name(variables.roles[{position}].name).check('bind').allowed()))\n      \
                 messageExpression: \"'spec.roles[{position}]: you do not hold bind on ' + variables.roles[{position}].kind + ' ' + variables.roles[{position}].name\"\n      \
                 reason: Forbidden\n",
            );
        }
        binding(text, &name);
    }
}

/// The first policy of a slice has the plain name.
fn numbered(name: &str, index: usize) -> String {
    if index == 0 { name.to_owned() } else { format!("{name}-{}", index + 1) }
}

/// Begins a policy on the spec of one of our kinds.
fn policy(text: &mut String, name: &str, plural: &str, condition: &str) {
    let _ = write!(
        text,
        "---\napiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata:\n  name: {name}\n\
         {LABELS}spec:\n  failurePolicy: Fail\n  matchConstraints:\n    resourceRules:\n      \
         - apiGroups: [portcullis.dev]\n        apiVersions: [\"*\"]\n        resources: [{plural}]\n        \
         operations: [CREATE, UPDATE]\n  matchConditions:\n    - name: changed\n      expression: {condition:?}\n",
    );
}

/// Puts a policy in force.
fn binding(text: &mut String, name: &str) {
    let _ = write!(
        text,
        "---\napiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata:\n  \
         name: {name}\n{LABELS}spec:\n  policyName: {name}\n  validationActions: [Deny]\n",
    );
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;
    use crate::api::{ClusterMcpRole, McpRole};

    #[test]
    fn every_verb_behind_the_catalogue_is_asked_for_by_both_kinds_of_role() {
        let (_, text) = file();
        assert_eq!(text.matches("you do not hold {{ .of.name }}:{{ .verb }} ").count(), 2);
        for rule in Permission::all().flat_map(|permission| permission.entry().rules) {
            for verb in rule.verbs {
                let message = format!("you do not hold {}:{verb} ", rule.resource);
                assert_eq!(text.matches(&message).count(), 2, "{message}");
            }
        }
    }

    #[test]
    fn no_expression_and_no_policy_asks_more_than_its_budget_allows() {
        let (_, text) = file();
        // Helm cuts what it repeats into slices of the same size.
        assert_eq!(text.matches(&format!("chunk {CHECKS_PER_POLICY} ")).count(), 2);
        for policy in text.split("kind: ValidatingAdmissionPolicy\n").skip(1) {
            assert!(policy.matches("authorizer.").count() <= 2 * ROLES_PER_POLICY + 2, "{policy}");
            // Of the two checks on a role of a key only one is made, since it has one kind.
            let checks = match policy.contains("bindsEveryRole") {
                true => policy.matches("spec.roles[").count() + 2,
                false => policy.matches("authorizer.").count(),
            };
            assert!(checks <= CHECKS_PER_POLICY, "{checks} checks in one policy");
        }
    }

    #[test]
    fn every_role_that_a_role_may_inherit_from_is_looked_at() {
        let (_, text) = file();
        for position in 0..PARENTS_PER_ROLE {
            assert_eq!(text.matches(&format!("inherits.size() <= {position} ||")).count(), 2, "{position}");
        }
        for crd in [McpRole::crd(), ClusterMcpRole::crd()] {
            let schema = serde_json::to_value(crd).unwrap();
            let inherits = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
                ["properties"]["inherits"];
            assert_eq!(inherits["maxItems"], PARENTS_PER_ROLE);
        }
    }

    #[test]
    fn every_role_that_a_key_may_name_is_looked_at() {
        let (_, text) = file();
        for position in 0..ROLES_PER_KEY {
            assert!(text.contains(&format!("roles.size() <= {position} ||")), "{position}");
        }
        let schema = serde_json::to_value(crate::api::crds()).unwrap().to_string();
        assert!(schema.contains(&format!("\"maxItems\":{ROLES_PER_KEY}")));
    }
}
