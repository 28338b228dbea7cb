//! The API server is asked what each account may do, over everything that can be asked for, and the answer is compared
//! in both directions: with the written roles for servers, with files that people have read for the operator.

pub(crate) mod chart;
pub(crate) mod grid;
mod narrowing;
mod operator;
mod pods;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Namespace, OPERATOR_NAMESPACE, apply, client, condition, object};
use chart::Chart;
use grid::{Right, confirm, grid, rights};

/// Everything that the API server allows an account in a namespace, as `verb resource.group/subresource`. The empty
/// namespace is the cluster.
pub(crate) async fn allowed(client: &kube::Client, account: &str, namespace: &str) -> BTreeSet<String> {
    rights(client, account, namespace).await.iter().map(Right::to_string).collect()
}

/// What an account may do beyond what every account may.
async fn own(client: &kube::Client, account: &str, namespace: &str) -> BTreeSet<Right> {
    let everybody = rights(client, "system:serviceaccount:default:portcullis-nobody", namespace).await;
    rights(client, account, namespace).await.difference(&everybody).cloned().collect()
}

/// Both sides of a difference, for people.
fn difference(has: &BTreeSet<Right>, wanted: &BTreeSet<Right>) -> String {
    let list = |a: &BTreeSet<Right>, b: &BTreeSet<Right>| {
        a.difference(b).map(|right| format!("\n    {right}")).collect::<String>()
    };
    format!("may and should not:{}\nshould and may not:{}", list(has, wanted), list(wanted, has))
}

/// Waits until an account may do exactly this beyond what every account may: bindings follow, and so does the API
/// server.
async fn becomes(client: &kube::Client, account: &str, namespace: &str, wanted: &BTreeSet<Right>) {
    let began = Instant::now();
    loop {
        let has = own(client, account, namespace).await;
        if has == *wanted {
            return;
        }
        let late = began.elapsed() > Duration::from_secs(20);
        assert!(!late, "{account} in {namespace:?}: {}", difference(&has, wanted));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The namespaces of the test of servers: theirs, and others that their roles reach or do not.
struct World {
    home: Namespace,
    other: Namespace,
    north: Namespace,
    northern: Namespace,
    south: Namespace,
    outside: Namespace,
    /// Beginning of the names of `north`, `northern` and `south`.
    prefix: String,
}

impl World {
    fn make() -> Self {
        let home = Namespace::plain("rights");
        let (_, suffix) = home.name().rsplit_once('-').expect("a name with a suffix");
        let near = |what: &str| Namespace::plain(&format!("{suffix}-{what}"));
        let prefix = format!("e2e-{suffix}");
        home.label("portcullis.dev/servers=cluster");
        let other = Namespace::plain("rights-other");
        let (north, northern, south) = (near("north"), near("northern"), near("south"));
        south.label(&format!("reach={prefix}"));
        Self { other, north, northern, south, outside: Namespace::plain("rights-outside"), prefix, home }
    }

    /// Roles of every form that there is, for the servers `ops` and `wide`, and for none of the two.
    fn roles(&self) -> Vec<Value> {
        let (home, prefix) = (self.home.name(), &self.prefix);
        let role = |name: &str, spec: Value| {
            json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole", "spec": spec,
                "metadata": {"name": name, "namespace": home}})
        };
        let owner = self.home.owner();
        let wide = |name: &str, permissions: Value, reach: Value, servers: Value| {
            let mut spec = json!({"permissions": permissions, "servers": servers});
            spec.as_object_mut().expect("an object").extend(reach.as_object().expect("an object").clone());
            json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "spec": spec,
                "metadata": {"name": format!("{prefix}-{name}"), "ownerReferences": owner}})
        };
        let ops = json!([{"namespace": home, "name": "ops"}]);
        let all = json!([{"namespace": home, "name": "wide"}]);
        let others =
            json!([{"namespace": self.other.name(), "name": "ops"}, {"namespace": home, "name": "none"}]);
        vec![
            role("viewer", json!({"permissions": ["k8s:pods:list", "k8s:pods:logs", "k8s:namespaces:list"]})),
            role(
                "deployer",
                json!({"permissions": ["k8s:deployments.apps:scale", "k8s:deployments:restart", "k8s:pods:list"],
                    "servers": ["ops"]}),
            ),
            role(
                "heir",
                json!({"inherits": ["deployer"], "permissions": ["k8s:services:get"], "servers": ["wide"]}),
            ),
            role("another-server", json!({"permissions": ["k8s:*"], "servers": ["none"]})),
            role("not-in-the-catalogue", json!({"permissions": ["k8s:secrets:get"]})),
            wide(
                "pattern",
                json!(["k8s:*:list", "k8s:events:get"]),
                json!({"namespaces": [format!("{prefix}-north*"), "*-system", "*-public"]}),
                ops.clone(),
            ),
            wide(
                "literal",
                json!(["k8s:services:*", "k8s:pods:delete"]),
                json!({"namespaces": [self.south.name(), "kube-public", "no-such-namespace"]}),
                ops.clone(),
            ),
            wide(
                "selector",
                json!(["k8s:services:get"]),
                json!({"namespaceSelector": {"matchLabels": {"reach": prefix}},
                    "inherits": [format!("{prefix}-nowhere")]}),
                all.clone(),
            ),
            wide("nowhere", json!(["k8s:events:*"]), json!({}), ops.clone()),
            wide("another-server", json!(["k8s:*"]), json!({"namespaces": [self.north.name()]}), others),
            wide("everywhere", json!(["k8s:replicasets:get"]), json!({"allNamespaces": true}), all.clone()),
            wide("all-here", json!(["k8s:*"]), json!({"namespaces": [self.northern.name()]}), all),
        ]
    }

    fn places(&self) -> Vec<&str> {
        let made = [&self.home, &self.other, &self.north, &self.northern, &self.south, &self.outside];
        let known = ["kube-system", "kube-public", "default", OPERATOR_NAMESPACE, ""];
        made.iter().map(|namespace| namespace.name()).chain(known).collect()
    }
}

/// Labels of a namespace; the cluster has none.
fn labels(namespace: &str) -> Value {
    if namespace.is_empty() {
        return Value::Null;
    }
    object("", "namespace", namespace).expect("the namespace is there")["metadata"]["labels"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_has_exactly_its_baseline_and_the_union_of_its_roles() {
    let (world, client, chart) = (World::make(), client().await, Chart::read());
    let (home, roles) = (world.home.name(), world.roles());
    let servers = ["ops", "wide"].map(|name| {
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer", "spec": {},
            "metadata": {"name": name, "namespace": home}})
    });
    let items: Vec<&Value> = servers.iter().chain(&roles).collect();
    apply(home, &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    let began = Instant::now();
    let mut asked = 0;
    for server in ["ops", "wide"] {
        let account = format!("system:serviceaccount:{home}:{server}-mcp");
        for place in world.places() {
            let wanted = chart.server(home, server, &roles, place, &labels(place));
            becomes(&client, &account, place, &wanted).await;
            let all = rights(&client, &account, place).await;
            let dangerous = server == "ops" && ["", "kube-system", home, world.north.name()].contains(&place);
            asked += confirm(&client, &account, place, &all, dangerous, 40).await;
        }
    }
    let points = grid(&client).await.len() * world.places().len() * 2;
    eprintln!("{points} points compared, {asked} of them by review, {:?}", began.elapsed());
    let unknown = object(home, "mcprole", "not-in-the-catalogue").expect("the role");
    assert_eq!(condition(&unknown, "Accepted").expect("it is reported").0, "False");
}
