//! The conformance suite of MCP, through the secured path: what needs no fixture passes in both requirement sets.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::server::Endpoint;

/// Without sessions, `server-sse-multiple-streams` has nothing to check in this era: not applicable, not passed.
const HANDSHAKE_ERA: [&str; 7] = [
    "server-initialize",
    "ping",
    "completion-complete",
    "tools-list",
    "resources-list",
    "prompts-list",
    "dns-rebinding-protection",
];

const STATELESS_ERA: [&str; 10] = [
    "completion-complete",
    "tools-list",
    "resources-list",
    "prompts-list",
    "server-sse-multiple-streams",
    "sep-2164-resource-not-found",
    "caching",
    "dns-rebinding-protection",
    "http-header-validation",
    "input-required-result-unsupported-methods",
];

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by `just e2e`"))
}

/// A proxy on loopback that ends with the test.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn proxy(endpoint: &Endpoint) -> (Proxy, String) {
    let mut child = Command::new(variable("PORTCULLIS_E2E_NODE"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/clients/proxy.cjs"))
        .arg(&endpoint.url)
        .env("PORTCULLIS_KEY", &endpoint.viewer)
        .env("NODE_EXTRA_CA_CERTS", &endpoint.ca)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node runs");
    let mut port = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut port).expect("the port");
    (Proxy(child), format!("http://127.0.0.1:{}/mcp", port.trim()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_fixture_passes_in_both_requirement_sets() {
    let endpoint = Endpoint::start("conform", 1).await;
    let (_proxy, url) = proxy(&endpoint);
    let suite = format!(
        "{}/@modelcontextprotocol/conformance/dist/index.js",
        variable("PORTCULLIS_E2E_NODE_MODULES")
    );
    let results = tempfile::tempdir().expect("a directory");
    let mut failures = Vec::new();
    for (revision, scenarios) in [("2025-11-25", &HANDSHAKE_ERA[..]), ("2026-07-28", &STATELESS_ERA[..])] {
        for scenario in scenarios {
            let output = Command::new(variable("PORTCULLIS_E2E_NODE"))
                .args([&suite, "server", "--url", &url, "--scenario", scenario, "--spec-version", revision])
                .current_dir(results.path())
                .output()
                .expect("the suite runs");
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stdout);
                failures.push(format!("{revision} {scenario}:\n{text}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
