//! What a reconcile works with in a test: copies that hold what the test says, and an API server that has what the
//! test says and keeps what it was asked. Neither tells the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Resource;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::Event;
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cluster::Queues;
use super::namespaces::Children;
use super::*;
use crate::k8s::watch::Guarded;

/// The operator's own namespace.
const NAMESPACE: &str = "portcullis-system";

/// A request: its method and path, and what was sent.
pub(super) type Asked = (String, Value);

/// What the tests ask and look at.
pub(super) struct Fixture {
    /// What a reconcile is given.
    pub(super) context: Arc<Context>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fixture {
    /// Copies that hold these objects, and an API server that has those, by path.
    pub(super) fn new(copied: &[Value], served: &[(&str, Value)]) -> Self {
        let cluster = Cluster {
            servers: store(copied),
            roles: store(copied),
            cluster_roles: store(copied),
            keys: store(copied),
            namespaces: store(copied),
            role_bindings: store(copied),
            cluster_role_bindings: store(copied),
            queues: Queues::default(),
        };
        let config = OperatorConfig {
            namespace: NAMESPACE.into(),
            pod_name: "operator-0".into(),
            service_account: "portcullis-operator".into(),
            image: "example.test/portcullis:1".into(),
            image_pull_policy: "IfNotPresent".into(),
            catalogue: None,
            ready: Arc::default(),
        };
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let served = served.iter().map(|(path, object)| ((*path).to_owned(), object.clone())).collect();
        let client = client(served, asked.clone());
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        Self { context: Context::new(&config, &client, &metrics, &Arc::new(cluster)), asked }
    }

    /// What the API server was asked since the last time, in order.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }

    /// Methods and paths of what it was asked since the last time, sorted.
    pub(super) fn requests(&self) -> Vec<String> {
        let mut all: Vec<String> = self.asked().into_iter().map(|(request, _)| request).collect();
        all.sort();
        all
    }
}

/// A namespace with a value of the label by which servers are let in.
pub(super) fn namespace(name: &str, servers: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"portcullis.dev/servers": servers}}})
}

/// An object of ours in the namespace `agents`, as a person writes it.
pub(super) fn ours(kind: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "uid": format!("{kind}-{name}"), "generation": 1}});
    if kind != "ClusterMcpRole" {
        object["metadata"]["namespace"] = json!("agents");
    }
    object
}

/// An object as the test writes it.
pub(super) fn guarded<K: DeserializeOwned + Resource<DynamicType = ()>>(object: &Value) -> Arc<Guarded<K>> {
    Arc::new(serde_json::from_value(object.clone()).expect("metadata can be read"))
}

/// Copies of these children.
pub(super) fn children(copied: &[Value]) -> Arc<Children> {
    Arc::new(Children {
        deployments: store(copied),
        services: store(copied),
        service_accounts: store(copied),
        network_policies: store(copied),
        disruption_budgets: store(copied),
    })
}

/// A copy of those objects that are of the kind.
fn store<K>(objects: &[Value]) -> Store<Guarded<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    let (store, mut writer) = reflector::store();
    for object in objects.iter().filter(|object| object["kind"] == *K::kind(&())) {
        let object = serde_json::from_value(object.clone()).expect("metadata can be read");
        writer.apply_watcher_event(&Event::Apply(object));
    }
    store
}

fn client(served: BTreeMap<String, Value>, asked: Arc<Mutex<Vec<Asked>>>) -> Client {
    let served = Arc::new(served);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (served, asked) = (served.clone(), asked.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let sent = serde_json::from_slice(&body).unwrap_or_default();
            let path = parts.uri.path();
            asked.lock().expect("not poisoned").push((format!("{} {path}", parts.method), sent));
            Ok::<_, tower::BoxError>(answer(&served, &parts.method, path))
        }
    });
    Client::new(service, NAMESPACE)
}

/// What is there, whatever is done with it; what is deleted is not.
fn answer(served: &BTreeMap<String, Value>, method: &Method, path: &str) -> Response<kube::client::Body> {
    let status = |status: &str, code: u16| {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status, "code": code,
            "message": "", "reason": if code == 404 { "NotFound" } else { "" }})
    };
    let (code, body) = match served.get(path.trim_end_matches("/status")) {
        _ if method == Method::DELETE => (StatusCode::OK, status("Success", 200)),
        Some(object) => (StatusCode::OK, object.clone()),
        None => (StatusCode::NOT_FOUND, status("Failure", 404)),
    };
    let mut response = Response::new(kube::client::Body::from(body.to_string().into_bytes()));
    *response.status_mut() = code;
    response
}
