//! The pods of a server: the operator's own image, Pod Security `restricted`, one short token.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, from_value, json};

use crate::api::{MaterialKind, MaterialReference, names};
use crate::controller::OperatorConfig;
use crate::controller::mcp_server::validate::ValidatedServer;

/// User and group of the process.
const USER: i64 = 65532;
/// Annotation by which `kubectl rollout restart` asks for new pods.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// The Deployment of a server.
pub(super) fn deployment(server: &ValidatedServer<'_>, config: &OperatorConfig) -> Deployment {
    from_value(json!({
        "metadata": super::metadata(server, &names::workload(server.name)),
        "spec": {
            "replicas": server.spec.replicas,
            "revisionHistoryLimit": 2,
            // A new pod is ready before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": super::selector(server.name)},
            "template": {
                "metadata": {"labels": super::labels(server.name)},
                "spec": pod(server, config),
            },
        },
    }))
    .expect("the shape of a Deployment")
}

fn pod(server: &ValidatedServer<'_>, config: &OperatorConfig) -> Value {
    json!({
        "serviceAccountName": names::workload(server.name),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": server.spec.node_selector,
        "tolerations": server.spec.tolerations,
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": super::selector(server.name)},
        }],
        "containers": [container(server, config)],
        "volumes": [
            {"name": "tls", "secret": {"secretName": server.tls_secret, "defaultMode": 0o440}},
            {"name": "internal", "secret": {"secretName": names::internal_secret(server.name), "defaultMode": 0o440}},
            {"name": "token", "projected": {"defaultMode": 0o440, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                ]}},
            ]}},
            {"name": "data", "emptyDir": {}},
            {"name": "materials", "projected": {"defaultMode": 0o440, "sources": materials(server)}},
        ],
    })
}

/// What callers are proved with, one source for each object, sorted. What is not there yet keeps no pod from starting,
/// and what changes reaches the pods without a roll-out: the template names entries and holds none of them.
fn materials(server: &ValidatedServer<'_>) -> Vec<Value> {
    let own =
        |name: String, key: &str| MaterialReference { kind: MaterialKind::Secret, name, key: key.to_owned() };
    let authentication = &server.spec.authentication;
    let signing = own(names::signing_secret(server.name), names::SIGNING_DATA);
    let imported = own(names::imported_secret(server.name), names::IMPORTED_DATA);
    let referred = authentication.references().into_iter().map(|(_, reference)| reference);
    let all = referred.chain(authentication.tokens.enabled.then_some(signing)).chain([imported]);
    let mut objects: BTreeMap<(MaterialKind, String), BTreeSet<String>> = BTreeMap::new();
    for MaterialReference { kind, name, key } in all {
        objects.entry((kind, name)).or_default().insert(key);
    }
    let source = |((kind, name), keys): ((MaterialKind, String), BTreeSet<String>)| {
        let items: Vec<Value> = keys
            .iter()
            .map(|key| json!({"key": key, "path": names::material_path(kind, &name, key)}))
            .collect();
        let object = json!({"name": name, "optional": true, "items": items});
        match kind {
            MaterialKind::ConfigMap => json!({"configMap": object}),
            MaterialKind::Secret => json!({"secret": object}),
        }
    };
    objects.into_iter().map(source).collect()
}

fn container(server: &ValidatedServer<'_>, config: &OperatorConfig) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let port = |name: &str, port: i32| json!({"name": name, "containerPort": port, "protocol": "TCP"});
    let probe = |path: &str, period: i32, failures: i32| {
        json!({
            "httpGet": {"path": path, "port": "admin"},
            "periodSeconds": period,
            "timeoutSeconds": period.min(3),
            "failureThreshold": failures,
        })
    };
    let resources = server.spec.resources.as_ref().map_or_else(
        || json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}}),
        |resources| json!(resources),
    );
    let mut env = vec![
        json!({"name": "PORTCULLIS_NAMESPACE", "value": server.namespace}),
        json!({"name": "PORTCULLIS_SERVER", "value": server.name}),
        json!({"name": "PORTCULLIS_OPERATOR_NAMESPACE", "value": config.namespace}),
        // Without this the allocator claims memory that a small pod never uses.
        json!({"name": "MIMALLOC_ARENA_EAGER_COMMIT", "value": "0"}),
        field("POD_IP", "status.podIP"),
        field("POD_NAME", "metadata.name"),
    ];
    // An administrator who extends nothing has no pods replaced for it.
    env.extend(config.catalogue.iter().map(|text| json!({"name": names::CATALOGUE_VARIABLE, "value": text})));
    json!({
        "name": "portcullis",
        "image": config.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": ["serve"],
        "env": env,
        "ports": [
            port("https", names::HTTPS_PORT),
            port("internal", names::INTERNAL_PORT),
            port("admin", names::ADMIN_PORT),
        ],
        // A second is the shortest period there is; it decides how soon a new server is Ready.
        "readinessProbe": probe("/readyz", 1, 2),
        "livenessProbe": probe("/livez", 10, 3),
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tls", "mountPath": "/etc/portcullis/tls", "readOnly": true},
            {"name": "internal", "mountPath": "/etc/portcullis/internal", "readOnly": true},
            {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true},
            {"name": "data", "mountPath": "/var/lib/portcullis"},
            {"name": "materials", "mountPath": names::MATERIALS_DIRECTORY, "readOnly": true},
        ],
    })
}

/// Keeps what `kubectl rollout restart` wrote: taking it away would roll the restart back.
pub(in crate::controller::mcp_server) fn keep_restart(desired: &mut Deployment, live: &Deployment) {
    let template = |deployment: &Deployment| deployment.spec.as_ref()?.template.metadata.clone();
    let restarted = template(live).and_then(|metadata| metadata.annotations?.remove(RESTARTED));
    let metadata = desired.spec.as_mut().and_then(|spec| spec.template.metadata.as_mut());
    if let (Some(restarted), Some(metadata)) = (restarted, metadata) {
        metadata.annotations.get_or_insert_default().insert(RESTARTED.to_owned(), restarted);
    }
}
