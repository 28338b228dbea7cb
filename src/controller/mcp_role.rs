//! `McpRole` and `ClusterMcpRole`: nothing but the condition `Accepted`, by the conversion that the endpoint uses too.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::api::conditions::{
    ACCEPTED, REASON_ACCEPTED, REASON_DELETING, REASON_INVALID, REASON_UNKNOWN_PERMISSION,
};
use crate::api::{AuthenticationSpec, ClusterMcpRole, McpRole, McpRoleStatus, McpServer, names};
use crate::authn;
use crate::authz::role::InvalidRole;
use crate::authz::{Permission, Place, Role, Scope};
use crate::index::snapshot::{admits_cluster_roles, is_staying};
use crate::k8s::condition::Finding;
use crate::k8s::watch::{Guarded, find};

use super::Context;
use super::engine::{Outcome, Transient};
use super::status::{self, Stale};

/// The servers that a role is for.
struct Servers {
    /// Those that there are, as far as they can be read.
    selected: Vec<Arc<Guarded<McpServer>>>,
    /// Whether roles of its kind count in a namespace of one of them.
    are_admitted: bool,
}

/// Reconciles a namespaced role.
pub(super) async fn reconcile(
    context: Arc<Context>,
    object: Arc<Guarded<McpRole>>,
) -> Result<Outcome, Transient> {
    let Ok(role) = &object.0 else { return Ok(Outcome::Invalid(None)) };
    let api = Api::namespaced(context.client.clone(), &role.namespace().unwrap_or_default());
    let namespace = role.namespace().unwrap_or_default();
    let converted = Role::from_role(role, &|name| context.cluster.role_parent(&namespace, name));
    write(&api, role, role.status.as_ref(), judged(&context, &converted, true)).await
}

/// Reconciles a cluster-scoped role.
pub(super) async fn reconcile_cluster(
    context: Arc<Context>,
    object: Arc<Guarded<ClusterMcpRole>>,
) -> Result<Outcome, Transient> {
    let Ok(role) = &object.0 else { return Ok(Outcome::Invalid(None)) };
    let converted = Role::from_cluster_role(
        role,
        &context.config.namespace,
        &context.cluster.namespace_labels(),
        &|name| context.cluster.cluster_role_parent(name),
    );
    let are_admitted = role.spec.servers.iter().any(|server| {
        find(&context.cluster.namespaces, "", &server.namespace)
            .is_some_and(|namespace| admits_cluster_roles(namespace.labels()))
    });
    write(
        &Api::all(context.client.clone()),
        role,
        role.status.as_ref(),
        judged(&context, &converted, are_admitted),
    )
    .await
}

/// Writes what was found of a role. One that is being deleted grants nothing, however well it is written, and says so
/// for as long as it waits.
async fn write<K>(
    api: &Api<K>,
    role: &K,
    before: Option<&McpRoleStatus>,
    found: Finding,
) -> Result<Outcome, Transient>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let found = if is_staying(role) { found } else { deleting(role.finalizers()) };
    let is_settled = found.status == Some(true) || !is_staying(role);
    let status = role_status(found, before, role.meta().generation, Timestamp::now());
    status::write(api, role, before, &status, Stale::Allowed).await?;
    Ok(if is_settled { Outcome::Settled(None) } else { Outcome::Invalid(None) })
}

/// What is to be said of a role that somebody has asked to be deleted.
fn deleting(finalizers: &[String]) -> Finding {
    let named: Vec<String> = finalizers.iter().map(|name| format!("{name:?}")).collect();
    let waits = match named.as_slice() {
        [] => String::new(),
        [one] => format!("; it waits for the finalizer {one}"),
        several => format!("; it waits for the finalizers {}", several.join(", ")),
    };
    Finding::no(REASON_DELETING, format!("it is being deleted and grants nothing{waits}"))
}

/// The servers that the role counts for, as far as they can be read.
fn selected(context: &Context, role: &Role) -> Vec<Arc<Guarded<McpServer>>> {
    context
        .cluster
        .servers
        .state_filter(|server| role.selects(&server.namespace().unwrap_or_default(), &server.name_any()))
}

/// Whether a server lets callers in for whom this issuer vouches.
fn trusts(spec: &AuthenticationSpec, issuer: &str) -> bool {
    match issuer {
        authn::KUBERNETES => spec.service_accounts.enabled,
        authn::BASIC => spec.basic.enabled,
        authn::CERTIFICATE => spec.client_certificates.mode.verifies(),
        authn::ANONYMOUS => spec.anonymous.unsafe_enabled,
        issuer => spec.jwt.iter().any(|trusted| trusted.issuer == issuer),
    }
}

