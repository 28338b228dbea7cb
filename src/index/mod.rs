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
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::authz::Class;

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
    /// When every source was last known to be followed, in milliseconds; none: the source cannot fall behind.
    last_contact: Option<AtomicI64>,
}

impl Policy {
    /// A policy of files, which are always at hand.
    pub(crate) fn local(snapshot: Snapshot) -> Self {
        Self::new(snapshot, true, None)
    }

    /// A policy of a cluster, which is empty and not synced until the first snapshot.
    fn remote(now: Timestamp) -> Self {
        Self::new(Snapshot::default(), false, Some(AtomicI64::new(now.as_millisecond())))
    }

    /// A policy of a cluster that was last reached at that time.
    #[cfg(test)]
    pub(crate) fn remote_for_tests(last_contact: Timestamp) -> Self {
        Self::remote(last_contact)
    }

    fn new(snapshot: Snapshot, synced: bool, last_contact: Option<AtomicI64>) -> Self {
        Self(Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            changes: tokio::sync::watch::Sender::new(0),
            synced: AtomicBool::new(synced),
            last_contact,
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
        let Some(contact) = &self.0.last_contact else { return true };
        Timestamp::from_millisecond(contact.load(Ordering::Relaxed))
            .is_ok_and(|contact| freshness::is_fresh(now, contact, class))
    }

    /// Notes when every source was last known to be followed.
    pub(crate) fn set_last_contact(&self, contact: Timestamp) {
        if let Some(last) = &self.0.last_contact {
            last.store(contact.as_millisecond(), Ordering::Relaxed);
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
        policy.set_last_contact(later);
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
