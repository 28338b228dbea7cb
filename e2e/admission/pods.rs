//! The admission policy on the pods of servers: whoever has the operator's token runs nothing but servers.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use serde_json::{Value, json};

use super::rules::*;
use super::{
    OPERATOR, acting_as, allowed, create, refused, served_namespace, server_deployment, soon_allowed, with,
};
use crate::cluster::{self, OPERATOR_NAMESPACE};

#[tokio::test]
async fn the_operator_runs_its_own_image_as_the_account_of_the_server_and_without_privileges() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-pods").await;
    let operator = acting_as(OPERATOR).await;
    let installed: Api<Deployment> = Api::namespaced(admin.clone(), OPERATOR_NAMESPACE);
    let installed = installed.get("portcullis-operator").await.expect("the chart is installed");
    let template = installed.spec.expect("a spec").template.spec.expect("a pod");
    let image = template.containers[0].image.clone().expect("an image");
    let deployment = server_deployment(namespace.name(), &image);
    let pod = "/spec/template/spec";
    let container = deployment["spec"]["template"]["spec"]["containers"][0].clone();
    let projected = |source: Value| json!([{"name": "a", "projected": {"sources": [source]}}]);

    soon_allowed("a server", &operator, &deployment).await;
    let token = projected(json!({"configMap": {"name": "kube-root-ca.crt"}}));
    let token = with(&deployment, &format!("{pod}/volumes"), token);
    allowed("the certificate of the API server", create(&operator, &token).await);
    for (what, rule, pointer, value) in [
        ("another account", POD_ACCOUNT, "serviceAccountName", json!("default")),
        ("another image", POD_IMAGE, "containers/0/image", json!("example.com/miner:1")),
        (
            "an image with a similar name",
            POD_IMAGE,
            "containers/0/image",
            json!(format!("{image}-x").replace(':', "-evil:")),
        ),
        ("another command", POD_IMAGE, "containers/0/command", json!(["/bin/sh"])),
        ("another half of the binary", POD_IMAGE, "containers/0/args", json!(["operator"])),
        ("privileges", POD_PRIVILEGES, "containers/0/securityContext", json!({"privileged": true})),
        (
            "a folder of the node",
            POD_VOLUMES,
            "volumes",
            json!([{"name": "root", "hostPath": {"path": "/"}}]),
        ),
        ("the network of the node", POD_PRIVILEGES, "hostNetwork", json!(true)),
        ("the processes of the node", POD_PRIVILEGES, "hostPID", json!(true)),
        ("an init container", POD_IMAGE, "initContainers", json!([{"name": "i", "image": image}])),
        ("more arguments", POD_IMAGE, "containers/0/args", json!(["serve", "--help"])),
        (
            "a second container",
            POD_IMAGE,
            "containers",
            json!([container, with(&container, "/name", json!("second"))]),
        ),
        (
            "a variable of the loader",
            POD_ENVIRONMENT,
            "containers/0/env",
            json!([{"name": "LD_PRELOAD", "value": "/a.so"}]),
        ),
        (
            "a variable from a Secret",
            POD_ENVIRONMENT,
            "containers/0/env",
            json!([{"name": "POD_IP", "valueFrom":
            {"secretKeyRef": {"name": "database", "key": "password"}}}]),
        ),
        (
            "a Secret as variables",
            POD_ENVIRONMENT,
            "containers/0/envFrom",
            json!([{"secretRef": {"name": "database"}}]),
        ),
        (
            "a hook",
            POD_PROGRAMS,
            "containers/0/lifecycle",
            json!({"preStop": {"exec": {"command": ["/bin/sh"]}}}),
        ),
        (
            "a probe that runs a command",
            POD_PROGRAMS,
            "containers/0/livenessProbe",
            json!({"exec": {"command": ["/bin/sh"]}}),
        ),
        (
            "a capability",
            POD_PRIVILEGES,
            "containers/0/securityContext",
            json!({"allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_RAW"]}}),
        ),
        (
            "another address of a name",
            POD_PRIVILEGES,
            "hostAliases",
            json!([{"ip": "192.0.2.1", "hostnames": ["kubernetes"]}]),
        ),
        ("a ConfigMap", POD_VOLUMES, "volumes", json!([{"name": "a", "configMap": {"name": "web"}}])),
        (
            "a claim",
            POD_VOLUMES,
            "volumes",
            json!([{"name": "a", "persistentVolumeClaim": {"claimName": "web"}}]),
        ),
        ("a projected Secret", POD_VOLUMES, "volumes", projected(json!({"secret": {"name": "database"}}))),
        ("a projected ConfigMap", POD_VOLUMES, "volumes", projected(json!({"configMap": {"name": "web"}}))),
    ] {
        refused(what, rule, create(&operator, &with(&deployment, &format!("{pod}/{pointer}"), value)).await);
    }
}
