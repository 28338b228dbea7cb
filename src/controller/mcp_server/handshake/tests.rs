//! A handshake with a real TLS server that answers as an endpoint does.

use std::convert::Infallible;

use http::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::controller::mcp_server::validate::{Referred, validate};

fn authority() -> Authority {
    let key = KeyPair::generate().expect("a key");
    Authority::generate("test", key, Timestamp::now()).expect("an authority").0
}

/// TLS of a replica of the named server, which demands a certificate of the same authority.
fn server_config(authority: &Authority, name: &str) -> Arc<rustls::ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let purpose = Purpose::Internal { namespace: "agents".into(), server: name.into() };
    let issued = authority.issue(&purpose, &key, Timestamp::now()).expect("a leaf");
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).expect("PEM");
    roots.add(root).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).expect("PEM");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("a certificate");
    Arc::new(config)
}

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

/// Serves one connection and makes the handshake that the operator would make with the server `ops`.
async fn shake(peer: &Authority, name: &str, own: &Authority) -> Result<ServerInfo, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = TlsAcceptor::from(server_config(peer, name));
    let serve = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        if let Ok(stream) = acceptor.accept(tcp).await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            let _ = connection.await;
        }
    });
    let server: McpServer = serde_saphyr::from_str(
        "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops, namespace: agents, uid: u}, spec: {}}",
    )
    .expect("a server");
    let valid = validate(&server, &Referred::default(), |_| false).expect("valid");
    let tls = client_config(own).expect("TLS");
    let result = match Endpoint::connect(address, &valid, tls).await {
        Ok(mut endpoint) => endpoint.ask().await,
        Err(error) => Err(error),
    };
    serve.await.expect("the endpoint did not panic");
    result
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
