//! How many pods of a server a drain may take at once: one.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{from_value, json};

use crate::api::names;
use crate::controller::mcp_server::validate::ValidatedServer;

/// The PodDisruptionBudget of a server. It says "one unavailable", so it never blocks a drain for good.
pub(super) fn disruption_budget(server: &ValidatedServer<'_>) -> PodDisruptionBudget {
    from_value(json!({
        "metadata": super::metadata(server, &names::workload(server.name)),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": super::selector(server.name)}},
    }))
    .expect("the shape of a PodDisruptionBudget")
}
