//! The Secrets with a server's certificates, and with the keys of its own tokens.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{from_value, json};

use crate::api::names;
use crate::controller::mcp_server::validate::ValidatedServer;

/// The certificate of the endpoint.
pub(super) fn endpoint(server: &ValidatedServer<'_>, data: BTreeMap<String, ByteString>) -> Secret {
    secret(server, &names::tls_secret(server.name), "kubernetes.io/tls", data)
}

/// The leaf for the internal port.
pub(super) fn internal(server: &ValidatedServer<'_>, data: BTreeMap<String, ByteString>) -> Secret {
    secret(server, &names::internal_secret(server.name), names::INTERNAL_TLS_SECRET_TYPE, data)
}

/// The keys of the endpoint's own tokens.
pub(in crate::controller::mcp_server) fn signing(
    server: &ValidatedServer<'_>,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    secret(server, &names::signing_secret(server.name), names::SIGNING_SECRET_TYPE, data)
}

fn secret(
    server: &ValidatedServer<'_>,
    name: &str,
    type_: &str,
    data: BTreeMap<String, ByteString>,
) -> Secret {
    from_value(json!({
        "metadata": super::metadata(server, name),
        "type": type_,
        "data": data,
    }))
    .expect("the shape of a Secret")
}
