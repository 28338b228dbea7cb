//! `McpRole` and `ClusterMcpRole`: nothing but the condition `Accepted`, by the conversion that the endpoint uses too.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::api::conditions::{ACCEPTED, REASON_ACCEPTED, REASON_INVALID, REASON_UNKNOWN_PERMISSION};
use crate::api::{AuthenticationSpec, ClusterMcpRole, McpRole, McpRoleStatus, McpServer};
use crate::authn;
use crate::authz::Role;
use crate::authz::role::InvalidRole;
use crate::k8s::condition::Finding;
use crate::k8s::watch::Guarded;

use super::Context;
use super::engine::{Outcome, Transient};
use super::status::{self, Stale};

/// Reconciles a namespaced role.
pub(super) async fn reconcile(
    context: Arc<Context>,
    object: Arc<Guarded<McpRole>>,
) -> Result<Outcome, Transient> {
    let Ok(role) = &object.0 else { return Ok(Outcome::Invalid(None)) };
    let api = Api::namespaced(context.client.clone(), &role.namespace().unwrap_or_default());
    let namespace = role.namespace().unwrap_or_default();
    let converted = Role::from_role(role, &|name| context.cluster.role_parent(&namespace, name));
    write(&context, &api, role, role.status.as_ref(), &converted).await
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
    write(&context, &Api::all(context.client.clone()), role, role.status.as_ref(), &converted).await
}

async fn write<K>(
    context: &Context,
    api: &Api<K>,
    role: &K,
    before: Option<&McpRoleStatus>,
    converted: &Result<Role, InvalidRole>,
) -> Result<Outcome, Transient>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if role.meta().deletion_timestamp.is_some() {
        return Ok(Outcome::Settled(None));
    }
    let servers = converted.as_ref().map_or_else(|_| Vec::new(), |role| selected(context, role));
    let status = role_status(converted, &servers, before, role.meta().generation, Timestamp::now());
    status::write(api, role, before, &status, Stale::Allowed).await?;
    Ok(if converted.is_ok() { Outcome::Settled(None) } else { Outcome::Invalid(None) })
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
fn accepted(role: &Role, servers: &[Arc<Guarded<McpServer>>]) -> String {
    let count = role.permissions().len();
    let grants = format!("grants {count} permission{}", if count == 1 { "" } else { "s" });
    let strangers: Vec<String> =
        strangers(role, servers).into_iter().map(|issuer| format!("{issuer:?}")).collect();
    if strangers.is_empty() {
        return grants;
    }
    format!(
        "{grants}; warning: no server that the role counts for accepts callers of {}",
        strangers.join(", ")
    )
}

fn role_status(
    converted: &Result<Role, InvalidRole>,
    servers: &[Arc<Guarded<McpServer>>],
    before: Option<&McpRoleStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> McpRoleStatus {
    let finding = match converted {
        Ok(role) => Finding::yes(REASON_ACCEPTED, accepted(role, servers)),
        Err(error) if error.is_unknown_permission() => {
            let hint = "the chart's values \"catalogue\" extend it";
            Finding::no(REASON_UNKNOWN_PERMISSION, format!("{error}; {hint}"))
        }
        Err(error) => Finding::no(REASON_INVALID, error.to_string()),
    };
    let previous = before.map_or(&[][..], |status| &status.conditions);
    McpRoleStatus {
        observed_generation: generation,
        conditions: vec![finding.into_condition(ACCEPTED, previous, generation, now)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::NamespaceLabels;

    fn status_of(spec: &str) -> McpRoleStatus {
        let text = format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {{name: r, namespace: a, generation: 3}}, spec: {spec}}}"
        );
        let role: McpRole = serde_saphyr::from_str(&text).expect("a role");
        role_status(
            &Role::from_role(&role, &|_| None),
            &[],
            None,
            role.metadata.generation,
            Timestamp::UNIX_EPOCH,
        )
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
        let condition =
            role_status(&Role::from_role(&role, &|_| None), servers, None, Some(1), Timestamp::UNIX_EPOCH)
                .conditions
                .remove(0);
        assert_eq!(condition.status, "True");
        condition.message
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
            let condition =
                role_status(&converted, &[], None, Some(1), Timestamp::UNIX_EPOCH).conditions.remove(0);
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "Invalid"));
            assert!(condition.message.starts_with(field), "{}", condition.message);
        }
    }
}
