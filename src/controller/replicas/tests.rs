//! Questions to a real TLS server that answers as a replica does.

use std::convert::Infallible;
use std::future::Future;

use http::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A new authority.
pub(in crate::controller) fn authority() -> Authority {
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

/// Serves one connection as a replica of the server `name` in `agents`, while `call` uses it.
pub(in crate::controller) async fn with_replica<A, F, T>(
    peer: &Authority,
    name: &str,
    answer: fn(Request<Incoming>) -> A,
    call: impl FnOnce(SocketAddr) -> F,
) -> T
where
    A: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
    F: Future<Output = T>,
{
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
    let result = call(address).await;
    serve.await.expect("the replica did not panic");
    result
}

async fn knows_k1(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!((request.method(), request.uri().path()), (&http::Method::POST, "/internal/state"));
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), json!({"keys": ["k1", "k2"]}));
    let answer = json!({"acceptedKeys": ["k1"], "lastUsed": {"k1": 7}, "somethingNew": true});
    Ok(Response::new(Full::from(answer.to_string())))
}

async fn refuses(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::from("{}"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    Ok(response)
}

async fn talks_on(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(" ".repeat(MAX_ANSWER + 1))))
}

fn question() -> StateQuestion {
    StateQuestion { keys: vec!["k1".into(), "k2".into()] }
}

#[tokio::test]
async fn a_replica_says_which_keys_it_accepts_and_when_they_were_used() {
    let authority = authority();
    let tls = config(&authority).expect("TLS");
    let question = question();
    let state = with_replica(&authority, "ops", knows_k1, |address| {
        state(address, "agents", "ops", tls.clone(), &question)
    });
    let state = state.await.expect("a state");
    assert_eq!(state.accepted_keys, ["k1"]);
    assert_eq!(state.last_used["k1"], 7);
}

#[tokio::test]
async fn an_answer_that_is_an_error_too_long_or_of_another_server_is_none() {
    let authority = authority();
    let tls = config(&authority).expect("TLS");
    let question = question();
    let ask = |address| state(address, "agents", "ops", tls.clone(), &question);
    let refused = with_replica(&authority, "ops", refuses, ask).await;
    assert!(matches!(refused, Err(Call::Answer(_, StatusCode::FORBIDDEN))), "{refused:?}");
    let long = with_replica(&authority, "ops", talks_on, ask).await;
    assert!(matches!(long, Err(Call::Exchange(..))), "{long:?}");
    let other = with_replica(&authority, "other", knows_k1, ask).await;
    assert!(matches!(other, Err(Call::Connect(..) | Call::Peer(_))), "{other:?}");
}

#[tokio::test]
async fn a_replica_that_is_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::time::pause();
    let tls = config(&authority()).expect("TLS");
    let late = state(address, "agents", "ops", tls, &question()).await;
    assert!(matches!(late, Err(Call::Late)), "{late:?}");
}

#[test]
fn only_pods_that_are_ready_and_stay_are_asked() {
    let pod = |ready: &str, more: Value| -> Pod {
        let mut pod = json!({"metadata": {"name": "ops-1"}, "status": {"podIP": "10.0.0.9",
            "conditions": [{"type": "Ready", "status": ready}]}});
        pod["metadata"]["deletionTimestamp"] = more;
        serde_json::from_value(pod).expect("a pod")
    };
    let found = ready_pod(&pod("True", Value::Null)).expect("it is ready");
    assert_eq!((found.name.as_str(), found.address.to_string()), ("ops-1", "10.0.0.9:8444".to_owned()));
    assert_eq!(ready_pod(&pod("False", Value::Null)), None);
    assert_eq!(ready_pod(&pod("True", json!("2026-11-23T10:00:00Z"))), None);
}
