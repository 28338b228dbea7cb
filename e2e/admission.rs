//! The admission policies on a real API server: as the operator, as authors of roles and keys, and as a stranger.
//! Attempts are dry runs that leave nothing behind; a refusal must come from the tested policy, never from RBAC.

mod servers;

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::cluster::{self, Namespace, OPERATOR_NAMESPACE};

const OPERATOR: &str = "system:serviceaccount:portcullis-system:portcullis-operator";

/// A client that acts as somebody else.
async fn acting_as(user: &str) -> Client {
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
fn refused(what: &str, policy: &str, result: Result<(), String>) {
    let message = result.expect_err(&format!("{what} must be refused"));
    assert!(message.contains(&format!("ValidatingAdmissionPolicy '{policy}'")), "{what}: {message}");
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

#[tokio::test]
async fn the_operator_binds_the_baseline_and_the_catalogue_to_its_servers_and_nothing_else() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-bindings").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let policy = "portcullis-operator-bindings";
    let server = json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": ns}]);
    let named = |what: &str| format!("portcullis:{ns}:ops:{what}");
    let pods = role_binding(ns, &named("pods:list"), "portcullis:catalogue:pods:list", server.clone());

    soon_allowed("a role of the catalogue", &operator, &pods).await;
    let baseline = role_binding(ns, &named("baseline"), "portcullis:server", server.clone());
    allowed("the baseline", create(&operator, &baseline).await);
    let cluster = cluster_role_binding(&named("baseline"), "portcullis:server-cluster", server.clone());
    allowed("the baseline on the cluster", create(&operator, &cluster).await);
    let everywhere =
        cluster_role_binding(&named("pods:list"), "portcullis:catalogue:pods:list", server.clone());
    allowed("a role of the catalogue everywhere", create(&operator, &everywhere).await);

    for (what, binding) in [
        ("a name without the scheme", with(&pods, "/metadata/name", json!("pods"))),
        ("a name for another role", with(&pods, "/metadata/name", json!(named("pods:delete")))),
        ("the operator's own role", with(&pods, "/roleRef/name", json!("portcullis:operator"))),
        ("its role of namespaces", with(&pods, "/roleRef/name", json!("portcullis:operator-namespace"))),
        ("another account", with(&pods, "/subjects/0/name", json!("default"))),
        ("another namespace", with(&pods, "/subjects/0/namespace", json!("kube-system"))),
        ("a user", with(&pods, "/subjects/0", json!({"kind": "User", "name": "ops-mcp"}))),
        ("two subjects", with(&pods, "/subjects", json!([server[0], {"kind": "User", "name": "mallory"}]))),
        ("no subject", with(&pods, "/subjects", json!([]))),
        ("no label", with(&pods, "/metadata/labels", json!({}))),
        ("the baseline elsewhere", with(&baseline, "/metadata/namespace", json!("kube-system"))),
        (
            "the baseline of a namespace everywhere",
            with(&cluster, "/roleRef/name", json!("portcullis:server")),
        ),
        ("its own binding everywhere", with(&cluster, "/metadata/name", json!("portcullis:operator"))),
    ] {
        refused(what, policy, create(&operator, &binding).await);
    }
    let foreign = role_binding(ns, "foreign", "view", json!([{"kind": "User", "name": "alice"}]));
    given(&admin, &foreign).await;
    refused("the binding of somebody else", policy, delete(&operator, &foreign).await);
    let chart = cluster_role_binding("portcullis:operator", "", json!([]));
    refused("the chart's own binding", policy, delete(&operator, &chart).await);
}

#[tokio::test]
async fn the_operator_lets_itself_into_labelled_namespaces_only() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-label").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let policy = "portcullis-operator-bindings";
    let itself =
        json!([{"kind": "ServiceAccount", "name": "portcullis-operator", "namespace": OPERATOR_NAMESPACE}]);
    let binding = role_binding(ns, "portcullis:operator", "portcullis:operator-namespace", itself);
    let server = json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": ns}]);
    let baseline =
        role_binding(ns, &format!("portcullis:{ns}:ops:baseline"), "portcullis:server", server.clone());

    refused("a namespace without the label", policy, create(&operator, &binding).await);
    refused("a server's baseline there", policy, create(&operator, &baseline).await);
    namespace.label("portcullis.dev/servers=no");
    refused("a label with another value", policy, create(&operator, &binding).await);
    for value in ["local", "cluster"] {
        namespace.label(&format!("portcullis.dev/servers={value}"));
        soon_allowed("a labelled namespace", &operator, &binding).await;
    }
    allowed("a server's baseline there", create(&operator, &baseline).await);
    refused("a server in its place", policy, create(&operator, &with(&binding, "/subjects", server)).await);
    let other = with(&binding, "/roleRef/name", json!("portcullis:catalogue:pods:delete"));
    refused("another role under its name", policy, create(&operator, &other).await);

    given(&admin, &binding).await;
    namespace.label("portcullis.dev/servers-");
    // The operator of the cluster may have left by itself meanwhile, which shows the same.
    let left = delete(&operator, &binding).await;
    if !left.as_ref().is_err_and(|message| message.ends_with("not found")) {
        allowed("leaving a namespace that lost its label", left);
    }
}

