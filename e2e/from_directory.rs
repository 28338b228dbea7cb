//! `serve --from DIR`: the same kinds from files, on a laptop's loopback, with the cluster of the kubeconfig.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::cluster::{Namespace, eventually};
use crate::local::{free_port, serve};
use crate::wire::Wire;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_kinds_are_served_from_files_without_a_cluster_for_policy() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let namespace = Namespace::plain("files");
    let name = namespace.name();
    let directory = tempfile::tempdir().expect("a directory");
    let policy = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {{name: ops, namespace: {name}}}\nspec: {{}}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: McpRole\nmetadata: {{name: viewer, namespace: {name}}}\nspec: {{permissions: ['k8s:pods:list']}}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: McpApiKey\nmetadata: {{name: me, namespace: {name}}}\nspec: {{identity: me, servers: [ops], roles: [{{name: viewer}}]}}\n"
    );
    std::fs::write(directory.path().join("policy.yaml"), &policy).expect("written");
    let port = free_port();
    let _serving = serve(directory.path(), port, &[]);
    let key = eventually("a key was generated", Duration::from_secs(20), async || {
        std::fs::read_to_string(directory.path().join(".portcullis/keys/me")).ok()
    })
    .await;
    let key = key.trim();
    let ca = eventually("a certificate was generated", Duration::from_secs(20), async || {
        std::fs::read(directory.path().join(".portcullis/tls/ca.crt")).ok()
    })
    .await;
    let wire = Wire::to(&format!("https://127.0.0.1:{port}"), &ca);
    let here = json!({"namespace": name});
    let listed = eventually("it answers", Duration::from_secs(20), async || {
        wire.tool(key, "pods_list", here.clone()).await.ok()
    })
    .await;
    assert_ne!(listed["isError"], true, "{listed}");
    let refused = wire.tool(key, "pods_list", json!({"namespace": "kube-system"})).await;
    assert!(refused.is_err() || refused.is_ok_and(|result| result["isError"] == true));

    let more = policy.replace("['k8s:pods:list']", "['k8s:pods:list', 'k8s:services:list']");
    std::fs::write(directory.path().join("policy.yaml"), more).expect("written");
    eventually("the edited file counts", Duration::from_secs(10), async || {
        let answer = wire.tool(key, "services_list", here.clone()).await.ok()?;
        (answer["isError"] != true).then_some(())
    })
    .await;
}

/// What an endpoint says that ends as soon as it has read this file.
fn refused(file: &str, text: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join(file), text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--from"])
        .arg(directory.path())
        .output()
        .expect("the binary runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{message}");
    message
}

#[test]
fn a_file_that_cannot_work_is_refused_with_its_name_and_its_field() {
    let server = "apiVersion: portcullis.dev/v1alpha1\nkind: McpServer\nmetadata: {name: ops}\nspec: {}\n";
    let message = refused("broken.yaml", &server.replace("spec: {}", "spec: {replicas: many}"));
    assert!(message.contains("broken.yaml") && message.contains("replicas"), "{message}");
    let role = "apiVersion: portcullis.dev/v1alpha1\nkind: McpRole\nmetadata: {name: viewer}\nspec: {permissions: ['k8s:pods:lst']}\n";
    let message = refused("roles.yaml", &format!("{server}---\n{role}"));
    assert!(message.contains("roles.yaml, document 2: McpRole viewer grants nothing"), "{message}");
    assert!(message.contains("spec.permissions[0]: \"k8s:pods:lst\""), "{message}");
}
