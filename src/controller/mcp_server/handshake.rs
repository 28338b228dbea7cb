//! An MCP handshake with a ready pod over the internal port, by mutual TLS: what the endpoint says of itself.
//!
//! It is made when a roll-out is complete, when the spec or the roles changed, and once more a little later, because
//! a replica learns of a change by its own watch. It is not made on every pass.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::conditions::REASON_HANDSHAKE;
use crate::api::{McpServer, ServerInfo};
use crate::authz::Role;
use crate::controller::engine::Transient;
use crate::controller::replicas::{self, Connection};
use crate::controller::{Context, PERIOD};

use super::validate::ValidatedServer;

/// Revision of MCP that the operator speaks.
const REVISION: &str = "2026-07-28";
/// Most time that a handshake may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of all answers of one handshake together.
const MAX_ANSWERS: usize = 512 << 10;
/// Most characters of a version and of an error's text that are kept: they stand in the status.
const MAX_TEXT: usize = 64;
/// Most versions of the protocol that are kept.
const MAX_VERSIONS: usize = 16;
/// A change is looked at once more after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Most pages of a list of tools.
const MAX_PAGES: usize = 8;

/// What was said in the last handshake of each server, by uid.
#[derive(Default)]
pub(in crate::controller) struct Handshakes {
    done: Mutex<HashMap<String, Done>>,
}

#[derive(Clone)]
struct Done {
    /// Digest of what the answer depends on.
    about: [u8; 32],
    info: ServerInfo,
    at: Instant,
    is_confirmed: bool,
}

impl Handshakes {
    /// Forgets a server that is gone.
    pub(in crate::controller) fn forget(&self, server: &impl ResourceExt) {
        self.lock().remove(&server.uid().unwrap_or_default());
    }

