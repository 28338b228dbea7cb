//! May they: one permission, one caller, one server, and the role that decides. Pure.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde::Serialize;

use super::Policy;
use super::callers::{Outside, identities, of_identity, of_key};
use crate::authn::Reason;
use crate::authz::{Cause, Denial, Grants, Permission, Target, authorize};

/// What is asked.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// What is to be done.
    pub(crate) permission: Permission,
    /// Where.
    pub(crate) place: Where<'a>,
    /// By whom.
    pub(crate) caller: Caller<'a>,
}

/// Where something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where<'a> {
    /// In some namespace, whichever: what decides whether a tool is listed.
    Anywhere,
    /// In every namespace there is.
    Everywhere,
    /// In this one.
    Namespace(&'a str),
}

/// Who is to do it.
#[derive(Debug)]
pub(crate) enum Caller<'a> {
    /// The holder of the `McpApiKey` of this name.
    Key(&'a str),
    /// Somebody who proves a name otherwise.
    Subject {
        /// The name.
        name: &'a str,
        /// Groups that come with it.
        groups: &'a [String],
        /// Who vouches for both. None: anybody whom the server trusts.
        issuer: Option<&'a str>,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    /// Yes or no.
    pub(crate) allowed: bool,
    /// The role that decided, if it is yes.
    pub(crate) role: Option<String>,
    /// Who vouches for the caller, if it is yes and somebody must.
    pub(crate) issuer: Option<String>,
    /// The same in words, or why not.
    pub(crate) reason: String,
}

/// Answers by the judgement and the decision of the endpoint.
///
/// # Errors
/// When there is no such key, or nobody could be such a caller.
pub(crate) fn answer(policy: &Policy, question: &Question<'_>, now: Timestamp) -> anyhow::Result<Answer> {
    match &question.caller {
        Caller::Key(name) => {
            let key = policy.objects.keys.get(*name);
            let key = key.with_context(|| {
                format!("there is no McpApiKey {name} in namespace {}", policy.subject.namespace)
            })?;
            Ok(match of_key(policy, key, now) {
                Ok(grants) => decide(question, &grants, None),
                Err(outside) => refused(&outside.to_string()),
            })
        }
        Caller::Subject { name, groups, issuer } => {
            ensure!(!name.is_empty(), "name somebody with --as");
            let mut no: Option<Answer> = None;
            let mut outside = Outside::Refused(Reason::MethodDisabled);
            for identity in identities(policy, name, groups, *issuer) {
                match of_identity(policy, &identity, now) {
                    Ok(grants) => {
                        let decided = decide(question, &grants, identity.issuer.as_deref());
                        if decided.allowed {
                            return Ok(decided);
                        }
                        // The refusal by somebody who knows more of the caller says more.
                        let more = grants.count() > 0 || no.is_none();
                        no = if more { Some(decided) } else { no };
                    }
                    Err(Outside::Refused(Reason::MethodDisabled)) => {}
                    Err(other) => outside = other,
                }
            }
            Ok(no.unwrap_or_else(|| match outside {
                Outside::Refused(Reason::MethodDisabled) => {
                    refused("the server accepts nothing that proves this name")
                }
                other => refused(&other.to_string()),
            }))
        }
    }
}

fn refused(reason: &str) -> Answer {
    Answer { allowed: false, role: None, issuer: None, reason: reason.to_owned() }
}

fn decide(question: &Question<'_>, grants: &Grants, issuer: Option<&str>) -> Answer {
    let permission = question.permission;
    let target = match question.place {
        Where::Namespace(namespace) => Target::Namespace(namespace),
        Where::Anywhere => Target::Anywhere,
        // To the API server, too, no namespace means all of them.
        Where::Everywhere => Target::Namespace(""),
    };
    let permit = match authorize(grants, permission, target) {
        Ok(permit) => permit,
        Err(denial) => return refused(&in_words(&denial, grants)),
    };
    let place = match question.place {
        Where::Namespace(namespace) => format!("in namespace {namespace}"),
        Where::Anywhere => format!("in {}", places(grants, permission)),
        Where::Everywhere => "in every namespace".to_owned(),
    };
    let role = permit.role().to_string();
    let reason = match issuer {
        Some(issuer) => format!("{role} grants {permission} {place}, if {issuer} vouches for the caller"),
        None => format!("{role} grants {permission} {place}"),
    };
    Answer { allowed: true, role: Some(role), issuer: issuer.map(str::to_owned), reason }
}

fn in_words(denial: &Denial, grants: &Grants) -> String {
    let somewhere = authorize(grants, denial.permission, Target::Anywhere).is_ok();
    match denial.roles {
        0 => "the caller has no role that counts for this server".to_owned(),
        _ if denial.cause == Cause::NoRole && denial.namespace.as_deref() == Some("") && somewhere => {
            let permission = denial.permission;
            format!("{permission} is granted in {} only", places(grants, permission))
        }
        _ => denial.to_string(),
    }
}

/// Where the roles grant the permission, as they are written.
fn places(grants: &Grants, permission: Permission) -> String {
    let mut places: Vec<&str> = Vec::new();
    for role in grants.roles().filter(|role| role.grants(permission)) {
        match role.scope().written() {
            None => return "every namespace".to_owned(),
            Some(written) => places.extend(written),
        }
    }
    places.sort_unstable();
    places.dedup();
    let noun = if places.len() == 1 && !places[0].contains('*') { "namespace" } else { "namespaces" };
    format!("{noun} {}", places.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::fixture::{self, NOW, policy};

    const LIST: Permission = Permission::of("pods", "list");
    const SERVICES: Permission = Permission::of("services", "list");
    const RESTART: Permission = Permission::of("deployments", "restart");
    const CI: Caller<'static> = Caller::Key("ci");

    fn ask(policy: &Policy, permission: Permission, place: Where<'_>, caller: Caller<'_>) -> (bool, String) {
        let question = Question { permission, place, caller };
        let answer = answer(policy, &question, NOW.parse().expect("a time")).expect("it can be answered");
        assert_eq!(answer.allowed, answer.role.is_some());
        (answer.allowed, answer.reason)
    }

    #[test]
    fn a_key_may_what_its_roles_grant_and_the_answer_names_the_role() {
        let policy = policy(&[fixture::VIEWER, fixture::FLEET, fixture::KEY]);
        for (permission, place, allowed, reason) in [
            (
                LIST,
                Where::Namespace("agents"),
                true,
                "McpRole agents/viewer grants k8s:pods:list in namespace agents",
            ),
            (
                LIST,
                Where::Namespace("team-a"),
                false,
                "none of 2 roles grants k8s:pods:list in namespace \"team-a\"",
            ),
            (
                SERVICES,
                Where::Namespace("team-a"),
                true,
                "ClusterMcpRole fleet grants k8s:services:list in namespace team-a",
            ),
            (
                SERVICES,
                Where::Anywhere,
                true,
                "ClusterMcpRole fleet grants k8s:services:list in namespaces kube-system, team-*",
            ),
            (
                SERVICES,
                Where::Everywhere,
                false,
                "k8s:services:list is granted in namespaces kube-system, team-* only",
            ),
            (RESTART, Where::Anywhere, false, "none of 2 roles grants k8s:deployments:restart anywhere"),
        ] {
            assert_eq!(ask(&policy, permission, place, CI), (allowed, reason.to_owned()));
        }
    }

    #[test]
    fn everywhere_means_every_namespace_and_not_whatever_a_pattern_matches() {
        let of = |namespaces: &str| {
            let fleet = fixture::FLEET.replace("namespaces: ['team-*', kube-system]", namespaces);
            let policy = policy(&[fixture::VIEWER, &fleet, fixture::KEY]);
            assert!(
                policy
                    .snapshot
                    .roles
                    .iter()
                    .any(|role| !matches!(role.scope(), crate::authz::Scope::Namespace(_)))
            );
            ask(&policy, SERVICES, Where::Everywhere, CI)
        };
        assert_eq!(
            of("namespaces: ['*']"),
            (false, "k8s:services:list is granted in namespaces * only".to_owned())
        );
        assert_eq!(
            of("allNamespaces: true"),
            (true, "ClusterMcpRole fleet grants k8s:services:list in every namespace".to_owned())
        );
    }

    #[test]
    fn a_key_that_cannot_be_used_may_nothing_and_one_that_is_not_there_is_an_error() {
        let disabled = fixture::KEY.replace("servers: [ops]", "servers: [ops], enabled: false");
        let policy = policy(&[fixture::VIEWER, &disabled]);
        assert_eq!(ask(&policy, LIST, Where::Anywhere, CI), (false, "disabled key".to_owned()));
        let question = Question { permission: LIST, place: Where::Anywhere, caller: Caller::Key("typo") };
        let error = answer(&policy, &question, NOW.parse().expect("a time")).expect_err("there is none");
        assert_eq!(error.to_string(), "there is no McpApiKey typo in namespace agents");
    }

    #[test]
    fn somebody_may_what_a_group_may_if_its_issuer_vouches_for_it() {
        let policy = policy(&[fixture::GROUP]);
        let ask = |groups: &[&str], issuer: Option<&str>| {
            let groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
            let caller = Caller::Subject { name: "ann", groups: &groups, issuer };
            ask(&policy, RESTART, Where::Namespace("agents"), caller)
        };
        let yes = "McpRole agents/restarters grants k8s:deployments:restart in namespace agents, if \
                   https://issuer.example.com vouches for the caller";
        assert_eq!(ask(&["ops"], None), (true, yes.to_owned()));
        assert_eq!(ask(&["ops"], Some("https://issuer.example.com")), (true, yes.to_owned()));
        let nothing = (false, "the caller has no role that counts for this server".to_owned());
        assert_eq!(ask(&[], None), nothing);
        assert_eq!(
            ask(&["ops"], Some("basic")),
            (false, "the server accepts nothing that proves this name".to_owned())
        );
        assert_eq!(
            ask(&["ops"], Some("https://other")),
            (false, "the server accepts nothing that proves this name".to_owned())
        );
    }

    #[test]
    fn a_service_account_is_in_the_groups_that_the_api_server_puts_it_into() {
        let group = fixture::GROUP.replace(
            "name: ops, issuer: 'https://issuer.example.com'",
            "name: 'system:serviceaccounts:team-a', issuer: kubernetes",
        );
        let policy = policy(&[&group]);
        let ask = |name: &str| {
            ask(&policy, RESTART, Where::Anywhere, Caller::Subject { name, groups: &[], issuer: None }).0
        };
        assert!(ask("system:serviceaccount:team-a:bot"));
        assert!(!ask("system:serviceaccount:team-b:bot") && !ask("bot"));
    }

    #[test]
    fn nobody_may_anything_where_no_administrator_lets_servers_in() {
        let mut objects = fixture::objects(&[fixture::VIEWER, fixture::KEY, fixture::GROUP]);
        objects.namespaces.clear();
        let policy = Policy::of(fixture::subject(), objects);
        let reason = "the namespace lacks the label portcullis.dev/servers".to_owned();
        assert_eq!(ask(&policy, LIST, Where::Anywhere, CI), (false, reason.clone()));
        let groups = ["ops".to_owned()];
        let caller = Caller::Subject { name: "ann", groups: &groups, issuer: None };
        assert_eq!(ask(&policy, RESTART, Where::Anywhere, caller), (false, reason));
    }
}
