//! The confused-deputy matrix: a tenant that may write our objects in its namespace, and nothing else, gets the operator
//! to give it nothing, whatever it writes into any field that names, selects, owns or templates something.
//!
//! The cases stand in `deputy/*.yaml`, for people to read; `src/api/references.rs` holds that every field is among them.

mod callers;
mod cases;
mod names;
mod reach;

use std::time::Duration;

use futures::future::join_all;
use kube::Client;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
    PropagationPolicy,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::admission::acting_as;
use crate::cluster::{self, Namespace, apply, condition, eventually};
use cases::{Again, Case, Table};
use reach::{FOREIGN, Reach};

/// How long the operator may take with an object while the other cases run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tenant with the right to write our objects in its namespace, beside a namespace of another tenant.
struct World {
    namespace: Namespace,
    victim: Namespace,
    tenant: String,
    admin: Client,
    client: Client,
}

impl World {
    async fn new(prefix: &str) -> Self {
        Self::of(prefix, &[]).await
    }

    /// With more verbs on `McpRole`s.
    async fn of(prefix: &str, on_roles: &[&str]) -> Self {
        let (namespace, victim) = (Namespace::opted_in(prefix), Namespace::opted_in("deputy-victim"));
        let tenant = a_tenant_of(namespace.name(), on_roles);
        let victims: Vec<Value> = serde_saphyr::from_multiple(VICTIM).expect("manifests");
        apply(victim.name(), &foreign(&victims));
        rights_are_given(victim.name(), "ops").await;
        let (client, admin) = (acting_as(&tenant).await, cluster::client().await);
        Self { namespace, victim, tenant, admin, client }
    }

    /// The API of an object's kind, in the namespace that it names or else in the tenant's.
    fn api(&self, client: &Client, object: &Value) -> Api<DynamicObject> {
        let kind = object["kind"].as_str().expect("an object has a kind");
        let (group, version) = match object["apiVersion"].as_str() {
            Some(version) => version.split_once('/').unwrap_or(("", version)),
            None => ("portcullis.dev", "v1alpha1"),
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(self.namespace.name());
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match kind {
            "ClusterMcpRole" => Api::all_with(client.clone(), &resource),
            _ => Api::namespaced_with(client.clone(), namespace, &resource),
        }
    }

    /// Puts the names of the namespaces, and the uids of objects that are there, into a text.
    fn fill(&self, text: &str) -> String {
        let mut text =
            text.replace("$namespace", self.namespace.name()).replace("$victim", self.victim.name());
        while let Some((before, rest)) = text.split_once("$uid(") {
            let (object, after) = rest.split_once(')').expect("$uid(Kind/name)");
            let (kind, name) = object.split_once('/').expect("$uid(Kind/name)");
            let found = cluster::object(self.namespace.name(), kind, name).expect("it was given");
            let uid = found["metadata"]["uid"].as_str().expect("a uid");
            text = format!("{before}{uid}{after}");
        }
        text
    }

    /// Makes what others have in the namespace, and waits until the operator has seen all of it.
    async fn give(&self, objects: &[Value]) {
        apply(self.namespace.name(), &foreign(objects));
        let ours = objects.iter().filter(|object| object["apiVersion"] == "portcullis.dev/v1alpha1");
        join_all(ours.map(|object| self.seen(object))).await;
    }

    /// Waits until the operator has said something of the object as it is now, and gives the object.
    async fn seen(&self, object: &Value) -> Value {
        let api = self.api(&self.admin, object);
        let name = object["metadata"]["name"].as_str().expect("an object has a name");
        let what = format!("the operator looks at {} {name}", object["kind"]);
        eventually(&what, PATIENCE, async || {
            let found = serde_json::to_value(api.get_opt(name).await.ok()??).expect("an object");
            let observed = found["status"]["observedGeneration"].as_i64();
            let is_seen = observed == found["metadata"]["generation"].as_i64()
                && condition(&found, "Accepted").is_some_and(|(_, reason, _)| reason != "Pending");
            is_seen.then_some(found)
        })
        .await
    }

    /// What the tenant tries; the message of the API server where it is refused.
    async fn attempt(&self, case: &Case) -> Result<(), String> {
        let object = case.object();
        let (api, name) =
            (self.api(&self.client, object), object["metadata"]["name"].as_str().unwrap_or_default());
        if case.patch.is_some() {
            let changed = api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await;
            return changed.map(|_| ()).map_err(|error| error.to_string());
        }
        self.create(object).await?;
        let Some(again) = case.again else { return Ok(()) };
        self.seen(object).await;
        self.delete(&api, name, again).await;
        self.create(object).await
    }

    /// Makes an object as the tenant.
    async fn create(&self, object: &Value) -> Result<(), String> {
        let typed = serde_json::from_value(out_of_the_way(object)).expect("an object");
        let made = self.api(&self.client, object).create(&PostParams::default(), &typed).await;
        made.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Deletes an object in one of the ways there are, and waits until its name is free.
    async fn delete(&self, api: &Api<DynamicObject>, name: &str, how: Again) {
        let uid = api.get(name).await.expect("it was made").uid();
        if how == Again::WithoutFinalizer {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            api.patch(name, &PatchParams::default(), &patch).await.expect("the tenant may patch it");
        }
        let policy = match how {
            Again::Orphan | Again::WithoutFinalizer => PropagationPolicy::Orphan,
            Again::Background => PropagationPolicy::Background,
        };
        let parameters = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
        api.delete(name, &parameters).await.expect("the tenant may delete it");
        eventually("the name is free", PATIENCE, async || {
            let found = api.get_opt(name).await.ok()?;
            found.is_none_or(|found| found.uid() != uid).then_some(())
        })
        .await;
    }

    /// Runs a case, and gives what is wrong about how it ended.
    async fn run(&self, case: &Case) -> Option<String> {
        let what = case.object().to_string();
        match (self.attempt(case).await, &case.refused, &case.becomes) {
            (Err(message), Some(refused), _) if message.contains(refused) => None,
            (Err(message), _, _) => Some(format!("{what}: refused otherwise: {message}")),
            (Ok(()), Some(_), _) => {
                let found = self.seen(case.object()).await;
                Some(format!("{what}: was not refused: {}", found["status"]))
            }
            (Ok(()), None, becomes) => {
                let found = self.seen(case.object()).await;
                let wanted = becomes.as_deref().expect("a case says what becomes of it");
                (!is_as(&found, wanted)).then(|| format!("{what}: is not {wanted}: {}", found["status"]))
            }
        }
    }
}

/// Waits until a server of somebody else may list pods, as its role says.
async fn rights_are_given(namespace: &str, server: &str) {
    let binding = format!("portcullis:{namespace}:{server}:pods:list");
    eventually(&format!("{binding} is there"), PATIENCE, async || {
        cluster::object(namespace, "rolebinding", &binding)
    })
    .await;
}

const VICTIM: &str = r"
apiVersion: v1
kind: Secret
metadata: {name: database}
stringData: {password: 'Magpie-of-the-victim-9KdW2rTq8LmZ4xVb', users: 'magpie-user:x', jwks.json: magpie}
---
apiVersion: v1
kind: Secret
metadata: {name: web}
type: kubernetes.io/tls
stringData: {tls.crt: magpie-certificate, tls.key: magpie-private-key}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {name: ops}
spec: {nodeSelector: {e2e: nowhere}}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer}
spec: {permissions: ['k8s:pods:list']}
";

/// Name of a user that may write our objects in a namespace, and nothing else.
fn a_tenant_of(namespace: &str, on_roles: &[&str]) -> String {
    let tenant = format!("tenant-{namespace}");
    let rights = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "tenant"},
                "rules": [{"apiGroups": ["portcullis.dev"], "resources": ["mcpservers", "mcproles", "mcpapikeys"],
                    "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]},
                    {"apiGroups": ["portcullis.dev"], "resources": ["mcproles"], "verbs": if on_roles.is_empty() { &["get"] } else { on_roles }}]},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "tenant"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": tenant}]}]});
    apply(namespace, &rights.to_string());
    tenant
}

