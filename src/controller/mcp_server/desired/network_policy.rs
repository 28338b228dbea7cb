//! What a server's pods may be reached by, and what they may reach. Everything else is refused by the network.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{from_value, json};

use crate::api::names;
use crate::controller::mcp_server::validate::ValidatedServer;

/// The NetworkPolicy of a server.
pub(super) fn network_policy(server: &ValidatedServer<'_>, operator_namespace: &str) -> NetworkPolicy {
    let same_server = json!({"podSelector": {"matchLabels": super::selector(server.name)}});
    let operator =
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}}});
    let tcp = |port: i32| json!({"protocol": "TCP", "port": port});
    from_value(json!({
        "metadata": super::metadata(server, &names::workload(server.name)),
        "spec": {
            "podSelector": {"matchLabels": super::selector(server.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                // Clients may be anywhere: they prove themselves.
                {"ports": [tcp(names::HTTPS_PORT)]},
                {"ports": [tcp(names::INTERNAL_PORT)], "from": [operator, same_server]},
                // Probes come from the node, which is always allowed; metrics from pods.
                {"ports": [tcp(names::ADMIN_PORT)], "from": [{"namespaceSelector": {}}]},
            ],
            "egress": [
                {"ports": [{"protocol": "UDP", "port": 53}, tcp(53)]},
                // The API server: the port of its Service, and the one that some networks see behind it.
                {"ports": [tcp(443), tcp(6443)]},
                {"ports": [tcp(names::INTERNAL_PORT)], "to": [same_server]},
            ],
        },
    }))
    .expect("the shape of a NetworkPolicy")
}
