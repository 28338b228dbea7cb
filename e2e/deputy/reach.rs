//! What a tenant can reach: its own rights, those of every ServiceAccount that a pod in its namespace could use, and
//! what others keep secret and now stands where it did not stand before.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use futures::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

use super::World;
use crate::admission::acting_as;
use crate::cluster::{OPERATOR_NAMESPACE, kubectl, objects};
use crate::rights::allowed;

/// Mark of what others have made; nothing that the tenant does may change it.
pub(super) const FOREIGN: &str = "e2e/foreign";
/// Part of everything that others keep secret. No other test uses the word: the log of the operator tells of all of them.
const MARK: &str = "magpie";
/// Kinds in which something of others could turn up.
const KINDS: &str = "secrets,configmaps,services,serviceaccounts,deployments,networkpolicies,poddisruptionbudgets,\
    roles,rolebindings,mcpservers,mcproles,mcpapikeys";
/// Kinds that controllers of the cluster or ours write a status to.
const WITH_STATUS: [&str; 5] = ["Deployment", "PodDisruptionBudget", "McpServer", "McpRole", "McpApiKey"];

/// What any server may do in its own namespace, whatever its roles.
const BASELINE: [&str; 8] = [
    "list portcullis.dev/mcpservers",
    "watch portcullis.dev/mcpservers",
    "list portcullis.dev/mcproles",
    "watch portcullis.dev/mcproles",
    "list portcullis.dev/mcpapikeys",
    "watch portcullis.dev/mcpapikeys",
    "create events.k8s.io/events",
    "patch events.k8s.io/events",
];
/// What any server may do on objects without a namespace.
const CLUSTER_BASELINE: [&str; 5] = [
    "list portcullis.dev/clustermcproles",
    "watch portcullis.dev/clustermcproles",
    "list /namespaces",
    "watch /namespaces",
    "create authentication.k8s.io/tokenreviews",
];

/// Looks until what others have made must be in force.
const LOOKS: usize = 20;

/// Who, and in which namespace.
type Place = (String, String);

/// What can be reached at one time.
pub(super) struct Reach {
    namespace: String,
    /// Answers of the API server over the grid of verbs and resources, for the tenant, and for any pod at home.
    grid: BTreeMap<Place, BTreeSet<String>>,
    /// Every rule that counts for the tenant and for each ServiceAccount of both namespaces.
    rules: BTreeMap<Place, BTreeSet<String>>,
    /// What others have made, as it is.
    foreign: BTreeMap<String, Value>,
    /// Where secrets of others stand.
    leaks: BTreeSet<String>,
}

impl Reach {
    /// Asks the API server.
    pub(super) async fn of(world: &World) -> Self {
        let (namespace, victim) = (world.namespace.name(), world.victim.name());
        let any_pod = account(namespace, "default");
        let mut grid = BTreeMap::new();
        let scopes = [namespace, victim, "kube-system", OPERATOR_NAMESPACE, ""];
        let asked = scopes.iter().map(|scope| (&world.tenant, *scope)).chain([(&any_pod, namespace)]);
        for (who, scope) in asked {
            let rights = allowed(&world.admin, who, scope).await;
            grid.insert((who.clone(), scope.to_owned()), rights);
        }
        let mut identities = vec![world.tenant.clone()];
        for place in [namespace, victim] {
            let accounts = objects(&["serviceaccounts", "-n", place]);
            identities.extend(accounts.iter().map(|found| account(place, name(found))));
        }
        let scopes = [namespace, victim, "kube-system", OPERATOR_NAMESPACE, "default"];
        let rules = stream::iter(identities).map(|who| rules_of(who, scopes)).buffer_unordered(8);
        let rules = rules.flat_map(stream::iter).collect().await;
        let mut reach = Self {
            namespace: namespace.to_owned(),
            grid,
            rules,
            foreign: BTreeMap::new(),
            leaks: BTreeSet::new(),
        };
        for place in [namespace, victim] {
            objects(&[KINDS, "-n", place]).iter().for_each(|object| reach.look_at(object));
        }
        objects(&["events", "-n", namespace]).iter().for_each(|event| reach.look_at(event));
        let log = kubectl(&["logs", "-n", OPERATOR_NAMESPACE, "deploy/portcullis-operator", "--since=3m"]);
        reach.search("the log of the operator", &log);
        reach
    }

