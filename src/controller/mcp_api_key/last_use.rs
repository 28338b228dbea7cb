//! When keys were last used, as their replicas say: looked at every half minute, written at most once a minute per key.
//!
//! Times only move forward, and a key that nobody uses is never written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt};
use tokio::time::{Instant, MissedTickBehavior};

use crate::api::replica::{MAX_ASKED, StateQuestion};
use crate::api::{McpApiKey, McpApiKeyStatus};
use crate::controller::engine::Transient;
use crate::controller::status::{Stale, try_write};
use crate::controller::{Context, replicas, within_limit};
use crate::index::snapshot::admits_servers;
use crate::k8s::watch::find;

use super::{generations, import, read};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// Least time between two writes for one key.
const WRITTEN_EVERY: Duration = Duration::from_secs(60);
/// Looks between two cleanings of imported keys.
const CLEANED_EVERY: u32 = 10;
/// Servers that are asked, and keys that are written, at the same time.
const CONCURRENCY: usize = 4;

/// An object by namespace and name.
type Name = (String, String);

/// Looks without end at what replicas know about the use of keys.
pub(in crate::controller) async fn sweep(context: &Arc<Context>) {
    let mut written: HashMap<Name, Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut count = 0_u32;
    loop {
        ticks.tick().await;
        count = count.wrapping_add(1);
        within_limit("last use of keys", look(context, &mut written)).await;
        if count.is_multiple_of(CLEANED_EVERY) {
            within_limit("imported keys", import::clean(context)).await;
        }
    }
}

async fn look(context: &Arc<Context>, written: &mut HashMap<Name, Instant>) {
    written.retain(|_, at| at.elapsed() < WRITTEN_EVERY);
    let keys = living_keys(context);
    let servers: BTreeSet<Name> = keys
        .iter()
        .flat_map(|key| {
            let namespace = key.namespace().unwrap_or_default();
            key.spec.servers.iter().map(move |server| (namespace.clone(), server.clone()))
        })
        .filter(|(namespace, server)| find(&context.cluster.servers, namespace, server).is_some())
        .collect();
    let keys = &keys;
    let asked = stream::iter(servers).map(|(namespace, server)| async move {
        let used = ask(context, &namespace, &server, keys).await;
        (namespace, used)
    });
    let answers: Vec<(String, BTreeMap<String, i64>)> = asked.buffer_unordered(CONCURRENCY).collect().await;
    let used = latest(keys, &answers, Timestamp::now());
    let due: Vec<_> = used.into_iter().filter(|(name, _)| !written.contains_key(name)).collect();
    let writes = stream::iter(due).map(|(name, used)| async move {
        let result = write(context, &name, used).await;
        (name, result)
    });
    let done: Vec<_> = writes.buffer_unordered(CONCURRENCY).collect().await;
    for (name, result) in done {
        match result {
            Ok(()) => drop(written.insert(name, Instant::now())),
            Err(error) => tracing::debug!(key = %name.1, %error, "Last use not written"),
        }
    }
}

/// Keys with a generation that can be used, where the operator may work.
fn living_keys(context: &Context) -> Vec<McpApiKey> {
    let objects = context.cluster.keys.state();
    let readable = objects.iter().filter_map(|key| key.0.as_ref().ok());
    let living = readable.filter(|key| {
        let keys = key.status.as_ref().map_or(&[][..], |status| &status.keys);
        keys.iter().any(generations::is_living)
    });
    let opted_in = |key: &&McpApiKey| {
        let namespace = find(&context.cluster.namespaces, "", &key.namespace().unwrap_or_default());
        namespace.is_some_and(|namespace| admits_servers(namespace.labels()))
    };
    living.filter(opted_in).cloned().collect()
}

/// When the generations of a server's keys were last used, by id. A replica that does not answer knows nothing now.
async fn ask(context: &Context, namespace: &str, server: &str, keys: &[McpApiKey]) -> BTreeMap<String, i64> {
    let named = keys.iter().filter(|key| {
        key.namespace().as_deref() == Some(namespace) && key.spec.servers.iter().any(|name| name == server)
    });
    let ids: Vec<String> = named
        .flat_map(|key| key.status.iter().flat_map(|status| &status.keys))
        .filter(|generation| generations::is_living(generation))
        .map(|generation| generation.id.clone())
        .collect();
    let mut used = BTreeMap::new();
    for ids in ids.chunks(MAX_ASKED) {
        let question = StateQuestion { keys: ids.to_vec() };
        let answers = match replicas::ask_each(context, namespace, server, &question).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::debug!(namespace, server, %error, "Last use not asked");
                return used;
            }
        };
        for state in answers.into_iter().filter_map(|(_, answer)| answer.ok()) {
            for (id, at) in state.last_used.into_iter().filter(|(id, _)| ids.contains(id)) {
                let latest = used.entry(id).or_insert(at);
                *latest = at.max(*latest);
            }
        }
    }
    used
}