/// Issuers of the role's subjects for whose callers no server is open: those subjects hold nothing.
fn strangers<'a>(role: &'a Role, servers: &[Arc<Guarded<McpServer>>]) -> BTreeSet<&'a str> {
    let issuers = role.subjects().iter().filter_map(|holder| holder.issuer.as_deref());
    let is_trusted = |issuer: &str| {
        let specs = servers.iter().filter_map(|server| server.0.as_ref().ok());
        specs.map(|server| &server.spec.authentication).any(|spec| trusts(spec, issuer))
    };
    issuers.filter(|issuer| !is_trusted(issuer)).collect()
}

/// What an accepted role grants, and what of it nobody will hold.
fn accepted(role: &Role, servers: &Servers) -> String {
    let mut message = grants(role);
    if !servers.are_admitted {
        let (label, value) = (names::NAMESPACE_LABEL, names::NAMESPACE_CLUSTER);
        message
            .push_str("; warning: it counts for none of its servers: no namespace of theirs has the label ");
        message.push_str(&format!("{label}={value}"));
    }
    let strangers: Vec<String> =
        strangers(role, &servers.selected).into_iter().map(|issuer| format!("{issuer:?}")).collect();
    if !strangers.is_empty() {
        message.push_str("; warning: no server that the role counts for accepts callers of ");
        message.push_str(&strangers.join(", "));
    }
    message
}

/// How many of its permissions a role grants: those on objects without a namespace take all namespaces.
fn grants(role: &Role) -> String {
    let is_left_out =
        |permission: &&Permission| permission.entry().place == Place::Cluster && *role.scope() != Scope::All;
    let left_out = role.permissions().iter().filter(is_left_out).count();
    let count = role.permissions().len() - left_out;
    let grants = format!("grants {count} permission{}", if count == 1 { "" } else { "s" });
    match left_out {
        0 => grants,
        1 => format!("{grants}; 1 more counts only in a ClusterMcpRole with allNamespaces"),
        more => format!("{grants}; {more} more count only in a ClusterMcpRole with allNamespaces"),
    }
}

/// Whether a role is accepted, among the servers that there are.
fn judged(context: &Context, converted: &Result<Role, InvalidRole>, are_admitted: bool) -> Finding {
    let selected = converted.as_ref().map_or_else(|_| Vec::new(), |role| selected(context, role));
    finding(converted, &Servers { selected, are_admitted })
}

fn finding(converted: &Result<Role, InvalidRole>, servers: &Servers) -> Finding {
    match converted {
        Ok(role) => Finding::yes(REASON_ACCEPTED, accepted(role, servers)),
        Err(error) if error.is_unknown_permission() => {
            let hint = "the chart's values \"catalogue\" extend it";
            Finding::no(REASON_UNKNOWN_PERMISSION, format!("{error}; {hint}"))
        }
        Err(error) => Finding::no(REASON_INVALID, error.to_string()),
    }
}

