//! A small policy for tests, as people write it: a server, two roles of a key, and a role of a group.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Policy;
use crate::api::names;
use crate::index::{Objects, Subject};

/// When the tests ask.
pub(crate) const NOW: &str = "2026-11-23T10:00:00Z";

/// A server that trusts one issuer, and ServiceAccounts.
pub(crate) const SERVER: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {name: ops, namespace: agents}
spec: {authentication: {jwt: [{issuer: 'https://issuer.example.com'}], serviceAccounts: {enabled: true}}}
";

/// A role of the namespace.
pub(crate) const VIEWER: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer, namespace: agents}
spec: {permissions: ['k8s:pods:list']}
";

/// A role of some namespaces.
pub(crate) const FLEET: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: ClusterMcpRole
metadata: {name: fleet}
spec: {permissions: ['k8s:services:list'], namespaces: ['team-*', kube-system], servers: [{namespace: agents, name: ops}]}
";

/// A role that a group of the issuer has.
pub(crate) const GROUP: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: restarters, namespace: agents}
spec: {permissions: ['k8s:deployments:restart'], subjects: [{kind: Group, name: ops, issuer: 'https://issuer.example.com'}]}
";

/// A key with the first two roles.
pub(crate) const KEY: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: ci, namespace: agents}
spec: {identity: ci-bot, servers: [ops], roles: [{name: viewer}, {kind: ClusterMcpRole, name: fleet}]}
status: {keys: [{id: k1, digest: 'sha256:abababababababababababababababababababababababababababababababab', createdAt: '2026-01-01T00:00:00Z', state: Active}]}
";

/// What a text says.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The namespace of the server, with this label.
pub(crate) fn labels(label: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let labels = BTreeMap::from([(names::NAMESPACE_LABEL.to_owned(), label.to_owned())]);
    BTreeMap::from([("agents".to_owned(), labels)])
}

/// The server that is asked about.
pub(crate) fn subject() -> Subject {
    Subject {
        namespace: "agents".to_owned(),
        server: "ops".to_owned(),
        operator_namespace: "portcullis-system".to_owned(),
    }
}

/// The server and these objects.
pub(crate) fn objects(texts: &[&str]) -> Objects {
    let mut objects =
        Objects { server: Some(parse(SERVER)), namespaces: labels("cluster"), ..Objects::default() };
    for text in texts {
        let value: Value = parse(text);
        let name = value["metadata"]["name"].as_str().expect("a name").to_owned();
        match value["kind"].as_str().expect("a kind") {
            "McpRole" => drop(objects.roles.insert(name, parse(text))),
            "ClusterMcpRole" => drop(objects.cluster_roles.insert(name, parse(text))),
            "McpApiKey" => drop(objects.keys.insert(name, parse(text))),
            other => panic!("no place for {other}"),
        }
    }
    objects
}

/// The policy of the server and these objects.
pub(crate) fn policy(texts: &[&str]) -> Policy {
    Policy::of(subject(), objects(texts))
}
