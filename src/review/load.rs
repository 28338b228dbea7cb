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
use crate::api::{ClusterMcpRole, McpApiKey, McpRole, McpServer, Tenancy};
use crate::index::files::{Environment, Source};
use crate::index::snapshot::admits_cluster_roles;
use crate::index::{Objects, Subject};

/// Objects in one answer of the API server.
const PAGE: u32 = 500;
/// How long reading a cluster may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// What somebody lacks who cannot be answered without the labels of every namespace, and what to do.
const NEEDED: &str = "it cannot be told without the right to list namespaces, whose labels say which tenant has them and \
                      which roles select them: have a ClusterRole with that right bound to you, or give --from DIR";

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
        let read = async {
            let config = kube::Config::infer().await;
            let config =
                config.context("no cluster: set KUBECONFIG to a file that names one, or give --from DIR")?;
            read(Client::try_from(config)?, namespace).await
        };
        let read = async { tokio::time::timeout(DEADLINE, read).await };
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

/// Reads what the servers of this namespace, or of every one, are judged by. Whose a namespace is and which role selects
/// it say its labels, so those of every namespace are read, wherever the servers are.
async fn read(client: Client, namespace: Option<&str>) -> anyhow::Result<Found> {
    let all = Api::<Namespace>::all(client.clone());
    match (list(all.clone()).await, namespace) {
        // Whoever may look at one namespace only can still be answered where no other one counts.
        (Err(forbidden), Some(name)) if is_forbidden(&forbidden) => {
            let own = all.get_opt(name).await;
            let own = own.with_context(|| format!("cannot get Namespace {name}, nor list namespaces"));
            let own = own.context(NEEDED)?.into_iter().collect();
            let found = read_policy(client, namespace, own).await?;
            match found.depends_on_other_namespaces() {
                true => Err(forbidden.context(NEEDED)),
                false => Ok(found),
            }
        }
        (Err(forbidden), None) if is_forbidden(&forbidden) => Err(forbidden.context(NEEDED)),
        (listed, _) => read_policy(client, namespace, listed?).await,
    }
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<kube::Error>();
    error.is_some_and(|error| matches!(error, kube::Error::Api(status) if status.is_forbidden()))
}

