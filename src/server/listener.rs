//! The accept loop: a bounded number of connections, each with TLS before anything else and a time for everything.
//!
//! When told to stop it takes no more connections, lets the open ones finish what they are at, and cuts them off when
//! their time is over. Every connection's task is joined.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::tls::Peer;
use crate::authenticator::Certificate;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests at a time on one connection of HTTP/2.
const STREAMS: u32 = 128;

/// Where a request came in.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Address of the other end.
    pub(super) address: SocketAddr,
    /// Who it is, as far as its certificate says.
    pub(super) peer: Peer,
    /// The certificate that the other end showed.
    pub(super) certificate: Option<Certificate>,
    /// Whether nobody on the way can read what it carries.
    pub(super) is_secure: bool,
}

/// Answers requests.
pub(super) type Answering =
    Arc<dyn Fn(Connection, Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// Knows a peer by its certificate, or does not.
pub(super) type Identifying = Arc<dyn Fn(Option<&CertificateDer<'_>>) -> Option<Peer> + Send + Sync>;

/// How the next handshake goes.
#[derive(Clone)]
pub(super) struct Handshake {
    /// TLS.
    pub(super) tls: Arc<ServerConfig>,
    /// Whether a certificate that the other end shows is verified.
    pub(super) verifies: bool,
}

/// How connections are secured.
pub(super) enum Security {
    /// By TLS, as the next handshake goes; none: there can be no handshake now.
    Tls(Box<dyn Fn() -> Option<Handshake> + Send + Sync>),
    /// Not at all: they never leave this machine.
    Loopback,
}

impl Security {
    /// How the next connection begins: with a handshake or without. None: there can be no connection now.
    fn next(&self) -> Option<Option<Handshake>> {
        match self {
            Security::Tls(next) => next().map(Some),
            Security::Loopback => Some(None),
        }
    }
}

/// One listener.
pub(super) struct Listener {
    /// The socket.
    pub(super) socket: TcpListener,
    /// How connections are secured.
    pub(super) security: Security,
    /// Knows the peer by its certificate; none: the connection is closed.
    pub(super) identify: Identifying,
    /// Answers its requests.
    pub(super) answering: Answering,
    /// Most connections at a time.
    pub(super) connections: usize,
    /// Time to finish in after the end was announced.
    pub(super) drain: Duration,
}

impl Listener {
    /// Serves until told to stop, and then until the last connection has ended.
    pub(super) async fn run(self, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(self.connections));
        let mut open = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = open.join_next() => continue,
                accepted = self.socket.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                debug!(%address, "connection refused: there are too many");
                continue;
            };
            let Some(handshake) = self.security.next() else {
                debug!(%address, "connection refused: clients cannot be verified");
                continue;
            };
            let identify = self.identify.clone();
            let (answering, stop) = (self.answering.clone(), stop.clone());
            open.spawn(async move {
                let _place = place;
                match handshake {
                    Some(handshake) => {
                        let shaken = shake_hands(stream, address, handshake, &*identify).await;
                        let Some((stream, connection)) = shaken else { return };
                        // The version is agreed on in the handshake. To find it out from the first bytes, the library
                        // would wait for them without a limit.
                        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        serve(stream, is_http2, connection, answering, stop).await;
                    }
                    None => {
                        let Some(peer) = identify(None) else { return };
                        let connection = Connection { address, peer, certificate: None, is_secure: false };
                        serve(stream, false, connection, answering, stop).await;
                    }
                }
            });
        }
        drop(self.socket);
        let end = tokio::time::sleep(self.drain);
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                ended = open.join_next() => if ended.is_none() { break },
            }
        }
        open.shutdown().await;
    }
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    Handshake { tls, verifies }: Handshake,
    identify: &(dyn Fn(Option<&CertificateDer<'_>>) -> Option<Peer> + Send + Sync),
) -> Option<(TlsStream<TcpStream>, Connection)> {
    // A socket for both families names an IPv4 client by an IPv6 address; the record should not.
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%address, %error, "TCP_NODELAY not set");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            debug!(%address, %error, "TLS handshake failed");
            return None;
        }
        Err(_) => {
            debug!(%address, "TLS handshake took too long");
            return None;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(peer) = identify(certificate) else {
        warn!(%address, "connection refused: its certificate is neither the operator's nor of this server");
        return None;
    };
    let certificate = certificate
        .map(|shown| Certificate { der: Arc::new(shown.clone().into_owned()), verified: verifies });
    Some((stream, Connection { address, peer, certificate, is_secure: true }))
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    is_http2: bool,
    connection: Connection,
    answering: Answering,
    stop: CancellationToken,
) {
    let address = connection.address;
    let service = service_fn(move |request| {
        let answer = answering(connection.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if is_http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(HANDSHAKE);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%address, %error, "connection ended");
    }
}
