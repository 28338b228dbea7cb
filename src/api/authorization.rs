//! `McpServer.spec.authorization` and `spec.monitoring.anomalyDetection`: what is asked of a proved caller beside its
//! roles.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is asked of a proved caller beside its roles.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationSpec {
    /// Whether every caller must belong to a tenant. A namespace belongs to the tenant that its label
    /// `portcullis.dev/tenant` names.
    #[serde(default)]
    pub tenancy: Tenancy,
}

/// Whether every caller must belong to a tenant.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tenancy {
    /// A caller that belongs to a tenant acts in the namespaces of that tenant alone; one without a tenant acts wherever
    /// its roles reach.
    #[default]
    IfGiven,
    /// A caller without a tenant may do nothing.
    Required,
}

/// What is watched while the endpoint runs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MonitoringSpec {
    /// Callers that suddenly behave unlike themselves.
    #[serde(default)]
    pub anomaly_detection: AnomalyDetectionSpec,
}

/// Callers that suddenly behave unlike themselves.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AnomalyDetectionSpec {
    /// What becomes of an anomalous request.
    #[serde(default)]
    pub mode: AnomalyMode,
    /// How little is enough.
    #[serde(default)]
    pub sensitivity: AnomalySensitivity,
}

/// What becomes of an anomalous request.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnomalyMode {
    /// Nobody looks.
    Disabled,
    /// It is recorded and counted, and answered.
    #[default]
    Observe,
    /// It is recorded, counted and refused.
    Enforce,
}

/// How little is enough to be anomalous.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnomalySensitivity {
    /// Only what no honest client does.
    Low,
    /// What honest clients hardly do.
    #[default]
    Medium,
    /// What is unusual.
    High,
}
