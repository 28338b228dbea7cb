//! Follows the cluster: the own `McpServer`, the roles, the keys and the namespaces, each by a watch.
//!
//! A change is swapped in at once; changes that have already arrived together are swapped in together. An object that
//! does not decode counts as absent: it grants nothing and opens nothing. A watch that fails ages the policy until its
//! objects were listed anew: a watch that goes on where it was would say nothing, and nobody would know.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Objects, Policy, Subject};
use crate::api::{ClusterMcpRole, McpApiKey, McpRole, McpServer};

/// Seconds after which a watch starts anew, so that a half-open one is noticed.
const WATCH_SECONDS: u32 = 45;
/// Time between two questions whether the API server is there.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// First and longest pause after a watch that failed, each with up to a quarter more.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A watch that went well for this long begins with the first pause again.
const WENT_WELL: Duration = Duration::from_secs(30);

/// One piece of news of one watch.
enum News {
    Server(Box<Event<DeserializeGuard<McpServer>>>),
    Role(Event<DeserializeGuard<McpRole>>),
    ClusterRole(Event<DeserializeGuard<ClusterMcpRole>>),
    Key(Box<Event<DeserializeGuard<McpApiKey>>>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
    Failed(Source, Box<watcher::Error>),
}

impl News {
    /// Whether it says that a list is about to be asked for.
    fn is_beginning(&self) -> bool {
        match self {
            News::Server(event) => matches!(**event, Event::Init),
            News::Role(event) => matches!(event, Event::Init),
            News::ClusterRole(event) => matches!(event, Event::Init),
            News::Key(event) => matches!(**event, Event::Init),
            News::Namespace(event) => matches!(event, Event::Init),
            News::Failed(..) => false,
        }
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Server,
    Role,
    ClusterRole,
    Key,
    Namespace,
}

/// Kinds of the sources, in their order, for metrics.
pub(super) const SOURCES: [&str; 5] = ["McpServer", "McpRole", "ClusterMcpRole", "McpApiKey", "Namespace"];

/// Starts a policy that follows the cluster, and the task that does it until told to stop.
pub(crate) fn follow(
    client: Client,
    subject: Subject,
    stop: CancellationToken,
) -> (Policy, impl Future<Output = ()> + Send + 'static) {
    let policy = Policy::remote(Timestamp::now());
    let task = run(client, subject, policy.clone(), stop);
    (policy, task)
}

async fn run(client: Client, subject: Subject, policy: Policy, stop: CancellationToken) {
    let mut news = watches(&client, &subject);
    let mut answers = heartbeat(&client, &subject);
    let mut known = Known::default();
    // Nothing can be behind before anything was asked for.
    known.heard(Timestamp::now());
    loop {
        let arrived = tokio::select! {
            () = stop.cancelled() => return,
            item = news.next() => item,
            Some(asked) = answers.next() => {
                known.heard(asked);
                policy.set_contact(known.last_contact(), known.last_answer);
                continue;
            }
        };
        let Some(first) = arrived else { return };
        let mut learn = |news: News| {
            if let News::Failed(source, _) = &news {
                policy.count_failure(*source as usize);
            }
            known.learn(news)
        };
        let mut changed = learn(first);
        // What has arrived meanwhile is part of the same swap; nothing is waited for.
        while let Some(Some(more)) = news.next().now_or_never() {
            changed |= learn(more);
        }
        policy.set_contact(known.last_contact(), known.last_answer);
        if changed && known.is_complete() {
            if !policy.is_synced() {
                info!(namespace = subject.namespace, server = subject.server, "policy is complete");
            }
            policy.publish(subject.snapshot(&known.objects()));
        }
    }
}

/// When the API server was asked, each time that it answers. A stream of its own: an answer that is waited for must not
/// hold up a revocation that has arrived.
fn heartbeat(client: &Client, subject: &Subject) -> BoxStream<'static, Timestamp> {
    let servers: Api<McpServer> = Api::namespaced(client.clone(), &subject.namespace);
    let own = ListParams::default().fields(&format!("metadata.name={}", subject.server)).limit(1);
    let ticks = futures::stream::unfold(tokio::time::interval(HEARTBEAT), |mut ticks| async move {
        ticks.tick().await;
        Some(((), ticks))
    });
    let ask = move |()| {
        let (servers, own) = (servers.clone(), own.clone());
        async move {
            let asked = Timestamp::now();
            let answer = tokio::time::timeout(HEARTBEAT, servers.list_metadata(&own)).await;
            matches!(answer, Ok(Ok(_))).then_some(asked)
        }
    };
    ticks.filter_map(ask).boxed()
}

fn watches(client: &Client, subject: &Subject) -> BoxStream<'static, News> {
    let (all, namespace) = (watcher::Config::default().timeout(WATCH_SECONDS), &subject.namespace);
    let own = all.clone().fields(&format!("metadata.name={}", subject.server));
    let servers = Api::namespaced(client.clone(), namespace);
    let roles = Api::namespaced(client.clone(), namespace);
    let keys = Api::namespaced(client.clone(), namespace);
    let streams = [
        watch(servers, own, Source::Server, |event| News::Server(Box::new(event))),
        watch(roles, all.clone(), Source::Role, News::Role),
        watch(keys, all.clone(), Source::Key, |event| News::Key(Box::new(event))),
        watch(Api::all(client.clone()), all.clone(), Source::ClusterRole, News::ClusterRole),
        watch(Api::all(client.clone()), all, Source::Namespace, News::Namespace),
    ];
    futures::stream::select_all(streams).boxed()
}

