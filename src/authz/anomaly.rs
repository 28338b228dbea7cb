//! Callers that behave unlike themselves, by a few rules of which each says what was seen and what is usual.
//!
//! Pure: the time is an argument, counted from the start, and the same calls at the same times get the same verdicts. Each caller is compared
//! with its own past only, of which a few numbers are kept, for so many callers and no more. Nothing outlives the process.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::Class;
use crate::api::AnomalySensitivity;

/// Callers that are remembered. When there are more, the eighth of them that called longest ago is forgotten.
const CALLERS: usize = 4096;
/// Networks of a caller that are remembered. A caller that has come from so many has no usual ones.
const NETWORKS: usize = 8;
/// Minutes of use over which a caller's usual rate is the average.
const AVERAGED: u32 = 60;
/// Minutes of use before a caller has a usual rate.
const SETTLED: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// Time for which the first dangerous call of a caller is refused where anomalies are refused: enough for a person who
/// is told of it to stop the caller.
const HOLD: Duration = Duration::from_secs(600);

/// How little is enough, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Refused calls within a minute that are usual.
    refusals: u32,
    /// So many times its own average a caller may call within a minute,
    burst_factor: u32,
    /// and so often in any case.
    burst_floor: u32,
    /// Calls after which a network that a credential has not come from is new.
    calls_before_network: u32,
    /// Calls after which the first dangerous one is a surprise.
    calls_before_danger: u32,
    /// From which class on a call is dangerous.
    danger: Class,
}

const LOW: Limits = Limits {
    refusals: 60,
    burst_factor: 20,
    burst_floor: 600,
    calls_before_network: 1000,
    calls_before_danger: 5000,
    danger: Class::Destructive,
};
const MEDIUM: Limits = Limits {
    refusals: 20,
    burst_factor: 10,
    burst_floor: 240,
    calls_before_network: 200,
    calls_before_danger: 1000,
    danger: Class::Destructive,
};
const HIGH: Limits = Limits {
    refusals: 10,
    burst_factor: 5,
    burst_floor: 60,
    calls_before_network: 50,
    calls_before_danger: 200,
    danger: Class::Write,
};

impl Limits {
    /// The numbers behind a word of the spec.
    pub(crate) fn of(sensitivity: AnomalySensitivity) -> &'static Self {
        match sensitivity {
            AnomalySensitivity::Low => &LOW,
            AnomalySensitivity::Medium => &MEDIUM,
            AnomalySensitivity::High => &HIGH,
        }
    }
}

/// By what a caller is judged, and what becomes of an anomalous call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regime {
    /// The numbers.
    pub(crate) limits: &'static Limits,
    /// Whether anomalous calls are refused. Those are not learned from: what a thief is refused never becomes usual.
    pub(crate) refuses: bool,
}

/// Where somebody calls from, as coarse as addresses change in normal operation: a /24, or a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// The first three bytes.
    V4([u8; 3]),
    /// The first eight bytes.
    V6([u8; 8]),
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Network::V4([a, b, c])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Network::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Network::V4([a, b, c]) => write!(f, "{}/24", Ipv4Addr::new(a, b, c, 0)),
            Network::V6(bytes) => {
                let high = u128::from(u64::from_be_bytes(bytes)) << 64;
                write!(f, "{}/64", Ipv6Addr::from_bits(high))
            }
        }
    }
}

/// What was seen, and what is usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Anomaly {
    /// A credential comes from where it has never come from.
    NewNetwork {
        /// From where.
        network: Network,
        /// Where it came from so far.
        known: Vec<Network>,
        /// In so many calls.
        calls: u32,
    },
    /// A caller tries what it may not do.
    ManyRefusals {
        /// Refused calls within a minute.
        seen: u64,
        /// So many are usual.
        usual: u32,
    },
    /// A caller calls far more often than it does.
    Burst {
        /// Calls within a minute.
        seen: u64,
        /// Its own average.
        usual: u32,
    },
    /// A caller does for the first time what is more dangerous than anything before.
    FirstOfClass {
        /// How dangerous.
        class: Class,
        /// After so many calls.
        calls: u32,
    },
}

