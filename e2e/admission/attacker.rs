//! Somebody who stole the operator's token and tries everything to have more of it, with real writes. What each
//! account may do is compared before and after.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::{
    api, cluster_role_binding, given, name, outcome, portcullis, role_binding, server_deployment, with,
};
use crate::cluster::{self, Namespace, OPERATOR_NAMESPACE};
use crate::rights::allowed;
use crate::server::wait_ready;

/// What is done with the object of an attack.
#[derive(Clone)]
enum Act {
    Create,
    Replace,
    Merge(Value),
    Delete,
    /// POST to a part of the object.
    Part(&'static str),
}

#[derive(Clone)]
struct Attack {
    what: &'static str,
    act: Act,
    object: Value,
}

/// A client with a token of the operator's own ServiceAccount, as its pod has one.
async fn thief(admin: &Client) -> Client {
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), OPERATOR_NAMESPACE);
    let request = TokenRequest::default();
    let token = accounts.create_token_request("portcullis-operator", &PostParams::default(), &request).await;
    let token = token.expect("an administrator may").status.expect("a token").token;
    let mut config = Config::infer().await.expect("KUBECONFIG names a cluster");
    config.auth_info = serde_json::from_value(json!({"token": token})).expect("credentials");
    Client::try_from(config).expect("the configuration is valid")
}

async fn attempt(thief: &Client, attack: &Attack) -> Result<(), String> {
    let Attack { act, object, .. } = attack;
    let target = api(thief, object);
    let typed = serde_json::from_value(object.clone()).expect("an object");
    match act {
        Act::Create => outcome(target.create(&PostParams::default(), &typed).await),
        Act::Replace => outcome(target.replace(name(object), &PostParams::default(), &typed).await),
        Act::Merge(patch) => {
            outcome(target.patch(name(object), &PatchParams::default(), &Patch::Merge(patch)).await)
        }
        Act::Delete => outcome(target.delete(name(object), &DeleteParams::default()).await),
        Act::Part(part) => {
            let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
            let created: Result<Value, _> =
                target.create_subresource(part, name(object), &PostParams::default(), &body).await;
            outcome(created)
        }
    }
}

fn subject(namespace: &str, account: &str) -> Value {
    json!([{"kind": "ServiceAccount", "name": account, "namespace": namespace}])
}

fn core(kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "portcullis"}}});
    object.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
    object
}

/// Bindings, for itself and for accomplices.
fn bindings(home: &str, plain: &str) -> Vec<Attack> {
    let itself = subject(OPERATOR_NAMESPACE, "portcullis-operator");
    let mallory = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}]);
    let accomplice = subject(plain, "evil-mcp");
    let restart = "portcullis:catalogue:deployments:restart";
    let own = "portcullis:operator";
    let inside = "portcullis:operator-namespace";
    let elsewhere = format!("portcullis:{plain}:evil:deployments:restart");
    let here = format!("portcullis:{home}:ops:deployments:restart");
    let baseline =
        role_binding(home, &format!("portcullis:{home}:ops:baseline"), "portcullis:server", mallory.clone());
    let create = |what, object| Attack { what, act: Act::Create, object };
    vec![
        create("its own role to a user", cluster_role_binding("portcullis:evil", own, mallory.clone())),
        create("its own role in the scheme", cluster_role_binding(&here, own, mallory.clone())),
        create("its own role in a namespace", role_binding("kube-system", own, own, itself.clone())),
        create("administration", cluster_role_binding(own, "cluster-admin", itself.clone())),
        create("administration in the scheme", cluster_role_binding(&here, "cluster-admin", itself.clone())),
        create("its rights of namespaces everywhere", cluster_role_binding(inside, inside, itself.clone())),
        create("entering a namespace without the label", role_binding(plain, own, inside, itself.clone())),
        create("entering the cluster's namespace", role_binding("kube-system", own, inside, itself.clone())),
        create("entering its own namespace", role_binding(OPERATOR_NAMESPACE, own, inside, itself.clone())),
        create("letting a user into a namespace", role_binding(home, own, inside, mallory.clone())),
        create("a name off the scheme", role_binding(home, "evil", restart, itself.clone())),
        create("the catalogue for itself", role_binding(home, &here, restart, itself.clone())),
        create("the catalogue for itself everywhere", cluster_role_binding(&here, restart, itself)),
        create("the catalogue for a user", role_binding("kube-system", &here, restart, mallory.clone())),
        create(
            "the catalogue for another account",
            role_binding(home, &here, restart, subject(home, "default")),
        ),
        create(
            "the catalogue for an accomplice",
            role_binding("kube-system", &elsewhere, restart, accomplice.clone()),
        ),
        create(
            "the catalogue for it everywhere",
            cluster_role_binding(&elsewhere, restart, accomplice.clone()),
        ),
        create("the catalogue for it at home", role_binding(plain, &elsewhere, restart, accomplice)),
        Attack { what: "a server's binding for a user", act: Act::Replace, object: baseline },
        Attack {
            what: "the binding of somebody else",
            act: Act::Replace,
            object: role_binding(home, "foreign", "view", mallory.clone()),
        },
        Attack {
            what: "the binding that limits it",
            act: Act::Delete,
            object: cluster_role_binding(own, own, mallory),
        },
    ]
}