/// Keys that were used later than their status says, to the minute.
fn latest(
    keys: &[McpApiKey],
    answers: &[(String, BTreeMap<String, i64>)],
    now: Timestamp,
) -> BTreeMap<Name, Timestamp> {
    let mut by_namespace: HashMap<&str, HashMap<&str, i64>> = HashMap::new();
    for (namespace, used) in answers {
        let known = by_namespace.entry(namespace).or_default();
        for (id, at) in used {
            let latest = known.entry(id).or_insert(*at);
            *latest = (*latest).max(*at);
        }
    }
    let none = HashMap::new();
    let newer = keys.iter().filter_map(|key| {
        let status = key.status.as_ref()?;
        let namespace = key.namespace().unwrap_or_default();
        let used = by_namespace.get(namespace.as_str()).unwrap_or(&none);
        let used = status.keys.iter().filter_map(|generation| used.get(generation.id.as_str())).max()?;
        let used = to_the_minute(*used, now)?;
        is_news(status, used).then(|| ((namespace, key.name_any()), used))
    });
    newer.collect()
}

/// The beginning of the minute of a use. A replica whose clock is ahead does not date it into the future.
fn to_the_minute(used: i64, now: Timestamp) -> Option<Timestamp> {
    let used = used.min(now.as_second());
    Timestamp::from_second(used.checked_sub(used.rem_euclid(60))?).ok()
}

fn is_news(status: &McpApiKeyStatus, used: Timestamp) -> bool {
    status.last_used_at.as_ref().is_none_or(|before| before.0 < used)
}

/// Writes the time into the newest status. One that changes meanwhile is left for later.
async fn write(context: &Context, (namespace, name): &Name, used: Timestamp) -> Result<(), Transient> {
    let api = Api::<McpApiKey>::namespaced(context.client.clone(), namespace);
    let Some(key) = read(&api, name).await? else { return Ok(()) };
    let mut status = key.status.clone().unwrap_or_default();
    if is_news(&status, used) {
        status.last_used_at = Some(Time(used));
        try_write(&api, &key, key.status.as_ref(), &status, Stale::Refused).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, last_used: &str) -> McpApiKey {
        serde_saphyr::from_str(&format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {{name: {name}, namespace: agents}}, spec: {{identity: ci, servers: [ops]}}, status: {{keys: [{{id: old-{name}, digest: 'sha256:00', createdAt: '2026-01-01T00:00:00Z', state: Retiring}}, {{id: new-{name}, digest: 'sha256:00', createdAt: '2026-01-01T00:00:00Z', state: Active}}]{last_used}}}}}"
        ))
        .expect("a key")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn answer(namespace: &str, used: &[(&str, &str)]) -> (String, BTreeMap<String, i64>) {
        let used = used.iter().map(|(id, time)| ((*id).to_owned(), at(time).as_second()));
        (namespace.to_owned(), used.collect())
    }

    fn news(keys: &[McpApiKey], answers: &[(String, BTreeMap<String, i64>)]) -> Vec<(String, String)> {
        let found = latest(keys, answers, at("2026-11-23T10:00:00Z"));
        found.into_iter().map(|((_, name), used)| (name, used.to_string())).collect()
    }

    #[test]
    fn a_use_is_known_to_the_minute_whichever_generation_and_replica_saw_it() {
        let answers = [
            answer("agents", &[("old-ci", "2026-11-23T09:31:20Z")]),
            answer("agents", &[("old-ci", "2026-11-23T09:33:59Z"), ("new-ci", "2026-11-23T09:32:00Z")]),
        ];
        let expected = [("ci".to_owned(), "2026-11-23T09:33:00Z".to_owned())];
        assert_eq!(news(&[key("ci", "")], &answers), expected);
    }

    #[test]
    fn an_unused_key_and_one_whose_use_is_known_are_not_written() {
        let keys = [key("idle", ""), key("ci", ", lastUsedAt: '2026-11-23T09:33:00Z'")];
        let used = |time: &str| [answer("agents", &[("new-ci", time)])];
        assert!(news(&keys, &used("2026-11-23T09:33:59Z")).is_empty());
        assert!(news(&keys, &used("2026-11-23T08:00:00Z")).is_empty(), "only forward");
        assert_eq!(news(&keys, &used("2026-11-23T09:34:00Z")).len(), 1);
        assert!(news(&keys, &[answer("others", &[("new-ci", "2026-11-23T09:34:00Z")])]).is_empty());
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_date_a_use_into_the_future() {
        let ahead = [answer("agents", &[("new-ci", "2027-01-01T00:00:00Z")])];
        assert_eq!(news(&[key("ci", "")], &ahead)[0].1, "2026-11-23T10:00:00Z");
        assert_eq!(to_the_minute(i64::MIN, at("2026-11-23T10:00:00Z")), None);
    }
}
