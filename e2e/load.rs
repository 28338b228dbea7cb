//! Steady load over several connections of HTTP/2, and what became of every request.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::wire::{Failure, Multiplexed, Wire};

/// The header that proves who is calling, and a name for the credential in reports that does not tell it.
pub(crate) struct Shown {
    /// Name and value of the header.
    pub(crate) header: (&'static str, String),
    /// What stands for the credential in a report.
    pub(crate) label: String,
}

impl Shown {
    /// An API key, reported by its id.
    pub(crate) fn key(key: &str) -> Self {
        Self { header: ("x-api-key", key.to_owned()), label: key_id(key).to_owned() }
    }

    /// A bearer token, reported by the given name.
    pub(crate) fn token(token: &str, label: String) -> Self {
        Self { header: ("authorization", format!("Bearer {token}")), label }
    }
}

/// The public part of an API key.
pub(crate) fn key_id(key: &str) -> &str {
    key.split('_').nth(1).expect("pcl_<id>_<secret>")
}

/// A request that got no good answer.
#[derive(Debug)]
struct Refusal {
    /// Seconds since the load began.
    at: f64,
    /// The credential.
    label: String,
    /// Status, or what went wrong before there was one.
    why: String,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    latencies: Vec<Duration>,
    refusals: Vec<Refusal>,
    lasted: Duration,
}

impl Outcome {
    /// Number of requests with a good answer.
    pub(crate) fn passed(&self) -> usize {
        self.latencies.len()
    }

    /// Requests in a second, answered well or not.
    pub(crate) fn rate(&self) -> f64 {
        (self.latencies.len() + self.refusals.len()) as f64 / self.lasted.as_secs_f64()
    }

    /// Fails when a request was refused, and says what there was to see otherwise.
    pub(crate) fn assert_none_refused(&mut self, what: &str) {
        self.latencies.sort_unstable();
        let part = |share: f64| {
            self.latencies.get((self.latencies.len() as f64 * share) as usize).copied().unwrap_or_default()
        };
        eprintln!(
            "{what}: {} requests passed, {} refused, {:.0} a second for {:.0} s; median {:?}, p99 {:?}, longest {:?}",
            self.passed(),
            self.refusals.len(),
            self.rate(),
            self.lasted.as_secs_f64(),
            part(0.5),
            part(0.99),
            self.latencies.last().copied().unwrap_or_default(),
        );
        let some = self.refusals.iter().take(20);
        let some: Vec<_> =
            some.map(|one| format!("at {:.3} s, {}: {}", one.at, one.label, one.why)).collect();
        assert!(self.refusals.is_empty(), "{what}: {} refused: {some:#?}", self.refusals.len());
    }
}

/// Load that goes on until it is stopped.
pub(crate) struct Load {
    stop: CancellationToken,
    connections: JoinSet<()>,
    outcome: Arc<Mutex<Outcome>>,
    began: Instant,
}

struct Worker<C> {
    wire: Wire,
    credential: C,
    outcome: Arc<Mutex<Outcome>>,
    began: Instant,
}

impl Load {
    /// Sends `rate` requests a second over a number of connections, each with the credential that counts at its moment.
    pub(crate) fn start<C>(wires: &[Wire], connections: usize, rate: u32, credential: C) -> Self
    where
        C: Fn() -> Shown + Clone + Send + Sync + 'static,
    {
        let (stop, began) = (CancellationToken::new(), Instant::now());
        let outcome = Arc::new(Mutex::new(Outcome::default()));
        let mut tasks = JoinSet::new();
        let period = Duration::from_secs_f64(connections as f64 / f64::from(rate));
        for number in 0..connections {
            let worker = Arc::new(Worker {
                wire: wires[number % wires.len()].clone(),
                credential: credential.clone(),
                outcome: outcome.clone(),
                began,
            });
            let stop = stop.clone();
            let offset = period.mul_f64(number as f64 / connections as f64);
            tasks.spawn(async move {
                tokio::time::sleep(offset).await;
                worker.run(period, stop).await;
            });
        }
        Self { stop, connections: tasks, outcome, began }
    }

    /// Ends it, when every request has its answer.
    pub(crate) async fn stop(self) -> Outcome {
        let lasted = self.began.elapsed();
        self.stop.cancel();
        self.connections.join_all().await;
        let mut outcome = std::mem::take(&mut *self.outcome.lock().expect("not poisoned"));
        outcome.lasted = lasted;
        outcome
    }

    /// Number of requests refused so far.
    pub(crate) fn refused(&self) -> usize {
        self.outcome.lock().expect("not poisoned").refusals.len()
    }
}

impl<C: Fn() -> Shown + Send + Sync + 'static> Worker<C> {
    async fn run(self: Arc<Self>, period: Duration, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(period);
        let mut open: Option<Multiplexed> = None;
        let mut requests = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            while requests.try_join_next().is_some() {}
            let shown = (self.credential)();
            let sender = match open.take().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender,
                None => match self.wire.connect_multiplexed().await {
                    Ok(sender) => sender,
                    Err(error) => {
                        self.refused(shown.label, format!("no connection: {error}"));
                        continue;
                    }
                },
            };
            open = Some(sender.clone());
            let worker = self.clone();
            requests.spawn(async move { worker.request(sender, shown).await });
        }
        requests.join_all().await;
    }

    async fn request(&self, mut sender: Multiplexed, shown: Shown) {
        let sent = Instant::now();
        let request = self.wire.list(&[(shown.header.0, &shown.header.1)], true);
        let exchange = async {
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            Ok::<_, Failure>((status, body))
        };
        match tokio::time::timeout(Duration::from_secs(10), exchange).await {
            Ok(Ok((StatusCode::OK, _))) => {
                self.outcome.lock().expect("not poisoned").latencies.push(sent.elapsed());
            }
            Ok(Ok((status, body))) => {
                self.refused(shown.label, format!("{status}: {}", String::from_utf8_lossy(&body)));
            }
            Ok(Err(error)) => self.refused(shown.label, error.to_string()),
            Err(_) => self.refused(shown.label, "no answer in 10 s".to_owned()),
        }
    }

    fn refused(&self, label: String, why: String) {
        let at = self.began.elapsed().as_secs_f64();
        self.outcome.lock().expect("not poisoned").refusals.push(Refusal { at, label, why });
    }
}

/// Says how long rotations took.
pub(crate) fn print_times(mut times: Vec<Duration>) {
    times.sort_unstable();
    eprintln!(
        "a rotation takes {:?} (median), {:?} (longest)",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
