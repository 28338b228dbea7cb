//! The rules of the admission policies, by policy and message, as the tests expect them; and the check that there is
//! a test for every rule of the chart.

use std::path::Path;

use crate::rights::chart::Chart;

/// Name of a policy, and what it says of what it refuses.
pub(super) type Rule = (&'static str, &'static str);

const BINDINGS: &str = "portcullis-operator-bindings";
const SECRETS: &str = "portcullis-operator-secrets";
const CHILDREN: &str = "portcullis-operator-children";
const DEPLOYMENTS: &str = "portcullis-operator-deployments";
const RESTART: &str = "portcullis-server-restart";

pub(super) const BINDING_NAME: Rule =
    (BINDINGS, "the operator writes bindings named portcullis:<namespace>:<server>:<what> only");
pub(super) const BINDING_LABEL: Rule =
    (BINDINGS, "bindings of the operator carry app.kubernetes.io/managed-by=portcullis");
pub(super) const BINDING_ROLE: Rule = (
    BINDINGS,
    "the operator binds the baseline and the catalogue to servers, each under its own name, and nothing else",
);
pub(super) const BINDING_SUBJECT: Rule = (
    BINDINGS,
    "a binding of the operator has one subject, the ServiceAccount of the server that its name tells",
);
pub(super) const BINDING_NAMESPACE: Rule =
    (BINDINGS, "the namespace does not carry the label portcullis.dev/servers");
pub(super) const BINDING_CLUSTER: Rule =
    (BINDINGS, "the label portcullis.dev/servers of the namespace is not cluster");
pub(super) const BINDING_OUTSIDE: Rule = (
    BINDINGS,
    "the operator gives rights outside their namespace to servers in namespaces labelled cluster only",
);
pub(super) const BINDING_SERVER: Rule = (
    BINDINGS,
    "the operator gives rights to servers in namespaces that it works in, and to no other accounts",
);
pub(super) const SECRET_TYPE: Rule = (SECRETS, "the operator writes Secrets of its own types and names only");
pub(super) const SECRET_SERVER: Rule =
    (SECRETS, "the operator writes the keys of a server for that server only");
pub(super) const SECRET_OWNER: Rule =
    (SECRETS, "the operator changes and deletes only what belongs to an object of portcullis.dev");
pub(super) const CHILD_NAME: Rule = (CHILDREN, "the operator writes objects whose names end with -mcp only");
pub(super) const CHILD_OWNER: Rule =
    (CHILDREN, "the operator changes and deletes only what belongs to an object of portcullis.dev");
pub(super) const CHILD_LABEL: Rule =
    (CHILDREN, "objects of the operator carry app.kubernetes.io/managed-by=portcullis");
pub(super) const POD_ACCOUNT: Rule = (DEPLOYMENTS, "a server runs as the ServiceAccount of its own name");
pub(super) const POD_IMAGE: Rule =
    (DEPLOYMENTS, "a server runs the image of the operator, once, with the argument serve");
pub(super) const POD_PRIVILEGES: Rule = (DEPLOYMENTS, "a server has no privileges and nothing of its node");
pub(super) const POD_ENVIRONMENT: Rule =
    (DEPLOYMENTS, "a server has the environment variables that the operator gives it only");
pub(super) const POD_PROGRAMS: Rule = (DEPLOYMENTS, "nothing else is run in the container of a server");
pub(super) const POD_VOLUMES: Rule = (
    DEPLOYMENTS,
    "a server mounts Secrets, what callers are proved with, empty folders and its own token only",
);
pub(super) const PROOFS: Rule = (
    "portcullis-server-callers",
    "spec.authentication names new proofs of callers, you do not hold bind on mcproles in this namespace",
);
pub(super) const PROOFS_CLUSTER: Rule = (
    "portcullis-server-callers",
    "spec.authentication names new proofs of callers where ClusterMcpRoles count, you do not hold bind on clustermcproles",
);
pub(super) const SERVICE: Rule = (
    "portcullis-operator-services",
    "a Service of the operator leads to pods and takes no address of others",
);
pub(super) const ACCOUNT: Rule =
    ("portcullis-operator-accounts", "a ServiceAccount of the operator gets no Secrets");