impl Anomaly {
    /// Fixed word for the record.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Anomaly::NewNetwork { .. } => "new_network",
            Anomaly::ManyRefusals { .. } => "many_refusals",
            Anomaly::Burst { .. } => "burst",
            Anomaly::FirstOfClass { class: Class::Destructive, .. } => "first_destructive_call",
            Anomaly::FirstOfClass { .. } => "first_change",
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anomaly::NewNetwork { network, known, calls } => {
                let known: Vec<_> = known.iter().map(Network::to_string).collect();
                let known = known.join(", ");
                write!(f, "a call from {network}; the {calls} calls before came from {known}")
            }
            Anomaly::ManyRefusals { seen, usual } => {
                write!(f, "{seen} refused calls within a minute; up to {usual} are usual")
            }
            Anomaly::Burst { seen, usual } => {
                write!(f, "{seen} calls within a minute; the caller's own average is {usual}")
            }
            Anomaly::FirstOfClass { class: Class::Destructive, calls } => {
                write!(f, "the first destructive call after {calls} calls without one")
            }
            Anomaly::FirstOfClass { calls, .. } => {
                write!(f, "the first call that changes something after {calls} calls without one")
            }
        }
    }
}

/// What is remembered of every caller. At first there is nobody.
#[derive(Debug)]
pub(crate) struct Detector {
    room: usize,
    /// Number of the next look at a caller: it says who called longest ago.
    turn: u64,
    callers: HashMap<String, History>,
}

impl Default for Detector {
    fn default() -> Self {
        Self { room: CALLERS, turn: 0, callers: HashMap::new() }
    }
}

impl Detector {
    /// Judges a call of a tool before anything is known of the tool. No network: where the caller is does not matter.
    pub(crate) fn judge_call(
        &mut self,
        caller: &str,
        network: Option<Network>,
        regime: Regime,
        now: Duration,
    ) -> Option<Anomaly> {
        let (history, into) = self.history(caller, now);
        let found = network
            .and_then(|network| history.new_network(network, regime.limits))
            .or_else(|| history.many_refusals(regime.limits, into))
            .or_else(|| history.burst(regime.limits, into));
        if found.is_none() || !regime.refuses {
            history.calls.add();
            history.total = history.total.saturating_add(1);
            network.into_iter().for_each(|network| history.learn(network));
        }
        found
    }

    /// Judges a call that the caller's roles permit by how dangerous it is.
    pub(crate) fn judge_class(
        &mut self,
        caller: &str,
        class: Class,
        regime: Regime,
        now: Duration,
    ) -> Option<Anomaly> {
        let (history, _) = self.history(caller, now);
        if class <= history.most_dangerous {
            return None;
        }
        // The call itself has been counted.
        let calls = history.total.saturating_sub(1);
        let is_surprising = class >= regime.limits.danger && calls >= regime.limits.calls_before_danger;
        let held_since = is_surprising.then(|| *history.held_since.entry(class).or_insert(now));
        let is_over = |since: Duration| now.saturating_sub(since) >= HOLD;
        if !regime.refuses || held_since.is_none_or(is_over) {
            history.most_dangerous = class;
            // What is more dangerous still waits for its own time.
            history.held_since.retain(|held, _| *held > class);
        }
        let found = held_since.filter(|since| !regime.refuses || !is_over(*since));
        found.map(|_| Anomaly::FirstOfClass { class, calls })
    }

    /// Notes that a call was refused for what the caller asked, and not by this detector.
    pub(crate) fn note_refusal(&mut self, caller: &str, now: Duration) {
        self.history(caller, now).0.refusals.add();
    }

    /// The caller's past, and the time since its current minute began.
    fn history(&mut self, caller: &str, now: Duration) -> (&mut History, Duration) {
        let minute = now.as_secs() / MINUTE.as_secs();
        self.turn += 1;
        if !self.callers.contains_key(caller) {
            self.make_room();
            self.callers.insert(caller.to_owned(), History::new(minute));
        }
        let history = self.callers.get_mut(caller).expect("it was there or has been put there");
        history.turn = self.turn;
        history.reach(minute);
        // Threads ask the clock before they get here, so a call may seem to come from the minute before.
        let begun = Duration::from_secs(history.minute * MINUTE.as_secs());
        (history, now.saturating_sub(begun))
    }

