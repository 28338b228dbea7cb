//! A handshake with a real TLS server that answers as an endpoint does.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::*;
use crate::controller::mcp_server::validate::{Referred, validate};
use crate::controller::replicas::tests::{authority, with_replica};
use crate::pki::Authority;

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/mcp");
    assert_eq!(request.headers()["mcp-protocol-version"], REVISION);
    let method = request.headers()["mcp-method"].to_str().expect("text").to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["method"], method.as_str());
    assert_eq!(body["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"], REVISION);
    let result = match (method.as_str(), body["params"]["cursor"].as_str()) {
        ("server/discover", _) => json!({"supportedVersions": ["2025-11-25", REVISION],
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "portcullis", "version": "9.9.9"}}}),
        ("tools/list", None) => json!({"tools": [{"name": "a", "inputSchema": {}}], "nextCursor": "2"}),
        ("tools/list", Some("2")) => json!({"tools": [{"name": "b", "inputSchema": {}}]}),
        other => panic!("{other:?}"),
    };
    let text = json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string();
    Ok(Response::new(Full::from(text)))
}

/// Makes the handshake that the operator would make with the server `ops`, to a replica of `name`.
async fn shake(peer: &Authority, name: &str, own: &Authority) -> Result<ServerInfo, Error> {
    let server: McpServer = serde_saphyr::from_str(
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops, namespace: agents, uid: u}, spec: {}}",
    )
    .expect("a server");
    let valid = validate(&server, &Referred::default(), |_| false).expect("valid");
    let tls = replicas::config(own).expect("TLS");
    with_replica(peer, name, answer, async |address| match Endpoint::connect(address, &valid, tls).await {
        Ok(mut endpoint) => endpoint.ask().await,
        Err(error) => Err(error),
    })
    .await
}

#[tokio::test]
async fn a_replica_says_what_it_is() {
    let authority = authority();
    let info = shake(&authority, "ops", &authority).await.expect("a handshake");
    assert_eq!((info.version.as_str(), info.tools), ("9.9.9", 2));
    assert_eq!(info.protocol_versions, ["2025-11-25", REVISION]);
    assert!(info.tools_digest.starts_with("sha256:") && info.tools_digest.len() == 71);
}

#[tokio::test]
async fn another_server_and_another_authority_are_refused() {
    let (ours, theirs) = (authority(), authority());
    assert!(shake(&ours, "other", &ours).await.is_err());
    assert!(shake(&theirs, "ops", &ours).await.is_err());
}

#[test]
fn the_digest_notices_a_changed_schema_and_no_changed_order() {
    let tool = |name: &str, schema: Value| json!({"name": name, "inputSchema": schema});
    let digest = |tools: &[Value]| server_info(&json!({}), tools).tools_digest;
    let (a, b) = (tool("a", json!({"x": 1, "y": 2})), tool("b", json!({})));
    assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
    assert_ne!(digest(&[a, b.clone()]), digest(&[tool("a", json!({"x": 1, "y": 3})), b]));
}

#[test]
fn what_a_replica_says_of_itself_is_cut_to_what_fits_a_status() {
    let long = "\u{e9}".repeat(1000);
    let info = server_info(
        &json!({"supportedVersions": vec![long.clone(); 100],
            "_meta": {"io.modelcontextprotocol/serverInfo": {"version": long}}}),
        &[],
    );
    assert_eq!(info.version.chars().count(), 64);
    assert_eq!(info.protocol_versions.len(), 16);
    assert!(info.protocol_versions.iter().all(|version| version.chars().count() == 64));
}
