//! From what a person writes to the children as whole values.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde_json::json;

use super::*;
use crate::alone::alone;
use crate::api::{ClusterMcpRole, MaterialKind, McpRole, McpServer};
use crate::authz::extension::Extension;
use crate::authz::{NamespaceLabels, Role};
use crate::controller::mcp_server::materials::Material;
use crate::controller::mcp_server::validate::{Referred, validate};
use crate::pki;

fn config() -> OperatorConfig {
    OperatorConfig {
        namespace: "portcullis-system".into(),
        pod_name: "operator-0".into(),
        service_account: "portcullis-operator".into(),
        image: "example.test/portcullis:1".into(),
        image_pull_policy: "IfNotPresent".into(),
        catalogue: None,
        ready: std::sync::Arc::default(),
    }
}

fn with_desired<T>(spec: &str, look: impl FnOnce(Desired) -> T) -> T {
    with_desired_and(spec, &Referred::default(), look)
}

fn with_desired_and<T>(spec: &str, referred: &Referred, look: impl FnOnce(Desired) -> T) -> T {
    let text = format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {{name: ops, namespace: agents, uid: u1}}, spec: {spec}}}"
    );
    let server: McpServer = serde_saphyr::from_str(&text).expect("a server");
    let valid = validate(&server, referred, |_| false).expect("valid");
    let certificates = Certificates { endpoint: Some(BTreeMap::new()), internal: BTreeMap::new() };
    look(desired(&valid, &config(), certificates))
}

#[test]
fn what_extends_the_catalogue_is_handed_on_to_the_pods_of_a_server_and_nothing_otherwise() {
    let text = "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops, namespace: agents, uid: u1}, spec: {}}";
    let server: McpServer = serde_saphyr::from_str(text).expect("a server");
    let valid = validate(&server, &Referred::default(), |_| false).expect("valid");
    let handed_on = |catalogue: Option<&str>| {
        let config = OperatorConfig { catalogue: catalogue.map(str::to_owned), ..config() };
        let deployment = json!(deployment::deployment(&valid, &config));
        let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned();
        env.expect("a list").into_iter().find(|variable| variable["name"] == names::CATALOGUE_VARIABLE)
    };
    assert_eq!(handed_on(None), None);
    let extended = r#"{"secrets":{"read":true}}"#;
    assert_eq!(handed_on(Some(extended)), Some(json!({"name": "PORTCULLIS_CATALOGUE", "value": extended})));
}

fn child_metadata(name: &str) -> Value {
    json!({
        "name": name,
        "namespace": "agents",
        "labels": {
            "app.kubernetes.io/name": "portcullis-server",
            "app.kubernetes.io/instance": "ops",
            "app.kubernetes.io/component": "endpoint",
            "app.kubernetes.io/part-of": "portcullis",
            "app.kubernetes.io/managed-by": "portcullis",
            "portcullis.dev/server": "ops",
        },
        "ownerReferences": [{"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "name": "ops",
            "uid": "u1", "controller": true}],
    })
}

fn pods() -> Value {
    json!({"app.kubernetes.io/name": "portcullis-server", "portcullis.dev/server": "ops"})
}

#[test]
fn the_shortest_server_has_these_children() {
    with_desired("{}", |desired| {
        assert_eq!(
            json!(desired.service),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": child_metadata("ops-mcp"),
                "spec": {"type": "ClusterIP", "selector": pods(), "ports": [{"name": "https", "port": 443,
                    "targetPort": "https", "protocol": "TCP", "appProtocol": "https"}]}})
        );
        assert_eq!(
            json!(desired.service_account),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": child_metadata("ops-mcp"),
                "automountServiceAccountToken": false})
        );
        assert_eq!(
            json!(desired.disruption_budget),
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": child_metadata("ops-mcp"),
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pods()}}})
        );
        assert_eq!(
            json!(desired.network_policy)["spec"],
            json!({"podSelector": {"matchLabels": pods()}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": 8443}]},
                {"ports": [{"protocol": "TCP", "port": 8444}], "from": [
                    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "portcullis-system"}}},
                    {"podSelector": {"matchLabels": pods()}}]},
                {"ports": [{"protocol": "TCP", "port": 9090}], "from": [{"namespaceSelector": {}}]}],
            "egress": [
                {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
                {"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]},
                {"ports": [{"protocol": "TCP", "port": 8444}], "to": [{"podSelector": {"matchLabels": pods()}}]}]})
        );
        let internal = &desired.internal_secret;
        assert_eq!(json!(internal)["metadata"], child_metadata("ops-mcp-internal"));
        assert_eq!(internal.type_.as_deref(), Some("portcullis.dev/internal-tls"));
        let endpoint = desired.endpoint_secret.as_ref().expect("kept by the operator");
        assert_eq!(json!(endpoint)["metadata"], child_metadata("ops-mcp-tls"));
        assert_eq!(endpoint.type_.as_deref(), Some("kubernetes.io/tls"));
    });
}

