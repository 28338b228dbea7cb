//! The admission policies that fence the operator: each of its own writes, and others that its token could be used for.

use std::time::Duration;

use kube::Client;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::rules::*;
use super::{
    OPERATOR, acting_as, allowed, api, change, change_status, cluster_role_binding, create, delete, given,
    portcullis, refused, replace, role_binding, served_namespace, soon_allowed, with,
};
use crate::cluster::{self, OPERATOR_NAMESPACE};

#[tokio::test]
async fn the_operator_binds_the_baseline_and_the_catalogue_to_its_servers_and_nothing_else() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-bindings").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let server = json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": ns}]);
    let named = |what: &str| format!("portcullis:{ns}:ops:{what}");
    let pods = role_binding(ns, &named("pods:list"), "portcullis:catalogue:pods:list", server.clone());

    soon_allowed("a role of the catalogue", &operator, &pods).await;
    let baseline = role_binding(ns, &named("baseline"), "portcullis:server", server.clone());
    allowed("the baseline", create(&operator, &baseline).await);
    let cluster = cluster_role_binding(&named("baseline"), "portcullis:server-cluster", server.clone());
    allowed("the baseline on the cluster", create(&operator, &cluster).await);

    for (what, rule, binding) in [
        ("a name without the scheme", BINDING_NAME, with(&pods, "/metadata/name", json!("pods"))),
        ("a name for another role", BINDING_ROLE, with(&pods, "/metadata/name", json!(named("pods:delete")))),
        ("the operator's own role", BINDING_ROLE, with(&pods, "/roleRef/name", json!("portcullis:operator"))),
        (
            "its role of namespaces",
            BINDING_ROLE,
            with(&pods, "/roleRef/name", json!("portcullis:operator-namespace")),
        ),
        ("its role of reach", BINDING_ROLE, with(&pods, "/roleRef/name", json!("portcullis:operator-reach"))),
        ("another account", BINDING_SUBJECT, with(&pods, "/subjects/0/name", json!("default"))),
        ("another namespace", BINDING_SUBJECT, with(&pods, "/subjects/0/namespace", json!("kube-system"))),
        ("a user", BINDING_SUBJECT, with(&pods, "/subjects/0", json!({"kind": "User", "name": "ops-mcp"}))),
        (
            "two subjects",
            BINDING_SUBJECT,
            with(&pods, "/subjects", json!([server[0], {"kind": "User", "name": "mallory"}])),
        ),
        ("no subject", BINDING_SUBJECT, with(&pods, "/subjects", json!([]))),
        ("no label", BINDING_LABEL, with(&pods, "/metadata/labels", json!({}))),
        (
            "the baseline elsewhere",
            BINDING_ROLE,
            with(&baseline, "/metadata/namespace", json!("kube-system")),
        ),
        (
            "the baseline of a namespace everywhere",
            BINDING_ROLE,
            with(&cluster, "/roleRef/name", json!("portcullis:server")),
        ),
        (
            "its own binding everywhere",
            BINDING_NAME,
            with(&cluster, "/metadata/name", json!("portcullis:operator")),
        ),
        (
            "its reach everywhere",
            BINDING_NAME,
            with(&cluster, "/metadata/name", json!("portcullis:operator-reach")),
        ),
    ] {
        refused(what, rule, create(&operator, &binding).await);
    }
    let stranger = json!([{"kind": "ServiceAccount", "name": "evil-mcp", "namespace": "default"}]);
    let evil = "portcullis:default:evil:deployments:restart";
    let role = "portcullis:catalogue:deployments:restart";
    for (what, binding) in [
        (
            "an account of a namespace without servers",
            role_binding("kube-system", evil, role, stranger.clone()),
        ),
        ("such an account in a namespace with servers", role_binding(ns, evil, role, stranger.clone())),
        ("such an account everywhere", cluster_role_binding(evil, role, stranger)),
    ] {
        refused(what, BINDING_SERVER, create(&operator, &binding).await);
    }
    let foreign = role_binding(ns, "foreign", "view", json!([{"kind": "User", "name": "alice"}]));
    given(&admin, &foreign).await;
    refused("the binding of somebody else", BINDING_NAME, delete(&operator, &foreign).await);
    let chart = cluster_role_binding("portcullis:operator", "", json!([]));
    refused("the chart's own binding", BINDING_NAME, delete(&operator, &chart).await);
}

