//! Watches become snapshots: what the endpoint knows of its own server, the roles, the keys and the namespaces.
//!
//! One immutable [`Snapshot`] at a time, swapped whole; a request borrows one and so sees one policy. [`watch`]
//! follows the cluster, [`files`] a directory; both feed the same [`Policy`].

mod admission;
pub(crate) mod files;
pub(crate) mod freshness;
pub(crate) mod snapshot;
pub(crate) mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};

use crate::authz::Class;
use freshness::Following;

pub(crate) use snapshot::{Objects, Snapshot};

/// The server that a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// Namespace of the `McpServer`.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) server: String,
    /// Namespace of the operator, which patterns of namespaces leave out.
    pub(crate) operator_namespace: String,
}

impl Subject {
    /// The snapshot of the server's objects.
    pub(crate) fn snapshot(&self, objects: &Objects) -> Snapshot {
        Snapshot::build(objects, &self.namespace, &self.server, &self.operator_namespace)
    }
}

/// The current snapshot and how current it is. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Policy(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    changes: tokio::sync::watch::Sender<u64>,
    synced: AtomicBool,
    /// None: the source cannot fall behind.
    contact: Option<Contact>,
}

/// What is known of the contact with the API server, in milliseconds.
#[derive(Debug)]
struct Contact {
    /// When every source was last known to be followed.
    last: AtomicI64,
    /// When the API server last answered anything.
    answer: AtomicI64,
    /// Failures of watches, in the order of [`watch::SOURCES`].
    failures: [AtomicU64; watch::SOURCES.len()],
}

impl Policy {
    /// A policy of files, which are always at hand.
    pub(crate) fn local(snapshot: Snapshot) -> Self {
        Self::new(snapshot, true, None)
    }

    /// A policy of a cluster, which is empty and not synced until the first snapshot.
    fn remote(now: Timestamp) -> Self {
        let now = now.as_millisecond();
        let contact = Contact { last: now.into(), answer: now.into(), failures: Default::default() };
        Self::new(Snapshot::default(), false, Some(contact))
    }

    /// A policy of a cluster that was last reached at that time.
    #[cfg(test)]
    pub(crate) fn remote_for_tests(last_contact: Timestamp) -> Self {
        Self::remote(last_contact)
    }

    fn new(snapshot: Snapshot, synced: bool, contact: Option<Contact>) -> Self {
        Self(Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            changes: tokio::sync::watch::Sender::new(0),
            synced: AtomicBool::new(synced),
            contact,
        }))
    }

    /// The snapshot of now. One request uses one.
    pub(crate) fn load(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// Swaps the snapshot and tells those who wait for changes.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.0.snapshot.store(Arc::new(snapshot));
        self.0.synced.store(true, Ordering::Release);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Wakes at every change.
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether a first complete snapshot is there.
    pub(crate) fn is_synced(&self) -> bool {
        self.0.synced.load(Ordering::Acquire)
    }

    /// Whether a call of this class may rely on the snapshot now.
    pub(crate) fn is_fresh(&self, now: Timestamp, class: Class) -> bool {
        let Some(contact) = &self.0.contact else { return true };
        Timestamp::from_millisecond(contact.last.load(Ordering::Relaxed))
            .is_ok_and(|contact| freshness::is_fresh(now, contact, class))
    }

    /// How well the sources are followed.
    pub(crate) fn following(&self, now: Timestamp) -> Following {
        let Some(contact) = &self.0.contact else { return Following::Current };
        let time = |millisecond: &AtomicI64| {
            Timestamp::from_millisecond(millisecond.load(Ordering::Relaxed)).unwrap_or_default()
        };
        freshness::following(now, time(&contact.last), time(&contact.answer))
    }

    /// Time since every source was last known to be followed. None: they cannot fall behind.
    fn age(&self, now: Timestamp) -> Option<SignedDuration> {
        let last = self.0.contact.as_ref()?.last.load(Ordering::Relaxed);
        Some(now.duration_since(Timestamp::from_millisecond(last).unwrap_or_default()))
    }

    /// Number of failures of each watch, by the name of its source.
    fn failures(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.contact.iter().flat_map(|contact| &contact.failures);
        watch::SOURCES.into_iter().zip(counts.map(|count| count.load(Ordering::Relaxed))).collect()
    }

    /// Counts a failure of the watch with this number.
    fn count_failure(&self, source: usize) {
        if let Some(count) = self.0.contact.as_ref().and_then(|contact| contact.failures.get(source)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes when every source was last known to be followed, and when the API server last answered.
    pub(crate) fn set_contact(&self, last: Timestamp, answer: Timestamp) {
        if let Some(contact) = &self.0.contact {
            contact.last.store(last.as_millisecond(), Ordering::Relaxed);
            contact.answer.store(answer.as_millisecond(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_policy_without_news_stops_writing_before_it_stops_reading() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let policy = Policy::remote(now);
        let later = now + SignedDuration::from_mins(10);
        assert!(policy.is_fresh(later, Class::Read) && !policy.is_fresh(later, Class::Write));
        policy.set_contact(later, later);
        assert!(policy.is_fresh(later, Class::Write));
        assert!(
            Policy::local(Snapshot::default()).is_fresh(later + SignedDuration::from_hours(99), Class::Write)
        );
    }

    #[test]
    fn a_published_snapshot_is_seen_and_wakes_those_who_wait() {
        let policy = Policy::remote(Timestamp::UNIX_EPOCH);
        let changes = policy.changes();
        assert!(!policy.is_synced());
        policy.publish(Snapshot { namespaces: ["a".to_owned()].into(), ..Snapshot::default() });
        assert!(policy.is_synced() && changes.has_changed().expect("the policy lives"));
        assert_eq!(&*policy.load().namespaces, ["a".to_owned()]);
    }
}
