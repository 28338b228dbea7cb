//! Guarded watches: a copy of the objects of one kind, kept current, in which one unreadable object stands for itself.
//!
//! An unreadable object stays in the copy as such: it exists, so nothing may be cleaned up as if it did not.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// An object, or what could be read of one.
pub(crate) type Guarded<K> = DeserializeGuard<K>;

/// A watch that ends without a word is noticed after this many seconds.
const WATCH_SECONDS: u32 = 60;
/// First pause after a failed watch. A right that was just granted works after some milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause after a failed watch.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What happened to an object.
#[derive(Debug)]
pub(crate) struct Change<K> {
    /// The object as it was, unless it is new.
    pub(crate) before: Option<Arc<Guarded<K>>>,
    /// The object as it is, unless it is gone.
    pub(crate) after: Option<Arc<Guarded<K>>>,
}

impl<K: Resource> Change<K> {
    /// The object, as it is or as it last was.
    pub(crate) fn object(&self) -> &Guarded<K> {
        self.after.as_deref().or(self.before.as_deref()).expect("a change has a side")
    }

    /// Whether more than the status changed, for kinds whose generation counts changes of the spec.
    pub(crate) fn is_more_than_status(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                let (before, after) = (before.meta(), after.meta());
                before.uid != after.uid
                    || before.generation != after.generation
                    || before.labels != after.labels
                    || before.annotations != after.annotations
                    || before.finalizers != after.finalizers
                    || before.deletion_timestamp != after.deletion_timestamp
            }
            _ => true,
        }
    }

    /// Whether anything changed at all: a watch that starts again shows everything once more.
    fn is_change(&self) -> bool {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => before.meta().resource_version != after.meta().resource_version,
            _ => true,
        }
    }
}

/// A copy to read from and the half that [`follow`] writes to.
pub(crate) struct Mirror<K: Resource<DynamicType = ()> + Clone + 'static> {
    /// The copy.
    pub(crate) store: Store<Guarded<K>>,
    writer: reflector::store::Writer<Guarded<K>>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Mirror<K> {
    /// An empty copy.
    pub(crate) fn new() -> Self {
        let (store, writer) = reflector::store();
        Self { store, writer }
    }
}

/// A readable object of a copy.
pub(crate) fn find<K>(store: &Store<Guarded<K>>, namespace: &str, name: &str) -> Option<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut key = ObjectRef::<Guarded<K>>::new(name);
    if !namespace.is_empty() {
        key = key.within(namespace);
    }
    store.get(&key).and_then(|object| object.0.as_ref().ok().cloned())
}

