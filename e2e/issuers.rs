//! Tokens of a real issuer: a provider that runs beside the endpoint, changes its keys under load, and goes away.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::cluster::eventually;
use crate::issuer::Issuer;
use crate::load::{Load, Shown};
use crate::local::{Local, get};
use crate::wire::Wire;

/// An endpoint that trusts the issuer, with roles for the user `robot` and the group `robots` of it.
async fn start(algorithm: &str, more: &str) -> (Local, Issuer) {
    let resource = format!("https://mcp.example.test/{algorithm}/mcp");
    let issuer = Issuer::start(algorithm, &resource);
    let (url, server) = (issuer.url.clone(), issuer.server(&resource, more));
    let local = Local::start("issuer", move |namespace| {
        format!(
            r"{}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {{name: robot, namespace: {namespace}}}
spec:
  permissions: ['k8s:pods:list']
  subjects: [{{kind: User, name: robot, issuer: '{url}'}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {{name: robots, namespace: {namespace}}}
spec:
  permissions: ['k8s:services:list']
  subjects: [{{kind: Group, name: robots, issuer: '{url}'}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {{name: others, namespace: {namespace}}}
spec:
  permissions: ['k8s:deployments:list']
  subjects: [{{kind: User, name: robot, issuer: 'https://another.example'}}, {{kind: User, name: somebody}}]
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {{name: me, namespace: {namespace}}}
spec: {{identity: me, servers: [ops], roles: [{{name: robot}}]}}
",
            server(namespace)
        )
    })
    .await;
    (local, issuer)
}

async fn list(wire: &Wire, token: &str) -> Response<bytes::Bytes> {
    wire.list_as(&[("authorization", &format!("Bearer {token}"))]).await.expect("an answer")
}

fn tools(answer: &Response<bytes::Bytes>) -> Vec<String> {
    let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
    let tools = body["result"]["tools"].as_array().cloned().unwrap_or_else(|| panic!("{body}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Calls a tool with a bearer token and gives the answer as it came.
async fn call(wire: &Wire, token: &str, tool: &str, arguments: Value) -> Response<bytes::Bytes> {
    let mut request = wire.modern("-", "tools/call", json!({"name": tool, "arguments": arguments}));
    request.headers_mut().remove("x-api-key");
    let value = format!("Bearer {token}").parse().expect("a header");
    request.headers_mut().insert(header::AUTHORIZATION, value);
    wire.send(request).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_issuer_has_the_roles_of_its_user_and_groups() {
    for algorithm in ["ES256", "RS256", "EdDSA"] {
        let (local, issuer) = start(algorithm, "").await;
        let answer = list(&local.wire, &issuer.token("").await).await;
        assert_eq!(answer.status(), StatusCode::OK, "{algorithm}: {answer:?}");
        let tools = tools(&answer);
        assert!(tools.contains(&"pods_list".to_owned()), "by user: {tools:?}");
        assert!(tools.contains(&"services_list".to_owned()), "by group: {tools:?}");
        assert!(!tools.contains(&"deployments_list".to_owned()), "of another issuer: {tools:?}");
        let here = json!({"namespace": local.namespace.name()});
        let token = issuer.token("").await;
        let answer = call(&local.wire, &token, "pods_list", here).await;
        let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
        assert_ne!(body["result"]["isError"], true, "{body}");
        assert!(!local.log().contains(&token), "the token is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_that_is_not_for_us_now_and_by_the_issuer_is_refused_alike() {
    let (local, mut issuer) = start("ES256", "").await;
    let claims = issuer.claims();
    let good = issuer.sign(&claims);
    assert_eq!(list(&local.wire, &good).await.status(), StatusCode::OK);
    let mut stranger = Issuer::start("ES256", claims["aud"].as_str().expect("text"));
    let now = claims["iat"].as_i64().expect("a time");
    let changed = |changes: &[(&str, Value)]| {
        let mut claims = claims.clone();
        for (name, value) in changes {
            match value {
                Value::Null => claims.as_object_mut().and_then(|claims| claims.remove(*name)),
                value => {
                    claims.as_object_mut().and_then(|claims| claims.insert((*name).into(), value.clone()))
                }
            };
        }
        claims
    };
    let mut bad = vec![
        ("another's audience", issuer.sign(&changed(&[("aud", json!("https://other.example/mcp"))]))),
        ("no audience", issuer.sign(&changed(&[("aud", Value::Null)]))),
        ("expired", issuer.sign(&changed(&[("exp", json!(now - 60)), ("iat", json!(now - 120))]))),
        ("without an end", issuer.sign(&changed(&[("exp", Value::Null)]))),
        ("an end in words", issuer.sign(&changed(&[("exp", json!("tomorrow"))]))),
        ("lasts a year", issuer.sign(&changed(&[("exp", json!(now + 31_536_000))]))),
        ("not valid yet", issuer.sign(&changed(&[("nbf", json!(now + 3_600))]))),
        ("another issuer's name", issuer.sign(&changed(&[("iss", json!("https://evil.example"))]))),
        ("without a user", issuer.sign(&changed(&[("sub", Value::Null)]))),
        ("of another type", issuer.sign(&changed(&[("header", json!({"typ": "id_token"}))]))),
        (
            "with a critical header",
            issuer.sign(&changed(&[("header", json!({"b64x": 1, "crit": ["b64x"]}))])),
        ),
        ("another's key", stranger.sign(&claims)),
        ("another's key under the right id", {
            let head = good.split('.').next().expect("a header");
            let foreign = stranger.sign(&claims);
            format!("{head}.{}", foreign.split_once('.').expect("parts").1)
        }),
        ("another provider's own", stranger.token("").await),
    ];
    for algorithm in ["none", "HS256"] {
        let header = json!({"alg": algorithm}).to_string();
        let (header, claims) =
            (BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        bad.push((algorithm, format!("{header}.{claims}.")));
        bad.push((algorithm, format!("{header}.{claims}.AAAA")));
    }
    let missing = local.wire.list_as(&[]).await.expect("an answer");
    for (what, token) in bad {
        let began = Instant::now();
        let answer = list(&local.wire, &token).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{what}");
        assert_eq!(answer.body(), missing.body(), "{what}: the same body for every failure");
        let challenge = |answer: &Response<bytes::Bytes>| answer.headers().get("www-authenticate").cloned();
        assert!(challenge(&answer).is_some(), "{what}");
        eprintln!("{what}: refused in {:?}", began.elapsed());
    }
    assert_eq!(list(&local.wire, &good).await.status(), StatusCode::OK, "the good one still passes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn serial_ten_changes_of_the_issuers_key_under_load_fail_no_request() {
    let (local, mut issuer) = start("ES256", "").await;
    let newest = Arc::new(RwLock::new((issuer.token("").await, 0)));
    let credential = {
        let newest = newest.clone();
        move || {
            let (token, number) = newest.read().expect("not poisoned").clone();
            Shown::token(&token, format!("key {number}"))
        }
    };
    let load = Load::start(std::slice::from_ref(&local.wire), 6, 200, credential);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut previous = Vec::new();
    for number in 1..=10 {
        // Longer than the shortest time between two fetches that requests ask for.
        tokio::time::sleep(Duration::from_secs(11)).await;
        previous.push(newest.read().expect("not poisoned").0.clone());
        issuer.rotate();
        let token = issuer.token("").await;
        *newest.write().expect("not poisoned") = (token, number);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for token in &previous {
        assert_eq!(list(&local.wire, token).await.status(), StatusCode::OK, "an old key still in the set");
    }
    let mut outcome = load.stop().await;
    outcome.assert_none_refused("10 changes of an issuer's key");
    assert!(outcome.rate() > 180.0, "{:.0} a second", outcome.rate());

    issuer.drop_old_keys();
    let (before, began) = (issuer.fetches(), Instant::now());
    let mut storm = tokio::task::JoinSet::new();
    let claims = issuer.claims();
    for number in 0..300 {
        let mut claims = claims.clone();
        claims["header"] = json!({"kid": format!("made-up-{number}")});
        let (wire, token) = (local.wire.clone(), issuer.sign(&claims));
        storm.spawn(async move { list(&wire, &token).await.status() });
    }
    assert!(storm.join_all().await.iter().all(|status| *status == StatusCode::UNAUTHORIZED));
    let (asked, lasted) = (issuer.fetches() - before, began.elapsed());
    eprintln!("300 unknown keys in {lasted:?} made the endpoint fetch the key set {asked} times");
    // One every four seconds at most, whoever asks, and one that was due by itself.
    let most = 2 + lasted.as_secs() / 4;
    assert!(asked <= most, "{asked} fetches for 300 unknown keys in {lasted:?}");
    eventually("a key that the issuer has dropped counts no more", Duration::from_secs(30), async || {
        (list(&local.wire, &previous[0]).await.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_without_the_issuer_known_keys_go_on_and_unknown_ones_are_refused_quickly() {
    let (local, mut issuer) = start("ES256", "").await;
    let good = issuer.token("").await;
    assert_eq!(list(&local.wire, &good).await.status(), StatusCode::OK);
    let mut claims = issuer.claims();
    claims["header"] = json!({"kid": "made-up"});
    let unknown = issuer.sign(&claims);
    issuer.stop();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(list(&local.wire, &good).await.status(), StatusCode::OK);
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        let began = Instant::now();
        assert_eq!(list(&local.wire, &unknown).await.status(), StatusCode::UNAUTHORIZED);
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        eprintln!("unknown key refused in {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_of_the_resource_is_at_its_three_places() {
    let (local, issuer) = start("ES256", "").await;
    let resource = "https://mcp.example.test/ES256/mcp";
    let answer = local.wire.list_as(&[]).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let challenge = answer.headers()["www-authenticate"].to_str().expect("text").to_owned();
    assert!(challenge.starts_with("Bearer "), "{challenge}");
    let named = challenge.split("resource_metadata=\"").nth(1).and_then(|rest| rest.split('"').next());
    let named = named.unwrap_or_else(|| panic!("no address of the metadata: {challenge}"));
    let address: http::Uri = named.parse().expect("an address");
    assert!(named.starts_with("https://"), "{named}");
    let mut documents = Vec::new();
    for path in
        [address.path(), "/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"]
    {
        let (status, document) = get(&local.wire, path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(document["resource"], resource, "{path}: {document}");
        assert_eq!(document["authorization_servers"], json!([issuer.url]), "{path}: {document}");
        assert_eq!(document["bearer_methods_supported"], json!(["header"]), "{path}: {document}");
        documents.push(document);
    }
    assert!(documents.iter().all(|document| *document == documents[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_scope_is_short_is_told_which_one_it_needs() {
    let (local, issuer) = start("ES256", "").await;
    let here = json!({"namespace": local.namespace.name()});
    let narrow = issuer.token("k8s:pods:list").await;
    let answer = call(&local.wire, &narrow, "pods_list", here.clone()).await;
    assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
    let answer = call(&local.wire, &narrow, "services_list", here.clone()).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{answer:?}");
    let challenge = answer.headers()["www-authenticate"].to_str().expect("text");
    for part in ["error=\"insufficient_scope\"", "scope=\"", "k8s:services:list", "resource_metadata=\""] {
        assert!(challenge.contains(part), "{part} is not in {challenge}");
    }
    // What no role grants is no question of scope: asking for more would not help.
    let answer = call(&local.wire, &narrow, "deployments_list", here).await;
    assert_ne!(answer.status(), StatusCode::FORBIDDEN, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_scopes_are_required_a_token_without_them_may_do_nothing() {
    let (local, issuer) = start("ES256", "scopes: Required").await;
    let here = json!({"namespace": local.namespace.name()});
    // It sees what its roles allow, so that it can know what to ask its issuer for.
    for (scope, tool, wanted) in [
        ("", "pods_list", StatusCode::FORBIDDEN),
        ("k8s:pods:list", "pods_list", StatusCode::OK),
        ("k8s:pods:list", "services_list", StatusCode::FORBIDDEN),
    ] {
        let answer = call(&local.wire, &issuer.token(scope).await, tool, here.clone()).await;
        assert_eq!(answer.status(), wanted, "{tool} with the scope {scope:?}: {answer:?}");
    }
}
