//! What a server's pods may be reached by, and what they may reach. Everything else is refused by the network.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{from_value, json};

use crate::api::{JwtIssuerSpec, names};
use crate::controller::mcp_server::validate::ValidatedServer;

/// The NetworkPolicy of a server.
pub(super) fn network_policy(server: &ValidatedServer<'_>, operator_namespace: &str) -> NetworkPolicy {
    let same_server = json!({"podSelector": {"matchLabels": super::selector(server.name)}});
    let operator =
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}}});
    // The API server, by the port of its Service and the one that some networks see behind it, and issuers of tokens.
    let mut outside = BTreeSet::from([443, 6443]);
    outside.extend(server.spec.authentication.jwt.iter().filter_map(issuer_port));
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
                {"ports": outside.into_iter().map(tcp).collect::<Vec<_>>()},
                {"ports": [tcp(names::INTERNAL_PORT)], "to": [same_server]},
            ],
        },
    }))
    .expect("the shape of a NetworkPolicy")
}

/// Port at which the keys of an issuer are fetched; none where they are at hand.
fn issuer_port(issuer: &JwtIssuerSpec) -> Option<i32> {
    if issuer.jwks.is_some() || issuer.hmac_secret.is_some() {
        return None;
    }
    let url: http::Uri = issuer.jwks_url.as_ref().unwrap_or(&issuer.issuer).parse().ok()?;
    Some(url.port_u16().map_or(443, i32::from))
}
