//! Names that somebody else had first, and names that are made again: nothing of others is taken over, nothing is bound
//! for it, and a new object inherits nothing of the old one.

use serde_json::{Value, json};

use super::cases::Again;
use super::reach::Reach;
use super::{PATIENCE, World, is_as};
use crate::cluster::{self, eventually};

/// How an object of somebody else looks.
const LOOKS: [&str; 3] = ["plain", "labels", "owner"];

/// What others could have under the names of a server's children.
fn children(server: &str, namespace: &str) -> Vec<(&'static str, Value)> {
    let workload = format!("{server}-mcp");
    let object = |api: &str, kind: &str, name: &str, mut rest: Value| {
        rest["apiVersion"] = json!(api);
        rest["kind"] = json!(kind);
        rest["metadata"] = json!({"name": name});
        rest
    };
    let secret = |end: &str| {
        let data = json!({"tls.crt": "magpie", "tls.key": "magpie", "keys.json": "magpie", "imported.json": "magpie"});
        object("v1", "Secret", &format!("{workload}-{end}"), json!({"stringData": data}))
    };
    let labels = json!({"app": "theirs"});
    let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "example.com/theirs:1"}]}});
    let deployment = json!({"spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod}});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"});
    let binding = format!("portcullis:{namespace}:{server}:baseline");
    vec![
        ("account", object("v1", "ServiceAccount", &workload, json!({}))),
        ("service", object("v1", "Service", &workload, json!({"spec": {"ports": [{"port": 443}]}}))),
        ("deployment", object("apps/v1", "Deployment", &workload, deployment)),
        (
            "policy",
            object(
                "networking.k8s.io/v1",
                "NetworkPolicy",
                &workload,
                json!({"spec": {"podSelector": {"matchLabels": labels}}}),
            ),
        ),
        (
            "budget",
            object(
                "policy/v1",
                "PodDisruptionBudget",
                &workload,
                json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}}}),
            ),
        ),
        ("tls", secret("tls")),
        ("internal", secret("internal")),
        ("signing", secret("signing")),
        (
            "binding",
            object(
                "rbac.authorization.k8s.io/v1",
                "RoleBinding",
                &binding,
                json!({"roleRef": role, "subjects": []}),
            ),
        ),
    ]
}

/// Kinds of children, by the words of [`children`].
const CHILDREN: [&str; 9] =
    ["account", "service", "deployment", "policy", "budget", "tls", "internal", "signing", "binding"];

/// Gives an object of somebody else the marks of the operator's: none, its labels and types, or also another server as
/// owner.
fn disguise(object: &mut Value, look: &str, owner: &Value) {
    if look != "plain" {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let type_ = match name.rsplit('-').next() {
            Some("tls") => "kubernetes.io/tls",
            Some("internal") => "portcullis.dev/internal-tls",
            Some("signing") => "portcullis.dev/signing-keys",
            _ => "portcullis.dev/api-key",
        };
        if object["kind"] == "Secret" {
            object["type"] = json!(type_);
        }
        object["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "portcullis",
            "app.kubernetes.io/part-of": "portcullis", "portcullis.dev/server": "decoy"});
    }
    if look == "owner" {
        object["metadata"]["ownerReferences"] = json!([owner]);
    }
}

/// A reference to the server of somebody else as owner.
async fn decoy(world: &World) -> Value {
    let decoy = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "decoy"},
        "spec": {"nodeSelector": {"e2e": "nowhere"}}});
    world.give(std::slice::from_ref(&decoy)).await;
    let found = cluster::object(world.namespace.name(), "mcpserver", "decoy").expect("it was given");
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "name": "decoy",
        "uid": found["metadata"]["uid"], "controller": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_under_the_name_of_a_child_stays_as_it_is_and_nothing_is_bound_for_it() {
    let world = World::new("deputy-names").await;
    let owner = decoy(&world).await;
    let (mut foreign, mut servers) = (Vec::new(), Vec::new());
    for look in LOOKS {
        // A binding with the name and the labels of the operator's is the operator's: bindings in other namespaces can
        // have no owner. It then says what the roles say.
        for child in CHILDREN.into_iter().filter(|child| *child != "binding" || look == "plain") {
            let server = format!("{child}-{look}");
            let all = children(&server, world.namespace.name());
            let (_, mut object) = all.into_iter().find(|(word, _)| *word == child).expect("a child");
            disguise(&mut object, look, &owner);
            foreign.push(object);
            let spec = match child {
                // Where somebody else keeps the certificate, the operator removes its own: not this one.
                "tls" if look == "owner" => json!({"tls": {"mode": "Secret", "secretName": "own"}}),
                "signing" => json!({"authentication": {"tokens": {"enabled": true}}}),
                _ => json!({}),
            };
            servers.push(json!({"kind": "McpServer", "metadata": {"name": server}, "spec": spec}));
        }
        let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("key-{look}-mcp-key")},
            "stringData": {"api-key": "magpie"}});
        disguise(&mut object, look, &owner);
        foreign.push(object);
        servers.push(json!({"kind": "McpApiKey", "metadata": {"name": format!("key-{look}")},
            "spec": {"identity": "a", "servers": ["decoy"]}}));
    }
    foreign.push(certificate());
    world.give(&foreign).await;
    let before = Reach::settled(&world).await;
    let mut wrong = Vec::new();
    for object in &servers {
        world.create(object).await.expect("the tenant may write it");
    }
    for object in &servers {
        let found = world.seen(object).await;
        let name = object["metadata"]["name"].as_str().expect("a name");
        let wanted = match name {
            // The rest of the server works.
            "signing-plain" | "signing-labels" | "signing-owner" => "SigningKeys=False/NameConflict",
            "tls-owner" => "Accepted=True/Accepted",
            _ => "Ready=False/NameConflict",
        };
        if !is_as(&found, wanted) {
            wrong.push(format!("{name} is not {wanted}: {}", found["status"]));
        }
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    wrong.extend(before.compare(&Reach::of(&world).await));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    nothing_is_bound_for(&world, &["account-plain-mcp", "account-labels-mcp", "account-owner-mcp"]);
}

