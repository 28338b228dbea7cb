//! Where a policy is read from: a directory, as `serve --from` reads it, or the cluster of the kubeconfig.
//!
//! Of a cluster it gets and lists our kinds and namespaces, never a Secret, and writes nothing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::Policy;
use crate::api::{ClusterMcpRole, McpApiKey, McpRole, McpServer};
use crate::index::files::{Environment, Source};
use crate::index::snapshot::admits_cluster_roles;
use crate::index::{Objects, Subject};

/// Objects in one answer of the API server.
const PAGE: u32 = 500;
/// How long reading a cluster may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where the policy is.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Read the YAML files of this directory, as `serve --from` does, instead of the cluster of the kubeconfig.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Namespace of the operator, which patterns of namespaces leave out.
    #[arg(long, env = "PORTCULLIS_OPERATOR_NAMESPACE", default_value = "portcullis-system")]
    operator_namespace: String,
}

/// Labels of namespaces, by name.
type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

impl Place {
    /// The policies of the servers of this namespace, or of every one, and of this name, or of any; sorted.
    ///
    /// # Errors
    /// When something cannot be read, for half a policy answers nothing, or when there is no such server.
    pub(crate) fn policies(
        &self,
        namespace: Option<&str>,
        server: Option<&str>,
        environment: Environment,
    ) -> anyhow::Result<Vec<Policy>> {
        let mut policies = match &self.from {
            Some(directory) => {
                let source = Source {
                    directory: directory.clone(),
                    operator_namespace: self.operator_namespace.clone(),
                    environment,
                    listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                    unsafe_anonymous: false,
                };
                let (subject, objects) = source.survey()?;
                vec![Policy::of(subject, objects)]
            }
            None => self.of_cluster(namespace)?,
        };
        policies.retain(|policy| {
            namespace.is_none_or(|name| policy.subject.namespace == name)
                && server.is_none_or(|name| policy.subject.server == name)
        });
        policies.sort_by_key(Policy::server);
        // An empty answer could be a slip in a name, and would look as if nobody had access.
        ensure!(!policies.is_empty(), "{}", self.missing(namespace, server));
        Ok(policies)
    }

    /// What is not there.
    fn missing(&self, namespace: Option<&str>, server: Option<&str>) -> String {
        let what = match (namespace, server) {
            (Some(namespace), Some(server)) => format!("McpServer {namespace}/{server}"),
            (None, Some(server)) => format!("McpServer {server}"),
            (Some(namespace), None) => format!("McpServer in namespace {namespace}"),
            (None, None) => "McpServer".to_owned(),
        };
        match &self.from {
            Some(directory) => format!("there is no {what} in {}", directory.display()),
            None => format!("there is no {what} in the cluster"),
        }
    }

    fn of_cluster(&self, namespace: Option<&str>) -> anyhow::Result<Vec<Policy>> {
        // Nobody else in this process needs cryptography; if somebody does, theirs is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let read = async { tokio::time::timeout(DEADLINE, read(namespace)).await };
        let read = runtime.block_on(read);
        let found =
            read.map_err(|_| anyhow!("the cluster did not answer within {} s", DEADLINE.as_secs()))??;
        Ok(found.policies(&self.operator_namespace))
    }
}

/// What a cluster holds.
struct Found {
    servers: Vec<McpServer>,
    roles: Vec<McpRole>,
    cluster_roles: Vec<ClusterMcpRole>,
    keys: Vec<McpApiKey>,
    namespaces: Namespaces,
}

async fn read(namespace: Option<&str>) -> anyhow::Result<Found> {
    let config = kube::Config::infer().await;
    let config = config.context("no cluster: set KUBECONFIG to a file that names one, or give --from DIR")?;
    let client = Client::try_from(config)?;
    let namespaces: Vec<Namespace> = match namespace {
        // Whoever may look at one namespace only can still be answered.
        Some(name) => {
            let one = Api::<Namespace>::all(client.clone()).get_opt(name).await;
            one.with_context(|| format!("cannot get Namespace {name}"))?.into_iter().collect()
        }
        None => list(Api::<Namespace>::all(client.clone())).await?,
    };
    let labels = namespaces.into_iter().map(|found| (found.name_any(), found.labels().clone()));
    let namespaces: Namespaces = labels.collect();
    // They count nowhere else.
    let cluster_roles = match namespaces.values().any(admits_cluster_roles) {
        true => list(Api::<ClusterMcpRole>::all(client.clone())).await?,
        false => Vec::new(),
    };
    Ok(Found {
        servers: list(within(&client, namespace)).await?,
        roles: list(within(&client, namespace)).await?,
        keys: list(within(&client, namespace)).await?,
        cluster_roles,
        namespaces,
    })
}

fn within<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: Option<&str>,
) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Every object, page by page.
async fn list<K>(api: Api<K>) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut all = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let answer = api.list(&page).await;
        let answer = answer.with_context(|| format!("cannot list {}", K::plural(&())))?;
        let token = answer.metadata.continue_.clone().filter(|token| !token.is_empty());
        all.extend(answer.items);
        let Some(token) = token else { return Ok(all) };
        page = ListParams::default().limit(PAGE).continue_token(&token);
    }
}

impl Found {
    /// Gives every server what it sees.
    fn policies(self, operator_namespace: &str) -> Vec<Policy> {
        let mut by_namespace: BTreeMap<String, Objects> = BTreeMap::new();
        for role in self.roles {
            let objects = by_namespace.entry(role.namespace().unwrap_or_default()).or_default();
            objects.roles.insert(role.name_any(), Arc::new(role));
        }
        for key in self.keys {
            let objects = by_namespace.entry(key.namespace().unwrap_or_default()).or_default();
            objects.keys.insert(key.name_any(), Arc::new(key));
        }
        let named = self.cluster_roles.into_iter().map(|role| (role.name_any(), Arc::new(role)));
        let cluster_roles: BTreeMap<_, _> = named.collect();
        let policy = |server: McpServer| {
            let subject = Subject {
                namespace: server.namespace().unwrap_or_default(),
                server: server.name_any(),
                operator_namespace: operator_namespace.to_owned(),
            };
            let objects = Objects {
                server: Some(Arc::new(server)),
                cluster_roles: cluster_roles.clone(),
                namespaces: self.namespaces.clone(),
                ..by_namespace.get(&subject.namespace).cloned().unwrap_or_default()
            };
            Policy::of(subject, objects)
        };
        self.servers.into_iter().map(policy).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::fixture;

    #[test]
    fn each_server_of_a_cluster_sees_its_own_namespace_and_the_cluster_roles() {
        let found = Found {
            servers: vec![
                fixture::parse(fixture::SERVER),
                fixture::parse(&fixture::SERVER.replace("agents", "other")),
            ],
            roles: vec![fixture::parse(fixture::VIEWER)],
            cluster_roles: vec![fixture::parse(fixture::FLEET)],
            keys: vec![fixture::parse(fixture::KEY)],
            namespaces: fixture::labels("cluster"),
        };
        let policies = found.policies("portcullis-system");
        let seen: Vec<_> = policies
            .iter()
            .map(|policy| {
                (
                    policy.server(),
                    policy.objects.roles.len(),
                    policy.objects.keys.len(),
                    policy.objects.cluster_roles.len(),
                )
            })
            .collect();
        assert_eq!(seen, [("agents/ops".to_owned(), 1, 1, 1), ("other/ops".to_owned(), 0, 0, 1)]);
        assert_eq!(policies[0].snapshot.keys["k1"].held.count_ones(..), 2);
    }
}
