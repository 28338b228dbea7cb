//! Every point of the API that somebody may be allowed: verb, resource with subresource, name, or a path.
//!
//! What there is comes from the API server's own discovery, and a list of what RBAC knows beyond it. What an account
//! may do is told by the rules that the API server finds for it, and confirmed point by point by access reviews.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use futures::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, ResourceRule, SelfSubjectRulesReview,
    SelfSubjectRulesReviewSpec, SubjectAccessReview, SubjectAccessReviewSpec, SubjectRulesReviewStatus,
};
use kube::api::{Api, PostParams};
use tokio::sync::OnceCell;

/// Verbs of requests, and those that RBAC, certificates and admission give a meaning of their own.
const VERBS: [&str; 22] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "bind",
    "escalate",
    "impersonate",
    "impersonate:user-info",
    "impersonate:serviceaccount",
    "impersonate-on:user-info:get",
    "use",
    "approve",
    "sign",
    "attest",
    "admit",
    "reach",
    "restart",
    "*",
];

/// How many of the verbs are the common ones.
const COMMON_VERBS: usize = 11;

/// Who has one of these can become somebody else, or change what holds the rest.
const DANGEROUS_RESOURCES: [&str; 19] = [
    "*",
    "secrets",
    "serviceaccounts",
    "users",
    "groups",
    "uids",
    "signers",
    "nodes",
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
    "customresourcedefinitions",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "mutatingadmissionpolicies",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "clustermcproles",
];

/// The same for parts of an object: a `get` of some of these runs a program.
const DANGEROUS_SUBRESOURCES: [&str; 7] =
    ["exec", "attach", "portforward", "proxy", "ephemeralcontainers", "token", "approval"];

/// Group and resource of what can be allowed and is in no discovery.
const VIRTUAL: [(&str, &str); 16] = [
    ("", "users"),
    ("", "groups"),
    ("authentication.k8s.io", "users"),
    ("authentication.k8s.io", "groups"),
    ("authentication.k8s.io", "serviceaccounts"),
    ("authentication.k8s.io", "uids"),
    ("authentication.k8s.io", "userextras/scopes"),
    ("certificates.k8s.io", "signers"),
    ("portcullis.dev", "deployments"),
    ("", "nodes/log"),
    ("", "nodes/metrics"),
    ("", "nodes/stats"),
    ("", "nodes/pods"),
    ("", "nodes/configz"),
    ("", "*"),
    ("*", "*"),
];

/// Paths of the API server that are no resources.
const PATHS: [&str; 8] =
    ["/metrics", "/logs", "/debug/pprof", "/configz", "/flagz", "/statusz", "/version", "/*"];

/// Group of the resources with which another test extends the catalogue, as long as it runs; it looks at them itself.
const OF_ANOTHER_TEST: &str = "e2e.portcullis.dev";

/// Where no binding can be: what is allowed there is allowed by ClusterRoleBindings.
const NOWHERE: &str = "portcullis-no-such-namespace";

/// One thing that may be allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Right {
    /// API group; empty is the core group.
    pub(crate) group: String,
    /// Resource in the plural with its subresource, or a path.
    pub(crate) resource: String,
    /// The one object that it is limited to; empty is every one.
    pub(crate) name: String,
    /// Verb of the API server.
    pub(crate) verb: String,
}

impl Right {
    pub(crate) fn new(group: &str, resource: &str, verb: &str) -> Self {
        let (group, resource, verb) = (group.to_owned(), resource.to_owned(), verb.to_owned());
        Self { group, resource, name: String::new(), verb }
    }

    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// What it is a right on, as kubectl writes it: `deployments.apps/scale`.
    pub(crate) fn target(&self) -> String {
        let Self { group, resource, .. } = self;
        if group.is_empty() {
            return resource.clone();
        }
        match resource.split_once('/') {
            Some((resource, subresource)) => format!("{resource}.{group}/{subresource}"),
            None => format!("{resource}.{group}"),
        }
    }

    /// Whether somebody who has it could take over accounts, read what is secret, or run programs.
    fn is_dangerous(&self) -> bool {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        let word = VERBS.iter().position(|verb| *verb == self.verb);
        word.is_some_and(|index| index < COMMON_VERBS)
            && (DANGEROUS_RESOURCES.contains(&resource) || DANGEROUS_SUBRESOURCES.contains(&subresource))
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.target())?;
        if !self.name.is_empty() {
            write!(f, " named {}", self.name)?;
        }
        Ok(())
    }
}

/// Rights from rules as RBAC writes them. A wildcard stands for itself and for every point that it covers.
pub(crate) fn expand(rule: &ResourceRule, grid: &BTreeSet<Right>) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let one = [String::new()];
    let names = rule.resource_names.as_deref().filter(|names| !names.is_empty()).unwrap_or(&one);
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                let written = Right::new(group, resource, verb);
                let wild = [group, resource, verb].iter().any(|part| part.contains('*'));
                let covered = grid.iter().filter(|right| wild && covers(&written, right));
                for right in covered.chain([&written]) {
                    rights.extend(names.iter().map(|name| right.clone().named(name)));
                }
            }
        }
    }
    rights
}

fn covers(written: &Right, right: &Right) -> bool {
    let same = |written: &str, part: &str| written == "*" || written == part;
    let subresource = |suffix: &str| right.resource.ends_with(suffix);
    !right.resource.starts_with('/')
        && same(&written.group, &right.group)
        && same(&written.verb, &right.verb)
        && (same(&written.resource, &right.resource)
            || written
                .resource
                .strip_prefix('*')
                .is_some_and(|suffix| suffix.len() > 1 && subresource(suffix)))
}

