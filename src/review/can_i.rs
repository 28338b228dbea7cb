//! May they: one permission, one caller, one server, and the role that decides. Pure.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde::Serialize;

use super::Policy;
use super::callers::{Outside, identities, names_tenant, of_identity, of_key};
use crate::authn::Reason;
use crate::authz::{Cause, Confinement, Denial, Grants, Permission, Place, Target, authorize};

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
        /// The tenant that its credential names. None: it is not said.
        tenant: Option<&'a str>,
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
                Ok(grants) => decide(policy, question, &grants, None),
                Err(outside) => refused(&outside.to_string()),
            })
        }
        Caller::Subject { name, groups, issuer, tenant } => {
            ensure!(!name.is_empty(), "name somebody with --as");
            let mut no: Option<Answer> = None;
            let mut outside = Outside::Refused(Reason::MethodDisabled);
            for identity in identities(policy, name, groups, *issuer, *tenant) {
                let unsaid = identity.tenant.is_none() && names_tenant(policy, &identity);
                match of_identity(policy, &identity, now) {
                    // Without the claim the credential would prove nobody, so what it might do is no answer.
                    Ok(_) | Err(Outside::NoTenant) if unsaid => outside = Outside::TenantUnsaid,
                    Ok(grants) => {
                        let decided = decide(policy, question, &grants, identity.issuer.as_deref());
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
                Outside::Refused(Reason::MethodDisabled) => match tenant {
                    Some(tenant) => refused(&format!(
                        "the server accepts nothing that proves this name as one of tenant {tenant:?}"
                    )),
                    None => refused("the server accepts nothing that proves this name"),
                },
                other => refused(&other.to_string()),
            }))
        }
    }
}

fn refused(reason: &str) -> Answer {
    Answer { allowed: false, role: None, issuer: None, reason: reason.to_owned() }
}

fn decide(policy: &Policy, question: &Question<'_>, grants: &Grants, issuer: Option<&str>) -> Answer {
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
        _ if permission.entry().place == Place::Endpoint => "on the endpoint".to_owned(),
        Where::Namespace(namespace) => format!("in namespace {namespace}"),
        Where::Anywhere => format!("in {}", places(grants, permission)),
        Where::Everywhere => "in every namespace".to_owned(),
    };
    let role = permit.role().to_string();
    if policy.is_closed(permission) {
        let but = "spec.tools of the server lets in no tool for it";
        return refused(&format!("{role} grants {permission} {place}, and {but}"));
    }
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

/// Where the roles grant the permission, as they are written; to somebody with a tenant, within its namespaces.
fn places(grants: &Grants, permission: Permission) -> String {
    let written = written(grants, permission);
    match grants.confinement() {
        Confinement::Tenant(tenant) => format!("{written}, as far as tenant {tenant:?} has them"),
        Confinement::None | Confinement::Nowhere => written,
    }
}