pub(super) const SPEC: Rule = (
    "portcullis-operator-objects",
    "the operator does not write what people ask for, only finalizers and status",
);
pub(super) const STATUS: Rule =
    ("portcullis-status", "status is written by the operator's ServiceAccount alone");
pub(super) const RESTART_PODS: Rule = (
    RESTART,
    "a server restarts a Deployment by kubectl.kubernetes.io/restartedAt and changes nothing else of its pods",
);
pub(super) const RESTART_SPEC: Rule =
    (RESTART, "a server changes nothing else of a Deployment than when its pods were restarted");
pub(super) const RESTART_METADATA: Rule = (RESTART, "a server changes no metadata of a Deployment");
pub(super) const NAMESPACE_LABEL: Rule = (
    "portcullis-namespace-label",
    "setting the label portcullis.dev/servers takes the verb admit on mcpservers.portcullis.dev in the cluster",
);
pub(super) const TENANT_LABEL: Rule = (
    "portcullis-tenant-label",
    "giving a namespace to a tenant, or taking it away, by the label portcullis.dev/tenant takes the verb admit on mcpservers.portcullis.dev in the cluster",
);

/// Policies whose rules are made from the code, some in slices with a number at the end, and the tests that try each
/// rule as the chart has it.
const TRIED_ONE_BY_ONE: [(&str, &str); 7] = [
    ("portcullis-role-author", "who_lacks_one_right_is_told_which_and_writes_no_role_with_it"),
    ("portcullis-cluster-role-author", "who_lacks_one_right_is_told_which_and_writes_no_role_with_it"),
    ("portcullis-role-author-inheritance", "every_inherited_role_is_looked_at_in_its_place"),
    ("portcullis-cluster-role-author-inheritance", "every_inherited_role_is_looked_at_in_its_place"),
    ("portcullis-role-author-unknown", "who_does_not_hold_everything_names_nothing_ahead_of_the_catalogue"),
    (
        "portcullis-cluster-role-author-unknown",
        "who_does_not_hold_everything_names_nothing_ahead_of_the_catalogue",
    ),
    ("portcullis-key-author", "every_role_of_a_key_is_looked_at_in_its_place"),
];

/// Whether a policy has this name, or is a slice of the one with this name.
pub(super) fn is_slice(policy: &str, name: &str) -> bool {
    policy.strip_prefix(name).is_some_and(|rest| rest.chars().all(|c| c == '-' || c.is_ascii_digit()))
}

/// Every rule of the chart: name of its policy, and its message or the expression of that.
pub(super) fn rules(chart: &Chart) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut rules = Vec::new();
    for policy in chart.objects("ValidatingAdmissionPolicy") {
        for rule in policy["spec"]["validations"].as_array().expect("a policy has rules") {
            let message =
                if rule["message"].is_null() { &rule["messageExpression"] } else { &rule["message"] };
            rules.push((text(&policy["metadata"]["name"]), text(message)));
        }
    }
    rules
}

#[test]
fn every_rule_of_the_chart_is_expected_by_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/admission");
    let source = |file: &str| std::fs::read_to_string(folder.join(file)).expect("a source of the tests");
    let own = source("rules.rs");
    let expected: String =
        ["authors.rs", "callers.rs", "operator.rs", "pods.rs", "servers.rs", "strangers.rs", "tenants.rs"]
            .map(source)
            .concat();
    let constants: Vec<&str> =
        own.split("\npub(super) const ").skip(1).filter_map(|it| it.split(");\n").next()).collect();
    for name in constants.iter().filter_map(|constant| constant.split(": Rule").next()) {
        assert!(expected.contains(name), "no test expects {name}");
    }
    let all = rules(&Chart::read());
    assert!(all.len() > 100, "the chart was not understood");
    for (policy, message) in &all {
        if let Some((_, test)) = TRIED_ONE_BY_ONE.iter().find(|(name, _)| is_slice(policy, name)) {
            assert!(expected.contains(&format!("async fn {test}(")), "{test} is gone");
            continue;
        }
        let there = all.iter().filter(|(_, same)| same == message).count();
        let written = constants.iter().filter(|constant| constant.contains(&format!("{message:?}"))).count();
        assert_eq!(
            there, written,
            "no test expects the rule of {policy}: {message}; give it a constant here and try it"
        );
    }
}