#[test]
fn the_pods_are_restricted_and_hold_one_short_token() {
    let deployment = with_desired("{}", |desired| json!(desired.deployment));
    assert_eq!(deployment["metadata"], child_metadata("ops-mcp"));
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"}})
    );
    let container = &pod["containers"][0];
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
    );
    assert_eq!(container["image"], "example.test/portcullis:1");
    assert_eq!(container["args"], json!(["serve"]));
    assert_eq!(
        container["resources"],
        json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}})
    );
    let volumes = pod["volumes"].as_array().expect("volumes");
    let tokens = volumes.iter().filter(|volume| volume.to_string().contains("serviceAccountToken")).count();
    assert_eq!(tokens, 1);
    assert_eq!(volumes[2]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 600);
}

/// Sources of the volume with what callers are proved with.
fn sources(spec: &str, referred: &Referred) -> Value {
    let deployment = with_desired_and(spec, referred, |desired| json!(desired.deployment));
    let pod = &deployment["spec"]["template"]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
    assert!(
        mounts.contains(
            &json!({"name": "materials", "mountPath": "/etc/portcullis/materials", "readOnly": true})
        )
    );
    let volumes = pod["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|volume| volume["name"] == "materials").expect("a volume");
    assert_eq!(volume["projected"]["defaultMode"], 0o440);
    volume["projected"]["sources"].clone()
}

#[test]
fn what_callers_are_proved_with_is_mounted_by_name_and_may_be_absent() {
    let imported = json!({"secret": {"name": "ops-mcp-imported", "optional": true,
        "items": [{"key": "imported.json", "path": "secret/ops-mcp-imported/imported.json"}]}});
    assert_eq!(sources("{}", &Referred::default()), json!([imported]));

    let mut referred = Referred::default();
    let ca =
        pki::Authority::generate("ca", rcgen::KeyPair::generate().expect("a key"), jiff::Timestamp::now());
    let ca = ca.expect("an authority").1.certificate_pem.into_bytes();
    let entries = BTreeMap::from([("a".to_owned(), (0..32).collect()), ("ca.crt".to_owned(), ca)]);
    for (kind, name) in [(MaterialKind::Secret, "zeta"), (MaterialKind::ConfigMap, "alpha")] {
        referred.materials.insert(kind, name, Material { entries: entries.clone(), ..Material::default() });
    }
    let spec = "{authentication: {tokens: {enabled: true}, jwt: [
        {issuer: one, hmacSecret: {name: zeta, key: a}},
        {issuer: two, hmacSecret: {name: zeta, key: a}},
        {issuer: 'https://three', ca: {kind: Secret, name: zeta, key: ca.crt}}],
        clientCertificates: {mode: VerifyIfGiven, ca: {name: alpha, key: ca.crt}}}}";
    assert_eq!(
        sources(spec, &referred),
        json!([
            {"configMap": {"name": "alpha", "optional": true,
                "items": [{"key": "ca.crt", "path": "configmap/alpha/ca.crt"}]}},
            imported,
            {"secret": {"name": "ops-mcp-signing", "optional": true,
                "items": [{"key": "keys.json", "path": "secret/ops-mcp-signing/keys.json"}]}},
            {"secret": {"name": "zeta", "optional": true, "items": [
                {"key": "a", "path": "secret/zeta/a"}, {"key": "ca.crt", "path": "secret/zeta/ca.crt"}]}},
        ])
    );
}

#[test]
fn other_contents_do_not_replace_the_pods() {
    let with = |byte: u8| {
        let mut referred = Referred::default();
        let entries = BTreeMap::from([("a".to_owned(), (byte..byte + 32).collect())]);
        referred.materials.insert(MaterialKind::Secret, "s", Material { entries, ..Material::default() });
        let spec = "{authentication: {jwt: [{issuer: one, hmacSecret: {name: s, key: a}}]}}";
        with_desired_and(spec, &referred, |desired| desired.deployment)
    };
    assert_eq!(with(1), with(2));
}

