//! The admission policies on a real API server: as the operator, as authors of roles and keys, and as a stranger.
//! Attempts are dry runs that leave nothing behind; a refusal must come from the tested policy, never from RBAC.

mod attacker;
mod authors;
mod callers;
mod operator;
mod pods;
mod rules;
mod servers;
mod strangers;
mod tenants;

use std::time::Duration;

use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::cluster::{self, Namespace, OPERATOR_NAMESPACE};
use rules::Rule;

const OPERATOR: &str = "system:serviceaccount:portcullis-system:portcullis-operator";

/// A client that acts as somebody else.
pub(crate) async fn acting_as(user: &str) -> Client {
    let mut config = Config::infer().await.expect("KUBECONFIG names a cluster");
    config.auth_info.impersonate = Some(user.to_owned());
    Client::try_from(config).expect("the configuration is valid")
}

/// The API of the kind and namespace of an object.
fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let version = object["apiVersion"].as_str().expect("an object has a version");
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = object["kind"].as_str().expect("an object has a kind");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("an object has a name")
}

/// What came of an attempt: the message of the API server where it refused.
fn outcome<T>(result: Result<T, kube::Error>) -> Result<(), String> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("the API server could not be asked: {error}"),
    }
}

/// Tries to create an object.
async fn create(client: &Client, object: &Value) -> Result<(), String> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let typed = serde_json::from_value(object.clone()).expect("an object");
    outcome(api(client, object).create(&dry_run, &typed).await)
}

/// Creates an object for real, as whoever runs the tests.
async fn given(client: &Client, object: &Value) {
    let typed = serde_json::from_value(object.clone()).expect("an object");
    api(client, object).create(&PostParams::default(), &typed).await.expect("the test may create it");
}

/// Tries to change an object.
async fn change(client: &Client, object: &Value, patch: Value) -> Result<(), String> {
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    outcome(api(client, object).patch(name(object), &dry_run, &Patch::Merge(patch)).await)
}

/// Tries to put an object in the place of the one that is there.
async fn replace(client: &Client, object: &Value) -> Result<(), String> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let typed = serde_json::from_value(object.clone()).expect("an object");
    outcome(api(client, object).replace(name(object), &dry_run, &typed).await)
}

/// Tries to change the status of an object.
async fn change_status(client: &Client, object: &Value, patch: Value) -> Result<(), String> {
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    outcome(api(client, object).patch_status(name(object), &dry_run, &Patch::Merge(patch)).await)
}

/// Tries to delete an object.
async fn delete(client: &Client, object: &Value) -> Result<(), String> {
    let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
    outcome(api(client, object).delete(name(object), &dry_run).await)
}

#[track_caller]
fn allowed(what: &str, result: Result<(), String>) {
    if let Err(message) = result {
        panic!("{what} must be allowed: {message}");
    }
}

/// As [`allowed`] for an object that is created, but the rights and labels on which it rests are new: the API server
/// learns of them a moment later.
async fn soon_allowed(what: &str, client: &Client, object: &Value) {
    let what = format!("{what} is allowed");
    cluster::eventually(&what, Duration::from_secs(10), async || create(client, object).await.ok()).await;
}

#[track_caller]
fn refused(what: &str, rule: Rule, result: Result<(), String>) {
    let (policy, text) = rule;
    let message = result.expect_err(&format!("{what} must be refused"));
    let expected =
        format!("ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: {text}");
    assert!(message.ends_with(&expected), "{what}: not {expected:?} but {message}");
}

/// A copy of an object with one value changed, by JSON pointer.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("the parent exists");
    match field.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[field] = value,
    }
    object
}

/// A namespace in which servers may run and in which the operator has its rights.
async fn served_namespace(admin: &Client, prefix: &str) -> Namespace {
    let namespace = cluster::temp_namespace(admin, prefix).await;
    namespace.label("portcullis.dev/servers=local");
    let operator =
        json!([{"kind": "ServiceAccount", "name": "portcullis-operator", "namespace": OPERATOR_NAMESPACE}]);
    given(admin, &role_binding(namespace.name(), "given", "portcullis:operator-namespace", operator)).await;
    namespace
}

fn role_binding(namespace: &str, name: &str, role: &str, subjects: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "portcullis"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

fn cluster_role_binding(name: &str, role: &str, subjects: Value) -> Value {
    let mut binding = with(&role_binding("", name, role, subjects), "/kind", json!("ClusterRoleBinding"));
    binding["metadata"].as_object_mut().expect("metadata").remove("namespace");
    binding
}

/// Gives a user a ClusterRole in a namespace.
async fn grant(admin: &Client, namespace: &str, user: &str, role: &str) {
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    given(admin, &role_binding(namespace, &format!("{user}-{role}").replace(':', "-"), role, subjects)).await;
}

/// A Deployment as the operator makes it, in what the policies look at.
fn server_deployment(namespace: &str, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "ops-mcp", "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "portcullis"}},
        "spec": {
            "selector": {"matchLabels": {"portcullis.dev/server": "ops"}},
            "template": {
                "metadata": {"labels": {"portcullis.dev/server": "ops"}},
                "spec": {
                    "serviceAccountName": "ops-mcp",
                    "containers": [{"name": "serve", "image": image, "args": ["serve"],
                        "securityContext": {"allowPrivilegeEscalation": false}}],
                    "volumes": [{"name": "tls", "secret": {"secretName": "ops-mcp-tls"}}],
                },
            },
        },
    })
}

fn portcullis(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace}})
}
