//! What Secrets and ConfigMaps hold, by the path of the entry: mounted in a pod, or given as documents with `--from`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// Entries by path, as [`crate::api::names::material_path`] makes it.
pub(crate) type Entries = BTreeMap<String, Arc<[u8]>>;

/// Entries that change. Clones share them.
#[derive(Clone)]
pub(crate) struct Materials(Arc<Shared>);

struct Shared {
    entries: ArcSwap<Entries>,
    changes: watch::Sender<u64>,
}

impl Materials {
    /// These entries, until others are set.
    pub(crate) fn given(entries: Entries) -> Self {
        Self(Arc::new(Shared { entries: ArcSwap::from_pointee(entries), changes: watch::Sender::new(0) }))
    }

    /// Every entry of now.
    pub(crate) fn load(&self) -> Arc<Entries> {
        self.0.entries.load_full()
    }

    /// Swaps every entry, and wakes those who wait if any is different.
    pub(crate) fn set(&self, entries: Entries) {
        if *self.load() != entries {
            self.0.entries.store(Arc::new(entries));
            self.0.changes.send_modify(|count| *count += 1);
        }
    }

    /// Wakes at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }
}
