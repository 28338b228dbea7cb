//! The operator: from objects to running endpoints.
//!
//! Every replica keeps a copy of our kinds; the one that holds the Lease reconciles. Losing the Lease drops whatever
//! is under way at once: each step is safe to stop and to do again.

mod authorities;
mod cluster;
mod engine;
#[cfg(test)]
mod fixture;
mod mcp_api_key;
mod mcp_role;
mod mcp_server;
mod namespaces;
mod replicas;
mod status;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::names;
use crate::k8s::apply::Applier;
use crate::k8s::lease::Candidate;
use crate::metrics::Metrics;

use authorities::Authorities;
use cluster::Cluster;
use engine::Backoff;
use namespaces::Namespaces;

/// Name of the Lease, in the operator's namespace.
const LEASE: &str = "portcullis-operator";
/// Time between two looks at what no watch shows: Secrets, certificates, bindings of servers that are gone.
const PERIOD: Duration = Duration::from_secs(60);

/// Time that the authorities may take before everything else starts without them.
const LOADED_WITHIN: Duration = Duration::from_secs(3);

/// What the operator must be told.
#[derive(Clone, Debug)]
pub(crate) struct OperatorConfig {
    /// The operator's own namespace.
    pub(crate) namespace: String,
    /// Name of this pod: who holds the Lease, and who tells Events.
    pub(crate) pod_name: String,
    /// Name of the operator's ServiceAccount.
    pub(crate) service_account: String,
    /// Image of the servers: the operator's own.
    pub(crate) image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub(crate) image_pull_policy: String,
    /// What an administrator adds to the catalogue of permissions, for the servers too.
    pub(crate) catalogue: Option<String>,
    /// Becomes true when this process, leading or not, has a copy of every kind.
    pub(crate) ready: Arc<AtomicBool>,
}

/// Why the operator ended although nobody told it to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A part ended that runs as long as the process does.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// What every reconcile can use. It lives as long as this process leads.
struct Context {
    config: OperatorConfig,
    client: Client,
    metrics: Arc<Metrics>,
    cluster: Arc<Cluster>,
    namespaces: Namespaces,
    authorities: Authorities,
    applier: Applier,
    handshakes: mcp_server::Handshakes,
    backoff: Backoff,
    recorder: Recorder,
}

/// Runs the operator until it is told to stop.
///
/// # Errors
/// [`Error::Ended`] when a part ended by itself; the process should end, too.
pub(crate) async fn run(
    config: OperatorConfig,
    client: Client,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (cluster, watches) = Cluster::start(&client, &stop);
    let (leading, mut leads) = watch::channel(false);
    let candidate = Candidate {
        api: Api::namespaced(client.clone(), &config.namespace),
        name: LEASE.to_owned(),
        identity: config.pod_name.clone(),
    };
    let campaign = candidate.campaign(leading, stop.clone());
    let ready = async {
        cluster.wait_until_ready().await;
        config.ready.store(true, Ordering::Release);
        std::future::pending::<()>().await;
    };
    let lead = async {
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            tracing::info!("Leadership gained");
            let context = Context::new(&config, &client, &metrics, &cluster);
            tokio::select! {
                // Whatever is under way is dropped here, before another process may start.
                _ = leads.wait_for(|leads| !*leads) => tracing::info!("Leadership lost"),
                () = context.lead() => return,
            }
        }
    };
    let work = async {
        tokio::select! {
            () = watches => Err(Error::Ended("the watches")),
            () = lead => Err(Error::Ended("the controllers")),
            () = ready => Err(Error::Ended("the readiness")),
        }
    };
    tokio::pin!(campaign);
    let outcome = tokio::select! {
        outcome = work => if stop.is_cancelled() { Ok(()) } else { outcome },
        () = &mut campaign => return if stop.is_cancelled() { Ok(()) } else { Err(Error::Ended("the campaign")) },
        () = stop.cancelled() => Ok(()),
    };
    config.ready.store(false, Ordering::Release);
    // The controllers are gone by now; giving the Lease back lets the next process start at once.
    stop.cancel();
    campaign.await;
    outcome
}

impl Context {
    fn new(
        config: &OperatorConfig,
        client: &Client,
        metrics: &Arc<Metrics>,
        cluster: &Arc<Cluster>,
    ) -> Arc<Self> {
        let reporter =
            Reporter { controller: names::FIELD_MANAGER.into(), instance: Some(config.pod_name.clone()) };
        Arc::new(Self {
            config: config.clone(),
            client: client.clone(),
            metrics: metrics.clone(),
            cluster: cluster.clone(),
            namespaces: Namespaces::default(),
            authorities: Authorities::default(),
            applier: Applier::default(),
            handshakes: mcp_server::Handshakes::default(),
            backoff: Backoff::default(),
            recorder: Recorder::new(client.clone(), reporter),
        })
    }

    /// Reconciles everything for as long as it is polled.
    async fn lead(self: &Arc<Self>) {
        self.cluster.wait_until_ready().await;
        let mut loading = std::pin::pin!(authorities::load(self));
        // Usually they are there at once, and the first look at each server finds them.
        let are_loaded = tokio::time::timeout(LOADED_WITHIN, &mut loading).await.is_ok();
        // A Secret that holds no authority keeps servers from being made; it must not keep rights from being revoked.
        let load = async {
            if !are_loaded {
                loading.await;
                self.cluster.look_at_servers(|_| true);
            }
        };
        let (cluster, queues) = (&self.cluster, &self.cluster.queues);
        tokio::join!(
            engine::drive("McpServer", self, &cluster.servers, &queues.servers, mcp_server::reconcile),
            engine::drive("McpApiKey", self, &cluster.keys, &queues.keys, mcp_api_key::reconcile),
            engine::drive("McpRole", self, &cluster.roles, &queues.roles, mcp_role::reconcile),
            engine::drive(
                "ClusterMcpRole",
                self,
                &cluster.cluster_roles,
                &queues.cluster_roles,
                mcp_role::reconcile_cluster
            ),
            engine::drive("Namespace", self, &cluster.namespaces, &queues.namespaces, namespaces::reconcile),
            namespaces::watch_children(self),
            self.sweep(),
            mcp_api_key::sweep(self),
            load,
        );
    }

    /// Looks now and then at what no watch shows.
    async fn sweep(&self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            within_limit("authorities", authorities::check(self)).await;
            within_limit("orphaned bindings", mcp_server::remove_orphaned_bindings(self)).await;
        }
    }
}

/// Gives up a step of a sweep that takes too long: the next sweep does it again.
async fn within_limit(step: &'static str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(engine::LIMIT, work).await.is_err() {
        tracing::warn!(step, "Sweep took too long");
    }
}
