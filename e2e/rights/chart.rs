//! What the chart gives, read from the plain manifests, and what roles that people wrote mean by it.
//!
//! This is a second reading of roles, made from their documentation alone: no code of the operator is used.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::authorization::v1::ResourceRule;
use serde_json::Value;

use super::grid::{Right, expand};
use crate::cluster::OPERATOR_NAMESPACE;

/// The objects of the chart.
pub(crate) struct Chart(Vec<Value>);

impl Chart {
    /// Reads `manifests/install.yaml`, which a check compares with what Helm makes of the chart.
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/install.yaml");
        let text = std::fs::read_to_string(path).expect("the manifests are there");
        Self(serde_saphyr::from_multiple(&text).expect("the manifests are YAML"))
    }

    /// Objects of a kind.
    pub(crate) fn objects<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// What a ClusterRole of the chart allows.
    pub(crate) fn rights(&self, role: &str) -> BTreeSet<Right> {
        let role = self.objects("ClusterRole").find(|found| found["metadata"]["name"] == role);
        granted(role.expect("the chart has the role"))
    }

    /// What a permission stands for, as somebody wrote it: `k8s:pods:list`, `k8s:deployments.apps:*`, `k8s:*`.
    pub(crate) fn permission(&self, written: &str) -> BTreeSet<Right> {
        let matching = self.objects("ClusterRole").filter(|role| {
            let carried = role["metadata"]["annotations"]["portcullis.dev/permission"].as_str();
            carried.is_some_and(|carried| stands_for(written, carried, role))
        });
        matching.flat_map(granted).collect()
    }

    /// What a role stands for: its own permissions, and those of the roles that it inherits.
    fn role(&self, role: &Value, roles: &[Value]) -> BTreeSet<Right> {
        let spec = &role["spec"];
        let mut rights: BTreeSet<Right> =
            texts(&spec["permissions"]).iter().flat_map(|written| self.permission(written)).collect();
        for name in texts(&spec["inherits"]) {
            let parent =
                roles.iter().find(|found| found["kind"] == role["kind"] && found["metadata"]["name"] == name);
            rights.extend(self.role(parent.expect("the tests write whole families"), roles));
        }
        rights
    }

    /// What a server may do in a namespace, beyond what every account may: its baseline, and what the written roles
    /// say. The empty namespace is the cluster.
    pub(crate) fn server(
        &self,
        home: &str,
        server: &str,
        roles: &[Value],
        namespace: &str,
        labels: &Value,
    ) -> BTreeSet<Right> {
        let mut rights = self.rights("portcullis:server-cluster");
        if namespace == home {
            rights.extend(self.rights("portcullis:server"));
        }
        for role in roles {
            let spec = &role["spec"];
            let counts = match role["kind"].as_str() {
                Some("McpRole") => {
                    let servers = texts(&spec["servers"]);
                    namespace == home && (servers.is_empty() || servers.contains(&server))
                }
                Some("ClusterMcpRole") => {
                    let servers = spec["servers"].as_array().expect("a cluster role names servers");
                    servers.iter().any(|found| found["namespace"] == home && found["name"] == server)
                        && (spec["allNamespaces"] == true
                            || texts(&spec["namespaces"]).iter().any(|written| matches(written, namespace))
                            || selects(&spec["namespaceSelector"]["matchLabels"], namespace, labels))
                }
                _ => false,
            };
            if counts {
                rights.extend(self.role(role, roles));
            }
        }
        rights
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn granted(role: &Value) -> BTreeSet<Right> {
    let rules = role["rules"].as_array().into_iter().flatten();
    rules
        .flat_map(|rule| {
            let rule: ResourceRule = serde_json::from_value(rule.clone()).expect("a rule of RBAC");
            expand(&rule, &BTreeSet::new())
        })
        .collect()
}

/// Whether a written permission includes the one that a role of the catalogue carries.
fn stands_for(written: &str, carried: &str, role: &Value) -> bool {
    let group = role["rules"][0]["apiGroups"][0].as_str().expect("a rule has a group");
    let carried: Vec<&str> = carried.split(':').collect();
    match written.split(':').collect::<Vec<_>>()[..] {
        ["*"] | ["k8s", "*"] => true,
        ["k8s", resource, verb] => {
            let with_group = format!("{}.{group}", carried[1]);
            ["*", carried[1], &with_group].contains(&resource) && ["*", carried[2]].contains(&verb)
        }
        _ => false,
    }
}

/// Whether a namespace is one of those written: its name, or a pattern that is kept away from the cluster's own.
fn matches(written: &str, namespace: &str) -> bool {
    let Some((start, end)) = written.split_once('*') else { return written == namespace };
    assert!(!end.contains('*'), "the tests write patterns with one star");
    !is_protected(namespace)
        && namespace.len() >= start.len() + end.len()
        && namespace.starts_with(start)
        && namespace.ends_with(end)
}

/// Whether a namespace carries the labels of a selector, and is none of the cluster's own.
fn selects(wanted: &Value, namespace: &str, labels: &Value) -> bool {
    let wanted = wanted.as_object().filter(|wanted| !wanted.is_empty());
    wanted.is_some_and(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
        && !is_protected(namespace)
}

/// Whether only its literal name reaches a namespace; and the cluster is no namespace.
fn is_protected(namespace: &str) -> bool {
    namespace.is_empty() || namespace.starts_with("kube-") || namespace == OPERATOR_NAMESPACE
}