/// Names and labels of every namespace of the cluster, whole, each time that they change.
pub(super) fn namespaces(
    client: Client,
) -> impl Stream<Item = BTreeMap<String, BTreeMap<String, String>>> + Send {
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let events = watch(Api::all(client), config, Source::Namespace, News::Namespace);
    events
        .scan(Known::default(), |known, news| {
            let changed = known.learn(news) && known.namespaces.complete;
            std::future::ready(Some(changed.then(|| known.namespaces.current.clone())))
        })
        .filter_map(std::future::ready)
}

fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    source: Source,
    news: fn(Event<K>) -> News,
) -> BoxStream<'static, News>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let watch = Watch { api, config, pause: FIRST_PAUSE, running: None };
    futures::stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) })
        .map(move |event| event.map_or_else(|error| News::Failed(source, Box::new(error)), news))
        .boxed()
}

/// A watch that begins anew, with a list, whenever it has failed.
struct Watch<K> {
    api: Api<K>,
    config: watcher::Config,
    /// Pause before the next beginning.
    pause: Duration,
    /// The watch, and since when it runs.
    running: Option<(Instant, BoxStream<'static, watcher::Result<Event<K>>>)>,
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    async fn next(&mut self) -> Option<watcher::Result<Event<K>>> {
        let began = || (Instant::now(), watcher(self.api.clone(), self.config.clone()).boxed());
        let (since, events) = self.running.get_or_insert_with(began);
        let event = events.next().await?;
        if event.is_err() {
            if since.elapsed() >= WENT_WELL {
                self.pause = FIRST_PAUSE;
            }
            let pause = jittered(self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            // The failure is told at once and the pause is made by the next beginning.
            self.running = Some((Instant::now() + pause, self.after(pause)));
        }
        Some(event)
    }

    /// A new watch that waits before it begins.
    fn after(&self, pause: Duration) -> BoxStream<'static, watcher::Result<Event<K>>> {
        let events = watcher(self.api.clone(), self.config.clone());
        tokio::time::sleep(pause).map(|()| events).into_stream().flatten().boxed()
    }
}

/// A pause and up to a quarter more, so that replicas which failed together do not ask together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    // Without randomness there is no jitter, and nothing else is lost.
    let _ = aws_lc_rs::rand::fill(&mut random);
    pause + pause / 4 * u32::from(random[0]) / 256
}

