//! A replica that the API server does not reach: after 30 seconds it says so, and it is back when it is reached again.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::{eventually, kubectl, objects, try_kubectl};
use crate::server::Endpoint;

/// Rules in the node that drop everything between a Pod and the API server, until the test ends.
struct CutOff {
    node: String,
    ip: String,
}

impl CutOff {
    fn new(node: &str, ip: &str) -> Self {
        let cut = Self { node: node.to_owned(), ip: ip.to_owned() };
        assert!(cut.rules("-I"), "rules of the node {node}");
        cut
    }

    fn rules(&self, action: &str) -> bool {
        let ip = &self.ip;
        // Packets to the API server are for the node itself where that runs on it, and are forwarded elsewhere.
        let script = ["INPUT", "FORWARD"]
            .map(|chain| format!("iptables -w {action} {chain} -s {ip} -p tcp --dport 6443 -j DROP"))
            .into_iter()
            .chain(
                ["OUTPUT", "FORWARD"]
                    .map(|chain| format!("iptables -w {action} {chain} -d {ip} -p tcp --sport 6443 -j DROP")),
            )
            .collect::<Vec<_>>()
            .join(" && ");
        let output = Command::new("docker").args(["exec", &self.node, "sh", "-c", &script]).output();
        output.expect("docker runs").status.success()
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        self.rules("-D");
    }
}

/// A page of the admin port of a Pod, by way of the API server: whether it is good, and what it says.
fn page(namespace: &str, pod: &str, path: &str) -> (bool, String) {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:9090/proxy/{path}");
    let output = try_kubectl(&["get", "--raw", &path], "");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Value of the metric that tells for how long the policy was not confirmed.
fn age(namespace: &str, pod: &str) -> Option<f64> {
    let (_, metrics) = page(namespace, pod, "metrics");
    let line = metrics.lines().find(|line| line.starts_with("mcp_policy_staleness_seconds"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_misses_its_watch_for_half_a_minute_says_so() {
    let endpoint = Endpoint::start("missed", 2).await;
    let namespace = endpoint.namespace();
    let pods = objects(&["pods", "-n", namespace, "-l", "portcullis.dev/server=ops"]);
    let text = |number: usize, path: &str| {
        pods[number].pointer(path).and_then(|v| v.as_str()).expect("text").to_owned()
    };
    let (pod, other) = (text(0, "/metadata/name"), text(1, "/metadata/name"));
    assert_eq!(page(namespace, &pod, "readyz"), (true, "ok\n".to_owned()));
    let fresh = age(namespace, &pod).expect("the metric is there");
    assert!(fresh < 20.0, "{fresh}");

    let cut = CutOff::new(&text(0, "/spec/nodeName"), &text(0, "/status/podIP"));
    let began = Instant::now();
    let said = eventually("/readyz says so", Duration::from_secs(60), async || {
        let (good, page) = page(namespace, &pod, "readyz");
        (!good || page.trim() != "ok").then_some(page)
    })
    .await;
    let after = began.elapsed();
    let old = age(namespace, &pod).expect("the metric is there");
    eprintln!("a replica without its watch says so after {after:?}: {}; the metric says {old}", said.trim());
    assert!(said.contains("policy"), "{said}");
    // The API server was last heard of up to a heartbeat before.
    assert!(after > Duration::from_secs(15) && after < Duration::from_secs(45), "{after:?}");
    assert!(old >= 29.0, "{old}");
    assert!(page(namespace, &pod, "livez").0, "it is alive: a restart would not help");
    assert_eq!(page(namespace, &other, "readyz").1.trim(), "ok", "the other replica is well");
    drop(cut);
    eventually("it is back", Duration::from_secs(90), async || {
        (page(namespace, &pod, "readyz").1.trim() == "ok" && age(namespace, &pod)? < 20.0).then_some(())
    })
    .await;
    kubectl(&["wait", "-n", namespace, &format!("pod/{pod}"), "--for=condition=Ready", "--timeout=60s"]);
}
