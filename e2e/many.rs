//! Many servers at once. The name begins with `serial_`, so that it runs alone: it needs the whole cluster.

use std::fmt::Write;
use std::time::Duration;

use crate::cluster::{Namespace, apply, condition, eventually, objects};

#[tokio::test(flavor = "multi_thread")]
async fn serial_fifty_servers_at_once_all_become_ready() {
    let namespace = Namespace::opted_in("fifty");
    let mut manifests = String::new();
    for number in 0..50 {
        writeln!(
            manifests,
            "---\n{{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {{name: s{number}}}, spec: {{}}}}"
        )
        .expect("text");
    }
    apply(namespace.name(), &manifests);
    eventually("all fifty are Ready", Duration::from_secs(240), async || {
        let servers = objects(&["mcpservers", "-n", namespace.name()]);
        let ready = |server: &&serde_json::Value| {
            condition(server, "Ready").is_some_and(|(status, _, _)| status == "True")
        };
        (servers.iter().filter(ready).count() == 50).then_some(())
    })
    .await;
}
