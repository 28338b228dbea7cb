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

/// Keeps the Secrets that the cluster added for pulling images and for tokens, as OpenShift does: taking them away would
/// have it add them again, without end.
pub(in crate::controller::mcp_server) fn keep_secrets(desired: &mut ServiceAccount, live: &ServiceAccount) {
    desired.secrets.clone_from(&live.secrets);
    desired.image_pull_secrets.clone_from(&live.image_pull_secrets);
}