/// Rights outside for a server of a namespace that is labelled `local`, and what opens the way there.
fn outside(home: &str, plain: &str) -> Vec<Attack> {
    let itself = subject(OPERATOR_NAMESPACE, "portcullis-operator");
    let server = subject(home, "ops-mcp");
    let restart = "portcullis:catalogue:deployments:restart";
    let here = format!("portcullis:{home}:ops:deployments:restart");
    let (own, reach) = ("portcullis:operator", "portcullis:operator-reach");
    let create = |what, object| Attack { what, act: Act::Create, object };
    vec![
        create("a server's right in another namespace", role_binding(plain, &here, restart, server.clone())),
        create(
            "a server's right in the cluster's namespace",
            role_binding("kube-system", &here, restart, server.clone()),
        ),
        create(
            "a server's right beside the operator",
            role_binding(OPERATOR_NAMESPACE, &here, restart, server.clone()),
        ),
        create("a server's right everywhere", cluster_role_binding(&here, restart, server.clone())),
        create("reach where servers are local", role_binding(home, reach, reach, itself.clone())),
        create("reach where there are no servers", role_binding(plain, reach, reach, itself.clone())),
        create("reach for the role of namespaces", role_binding(home, own, reach, itself.clone())),
        create("reach in the name of a server", role_binding(home, &here, reach, itself.clone())),
        create("reach of a server", role_binding(home, reach, reach, server)),
        create("reach everywhere", cluster_role_binding(reach, reach, itself)),
    ]
}

/// Secrets, tokens and pods, by which one becomes another account.
fn accounts(home: &str, plain: &str) -> Vec<Attack> {
    let token = json!({"type": "kubernetes.io/service-account-token"});
    let of = |object: &Value| {
        with(object, "/metadata/annotations", json!({"kubernetes.io/service-account.name": "default"}))
    };
    let pod = json!({"spec": {"serviceAccountName": "default", "containers": [{"name": "a", "image": "b"}]}});
    let create = |what, object| Attack { what, act: Act::Create, object };
    let part = |what, part, object| Attack { what, act: Act::Part(part), object };
    let account = |namespace: &str, name: &str| core("ServiceAccount", namespace, name, json!({}));
    vec![
        create("a token as a Secret", of(&core("Secret", home, "evil-mcp-tls", token.clone()))),
        create(
            "a token as a Secret in its own namespace",
            of(&core("Secret", OPERATOR_NAMESPACE, "portcullis-ca", token.clone())),
        ),
        create(
            "a Secret in the cluster's namespace",
            of(&core("Secret", "kube-system", "evil-mcp-tls", token)),
        ),
        create(
            "a Secret where it does not work",
            core("Secret", plain, "evil-mcp-key", json!({"type": "portcullis.dev/api-key"})),
        ),
        Attack {
            what: "another's Secret",
            act: Act::Replace,
            object: core("Secret", home, "database", json!({})),
        },
        Attack {
            what: "deleting another's Secret",
            act: Act::Delete,
            object: core("Secret", home, "database", json!({})),
        },
        part("a token of a server", "token", account(home, "ops-mcp")),
        part("a token of its own", "token", account(OPERATOR_NAMESPACE, "portcullis-operator")),
        part("a token of the cluster's", "token", account("kube-system", "default")),
        create("a pod", core("Pod", home, "evil-mcp", pod.clone())),
        create("a pod in its own namespace", core("Pod", OPERATOR_NAMESPACE, "evil", pod)),
        create(
            "a server as another account",
            with(
                &with(
                    &server_deployment(home, "localhost/portcullis:dev"),
                    "/metadata/name",
                    json!("evil-mcp"),
                ),
                "/spec/template/spec/serviceAccountName",
                json!("default"),
            ),
        ),
        create(
            "a server of another image",
            with(
                &with(&server_deployment(home, "example.com/evil:1"), "/metadata/name", json!("evil-mcp")),
                "/spec/template/spec/serviceAccountName",
                json!("evil-mcp"),
            ),
        ),
        create(
            "a certificate of an administrator",
            json!({"apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest", "metadata": {"name": "evil"},
            "spec": {"request": "", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}}),
        ),
    ]
}

