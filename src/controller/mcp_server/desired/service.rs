//! The Service in front of a server's pods.

use k8s_openapi::api::core::v1::Service;
use serde_json::{from_value, json};

use crate::api::{ServiceType, names};
use crate::controller::mcp_server::validate::ValidatedServer;

/// The Service of a server.
pub(super) fn service(server: &ValidatedServer<'_>) -> Service {
    let spec = &server.spec.expose.service;
    let type_ = match spec.type_ {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let mut port = json!({
        "name": "https",
        "port": names::SERVICE_PORT,
        "targetPort": "https",
        "protocol": "TCP",
        "appProtocol": "https",
    });
    if let Some(node_port) = spec.node_port {
        port["nodePort"] = json!(node_port);
    }
    from_value(json!({
        "metadata": super::metadata(server, &names::workload(server.name)),
        "spec": {"type": type_, "selector": super::selector(server.name), "ports": [port]},
    }))
    .expect("the shape of a Service")
}
