//! Keys that existed before: a strong one is taken over, a weak or published one gets a condition that says why.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use crate::cluster::{apply, condition, eventually, kubectl, object};
use crate::server::{Endpoint, secret, wait_ready};
use crate::wire::Wire;

const STRONG: &str = "vT9#kQ2m!Lx7@Wp4zR8s&Yd6";

fn import(name: &str, key: &str) -> String {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{name}-given")},
        "stringData": {"api-key": key}});
    let object = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey", "metadata": {"name": name},
        "spec": {"identity": name, "servers": ["ops"], "roles": [{"name": "viewer"}],
            "import": {"secretRef": {"name": format!("{name}-given")}}}});
    format!("{secret}\n---\n{object}\n---\n")
}

async fn status(wire: &Wire, key: &str) -> StatusCode {
    let answer = wire.list_as(&[("authorization", &format!("Bearer {key}"))]).await.expect("an answer");
    answer.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strong_key_from_elsewhere_works_once_its_condition_says_so() {
    let endpoint = Endpoint::start("import", 2).await;
    let (wire, namespace) = (Wire::new(&endpoint), endpoint.namespace());
    apply(namespace, &import("legacy", STRONG));
    wait_ready(namespace, "mcpapikey", "legacy", Duration::from_secs(120)).await;
    let replicas = endpoint.replicas().await;
    for replica in &replicas {
        assert_eq!(status(replica, STRONG).await, StatusCode::OK, "every replica takes it at once");
        let other_case = STRONG.to_lowercase();
        assert_eq!(status(replica, &other_case).await, StatusCode::UNAUTHORIZED);
        let answer = replica.list_as(&[("x-api-key", STRONG)]).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let digest =
        object(namespace, "mcpapikey", "legacy").expect("the key")["status"]["keys"][0]["digest"].clone();
    assert!(digest.as_str().is_some_and(|digest| digest.starts_with("argon2id:")), "{digest}");
    let hashes = secret(namespace, "ops-mcp-imported", "imported.json").expect("the hashes");
    assert!(!hashes.contains(STRONG), "the key itself is not among them");
    let patch = r#"{"metadata":{"annotations":{"portcullis.dev/revoke":"now"}}}"#;
    kubectl(&["patch", "-n", namespace, "mcpapikey", "legacy", "--type=merge", "-p", patch]);
    eventually("the revoked key is refused", Duration::from_secs(5), async || {
        (status(&wire, STRONG).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(status(&wire, STRONG).await, StatusCode::UNAUTHORIZED, "and is not imported again");
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_and_published_keys_are_refused_with_a_condition_that_does_not_repeat_them() {
    let endpoint = Endpoint::start("weak", 1).await;
    let (wire, namespace) = (Wire::new(&endpoint), endpoint.namespace());
    let weak = [
        ("short", "Abc123!@#"),
        ("two-classes", "abcdefgh12345678"),
        ("one-class", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        ("published-a", "Abc123!@#Xyz789!@#"),
        ("published-b", "Abc123Xyz789Abc123"),
        ("published-c", "ABC123!@#XYZ789!@#"),
        ("demo-admin", "mcp-admin-key-12345"),
        ("demo-viewer", "mcp-viewer-key-67890"),
        ("repeats", "Aa1!Aa1!Aa1!Aa1!Aa1!"),
        ("sequence", "Abcdefghijklmnop1234"),
    ];
    apply(namespace, &weak.iter().map(|(name, key)| import(name, key)).collect::<String>());
    for (name, key) in weak {
        let (reason, message) =
            eventually(&format!("{name} is refused"), Duration::from_secs(60), async || {
                let object = object(namespace, "mcpapikey", name)?;
                let found = ["Accepted", "Ready"].iter().find_map(|kind| condition(&object, kind))?;
                (found.0 == "False").then_some((found.1, found.2))
            })
            .await;
        eprintln!("{name}: {reason}: {message}");
        assert!(!message.contains(key), "{name}: {message}");
        assert_eq!(status(&wire, key).await, StatusCode::UNAUTHORIZED, "{name}");
    }
}
