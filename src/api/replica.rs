//! What the operator asks a replica on the internal port, and what it answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Path of the question on the internal port: `POST`, JSON both ways.
pub const STATE_PATH: &str = "/internal/state";
/// Most ids in one question.
pub const MAX_ASKED: usize = 2048;

/// What the operator wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateQuestion {
    /// Ids of generations of keys.
    #[serde(default)]
    pub keys: Vec<String>,
}

/// What a replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaState {
    /// Those of the generations asked for that the replica would accept now, whatever their owner may do.
    #[serde(default)]
    pub accepted_keys: Vec<String>,
    /// Last time each of the generations asked for was used, in seconds since 1970. Absent: not since the start.
    #[serde(default)]
    pub last_used: BTreeMap<String, i64>,
    /// Ids of the signing keys that it verifies tokens with.
    #[serde(default)]
    pub verification_keys: Vec<String>,
    /// Id of the key that it signs tokens with.
    #[serde(default)]
    pub signing_key: Option<String>,
}
