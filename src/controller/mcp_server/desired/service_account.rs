//! The identity that a server's tools act with. Its pods get a short token by projection, never by automount.

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{from_value, json};

use crate::api::names;
use crate::controller::mcp_server::validate::ValidatedServer;

/// The ServiceAccount of a server.
pub(super) fn service_account(server: &ValidatedServer<'_>) -> ServiceAccount {
    from_value(json!({
        "metadata": super::metadata(server, &names::workload(server.name)),
        "automountServiceAccountToken": false,
    }))
    .expect("the shape of a ServiceAccount")
}
