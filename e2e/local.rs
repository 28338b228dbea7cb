//! `serve --from` on this machine's loopback, as somebody who tries things out would run it.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use http_body_util::Full;
use serde_json::json;

use crate::cluster::{Namespace, eventually};
use crate::wire::Wire;

/// A process that ends with the test, and its log.
pub(crate) struct Serving(Child, tempfile::NamedTempFile);

impl Serving {
    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.1.path()).unwrap_or_default()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        if std::thread::panicking() {
            // What it has recorded is not what went wrong with it.
            let log = self.log();
            let lines: Vec<_> = log.lines().filter(|line| !line.contains("event_id")).collect();
            eprintln!("--- log of serve --from\n{}", lines.join("\n"));
        }
    }
}

/// Serves the files of a directory, with variables of the environment.
pub(crate) fn serve(directory: &Path, port: u16, variables: &[(&str, &str)]) -> Serving {
    let (listen, admin) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", free_port()));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let log = file.reopen().expect("a handle");
    let child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["serve", "--listen", &listen, "--admin-listen", &admin, "--from"])
        .arg(directory)
        .envs(variables.iter().copied())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("the binary runs");
    Serving(child, file)
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A served directory, and the way to it.
pub(crate) struct Local {
    /// Namespace in the cluster that the objects belong to.
    pub(crate) namespace: Namespace,
    /// The way.
    pub(crate) wire: Wire,
    serving: Serving,
    directory: tempfile::TempDir,
}

impl Local {
    /// Writes the policy that is made for a namespace, serves it and waits until it answers.
    pub(crate) async fn start(prefix: &str, policy: impl Fn(&str) -> String) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let namespace = Namespace::plain(prefix);
        let directory = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let url = format!("https://127.0.0.1:{port}");
        std::fs::write(directory.path().join("policy.yaml"), policy(namespace.name())).expect("written");
        let serving = serve(directory.path(), port, &[]);
        let ca = eventually("a certificate was generated", Duration::from_secs(20), async || {
            std::fs::read(directory.path().join(".portcullis/tls/ca.crt")).ok()
        })
        .await;
        let wire = Wire::to(&url, &ca);
        eventually("it answers", Duration::from_secs(20), async || wire.list_as(&[]).await.ok()).await;
        Self { namespace, wire, serving, directory }
    }

    /// The served directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has written to its log.
    pub(crate) fn log(&self) -> String {
        self.serving.log()
    }

    /// The key that was generated for an `McpApiKey`.
    pub(crate) fn key(&self, name: &str) -> String {
        let path = self.directory.path().join(".portcullis/keys").join(name);
        std::fs::read_to_string(path).expect("a key").trim().to_owned()
    }
}

/// Sends a request of another kind than those of MCP and gives status and body.
pub(crate) async fn get(wire: &Wire, path: &str) -> (http::StatusCode, serde_json::Value) {
    let request = wire.request("GET", path).body(Full::default()).expect("a request");
    let answer = wire.send(request).await.expect("an answer");
    (answer.status(), serde_json::from_slice(answer.body()).unwrap_or(json!(null)))
}
