//! The endpoint: from requests to decisions, tools and answers.
//!
//! ```text
//! listener (TLS) -> transport (Host, Origin, path, size) -> request (who, what, record) -> call (one tool)
//!                -> about, oauth, token (beside MCP)           sse, sealed, peers (streams over several replicas)
//!                -> internal (operator, replicas)         client_tls, tls (handshakes)   usage (of keys)
//! ```
//!
//! [`bind`] takes everything that can fail at the start; [`Server::run`] serves until told to stop, and then drains:
//! not ready first, then no new connections and messages, then the end of streams that have
//! their answers, then the end of what takes too long.

mod about;
mod call;
mod client_tls;
mod draft;
mod habits;
mod handler;
mod hosts;
mod internal;
mod listener;
mod oauth;
mod peers;
mod request;
mod result;
mod sealed;
pub(crate) mod self_signed;
mod sse;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod toolbox;
mod transport;
mod unserved;
mod usage;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::audit::AuditLog;
use crate::authenticator::Authenticator;
use crate::authz::Violation;
use crate::index::Policy;
use crate::metrics::Metrics;
use crate::tools::Tool;
use client_tls::ClientTls;
use habits::Habits;
use hosts::OwnHosts;
use listener::{Connection, Handshake, Listener, Security};
use peers::Peers;
use request::{Core, Driver};
use sealed::Sealer;
use sse::Sessions;
use tls::{Hot, Internal, Peer};
use transport::Endpoint;
use usage::Usage;

pub(crate) use tls::LoadTls;
pub(crate) use toolbox::opens;

/// Most connections of clients at a time, and of peers.
const CONNECTIONS: usize = 4096;
const PEER_CONNECTIONS: usize = 128;
/// Most tools that run at a time.
const CALLS: usize = 64;
/// Time between two looks whether the policy is complete.
const SYNC_POLL: Duration = Duration::from_millis(20);

/// What is to be served, and where.
#[derive(Clone, Debug)]
pub(crate) struct ServeConfig {
    /// Namespace of the `McpServer`.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) server: String,
    /// Address by which other replicas reach this one. None: there are no others.
    pub(crate) pod_ip: Option<IpAddr>,
    /// Address of the endpoint.
    pub(crate) listen: SocketAddr,
    /// Address of the same endpoint without TLS, for clients of this machine only.
    pub(crate) plain_listen: Option<SocketAddr>,
    /// Directory with `tls.crt` and `tls.key` of the endpoint.
    pub(crate) tls_dir: PathBuf,
    /// The internal port. None with `--from`.
    pub(crate) internal: Option<InternalConfig>,
    /// Times; [`Times::default`] is for production.
    pub(crate) times: Times,
}

/// The internal port.
#[derive(Clone, Debug)]
pub(crate) struct InternalConfig {
    /// Its address.
    pub(crate) listen: SocketAddr,
    /// Directory with `tls.crt`, `tls.key` and `ca.crt` of the internal CA.
    pub(crate) tls_dir: PathBuf,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// A call of a tool.
    pub(crate) call: Duration,
    /// From "not ready" to the end of accepting: Services must have noticed.
    pub(crate) linger: Duration,
    /// From the end of accepting to the end of the last request.
    pub(crate) drain: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { call: seconds(30), linger: seconds(5), drain: seconds(20) }
    }
}

/// What the endpoint is made of.
pub(crate) struct ServeParts {
    /// The cluster, as this server's ServiceAccount.
    pub(crate) client: kube::Client,
    /// Who may do what.
    pub(crate) policy: Policy,
    /// The record.
    pub(crate) audit: AuditLog,
    /// The counters.
    pub(crate) metrics: Arc<Metrics>,
    /// Proves who is calling.
    pub(crate) authenticator: Authenticator,
    /// The tools: the registry.
    pub(crate) tools: &'static [Tool],
    /// True while requests are served, for `/readyz`.
    pub(crate) ready: Arc<AtomicBool>,
}

/// Why the endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Serve {
    /// An address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Without TLS, others could read keys and answers.
    #[error("{address} is not a loopback address, and without TLS nothing else is served")]
    Plain {
        /// Which one.
        address: SocketAddr,
    },
    /// The certificate cannot be used.
    #[error("load certificate from {directory}")]
    Certificate {
        /// Where it is.
        directory: PathBuf,
        /// Why.
        #[source]
        source: LoadTls,
    },
}