#[tokio::test]
async fn the_operator_gives_servers_of_cluster_namespaces_alone_rights_outside() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-outside").await;
    let elsewhere = cluster::temp_namespace(&admin, "fence-elsewhere").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let server = json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": ns}]);
    let (name, role) = (format!("portcullis:{ns}:ops:pods:list"), "portcullis:catalogue:pods:list");
    let here = role_binding(ns, &name, role, server.clone());
    let outside = [
        role_binding(elsewhere.name(), &name, role, server.clone()),
        role_binding("kube-system", &name, role, server.clone()),
        cluster_role_binding(&name, role, server),
    ];
    soon_allowed("a right inside", &operator, &here).await;
    for binding in &outside {
        refused("a right outside", BINDING_OUTSIDE, create(&operator, binding).await);
    }
    // The label alone opens nothing: the operator of the cluster binds its reach where there are servers.
    namespace.label("portcullis.dev/servers=cluster");
    for binding in &outside {
        refused("a right outside without reach", BINDING_OUTSIDE, create(&operator, binding).await);
    }
    let itself =
        json!([{"kind": "ServiceAccount", "name": "portcullis-operator", "namespace": OPERATOR_NAMESPACE}]);
    let reach = role_binding(ns, "given-reach", "portcullis:operator-reach", itself.clone());
    given(&admin, &reach).await;
    for binding in &outside {
        soon_allowed("a right outside with reach", &operator, binding).await;
    }
    // What it may do for this namespace it may not do for servers of another.
    let other = served_namespace(&admin, "fence-other").await;
    let stranger = json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": other.name()}]);
    let name = format!("portcullis:{}:ops:pods:list", other.name());
    soon_allowed("a right inside", &operator, &role_binding(other.name(), &name, role, stranger.clone()))
        .await;
    let into = role_binding(ns, &name, role, stranger);
    refused(
        "a right of a local server inside a cluster namespace",
        BINDING_OUTSIDE,
        create(&operator, &into).await,
    );

    api(&admin, &reach).delete("given-reach", &DeleteParams::default()).await.expect("it was given");
    cluster::eventually("without reach it is refused again", Duration::from_secs(10), async || {
        create(&operator, &outside[0]).await.err()
    })
    .await;
    given(&admin, &outside[0]).await;
    allowed("taking a right away", delete(&operator, &outside[0]).await);
}

#[tokio::test]
async fn the_operator_lets_itself_into_labelled_namespaces_only() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-label").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
    let itself =
        json!([{"kind": "ServiceAccount", "name": "portcullis-operator", "namespace": OPERATOR_NAMESPACE}]);
    let binding = role_binding(ns, "portcullis:operator", "portcullis:operator-namespace", itself.clone());
    let server = json!([{"kind": "ServiceAccount", "name": "ops-mcp", "namespace": ns}]);
    let baseline =
        role_binding(ns, &format!("portcullis:{ns}:ops:baseline"), "portcullis:server", server.clone());

    refused("a namespace without the label", BINDING_NAMESPACE, create(&operator, &binding).await);
    let reach = role_binding(ns, "portcullis:operator-reach", "portcullis:operator-reach", itself.clone());
    refused("reach in a namespace without the label", BINDING_NAMESPACE, create(&operator, &reach).await);
    refused("a server's baseline there", BINDING_NAMESPACE, create(&operator, &baseline).await);
    namespace.label("portcullis.dev/servers=no");
    refused("a label with another value", BINDING_NAMESPACE, create(&operator, &binding).await);
    for value in ["local", "cluster"] {
        namespace.label(&format!("portcullis.dev/servers={value}"));
        soon_allowed("a labelled namespace", &operator, &binding).await;
        if value == "local" {
            refused("reach of local servers", BINDING_CLUSTER, create(&operator, &reach).await);
        }
    }
    soon_allowed("reach", &operator, &reach).await;
    for (own, other) in [(&binding, "portcullis:operator-reach"), (&reach, "portcullis:operator-namespace")] {
        let exchanged = with(own, "/roleRef/name", json!(other));
        refused("a role of its own under another name", BINDING_ROLE, create(&operator, &exchanged).await);
    }
    refused("a server where it does not work yet", BINDING_SERVER, create(&operator, &baseline).await);
    refused(
        "a server in its place",
        BINDING_SUBJECT,
        create(&operator, &with(&binding, "/subjects", server)).await,
    );
    let other = with(&binding, "/roleRef/name", json!("portcullis:catalogue:pods:delete"));
    refused("another role under its name", BINDING_ROLE, create(&operator, &other).await);

    // Under another name, since the operator of the cluster leaves a namespace without objects.
    given(&admin, &role_binding(ns, "given", "portcullis:operator-namespace", itself)).await;
    given(&admin, &binding).await;
    soon_allowed("a server's baseline where it works", &operator, &baseline).await;
    namespace.label("portcullis.dev/servers-");
    // The operator of the cluster may have left by itself meanwhile, which shows the same.
    let left = delete(&operator, &binding).await;
    if !left.as_ref().is_err_and(|message| message.ends_with("not found")) {
        allowed("leaving a namespace that lost its label", left);
    }
    given(&admin, &with(&reach, "/metadata/labels", json!({}))).await;
    allowed("giving up its reach there", delete(&operator, &reach).await);
}

