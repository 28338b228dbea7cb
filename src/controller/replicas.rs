//! Talks to the ready replicas of a server on the internal port, by mutual TLS, and asks them what they know.
//!
//! A peer is believed only when its certificate names this very server. What it answers is bounded in time and size.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::names;
use crate::api::replica::{ReplicaState, STATE_PATH, StateQuestion};
use crate::k8s::apply::text;
use crate::pki::{Authority, Purpose};

use super::Context;

/// Most time that one replica may take to answer.
const LIMIT: Duration = Duration::from_secs(3);
/// Most bytes of one answer.
const MAX_ANSWER: usize = 256 << 10;

/// Why the replicas could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskReplicas {
    /// The pods cannot be listed.
    #[error("failed to list the pods of {server:?}: {text}")]
    List {
        /// Name of the server.
        server: String,
        /// What the API server said.
        text: String,
    },
    /// There is nothing to prove with who is asking.
    #[error(transparent)]
    Prove(#[from] Prove),
}

/// Why the operator cannot prove who it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Prove {
    /// It is read when the operator starts.
    #[error("the authority is not loaded yet")]
    NoAuthority,
    /// The authority issues none.
    #[error("failed to make a client certificate")]
    Certificate,
}

/// Why a replica did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Call {
    /// No connection, or no TLS.
    #[error("failed to connect to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    /// Its certificate names another server.
    #[error("the peer at {0} is not a replica of this server")]
    Peer(SocketAddr),
    /// The request or its answer was cut off, or the answer is too long.
    #[error("failed to call {0}: {1}")]
    Exchange(SocketAddr, String),
    /// It answered something else than what was asked for.
    #[error("{0} answered {1} and no state")]
    Answer(SocketAddr, StatusCode),
    /// It took too long.
    #[error("did not answer within {} s", LIMIT.as_secs())]
    Late,
}

/// A pod of a server that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadyPod {
    /// Its name.
    pub(super) name: String,
    /// Its internal port.
    pub(super) address: SocketAddr,
}

/// What each ready replica of a server answers, all of them asked at the same time.
///
/// # Errors
/// [`AskReplicas`] when none can be asked.
pub(super) async fn ask_each(
    context: &Context,
    namespace: &str,
    server: &str,
    question: &StateQuestion,
) -> Result<Vec<(ReadyPod, Result<ReplicaState, Call>)>, AskReplicas> {
    let pods = ready_pods(context, namespace, server).await?;
    if pods.is_empty() {
        return Ok(Vec::new());
    }
    let tls = client_config(context)?;
    let asked = pods.into_iter().map(|pod| {
        let tls = tls.clone();
        async move {
            let answer = state(pod.address, namespace, server, tls, question).await;
            (pod, answer)
        }
    });
    Ok(join_all(asked).await)
}

async fn state(
    address: SocketAddr,
    namespace: &str,
    server: &str,
    tls: Arc<rustls::ClientConfig>,
    question: &StateQuestion,
) -> Result<ReplicaState, Call> {
    let asking = async {
        let mut connection = Connection::open(address, namespace, server, tls).await?;
        let body = serde_json::to_vec(question).expect("texts are JSON");
        let request = connection.post(STATE_PATH).header("content-type", "application/json");
        let (status, answer) = connection.send(request, body.into(), MAX_ANSWER).await?;
        let state = serde_json::from_slice(&answer).ok().filter(|_| status.is_success());
        state.ok_or(Call::Answer(address, status))
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap_or(Err(Call::Late))
}

/// The pods of a server that are ready and stay.
///
/// # Errors
/// [`AskReplicas::List`] when the API server refuses or does not answer.
pub(super) async fn ready_pods(
    context: &Context,
    namespace: &str,
    server: &str,
) -> Result<Vec<ReadyPod>, AskReplicas> {
    let api = Api::<Pod>::namespaced(context.client.clone(), namespace);
    let selector = format!("app.kubernetes.io/name=portcullis-server,{}={server}", names::SERVER_LABEL);
    let pods = api
        .list(&ListParams::default().labels(&selector))
        .await
        .map_err(|error| AskReplicas::List { server: server.to_owned(), text: text(&error) })?;
    Ok(pods.items.iter().filter_map(ready_pod).collect())
}

fn ready_pod(pod: &Pod) -> Option<ReadyPod> {
    let status = pod.status.as_ref()?;
    let is_ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if !is_ready || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    let address = SocketAddr::new(ip, u16::try_from(names::INTERNAL_PORT).ok()?);
    Some(ReadyPod { name: pod.name_any(), address })
}

/// TLS with a leaf of the operator that is made for the connections of one look alone.
///
/// # Errors
/// [`Prove`] when the authority is not there or issues nothing.
pub(super) fn client_config(context: &Context) -> Result<Arc<rustls::ClientConfig>, Prove> {
    let authority = context.authorities.internal().ok_or(Prove::NoAuthority)?;
    config(&authority).ok_or(Prove::Certificate)
}

/// TLS with a new leaf of the operator, for tests and for [`client_config`].
pub(super) fn config(authority: &Authority) -> Option<Arc<rustls::ClientConfig>> {
    let key = KeyPair::generate().ok()?;
    let issued = authority.issue(&Purpose::Operator, &key, Timestamp::now()).ok()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).ok()?).ok()?;
    let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).ok()?];
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).ok()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .ok()?;
    Some(Arc::new(config))
}

/// A connection to a replica that has proved to be one of a server.
pub(super) struct Connection {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    /// Ends the connection with this value: it is never left to itself.
    task: tokio::task::JoinHandle<()>,
    host: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects to a replica.
    ///
    /// # Errors
    /// [`Call`] when there is nobody, or somebody else.
    pub(super) async fn open(
        address: SocketAddr,
        namespace: &str,
        server: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, Call> {
        let failed = |error| Call::Connect(address, error);
        let host = names::internal_host(namespace, server);
        let name = ServerName::try_from(host.clone()).map_err(|_| Call::Peer(address))?;
        let tcp = TcpStream::connect(address).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(failed)?;
        let uri = names::internal_uri(namespace, server);
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        if !leaf.is_some_and(|leaf| carries_uri(leaf, &uri)) {
            return Err(Call::Peer(address));
        }
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let task = tokio::spawn(async move {
            // The end of a connection shows itself in the request that used it.
            let _ = connection.await;
        });
        Ok(Self { address, sender, task, host })
    }

    /// A request to the replica.
    pub(super) fn post(&self, path: &str) -> http::request::Builder {
        Request::post(path).header("host", &self.host)
    }

    /// Sends a request and gives the whole answer, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`Call::Exchange`] when it does not come whole.
    pub(super) async fn send(
        &mut self,
        request: http::request::Builder,
        body: Bytes,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), Call> {
        let address = self.address;
        let failed = |text: String| Call::Exchange(address, text);
        let request = request.body(Full::from(body)).map_err(|error| failed(error.to_string()))?;
        self.sender.ready().await.map_err(|error| failed(error.to_string()))?;
        let response = self.sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limit);
        let bytes = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
        Ok((status, bytes))
    }
}

fn carries_uri(leaf: &CertificateDer<'_>, uri: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::URI(found) if *found == uri))
}

#[cfg(test)]
pub(super) mod tests;