    /// When the server should be looked at again for its handshake's sake.
    pub(in crate::controller) fn next_look(&self, server: &McpServer) -> Duration {
        match self.lock().get(&server.uid().unwrap_or_default()) {
            Some(done) if !done.is_confirmed => AGAIN_AFTER,
            _ => PERIOD,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Done>> {
        self.done.lock().expect("no holder panics")
    }
}

/// Why a handshake did not come to an end.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Pods(#[from] replicas::AskReplicas),
    #[error("no pod is ready")]
    NoPod,
    #[error(transparent)]
    Prove(#[from] replicas::Prove),
    #[error(transparent)]
    Connect(#[from] replicas::Call),
    #[error("failed to call {0}: {1}")]
    Call(&'static str, String),
    #[error("took longer than {} s", LIMIT.as_secs())]
    Late,
}

/// What the endpoint says of itself, asked only if something changed since it was asked last.
///
/// # Errors
/// [`Transient`] with the reason `HandshakeFailing`.
pub(super) async fn once(
    context: &Context,
    server: &ValidatedServer<'_>,
    deployment: &Deployment,
    roles: &[Role],
) -> Result<ServerInfo, Transient> {
    let about = about(server, deployment, roles);
    let last = context.handshakes.lock().get(server.uid).cloned();
    let last = last.filter(|done| done.about == about);
    if let Some(done) = &last
        && (done.is_confirmed || done.at.elapsed() < AGAIN_AFTER)
    {
        return Ok(done.info.clone());
    }
    let made = tokio::time::timeout(LIMIT, handshake(context, server)).await.unwrap_or(Err(Error::Late));
    let info = made.map_err(|error| Transient {
        reason: REASON_HANDSHAKE,
        message: format!("MCP handshake with the endpoint: {error}"),
    })?;
    let done = Done { about, info: info.clone(), at: Instant::now(), is_confirmed: last.is_some() };
    context.handshakes.lock().insert(server.uid.to_owned(), done);
    Ok(info)
}

/// Digest of all that the answer may depend on.
fn about(server: &ValidatedServer<'_>, deployment: &Deployment, roles: &[Role]) -> [u8; 32] {
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    let text = format!("{}\n{}\n{roles:?}", json!(template), json!(server.spec));
    sha256(text.as_bytes())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    array
}

async fn handshake(context: &Context, server: &ValidatedServer<'_>) -> Result<ServerInfo, Error> {
    let pods = replicas::ready_pods(context, server.namespace, server.name).await?;
    let pod = pods.first().ok_or(Error::NoPod)?;
    let tls = replicas::client_config(context)?;
    let mut endpoint = Endpoint::connect(pod.address, server, tls).await?;
    endpoint.ask().await
}

/// A replica to which a handshake is made.
struct Endpoint {
    connection: Connection,
    path: String,
    /// Bytes that may still be answered.
    budget: usize,
}

impl Endpoint {
    async fn connect(
        address: SocketAddr,
        server: &ValidatedServer<'_>,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, Error> {
        let connection = Connection::open(address, server.namespace, server.name, tls).await?;
        let path = server.spec.transports.streamable_http.path.clone();
        Ok(Self { connection, path, budget: MAX_ANSWERS })
    }

    async fn ask(&mut self) -> Result<ServerInfo, Error> {
        let discovered = self.call("server/discover", json!({})).await?;
        let mut tools = Vec::new();
        let mut cursor = Value::Null;
        for _ in 0..MAX_PAGES {
            let params = if cursor.is_null() { json!({}) } else { json!({"cursor": cursor}) };
            let mut page = self.call("tools/list", params).await?;
            if let Value::Array(found) = page["tools"].take() {
                tools.extend(found);
            }
            cursor = page["nextCursor"].take();
            if cursor.is_null() {
                break;
            }
        }
        Ok(server_info(&discovered, &tools))
    }

    async fn call(&mut self, method: &'static str, mut params: Value) -> Result<Value, Error> {
        let failed = |text: String| Error::Call(method, text);
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": REVISION,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {
                "name": "portcullis-operator",
                "version": env!("CARGO_PKG_VERSION"),
            },
        });
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let request = self
            .connection
            .post(&self.path)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", REVISION)
            .header("mcp-method", method);
        let sent = self.connection.send(request, body.to_string().into(), self.budget).await;
        let (status, bytes) = sent.map_err(|error| failed(error.to_string()))?;
        self.budget = self.budget.saturating_sub(bytes.len());
        let mut answer: Value =
            serde_json::from_slice(&bytes).map_err(|_| failed(format!("answered {status} and no JSON")))?;
        match answer["result"].take() {
            result @ Value::Object(_) if status.is_success() => Ok(result),
            _ => {
                let message = answer["error"]["message"].as_str().unwrap_or_default();
                Err(failed(format!("answered {status}: {:?}", short(message))))
            }
        }
    }
}

/// What the status says. The digest does not depend on the order of the tools or of the keys in their schemas.
fn server_info(discovered: &Value, tools: &[Value]) -> ServerInfo {
    let info = &discovered["_meta"]["io.modelcontextprotocol/serverInfo"];
    let versions = discovered["supportedVersions"].as_array();
    let mut shapes: Vec<String> = tools
        .iter()
        .map(|tool| {
            format!("{} {} {}", tool["name"], sorted(&tool["inputSchema"]), sorted(&tool["outputSchema"]))
        })
        .collect();
    shapes.sort();
    let hex = HEXLOWER.encode(&sha256(shapes.join("\n").as_bytes()));
    ServerInfo {
        version: short(info["version"].as_str().unwrap_or_default()),
        protocol_versions: versions
            .into_iter()
            .flatten()
            .filter_map(|version| version.as_str().map(short))
            .take(MAX_VERSIONS)
            .collect(),
        tools: i32::try_from(tools.len()).unwrap_or(i32::MAX),
        tools_digest: format!("sha256:{hex}"),
    }
}

/// The beginning of a text that a peer chose.
fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// A value with the keys of its objects in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            keys.into_iter().map(|key| (key.clone(), sorted(&map[key]))).collect()
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
