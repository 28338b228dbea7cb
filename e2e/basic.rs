//! User names and passwords: a Secret of users in the cluster, and a flood of guesses that locks nobody out.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{apply, eventually, kubectl, objects};
use crate::server::{Endpoint, Wishes};
use crate::wire::{Failure, Wire};

const SPEC: &str = "authentication: {basic: {enabled: true, users: {name: users, key: users}}}";
const ROLES: &str = r"
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: ann}
spec: {permissions: ['k8s:pods:list'], subjects: [{kind: User, name: ann, issuer: basic}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: operators}
spec: {permissions: ['k8s:services:list'], subjects: [{kind: Group, name: operators}]}
";

/// The salted hash of a password, made as people make it.
pub(crate) fn hash(password: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["key", "hash"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().expect("piped").write_all(password.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text").trim().to_owned();
    assert!(output.status.success() && text.starts_with("$argon2id$"), "{text}");
    text
}

/// A Secret with one user for each line.
pub(crate) fn users(lines: &[String]) -> String {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "users"},
        "stringData": {"users": lines.join("\n") + "\n"}});
    format!("{ROLES}\n---\n{secret}")
}

/// `tools/list` with a user name and a password.
pub(crate) async fn login(
    wire: &Wire,
    user: &str,
    password: &str,
) -> Result<Response<bytes::Bytes>, Failure> {
    let value = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
    wire.list_as(&[("authorization", &value)]).await
}

async fn tools(wire: &Wire, user: &str, password: &str) -> Option<Vec<String>> {
    let answer = login(wire, user, password).await.ok().filter(|answer| answer.status() == StatusCode::OK)?;
    let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
    let tools = body["result"]["tools"].as_array()?.iter();
    Some(tools.map(|tool| tool["name"].as_str().unwrap_or_default().to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_the_secret_have_their_roles_and_a_wrong_password_is_a_failure_like_any() {
    let lines = [
        "# who may come in".to_owned(),
        format!("ann:{}", hash("correct horse: battery staple")),
        format!("bob:{}:operators,others", hash("gr\u{fc}\u{df} dich, 4 Welten")),
    ];
    let wishes = Wishes { spec: SPEC, manifests: &users(&lines), ..Wishes::default() };
    let endpoint = Endpoint::start_with("basic", wishes).await;
    let wire = Wire::new(&endpoint);
    let listed = eventually("the users are known", Duration::from_secs(30), async || {
        tools(&wire, "ann", "correct horse: battery staple").await
    })
    .await;
    assert_eq!(listed, ["pods_list", "resources_list"]);
    let listed = tools(&wire, "bob", "gr\u{fc}\u{df} dich, 4 Welten").await;
    assert_eq!(listed, Some(vec!["resources_list".to_owned(), "services_list".to_owned()]), "by group");

    let missing = wire.list_as(&[]).await.expect("an answer");
    for (user, password) in [
        ("ann", "correct horse: battery stapler"),
        ("ann", ""),
        ("", "correct horse: battery staple"),
        ("carl", "correct horse: battery staple"),
        ("admin", "secret"),
        ("ann:x", "correct horse: battery staple"),
    ] {
        let answer = login(&wire, user, password).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{user}");
        assert_eq!(answer.body(), missing.body(), "{user}");
        assert_eq!(answer.headers().get("www-authenticate"), missing.headers().get("www-authenticate"));
    }

    let changed = [format!("ann:{}", hash("another one, 7 words"))];
    apply(endpoint.namespace(), &users(&changed));
    eventually("the new password counts", Duration::from_secs(120), async || {
        tools(&wire, "ann", "another one, 7 words").await
    })
    .await;
    for (user, password) in
        [("ann", "correct horse: battery staple"), ("bob", "gr\u{fc}\u{df} dich, 4 Welten")]
    {
        let answer = login(&wire, user, password).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{user} is no more");
    }
    let events = endpoint.audit(&[]);
    assert!(events.iter().any(|event| event["user"] == "bob" && event["auth_type"] == "basic"));
    assert!(events.iter().any(|event| event["reason"] == "wrong_password"));
    assert!(!events.iter().any(|event| event.to_string().contains("battery")), "no password is on record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn serial_a_flood_of_wrong_passwords_locks_nobody_out_and_costs_little() {
    let lines = [format!("ann:{}", hash("correct horse: battery staple"))];
    let wishes = Wishes { spec: SPEC, manifests: &users(&lines), ..Wishes::default() };
    let endpoint = Endpoint::start_with("flood", wishes).await;
    let wire = Wire::new(&endpoint);
    let right = "correct horse: battery staple";
    eventually("the users are known", Duration::from_secs(30), async || tools(&wire, "ann", right).await)
        .await;
    let began = Instant::now();
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..1_000_u32 {
        let wire = wire.clone();
        flood.spawn(async move {
            // Half of them guess ann's password, the others try names.
            let user = if number % 2 == 0 { "ann".to_owned() } else { format!("user-{number}") };
            tokio::time::sleep(Duration::from_millis(u64::from(number) * 10)).await;
            login(&wire, &user, &format!("guess {number}")).await.map(|answer| answer.status())
        });
    }
    let mut longest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(9) {
        let asked = Instant::now();
        let answer = login(&wire, "ann", right).await.expect("an answer");
        assert_eq!(
            answer.status(),
            StatusCode::OK,
            "the right password, {:?} into the flood",
            began.elapsed()
        );
        longest = longest.max(asked.elapsed());
        let answer = wire.list_as(&[("x-api-key", &endpoint.viewer)]).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "a key, {:?} into the flood", began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answers = flood.join_all().await;
    let refused = answers.iter().filter(|status| matches!(status, Ok(StatusCode::UNAUTHORIZED))).count();
    eprintln!(
        "1000 guesses were refused in {:?}; the right password was never out, and took {longest:?} at most",
        began.elapsed()
    );
    assert_eq!(refused, 1_000, "the same answer for every guess");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    let events = endpoint.audit(&["--type", "authentication"]);
    let count = |reason: &str| -> u64 {
        let of_reason = events.iter().filter(|event| event["reason"] == reason);
        of_reason.map(|event| event["count"].as_u64().unwrap_or(1)).sum()
    };
    let (hashed, throttled) = (count("wrong_password"), count("throttled") + count("overloaded"));
    eprintln!("of the guesses {hashed} were worked on and {throttled} refused before");
    assert!(throttled > hashed, "most guesses cost no hash");
    let pods = objects(&["pods", "-n", endpoint.namespace(), "-l", "portcullis.dev/server=ops"]);
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    kubectl(&["get", "mcpserver", "-n", endpoint.namespace(), "ops"]);
}
