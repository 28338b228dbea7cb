//! Tells an administrator of refusals: Kubernetes Events on the `McpServer`, at most one per minute and kind.
//!
//! A notification and nothing more: requests never wait for it, and what it drops is counted. The database is the
//! record.

use std::collections::HashMap;
use std::future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as KubernetesEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::event::{Event, Kind, Outcome};
use crate::metrics::Metrics;

/// Refusals that may wait for the notifier.
const QUEUE: usize = 256;
/// At most one Event of a kind in this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Kinds of refusals that are kept apart at one time; more are told together, by their reason alone.
const WINDOWS: usize = 256;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The API server takes no longer note than this.
const MAX_NOTE: usize = 1024;
/// The API server takes no longer action or instance than this.
const MAX_WORD: usize = 128;
/// Stands where refusals that are told together differ.
const VARIOUS: &str = "various";
const REPORTER: &str = "portcullis.dev/serve";

/// What is told of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    kind: RefusalKind,
    count: u64,
    /// Why, by a fixed word; the one that was seen first in a minute, unless several kinds are told together.
    why: String,
    /// From where; None where the refusals come from several places.
    client_ip: Option<String>,
}

/// What makes refusals one Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RefusalKind {
    reason: &'static str,
    action: String,
    user: String,
    /// Whether it was let through, and might have been refused.
    observed: bool,
}

impl Refusal {
    /// What is told of a refusal that is on record, and has been redacted therefore. The names are those of every tool.
    pub(super) fn of(event: &Event, tools: &[&str]) -> Self {
        let reason = match event.event_type {
            Kind::Authentication => "AuthenticationFailed",
            Kind::Authorization | Kind::McpRequest => "AccessDenied",
            Kind::SecurityViolation => "SecurityViolation",
        };
        let action = event.asked(tools).to_owned();
        let why = event.reason.as_deref().unwrap_or(event.result.as_str());
        let anomaly = event.metadata.get("anomaly").map(|rule| format!(" ({rule})")).unwrap_or_default();
        let observed = event.result == Outcome::Observed;
        Self {
            kind: RefusalKind { reason, action, user: event.user.clone(), observed },
            count: event.count,
            why: format!("{why}{anomaly}"),
            client_ip: event.client_ip.clone(),
        }
    }

    /// Adds another to be told with this one. What does not hold for all is not told.
    fn join(&mut self, other: &Refusal, window: RefusalKind) {
        self.count += other.count;
        if self.kind != other.kind {
            if self.why != other.why {
                VARIOUS.clone_into(&mut self.why);
            }
            self.kind = window;
        }
        if self.client_ip != other.client_ip {
            self.client_ip = None;
        }
    }
}

/// Makes Kubernetes Events of refusals.
pub(crate) struct Notifier {
    /// The cluster.
    pub(crate) client: kube::Client,
    /// The `McpServer`, with its namespace: Events are made there.
    pub(crate) server: ObjectReference,
    /// Name of this pod.
    pub(crate) instance: String,
    /// Counts what is dropped.
    pub(crate) metrics: Arc<Metrics>,
}

impl Notifier {
    /// The queue between the audit log and the notifier.
    pub(crate) fn queue() -> (mpsc::Sender<Refusal>, mpsc::Receiver<Refusal>) {
        mpsc::channel(QUEUE)
    }

    /// Runs until it is cancelled or the audit log is closed, then tells what is left, once.
    pub(crate) async fn run(self, mut refusals: mpsc::Receiver<Refusal>, stop: CancellationToken) {
        let namespace = self.server.namespace.clone().unwrap_or_default();
        let events = Api::<KubernetesEvent>::namespaced(self.client.clone(), &namespace);
        let mut windows = Windows::default();
        loop {
            let due = windows.next_due();
            let window_end = async {
                match due {
                    Some(due) => sleep_until(due.into()).await,
                    None => future::pending().await,
                }
            };
            let told = tokio::select! {
                () = stop.cancelled() => break,
                refusal = refusals.recv() => match refusal {
                    None => break,
                    Some(refusal) => windows.add(refusal, Instant::now()).into_iter().collect(),
                },
                () = window_end => windows.due(Instant::now()),
            };
            for refusal in told {
                self.tell(&events, &refusal, Instant::now() + PATIENCE).await;
            }
        }
        refusals.close();
        while let Ok(refusal) = refusals.try_recv() {
            // What begins a window is told with the others below.
            if let Some(first) = windows.add(refusal, Instant::now()) {
                windows.keep(first);
            }
        }
        // All of them share one patience: a process that ends does not wait for an API server that does not answer.
        let deadline = Instant::now() + PATIENCE;
        for refusal in windows.drain() {
            self.tell(&events, &refusal, deadline).await;
        }
    }

