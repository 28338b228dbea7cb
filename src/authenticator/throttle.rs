//! Failures that are allowed in a time, by whoever makes them.
//!
//! An attempt is counted before it is made, so that many at a time cannot be more than are allowed, and given back when it
//! succeeds: only failures stay. (The crate `governor` cannot give back.)

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most keys that are counted at a time. Each stands for an attempt that was worked on lately, and those are few.
const KEYS: usize = 1 << 16;

/// Counts attempts by key.
pub(super) struct Throttle<K> {
    /// Attempts that may come at once.
    burst: u32,
    /// Time in which one comes back.
    interval: Duration,
    /// When all that a key has used will have come back.
    used: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Throttle<K> {
    /// So many at once, and so many in a minute after that.
    pub(super) fn new(burst: u32, per_minute: u32) -> Self {
        Self { burst, interval: Duration::from_secs(60) / per_minute, used: Mutex::default() }
    }

    /// Counts an attempt. False: there were too many, and it is not counted.
    pub(super) fn take(&self, key: K, now: Instant) -> bool {
        let mut used = self.used();
        if used.len() >= KEYS && !used.contains_key(&key) {
            used.retain(|_, back| *back > now);
            if used.len() >= KEYS {
                return false;
            }
        }
        let back = used.get(&key).map_or(now, |back| (*back).max(now)) + self.interval;
        let allowed = back <= now + self.interval * self.burst;
        if allowed {
            used.insert(key, back);
        }
        allowed
    }

    /// Gives an attempt back.
    pub(super) fn give_back(&self, key: &K) {
        if let Some(back) = self.used().get_mut(key) {
            *back = back.checked_sub(self.interval).unwrap_or(*back);
        }
    }

    /// Forgets keys of which everything has come back.
    pub(super) fn forget(&self, now: Instant) {
        let mut used = self.used();
        used.retain(|_, back| *back > now);
        used.shrink_to_fit();
    }

    fn used(&self) -> MutexGuard<'_, HashMap<K, Instant>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_come_back_with_time_and_are_forgotten() {
        let (throttle, now) = (Throttle::new(3, 6), Instant::now());
        assert!((0..3).all(|_| throttle.take("a", now)));
        assert!(!throttle.take("a", now) && throttle.take("b", now));
        let later = now + Duration::from_secs(10);
        assert!(throttle.take("a", later) && !throttle.take("a", later));
        throttle.forget(later + Duration::from_secs(29));
        assert_eq!(throttle.used().len(), 1);
        throttle.forget(later + Duration::from_secs(30));
        assert!(throttle.used().is_empty());
    }

    #[test]
    fn what_succeeds_is_not_counted() {
        let (throttle, now) = (Throttle::new(2, 1), Instant::now());
        for _ in 0..100 {
            assert!(throttle.take("a", now));
            throttle.give_back(&"a");
        }
        assert!(throttle.take("a", now) && throttle.take("a", now) && !throttle.take("a", now));
    }
}