/// An endpoint that is ready to be run.
pub(crate) struct Server {
    endpoint: Arc<Endpoint>,
    policy: Policy,
    ready: Arc<AtomicBool>,
    times: Times,
    public: (TcpListener, Arc<Hot<CertifiedKey>>),
    client_tls: Arc<ClientTls>,
    plain: Option<TcpListener>,
    internal: Option<(TcpListener, Arc<Hot<Internal>>)>,
    config: ServeConfig,
}

/// Opens the sockets and reads the certificates.
///
/// # Errors
/// [`Serve`] says what cannot be had.
pub(crate) async fn bind(config: ServeConfig, parts: ServeParts) -> Result<Server, Serve> {
    let name = format!("{}/{}", config.namespace, config.server);
    let certificate =
        |directory: &PathBuf, source| Serve::Certificate { directory: directory.clone(), source };
    let tls = Hot::open(&config.tls_dir, false, tls::leaf).map_err(|e| certificate(&config.tls_dir, e))?;
    let public = (listen(config.listen).await?, Arc::new(tls));
    let plain = match config.plain_listen {
        Some(address) => Some(listen_without_tls(address).await?),
        None => None,
    };
    let (mut internal, mut peers, mut sealer) = (None, None, Arc::new(Sealer::random(&name)));
    if let Some(port) = &config.internal {
        let (hot, shared) = internal_tls(&name, port).map_err(|e| certificate(&port.tls_dir, e))?;
        let socket = listen(port.listen).await?;
        let number = socket.local_addr().map_or(port.listen.port(), |address| address.port());
        peers = Some(Arc::new(Peers::new(hot.clone(), &config.namespace, &config.server, number)));
        internal = Some((socket, hot));
        sealer = shared;
    }
    let own_ip = config.pod_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let hosts = OwnHosts::new(&config.namespace, &config.server, config.pod_ip);
    Violation::ALL.iter().for_each(|violation| parts.metrics.expect_violation(violation.as_str()));
    let core = Core {
        server: name,
        client: parts.client,
        policy: parts.policy.clone(),
        audit: parts.audit,
        metrics: parts.metrics.clone(),
        authenticator: parts.authenticator,
        toolbox: toolbox::Toolbox::new(parts.tools),
        habits: Habits::new(),
        recording: TaskTracker::new(),
        places: Semaphore::new(CALLS),
        deadline: config.times.call,
    };
    let endpoint = Endpoint {
        driver: Driver::new(Arc::new(core)),
        sessions: Sessions::new(own_ip, sealer, parts.metrics),
        peers,
        hosts,
        usage: Usage::default(),
    };
    let (endpoint, times) = (Arc::new(endpoint), config.times);
    let asking = endpoint.clone();
    let client_tls = Arc::new(ClientTls::new(public.1.clone(), move || asking.asking()));
    let (policy, ready) = (parts.policy, parts.ready);
    Ok(Server { endpoint, policy, ready, times, public, client_tls, plain, internal, config })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Serve> {
    TcpListener::bind(address).await.map_err(|source| Serve::Listen { address, source })
}

async fn listen_without_tls(address: SocketAddr) -> Result<TcpListener, Serve> {
    if !address.ip().is_loopback() {
        return Err(Serve::Plain { address });
    }
    listen(address).await
}

/// TLS of the internal port, and the sealer whose keys come from its private key.
fn internal_tls(name: &str, port: &InternalConfig) -> Result<(Arc<Hot<Internal>>, Arc<Sealer>), LoadTls> {
    let sealer = Arc::new(Sealer::empty(name));
    let learning = sealer.clone();
    let hot = Hot::open(&port.tls_dir, true, move |files| {
        let built = Internal::build(files)?;
        learning.learn(&files.key, Instant::now());
        Ok(built)
    })?;
    Ok((Arc::new(hot), sealer))
}

impl Server {
    /// Where the endpoint listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.public.0.local_addr()
    }

    /// Says at any time whether clients can shake hands: not if they must be verified and there is nothing to verify
    /// them with.
    pub(crate) fn shakes_hands(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let tls = self.client_tls.clone();
        move || tls.current().is_some()
    }

    /// Where the endpoint listens without TLS.
    #[cfg(test)]
    pub(crate) fn plain_address(&self) -> Option<SocketAddr> {
        self.plain.as_ref().and_then(|socket| socket.local_addr().ok())
    }

    /// Where the internal port listens.
    #[cfg(test)]
    pub(crate) fn internal_address(&self) -> Option<SocketAddr> {
        self.internal.as_ref().and_then(|(socket, _)| socket.local_addr().ok())
    }

    /// Serves until told to stop, and then until everything has ended.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (accepting, serving) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        let (socket, tls) = self.public;
        tasks.spawn({
            let serving = serving.clone();
            async move { tls.follow(serving).await }
        });
        tasks.spawn({
            let (endpoint, policy, serving) = (self.endpoint.clone(), self.policy.clone(), serving.clone());
            async move { forget_keys(&endpoint.usage, &policy, serving).await }
        });
        let tls = self.client_tls;
        let security = Security::Tls(Box::new(move || tls.current()));
        let listener = public_listener(self.endpoint.clone(), socket, security, self.times.drain);
        let mut listeners = JoinSet::new();
        listeners.spawn(listener.run(accepting.clone()));
        if let Some(socket) = self.plain {
            let drain = self.times.drain;
            let listener = public_listener(self.endpoint.clone(), socket, Security::Loopback, drain);
            listeners.spawn(listener.run(accepting.clone()));
        }
        if let Some((socket, tls)) = self.internal {
            let listener =
                internal_listener(self.endpoint.clone(), socket, tls.clone(), &self.config, self.times.drain);
            listeners.spawn(listener.run(accepting.clone()));
            let serving = serving.clone();
            tasks.spawn(async move { tls.follow(serving).await });
        }
        let (endpoint, stop_streams, drain) = (self.endpoint.clone(), accepting.clone(), self.times.drain);
        tasks.spawn(async move {
            endpoint.sessions.sweep(&endpoint.driver.core, stop_streams, drain).await;
        });

        if stop.run_until_cancelled(synced(&self.policy)).await.is_some() {
            self.ready.store(true, Ordering::Release);
            info!(namespace = self.config.namespace, server = self.config.server, "serving");
            stop.cancelled().await;
            self.ready.store(false, Ordering::Release);
            info!("draining");
            tokio::time::sleep(self.times.linger).await;
        }
        accepting.cancel();
        while listeners.join_next().await.is_some() {}
        serving.cancel();
        while tasks.join_next().await.is_some() {}
        if let Some(peers) = &self.endpoint.peers {
            peers.close().await;
        }
        let recording = &self.endpoint.driver.core.recording;
        recording.close();
        recording.wait().await;
        info!("stopped");
    }
}