    /// What can be reached once everything that others have made is in force: two looks find the same.
    pub(super) async fn settled(world: &World) -> Self {
        let mut last = Self::of(world).await;
        for _ in 0..LOOKS {
            let now = Self::of(world).await;
            if last.compare(&now).is_empty() {
                return now;
            }
            last = now;
        }
        panic!("what can be reached changes without anybody doing anything");
    }

    fn look_at(&mut self, object: &Value) {
        let kind = object["kind"].as_str().expect("an object has a kind");
        let place = format!("{kind} {}/{}", object["metadata"]["namespace"], name(object));
        if object["metadata"]["annotations"][FOREIGN] == "yes" {
            let mut object = object.clone();
            if WITH_STATUS.contains(&kind) {
                object["status"].take();
                object["metadata"]["resourceVersion"].take();
                // The operator puts its finalizer on every server.
                object["metadata"]["finalizers"].take();
            }
            self.foreign.insert(place, object);
            return;
        }
        self.search(&place, &object.to_string());
        let data = object["data"].as_object().into_iter().flatten();
        for (entry, text) in data.filter(|_| kind == "Secret") {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap_or_default());
            let text = String::from_utf8_lossy(&bytes.expect("base64")).into_owned();
            self.search(&format!("{place}, {entry}"), &text);
        }
    }

    fn search(&mut self, place: &str, text: &str) {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = lower.find(MARK) {
            let around: String = lower[at.saturating_sub(120)..].chars().take(240).collect();
            self.leaks.insert(format!("{place}: {around}"));
        }
    }

    /// What can be reached afterwards and could not before, in words.
    pub(super) fn compare(&self, after: &Self) -> Vec<String> {
        let mut wrong = Vec::new();
        let grid = self.grid.iter().map(|(place, before)| (place, before, after.grid.get(place)));
        let rules = self.rules.iter().map(|(place, before)| (place, before, after.rules.get(place)));
        for (place, before, now) in grid.chain(rules) {
            if let Some(now) = now.filter(|now| *now != before) {
                let (gained, lost) = (now.difference(before), before.difference(now));
                wrong.push(format!(
                    "{place:?}: gained {:?}, lost {:?}",
                    gained.collect::<Vec<_>>(),
                    lost.collect::<Vec<_>>()
                ));
            }
        }
        let new = after.rules.iter().filter(|(place, _)| !self.rules.contains_key(place));
        for ((who, scope), rules) in new {
            let any_pod = &after.rules[&(account(&self.namespace, "default"), scope.clone())];
            let here = BASELINE.iter().filter(|_| *scope == self.namespace);
            let allowed: BTreeSet<&str> = CLUSTER_BASELINE.iter().chain(here).copied().collect();
            let more: Vec<&String> =
                rules.difference(any_pod).filter(|rule| !allowed.contains(rule.as_str())).collect();
            if !more.is_empty() || !who.ends_with("-mcp") {
                wrong.push(format!("{who} is new and may in {scope}: {more:?}"));
            }
        }
        for (place, before) in &self.foreign {
            let now = after.foreign.get(place);
            if now != Some(before) {
                wrong.push(format!("{place} was changed from {before} to {now:?}"));
            }
        }
        wrong.extend(
            after.leaks.difference(&self.leaks).map(|leak| format!("a secret of others is in {leak}")),
        );
        wrong
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("an object has a name")
}

fn account(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Every rule that counts for somebody in each namespace, as `verb group/resource name`.
async fn rules_of(who: String, scopes: [&str; 5]) -> Vec<(Place, BTreeSet<String>)> {
    let reviews = Api::<SelfSubjectRulesReview>::all(acting_as(&who).await);
    let mut all = Vec::new();
    for scope in scopes {
        let spec = SelfSubjectRulesReviewSpec { namespace: Some(scope.to_owned()) };
        let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await.expect("a review");
        let mut rules = BTreeSet::new();
        for rule in answer.status.expect("the API server answers").resource_rules {
            let names = rule.resource_names.unwrap_or_default().join(",");
            for (group, resource) in rule
                .api_groups
                .iter()
                .flatten()
                .flat_map(|group| rule.resources.iter().flatten().map(move |resource| (group, resource)))
            {
                let right =
                    |verb: &String| format!("{verb} {group}/{resource} {names}").trim_end().to_owned();
                rules.extend(rule.verbs.iter().map(right));
            }
        }
        all.push(((who.clone(), scope.to_owned()), rules));
    }
    all
}