#[tokio::test]
async fn the_operator_writes_secrets_of_its_own_types_and_names_only() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-secrets").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let policy = "portcullis-operator-secrets";
    let secret = |namespace: &str, name: &str, type_: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": type_,
            "metadata": {"name": name, "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "portcullis"},
                "annotations": {"kubernetes.io/service-account.name": "default"}},
            "stringData": {"tls.crt": "", "tls.key": ""},
        })
    };
    for (name, type_) in [
        ("ci-bot-mcp-key", "portcullis.dev/api-key"),
        ("ops-mcp-internal", "portcullis.dev/internal-tls"),
        ("ops-mcp-tls", "kubernetes.io/tls"),
    ] {
        soon_allowed(name, &operator, &secret(ns, name, type_)).await;
    }
    for (name, type_) in [
        ("ops-mcp-tls", "kubernetes.io/service-account-token"),
        ("ops-mcp-key", "Opaque"),
        ("ops-mcp-key", "kubernetes.io/tls"),
        ("database", "portcullis.dev/api-key"),
        ("portcullis-ca", "Opaque"),
    ] {
        refused(
            &format!("{name} of type {type_}"),
            policy,
            create(&operator, &secret(ns, name, type_)).await,
        );
    }
    let in_its_own = secret(OPERATOR_NAMESPACE, "anything", "Opaque");
    refused("any Secret beside its CA", policy, create(&operator, &in_its_own).await);
    let database = secret(ns, "database", "Opaque");
    given(&admin, &database).await;
    refused("changing another Secret", policy, replace(&operator, &database).await);
    refused("deleting another Secret", policy, delete(&operator, &database).await);

    let taken = secret(ns, "ops-mcp-tls", "kubernetes.io/tls");
    given(&admin, &taken).await;
    refused("a name that somebody else had first", policy, replace(&operator, &taken).await);
    refused("deleting it", policy, delete(&operator, &taken).await);
    let owned = with(
        &secret(ns, "bot-mcp-key", "portcullis.dev/api-key"),
        "/metadata/ownerReferences",
        owner(&admin, ns).await,
    );
    given(&admin, &owned).await;
    allowed("changing its own Secret", replace(&operator, &owned).await);
    allowed("deleting its own Secret", delete(&operator, &owned).await);
}

