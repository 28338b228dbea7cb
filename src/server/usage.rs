//! What is known of the use of each key: when it was last used, and how much of its rate is left.
//!
//! Only keys that were proved get here, so there are at most as many entries as keys; those of keys that are gone go too.
//! Readers of different keys do not wait for each other, and those of one key hold a lock for a lookup only.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use governor::DefaultDirectRateLimiter;
use governor::clock::{Clock, DefaultClock};
use governor::{Quota, RateLimiter};
use jiff::Timestamp;

use crate::api::RateLimitSpec;
use crate::authn::Identity;
use crate::index::Snapshot;

/// Parts of a map that are locked on their own.
const SHARDS: usize = 16;
/// Without a burst of its own, a key may send this part of its requests in a minute at once.
const BURST: u32 = 10;

/// The use of every key.
#[derive(Default)]
pub(super) struct Usage {
    /// Seconds since 1970, by the id of the generation.
    last: Sharded<AtomicI64>,
    /// By the name of the `McpApiKey`: a rotation must not give its rate twice.
    rates: Sharded<Rate>,
}

/// The rate of one key on this replica.
struct Rate {
    share: (RateLimitSpec, i32),
    limiter: DefaultDirectRateLimiter,
}

impl Rate {
    /// The part of a limit over all replicas that is this replica's: at least one request in a minute, and one at once.
    fn new(limit: RateLimitSpec, replicas: i32) -> Self {
        let part = |whole: u32| NonZeroU32::new(whole / whole_number(replicas)).unwrap_or(NonZeroU32::MIN);
        let minute = whole_number(limit.requests_per_minute);
        let burst = limit.burst.map_or(minute / BURST, whole_number);
        let quota = Quota::per_minute(part(minute)).allow_burst(part(burst));
        Self { share: (limit, replicas), limiter: RateLimiter::direct(quota) }
    }
}

/// A number of a spec, which is at least one.
fn whole_number(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(1).max(1)
}

impl Usage {
    /// Notes a request of a proved caller, and takes it off the rate of its key.
    ///
    /// # Errors
    /// Time after which the key may be used again.
    pub(super) fn note(
        &self,
        snapshot: &Snapshot,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<(), Duration> {
        let Some((id, key)) = identity.key_id().and_then(|id| Some((id, snapshot.keys.get(id)?))) else {
            return Ok(());
        };
        let last = self.last.entry(id, |_| true, AtomicI64::default);
        let second = now.as_second();
        // Written once a second: a key that is used all the time must not keep the cores busy with telling each other.
        if last.load(Ordering::Relaxed) < second {
            last.fetch_max(second, Ordering::Relaxed);
        }
        let Some(limit) = key.record.rate_limit else { return Ok(()) };
        let replicas = snapshot.server.as_ref().map_or(1, |server| server.spec.replicas);
        let same = |rate: &Rate| rate.share == (limit, replicas);
        let rate = self.rates.entry(&key.record.name, same, || Rate::new(limit, replicas));
        let checked = rate.limiter.check();
        checked.map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }

    /// When a generation was last used, in seconds since 1970.
    pub(super) fn last_used(&self, id: &str) -> Option<i64> {
        self.last.find(id).map(|last| last.load(Ordering::Relaxed))
    }

    /// Forgets the keys that the snapshot does not have.
    pub(super) fn retain(&self, snapshot: &Snapshot) {
        self.last.retain(|id| snapshot.keys.contains_key(id));
        let names: std::collections::HashSet<&str> = snapshot
            .keys
            .values()
            .filter(|key| key.record.rate_limit.is_some())
            .map(|key| key.record.name.as_str())
            .collect();
        self.rates.retain(|name| names.contains(name));
    }
}

/// A map in parts.
struct Sharded<V>([RwLock<HashMap<String, Arc<V>>>; SHARDS]);

impl<V> Default for Sharded<V> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| RwLock::default()))
    }
}

impl<V> Sharded<V> {
    fn shard(&self, key: &str) -> &RwLock<HashMap<String, Arc<V>>> {
        let sum = key.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        &self.0[sum % SHARDS]
    }

    fn find(&self, key: &str) -> Option<Arc<V>> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The entry, made anew if there is none or it does not fit any more.
    fn entry(&self, key: &str, fits: impl Fn(&V) -> bool, make: impl FnOnce() -> V) -> Arc<V> {
        if let Some(found) = self.find(key).filter(|found| fits(found)) {
            return found;
        }
        let mut entries = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        match entries.get(key).filter(|found| fits(found)) {
            Some(found) => found.clone(),
            None => {
                let made = Arc::new(make());
                entries.insert(key.to_owned(), made.clone());
                made
            }
        }
    }

    fn retain(&self, keeps: impl Fn(&str) -> bool) {
        for shard in &self.0 {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keeps(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::{KeyRecord, Method, Verifier};
    use crate::index::snapshot::Key;

    fn snapshot(limit: Option<RateLimitSpec>) -> Snapshot {
        let record = KeyRecord {
            verifier: Verifier::Sha256([0; 32]),
            name: "ci".into(),
            identity: "ci-bot".into(),
            tenant: None,
            enabled: true,
            revoked: false,
            expires_at: None,
            opens_server: true,
            allowed: vec![],
            rate_limit: limit,
        };
        let key = || Key { record: record.clone(), held: Arc::default() };
        let mut snapshot = Snapshot::default();
        snapshot.keys = [("k1".to_owned(), key()), ("k2".to_owned(), key())].into();
        snapshot
    }

    fn identity(id: &str) -> Identity {
        Identity::new(Method::ApiKey, "ci-bot", id)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_last_use_of_a_key_is_kept_as_long_as_the_key() {
        let (usage, snapshot) = (Usage::default(), snapshot(None));
        assert_eq!(usage.last_used("k1"), None);
        assert_eq!(usage.note(&snapshot, &identity("k1"), at(100)), Ok(()));
        assert_eq!(usage.note(&snapshot, &identity("k1"), at(99)), Ok(()));
        assert_eq!(usage.last_used("k1"), Some(100), "a clock that goes back changes nothing");
        assert_eq!(usage.note(&snapshot, &identity("unknown"), at(100)), Ok(()));
        assert_eq!(usage.last_used("unknown"), None, "only keys are noted");
        usage.retain(&snapshot);
        assert_eq!(usage.last_used("k1"), Some(100));
        usage.retain(&Snapshot::default());
        assert_eq!(usage.last_used("k1"), None);
    }

    #[test]
    fn every_generation_of_a_key_takes_from_the_one_rate() {
        let limit = RateLimitSpec { requests_per_minute: 60, burst: Some(3) };
        let (usage, snapshot) = (Usage::default(), snapshot(Some(limit)));
        for id in ["k1", "k2", "k1"] {
            assert_eq!(usage.note(&snapshot, &identity(id), at(1)), Ok(()));
        }
        let wait = usage.note(&snapshot, &identity("k2"), at(1)).expect_err("three at once");
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
    }

    #[test]
    fn replicas_share_a_limit_and_each_may_do_something() {
        let rate = |minute, burst, replicas| {
            let rate = Rate::new(RateLimitSpec { requests_per_minute: minute, burst }, replicas);
            (0..).take_while(|_| rate.limiter.check().is_ok()).count()
        };
        assert_eq!(rate(6, Some(30), 3), 10);
        assert_eq!(rate(60, None, 1), 6);
        assert_eq!(rate(1, None, 20), 1);
    }
}
