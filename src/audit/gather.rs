//! Gathers floods of one refusal into one record with a count.
//!
//! Pure: the time is an argument. Only refusals are gathered; intents, successes and failures of tools are recorded
//! one by one. What was gathered is in memory until its window ends, which is why it may only be something that had
//! no effect. Every refusal is counted in some record.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::event::{Event, Kind, Outcome, time_text};

/// How long equal refusals are looked at together.
const WINDOW: Duration = Duration::from_secs(10);
/// Refusals of a window that are recorded at once, one by one.
const AT_ONCE: u32 = 10;
/// Windows open at one time. An attacker who varies the refusals fills them; the others are then gathered by their
/// reason alone, so that neither memory nor the record is flooded.
const WINDOWS: usize = 256;
/// Stands where gathered refusals differ.
const VARIOUS: &str = "various";
/// Metadata of a gathered record: the time of the last refusal in it.
const UNTIL: &str = "gathered_until";

/// The open windows.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    windows: HashMap<Key, Window>,
    tools: Vec<&'static str>,
}

/// What makes refusals equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    event_type: Kind,
    result: Outcome,
    reason: Option<String>,
    /// None where the refusal is gathered by its reason alone.
    caller: Option<Caller>,
}

/// The part of a key that callers have a part in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Caller {
    user: String,
    credential_id: Option<String>,
    client_ip: Option<String>,
    /// The tool or the action; what callers make up is one, or they could fill the windows with it.
    asked: String,
}

#[derive(Debug)]
struct Window {
    end: Instant,
    /// Refusals that were recorded at once.
    recorded: u32,
    gathered: Option<Box<Event>>,
}

impl Gatherer {
    /// Nothing is gathered yet. The names are those of every tool.
    pub(super) fn new(tools: Vec<&'static str>) -> Self {
        Self { windows: HashMap::new(), tools }
    }

    /// Gives the event back if it is to be recorded now, and keeps it otherwise.
    pub(super) fn offer(&mut self, event: Event, now: Instant) -> Option<Event> {
        if !event.is_refusal() {
            return Some(event);
        }
        let window = self.window(&event, now);
        if window.recorded < AT_ONCE {
            window.recorded += 1;
            return Some(event);
        }
        window.gather(event);
        None
    }

    /// Takes an event back that could not be written, to be written with the next ones of its kind.
    pub(super) fn put_back(&mut self, event: Event, now: Instant) {
        self.window(&event, now).gather(event);
    }

    /// Ends the windows whose time is over and gives what was gathered in them.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Event> {
        let ended = self.windows.extract_if(|_, window| window.end <= now);
        ended.filter_map(|(_, window)| window.gathered.map(|event| *event)).collect()
    }

    /// Ends every window, at shutdown.
    pub(super) fn drain(&mut self) -> Vec<Event> {
        self.windows.drain().filter_map(|(_, window)| window.gathered.map(|event| *event)).collect()
    }

    /// When the first window ends in which something was gathered.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.windows.values().filter(|window| window.gathered.is_some()).map(|window| window.end).min()
    }

    fn window(&mut self, event: &Event, now: Instant) -> &mut Window {
        let mut key = Key::of(event, &self.tools);
        let mut recorded = 0;
        if self.windows.len() >= WINDOWS && !self.windows.contains_key(&key) {
            key.caller = None;
            recorded = AT_ONCE;
        }
        self.windows.entry(key).or_insert(Window { end: now + WINDOW, recorded, gathered: None })
    }
}

impl Key {
    fn of(event: &Event, tools: &[&str]) -> Self {
        Self {
            event_type: event.event_type,
            result: event.result,
            reason: event.reason.clone(),
            caller: Some(Caller {
                user: event.user.clone(),
                credential_id: event.credential_id.clone(),
                client_ip: event.client_ip.clone(),
                asked: event.asked(tools).to_owned(),
            }),
        }
    }
}

impl Window {
    fn gather(&mut self, event: Event) {
        match &mut self.gathered {
            Some(gathered) => merge(gathered, event),
            none => *none = Some(Box::new(event)),
        }
    }
}

