//! What a server loses when a role or a namespace changes, and how soon: the binding is gone, and the API server says
//! no.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::chart::Chart;
use super::grid::Right;
use super::operator::OPERATOR;
use super::{allowed, difference, own};
use crate::cluster::{Namespace, apply, client, eventually, kubectl, objects};

/// Within this time a namespace that stops matching has lost its binding.
const WITHIN: Duration = Duration::from_secs(5);

/// A server whose one role reaches a namespace by pattern.
struct Reach {
    client: kube::Client,
    home: Namespace,
    near: Namespace,
    role: Value,
}

impl Reach {
    async fn make() -> Self {
        let home = Namespace::plain("narrow");
        home.label("portcullis.dev/servers=cluster");
        let (_, suffix) = home.name().rsplit_once('-').expect("a name with a suffix");
        let near = Namespace::plain(&format!("{suffix}-near"));
        let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
            "metadata": {"name": format!("e2e-{suffix}"),
                "ownerReferences": home.owner()},
            "spec": {"permissions": ["k8s:pods:list", "k8s:pods:logs"], "namespaces": [format!("e2e-{suffix}-n*")],
                "servers": [{"namespace": home.name(), "name": "ops"}]}});
        let server = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "spec": {},
            "metadata": {"name": "ops", "namespace": home.name()}});
        apply(home.name(), &json!({"apiVersion": "v1", "kind": "List", "items": [server, role]}).to_string());
        Self { client: client().await, home, near, role }
    }

    /// What the server may do in the namespace of the pattern, beyond what every account may.
    async fn has(&self) -> BTreeSet<Right> {
        let account = format!("system:serviceaccount:{}:ops-mcp", self.home.name());
        own(&self.client, &account, self.near.name()).await
    }

    fn wanted(&self, roles: &[Value]) -> BTreeSet<Right> {
        let labels = json!({"reach": "yes"});
        Chart::read().server(self.home.name(), "ops", roles, self.near.name(), &labels)
    }

    /// Bindings of the server in the namespace of the pattern.
    fn bindings(&self) -> usize {
        let prefix = format!("portcullis:{}:ops:", self.home.name());
        let all = objects(&["rolebindings", "-n", self.near.name()]);
        let ours =
            |binding: &&Value| binding["metadata"]["name"].as_str().is_some_and(|it| it.starts_with(&prefix));
        all.iter().filter(ours).count()
    }

    /// Waits until the server has what its role says.
    async fn arrives(&self) {
        let wanted = self.wanted(std::slice::from_ref(&self.role));
        self.becomes(&wanted, Duration::from_secs(30)).await;
        assert_eq!(self.bindings(), 2, "one for each permission");
    }

    /// Waits until the rights are gone, and returns how long that took after kubectl's answer.
    async fn goes(&self, what: &str) -> Duration {
        let took = self.becomes(&self.wanted(&[]), WITHIN).await;
        assert_eq!(self.bindings(), 0, "{what}");
        eprintln!("{what}: the API server says no after {took:?}");
        took
    }

    async fn becomes(&self, wanted: &BTreeSet<Right>, within: Duration) -> Duration {
        let began = Instant::now();
        loop {
            let has = self.has().await;
            let took = began.elapsed();
            if has == *wanted {
                return took;
            }
            assert!(took < within, "after {took:?}: {}", difference(&has, wanted));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes the role with other namespaces.
    fn aim(&self, namespaces: &Value) {
        let mut role = self.role.clone();
        role["spec"]["namespaces"] = namespaces.clone();
        apply(self.home.name(), &role.to_string());
    }

    /// Writes the role with a label for the namespace in place of its names.
    fn select(&mut self) {
        let spec = self.role["spec"].as_object_mut().expect("an object");
        spec.insert("namespaceSelector".to_owned(), json!({"matchLabels": {"reach": "yes"}}));
        spec.remove("namespaces");
        apply(self.home.name(), &self.role.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_a_namespace_that_loses_its_label_loses_its_bindings_within_five_seconds() {
    let mut reach = Reach::make().await;
    reach.arrives().await;
    reach.select();
    reach.goes("a namespace without the label of the selector").await;
    for _ in 0..5 {
        reach.near.label("reach=yes");
        reach.arrives().await;
        reach.near.label("reach=no");
        reach.goes("a namespace with another value of the label").await;
        reach.near.label("reach=yes");
        reach.arrives().await;
        reach.near.label("reach-");
        reach.goes("a namespace that lost the label").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_what_stops_matching_loses_its_bindings_within_five_seconds() {
    let reach = Reach::make().await;
    let role = reach.role["metadata"]["name"].as_str().expect("a name");
    let pattern = &reach.role["spec"]["namespaces"];
    for _ in 0..3 {
        reach.arrives().await;
        reach.aim(&json!(["no-such-*"]));
        reach.goes("a role whose pattern does not match any more").await;
        reach.aim(pattern);
        reach.arrives().await;
        kubectl(&["delete", "clustermcprole", role]);
        reach.goes("a role that was deleted").await;
        reach.aim(pattern);
        reach.arrives().await;
        reach.home.label("portcullis.dev/servers=local");
        reach.goes("a server whose namespace may not have rights elsewhere any more").await;
        reach.home.label("portcullis.dev/servers=cluster");
        reach.arrives().await;
        kubectl(&["delete", "namespace", reach.near.name()]);
        reach.goes("a namespace that was deleted").await;
        kubectl(&["create", "namespace", reach.near.name()]);
    }
    reach.arrives().await;
    kubectl(&["delete", "mcpserver", "-n", reach.home.name(), "ops"]);
    let took = reach.becomes(&BTreeSet::new(), WITHIN).await;
    assert_eq!(reach.bindings(), 0);
    eprintln!("a server that was deleted: the API server says no after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_a_namespace_that_becomes_local_loses_what_its_servers_have_outside_and_the_way_there() {
    let reach = Reach::make().await;
    let home = reach.home.name();
    let mut everywhere = reach.role.clone();
    everywhere["metadata"]["name"] =
        json!(format!("{}-all", reach.role["metadata"]["name"].as_str().expect("a name")));
    everywhere["spec"] = json!({"permissions": ["k8s:services:get"], "allNamespaces": true,
        "servers": reach.role["spec"]["servers"]});
    apply(home, &everywhere.to_string());
    let wanted = reach.wanted(&[reach.role.clone(), everywhere]);
    let may_reach =
        async || allowed(&reach.client, OPERATOR, home).await.contains("reach mcpservers.portcullis.dev");
    for _ in 0..3 {
        let took = reach.becomes(&wanted, Duration::from_secs(30)).await;
        eprintln!(
            "a server whose namespace may have rights elsewhere: the API server says yes after {took:?}"
        );
        assert!(may_reach().await);
        reach.home.label("portcullis.dev/servers=local");
        let began = Instant::now();
        reach.goes("a server whose namespace became local").await;
        eventually("the operator cannot reach out any more", WITHIN, async || {
            (!may_reach().await).then_some(())
        })
        .await;
        eprintln!("and the operator cannot give it more after {:?}", began.elapsed());
        let label = format!("portcullis.dev/server-namespace={home}");
        let left =
            [objects(&["rolebindings", "-A", "-l", &label]), objects(&["clusterrolebindings", "-l", &label])];
        let left: Vec<&Value> = left.iter().flatten().map(|binding| &binding["metadata"]["name"]).collect();
        assert_eq!(left, vec![&json!(format!("portcullis:{home}:ops:baseline")); 2]);
        reach.home.label("portcullis.dev/servers=cluster");
    }
}
