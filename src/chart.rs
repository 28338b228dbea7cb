//! Holds the chart to its promises: no right that is too wide, no policy that lets things pass, no pod with
//! privileges.
//!
//! What is read is `manifests/install.yaml`, which a check compares with what Helm makes of the chart.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Parts of objects that run programs or give tokens away.
const DANGEROUS: [&str; 8] = [
    "pods/exec",
    "pods/attach",
    "pods/portforward",
    "pods/proxy",
    "services/proxy",
    "nodes/proxy",
    "serviceaccounts/token",
    "pods/ephemeralcontainers",
];

/// Kinds that a role of the chart gives nobody to write, since they hold the rights of all others.
const GUARDS: [&str; 7] = [
    "roles",
    "clusterroles",
    "customresourcedefinitions",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
    "mutatingwebhookconfigurations",
];

/// Kinds of volumes that Pod Security `restricted` lets pods have.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn chart() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/install.yaml");
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&fs::read_to_string(path).expect("the manifests can be read"))
            .expect("the manifests are YAML");
    assert!(objects.len() > 50, "the manifests were not understood");
    objects
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("an object has a name")
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// What is wrong with a rule of a role that counts in the whole cluster, or inside a namespace only.
fn faults_of_rule(rule: &Value, everywhere: bool) -> Vec<&'static str> {
    let (groups, kinds, verbs) =
        (texts(&rule["apiGroups"]), texts(&rule["resources"]), texts(&rule["verbs"]));
    let verb = |found: &[&str]| verbs.iter().any(|verb| found.contains(verb));
    let plain = |kind: &&str| kind.split('/').next().unwrap_or_default().to_owned();
    let kind = |found: &[&str]| kinds.iter().any(|kind| found.contains(&plain(kind).as_str()));
    let secrets = kind(&["secrets"]);
    let wildcard = groups.iter().chain(&kinds).chain(&verbs).any(|word| word.contains('*'));
    let paths = !texts(&rule["nonResourceURLs"]).is_empty();
    let foreign = groups.iter().any(|group| *group != "portcullis.dev");
    let faults = [
        (wildcard || paths, "a wildcard or a path"),
        (verbs.iter().any(|verb| verb.contains("escalate")), "escalate"),
        (verbs.iter().any(|verb| verb.contains("impersonate")), "impersonate"),
        (verb(&["bind"]) && foreign && texts(&rule["resourceNames"]).is_empty(), "bind without names"),
        (secrets && everywhere, "Secrets in the whole cluster"),
        (secrets && verb(&["list", "watch", "deletecollection"]), "looking around among Secrets"),
        (kinds.iter().any(|kind| DANGEROUS.contains(kind)), "programs or tokens"),
        (
            kind(&GUARDS) && verb(&["create", "update", "patch", "delete", "deletecollection"]),
            "what holds the rights of others",
        ),
    ];
    faults.into_iter().filter_map(|(found, fault)| found.then_some(fault)).collect()
}

/// Roles with rules that must not be, as `role: fault`.
fn faults_of_roles(objects: &[Value]) -> Vec<String> {
    let wide = of_kind(objects, "ClusterRoleBinding");
    let mut found = Vec::new();
    for role in of_kind(objects, "ClusterRole").into_iter().chain(of_kind(objects, "Role")) {
        // Aggregated roles are joined to roles of the cluster, and those are bound anywhere.
        let labels = role["metadata"]["labels"].as_object();
        let aggregated =
            labels.is_some_and(|labels| labels.keys().any(|label| label.contains("/aggregate-to-")));
        let everywhere = role["kind"] == "ClusterRole"
            && (aggregated
                || wide.iter().any(|binding| binding["roleRef"]["name"] == role["metadata"]["name"]));
        for rule in role["rules"].as_array().into_iter().flatten() {
            found.extend(
                faults_of_rule(rule, everywhere).iter().map(|fault| format!("{}: {fault}", name(role))),
            );
        }
        if role.get("aggregationRule").is_some() {
            found.push(format!("{}: takes the rules of others", name(role)));
        }
    }
    found
}

/// What Pod Security `restricted` refuses of a pod; and what it lets pass and we do not: writing to the root.
fn faults_of_pod(pod: &Value) -> Vec<&'static str> {
    let containers = || {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|kind| pod[kind].as_array().into_iter().flatten())
    };
    let every = |good: fn(&Value, &Value) -> bool| {
        containers().all(|container| good(&container["securityContext"], &pod["securityContext"]))
    };
    let volumes = || pod["volumes"].as_array().into_iter().flatten();
    let only = |volume: &Value| {
        let kinds = volume.as_object().expect("an object").keys().filter(|key| *key != "name");
        kinds.clone().count() == 1 && kinds.into_iter().all(|kind| VOLUMES.contains(&kind.as_str()))
    };
    let ports = || containers().flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let checks = [
        (
            ["hostNetwork", "hostPID", "hostIPC"].iter().all(|host| pod[host] != true)
                && ports().all(|port| port["hostPort"].is_null()),
            "something of the node",
        ),
        (volumes().all(only), "a volume of another kind"),
        (every(|own, _| own["privileged"] != true), "privileged"),
        (every(|own, _| own["allowPrivilegeEscalation"] == false), "privileges can be gained"),
        (every(|own, _| own["capabilities"] == json!({"drop": ["ALL"]})), "capabilities"),
        (every(|own, _| own["readOnlyRootFilesystem"] == true), "a root that can be written to"),
        (every(|own, pod| own["procMount"].is_null() && pod["sysctls"].is_null()), "settings of the kernel"),
        (
            every(|own, pod| {
                let user = own.get("runAsUser").or(pod.get("runAsUser"));
                own.get("runAsNonRoot").or(pod.get("runAsNonRoot")) == Some(&json!(true))
                    && user.is_some_and(|user| user != 0)
            }),
            "root",
        ),
        (
            every(|own, pod| {
                let profile = own.get("seccompProfile").or(pod.get("seccompProfile"));
                profile.is_some_and(|profile| profile["type"] == "RuntimeDefault")
            }),
            "no filter of system calls",
        ),
    ];
    checks.into_iter().filter_map(|(good, fault)| (!good).then_some(fault)).collect()
}