/// Adds an event to a gathered one. What they do not share is left out: a record claims nothing that holds for a part
/// of what it stands for.
fn merge(gathered: &mut Event, event: Event) {
    gathered.count += event.count;
    for (kept, other) in [
        (&mut gathered.user, event.user),
        (&mut gathered.auth_type, event.auth_type),
        (&mut gathered.action, event.action),
    ] {
        if *kept != other {
            VARIOUS.clone_into(kept);
        }
    }
    for (kept, other) in [
        (&mut gathered.credential_id, event.credential_id),
        (&mut gathered.client_ip, event.client_ip),
        (&mut gathered.tool, event.tool),
        (&mut gathered.resource, event.resource),
        (&mut gathered.namespace, event.namespace),
        (&mut gathered.error_message, event.error_message),
    ] {
        if *kept != other {
            *kept = None;
        }
    }
    if gathered.params != event.params {
        gathered.params = None;
    }
    gathered.metadata.retain(|name, value| event.metadata.get(name) == Some(value));
    gathered.metadata.insert(UNTIL.to_owned(), time_text(event.timestamp));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::event::tests::event;
    use super::*;

    fn denial(user: &str) -> Event {
        Event { reason: Some("no_permission".into()), ..event(user, Kind::Authorization, Outcome::Denied) }
    }

    #[test]
    fn ten_refusals_are_recorded_at_once_and_the_rest_in_one_record_when_the_window_ends() {
        let (mut gatherer, start) = (Gatherer::default(), Instant::now());
        let at_once = (0..25).filter_map(|_| gatherer.offer(denial("ci-bot"), start)).count();
        assert_eq!(at_once, 10);
        assert_eq!(gatherer.next_due(), Some(start + WINDOW));
        assert_eq!(gatherer.due(start + WINDOW - Duration::from_millis(1)), []);
        let [gathered] = <[Event; 1]>::try_from(gatherer.due(start + WINDOW)).expect("one record");
        assert_eq!((gathered.count, gathered.user.as_str()), (15, "ci-bot"));
        assert_eq!(gathered.metadata[UNTIL], "2026-11-23T10:41:50.000000Z");
        assert_eq!(gatherer.next_due(), None);
        assert!(gatherer.offer(denial("ci-bot"), start + WINDOW).is_some(), "a new window has begun");
    }

    #[test]
    fn what_is_not_a_refusal_is_never_gathered() {
        let (mut gatherer, now) = (Gatherer::default(), Instant::now());
        for result in [Outcome::Intent, Outcome::Success, Outcome::Failure, Outcome::Cancelled] {
            let offered = (0..100).filter_map(|_| gatherer.offer(event("a", Kind::McpRequest, result), now));
            assert_eq!(offered.count(), 100);
        }
    }

    #[test]
    fn refusals_of_different_callers_do_not_hide_each_other() {
        let (mut gatherer, now) = (Gatherer::default(), Instant::now());
        (0..100).for_each(|_| drop(gatherer.offer(denial("loud"), now)));
        assert!(gatherer.offer(denial("quiet"), now).is_some());
        let elsewhere = Event { client_ip: Some("10.0.0.8".into()), ..denial("loud") };
        assert!(gatherer.offer(elsewhere, now).is_some());
    }

    #[test]
    fn a_caller_who_makes_up_names_hides_no_other_caller() {
        let (mut gatherer, now) = (Gatherer::new(vec!["pods_list", "pods_get"]), Instant::now());
        for i in 0..1_000 {
            drop(gatherer.offer(Event { tool: Some(format!("x{i}")), ..denial("loud") }, now));
            drop(gatherer.offer(Event { action: format!("x{i}"), tool: None, ..denial("loud") }, now));
        }
        assert!(gatherer.windows.len() < 5, "{}", gatherer.windows.len());
        (0..10).for_each(|_| drop(gatherer.offer(denial("quiet"), now)));
        let get = Event { tool: Some("pods_get".into()), ..denial("quiet") };
        assert!(gatherer.offer(get, now).is_some(), "tools are told apart");
        assert_eq!(gatherer.offer(denial("quiet"), now), None);
        let gathered = gatherer.drain();
        assert!(
            gathered.iter().any(|event| (event.count, event.user.as_str()) == (1, "quiet")),
            "{gathered:?}"
        );
    }

    #[test]
    fn a_gathered_record_says_only_what_holds_for_all_of_it() {
        let (mut gatherer, now) = (Gatherer::default(), Instant::now());
        (0..11).for_each(|_| drop(gatherer.offer(denial("ci-bot"), now)));
        let elsewhere = Event { namespace: Some("kube-system".into()), ..denial("ci-bot") };
        assert_eq!(gatherer.offer(elsewhere, now), None);
        let gathered = gatherer.drain();
        assert_eq!(gathered.len(), 1);
        assert_eq!((gathered[0].namespace.as_deref(), gathered[0].resource.as_deref()), (None, Some("pods")));
    }

    #[test]
    fn an_attacker_who_varies_the_name_fills_neither_memory_nor_the_record() {
        let (mut gatherer, now) = (Gatherer::default(), Instant::now());
        let recorded = (0..10_000).filter_map(|i| gatherer.offer(denial(&format!("user-{i}")), now)).count();
        assert_eq!(recorded, WINDOWS);
        let gathered = gatherer.drain();
        assert_eq!(gathered.len(), 1);
        assert_eq!((gathered[0].count, gathered[0].user.as_str()), (10_000 - WINDOWS as u64, VARIOUS));
    }

    proptest! {
        #[test]
        fn every_refusal_is_counted_in_exactly_one_record(
            steps in prop::collection::vec((0_u8..4, 0_u64..4_000, any::<bool>()), 1..300)
        ) {
            let (mut gatherer, mut now) = (Gatherer::default(), Instant::now());
            let mut counted = 0;
            for (user, pause, write_fails) in &steps {
                now += Duration::from_millis(*pause);
                for event in gatherer.due(now) {
                    if *write_fails { gatherer.put_back(event, now) } else { counted += event.count }
                }
                counted += gatherer.offer(denial(&user.to_string()), now).map_or(0, |event| event.count);
            }
            counted += gatherer.drain().iter().map(|event| event.count).sum::<u64>();
            prop_assert_eq!(counted, steps.len() as u64);
        }
    }
}