#[tokio::test]
async fn the_operator_writes_secrets_of_its_own_types_and_names_only() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-secrets").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
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
            SECRET_TYPE,
            create(&operator, &secret(ns, name, type_)).await,
        );
    }
    for (name, type_) in [
        ("ops-mcp-signing", "portcullis.dev/signing-keys"),
        ("ops-mcp-imported", "portcullis.dev/imported-keys"),
    ] {
        refused(name, SECRET_SERVER, create(&operator, &secret(ns, name, type_)).await);
    }
    let in_its_own = secret(OPERATOR_NAMESPACE, "anything", "Opaque");
    refused("any Secret beside its CA", SECRET_TYPE, create(&operator, &in_its_own).await);
    let database = secret(ns, "database", "Opaque");
    given(&admin, &database).await;
    refused("changing another Secret", SECRET_TYPE, replace(&operator, &database).await);
    refused("deleting another Secret", SECRET_TYPE, delete(&operator, &database).await);

    let taken = secret(ns, "ops-mcp-tls", "kubernetes.io/tls");
    given(&admin, &taken).await;
    refused("a name that somebody else had first", SECRET_OWNER, replace(&operator, &taken).await);
    refused("deleting it", SECRET_OWNER, delete(&operator, &taken).await);
    let owner = owner(&admin, ns).await;
    let owned = |name, type_| with(&secret(ns, name, type_), "/metadata/ownerReferences", owner.clone());
    let signing = "portcullis.dev/signing-keys";
    allowed("the signing keys of a server", create(&operator, &owned("owner-mcp-signing", signing)).await);
    let others = create(&operator, &owned("ops-mcp-signing", signing)).await;
    refused("signing keys of a server in the name of another", SECRET_SERVER, others);
    let owned = owned("bot-mcp-key", "portcullis.dev/api-key");
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

#[tokio::test]
async fn the_operator_writes_children_under_names_of_its_own_only() {
    let admin = cluster::client().await;
    let namespace = served_namespace(&admin, "fence-children").await;
    let (ns, operator) = (namespace.name(), acting_as(OPERATOR).await);
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
            CHILD_NAME,
            create(&operator, &with(child, "/metadata/name", json!("web"))).await,
        );
        refused(
            "no label",
            CHILD_LABEL,
            create(&operator, &with(child, "/metadata/labels", json!({}))).await,
        );
    }
    for field in ["secrets", "imagePullSecrets"] {
        let account = with(&children[1], &format!("/{field}"), json!([{"name": "database"}]));
        refused(field, ACCOUNT, create(&operator, &account).await);
    }
    let taken = &children[1];
    given(&admin, taken).await;
    refused("a name that somebody else had first", CHILD_OWNER, replace(&operator, taken).await);
    refused("deleting it", CHILD_OWNER, delete(&operator, taken).await);
    let stolen = with(&service, "/spec/externalIPs", json!(["192.0.2.1"]));
    refused("an address of others", SERVICE, create(&operator, &stolen).await);
    let elsewhere = with(&service, "/spec", json!({"type": "ExternalName", "externalName": "example.com"}));
    refused("a name of others", SERVICE, create(&operator, &elsewhere).await);
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
        refused("status by an administrator", STATUS, change_status(&admin, object, status.clone()).await);
    }
    let finalizer = json!({"metadata": {"finalizers": ["portcullis.dev/cleanup"]}});
    allowed("the operator's finalizer", change(&operator, &server, finalizer).await);
    let spec = change(&operator, &server, json!({"spec": {"replicas": 20}})).await;
    refused("a spec by the operator", SPEC, spec);
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "gone"}]);
    for (what, metadata) in [
        ("an owner that is gone", json!({"ownerReferences": owner})),
        ("a wish to revoke", json!({"annotations": {"portcullis.dev/revoke": "now"}})),
        ("a label", json!({"labels": {"team": "a"}})),
    ] {
        refused(what, SPEC, change(&operator, &server, json!({"metadata": metadata})).await);
    }
}
