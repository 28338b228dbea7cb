//! An API server that has one object in every namespace, and says what it was asked.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::response::IntoResponse;
use http::{Method, Uri};
use serde_json::{Value, json};

/// It runs until the test ends.
pub(super) struct ApiServer {
    pub(super) client: kube::Client,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ApiServer {
    pub(super) async fn start() -> Self {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = asked.clone();
        let answer = move |method: Method, uri: Uri| async move {
            record.lock().expect("not poisoned").push(format!("{method} {}", uri.path()));
            axum::Json(objects(uri.path())).into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
        let config = kube::Config::new(url.parse().expect("a URL"));
        Self { client: kube::Client::try_from(config).expect("a client"), asked }
    }

    /// What it was asked since the last time, sorted.
    pub(super) fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().expect("not poisoned"));
        asked.sort();
        asked
    }
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
