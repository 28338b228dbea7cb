//! An API server that has every object that it is asked for, and says what it was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use http::{Method, Uri};
use serde_json::{Value, json};

/// Uid of every object.
pub(super) const UID: &str = "0f8a3c52-1b1e-4a57-9a3e-3d0f2b7c9e11";
/// Version of every object.
pub(super) const VERSION: &str = "7";

/// It runs until the test ends.
pub(super) struct ApiServer {
    pub(super) client: kube::Client,
    asked: Arc<Mutex<Vec<(String, Bytes)>>>,
}

impl ApiServer {
    pub(super) async fn start() -> Self {
        let asked: Arc<Mutex<Vec<_>>> = Arc::default();
        let record = asked.clone();
        let answer = move |method: Method, uri: Uri, body: Bytes| async move {
            record.lock().expect("not poisoned").push((format!("{method} {}", uri.path()), body));
            answer(uri.path())
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
        let config = kube::Config::new(url.parse().expect("a URL"));
        Self { client: kube::Client::try_from(config).expect("a client"), asked }
    }

    /// What it was asked since the last time, sorted.
    pub(super) fn asked(&self) -> Vec<String> {
        let mut asked: Vec<_> = self.take().into_iter().map(|(asked, _)| asked).collect();
        asked.sort();
        asked
    }

    /// What it was sent since the last time, in order: requests that had a body.
    pub(super) fn sent(&self) -> Vec<(String, Value)> {
        let with_body = self.take().into_iter().filter(|(_, body)| !body.is_empty());
        with_body.map(|(asked, body)| (asked, serde_json::from_slice(&body).expect("JSON"))).collect()
    }

    fn take(&self) -> Vec<(String, Bytes)> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }
}

/// One object if the path names one, whatever is done with it, else a list.
fn answer(path: &str) -> Response {
    let inside = path.split("/namespaces/").nth(1).unwrap_or_default();
    match inside.split('/').collect::<Vec<_>>()[..] {
        [_, _, _, "log"] => "it works\n".into_response(),
        [namespace, _, name, ..] => axum::Json(object(namespace, name)).into_response(),
        _ => axum::Json(objects(path)).into_response(),
    }
}

/// An object that a controller owns and that has one replica.
fn object(namespace: &str, name: &str) -> Value {
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "owner", "uid": "u1", "controller": true});
    json!({"metadata": {"name": name, "namespace": namespace, "uid": UID, "resourceVersion": VERSION,
        "ownerReferences": [owner]}, "spec": {"replicas": 1}})
}

/// The list at a path of the API: an object of every namespace there is, or of the one that the path names.
fn objects(path: &str) -> Value {
    let namespace = path.split("/namespaces/").nth(1).and_then(|rest| rest.split('/').next());
    let metadata = json!({"name": "web", "namespace": namespace});
    let object = json!({"metadata": metadata, "involvedObject": {"kind": "Pod", "name": "web"},
        "type": "Warning", "reason": "Failed", "message": "it failed"});
    let kind = if path.ends_with("/events") { "EventList" } else { "PodList" };
    json!({"kind": kind, "apiVersion": "v1", "metadata": {}, "items": [object]})
}