/// What a child of a server carries. The server is there, or garbage collection would take the child away.
async fn owner(admin: &Client, namespace: &str) -> Value {
    let server = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "spec": {},
        "metadata": {"name": "owner", "namespace": namespace}});
    given(admin, &server).await;
    let uid = api(admin, &server).get("owner").await.expect("it was made").metadata.uid;
    json!([{"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "name": "owner", "uid": uid}])
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

#[tokio::test]
async fn the_operator_runs_its_own_image_as_the_account_of_the_server_and_without_privileges() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-pods").await;
    let operator = acting_as(OPERATOR).await;
    let policy = "portcullis-operator-deployments";
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
    for (what, pointer, value) in [
        ("another account", "serviceAccountName", json!("default")),
        ("another image", "containers/0/image", json!("example.com/miner:1")),
        (
            "an image with a similar name",
            "containers/0/image",
            json!(format!("{image}-x").replace(':', "-evil:")),
        ),
        ("another command", "containers/0/command", json!(["/bin/sh"])),
        ("another half of the binary", "containers/0/args", json!(["operator"])),
        ("privileges", "containers/0/securityContext", json!({"privileged": true})),
        ("a folder of the node", "volumes", json!([{"name": "root", "hostPath": {"path": "/"}}])),
        ("the network of the node", "hostNetwork", json!(true)),
        ("the processes of the node", "hostPID", json!(true)),
        ("an init container", "initContainers", json!([{"name": "i", "image": image}])),
        ("more arguments", "containers/0/args", json!(["serve", "--help"])),
        ("a second container", "containers", json!([container, with(&container, "/name", json!("second"))])),
        ("a variable of the loader", "containers/0/env", json!([{"name": "LD_PRELOAD", "value": "/a.so"}])),
        (
            "a variable from a Secret",
            "containers/0/env",
            json!([{"name": "POD_IP", "valueFrom":
            {"secretKeyRef": {"name": "database", "key": "password"}}}]),
        ),
        ("a Secret as variables", "containers/0/envFrom", json!([{"secretRef": {"name": "database"}}])),
        ("a hook", "containers/0/lifecycle", json!({"preStop": {"exec": {"command": ["/bin/sh"]}}})),
        (
            "a probe that runs a command",
            "containers/0/livenessProbe",
            json!({"exec": {"command": ["/bin/sh"]}}),
        ),
        (
            "a capability",
            "containers/0/securityContext",
            json!({"allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_RAW"]}}),
        ),
        (
            "another address of a name",
            "hostAliases",
            json!([{"ip": "192.0.2.1", "hostnames": ["kubernetes"]}]),
        ),
        ("a ConfigMap", "volumes", json!([{"name": "a", "configMap": {"name": "web"}}])),
        ("a claim", "volumes", json!([{"name": "a", "persistentVolumeClaim": {"claimName": "web"}}])),
        ("a projected Secret", "volumes", projected(json!({"secret": {"name": "database"}}))),
        ("a projected ConfigMap", "volumes", projected(json!({"configMap": {"name": "web"}}))),
    ] {
        refused(
            what,
            policy,
            create(&operator, &with(&deployment, &format!("{pod}/{pointer}"), value)).await,
        );
    }
}

#[tokio::test]
async fn the_operator_writes_children_under_names_of_its_own_only() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-children").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let policy = "portcullis-operator-children";
    let child = |api: &str, kind: &str, spec: Value| {
        json!({"apiVersion": api, "kind": kind, "spec": spec, "metadata": {"name": "ops-mcp", "namespace": ns,
            "labels": {"app.kubernetes.io/managed-by": "portcullis"}}})
    };
    let service = child("v1", "Service", json!({"ports": [{"port": 443}]}));
    let mut account = child("v1", "ServiceAccount", json!({}));
    account.as_object_mut().expect("an object").remove("spec");
    let children = [
        service.clone(),
        account,
        child("networking.k8s.io/v1", "NetworkPolicy", json!({"podSelector": {}})),
        child("policy/v1", "PodDisruptionBudget", json!({"maxUnavailable": 1, "selector": {}})),
    ];
    for child in &children {
        soon_allowed("a child of a server", &operator, child).await;
        refused(
            "another name",
            policy,
            create(&operator, &with(child, "/metadata/name", json!("web"))).await,
        );
        refused("no label", policy, create(&operator, &with(child, "/metadata/labels", json!({}))).await);
    }
    let taken = &children[1];
    given(&admin, taken).await;
    refused("a name that somebody else had first", policy, replace(&operator, taken).await);
    refused("deleting it", policy, delete(&operator, taken).await);
    let policy = "portcullis-operator-services";
    let stolen = with(&service, "/spec/externalIPs", json!(["192.0.2.1"]));
    refused("an address of others", policy, create(&operator, &stolen).await);
    let elsewhere = with(&service, "/spec", json!({"type": "ExternalName", "externalName": "example.com"}));
    refused("a name of others", policy, create(&operator, &elsewhere).await);
}

fn portcullis(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace}})
}

