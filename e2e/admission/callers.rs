//! Who says by what callers are proved can be any of them, and so needs what giving roles to people needs.

use std::time::Duration;

use serde_json::{Value, json};

use super::rules::{PROOFS, PROOFS_CLUSTER};
use super::{acting_as, allowed, change, create, given, portcullis, refused, role_binding, with};
use crate::cluster::{self, Namespace};

/// Every proof that the author of a server could forge.
fn proofs() -> [(&'static str, Value); 4] {
    let ca = json!({"kind": "ConfigMap", "name": "mine", "key": "ca.crt"});
    [
        ("an issuer", json!({"jwt": [{"issuer": "mine", "jwksUrl": "https://mine.example.com/keys"}]})),
        ("passwords", json!({"basic": {"enabled": true, "users": {"name": "mine", "key": "users"}}})),
        ("an authority", json!({"clientCertificates": {"mode": "VerifyIfGiven", "ca": ca}})),
        ("nobody", json!({"anonymous": {"unsafeEnabled": true}})),
    ]
}

/// A user who may write servers, and, if told so, give roles of the namespace to people.
async fn author(admin: &kube::Client, namespace: &str, user: &str, binds: bool) -> kube::Client {
    let verbs = ["get", "create", "update", "patch", "delete"];
    let mut rules =
        vec![json!({"apiGroups": ["portcullis.dev"], "resources": ["mcpservers"], "verbs": verbs})];
    if binds {
        rules.push(json!({"apiGroups": ["portcullis.dev"], "resources": ["mcproles"], "verbs": ["bind"]}));
    }
    given(
        admin,
        &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules,
            "metadata": {"name": user, "namespace": namespace}}),
    )
    .await;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    let binding = with(&role_binding(namespace, user, user, subjects), "/roleRef/kind", json!("Role"));
    given(admin, &binding).await;
    acting_as(user).await
}

fn server(namespace: &str, name: &str, authentication: &Value) -> Value {
    portcullis("McpServer", namespace, name, json!({"authentication": authentication}))
}

#[tokio::test]
async fn who_names_new_proofs_of_callers_needs_the_verb_bind_and_who_takes_them_away_does_not() {
    let admin = cluster::client().await;
    let namespace = Namespace::plain("fence-callers");
    let ns = namespace.name();
    let (plain, binder) =
        (author(&admin, ns, "plain-author", false).await, author(&admin, ns, "binding-author", true).await);
    let harmless = json!({"serviceAccounts": {"enabled": true}, "clientCertificates": {"mode": "Request"}});
    cluster::eventually(
        "a server without proofs of its author is allowed",
        Duration::from_secs(10),
        async || create(&plain, &server(ns, "harmless", &harmless)).await.ok(),
    )
    .await;
    for (what, proof) in proofs() {
        refused(what, PROOFS, create(&plain, &server(ns, "new", &proof)).await);
        cluster::eventually(what, Duration::from_secs(10), async || {
            create(&binder, &server(ns, "new", &proof)).await.ok()
        })
        .await;
    }
    let audience = "https://wiki.example.com";
    for (what, widened) in [
        ("audiences", json!({"serviceAccounts": {"enabled": true, "audiences": [audience]}})),
        ("a resource", json!({"serviceAccounts": {"enabled": true}, "resource": audience})),
    ] {
        refused(what, PROOFS, create(&plain, &server(ns, "new", &widened)).await);
        allowed(what, create(&binder, &server(ns, "new", &widened)).await);
    }
    given(&admin, &server(ns, "old", &json!({}))).await;
    for (what, proof) in proofs() {
        let old = server(ns, "old", &json!({}));
        let patch = json!({"spec": {"authentication": proof}});
        refused(what, PROOFS, change(&plain, &old, patch.clone()).await);
        allowed(what, change(&binder, &old, patch).await);
    }
    let off = server(ns, "off", &json!({"serviceAccounts": {"enabled": false, "audiences": [audience]}}));
    given(&admin, &off).await;
    let on = json!({"spec": {"authentication": {"serviceAccounts": {"enabled": true}}}});
    refused("an audience that was there", PROOFS, change(&plain, &off, on).await);
    let mut all = json!({});
    for (_, proof) in proofs() {
        all.as_object_mut().expect("an object").extend(proof.as_object().expect("an object").clone());
    }
    all["jwt"] = json!([{"issuer": "https://a.example.com"}, {"issuer": "https://b.example.com"}]);
    all["resource"] = json!("https://mcp.example.com");
    let audiences = ["https://mcp.example.com", "https://tools.example.com"];
    all["serviceAccounts"] = json!({"enabled": true, "audiences": audiences});
    let full = server(ns, "full", &all);
    given(&admin, &full).await;
    for (what, taken) in [
        ("an issuer less", json!({"jwt": [{"issuer": "https://b.example.com"}]})),
        ("no issuers", json!({"jwt": null})),
        ("no passwords", json!({"basic": {"enabled": false}})),
        ("no authority", json!({"clientCertificates": null})),
        ("nobody without a proof", json!({"anonymous": null})),
        ("a caller blocked", json!({"blocked": [{"kind": "User", "name": "mallory"}]})),
        ("an audience less", json!({"serviceAccounts": {"audiences": ["https://mcp.example.com"]}})),
        ("no ServiceAccounts", json!({"serviceAccounts": {"enabled": false}})),
    ] {
        allowed(what, change(&plain, &full, json!({"spec": {"authentication": taken}})).await);
    }
    for (what, changed) in [
        (
            "other keys",
            json!({"jwt": [{"issuer": "https://a.example.com", "jwksUrl": "https://mine.example"}]}),
        ),
        ("other passwords", json!({"basic": {"users": {"name": "other"}}})),
        ("another authority", json!({"clientCertificates": {"ca": {"name": "other"}}})),
        (
            "another audience",
            json!({"serviceAccounts": {"audiences": ["https://mcp.example.com", audience]}}),
        ),
        ("the audience of the resource", json!({"serviceAccounts": {"audiences": []}})),
        ("another resource", json!({"resource": audience})),
        ("no resource", json!({"resource": null})),
    ] {
        refused(what, PROOFS, change(&plain, &full, json!({"spec": {"authentication": changed}})).await);
    }
}

#[tokio::test]
async fn where_cluster_mcp_roles_count_new_proofs_need_bind_on_them_too() {
    let admin = cluster::client().await;
    let namespace = Namespace::plain("fence-callers-cluster");
    let ns = namespace.name();
    let binder = author(&admin, ns, "binding-author-of-cluster", true).await;
    cluster::eventually("the author may name proofs", Duration::from_secs(10), async || {
        create(&binder, &server(ns, "new", &proofs()[0].1)).await.ok()
    })
    .await;
    namespace.label("portcullis.dev/servers=cluster");
    // Admission sees labels of namespaces through a copy of its own.
    cluster::eventually("the label counts", Duration::from_secs(10), async || {
        create(&binder, &server(ns, "new", &proofs()[0].1)).await.err()
    })
    .await;
    for (what, proof) in proofs() {
        refused(what, PROOFS_CLUSTER, create(&binder, &server(ns, "new", &proof)).await);
    }
    allowed("an administrator", create(&admin, &server(ns, "new", &proofs()[0].1)).await);
}
