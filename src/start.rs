//! Starts the two halves: makes the parts, joins them, and stops them in order when told to.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Gate, Gates};
use crate::api::names;
use crate::audit::{AuditLog, Notifier, Refusal, Settings};
use crate::authenticator::{self, Authenticator, Materials};
use crate::authz::extension;
use crate::cli::{OperatorArguments, ServeArguments};
use crate::controller::{self, OperatorConfig};
use crate::index::files::{Environment, Variables};
use crate::index::freshness::{Following, Staleness};
use crate::index::{self, Policy, Subject};
use crate::metrics::Metrics;
use crate::server::{self, InternalConfig, ServeConfig, ServeParts, Times};
use crate::tools;

mod directory;

/// Directory of the endpoint's certificate in a pod.
const TLS_DIRECTORY: &str = "/etc/portcullis/tls";
/// Directory of the internal port's certificate in a pod.
const INTERNAL_TLS_DIRECTORY: &str = "/etc/portcullis/internal";
/// The process's own token of the cluster in a pod.
const TOKEN_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// The audit's file in a pod.
const AUDIT_FILE: &str = "/var/lib/portcullis/audit.db";

/// Runs the operator until a signal ends it.
pub(crate) fn operator(arguments: OperatorArguments) -> anyhow::Result<()> {
    run(async move {
        let stop = stop_on_signal()?;
        let (registry, metrics) = metrics(None);
        let ready = Arc::new(AtomicBool::new(false));
        let config = OperatorConfig {
            namespace: arguments.namespace,
            pod_name: arguments.pod_name,
            service_account: arguments.service_account,
            image: arguments.image,
            image_pull_policy: arguments.image_pull_policy,
            catalogue: extension::text().map(str::to_owned),
            ready: ready.clone(),
        };
        let gates = Gates::default().with("cache", ready);
        let admin = listen(arguments.admin_listen).await?;
        let client = client().await?;
        let operator = async {
            let outcome = controller::run(config, client, metrics, stop.clone()).await;
            stop.cancel();
            outcome.map_err(anyhow::Error::from)
        };
        let admin = admin::serve(admin, gates, registry, stop.clone());
        let (operator, admin) = tokio::join!(operator, admin);
        admin.context("health and metrics")?;
        operator
    })
}

/// Runs an endpoint until a signal ends it.
pub(crate) fn serve(arguments: ServeArguments, environment: Environment) -> anyhow::Result<()> {
    if arguments.from.is_none()
        && let Some(variable) = Variables::first(&environment)
    {
        anyhow::bail!(
            "{variable}: counts with --from only; an McpServer of the cluster says how callers prove who they are"
        );
    }
    run(async move {
        match arguments.from.clone() {
            Some(directory) => directory::serve(&directory, arguments, environment).await,
            None => serve_object(arguments).await,
        }
    })
}

/// Serves an `McpServer` of the cluster, in one of its pods.
async fn serve_object(arguments: ServeArguments) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let everywhere = |port: i32| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port as u16);
    let subject = Subject {
        namespace: arguments.namespace.context("--namespace is missing")?,
        server: arguments.server.context("--server is missing")?,
        operator_namespace: arguments.operator_namespace,
    };
    let client = client().await?;
    let config = ServeConfig {
        namespace: subject.namespace.clone(),
        server: subject.server.clone(),
        pod_ip: Some(arguments.pod_ip),
        listen: arguments.listen.unwrap_or_else(|| everywhere(names::HTTPS_PORT)),
        tls_dir: PathBuf::from(TLS_DIRECTORY),
        plain_listen: None,
        internal: Some(InternalConfig {
            listen: everywhere(names::INTERNAL_PORT),
            tls_dir: PathBuf::from(INTERNAL_TLS_DIRECTORY),
        }),
        times: Times::default(),
    };
    let admin = arguments.admin_listen.unwrap_or_else(|| everywhere(names::ADMIN_PORT));
    let ended = CancellationToken::new();
    let (policy, following) = index::watch::follow(client.clone(), subject, ended.clone());
    let (registry, metrics) = metrics(Some(&policy));
    let (sender, refusals) = Notifier::queue();
    let notifying =
        notify(client.clone(), policy.clone(), arguments.pod_name, refusals, ended.clone(), metrics.clone());
    let following = async {
        following.await;
        ended.cancel();
    };
    let background = async {
        tokio::join!(following, notifying);
    };
    let audit = (PathBuf::from(AUDIT_FILE), Settings { refusals: Some(sender), ..Settings::default() });
    let directory = Path::new(names::MATERIALS_DIRECTORY);
    let materials = Materials::mounted(directory).context("mounted Secrets and ConfigMaps")?;
    let proving = authenticator::Settings {
        namespace: config.namespace.clone(),
        server: config.server.clone(),
        resource: None,
        token_file: Some(PathBuf::from(TOKEN_FILE)),
    };
    let authenticator = Authenticator::new(client.clone(), materials, proving);
    let process = Process { client, policy, authenticator, registry, metrics, stop, ended: ended.clone() };
    endpoint(config, admin, audit, process, background).await
}

