//! The verbs for people: make, hash and judge keys, look into tokens, ask an endpoint who one is.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::issuer::Issuer;
use crate::server::{Endpoint, Wishes};

/// Runs the binary with something on its standard input: whether it went well, and what it said.
fn run(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .env_remove("PORTCULLIS_CREDENTIAL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // Whoever refuses its arguments may not wait for its input.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

#[test]
fn a_key_is_made_judged_and_hashed_without_being_shown_again() {
    let (good, key) = run(&["key", "generate"], "");
    assert!(good && key.starts_with("pcl_") && key.len() == 70, "{key}");
    let (good, text) = run(&["key", "check"], &key);
    assert!(good && !text.contains(&key), "{text}");
    let mut damaged = key.clone();
    let last = damaged.pop().expect("a key");
    damaged.push(if last == 'a' { 'b' } else { 'a' });
    assert!(!run(&["key", "check"], &damaged).0, "one character is another");
    assert!(run(&["key", "check"], "vT9#kQ2m!Lx7@Wp4zR8s&Yd6").0, "a strong one from elsewhere");
    for weak in ["Abc123!@#Xyz789!@#", "mcp-admin-key-12345", "short", "abcdefgh12345678"] {
        let (good, text) = run(&["key", "check"], weak);
        assert!(!good && !text.contains(weak), "{text}");
    }
    let (good, line) =
        run(&["key", "hash", "--user", "ann", "--group", "ops"], "correct horse battery staple\n");
    assert!(good && line.starts_with("ann:$argon2id$v=19$m=19456,t=2,p=1$"), "{line}");
    assert!(line.ends_with(":ops"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_looked_into_without_showing_its_signature() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let issuer = Issuer::start("ES256", "https://mcp.example.test/mcp");
    let token = issuer.token("k8s:pods:list").await;
    let (good, text) = run(&["token", "inspect", "--json"], &token);
    assert!(good, "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(told["claims"]["iss"], json!(issuer.url), "{told}");
    assert!(!text.contains(token.rsplit('.').next().expect("a signature")), "{text}");
    assert!(!run(&["token", "inspect"], "abcdefgh12345678abcdefgh12345678").0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_says_who_one_is() {
    let spec = "authentication: {tokens: {enabled: true}}";
    let endpoint = Endpoint::start_with("whoami", Wishes { spec, ..Wishes::default() }).await;
    let ca = endpoint.ca.to_str().expect("text");
    let url = format!("{}/mcp", endpoint.url);
    let arguments = ["whoami", "--url", &url, "--ca", ca, "--json"];
    let (good, text) = run(&arguments, &endpoint.viewer);
    assert!(good && !text.contains(&endpoint.viewer), "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&told["subject"], &told["method"]), (&json!("viewer"), &json!("apikey")), "{told}");
    let token = endpoint.token(&endpoint.viewer).await.expect("a token");
    let (good, text) = run(&arguments, &token);
    assert!(good, "{text}");
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&told["subject"], &told["method"]), (&json!("viewer"), &json!("token")), "{told}");
    let (good, text) = run(&arguments, "hello");
    assert!(!good && !text.contains("panicked"), "{text}");
    let (good, _) = run(&["whoami", "--url", &url, "--json"], &endpoint.viewer);
    assert!(!good, "the key must not go to a server that nobody vouches for");
}