#[tokio::test]
async fn status_is_written_by_the_operator_alone_and_the_operator_writes_no_spec() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-status").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let server = portcullis("McpServer", ns, "ops", json!({"replicas": 1}));
    let role = portcullis("McpRole", ns, "viewer", json!({"permissions": ["k8s:pods:list"]}));
    let key = portcullis("McpApiKey", ns, "bot", json!({"identity": "bot", "servers": ["ops"]}));
    let status = json!({"status": {"observedGeneration": 7}});
    for object in [&server, &role, &key] {
        given(&admin, object).await;
        allowed("the operator's status", change_status(&operator, object, status.clone()).await);
        refused(
            "status by an administrator",
            "portcullis-status",
            change_status(&admin, object, status.clone()).await,
        );
    }
    let finalizer = json!({"metadata": {"finalizers": ["portcullis.dev/cleanup"]}});
    allowed("the operator's finalizer", change(&operator, &server, finalizer).await);
    let spec = change(&operator, &server, json!({"spec": {"replicas": 20}})).await;
    refused("a spec by the operator", "portcullis-operator-objects", spec);
}

#[tokio::test]
async fn who_writes_a_role_must_hold_what_it_names() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "authors").await;
    let ns = namespace.name();
    let role = |permissions: Value| portcullis("McpRole", ns, "role", json!({"permissions": permissions}));
    grant(&admin, ns, "writer", "portcullis:edit").await;
    let writer = acting_as("writer").await;
    let policy = "portcullis-role-author";

    soon_allowed("what the baseline covers", &writer, &role(json!(["k8s:namespaces:list"]))).await;
    for permission in [
        "k8s:*",
        "k8s:*:*",
        "k8s:pods:list",
        "k8s:pods:*",
        "k8s:*:list",
        "k8s:deployments.apps:scale",
        "k8s:pods.:list",
    ] {
        refused(permission, policy, create(&writer, &role(json!([permission]))).await);
    }
    grant(&admin, ns, "writer", "portcullis:catalogue:pods:list").await;
    soon_allowed("what the author holds", &writer, &role(json!(["k8s:pods:list"]))).await;
    let more = create(&writer, &role(json!(["k8s:pods:list", "k8s:pods:logs"]))).await;
    let message = more.as_ref().err().cloned().unwrap_or_default();
    assert!(message.contains("you do not hold pods/log:get"), "{message}");
    refused("one permission more", policy, more);

    grant(&admin, ns, "boss", "admin").await;
    // Whoever adds a CRD to the catalogue also says who administers its objects.
    for added in ["widgets.e2e.portcullis.dev", "fleets.e2e.portcullis.dev"] {
        for verb in ["get", "list"] {
            grant(&admin, ns, "boss", &format!("portcullis:catalogue:{added}:{verb}")).await;
        }
    }
    let boss = acting_as("boss").await;
    soon_allowed("everything by an administrator of the namespace", &boss, &role(json!(["k8s:*"]))).await;
    let mut long = vec!["k8s:deployments.apps:restart".to_owned(); 127];
    long.push("k8s:*".to_owned());
    allowed("the longest list within the budget", create(&boss, &role(json!(long))).await);
    let wide = json!({"permissions": ["k8s:pods:list"], "servers": [{"namespace": ns, "name": "ops"}]});
    let mut wide = portcullis("ClusterMcpRole", "", "e2e-authors", wide);
    wide["metadata"].as_object_mut().expect("metadata").remove("namespace");
    allowed("a role of the cluster by its administrator", create(&admin, &wide).await);

    let strong = role(json!(["k8s:*"]));
    given(&admin, &strong).await;
    let labels = json!({"metadata": {"labels": {"team": "a"}}});
    allowed("touching what others wrote", change(&writer, &strong, labels).await);
    let servers = change(&writer, &strong, json!({"spec": {"servers": ["ops"]}})).await;
    refused("aiming what others wrote", policy, servers);
}

