//! `McpRole` and `ClusterMcpRole`: nothing but the condition `Accepted`, by the conversion that the endpoint uses too.

use std::fmt::Debug;
use std::sync::Arc;

use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::api::conditions::{ACCEPTED, REASON_ACCEPTED, REASON_INVALID, REASON_UNKNOWN_PERMISSION};
use crate::api::{ClusterMcpRole, McpRole, McpRoleStatus};
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
    write(&api, role, role.status.as_ref(), &Role::from_role(role)).await
}

/// Reconciles a cluster-scoped role.
pub(super) async fn reconcile_cluster(
    context: Arc<Context>,
    object: Arc<Guarded<ClusterMcpRole>>,
) -> Result<Outcome, Transient> {
    let Ok(role) = &object.0 else { return Ok(Outcome::Invalid(None)) };
    let converted = Role::from_cluster_role(role, &context.config.namespace);
    write(&Api::all(context.client.clone()), role, role.status.as_ref(), &converted).await
}

async fn write<K>(
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
    let status = role_status(converted, before, role.meta().generation, Timestamp::now());
    status::write(api, role, before, &status, Stale::Allowed).await?;
    Ok(if converted.is_ok() { Outcome::Settled(None) } else { Outcome::Invalid(None) })
}

fn role_status(
    converted: &Result<Role, InvalidRole>,
    before: Option<&McpRoleStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> McpRoleStatus {
    let finding = match converted {
        Ok(role) => Finding::yes(REASON_ACCEPTED, format!("grants {} permissions", role.permissions().len())),
        Err(error) if error.is_unknown_permission() => {
            Finding::no(REASON_UNKNOWN_PERMISSION, error.to_string())
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

    fn status_of(spec: &str) -> McpRoleStatus {
        let text = format!(
            "{{apiVersion: portcullis.dev/v1alpha1, kind: McpRole, metadata: {{name: r, namespace: a, generation: 3}}, spec: {spec}}}"
        );
        let role: McpRole = serde_saphyr::from_str(&text).expect("a role");
        role_status(&Role::from_role(&role), None, role.metadata.generation, Timestamp::UNIX_EPOCH)
    }

    fn accepted(spec: &str) -> (String, String, String) {
        let condition = status_of(spec).conditions.remove(0);
        (condition.status, condition.reason, condition.message)
    }

    #[test]
    fn a_valid_role_is_accepted() {
        let status = status_of("{permissions: ['k8s:pods:list', 'k8s:pods:logs']}");
        assert_eq!(status.observed_generation, Some(3));
        let (value, reason, message) = accepted("{permissions: ['k8s:pods:list', 'k8s:pods:logs']}");
        assert_eq!((value.as_str(), reason.as_str()), ("True", "Accepted"));
        assert_eq!(message, "grants 2 permissions");
    }

    #[test]
    fn a_permission_outside_the_catalogue_is_named() {
        let (value, reason, message) = accepted("{permissions: ['k8s:pods:list', 'k8s:secrets:get']}");
        assert_eq!((value.as_str(), reason.as_str()), ("False", "UnknownPermission"));
        assert!(message.starts_with("spec.permissions[1]: \"k8s:secrets:get\""), "{message}");
    }

    #[test]
    fn a_broken_permission_is_invalid() {
        let (value, reason, _) = accepted("{permissions: ['pods']}");
        assert_eq!((value.as_str(), reason.as_str()), ("False", "Invalid"));
    }
}