/// Keeps a copy current until told to stop, and tells of every change after it stands in the copy.
///
/// `selector` limits the watch by labels; empty means everything.
pub(crate) async fn follow<K>(
    api: Api<Guarded<K>>,
    selector: &str,
    mirror: Mirror<K>,
    stop: CancellationToken,
    mut changed: impl FnMut(&Change<K>),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
    if !selector.is_empty() {
        config = config.labels(selector);
    }
    let Mirror { store, mut writer } = mirror;
    let mut events = pin!(watcher::watcher(api, config).take_until(stop.clone().cancelled_owned()));
    let mut pause = FIRST_PAUSE;
    let mut listed: Vec<Arc<Guarded<K>>> = Vec::new();
    loop {
        match events.try_next().await {
            Ok(None) => return,
            Ok(Some(event)) => {
                // A new list is announced before it is asked for: only an answer shows that asking works.
                if !matches!(event, Event::Init) {
                    pause = FIRST_PAUSE;
                }
                for change in apply(&store, &mut writer, &mut listed, event) {
                    if change.is_change() {
                        changed(&change);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "Watch failed");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(jittered(pause)) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// A pause and up to a quarter more, so that watches which failed together do not ask together.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    // Without randomness there is no jitter, and nothing else is lost.
    let _ = aws_lc_rs::rand::fill(&mut random);
    pause + pause / 4 * u32::from(random[0]) / 256
}

/// Writes an event into the copy. What a new list no longer has is gone; what it has may be known already.
fn apply<K>(
    store: &Store<Guarded<K>>,
    writer: &mut reflector::store::Writer<Guarded<K>>,
    listed: &mut Vec<Arc<Guarded<K>>>,
    event: Event<Guarded<K>>,
) -> Vec<Change<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let known = |object: &Guarded<K>| store.get(&ObjectRef::from_obj(object));
    match event {
        Event::Init => {
            listed.clear();
            writer.apply_watcher_event(&Event::Init);
            Vec::new()
        }
        Event::InitApply(object) => {
            listed.push(Arc::new(object.clone()));
            writer.apply_watcher_event(&Event::InitApply(object));
            Vec::new()
        }
        Event::InitDone => {
            let before = store.state();
            let mut changes: Vec<Change<K>> = std::mem::take(listed)
                .into_iter()
                .map(|object| Change { before: known(&object), after: Some(object) })
                .collect();
            writer.apply_watcher_event(&Event::InitDone);
            let gone = before.into_iter().filter(|object| known(object).is_none());
            changes.extend(gone.map(|object| Change { before: Some(object), after: None }));
            changes
        }
        Event::Apply(object) => {
            if let Err(error) = &object.0 {
                tracing::warn!(kind = %K::kind(&()), name = %object.name_any(), %error, "Object cannot be read");
            }
            let change = Change { before: known(&object), after: Some(Arc::new(object.clone())) };
            writer.apply_watcher_event(&Event::Apply(object));
            vec![change]
        }
        Event::Delete(object) => {
            let change = Change { before: Some(Arc::new(object.clone())), after: None };
            writer.apply_watcher_event(&Event::Delete(object));
            vec![change]
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn map(name: &str, version: &str, data: serde_json::Value) -> Guarded<ConfigMap> {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"name": name, "namespace": "a", "resourceVersion": version}}))
        .expect("metadata can be read")
    }

    #[test]
    fn a_new_list_tells_what_came_what_changed_and_what_is_gone() {
        let Mirror { store, mut writer } = Mirror::<ConfigMap>::new();
        let mut listed = Vec::new();
        let mut feed = |event| apply(&store, &mut writer, &mut listed, event);
        let ok = || json!({"k": "v"});
        for event in
            [Event::Init, Event::InitApply(map("stays", "1", ok())), Event::InitApply(map("goes", "2", ok()))]
        {
            assert!(feed(event).is_empty());
        }
        assert_eq!(feed(Event::InitDone).len(), 2);
        feed(Event::Init);
        feed(Event::InitApply(map("stays", "1", ok())));
        feed(Event::InitApply(map("comes", "3", ok())));
        let told: Vec<(String, bool, bool)> = feed(Event::InitDone)
            .iter()
            .filter(|change| change.is_change())
            .map(|c| (c.object().name_any(), c.before.is_some(), c.after.is_some()))
            .collect();
        assert_eq!(told, [("comes".to_owned(), false, true), ("goes".to_owned(), true, false)]);
    }

    #[test]
    fn a_pause_grows_by_less_than_a_quarter() {
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(FIRST_PAUSE)).collect();
        assert!(pauses.iter().all(|pause| (FIRST_PAUSE..FIRST_PAUSE * 5 / 4).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }

    #[test]
    fn an_unreadable_object_exists_and_stops_nothing() {
        let Mirror { store, mut writer } = Mirror::<ConfigMap>::new();
        let mut listed = Vec::new();
        for event in [
            Event::Init,
            Event::InitApply(map("bad", "1", json!("text"))),
            Event::InitApply(map("good", "1", json!({}))),
            Event::InitDone,
        ] {
            apply(&store, &mut writer, &mut listed, event);
        }
        assert_eq!(store.len(), 2);
        assert!(find(&store, "a", "bad").is_none());
        assert!(find(&store, "a", "good").is_some());
    }
}
