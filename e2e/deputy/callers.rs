//! What a tenant can call: keys that it makes for the servers of others open nothing that others may do.

use http::StatusCode;
use serde_json::{Value, json};

use super::{World, a_tenant_of};
use crate::admission::acting_as;
use crate::cluster::{apply, try_kubectl};
use crate::server::{Endpoint, Wishes, key};
use crate::wire::Wire;

/// A role whose holders prove who they are.
const BOSS: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: boss}
spec:
  permissions: ['k8s:pods:list']
  subjects: [{kind: User, name: alice}, {kind: User, name: admin}, {kind: Group, name: alice}]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_tenant_makes_calls_nothing_whoever_it_says_it_is() {
    let wishes = Wishes { manifests: BOSS, ..Wishes::default() };
    let (endpoint, victim) =
        tokio::join!(Endpoint::start_with("deputy-calls", wishes), Endpoint::start("deputy-called", 1));
    let (namespace, other) = (endpoint.namespace(), victim.namespace());
    let tenant = a_tenant_of(namespace, &[]);
    let keys = [
        ("nobody", json!({"identity": "nobody", "servers": ["ops"]})),
        ("alice", json!({"identity": "alice", "servers": ["ops"]})),
        ("as-admin", json!({"identity": "admin", "servers": ["ops"]})),
        (
            "account",
            json!({"identity": format!("system:serviceaccount:{namespace}:ops-mcp"), "servers": ["ops"]}),
        ),
        ("tenant", json!({"identity": "mallory", "servers": ["ops"], "tenant": other})),
        (
            "everywhere",
            json!({"identity": "mallory", "servers": ["ops", "*", format!("{other}/ops"), "../ops"]}),
        ),
    ];
    for (name, spec) in &keys {
        let object = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey", "spec": spec,
            "metadata": {"name": name, "namespace": namespace}});
        let made = try_kubectl(&["create", "--as", &tenant, "-f", "-"], &object.to_string());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let (wire, elsewhere) = (Wire::new(&endpoint), Wire::new(&victim));
    for (name, _) in &keys {
        let key = key(namespace, name).await;
        let listed = wire.call_raw(&key, "tools/list", json!({})).await.expect("the key is accepted");
        assert_eq!(listed["tools"], json!([]), "{name}: {listed}");
        let called = wire.tool(&key, "pods_list", json!({"namespace": namespace})).await;
        let refused = called.expect_err("a tool that is not listed").to_string();
        assert!(refused.contains("error"), "{name}: {refused}");
        let answer = elsewhere.list_as(&[("x-api-key", &key)]).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{name} opens the server of another tenant");
    }
}

/// Whoever says by what callers are proved can be any of them, and so hold every role of the namespace.
#[tokio::test(flavor = "multi_thread")]
async fn who_says_by_what_callers_are_proved_needs_the_right_to_bind_roles() {
    let world = World::new("deputy-proofs").await;
    apply(world.namespace.name(), BOSS);
    let stranger = acting_as(&world.tenant).await;
    let mut wrong = Vec::new();
    for (name, authentication) in [
        ("issuer", json!({"jwt": [{"issuer": "mine", "jwksUrl": "https://mine.example.com/keys"}]})),
        ("anonymous", json!({"anonymous": {"unsafeEnabled": true}})),
    ] {
        let server: Value = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer",
            "metadata": {"name": name}, "spec": {"authentication": authentication, "nodeSelector": {"e2e": "nowhere"}}});
        let typed = serde_json::from_value(server.clone()).expect("an object");
        let made = world.api(&stranger, &server).create(&kube::api::PostParams::default(), &typed).await;
        if made.is_ok() {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "a tenant without the verb bind on mcproles may be anybody by {wrong:?}");
}