/// Every point there is.
pub(crate) async fn grid(client: &kube::Client) -> &'static BTreeSet<Right> {
    static GRID: OnceCell<BTreeSet<Right>> = OnceCell::const_new();
    GRID.get_or_init(|| async { discover(client).await }).await
}

async fn discover(client: &kube::Client) -> BTreeSet<Right> {
    let core = client.list_core_api_versions_aggregated().await.expect("the API server tells its kinds");
    let groups = client.list_api_groups_aggregated().await.expect("the API server tells its kinds");
    let mut kinds: BTreeSet<(String, String)> =
        VIRTUAL.iter().map(|(group, kind)| ((*group).to_owned(), (*kind).to_owned())).collect();
    for group in core.items.iter().chain(&groups.items) {
        let name = group.metadata.as_ref().and_then(|meta| meta.name.clone()).unwrap_or_default();
        if name == OF_ANOTHER_TEST {
            continue;
        }
        for found in group.versions.iter().flat_map(|version| &version.resources) {
            let kind = found.resource.clone().expect("a resource has a name");
            for part in &found.subresources {
                let part = part.subresource.as_deref().expect("a subresource has a name");
                kinds.insert((name.clone(), format!("{kind}/{part}")));
            }
            kinds.insert((name.clone(), kind));
        }
    }
    let points = kinds.iter().flat_map(|(group, kind)| VERBS.map(|verb| Right::new(group, kind, verb)));
    let paths = PATHS.iter().flat_map(|path| ["get", "post", "*"].map(|verb| Right::new("", path, verb)));
    let grid: BTreeSet<Right> = points.chain(paths).collect();
    for known in ["pods/exec", "serviceaccounts/token", "secrets"] {
        assert!(grid.contains(&Right::new("", known, "create")), "{known} was not discovered");
    }
    grid
}

/// Everything that the API server allows an account in a namespace, that which it allows everywhere included. The
/// empty namespace is the cluster.
pub(crate) async fn rights(client: &kube::Client, account: &str, namespace: &str) -> BTreeSet<Right> {
    let grid = grid(client).await;
    let status = rules(client, account, namespace).await;
    if status.incomplete {
        // Something beside RBAC decides here, and does not tell by which rules.
        let asked = grid
            .iter()
            .map(|right| async move { ask(client, account, namespace, right).await.then(|| right.clone()) });
        return stream::iter(asked).buffer_unordered(32).filter_map(std::future::ready).collect().await;
    }
    let mut rights: BTreeSet<Right> =
        status.resource_rules.iter().flat_map(|rule| expand(rule, grid)).collect();
    for rule in &status.non_resource_rules {
        for path in rule.non_resource_urls.iter().flatten() {
            rights.extend(rule.verbs.iter().map(|verb| Right::new("", path, verb)));
        }
    }
    rights.retain(|right| right.group != OF_ANOTHER_TEST && !right.name.contains(OF_ANOTHER_TEST));
    rights
}

/// The rules that the API server finds for an account.
async fn rules(client: &kube::Client, account: &str, namespace: &str) -> SubjectRulesReviewStatus {
    let namespace = if namespace.is_empty() { NOWHERE } else { namespace };
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
        ..SelfSubjectRulesReview::default()
    };
    let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")
        .header("Impersonate-User", account)
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(&review).expect("JSON"))
        .expect("a request");
    let answer: SelfSubjectRulesReview = client.request(request).await.expect("a review");
    answer.status.expect("an answer")
}

/// Asks the API server about one point.
async fn ask(client: &kube::Client, account: &str, namespace: &str, right: &Right) -> bool {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let mut groups = vec!["system:authenticated".to_owned()];
    if let Some((own, _)) = account.strip_prefix("system:serviceaccount:").and_then(|it| it.split_once(':')) {
        groups.push("system:serviceaccounts".to_owned());
        groups.push(format!("system:serviceaccounts:{own}"));
    }
    let mut spec = SubjectAccessReviewSpec {
        user: some(account),
        groups: Some(groups),
        ..SubjectAccessReviewSpec::default()
    };
    if right.resource.starts_with('/') {
        let (path, verb) = (some(&right.resource), some(&right.verb));
        spec.non_resource_attributes = Some(NonResourceAttributes { path, verb });
    } else {
        let (resource, subresource) = right.resource.split_once('/').unwrap_or((&right.resource, ""));
        spec.resource_attributes = Some(ResourceAttributes {
            namespace: some(namespace),
            verb: some(&right.verb),
            group: some(&right.group),
            resource: some(resource),
            subresource: some(subresource),
            name: some(&right.name),
            ..ResourceAttributes::default()
        });
    }
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await.expect("a review");
    answer.status.is_some_and(|status| status.allowed)
}

/// Asks the API server itself about everything that the account has, some points by chance, and everything dangerous if
/// that is wanted, and returns how many were asked.
pub(crate) async fn confirm(
    client: &kube::Client,
    account: &str,
    namespace: &str,
    rights: &BTreeSet<Right>,
    dangerous: bool,
    by_chance: usize,
) -> usize {
    let grid = grid(client).await;
    let chance = RandomState::new();
    let mut rest: Vec<&Right> = grid.iter().filter(|right| !right.is_dangerous()).collect();
    rest.sort_by_key(|right| chance.hash_one(right));
    let dangerous = grid.iter().filter(|right| dangerous && right.is_dangerous());
    let points: BTreeSet<&Right> =
        rights.iter().chain(dangerous).chain(rest.into_iter().take(by_chance)).collect();
    let count = points.len();
    let wrong: Vec<String> = stream::iter(points)
        .map(|right| async move {
            let allowed = ask(client, account, namespace, right).await;
            (allowed != rights.contains(right)).then(|| format!("{right}: allowed is {allowed}"))
        })
        .buffer_unordered(32)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{account} in {namespace:?}: rules and answers differ: {wrong:#?}");
    count
}