/// What the parts of an endpoint share.
struct Process {
    client: kube::Client,
    policy: Policy,
    authenticator: Authenticator,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// Told to stop: no new requests.
    stop: CancellationToken,
    /// The last request has ended.
    ended: CancellationToken,
}

/// Runs an endpoint with its record, its policy's source, and its health, and ends them in that order.
async fn endpoint(
    config: ServeConfig,
    admin: SocketAddr,
    (audit_file, settings): (PathBuf, Settings),
    process: Process,
    background: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let Process { client, policy, authenticator, registry, metrics, stop, ended } = process;
    let name = format!("{}/{}", config.namespace, config.server);
    let settings = Settings { tools: tools::names(tools::registry()).collect(), ..settings };
    let (audit, writer) = AuditLog::open_with(&audit_file, &name, metrics.clone(), settings)
        .with_context(|| format!("audit log {}", audit_file.display()))?;
    let ready = Arc::new(AtomicBool::new(false));
    let followed = policy.clone();
    let gates = Gates::default()
        .with("endpoint", ready.clone())
        .asking("policy", move || policy_gate(followed.following(jiff::Timestamp::now())));
    let admin = listen(admin).await?;
    let proving = authenticator.clone().follow(policy.clone(), ended.clone());
    let parts = ServeParts { client, policy, audit, metrics, authenticator, tools: tools::registry(), ready };
    let server = server::bind(config, parts).await?;
    let shakes_hands = server.shakes_hands();
    let unverified = || Gate::Closed(Some("there is nothing to verify clients with".to_owned()));
    let gates = gates.asking("client-certificates", move || match shakes_hands() {
        true => Gate::Open,
        false => unverified(),
    });
    tracing::info!(address = %server.address()?, server = name, "Listening");
    // Health is served and the policy followed until the last request has ended: a draining pod is alive, and a key
    // that is revoked meanwhile is refused.
    let serving = async {
        server.run(stop.clone()).await;
        let closed = writer.close().await;
        stop.cancel();
        ended.cancel();
        closed
    };
    let background = async {
        background.await;
        // Whoever follows the policy runs as long as the process does.
        stop.cancel();
    };
    let health = admin::serve(admin, gates, registry, ended.clone());
    let (closed, (), (), health) = tokio::join!(serving, background, proving, health);
    closed.context("audit log")?;
    health.context("health and metrics")
}

/// A replica that falls behind alone is taken out of the Service. When the API server answers nobody, none must be.
fn policy_gate(following: Following) -> Gate {
    match following {
        Following::Current => Gate::Open,
        Following::Behind(_) => Gate::Closed(Some(following.to_string())),
        Following::OutOfReach(_) => Gate::Degraded(following.to_string()),
    }
}

/// Tells refusals as Kubernetes Events on the `McpServer`, once it is known which one that is.
async fn notify(
    client: kube::Client,
    policy: Policy,
    instance: String,
    refusals: tokio::sync::mpsc::Receiver<Refusal>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) {
    let mut changes = policy.changes();
    let server: ObjectReference = loop {
        if let Some(server) = policy.load().server.as_ref() {
            break server.object_ref(&());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    };
    Notifier { client, server, instance, metrics }.run(refusals, stop).await;
}

/// Runs on as many threads as there are cores.
fn run(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another provider of cryptography is installed already"))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

/// A token that the first SIGTERM or SIGINT cancels.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = stop.clone();
    // The task lives as long as the process; there is nothing to join it for.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("Stopping on SIGTERM"),
            _ = interrupt.recv() => tracing::info!("Stopping on SIGINT"),
            () = cancelled.cancelled() => {}
        }
        cancelled.cancel();
    });
    Ok(stop)
}

/// The counters, and the age of an endpoint's policy.
fn metrics(policy: Option<&Policy>) -> (Arc<Registry>, Arc<Metrics>) {
    let mut registry = Registry::default();
    if let Some(policy) = policy {
        registry.register_collector(Box::new(Staleness(policy.clone())));
    }
    let metrics = Arc::new(Metrics::new(&mut registry));
    (Arc::new(registry), metrics)
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// A client of the cluster that this process runs in or that the kubeconfig names.
async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer()
        .await
        .context("no cluster: run inside one, or set KUBECONFIG to a file that names one")?;
    // Each caller knows what may be tried again; a retried write could happen twice.
    config.default_retry = false;
    // A connection that died without a word is given up. Every watch ends by itself well before this.
    config.read_timeout = Some(std::time::Duration::from_secs(75));
    Ok(kube::Client::try_from(config)?)
}