fn written(grants: &Grants, permission: Permission) -> String {
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
            let caller = Caller::Subject { name: "ann", groups: &groups, issuer, tenant: None };
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
            ask(
                &policy,
                RESTART,
                Where::Anywhere,
                Caller::Subject { name, groups: &[], issuer: None, tenant: None },
            )
            .0
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
        let caller = Caller::Subject { name: "ann", groups: &groups, issuer: None, tenant: None };
        assert_eq!(ask(&policy, RESTART, Where::Anywhere, caller), (false, reason));
    }

    #[test]
    fn nobody_may_what_every_tool_is_for_that_the_server_does_not_offer() {
        let of = |tools: &str, permission: Permission| {
            let role = fixture::VIEWER.replace("'k8s:pods:list'", "'k8s:pods:*'");
            let mut objects = fixture::objects(&[&role, fixture::KEY]);
            let server = fixture::SERVER.replace("spec: {", &format!("spec: {{tools: {{{tools}}}, "));
            objects.server = Some(fixture::parse(&server));
            ask(&Policy::of(fixture::subject(), objects), permission, Where::Namespace("agents"), CI)
        };
        let delete = Permission::of("pods", "delete");
        assert!(of("", delete).0);
        let no = "McpRole agents/viewer grants k8s:pods:delete in namespace agents, and spec.tools of the server \
                  lets in no tool for it";
        for tools in ["deny: [pods_delete]", "readOnly: true", "allow: ['pods_list']"] {
            assert_eq!(of(tools, delete), (false, no.to_owned()), "{tools}");
        }
        assert!(of("readOnly: true", LIST).0);
        assert!(of("allow: [resources_list]", LIST).0, "another tool can do it");
        assert!(!of("deny: [pods_list]", LIST).0, "no other tool may do what its own is denied for");
    }

    /// The policy of a fleet of two tenants' namespaces, with everything granted to the key, the group and a pod.
    fn tenants(server: &str, key: &str) -> Policy {
        let everywhere = fixture::FLEET.replace("namespaces: ['team-*', kube-system]", EVERYWHERE);
        let mut objects = fixture::objects(&[
            &everywhere,
            fixture::VIEWER,
            &fixture::KEY.replace("servers: [ops]", &format!("servers: [ops], {key}")),
        ]);
        objects.server =
            Some(fixture::parse(&fixture::SERVER.replace("spec: {", &format!("spec: {{{server}"))));
        for (namespace, tenant) in [("red-1", "red"), ("blue-1", "blue")] {
            let labels = [(crate::api::names::TENANT_LABEL.to_owned(), tenant.to_owned())].into();
            objects.namespaces.insert(namespace.to_owned(), labels);
        }
        Policy::of(fixture::subject(), objects)
    }

    const EVERYWHERE: &str =
        "allNamespaces: true, subjects: [{kind: User, name: ann, issuer: 'https://issuer.example.com'},
        {kind: Group, name: 'system:serviceaccounts', issuer: kubernetes}]";

    #[test]
    fn a_key_of_a_tenant_may_nothing_in_the_namespaces_of_another() {
        let policy = tenants("", "tenant: red");
        let here = ask(&policy, SERVICES, Where::Namespace("red-1"), CI);
        assert_eq!(
            here,
            (true, "ClusterMcpRole fleet grants k8s:services:list in namespace red-1".to_owned())
        );
        let there = ask(&policy, SERVICES, Where::Namespace("blue-1"), CI);
        let crossing = "the caller belongs to tenant \"red\" and asked for k8s:services:list in namespace \"blue-1\", \
                        of tenant \"blue\"";
        assert_eq!(there, (false, crossing.to_owned()));
        assert!(!ask(&policy, SERVICES, Where::Everywhere, CI).0);
        let somewhere = "ClusterMcpRole fleet grants k8s:services:list in every namespace, as far as tenant \"red\" has them";
        assert_eq!(ask(&policy, SERVICES, Where::Anywhere, CI), (true, somewhere.to_owned()));
        let required = tenants("authorization: {tenancy: Required}, ", "enabled: true");
        let nobody = (false, "the server asks for a tenant and the caller has none".to_owned());
        assert_eq!(ask(&required, SERVICES, Where::Namespace("red-1"), CI), nobody);
    }

    #[test]
    fn a_caller_whose_credential_names_its_tenant_is_asked_for_with_it() {
        let ask = |policy: &Policy, name: &str, tenant: Option<&str>| {
            let caller = Caller::Subject { name, groups: &[], issuer: None, tenant };
            ask(policy, SERVICES, Where::Namespace("red-1"), caller)
        };
        let mut claimed = tenants("", "enabled: true");
        let mut objects = std::mem::take(&mut claimed.objects);
        let server = std::sync::Arc::make_mut(objects.server.as_mut().expect("there is a server"));
        server.spec.authentication.jwt[0].claims.tenant = Some("org".to_owned());
        let claimed = Policy::of(fixture::subject(), objects);
        assert!(ask(&claimed, "ann", Some("red")).0 && !ask(&claimed, "ann", Some("blue")).0);
        let unsaid = "the credential of such a caller names its tenant: say which with --tenant".to_owned();
        assert_eq!(ask(&claimed, "ann", None), (false, unsaid));
        let without = tenants("", "enabled: true");
        assert!(
            ask(&without, "ann", None).0,
            "an issuer without the claim vouches for people without a tenant"
        );
        let nobody = "the server accepts nothing that proves this name as one of tenant \"red\"".to_owned();
        assert_eq!(ask(&without, "ann", Some("red")), (false, nobody));
        let pod = |namespace: &str| format!("system:serviceaccount:{namespace}:bot");
        assert!(ask(&without, &pod("red-1"), None).0 && !ask(&without, &pod("blue-1"), None).0);
        assert!(ask(&without, &pod("red-1"), Some("red")).0 && !ask(&without, &pod("red-1"), Some("blue")).0);
    }
}
