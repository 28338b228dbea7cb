//! How long the last known policy is good for when the API server cannot be reached, and how its age is told.
//!
//! A replica that falls behind on its own takes itself out of the Service: others answer with the policy of now. When
//! the API server answers nobody, every replica is as far behind as this one, and the Service would be left without any;
//! then it goes on, says that it is degraded, and the limits below end writing and later reading.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Policy;
use crate::authz::Class;

/// How long everything may be done without news.
const EVERYTHING: SignedDuration = SignedDuration::from_mins(5);
/// How long reading may be done without news.
const READS: SignedDuration = SignedDuration::from_mins(60);

/// Age from which a policy is said to be behind.
const BEHIND: SignedDuration = SignedDuration::from_secs(30);
/// The API server is there if it answered within this time: two of its heartbeats.
const ANSWERS: SignedDuration = SignedDuration::from_secs(20);

/// How well a policy is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Following {
    /// Every source is followed.
    Current,
    /// The API server answers, and a source was not followed for this long.
    Behind(SignedDuration),
    /// The API server has not answered for this long.
    OutOfReach(SignedDuration),
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Following::Current => f.write_str("current"),
            Following::Behind(age) => write!(f, "not followed for {} s", age.as_secs()),
            Following::OutOfReach(age) => {
                write!(f, "the API server has not answered for {} s", age.as_secs())
            }
        }
    }
}

/// How well a policy is followed whose sources were all last in contact then, where the API server last answered then.
pub(super) fn following(now: Timestamp, last_contact: Timestamp, last_answer: Timestamp) -> Following {
    let age = now.duration_since(last_contact);
    if age < BEHIND {
        Following::Current
    } else if now.duration_since(last_answer) < ANSWERS {
        Following::Behind(age)
    } else {
        Following::OutOfReach(age)
    }
}

/// The age of a policy and the failures of its watches, as they are at each scrape.
#[derive(Debug)]
pub(crate) struct Staleness(pub(crate) Policy);

impl Collector for Staleness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(age) = self.0.age(Timestamp::now()) else { return Ok(()) };
        let age = ConstGauge::new(age.as_secs_f64().max(0.0));
        let help = "Time since every source of the policy was last known to be followed";
        age.encode(encoder.encode_descriptor(
            "mcp_policy_staleness_seconds",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let (name, help) = ("mcp_policy_watch_failures", "Watches of the policy that failed, by source");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (source, failures) in self.0.failures() {
            ConstCounter::new(failures).encode(family.encode_family(&[("source", source)])?)?;
        }
        Ok(())
    }
}

/// Whether a call of this class may still rely on a policy that was last known to be current at that time.
pub(crate) fn is_fresh(now: Timestamp, last_contact: Timestamp, class: Class) -> bool {
    let limit = if class.is_read_only() { READS } else { EVERYTHING };
    now.duration_since(last_contact) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(minutes: i64, class: Class) -> bool {
        let contact = Timestamp::from_second(1_000_000).expect("in range");
        is_fresh(contact + SignedDuration::from_mins(minutes), contact, class)
    }

    #[test]
    fn without_news_everything_goes_on_for_five_minutes_and_reading_for_an_hour() {
        for (minutes, read, write) in [(0, true, true), (5, true, true), (6, true, false), (60, true, false)]
        {
            assert_eq!(allowed(minutes, Class::Read), read, "read after {minutes} minutes");
            assert_eq!(allowed(minutes, Class::Sensitive), read, "logs after {minutes} minutes");
            assert_eq!(allowed(minutes, Class::Write), write, "write after {minutes} minutes");
            assert_eq!(allowed(minutes, Class::Destructive), write, "delete after {minutes} minutes");
        }
        assert!(!allowed(61, Class::Read));
    }

    fn told(age: i64, answered: i64) -> Following {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let ago = |seconds| now - SignedDuration::from_secs(seconds);
        following(now, ago(age), ago(answered))
    }

    #[test]
    fn a_replica_that_falls_behind_alone_is_told_from_an_api_server_that_is_gone() {
        assert_eq!(told(29, 0), Following::Current);
        assert_eq!(told(30, 5), Following::Behind(SignedDuration::from_secs(30)));
        assert_eq!(told(30, 30), Following::OutOfReach(SignedDuration::from_secs(30)));
        // The last answer came between two heartbeats, and none after it.
        assert_eq!(told(30, 20), Following::OutOfReach(SignedDuration::from_secs(30)));
        assert_eq!(told(45, 45).to_string(), "the API server has not answered for 45 s");
    }

    #[test]
    fn the_age_of_a_policy_and_the_failures_of_its_watches_are_metrics() {
        let text = |policy: &Policy| {
            let mut registry = prometheus_client::registry::Registry::default();
            registry.register_collector(Box::new(Staleness(policy.clone())));
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
            text
        };
        let policy = Policy::remote_for_tests(Timestamp::now() - SignedDuration::from_secs(40));
        policy.count_failure(1);
        let told = text(&policy);
        let age = told.lines().find_map(|line| line.strip_prefix("mcp_policy_staleness_seconds "));
        let age: f64 = age.expect(&told).parse().expect("a number");
        assert!((40.0..45.0).contains(&age), "{told}");
        assert!(told.contains("mcp_policy_watch_failures_total{source=\"McpRole\"} 1\n"), "{told}");
        assert!(told.contains("mcp_policy_watch_failures_total{source=\"Namespace\"} 0\n"), "{told}");
        assert_eq!(text(&Policy::local(crate::index::Snapshot::default())), "# EOF\n");
    }

    #[test]
    fn a_clock_that_went_back_does_not_stop_anything() {
        assert!(allowed(-10, Class::Write));
    }
}