/// Forgets how keys were used that are gone, until told to stop.
async fn forget_keys(usage: &Usage, policy: &Policy, stop: CancellationToken) {
    let mut changes = policy.changes();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        usage.retain(&policy.load());
    }
}

async fn synced(policy: &Policy) {
    while !policy.is_synced() {
        tokio::time::sleep(SYNC_POLL).await;
    }
}

fn public_listener(
    endpoint: Arc<Endpoint>,
    socket: TcpListener,
    security: Security,
    drain: Duration,
) -> Listener {
    Listener {
        socket,
        security,
        identify: Arc::new(|_| Some(Peer::Client)),
        answering: Arc::new(move |connection: Connection, request| {
            Box::pin(endpoint.clone().answer(connection, request))
        }),
        connections: CONNECTIONS,
        drain,
    }
}

fn internal_listener(
    endpoint: Arc<Endpoint>,
    socket: TcpListener,
    tls: Arc<Hot<Internal>>,
    config: &ServeConfig,
    drain: Duration,
) -> Listener {
    let (namespace, server) = (config.namespace.clone(), config.server.clone());
    Listener {
        socket,
        security: Security::Tls(Box::new(move || {
            Some(Handshake { tls: tls.current().server.clone(), verifies: true })
        })),
        identify: Arc::new(move |certificate| tls::identify(certificate?, &namespace, &server)),
        answering: Arc::new(move |connection, request| {
            Box::pin(internal::answer(endpoint.clone(), connection, request))
        }),
        connections: PEER_CONNECTIONS,
        drain,
    }
}
