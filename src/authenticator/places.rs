//! Work that must not be too much: so much at a time, so much that waits, and the rest is refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::authn::Reason;

/// Places for work. Clones share them.
#[derive(Clone)]
pub(super) struct Places {
    working: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place, held until it is dropped.
pub(super) struct Place {
    _working: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Places {
    /// Places for so much at a time, and for so much that waits.
    pub(super) fn new(working: usize, waiting: usize) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { working: places(working), all: places(working + waiting) }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when too many wait already.
    pub(super) async fn take(&self) -> Result<Place, Reason> {
        let all = self.all.clone().try_acquire_owned().map_err(|_| Reason::Overloaded)?;
        let working = self.working.clone().acquire_owned().await.map_err(|_| Reason::Overloaded)?;
        Ok(Place { _working: working, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_finds_no_place_waits_and_what_finds_no_place_to_wait_is_refused() {
        let places = Places::new(1, 1);
        let first = places.take().await.expect("a place");
        let mut second = Box::pin(places.take());
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        assert!(matches!(places.take().await, Err(Reason::Overloaded)));
        drop(first);
        let second = second.await.expect("a place");
        drop(second);
        assert!(places.take().await.is_ok());
    }
}