/// A server whose pods no node takes: what it may do is decided without them, and the nodes have other work.
fn out_of_the_way(object: &Value) -> Value {
    let mut object = object.clone();
    object["apiVersion"] = json!("portcullis.dev/v1alpha1");
    if object["kind"] == "McpServer" && object["spec"]["nodeSelector"].is_null() {
        object["spec"]["nodeSelector"] = json!({"e2e": "nowhere"});
    }
    object
}

/// A list of objects with the mark of what others have made.
fn foreign(objects: &[Value]) -> String {
    let mut objects = objects.to_vec();
    objects.iter_mut().for_each(|object| object["metadata"]["annotations"][FOREIGN] = json!("yes"));
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// Whether a condition is as `Type=Status/Reason` says; `*` is any.
fn is_as(object: &Value, wanted: &str) -> bool {
    let (type_, rest) = wanted.split_once('=').expect("Type=Status/Reason");
    let (status, reason) = rest.split_once('/').expect("Type=Status/Reason");
    let is = |wanted: &str, found: &str| wanted == "*" || wanted == found;
    condition(object, type_).is_some_and(|found| is(status, &found.0) && is(reason, &found.1))
}

/// Runs every case of a table side by side and compares what the tenant could reach before and after.
async fn matrix(prefix: &str, table: &str, on_roles: &[&str]) {
    let world = World::of(prefix, on_roles).await;
    let table = Table::parse(&world.fill_names(table));
    world.give(&table.given).await;
    rights_are_given(world.namespace.name(), "theirs").await;
    let filled = world.fill(&serde_json::to_string(&table.cases).expect("JSON"));
    let cases: Vec<Case> = serde_json::from_str(&filled).expect("cases");
    let before = Reach::settled(&world).await;
    let mut wrong: Vec<String> =
        join_all(cases.iter().map(|case| world.run(case))).await.into_iter().flatten().collect();
    // What an object does to the others shows at the second look.
    tokio::time::sleep(Duration::from_secs(2)).await;
    wrong.extend(before.compare(&Reach::of(&world).await));
    // Nobody but its author takes away a finalizer that was written by hand, and the namespace has to go.
    for case in cases.iter().filter(|case| case.object()["metadata"]["finalizers"].is_array()) {
        let object = case.object();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        // It may have been refused and not be there.
        let _ = world.api(&world.admin, object).patch(name, &PatchParams::default(), &bare).await;
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

impl World {
    /// As [`World::fill`] before anything is there.
    fn fill_names(&self, text: &str) -> String {
        text.replace("$namespace", self.namespace.name()).replace("$victim", self.victim.name())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_a_server_gives_a_tenant_more_than_it_has() {
    // Without the verb bind it may not even name proofs of callers.
    matrix("deputy-servers", include_str!("deputy/servers.yaml"), &["bind"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_a_role_gives_a_tenant_more_than_it_has() {
    matrix("deputy-roles", include_str!("deputy/roles.yaml"), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_a_key_gives_a_tenant_more_than_it_has() {
    matrix("deputy-keys", include_str!("deputy/keys.yaml"), &[]).await;
}