    async fn tell(&self, events: &Api<KubernetesEvent>, refusal: &Refusal, deadline: Instant) {
        let event = kubernetes_event(refusal, &self.server, &self.instance, Timestamp::now());
        let parameters = PostParams::default();
        let error = match timeout_at(deadline.into(), events.create(&parameters, &event)).await {
            Ok(Ok(_)) => return,
            Ok(Err(kube::Error::Api(status))) => status.message,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        self.metrics.audit_notifications_dropped.inc_by(refusal.count);
        tracing::warn!(error, "Kubernetes Event of refusals cannot be created");
    }
}

fn kubernetes_event(
    refusal: &Refusal,
    server: &ObjectReference,
    instance: &str,
    now: Timestamp,
) -> KubernetesEvent {
    let Refusal { kind: RefusalKind { reason, action, user, observed }, count, why, client_ip } = refusal;
    let what = if *observed { "was observed calling" } else { "was refused" };
    let times = if *count == 1 { String::new() } else { format!(" {count} times") };
    let from = client_ip.as_ref().map_or(String::new(), |address| format!(" from {address}"));
    let note = format!("{user:?} {what} {action:?}{times}{from}: {why}");
    KubernetesEvent {
        metadata: ObjectMeta {
            // The API server completes the name, so that two replicas never choose the same. It takes no prefix that
            // ends in a dot.
            generate_name: Some(format!("{}-", server.name.as_deref().unwrap_or("server"))),
            namespace: server.namespace.clone(),
            ..ObjectMeta::default()
        },
        regarding: Some(server.clone()),
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".to_owned()),
        reason: Some((*reason).to_owned()),
        action: Some(shortened(action, MAX_WORD)),
        note: Some(shortened(&note, MAX_NOTE)),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(shortened(instance, MAX_WORD)),
        ..KubernetesEvent::default()
    }
}

/// Bytes are what the API server counts. It refuses an empty text.
fn shortened(text: &str, most: usize) -> String {
    if text.is_empty() { "unknown".to_owned() } else { text[..text.floor_char_boundary(most)].to_owned() }
}

/// The refusals of the last minute, by kind.
#[derive(Debug, Default)]
struct Windows(HashMap<RefusalKind, Window>);

#[derive(Debug)]
struct Window {
    end: Instant,
    untold: Option<Refusal>,
}

impl RefusalKind {
    /// The kind that stands for all others of its reason: there are few, whatever callers do.
    fn rest(&self) -> Self {
        Self { action: VARIOUS.to_owned(), user: VARIOUS.to_owned(), ..*self }
    }
}

impl Windows {
    /// Adds a refusal; gives it back if it is the first of its kind, to be told at once.
    fn add(&mut self, refusal: Refusal, now: Instant) -> Option<Refusal> {
        let mut kind = refusal.kind.clone();
        if self.0.len() >= WINDOWS && !self.0.contains_key(&kind) {
            self.0.retain(|_, window| window.end > now || window.untold.is_some());
            if self.0.len() >= WINDOWS {
                kind = kind.rest();
            }
        }
        if self.0.contains_key(&kind) {
            self.keep(refusal);
            return None;
        }
        self.0.insert(kind, Window { end: now + WINDOW, untold: None });
        Some(refusal)
    }

    /// Keeps a refusal until the window of its kind ends, or the one of the rest where it has none of its own.
    fn keep(&mut self, refusal: Refusal) {
        let own = self.0.contains_key(&refusal.kind);
        let kind = if own { refusal.kind.clone() } else { refusal.kind.rest() };
        let Some(window) = self.0.get_mut(&kind) else { return };
        match &mut window.untold {
            Some(untold) => untold.join(&refusal, kind),
            none => *none = Some(refusal),
        }
    }

    /// Gives what the ended windows hold. Where there was something, the next minute begins.
    fn due(&mut self, now: Instant) -> Vec<Refusal> {
        self.0.retain(|_, window| window.end > now || window.untold.is_some());
        let ended = self.0.values_mut().filter(|window| window.end <= now);
        let told = ended.filter_map(|window| {
            window.end = now + WINDOW;
            window.untold.take()
        });
        told.collect()
    }

    fn next_due(&self) -> Option<Instant> {
        self.0.values().filter(|window| window.untold.is_some()).map(|window| window.end).min()
    }