#[test]
fn the_pods_may_reach_the_ports_of_issuers_whose_keys_are_fetched() {
    let mut referred = Referred::default();
    let entries = BTreeMap::from([("a".to_owned(), (0..32).collect())]);
    referred.materials.insert(MaterialKind::Secret, "s", Material { entries, ..Material::default() });
    let spec = "{authentication: {jwt: [
        {issuer: 'https://a.example.com:8443/realm'},
        {issuer: 'https://b.example.com'},
        {issuer: 'https://c.example.com:1', jwksUrl: 'https://keys.example.com:9443/jwks'},
        {issuer: 'https://d.example.com:2', hmacSecret: {name: s, key: a}}]}}";
    let ports = with_desired_and(spec, &referred, |desired| {
        json!(desired.network_policy)["spec"]["egress"][1]["ports"].clone()
    });
    let tcp = |port: i32| json!({"protocol": "TCP", "port": port});
    assert_eq!(ports, json!([tcp(443), tcp(6443), tcp(8443), tcp(9443)]));
}

#[test]
fn every_field_of_the_spec_reaches_a_child() {
    with_desired(
        "{replicas: 3, resources: {limits: {memory: 1Gi}}, nodeSelector: {disk: ssd}, tolerations: [{key: t, operator: Exists}], expose: {service: {type: NodePort, nodePort: 30443}}}",
        |desired| {
            let deployment = json!(desired.deployment);
            let pod = &deployment["spec"]["template"]["spec"];
            assert_eq!(deployment["spec"]["replicas"], 3);
            assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"memory": "1Gi"}}));
            assert_eq!(pod["nodeSelector"], json!({"disk": "ssd"}));
            assert_eq!(pod["tolerations"], json!([{"key": "t", "operator": "Exists"}]));
            let service = json!(desired.service);
            assert_eq!(service["spec"]["type"], "NodePort");
            assert_eq!(service["spec"]["ports"][0]["nodePort"], 30443);
        },
    );
}

#[test]
fn the_same_server_gives_the_same_children() {
    let spec = "{nodeSelector: {b: '2', a: '1'}}";
    assert_eq!(with_desired(spec, |desired| desired), with_desired(spec, |desired| desired));
}

#[test]
fn a_restart_that_somebody_asked_for_is_kept() {
    let mut wanted = with_desired("{}", |desired| desired.deployment);
    let mut live = wanted.clone();
    let template = live.spec.as_mut().and_then(|spec| spec.template.metadata.as_mut()).expect("metadata");
    template.annotations = Some(BTreeMap::from([
        ("kubectl.kubernetes.io/restartedAt".to_owned(), "now".to_owned()),
        ("other".to_owned(), "x".to_owned()),
    ]));
    keep_restart(&mut wanted, &live);
    assert_eq!(
        json!(wanted)["spec"]["template"]["metadata"]["annotations"],
        json!({"kubectl.kubernetes.io/restartedAt": "now"})
    );
}

#[test]
fn secrets_that_the_cluster_added_to_a_service_account_are_kept() {
    let mut wanted = with_desired("{}", |desired| desired.service_account);
    let mut live = json!(wanted);
    live["secrets"] = json!([{"name": "ops-mcp-dockercfg"}]);
    live["imagePullSecrets"] = json!([{"name": "ops-mcp-dockercfg"}]);
    live["automountServiceAccountToken"] = json!(true);
    keep_secrets(&mut wanted, &serde_json::from_value(live.clone()).expect("a ServiceAccount"));
    let kept = json!(wanted);
    assert_eq!(kept["secrets"], live["secrets"]);
    assert_eq!(kept["imagePullSecrets"], live["imagePullSecrets"]);
    assert_eq!(kept["automountServiceAccountToken"], false, "nothing else is");
}

fn role(permissions: &str) -> Role {
    let text = format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {{name: r, namespace: agents}}, spec: {{permissions: {permissions}}}}}"
    );
    Role::from_role(&serde_saphyr::from_str::<McpRole>(&text).expect("a role"), &|_| None).expect("valid")
}