#[tokio::test]
async fn a_role_of_the_cluster_asks_for_its_rights_in_every_namespace() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "cluster-authors").await;
    let ns = namespace.name();
    let user = format!("{ns}-author");
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    let rules =
        json!([{"apiGroups": ["portcullis.dev"], "resources": ["clustermcproles"], "verbs": ["create"]}]);
    // What has no namespace goes away with the test's.
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(admin.clone());
    let uid = namespaces.get(ns).await.expect("it was made").metadata.uid;
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": ns, "uid": uid}]);
    let writing = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": rules,
        "metadata": {"name": user, "ownerReferences": owner}});
    given(&admin, &writing).await;
    let binding = cluster_role_binding(&user, &user, subjects);
    given(&admin, &with(&binding, "/metadata/ownerReferences", owner)).await;
    grant(&admin, ns, &user, "admin").await;
    let spec = json!({"permissions": ["k8s:pods:list"], "namespaces": [ns],
        "servers": [{"namespace": ns, "name": "ops"}]});
    let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "spec": spec,
        "metadata": {"name": user}});
    let author = acting_as(&user).await;
    let message = cluster::eventually("the author may write roles", Duration::from_secs(10), async || {
        create(&author, &role).await.err().filter(|message| !message.contains("cannot create resource"))
    })
    .await;
    refused("an administrator of one namespace", "portcullis-cluster-role-author", Err(message));
}

#[tokio::test]
async fn who_binds_a_role_to_a_key_needs_the_verb_bind_on_it() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "key-authors").await;
    let ns = namespace.name();
    let roles = |kind: &str, count: usize| -> Value {
        (0..count).map(|index| json!({"kind": kind, "name": format!("role-{index}")})).collect()
    };
    let key = |roles: Value| {
        portcullis("McpApiKey", ns, "bot", json!({"identity": "bot", "servers": ["ops"], "roles": roles}))
    };
    grant(&admin, ns, "writer", "portcullis:edit").await;
    let names: Vec<String> = (0..63).map(|index| format!("role-{index}")).collect();
    given(&admin, &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "bind", "namespace": ns},
        "rules": [{"apiGroups": ["portcullis.dev"], "resources": ["mcproles"], "verbs": ["bind"], "resourceNames": names}]}))
    .await;
    let writer = acting_as("writer").await;
    soon_allowed("a key without roles", &writer, &key(json!([]))).await;
    refused("one role", "portcullis-key-author", create(&writer, &key(roles("McpRole", 1))).await);
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "writer"}]);
    let binding = with(&role_binding(ns, "bind", "bind", subjects), "/roleRef/kind", json!("Role"));
    given(&admin, &binding).await;
    soon_allowed("one role that may be bound", &writer, &key(roles("McpRole", 1))).await;
    allowed("as many as may be bound", create(&writer, &key(roles("McpRole", 63))).await);
    let one_more = create(&writer, &key(roles("McpRole", 64))).await;
    assert!(one_more.as_ref().is_err_and(|message| message.contains("McpRole role-63")), "{one_more:?}");
    refused("one more, in the last place", "portcullis-key-author-3", one_more);
    let same_name = create(&writer, &key(roles("ClusterMcpRole", 1))).await;
    refused("a role of the cluster with the same name", "portcullis-key-author", same_name);

    grant(&admin, ns, "boss", "admin").await;
    // Whoever adds a CRD to the catalogue also says who administers its objects.
    for added in ["widgets.e2e.portcullis.dev", "fleets.e2e.portcullis.dev"] {
        for verb in ["get", "list"] {
            grant(&admin, ns, "boss", &format!("portcullis:catalogue:{added}:{verb}")).await;
        }
    }
    let boss = acting_as("boss").await;
    allowed(
        "every role by an administrator of the namespace",
        create(&boss, &key(roles("McpRole", 64))).await,
    );
    refused(
        "roles of the cluster",
        "portcullis-key-author",
        create(&boss, &key(roles("ClusterMcpRole", 1))).await,
    );

    let foreign = key(roles("ClusterMcpRole", 1));
    given(&admin, &foreign).await;
    let enabled = |enabled: bool| json!({"spec": {"enabled": enabled}});
    allowed("stopping a key", change(&writer, &foreign, enabled(false)).await);
    let identity = json!({"spec": {"identity": "mallory"}});
    refused(
        "using a key for something else",
        "portcullis-key-author",
        change(&writer, &foreign, identity).await,
    );
    api(&admin, &foreign)
        .patch("bot", &PatchParams::default(), &Patch::Merge(enabled(false)))
        .await
        .expect("an administrator may");
    let starting = change(&writer, &foreign, enabled(true)).await;
    refused("starting a key again", "portcullis-key-author", starting);
}