    fn make_room(&mut self) {
        if self.callers.len() < self.room {
            return;
        }
        let mut turns: Vec<u64> = self.callers.values().map(|history| history.turn).collect();
        let (_, last_forgotten, _) = turns.select_nth_unstable(self.room / 8);
        let last_forgotten = *last_forgotten;
        self.callers.retain(|_, history| history.turn > last_forgotten);
    }
}

/// The past of one caller.
#[derive(Debug)]
struct History {
    turn: u64,
    /// The minute of the last look.
    minute: u64,
    calls: Pace,
    refusals: Pace,
    /// Average number of calls in a minute of use.
    average: f32,
    /// Minutes of use, up to those that are averaged.
    minutes: u32,
    total: u32,
    networks: [Option<Network>; NETWORKS],
    most_dangerous: Class,
    /// Since when something more dangerous is tried and refused.
    held_since: BTreeMap<Class, Duration>,
}

/// How often something happened in this minute and in the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    now: u32,
    before: u32,
}

impl Pace {
    fn add(&mut self) {
        self.now = self.now.saturating_add(1);
    }

    /// Within the last minute, so far into the current one: the minute before counts for the part of it that is not over
    /// for longer than that.
    fn within_a_minute(self, into: Duration) -> u64 {
        let whole = MINUTE.as_millis() as u64;
        let left = whole.saturating_sub(into.as_millis() as u64);
        u64::from(self.before) * left / whole + u64::from(self.now)
    }

    fn reach_next(&mut self, is_adjacent: bool) {
        self.before = if is_adjacent { self.now } else { 0 };
        self.now = 0;
    }
}

impl History {
    fn new(minute: u64) -> Self {
        Self {
            turn: 0,
            minute,
            calls: Pace::default(),
            refusals: Pace::default(),
            average: 0.0,
            minutes: 0,
            total: 0,
            networks: [None; NETWORKS],
            most_dangerous: Class::Sensitive,
            held_since: BTreeMap::new(),
        }
    }

    fn reach(&mut self, minute: u64) {
        if minute <= self.minute {
            return;
        }
        if self.calls.now > 0 {
            self.minutes = (self.minutes + 1).min(AVERAGED);
            self.average += (self.calls.now as f32 - self.average) / self.minutes as f32;
        }
        let is_adjacent = minute == self.minute + 1;
        self.calls.reach_next(is_adjacent);
        self.refusals.reach_next(is_adjacent);
        self.minute = minute;
    }

    fn new_network(&self, network: Network, limits: &Limits) -> Option<Anomaly> {
        let known: Vec<_> = match self.networks {
            _ if self.total < limits.calls_before_network || self.knows(network) => return None,
            // It is at home nowhere, or was never seen at home.
            [.., Some(_)] | [None, ..] => return None,
            networks => networks.into_iter().flatten().collect(),
        };
        Some(Anomaly::NewNetwork { network, known, calls: self.total })
    }

    fn many_refusals(&self, limits: &Limits, into: Duration) -> Option<Anomaly> {
        let seen = self.refusals.within_a_minute(into);
        (seen > limits.refusals.into()).then_some(Anomaly::ManyRefusals { seen, usual: limits.refusals })
    }

    fn burst(&self, limits: &Limits, into: Duration) -> Option<Anomaly> {
        let seen = self.calls.within_a_minute(into) + 1;
        let usual = self.average.ceil() as u32;
        let most = u64::from(limits.burst_floor).max(u64::from(limits.burst_factor) * u64::from(usual));
        (self.minutes >= SETTLED && seen > most).then_some(Anomaly::Burst { seen, usual })
    }

    fn knows(&self, network: Network) -> bool {
        self.networks.contains(&Some(network))
    }

    fn learn(&mut self, network: Network) {
        if !self.knows(network)
            && let Some(free) = self.networks.iter_mut().find(|known| known.is_none())
        {
            *free = Some(network);
        }
    }
}

#[cfg(test)]
#[path = "anomaly_tests.rs"]
mod tests;