fn cluster_role(permissions: &str, scope: &str) -> Role {
    let text = format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: ClusterMcpRole, metadata: {{name: c}}, spec: {{permissions: {permissions}, {scope}, servers: [{{namespace: agents, name: ops}}]}}}}"
    );
    let role: ClusterMcpRole = serde_saphyr::from_str(&text).expect("a role");
    Role::from_cluster_role(&role, "portcullis-system", &NamespaceLabels::new(), &|_| None).expect("valid")
}

/// Bindings beyond the baseline, as `where -> ClusterRole`.
fn granted(roles: &[Role]) -> Vec<String> {
    let namespaces: BTreeSet<String> =
        ["agents", "team-a", "team-b", "kube-system", "portcullis-system"].map(str::to_owned).into();
    let all = bindings("agents", "ops", roles, &namespaces);
    let mut baseline: Vec<(Option<&str>, &str)> = Vec::new();
    let mut granted = Vec::new();
    for binding in &all {
        if binding.name == "portcullis:agents:ops:baseline" {
            baseline.push((binding.namespace.as_deref(), &binding.cluster_role));
        } else {
            let role = binding.cluster_role.trim_start_matches("portcullis:catalogue:");
            assert_eq!(binding.name, format!("portcullis:agents:ops:{role}"));
            granted.push(format!("{} -> {role}", binding.namespace.as_deref().unwrap_or("*")));
        }
    }
    assert_eq!(baseline, [(None, "portcullis:server-cluster"), (Some("agents"), "portcullis:server")]);
    granted
}

#[test]
fn a_server_without_roles_has_its_baseline_alone() {
    assert_eq!(granted(&[]), Vec::<String>::new());
}

#[test]
fn rights_are_the_union_of_the_roles_and_nothing_else() {
    let roles = [
        role("['k8s:pods:list', 'k8s:namespaces:list']"),
        role("['k8s:pods:list', 'k8s:pods:logs']"),
        cluster_role("['k8s:pods:list']", "namespaces: ['team-*', absent]"),
    ];
    assert_eq!(
        granted(&roles),
        ["agents -> pods:list", "agents -> pods:logs", "team-a -> pods:list", "team-b -> pods:list"]
    );
}

#[test]
fn a_pattern_reaches_neither_the_system_nor_the_operator_and_all_is_one_binding() {
    assert_eq!(
        granted(&[cluster_role("['k8s:pods:list']", "namespaces: ['*']")]),
        ["agents -> pods:list", "team-a -> pods:list", "team-b -> pods:list"]
    );
    assert_eq!(granted(&[cluster_role("['k8s:pods:list']", "allNamespaces: true")]), ["* -> pods:list"]);
}

#[test]
fn a_binding_names_the_servers_account_and_is_owned_inside_its_namespace_only() {
    let own = OwnerReference { uid: "u1".into(), ..OwnerReference::default() };
    let binding = |scope: &str| Binding {
        namespace: Some(scope.to_owned()),
        name: "portcullis:agents:ops:pods:list".into(),
        cluster_role: "portcullis:catalogue:pods:list".into(),
    };
    let inside = binding("agents").role_binding("agents", "ops", own.clone()).expect("a RoleBinding");
    assert_eq!(inside.owner_references().len(), 1);
    let outside = binding("team-a").role_binding("agents", "ops", own).expect("a RoleBinding");
    assert_eq!(outside.owner_references().len(), 0);
    assert_eq!(outside.labels()["portcullis.dev/server-namespace"], "agents");
    assert_eq!(
        json!(outside.subjects),
        json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": "agents"}])
    );
    assert_eq!(binding("team-a").cluster_role_binding("agents", "ops"), None);
}

#[test]
fn managing_secrets_is_bound_where_a_role_grants_it_and_the_values_let_it() {
    let name = "controller::mcp_server::desired::tests::managing_secrets_is_bound_where_a_role_grants_it_and_the_values_let_it";
    if !alone(name) {
        return;
    }
    let extension = Extension::parse(r#"{"secrets": {"manage": true}}"#).expect("valid");
    extension.install().expect("the first");
    assert_eq!(granted(&[role("['k8s:secrets:manage']")]), ["agents -> secrets:manage"]);
    let fleet = cluster_role("['k8s:secrets:*']", "namespaces: ['team-*']");
    assert_eq!(granted(&[fleet]), ["team-a -> secrets:manage", "team-b -> secrets:manage"]);
    let everywhere = cluster_role("['k8s:secrets:manage']", "allNamespaces: true");
    assert_eq!(granted(&[everywhere]), ["* -> secrets:manage"]);
}