async fn read_policy(
    client: Client,
    namespace: Option<&str>,
    namespaces: Vec<Namespace>,
) -> anyhow::Result<Found> {
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
    /// Whether labels of other namespaces than those of the servers could change an answer: by the tenant of a caller or
    /// by what a role selects. Of ServiceAccounts, which may be of any namespace, the label of theirs says the tenant.
    fn depends_on_other_namespaces(&self) -> bool {
        let knows_tenants = |server: &McpServer| {
            let proofs = &server.spec.authentication;
            server.spec.authorization.tenancy == Tenancy::Required
                || proofs.service_accounts.enabled
                || proofs.client_certificates.tenant.is_some()
                || proofs.jwt.iter().any(|trusted| trusted.claims.tenant.is_some())
        };
        self.servers.iter().any(knows_tenants)
            || self.keys.iter().any(|key| key.spec.tenant.is_some())
            || self.cluster_roles.iter().any(|role| role.spec.namespace_selector.is_some())
    }

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
    use http::{Request, Response};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::names::TENANT_LABEL;
    use crate::review::fixture::{self, NOW};
    use crate::review::{Caller, Question, Where, answer, rows};

    /// A role of the namespaces that a label selects, for a pod of another namespace.
    const SELECTING: &str = "\
apiVersion: portcullis.dev/v1alpha1
kind: ClusterMcpRole
metadata: {name: fleet}
spec:
  permissions: ['k8s:services:list']
  namespaceSelector: {matchLabels: {fleet: 'yes'}}
  servers: [{namespace: agents, name: ops}]
  subjects: [{kind: ServiceAccount, name: bot, namespace: red-1}]
";

    /// A server that accepts keys alone.
    fn keys_alone() -> String {
        fixture::SERVER.replace(", serviceAccounts: {enabled: true}", "")
    }

    /// An API server with these objects, the namespace of the server and one of each tenant. It may refuse to list
    /// namespaces.
    fn cluster(texts: &[&str], lists_namespaces: bool) -> Client {
        let objects: Vec<Value> = texts.iter().map(|text| fixture::parse(text)).collect();
        let namespace = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
        let home = namespace("agents", json!(fixture::labels("cluster")["agents"]));
        let of_tenant =
            |tenant: &str| namespace(&format!("{tenant}-1"), json!({TENANT_LABEL: tenant, "fleet": "yes"}));
        let namespaces = [home.clone(), of_tenant("red"), of_tenant("blue")];
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let of_kind = |object: &&Value| {
                let kind = object["kind"].as_str().unwrap_or_default();
                plural == format!("{}s", kind.to_lowercase())
            };
            let (code, answer) = match plural.as_str() {
                "agents" => (200, home.clone()),
                "namespaces" if !lists_namespaces => {
                    let message = "namespaces is forbidden: User \"ann\" cannot list";
                    (
                        403,
                        json!({"status": "Failure", "message": message, "reason": "Forbidden", "code": 403}),
                    )
                }
                "namespaces" => (200, json!({"metadata": {}, "items": namespaces})),
                _ => {
                    let items: Vec<&Value> = objects.iter().filter(of_kind).collect();
                    (200, json!({"metadata": {}, "items": items}))
                }
            };
            let mut response = Response::new(kube::client::Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = http::StatusCode::from_u16(code).expect("a status");
            async move { Ok::<_, tower::BoxError>(response) }
        });
        Client::new(service, "agents")
    }

    /// The policy of the server, as somebody reads it who asks about its namespace.
    async fn of(texts: &[&str], lists_namespaces: bool) -> anyhow::Result<Policy> {
        let found = read(cluster(texts, lists_namespaces), Some("agents")).await?;
        let mut policies = found.policies("portcullis-system");
        policies.pop().context("there is a server")
    }

    fn may_list_services(policy: &Policy, caller: Caller<'_>, namespace: &str) -> bool {
        let permission = crate::authz::Permission::of("services", "list");
        let question = Question { permission, place: Where::Namespace(namespace), caller };
        answer(policy, &question, NOW.parse().expect("a time")).expect("it can be answered").allowed
    }

    #[tokio::test]
    async fn who_asks_about_one_namespace_learns_what_the_labels_of_others_decide() {
        let key = fixture::KEY.replace("servers: [ops]", "servers: [ops], tenant: red");
        let policy = of(&[fixture::SERVER, SELECTING, &key], true).await.expect("it can be read");
        let pod = || Caller::Subject {
            name: "system:serviceaccount:red-1:bot",
            groups: &[],
            issuer: None,
            tenant: None,
        };
        let may = |caller, namespace| may_list_services(&policy, caller, namespace);
        assert!(may(pod(), "red-1") && may(Caller::Key("ci"), "red-1"));
        assert!(!may(pod(), "blue-1") && !may(Caller::Key("ci"), "blue-1"));
        let rows = rows(&policy, NOW.parse().expect("a time"));
        let rows = rows.iter().filter(|row| row.permission.is_some());
        let seen: Vec<_> =
            rows.map(|row| (row.kind, row.tenant.as_deref(), row.namespaces.join("+"))).collect();
        let expected = |kind| (kind, Some("red"), "red-1".to_owned());
        assert_eq!(seen, [expected("McpApiKey"), expected("ServiceAccount")]);
    }

    #[tokio::test]
    async fn whoever_must_not_list_namespaces_is_answered_where_no_other_one_counts() {
        let texts = [&keys_alone(), fixture::VIEWER, fixture::FLEET, fixture::KEY];
        let policy = of(&texts, false).await.expect("it can be read");
        assert!(may_list_services(&policy, Caller::Key("ci"), "team-a"));
        assert!(!may_list_services(&policy, Caller::Key("ci"), "agents"));
    }

    #[tokio::test]
    async fn whoever_must_not_list_namespaces_is_told_so_where_others_count() {
        let alone = keys_alone();
        let server = |before: &str, after: &str| {
            let server = alone.replace(before, after);
            assert_ne!(server, alone, "{before}");
            server
        };
        let issuer = "'https://issuer.example.com'";
        let claims = format!("{issuer}, claims: {{tenant: org}}");
        let key = fixture::KEY.replace("servers: [ops]", "servers: [ops], tenant: red");
        for texts in [
            [fixture::SERVER, fixture::FLEET, fixture::KEY],
            [&server("spec: {", "spec: {authorization: {tenancy: Required}, "), fixture::FLEET, fixture::KEY],
            [&server(issuer, &claims), fixture::FLEET, fixture::KEY],
            [&alone, SELECTING, fixture::KEY],
            [&alone, fixture::FLEET, &key],
        ] {
            let error = of(&texts, false).await.expect_err("it cannot be told");
            let text = format!("{error:#}");
            assert!(text.contains("the right to list namespaces") && text.contains("forbidden"), "{text}");
        }
    }

    #[tokio::test]
    async fn whoever_asks_about_every_server_must_list_namespaces() {
        let read = read(cluster(&[&keys_alone()], false), None).await;
        let error = format!("{:#}", read.err().expect("it cannot be told"));
        assert!(error.contains("the right to list namespaces"), "{error}");
    }

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
