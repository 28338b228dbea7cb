//! Objects that wait to be looked at: each at most once, so a queue is never longer than the number of objects.

use std::collections::BTreeSet;
use std::sync::Mutex;

use futures::Stream;
use futures::stream;
use tokio::sync::Notify;

/// A set of keys that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

/// Namespace (empty for objects of the cluster) and name.
pub(crate) type Key = (String, String);

impl Queue {
    /// Asks for a look at an object.
    pub(crate) fn push(&self, namespace: impl Into<String>, name: impl Into<String>) {
        self.waiting.lock().expect("no holder panics").insert((namespace.into(), name.into()));
        self.wake.notify_one();
    }

    /// Every key in turn, without end. One reader at a time.
    pub(crate) fn keys(&self) -> impl Stream<Item = Key> + '_ {
        stream::unfold(self, |queue| async move {
            loop {
                let key = queue.waiting.lock().expect("no holder panics").pop_first();
                match key {
                    Some(key) => return Some((key, queue)),
                    None => queue.wake.notified().await,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn an_object_waits_at_most_once() {
        let queue = Queue::default();
        queue.push("a", "one");
        queue.push("a", "two");
        queue.push("a", "one");
        let keys: Vec<Key> = queue.keys().take(2).collect().await;
        assert_eq!(keys, [("a".into(), "one".into()), ("a".into(), "two".into())]);
        assert!(queue.waiting.lock().expect("free").is_empty());
    }
}