    fn drain(&mut self) -> Vec<Refusal> {
        self.0.drain().filter_map(|(_, window)| window.untold).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::event;
    use super::*;

    fn refusal(user: &str) -> Refusal {
        let denial = event(user, Kind::Authorization, Outcome::Denied);
        told(&Event { reason: Some("no_permission".into()), ..denial })
    }

    fn told(event: &Event) -> Refusal {
        Refusal::of(event, &["pods_list", "pods_get"])
    }

    #[test]
    fn the_first_refusal_is_told_at_once_and_the_rest_once_a_minute() {
        let (mut windows, start) = (Windows::default(), Instant::now());
        assert_eq!(windows.add(refusal("ci-bot"), start), Some(refusal("ci-bot")));
        for _ in 0..7 {
            assert_eq!(windows.add(refusal("ci-bot"), start + WINDOW / 2), None);
        }
        assert_eq!(windows.next_due(), Some(start + WINDOW));
        assert_eq!(windows.due(start + WINDOW / 2), []);
        assert_eq!(windows.due(start + WINDOW), [Refusal { count: 7, ..refusal("ci-bot") }]);
        assert_eq!(windows.add(refusal("ci-bot"), start + WINDOW), None, "a minute has begun with that");
        assert_eq!(windows.due(start + 2 * WINDOW).len(), 1);
        assert_eq!(windows.due(start + 3 * WINDOW), []);
        assert!(windows.0.is_empty(), "a minute without refusals ends it");
    }

    #[test]
    fn names_that_a_caller_makes_up_are_one_kind_and_those_of_tools_are_kinds_of_their_own() {
        let (mut windows, start) = (Windows::default(), Instant::now());
        let mut count = |tool: &str, action: &str| {
            let denial = event("ci-bot", Kind::Authorization, Outcome::Denied);
            let named = Event { tool: Some(tool.into()), action: action.into(), ..denial };
            windows.add(told(&named), start).is_some()
        };
        let first = (0..1_000).filter(|i| count(&format!("x{i}"), "tools/call")).count();
        assert_eq!(first, 1, "names of no tool");
        assert!(count("pods_list", "tools/call") && count("pods_get", "tools/call"), "tools");
        let first = (0..1_000).filter(|i| count("x", &format!("method/{i}"))).count();
        assert_eq!(first, 1, "names of no method");
    }

    #[test]
    fn refusals_of_more_kinds_than_can_be_kept_apart_are_told_by_their_reason() {
        let (mut windows, start) = (Windows::default(), Instant::now());
        let first = (0..WINDOWS).filter_map(|i| windows.add(refusal(&i.to_string()), start)).count();
        assert_eq!(first, WINDOWS);
        let violation = |user: &str| {
            let violation = event(user, Kind::SecurityViolation, Outcome::Denied);
            told(&Event { reason: Some("first_destructive_call".into()), ..violation })
        };
        assert_eq!(windows.add(refusal("a"), start), Some(refusal("a")), "the first one is told as it is");
        assert_eq!(windows.add(violation("b"), start), Some(violation("b")), "no other reason hides it");
        for i in 0..1_000 {
            assert_eq!(windows.add(refusal(&format!("later-{i}")), start), None);
        }
        assert_eq!(windows.add(violation("c"), start), None);
        assert_eq!(windows.0.len(), WINDOWS + 2, "nobody makes them more");
        let mut told = windows.due(start + WINDOW);
        told.sort_by_key(|refusal| refusal.count);
        let [one, many] = <[Refusal; 2]>::try_from(told).expect("one for each reason");
        assert_eq!(one, violation("c"), "what is alone needs no other words");
        assert_eq!(
            (many.count, many.kind.user.as_str(), many.kind.action.as_str()),
            (1_000, VARIOUS, VARIOUS)
        );
        assert_eq!(windows.add(refusal("x"), start + WINDOW), Some(refusal("x")), "old ones make room");
    }

    #[test]
    fn an_event_says_who_was_refused_what_how_often_and_fits_the_api_server() {
        let server = ObjectReference {
            name: Some("ops".into()),
            namespace: Some("agents".into()),
            ..ObjectReference::default()
        };
        let now = Timestamp::UNIX_EPOCH;
        let made = kubernetes_event(&Refusal { count: 7, ..refusal("ci-bot") }, &server, "ops-mcp-0", now);
        let note = r#""ci-bot" was refused "pods_list" 7 times from 10.0.0.7: no_permission"#;
        assert_eq!(made.note.as_deref(), Some(note));
        assert_eq!(made.reason.as_deref(), Some("AccessDenied"));
        assert_eq!(made.metadata.namespace.as_deref(), Some("agents"));
        assert_eq!(made.metadata.generate_name.as_deref(), Some("ops-"));
        let anomaly = ("anomaly".to_owned(), "new_network".to_owned());
        let observed = Event {
            reason: Some("anomalous_request".into()),
            metadata: [anomaly].into(),
            ..event("ci-bot", Kind::SecurityViolation, Outcome::Observed)
        };
        let made = kubernetes_event(&told(&observed), &server, "ops-mcp-0", now);
        let note =
            r#""ci-bot" was observed calling "pods_list" from 10.0.0.7: anomalous_request (new_network)"#;
        assert_eq!((made.note.as_deref(), made.reason.as_deref()), (Some(note), Some("SecurityViolation")));
        let long = told(&Event {
            tool: Some("ä".repeat(500)),
            ..event(&"ö".repeat(900), Kind::Authentication, Outcome::Denied)
        });
        let made = kubernetes_event(&long, &server, "", now);
        assert!(made.note.is_some_and(|note| note.len() <= MAX_NOTE));
        assert!(made.action.is_some_and(|action| action.len() <= MAX_WORD));
        assert_eq!(made.reporting_instance.as_deref(), Some("unknown"));
        assert_eq!(made.reason.as_deref(), Some("AuthenticationFailed"));
    }
}