/// Everything learnt so far.
#[derive(Default)]
struct Known {
    servers: Store<Arc<McpServer>>,
    roles: Store<Arc<McpRole>>,
    cluster_roles: Store<Arc<ClusterMcpRole>>,
    keys: Store<Arc<McpApiKey>>,
    namespaces: Store<BTreeMap<String, String>>,
    /// When each source was last known to be followed, and whether it is now.
    contacts: [Contact; SOURCES.len()],
    /// When the API server last answered anything.
    last_answer: Timestamp,
}

/// When a source was last known to be followed, and whether its watch has failed since it last said anything.
#[derive(Clone, Copy, Default)]
struct Contact {
    at: Timestamp,
    failed: bool,
}

impl Known {
    /// Takes in one piece of news, and says whether anything is different now.
    fn learn(&mut self, news: News) -> bool {
        // That a list is about to be asked for says nothing of whether there will be one.
        let begins = news.is_beginning();
        let (source, changed) = match news {
            News::Server(event) => (Source::Server, self.servers.learn(*event, decoded)),
            News::Role(event) => (Source::Role, self.roles.learn(event, decoded)),
            News::ClusterRole(event) => (Source::ClusterRole, self.cluster_roles.learn(event, decoded)),
            News::Key(event) => (Source::Key, self.keys.learn(*event, decoded)),
            News::Namespace(event) => {
                (Source::Namespace, self.namespaces.learn(event, |object| Some(object.labels().clone())))
            }
            News::Failed(source, error) => {
                warn!(?source, %error, "watch failed; the last known objects stay in use");
                self.contacts[source as usize].failed = true;
                return false;
            }
        };
        if !begins {
            self.last_answer = Timestamp::now();
            self.contacts[source as usize] = Contact { at: self.last_answer, failed: false };
        }
        changed
    }

    /// Notes that the API server answered: every watch that has not failed is current.
    fn heard(&mut self, now: Timestamp) {
        self.last_answer = self.last_answer.max(now);
        for contact in self.contacts.iter_mut().filter(|contact| !contact.failed) {
            contact.at = contact.at.max(now);
        }
    }

    /// Since when the policy may be out of date: the oldest of the contacts.
    fn last_contact(&self) -> Timestamp {
        self.contacts.iter().map(|contact| contact.at).min().unwrap_or_default()
    }

    fn is_complete(&self) -> bool {
        self.servers.complete
            && self.roles.complete
            && self.cluster_roles.complete
            && self.keys.complete
            && self.namespaces.complete
    }

    fn objects(&self) -> Objects {
        Objects {
            server: self.servers.current.values().next().cloned(),
            roles: self.roles.current.clone(),
            cluster_roles: self.cluster_roles.current.clone(),
            keys: self.keys.current.clone(),
            namespaces: self.namespaces.current.clone(),
        }
    }
}

/// The object, unless it does not decode.
fn decoded<K>(guard: DeserializeGuard<K>) -> Option<Arc<K>> {
    match guard.0 {
        Ok(object) => Some(Arc::new(object)),
        Err(invalid) => {
            let name = invalid.metadata.name.unwrap_or_default();
            warn!(name, error = invalid.error, "object does not decode and counts as absent");
            None
        }
    }
}

/// The objects of one kind by name.
struct Store<V> {
    current: BTreeMap<String, V>,
    /// Objects of a list that is still coming in.
    incoming: BTreeMap<String, V>,
    complete: bool,
}

impl<V> Default for Store<V> {
    fn default() -> Self {
        Self { current: BTreeMap::new(), incoming: BTreeMap::new(), complete: false }
    }
}