fn role_status(
    found: Finding,
    before: Option<&McpRoleStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> McpRoleStatus {
    let previous = before.map_or(&[][..], |status| &status.conditions);
    McpRoleStatus {
        observed_generation: generation,
        conditions: vec![found.into_condition(ACCEPTED, previous, generation, now)],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::alone::alone;
    use crate::authz::NamespaceLabels;
    use crate::authz::extension::Extension;
    use crate::controller::fixture::{Fixture, guarded, namespace, ours};

    /// The condition that a look at a role sends to the API server.
    async fn sent(object: &Value, others: &[Value]) -> Option<(String, String, String)> {
        let fixture = Fixture::new(others, &[]);
        if object["kind"] == "McpRole" {
            reconcile(fixture.context.clone(), guarded(object)).await.expect("it answers");
        } else {
            reconcile_cluster(fixture.context.clone(), guarded(object)).await.expect("it answers");
        }
        let (request, body) = fixture.asked().pop()?;
        assert!(request.starts_with("PATCH ") && request.ends_with("/status"), "{request}");
        let condition = &body["status"]["conditions"][0];
        let text = |field: &str| condition[field].as_str().expect("a text").to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    fn going(role: Value, finalizers: &[&str]) -> Value {
        let mut role = role;
        role["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        role["metadata"]["finalizers"] = json!(finalizers);
        role
    }

    #[tokio::test]
    async fn a_role_that_is_being_deleted_is_not_accepted_and_says_what_it_waits_for() {
        let role = ours("McpRole", "reader", &json!({"permissions": ["k8s:pods:list"]}));
        let wide = ours(
            "ClusterMcpRole",
            "reader",
            &json!({"permissions": ["k8s:pods:list"], "allNamespaces": true, "servers": [{"namespace": "a", "name": "ops"}]}),
        );
        let holds = ["example.com/hold", "example.com/backup"];
        for role in [role, wide] {
            let (value, reason, message) = sent(&going(role, &holds), &[]).await.expect("it is said");
            assert_eq!((value.as_str(), reason.as_str()), ("False", "Deleting"));
            assert_eq!(
                message,
                "it is being deleted and grants nothing; it waits for the finalizers \"example.com/hold\", \"example.com/backup\""
            );
        }
        let invalid = ours("McpRole", "reader", &json!({"permissions": ["pods"]}));
        let (_, reason, message) = sent(&going(invalid, &holds[..1]), &[]).await.expect("it is said");
        assert_eq!(reason, "Deleting", "what is wrong with it matters no more");
        assert!(message.ends_with("it waits for the finalizer \"example.com/hold\""), "{message}");
    }

    #[tokio::test]
    async fn that_a_role_is_being_deleted_is_said_once_and_one_that_is_gone_is_no_failure() {
        let role = going(ours("McpRole", "reader", &json!({"permissions": ["k8s:pods:list"]})), &["a.b/c"]);
        // The API server of the fixture does not know the role.
        let fixture = Fixture::new(&[], &[]);
        let outcome = reconcile(fixture.context.clone(), guarded(&role)).await.expect("gone is no failure");
        assert_eq!(outcome, Outcome::Settled(None));
        let (_, body) = fixture.asked().pop().expect("it is said");
        let mut again = role.clone();
        again["status"] = body["status"].clone();
        assert_eq!(sent(&again, &[]).await, None);
    }

    #[test]
    fn what_has_no_namespace_is_not_granted_but_by_a_role_for_all_namespaces() {
        if !alone(
            "controller::mcp_role::tests::what_has_no_namespace_is_not_granted_but_by_a_role_for_all_namespaces",
        ) {
            return;
        }
        let extension = Extension::parse(
            r#"{"extra": [{"group": "example.com", "resource": "fleets", "kind": "Fleet", "version": "v1",
                "scope": "Cluster", "verbs": ["get", "list"]}]}"#,
        );
        extension.expect("valid").install().expect("the first");
        let permissions = json!(["k8s:pods:list", "k8s:fleets.example.com:*"]);
        let alone = json!(["k8s:fleets.example.com:get"]);
        let wide = |permissions: &Value, scope: &str, of: Value| {
            let mut spec =
                json!({"permissions": permissions, "servers": [{"namespace": "agents", "name": "ops"}]});
            spec[scope] = of;
            ours("ClusterMcpRole", "reader", &spec)
        };
        let more = "more counts only in a ClusterMcpRole with allNamespaces";
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for (role, expected) in [
            (
                ours("McpRole", "reader", &json!({"permissions": permissions})),
                "grants 1 permission; 2 more count only in a ClusterMcpRole with allNamespaces".to_owned(),
            ),
            (
                ours("McpRole", "reader", &json!({"permissions": alone})),
                format!("grants 0 permissions; 1 {more}"),
            ),
            (wide(&alone, "namespaces", json!(["team-*"])), format!("grants 0 permissions; 1 {more}")),
            (wide(&permissions, "allNamespaces", json!(true)), "grants 3 permissions".to_owned()),
        ] {
            let (_, _, message) =
                runtime.block_on(sent(&role, &[namespace("agents", "cluster")])).expect("it is said");
            assert_eq!(message, expected);
        }
    }

    #[tokio::test]
    async fn a_cluster_role_that_counts_for_no_server_says_so() {
        let role = ours(
            "ClusterMcpRole",
            "reader",
            &json!({"permissions": ["k8s:pods:list"], "allNamespaces": true,
                "servers": [{"namespace": "agents", "name": "ops"}, {"namespace": "other", "name": "ops"}]}),
        );
        let message = async |others: &[Value]| sent(&role, others).await.expect("it is said").2;
        for others in [&[namespace("agents", "local"), namespace("other", "local")][..], &[]] {
            assert_eq!(
                message(others).await,
                "grants 1 permission; warning: it counts for none of its servers: no namespace of theirs has the label portcullis.dev/servers=cluster"
            );
        }
        let one = [namespace("agents", "local"), namespace("other", "cluster")];
        assert_eq!(message(&one).await, "grants 1 permission");
    }

    fn these(servers: &[Arc<Guarded<McpServer>>]) -> Servers {
        Servers { selected: servers.to_vec(), are_admitted: true }
    }

    fn status_of(spec: &str) -> McpRoleStatus {
        let text = format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {{name: r, namespace: a, generation: 3}}, spec: {spec}}}"
        );
        let role: McpRole = serde_saphyr::from_str(&text).expect("a role");
        let found = finding(&Role::from_role(&role, &|_| None), &these(&[]));
        role_status(found, None, role.metadata.generation, Timestamp::UNIX_EPOCH)
    }

    fn condition(spec: &str) -> (String, String, String) {
        let condition = status_of(spec).conditions.remove(0);
        (condition.status, condition.reason, condition.message)
    }

    #[test]
    fn a_valid_role_is_accepted() {
        let status = status_of("{permissions: ['k8s:pods:list', 'k8s:pods:logs']}");
        assert_eq!(status.observed_generation, Some(3));
        let (value, reason, message) = condition("{permissions: ['k8s:pods:list', 'k8s:pods:logs']}");
        assert_eq!((value.as_str(), reason.as_str()), ("True", "Accepted"));
        assert_eq!(message, "grants 2 permissions");
    }

    #[test]
    fn a_permission_outside_the_catalogue_is_named() {
        let (value, reason, message) = condition("{permissions: ['k8s:pods:list', 'k8s:secrets:get']}");
        assert_eq!((value.as_str(), reason.as_str()), ("False", "UnknownPermission"));
        assert_eq!(
            message,
            "spec.permissions[1]: \"k8s:secrets:get\" is not in the catalogue of permissions; the chart's values \
             \"catalogue\" extend it"
        );
    }

    #[test]
    fn a_broken_permission_is_invalid() {
        let (value, reason, _) = condition("{permissions: ['pods']}");
        assert_eq!((value.as_str(), reason.as_str()), ("False", "Invalid"));
    }

    fn server(authentication: &str) -> Arc<Guarded<McpServer>> {
        let text = format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {{name: ops, namespace: a}}, spec: {{authentication: {authentication}}}}}"
        );
        Arc::new(kube::core::DeserializeGuard(Ok(serde_saphyr::from_str(&text).expect("a server"))))
    }

    fn message(subjects: &str, servers: &[Arc<Guarded<McpServer>>]) -> String {
        let text = format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {{name: r, namespace: a}}, spec: {{permissions: ['k8s:pods:list'], subjects: {subjects}}}}}"
        );
        let role: McpRole = serde_saphyr::from_str(&text).expect("a role");
        let found = finding(&Role::from_role(&role, &|_| None), &these(servers));
        assert_eq!(found.status, Some(true));
        found.message
    }

    #[test]
    fn a_subject_of_an_issuer_that_no_server_trusts_is_told() {
        let company = "[{kind: Group, name: devs, issuer: 'https://login.example.com'}]";
        let trusting = server("{jwt: [{issuer: 'https://login.example.com'}]}");
        let other = server("{jwt: [{issuer: 'https://login.example.com/'}]}");
        assert_eq!(message(company, &[other.clone(), trusting]), "grants 1 permission");
        let warned = message(company, std::slice::from_ref(&other));
        assert!(warned.ends_with("accepts callers of \"https://login.example.com\""), "{warned}");
        assert_eq!(
            message("[{kind: User, name: ann}]", &[other]),
            "grants 1 permission",
            "anybody may vouch"
        );
    }

    #[test]
    fn a_subject_of_a_method_that_no_server_has_switched_on_is_told() {
        for (subject, authentication, issuer) in [
            ("{kind: ServiceAccount, name: bot}", "{serviceAccounts: {enabled: true}}", "kubernetes"),
            ("{kind: User, name: ann, issuer: basic}", "{basic: {enabled: true}}", "basic"),
            (
                "{kind: User, name: ann, issuer: certificate}",
                "{clientCertificates: {mode: VerifyIfGiven}}",
                "certificate",
            ),
            (
                "{kind: User, name: 'system:anonymous', issuer: anonymous}",
                "{anonymous: {unsafeEnabled: true}}",
                "anonymous",
            ),
        ] {
            let subjects = format!("[{subject}]");
            assert_eq!(message(&subjects, &[server(authentication)]), "grants 1 permission");
            let warned = message(&subjects, &[server("{clientCertificates: {mode: RequireAny}}")]);
            assert!(warned.ends_with(&format!("accepts callers of {issuer:?}")), "{warned}");
        }
    }

    #[test]
    fn a_cluster_role_must_say_who_vouches_and_where_an_account_is() {
        for (subject, field) in [
            ("{kind: User, name: ann}", "spec.subjects[0].issuer: "),
            ("{kind: Group, name: devs}", "spec.subjects[0].issuer: "),
            ("{kind: ServiceAccount, name: bot}", "spec.subjects[0].namespace: "),
        ] {
            let text = format!(
                "{{apiVersion: portcullis.dev/v1alpha1, kind: ClusterMcpRole, metadata: {{name: r}}, spec: {{permissions: ['k8s:pods:list'], subjects: [{subject}], servers: [{{namespace: a, name: ops}}]}}}}"
            );
            let role: ClusterMcpRole = serde_saphyr::from_str(&text).expect("a role");
            let converted =
                Role::from_cluster_role(&role, "portcullis-system", &NamespaceLabels::new(), &|_| None);
            let found = finding(&converted, &these(&[]));
            assert_eq!((found.status, found.reason), (Some(false), "Invalid"));
            assert!(found.message.starts_with(field), "{}", found.message);
        }
    }
}
