//! The rights of a server: its baseline, and exactly the union of what its roles grant, per namespace.
//!
//! A binding says which ClusterRole of the chart counts where, so the API server refuses what Portcullis should have
//! refused. ClusterRoleBindings are made only for the baseline and for roles that cover every namespace.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{from_value, json};

use crate::api::names;
use crate::authz::catalogue::Place;
use crate::authz::{Role, Scope};

/// One binding of a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::controller::mcp_server) struct Binding {
    /// Where it counts; none is everywhere.
    pub(in crate::controller::mcp_server) namespace: Option<String>,
    /// Name of the binding.
    pub(in crate::controller::mcp_server) name: String,
    /// The ClusterRole that is bound.
    pub(in crate::controller::mcp_server) cluster_role: String,
}

/// Every binding of a server whose roles are these, sorted.
pub(in crate::controller::mcp_server) fn bindings(
    namespace: &str,
    server: &str,
    roles: &[Role],
    namespaces: &BTreeSet<String>,
) -> Vec<Binding> {
    let baseline = |scope: Option<&str>, cluster_role: &str| Binding {
        namespace: scope.map(str::to_owned),
        name: names::binding(namespace, server, "baseline"),
        cluster_role: cluster_role.to_owned(),
    };
    let mut all = BTreeSet::from([
        baseline(Some(namespace), names::BASELINE_ROLE),
        baseline(None, names::CLUSTER_BASELINE_ROLE),
    ]);
    for role in roles {
        for permission in role.permissions().iter().filter(|permission| !permission.entry().rules.is_empty())
        {
            let entry = permission.entry();
            let what = format!("{}:{}", entry.resource, entry.verb);
            let mut grant = |scope: Option<&str>| {
                all.insert(Binding {
                    namespace: scope.map(str::to_owned),
                    name: names::binding(namespace, server, &what),
                    cluster_role: permission.cluster_role(),
                });
            };
            match (role.scope(), entry.place) {
                (Scope::All, _) => grant(None),
                // A binding in a namespace gives nothing on objects without one.
                (_, Place::Cluster) => {}
                (scope, _) => {
                    namespaces.iter().filter(|ns| scope.covers(ns)).for_each(|ns| grant(Some(ns)));
                }
            }
        }
    }
    all.into_iter().collect()
}

impl Binding {
    /// As a RoleBinding; none where it counts everywhere. Inside the server's namespace the server owns it.
    pub(in crate::controller::mcp_server) fn role_binding(
        &self,
        namespace: &str,
        server: &str,
        owner: OwnerReference,
    ) -> Option<RoleBinding> {
        let scope = self.namespace.clone()?;
        let mut metadata = self.metadata(namespace, server);
        metadata.owner_references = (scope == namespace).then(|| vec![owner]);
        metadata.namespace = Some(scope);
        Some(RoleBinding {
            metadata,
            role_ref: self.role_ref(),
            subjects: Some(vec![subject(namespace, server)]),
        })
    }

    /// As a ClusterRoleBinding; none where it counts in one namespace.
    pub(in crate::controller::mcp_server) fn cluster_role_binding(
        &self,
        namespace: &str,
        server: &str,
    ) -> Option<ClusterRoleBinding> {
        self.namespace.is_none().then(|| ClusterRoleBinding {
            metadata: self.metadata(namespace, server),
            role_ref: self.role_ref(),
            subjects: Some(vec![subject(namespace, server)]),
        })
    }

    fn metadata(&self, namespace: &str, server: &str) -> ObjectMeta {
        let mut labels = super::labels(server);
        labels[names::SERVER_NAMESPACE_LABEL] = json!(namespace);
        ObjectMeta {
            name: Some(self.name.clone()),
            labels: from_value(labels).expect("labels are text"),
            ..ObjectMeta::default()
        }
    }

    fn role_ref(&self) -> RoleRef {
        RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: self.cluster_role.clone(),
        }
    }
}

fn subject(namespace: &str, server: &str) -> Subject {
    Subject {
        kind: "ServiceAccount".to_owned(),
        name: names::workload(server),
        namespace: Some(namespace.to_owned()),
        api_group: None,
    }
}
