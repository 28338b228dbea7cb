//! Leader election over a Lease: at most one holder acts, and it stops before another may start.
//!
//! A foreign Lease may be taken only when the same `resourceVersion` has stood for its duration by the local clock, so
//! clocks of different machines need not agree. A holder that could not renew for two thirds of the duration stops.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long a Lease stands without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// The holder stops when it could not renew for this long, which is before others may start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two attempts.
const PERIOD: Duration = Duration::from_secs(2);

/// One process that wants to lead.
pub(crate) struct Candidate {
    /// Leases of the operator's namespace.
    pub(crate) api: Api<Lease>,
    /// Name of the Lease.
    pub(crate) name: String,
    /// Name of this process.
    pub(crate) identity: String,
}

/// A foreign Lease, and since when it has not changed.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Candidate {
    /// Campaigns until told to stop, and says through `leading` whether this process may act.
    pub(crate) async fn campaign(self, leading: watch::Sender<bool>, stop: CancellationToken) {
        let mut seen: Option<Seen> = None;
        let mut renewed: Option<Instant> = None;
        loop {
            // Measured before the request, so that a slow answer shortens our time, not the others'.
            let asked = Instant::now();
            let limit = renewed.map_or(PATIENCE, |last| PATIENCE.saturating_sub(last.elapsed()));
            match timeout(limit, self.attempt(&mut seen)).await {
                Ok(Ok(true)) => renewed = Some(asked),
                Ok(Ok(false)) => renewed = None,
                Ok(Err(error)) => tracing::warn!(%error, "Lease not renewed"),
                Err(_) => tracing::warn!("Lease not renewed in time"),
            }
            let holds = renewed.is_some_and(|last| last.elapsed() < PATIENCE);
            if !holds {
                renewed = None;
            }
            leading.send_if_modified(|current| std::mem::replace(current, holds) != holds);
            let pause = renewed.map_or(PERIOD, |last| PERIOD.min(PATIENCE.saturating_sub(last.elapsed())));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        leading.send_replace(false);
        if renewed.is_some() {
            self.resign().await;
        }
    }

    /// Takes or renews the Lease. False: somebody else holds it.
    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            return won(self.api.create(&PostParams::default(), &self.lease(None)).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.identity || holder.is_empty() {
            return self.replace(lease).await;
        }
        let duration =
            Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(1).unsigned_abs().into());
        match seen {
            Some(seen) if seen.version == lease.metadata.resource_version => {
                if seen.since.elapsed() >= duration { self.replace(lease).await } else { Ok(false) }
            }
            _ => {
                *seen =
                    Some(Seen { version: lease.metadata.resource_version.clone(), since: Instant::now() });
                Ok(false)
            }
        }
    }

    /// Writes our name; the resourceVersion makes sure that nobody else did since we read.
    async fn replace(&self, lease: Lease) -> Result<bool, kube::Error> {
        let mut next = self.lease(lease.spec.as_ref());
        next.metadata = lease.metadata;
        won(self.api.replace(&self.name, &PostParams::default(), &next).await)
    }

    fn lease(&self, before: Option<&LeaseSpec>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let same = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).expect("fifteen seconds")),
                acquire_time: before
                    .filter(|_| same)
                    .map_or(Some(now.clone()), |spec| spec.acquire_time.clone()),
                renew_time: Some(now),
                lease_transitions: Some(if same || before.is_none() { transitions } else { transitions + 1 }),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Lets the next one start at once.
    async fn resign(&self) {
        let resign = async {
            let mut lease = self.api.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match timeout(Duration::from_secs(3), resign).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "Lease not given back"),
            Err(_) => tracing::warn!("Lease not given back in time"),
        }
    }
}

/// A lost race is no error.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}
