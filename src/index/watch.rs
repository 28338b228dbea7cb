//! Follows the cluster: the own `McpServer`, the roles, the keys and the namespaces, each by a watch.
//!
//! A change is swapped in at once; changes that have already arrived together are swapped in together. An object that
//! does not decode counts as absent: it grants nothing and opens nothing. A watch that fails ages the policy.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
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
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Time within which a watch that still fails has failed again: three times the longest back-off.
const RETRIED: SignedDuration = SignedDuration::from_secs(90);

/// One piece of news of one watch.
enum News {
    Server(Box<Event<DeserializeGuard<McpServer>>>),
    Role(Event<DeserializeGuard<McpRole>>),
    ClusterRole(Event<DeserializeGuard<ClusterMcpRole>>),
    Key(Event<DeserializeGuard<McpApiKey>>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
    Failed(Source, Box<watcher::Error>),
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

const SOURCES: usize = 5;

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
    loop {
        let arrived = tokio::select! {
            () = stop.cancelled() => return,
            item = news.next() => item,
            Some(asked) = answers.next() => {
                known.heard(asked);
                policy.set_last_contact(known.last_contact());
                continue;
            }
        };
        let Some(first) = arrived else { return };
        let mut changed = known.learn(first);
        // What has arrived meanwhile is part of the same swap; nothing is waited for.
        while let Some(Some(more)) = news.next().now_or_never() {
            changed |= known.learn(more);
        }
        policy.set_last_contact(known.last_contact());
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
        watch(keys, all.clone(), Source::Key, News::Key),
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
    watcher(api, config)
        .default_backoff()
        .map(move |event| event.map_or_else(|error| News::Failed(source, Box::new(error)), news))
        .boxed()
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
    contacts: [Contact; SOURCES],
}

/// A watch that comes back after a failure says nothing until something changes. One that has not failed again for
/// longer than the longest back-off is therefore taken to follow.
#[derive(Clone, Copy, Default)]
struct Contact {
    at: Timestamp,
    failed: Option<Timestamp>,
}

impl Known {
    /// Takes in one piece of news, and says whether anything is different now.
    fn learn(&mut self, news: News) -> bool {
        let (source, changed) = match news {
            News::Server(event) => (Source::Server, self.servers.learn(*event, decoded)),
            News::Role(event) => (Source::Role, self.roles.learn(event, decoded)),
            News::ClusterRole(event) => (Source::ClusterRole, self.cluster_roles.learn(event, decoded)),
            News::Key(event) => (Source::Key, self.keys.learn(event, decoded)),
            News::Namespace(event) => {
                (Source::Namespace, self.namespaces.learn(event, |object| Some(object.labels().clone())))
            }
            News::Failed(source, error) => {
                warn!(?source, %error, "watch failed; the last known objects stay in use");
                self.contacts[source as usize].failed = Some(Timestamp::now());
                return false;
            }
        };
        self.contacts[source as usize] = Contact { at: Timestamp::now(), failed: None };
        changed
    }

    /// Notes that the API server answered: every watch that has not failed lately is current.
    fn heard(&mut self, now: Timestamp) {
        for contact in &mut self.contacts {
            if contact.failed.is_none_or(|failed| now.duration_since(failed) > RETRIED) {
                *contact = Contact { at: contact.at.max(now), failed: None };
            }
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
    fn a_watch_that_keeps_failing_ages_the_policy() {
        let mut known = Known::default();
        let start = Timestamp::now();
        known.heard(start);
        assert_eq!(known.last_contact(), start);
        known.learn(News::Failed(Source::Key, Box::new(watcher::Error::NoResourceVersion)));
        known.heard(start + SignedDuration::from_secs(60));
        assert_eq!(known.last_contact(), start, "the API server answers, and the keys are not followed");
        let later = start + SignedDuration::from_secs(120);
        known.heard(later);
        assert_eq!(known.last_contact(), later, "it has not failed again, so it follows");
    }
}