/// Roles, labels, policies and objects of ours, by which rights are given.
fn policies(home: &str, plain: &str) -> Vec<Attack> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let everything = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let create = |what, object| Attack { what, act: Act::Create, object };
    let merge = |what, object, patch| Attack { what, act: Act::Merge(patch), object };
    let role = |kind: &str, name: &str| json!({"apiVersion": rbac, "kind": kind, "metadata": {"name": name}, "rules": everything});
    let policy = |kind: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": "portcullis-operator-bindings"}})
    };
    let servers = json!({"permissions": ["k8s:*"], "allNamespaces": true, "servers": [{"namespace": home, "name": "ops"}]});
    vec![
        create("a role of the cluster", role("ClusterRole", "portcullis:catalogue:evil")),
        merge("its own role", role("ClusterRole", "portcullis:operator"), json!({"rules": everything})),
        merge(
            "a role of the catalogue",
            role("ClusterRole", "portcullis:catalogue:pods:list"),
            json!({"rules": everything}),
        ),
        create("a role", with(&role("Role", "evil"), "/metadata/namespace", json!(home))),
        merge(
            "the label",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": plain}}),
            json!({"metadata": {"labels": {"portcullis.dev/servers": "cluster"}}}),
        ),
        create(
            "a namespace with the label",
            json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "e2e-evil", "labels": {"portcullis.dev/servers": "cluster"}}}),
        ),
        Attack { what: "the fence", act: Act::Delete, object: policy("ValidatingAdmissionPolicy") },
        Attack {
            what: "what puts it in force",
            act: Act::Delete,
            object: policy("ValidatingAdmissionPolicyBinding"),
        },
        create("an McpRole", portcullis("McpRole", home, "evil", json!({"permissions": ["k8s:*"]}))),
        create(
            "a ClusterMcpRole",
            json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
            "metadata": {"name": "e2e-evil"}, "spec": servers}),
        ),
        create(
            "a key",
            portcullis("McpApiKey", home, "evil", json!({"identity": "evil", "servers": ["ops"]})),
        ),
        merge(
            "the spec of a server",
            portcullis("McpServer", home, "ops", json!({})),
            json!({"spec": {"replicas": 2}}),
        ),
    ]
}

/// What everybody who could gain something may do, wherever it matters.
async fn grid(admin: &Client, home: &str, plain: &str) -> BTreeMap<String, BTreeSet<String>> {
    let account = |namespace: &str, name: &str| format!("system:serviceaccount:{namespace}:{name}");
    let mut all = BTreeMap::new();
    for who in [
        account(OPERATOR_NAMESPACE, "portcullis-operator"),
        account(OPERATOR_NAMESPACE, "default"),
        account(home, "default"),
        account(home, "ops-mcp"),
        account(home, "evil-mcp"),
        account(plain, "default"),
        account(plain, "evil-mcp"),
        "mallory".to_owned(),
    ] {
        for place in [home, plain, OPERATOR_NAMESPACE, "kube-system", "default", ""] {
            all.insert(format!("{who} in {place:?}"), allowed(admin, &who, place).await);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_operators_token_nobody_gains_a_right() {
    let admin = cluster::client().await;
    let (home, plain) = (Namespace::opted_in("stolen"), Namespace::plain("stolen-plain"));
    let server = portcullis("McpServer", home.name(), "ops", json!({}));
    given(&admin, &server).await;
    given(&admin, &core("Secret", home.name(), "database", json!({}))).await;
    given(&admin, &role_binding(home.name(), "foreign", "view", subject(home.name(), "default"))).await;
    wait_ready(home.name(), "mcpserver", "ops", std::time::Duration::from_secs(90)).await;
    let before = grid(&admin, home.name(), plain.name()).await;
    let thief = thief(&admin).await;
    let (home, plain) = (home.name(), plain.name());
    let attacks =
        [bindings(home, plain), outside(home, plain), accounts(home, plain), policies(home, plain)].concat();
    let mut succeeded = Vec::new();
    for attack in &attacks {
        match attempt(&thief, attack).await {
            Ok(()) => succeeded.push(attack),
            Err(message) => assert!(message.contains("forbidden"), "{}: {message}", attack.what),
        }
    }
    let after = grid(&admin, home, plain).await;
    // Whatever came of it must not stay on a cluster that others use.
    for attack in succeeded.iter().filter(|attack| matches!(attack.act, Act::Create)) {
        let _ = api(&admin, &attack.object).delete(name(&attack.object), &DeleteParams::default()).await;
    }
    let names: Vec<&str> = succeeded.iter().map(|attack| attack.what).collect();
    assert_eq!(names, [""; 0], "these succeeded");
    assert_eq!(before, after);
    eprintln!("{} attacks, and {} lists of rights are the same", attacks.len(), after.len());
}