/// A certificate that somebody keeps for a server.
fn certificate() -> Value {
    let made = rcgen::generate_simple_self_signed(["mcp.example.com".to_owned()]).expect("a certificate");
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "own"},
        "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()}})
}

#[track_caller]
fn nothing_is_bound_for(world: &World, accounts: &[&str]) {
    let namespace = world.namespace.name();
    for binding in cluster::objects(&["rolebindings,clusterrolebindings", "-A"]) {
        let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
        let is_theirs = |subject: &Value| {
            subject["namespace"] == namespace && accounts.iter().any(|account| subject["name"] == *account)
        };
        assert!(!subjects.iter().any(is_theirs), "{binding}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_made_again_inherits_nothing() {
    let world = World::new("deputy-again").await;
    let before = Reach::settled(&world).await;
    let ways = [
        ("orphan", Again::Orphan),
        ("background", Again::Background),
        ("finalizer", Again::WithoutFinalizer),
    ];
    let server = |name: &str| json!({"kind": "McpServer", "metadata": {"name": name}, "spec": {}});
    let key = |name: &str| {
        json!({"kind": "McpApiKey", "metadata": {"name": name},
            "spec": {"identity": name, "servers": ["orphan", "background", "finalizer"]}})
    };
    let mut wrong = Vec::new();
    for (name, _) in ways {
        world.create(&server(name)).await.expect("the tenant may");
    }
    for (name, _) in ways {
        world.seen(&server(name)).await;
        world.create(&key(name)).await.expect("the tenant may");
    }
    for (name, _) in ways {
        world.seen(&key(name)).await;
    }
    let accounts =
        |name: &str| cluster::object(world.namespace.name(), "serviceaccount", &format!("{name}-mcp"));
    let first: Vec<Value> = ways.iter().filter_map(|(name, _)| accounts(name)).collect();
    assert_eq!(first.len(), ways.len(), "each server has an account");
    let mut secrets = Vec::new();
    for (name, _) in ways {
        let name = format!("{name}-mcp-key");
        let made = eventually("the key has its Secret", PATIENCE, async || {
            cluster::object(world.namespace.name(), "secret", &name)
        })
        .await;
        secrets.push(made["metadata"]["uid"].clone());
    }
    for (name, how) in ways {
        for object in [server(name), key(name)] {
            world.delete(&world.api(&world.client, &object), name, how).await;
            world.create(&object).await.expect("the tenant may");
        }
    }
    for ((name, how), first) in ways.into_iter().zip(first) {
        let settled =
            if how == Again::Background { "Accepted=True/Accepted" } else { "Ready=False/NameConflict" };
        eventually(&format!("{name} is {settled}"), PATIENCE, async || {
            is_as(&world.seen(&server(name)).await, settled).then_some(())
        })
        .await;
        let account = accounts(name).expect("there is an account");
        let is_the_first = account["metadata"]["uid"] == first["metadata"]["uid"];
        if is_the_first && how == Again::Background {
            wrong.push(format!("{name} has the account of the server before it"));
        }
        let successor = world.seen(&key(name)).await;
        let secret = cluster::object(world.namespace.name(), "secret", &format!("{name}-mcp-key"));
        let is_taken = secret.is_some_and(|secret| {
            secrets.contains(&secret["metadata"]["uid"])
                && secret["metadata"]["ownerReferences"][0]["uid"] == successor["metadata"]["uid"]
        });
        if is_taken {
            wrong.push(format!("the key {name} took over the Secret of the key before it"));
        }
    }
    wrong.extend(before.compare(&Reach::of(&world).await));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    nothing_is_bound_for(&world, &["orphan-mcp"]);
    // Without its finalizer the operator may not have seen the first server go: the second takes away what it left.
    eventually("nothing is bound for what the server before left", PATIENCE, async || {
        let bindings = cluster::objects(&["rolebindings,clusterrolebindings", "-A"]);
        let of = format!("portcullis:{}:finalizer:", world.namespace.name());
        bindings
            .iter()
            .all(|binding| !binding["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(&of)))
            .then_some(())
    })
    .await;
}
