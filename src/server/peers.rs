//! The other replicas: a message for a stream that lives on one of them is passed on, by mutual TLS.
//!
//! The receiving replica checks again that the caller is the stream's owner. Connections are kept, one per replica.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::request::Caller;
use super::tls::{Hot, Internal};
use crate::api::names;
use crate::authn::Identity;

/// Path on the internal port.
pub(super) const MESSAGES: &str = "/internal/sse/messages";
pub(super) const SESSION: HeaderName = HeaderName::from_static("x-portcullis-session");
pub(super) const IDENTITY: HeaderName = HeaderName::from_static("x-portcullis-identity");
pub(super) const CLIENT_IP: HeaderName = HeaderName::from_static("x-portcullis-client-ip");

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(10);

/// Why a message could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardMessage {
    /// The replica cannot be reached: gone, most likely.
    #[error("connect to replica {ip}")]
    Connect {
        /// Its address.
        ip: IpAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The replica did not answer.
    #[error("send message to replica {ip}")]
    Send {
        /// Its address.
        ip: IpAddr,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// It took too long.
    #[error("replica {ip} did not answer in time")]
    Time {
        /// Its address.
        ip: IpAddr,
    },
    /// What is known of the caller does not fit into headers.
    #[error("describe caller to replica")]
    Describe(#[source] http::header::InvalidHeaderValue),
}

/// Connections to the other replicas.
pub(super) struct Peers {
    tls: Arc<Hot<Internal>>,
    name: ServerName<'static>,
    port: u16,
    open: Mutex<HashMap<IpAddr, SendRequest<Full<Bytes>>>>,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Peers {
    /// No connections yet. The others listen on the same port as this replica.
    pub(super) fn new(tls: Arc<Hot<Internal>>, namespace: &str, server: &str, port: u16) -> Self {
        let host = names::internal_host(namespace, server);
        let name = ServerName::try_from(host).expect("names of objects make a DNS name");
        let (connections, stop) = (TaskTracker::new(), CancellationToken::new());
        Self { tls, name, port, open: Mutex::default(), connections, stop }
    }

    /// Passes a message on, and says what the other replica made of it.
    pub(super) async fn forward(
        &self,
        ip: IpAddr,
        session: &str,
        caller: &Caller,
        body: Bytes,
    ) -> Result<StatusCode, ForwardMessage> {
        let passing = async {
            let mut sender = self.sender(ip).await?;
            let request = describe(session, caller, body).map_err(ForwardMessage::Describe)?;
            let sent = sender.send_request(request).await;
            let response = sent.map_err(|source| ForwardMessage::Send { ip, source })?;
            Ok(response.status())
        };
        let status = tokio::time::timeout(ANSWER, passing).await;
        let status = status.unwrap_or(Err(ForwardMessage::Time { ip }));
        if status.is_err() {
            self.open.lock().await.remove(&ip);
        }
        status
    }

    /// Ends every connection.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.connections.close();
        self.connections.wait().await;
    }

    async fn sender(&self, ip: IpAddr) -> Result<SendRequest<Full<Bytes>>, ForwardMessage> {
        let mut open = self.open.lock().await;
        open.retain(|_, sender| !sender.is_closed());
        if let Some(sender) = open.get(&ip) {
            return Ok(sender.clone());
        }
        drop(open);
        // Without the lock: a replica that does not answer must not hold up messages for the others.
        let sender = self.connect(ip).await?;
        self.open.lock().await.insert(ip, sender.clone());
        Ok(sender)
    }

    async fn connect(&self, ip: IpAddr) -> Result<SendRequest<Full<Bytes>>, ForwardMessage> {
        let connecting = async {
            let stream = TcpStream::connect(SocketAddr::new(ip, self.port)).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(self.tls.current().client.clone());
            connector.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout(CONNECT, connecting)
            .await
            .map_err(|_| ForwardMessage::Time { ip })?
            .map_err(|source| ForwardMessage::Connect { ip, source })?;
        let opened = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|source| ForwardMessage::Send { ip, source })?;
        let stop = self.stop.clone();
        self.connections.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
                tracing::debug!(%ip, %error, "connection to replica ended");
            }
        });
        Ok(sender)
    }
}

fn describe(
    session: &str,
    caller: &Caller,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, http::header::InvalidHeaderValue> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("https://replica/internal/sse/messages");
    let headers = request.headers_mut();
    headers.insert(SESSION, HeaderValue::from_str(session)?);
    let identity = serde_json::to_vec(&caller.identity).expect("texts and times are JSON");
    headers.insert(IDENTITY, HeaderValue::from_str(&BASE64_URL_SAFE_NO_PAD.encode(identity))?);
    headers.insert(CLIENT_IP, HeaderValue::from_str(&caller.client_ip.to_string())?);
    Ok(request)
}

/// The caller and the session as the other replica described them.
pub(super) struct Described<'a> {
    /// The sealed session id.
    pub(super) session: &'a str,
    /// Who the caller is.
    pub(super) identity: Identity,
    /// Where the caller calls from.
    pub(super) client_ip: IpAddr,
}

impl<'a> Described<'a> {
    /// Reads the headers of a message that was passed on.
    pub(super) fn read(headers: &'a HeaderMap) -> Option<Self> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        Some(Self {
            session: text(&SESSION)?,
            identity: serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text(&IDENTITY)?).ok()?).ok()?,
            client_ip: text(&CLIENT_IP)?.parse().ok()?,
        })
    }
}