#[test]
fn no_role_of_the_chart_is_too_wide() {
    assert_eq!(faults_of_roles(&chart()), [""; 0]);
}

#[test]
fn the_chart_binds_roles_to_the_operators_own_account_and_to_nobody_else() {
    let objects = chart();
    let operator =
        json!([{"kind": "ServiceAccount", "name": "portcullis-operator", "namespace": "portcullis-system"}]);
    let wide = of_kind(&objects, "ClusterRoleBinding");
    assert_eq!(wide.len(), 1);
    assert_eq!(wide[0]["roleRef"]["name"], "portcullis:operator");
    for binding in wide.into_iter().chain(of_kind(&objects, "RoleBinding")) {
        assert_eq!(binding["subjects"], operator, "{}", name(binding));
    }
}

#[test]
fn every_policy_is_in_force_everywhere_and_fails_closed() {
    let objects = chart();
    let bindings = of_kind(&objects, "ValidatingAdmissionPolicyBinding");
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    assert!(policies.len() >= 14);
    for policy in policies {
        assert_eq!(policy["spec"]["failurePolicy"], "Fail", "{}", name(policy));
        let constraints = policy["spec"]["matchConstraints"].as_object().expect("it says what it looks at");
        assert_eq!(constraints.keys().collect::<Vec<_>>(), ["resourceRules"], "{}", name(policy));
        let spec = json!({"policyName": name(policy), "validationActions": ["Deny"]});
        assert!(bindings.iter().any(|binding| binding["spec"] == spec), "{} is not in force", name(policy));
    }
}

#[test]
fn pods_of_the_chart_are_restricted() {
    let objects = chart();
    let deployments = of_kind(&objects, "Deployment");
    assert_eq!(deployments.len(), 1);
    for deployment in deployments {
        assert_eq!(faults_of_pod(&deployment["spec"]["template"]["spec"]), [""; 0], "{}", name(deployment));
    }
    let makers = ["Pod", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet"];
    assert!(objects.iter().all(|object| !makers.iter().any(|kind| object["kind"] == *kind)));
}

#[test]
fn each_fault_of_a_role_is_found() {
    let rule = |group: &str, kind: &str, verb: &str| json!({"apiGroups": [group], "resources": [kind], "verbs": [verb]});
    for (rule, fault) in [
        (rule("*", "pods", "get"), "a wildcard or a path"),
        (rule("", "pods/*", "get"), "a wildcard or a path"),
        (rule("", "pods", "*"), "a wildcard or a path"),
        (json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]}), "a wildcard or a path"),
        (rule("rbac.authorization.k8s.io", "clusterroles", "escalate"), "escalate"),
        (rule("", "users", "impersonate"), "impersonate"),
        (rule("", "serviceaccounts", "impersonate-on:user-info:get"), "impersonate"),
        (rule("rbac.authorization.k8s.io", "clusterroles", "bind"), "bind without names"),
        (rule("", "secrets", "get"), "Secrets in the whole cluster"),
        (rule("", "secrets", "list"), "looking around among Secrets"),
        (rule("", "pods/exec", "get"), "programs or tokens"),
        (rule("", "serviceaccounts/token", "create"), "programs or tokens"),
        (rule("rbac.authorization.k8s.io", "roles", "patch"), "what holds the rights of others"),
    ] {
        let role = json!({"kind": "ClusterRole", "metadata": {"name": "evil"}, "rules": [rule]});
        let binding = json!({"kind": "ClusterRoleBinding", "roleRef": {"name": "evil"}});
        let found = faults_of_roles(&[role, binding]);
        assert!(found.contains(&format!("evil: {fault}")), "{fault}: {found:?}");
    }
}

#[test]
fn each_fault_of_a_pod_is_found() {
    let objects = chart();
    let good = &of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"];
    let own = "/containers/0/securityContext";
    for (pointer, field, value, fault) in [
        ("", "hostNetwork", json!(true), "something of the node"),
        ("", "hostPID", json!(true), "something of the node"),
        ("/containers/0", "ports", json!([{"containerPort": 1, "hostPort": 1}]), "something of the node"),
        ("", "volumes", json!([{"name": "a", "hostPath": {"path": "/"}}]), "a volume of another kind"),
        (own, "privileged", json!(true), "privileged"),
        (own, "allowPrivilegeEscalation", json!(true), "privileges can be gained"),
        (own, "capabilities", json!({"drop": ["ALL"], "add": ["NET_RAW"]}), "capabilities"),
        (own, "readOnlyRootFilesystem", json!(false), "a root that can be written to"),
        (own, "procMount", json!("Unmasked"), "settings of the kernel"),
        (own, "runAsNonRoot", json!(false), "root"),
        (own, "runAsUser", json!(0), "root"),
        (own, "seccompProfile", json!({"type": "Unconfined"}), "no filter of system calls"),
        ("", "initContainers", json!([{"name": "a", "image": "b"}]), "privileges can be gained"),
    ] {
        let mut pod = good.clone();
        pod.pointer_mut(pointer).expect("it is there")[field] = value;
        assert!(faults_of_pod(&pod).contains(&fault), "{fault}: {:?}", faults_of_pod(&pod));
    }
}