impl<V: PartialEq> Store<V> {
    fn learn<K: ResourceExt>(&mut self, event: Event<K>, value: impl Fn(K) -> Option<V>) -> bool {
        match event {
            Event::Init => {
                self.incoming.clear();
                false
            }
            Event::InitApply(object) => {
                let name = object.name_any();
                if let Some(value) = value(object) {
                    self.incoming.insert(name, value);
                }
                false
            }
            Event::InitDone => {
                let before = std::mem::replace(&mut self.current, std::mem::take(&mut self.incoming));
                let first = !std::mem::replace(&mut self.complete, true);
                first || before != self.current
            }
            Event::Apply(object) => {
                let name = object.name_any();
                match value(object) {
                    Some(value) => self.current.insert(name, value),
                    None => self.current.remove(&name),
                };
                true
            }
            Event::Delete(object) => self.current.remove(&object.name_any()).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use jiff::SignedDuration;
    use serde_json::json;

    use super::*;

    fn role(name: &str, permissions: serde_json::Value) -> DeserializeGuard<McpRole> {
        serde_json::from_value(json!({
            "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
            "metadata": {"name": name, "namespace": "agents"}, "spec": {"permissions": permissions},
        }))
        .expect("the guard takes anything with metadata")
    }

    fn names(known: &Known) -> Vec<&str> {
        known.roles.current.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_list_replaces_what_was_known_when_it_is_whole() {
        let mut known = Known::default();
        for news in [Event::Init, Event::InitApply(role("a", json!(["k8s:*"])))] {
            assert!(!known.learn(News::Role(news)));
        }
        assert!(names(&known).is_empty());
        assert!(known.learn(News::Role(Event::InitDone)));
        assert_eq!(names(&known), ["a"]);
        known.learn(News::Role(Event::Init));
        known.learn(News::Role(Event::InitApply(role("b", json!(["k8s:*"])))));
        assert_eq!(names(&known), ["a"], "a list that is not whole yet changes nothing");
        known.learn(News::Role(Event::InitDone));
        assert_eq!(names(&known), ["b"]);
    }

    #[test]
    fn an_object_that_does_not_decode_counts_as_absent() {
        let mut known = Known::default();
        assert!(known.learn(News::Role(Event::Apply(role("a", json!(["k8s:*"]))))));
        assert!(known.learn(News::Role(Event::Apply(role("a", json!(7))))));
        assert!(names(&known).is_empty());
    }

    #[test]
    fn a_list_with_the_same_objects_is_no_change() {
        let mut known = Known::default();
        let list = || [Event::Init, Event::InitApply(role("a", json!(["k8s:*"]))), Event::InitDone];
        let changed = |known: &mut Known| list().map(|event| known.learn(News::Role(event)))[2];
        assert!(changed(&mut known));
        assert!(!changed(&mut known));
    }

    #[test]
    fn a_watch_that_failed_ages_the_policy_until_its_list_has_come() {
        let mut known = Known::default();
        let start = Timestamp::now();
        known.heard(start);
        assert_eq!(known.last_contact(), start);
        known.learn(News::Failed(Source::Key, Box::new(watcher::Error::NoResourceVersion)));
        let later = start + SignedDuration::from_secs(3600);
        known.heard(later);
        assert_eq!(known.last_contact(), start, "the API server answers, and the keys are not followed");
        assert_eq!(known.last_answer, later);
        known.learn(News::Key(Box::new(Event::Init)));
        assert_eq!(known.last_contact(), start, "a list was asked for and has not come");
        known.learn(News::Key(Box::new(Event::InitDone)));
        known.heard(later);
        assert_eq!(known.last_contact(), later);
    }

    /// An API server that refuses the first questions and then has no roles.
    fn client(refusals: usize) -> Client {
        let asked = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let number = asked.fetch_add(1, Ordering::SeqCst);
            async move {
                if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                    std::future::pending::<()>().await;
                }
                let list = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRoleList",
                    "metadata": {"resourceVersion": "7"}, "items": []});
                let mut response = Response::new(kube::client::Body::from(list.to_string().into_bytes()));
                if number < refusals {
                    *response.status_mut() = http::StatusCode::FORBIDDEN;
                }
                Ok::<_, tower::BoxError>(response)
            }
        });
        Client::new(service, "agents")
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_failed_lists_anew_and_so_shows_that_it_follows() {
        let api: Api<DeserializeGuard<McpRole>> = Api::namespaced(client(3), "agents");
        let mut news = watch(api, watcher::Config::default(), Source::Role, News::Role);
        let mut failures = 0;
        loop {
            match news.next().await.expect("a watch does not end") {
                News::Failed(..) => failures += 1,
                News::Role(Event::InitDone) => break,
                _ => {}
            }
        }
        assert_eq!(failures, 3);
    }
}
