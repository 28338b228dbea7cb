//! What drives every kind alike: one look at a time per object, eight objects at once, back-off per object.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::{Stream, StreamExt};
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use tracing::Instrument;

use crate::k8s::queue::Queue;
use crate::k8s::watch::Guarded;
use crate::metrics::Reconcile;

use super::Context;

/// Objects that are looked at at the same time.
const CONCURRENCY: u16 = 8;
/// Changes that come this close together are looked at once.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Most time that a look may take: one that hangs must not take a place from the others for ever.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// How a look at an object ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is as it should be; look again after this time, if any.
    Settled(Option<Duration>),
    /// The object cannot work as it is; somebody must change something. Look again after this time, if any.
    Invalid(Option<Duration>),
}

/// A fault that may go away, with its fixed reason.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Transient {
    /// Reason, from `api::conditions`.
    pub(super) reason: &'static str,
    /// What failed.
    pub(super) message: String,
}

impl Transient {
    /// A write that failed.
    pub(super) fn apply(message: impl std::fmt::Display) -> Self {
        Self { reason: crate::api::conditions::REASON_APPLY, message: message.to_string() }
    }
}

/// Failures in a row, by object.
#[derive(Default)]
pub(super) struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    fn failed(&self, object: &str, random: u8) -> Duration {
        let mut failures = self.failures.lock().expect("no holder panics");
        let count = failures.entry(object.to_owned()).or_default();
        *count = count.saturating_add(1);
        pause(*count, random)
    }

    fn succeeded(&self, object: &str) {
        self.failures.lock().expect("no holder panics").remove(object);
    }
}

/// 1 s doubling to 5 min, and up to a quarter more, so that objects which failed together do not retry together.
fn pause(failures: u32, random: u8) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1_u32 << failures.saturating_sub(1).min(16));
    let base = doubled.min(LONGEST_PAUSE);
    base + base / 4 * u32::from(random) / 256
}

/// Looks at every object of a kind: at each once, then at those in the queue, without end.
pub(super) async fn drive<K, F>(
    kind: &'static str,
    context: &Arc<Context>,
    store: &Store<Guarded<K>>,
    queue: &Queue,
    reconcile: fn(Arc<Context>, Arc<Guarded<K>>) -> F,
) where
    K: Resource<DynamicType = ()> + Clone + 'static,
    F: Future<Output = Result<Outcome, Transient>> + Send + 'static,
    Guarded<K>: Send + Sync,
{
    for object in store.state() {
        queue.push(object.namespace().unwrap_or_default(), object.name_any());
    }
    let look = move |object: Arc<Guarded<K>>, context: Arc<Context>| -> BoxFuture<'static, _> {
        let span = tracing::info_span!("reconcile", controller = kind, object = %full_name(object.as_ref()));
        look(kind, context, object, reconcile).instrument(span).boxed()
    };
    let retry = move |object: Arc<Guarded<K>>, _: &Transient, context: Arc<Context>| {
        let mut random = [0];
        // Without randomness there is no jitter, and nothing else is lost.
        let _ = aws_lc_rs::rand::fill(&mut random);
        Action::requeue(context.backoff.failed(&backoff_key(kind, object.as_ref()), random[0]))
    };
    let config = controller::Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    applier(look, retry, context.clone(), store.clone(), requests(queue), config)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(controller = kind, %error, "Reconcile ended");
            }
        })
        .await;
}

fn requests<K>(
    queue: &Queue,
) -> impl Stream<Item = Result<ObjectRef<Guarded<K>>, std::convert::Infallible>> + '_
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    queue.keys().map(|(namespace, name)| {
        let object = ObjectRef::new(&name);
        Ok(if namespace.is_empty() { object } else { object.within(&namespace) })
    })
}

async fn look<K, F>(
    kind: &'static str,
    context: Arc<Context>,
    object: Arc<Guarded<K>>,
    reconcile: fn(Arc<Context>, Arc<Guarded<K>>) -> F,
) -> Result<Action, Transient>
where
    K: Resource<DynamicType = ()>,
    F: Future<Output = Result<Outcome, Transient>> + Send + 'static,
{
    let result = within_limit(reconcile(context.clone(), object.clone())).await;
    let label = match &result {
        Ok(Outcome::Settled(_)) => "success",
        Ok(Outcome::Invalid(_)) => "invalid",
        Err(error) => error.reason,
    };
    context.metrics.reconciles.get_or_create(&Reconcile { kind, result: label }).inc();
    match result {
        Ok(Outcome::Settled(after) | Outcome::Invalid(after)) => {
            context.backoff.succeeded(&backoff_key(kind, object.as_ref()));
            Ok(after.map_or_else(Action::await_change, Action::requeue))
        }
        Err(error) => {
            tracing::warn!(reason = error.reason, %error, "Reconcile failed");
            Err(error)
        }
    }
}

/// Each step of a reconcile is safe to stop and to do again, so one that takes too long is dropped and retried.
async fn within_limit(look: impl Future<Output = Result<Outcome, Transient>>) -> Result<Outcome, Transient> {
    let late = |_| Err(Transient::apply(format!("took longer than {} s", LIMIT.as_secs())));
    tokio::time::timeout(LIMIT, look).await.unwrap_or_else(late)
}

fn full_name<K: Resource<DynamicType = ()>>(object: &Guarded<K>) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn backoff_key<K: Resource<DynamicType = ()>>(kind: &str, object: &Guarded<K>) -> String {
    format!("{kind}/{}", full_name(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_a_second_to_five_minutes_with_jitter() {
        let seconds = |failures| pause(failures, 0).as_secs();
        assert_eq!([1, 2, 3, 9, 10, 100].map(seconds), [1, 2, 4, 256, 300, 300]);
        assert!(pause(1, 255) > pause(1, 0) && pause(1, 255) < Duration::from_millis(1250));
    }

    #[test]
    fn success_starts_again_at_a_second() {
        let backoff = Backoff::default();
        backoff.failed("a", 0);
        assert_eq!(backoff.failed("a", 0), Duration::from_secs(2));
        assert_eq!(backoff.failed("b", 0), Duration::from_secs(1), "each object by itself");
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a", 0), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_ends_as_a_fault_that_may_go_away() {
        let error = within_limit(std::future::pending()).await.expect_err("it hangs");
        assert_eq!(error.to_string(), "took longer than 60 s");
    }
}
