//! A hundred known secrets are sent through every path, and none of them is found where people read: logs, metrics,
//! Events, objects, answers, the audit.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::basic::{hash, users};
use crate::cluster::{OPERATOR_NAMESPACE, apply, eventually, kubectl, objects, try_kubectl};
use crate::server::{Endpoint, Wishes, key};
use crate::wire::Wire;

/// Secrets by themselves and what they are, to be looked for later.
#[derive(Default)]
struct Canaries {
    secrets: BTreeMap<String, String>,
    /// Of which there are a hundred and more: those that were made up.
    made: usize,
}

impl Canaries {
    /// A secret that looks like a strong key from elsewhere.
    fn plain(&mut self, what: &str) -> String {
        let mut bytes = [0; 24];
        SystemRandom::new().fill(&mut bytes).expect("random bytes");
        let secret = format!("Cn!{}", BASE64_URL_SAFE_NO_PAD.encode(bytes));
        self.made += 1;
        self.remember(&secret, what);
        secret
    }

    /// One in the form of the endpoint's own keys.
    fn key(&mut self, what: &str) -> String {
        let secret: String =
            self.plain(what).chars().filter(char::is_ascii_alphanumeric).cycle().take(49).collect();
        let key = format!("pcl_{}_{secret}", &secret[..16].to_lowercase());
        self.remember(&secret[16..], what);
        key
    }

    /// One in the form of a token, secret in its claims and in its signature.
    fn token(&mut self, issuer: &str, what: &str) -> String {
        let claims = json!({"iss": issuer, "sub": self.plain(what), "password": self.plain(what), "exp": 1});
        let signature = self.plain(what);
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let token = format!(
            "{}.{}.{}",
            part(r#"{"alg":"ES256","kid":"a"}"#),
            part(&claims.to_string()),
            part(&signature)
        );
        self.remember(&token, what);
        self.remember(token.rsplit('.').next().expect("parts"), what);
        token
    }

    /// A secret that was not made here.
    fn remember(&mut self, secret: &str, what: &str) {
        if secret.len() >= 12 {
            self.secrets.insert(secret.to_owned(), what.to_owned());
        }
    }

    /// Which of them stand in a text, as they are or encoded, each with what stands before it.
    fn found_in(&self, text: &str) -> Vec<String> {
        let stands = |(secret, what): (&String, &String)| {
            // The last characters of an encoding depend on what follows.
            let encoded = BASE64_STANDARD.encode(secret.as_bytes());
            let place = text.find(secret.as_str()).or_else(|| text.find(&encoded[..encoded.len() - 4]))?;
            let before: String = text[..place].chars().rev().take(120).collect();
            Some(format!("{what}, after {:?}", before.chars().rev().collect::<String>()))
        };
        self.secrets.iter().filter_map(stands).collect()
    }
}

/// Sends a request and keeps the answer, head and body.
async fn send(wire: &Wire, request: Request<Full<Bytes>>, answers: &mut String) -> StatusCode {
    let answer = wire.send(request).await.expect("an answer");
    *answers += &format!("{:?}\n{}\n", answer.headers(), String::from_utf8_lossy(answer.body()));
    answer.status()
}

fn call(wire: &Wire, key: &str, tool: &str, arguments: &Value) -> Request<Full<Bytes>> {
    wire.modern(key, "tools/call", json!({"name": tool, "arguments": arguments}))
}

/// Wrong credentials of every form, in every place where one may stand or is put by mistake.
async fn fail_everywhere(wire: &Wire, key: &str, canaries: &mut Canaries, answers: &mut String) {
    for issuer in ["https://issuer.example", "https://unknown.example", "kubernetes/serviceaccount"] {
        let token = canaries.token(issuer, "a token in the header");
        send(wire, wire.list(&[("authorization", &format!("Bearer {token}"))], false), answers).await;
    }
    for header in [
        "x-api-key",
        "authorization",
        "cookie",
        "proxy-authorization",
        "x-auth-token",
        "x-amz-security-token",
    ] {
        for scheme in ["", "Bearer ", "ApiKey ", "Token ", "Digest "] {
            let value = format!("{scheme}{}", canaries.plain(header));
            send(wire, wire.list(&[(header, &value)], false), answers).await;
        }
        let value = canaries.key(header);
        send(wire, wire.list(&[(header, &value)], false), answers).await;
    }
    for (user, password) in [
        ("ann".to_owned(), canaries.plain("a password")),
        (canaries.plain("a password as user name"), String::new()),
        (canaries.plain("a password as user name"), canaries.plain("a password")),
    ] {
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        canaries.remember(&encoded, "basic");
        send(wire, wire.list(&[("authorization", &format!("Basic {encoded}"))], false), answers).await;
    }
    let (one, two) = (canaries.key("two at once"), canaries.token("https://issuer.example", "two at once"));
    let both = [("x-api-key", one.as_str()), ("authorization", &format!("Bearer {two}"))];
    send(wire, wire.list(&both, false), answers).await;
    for path in ["/mcp", "/sse", "/messages", "/auth/token", "/livez", "/no-such-path"] {
        for name in ["api_key", "access_token", "token", "password"] {
            let path = format!("{path}?{name}={}", canaries.plain("the query"));
            let request = wire.request("POST", &path).header("x-api-key", key).body(Full::from("{}"));
            send(wire, request.expect("a request"), answers).await;
        }
    }
    for body in [
        format!("username=ann&password={}", canaries.plain("a form")),
        json!({"username": "ann", "password": canaries.plain("a body")}).to_string(),
        json!({"api_key": canaries.key("a body"), "token": canaries.plain("a body")}).to_string(),
        format!("{{\"password\": \"{}", canaries.plain("a broken body")),
    ] {
        for path in ["/auth/token", "/mcp"] {
            let request = wire.request("POST", path).header("x-api-key", key).body(Full::from(body.clone()));
            send(wire, request.expect("a request"), answers).await;
        }
    }
}

/// Secrets in the arguments of tools, for callers who may call them and callers who may not.
async fn put_in_arguments(wire: &Wire, keys: &[&str], canaries: &mut Canaries, answers: &mut String) {
    for key in keys {
        for tool in ["pods_list", "deployments_scale", "no_such_tool"] {
            for name in ["password", "token", "apiKey", "clientSecret", "authorization"] {
                let arguments = json!({"namespace": "default", name: canaries.plain("an argument")});
                send(wire, call(wire, key, tool, &arguments), answers).await;
            }
            let nested = json!({"options": {"credentials": [{"password": canaries.plain("deep inside")}]}});
            send(wire, call(wire, key, tool, &nested), answers).await;
            // Under a name that promises nothing only what looks like a secret is one.
            for value in
                [canaries.key("a harmless name"), canaries.token("https://a.example", "a harmless name")]
            {
                for name in ["namespace", "name", "labelSelector"] {
                    send(wire, call(wire, key, tool, &json!({name: value})), answers).await;
                }
            }
        }
    }
}

/// What stands in the Secrets of a namespace, but for certificates, which are public.
fn remember_secrets(namespace: &str, canaries: &mut Canaries) {
    for secret in objects(&["secrets", "-n", namespace, "--field-selector", "type!=helm.sh/release.v1"]) {
        let name = secret["metadata"]["name"].as_str().expect("a name").to_owned();
        for (entry, value) in secret["data"].as_object().into_iter().flatten() {
            if entry.ends_with(".crt") || entry == "username" {
                continue;
            }
            let what = format!("{entry} of Secret {name}");
            let value = BASE64_STANDARD.decode(value.as_str().expect("text")).expect("base64");
            let text = String::from_utf8_lossy(&value).into_owned();
            match serde_json::from_str::<Value>(&text) {
                Ok(json) => remember_leaves(&json, &what, canaries),
                // Each line, because a log may tear them apart: of a private key, of a list of users.
                Err(_) => {
                    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
                    lines.for_each(|line| canaries.remember(line, &what));
                }
            }
        }
    }
}

fn remember_leaves(value: &Value, what: &str, canaries: &mut Canaries) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| remember_leaves(value, what, canaries)),
        Value::Object(fields) => {
            let secret = |name: &str| ["private", "pepper", "phc"].iter().any(|part| name.contains(part));
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if secret(name) => canaries.remember(text, what),
                    _ => remember_leaves(value, what, canaries),
                }
            }
        }
        _ => {}
    }
}

/// Everything that people and programs read about what happened, by where it was found.
fn places(endpoint: &Endpoint) -> Vec<(String, String)> {
    let mut places = Vec::new();
    let mut add = |arguments: &[&str]| {
        let text = kubectl(arguments);
        assert!(!text.is_empty(), "nothing from kubectl {}", arguments.join(" "));
        places.push((arguments.join(" "), text));
    };
    for namespace in [endpoint.namespace(), OPERATOR_NAMESPACE] {
        for pod in objects(&["pods", "-n", namespace]) {
            let pod = pod["metadata"]["name"].as_str().expect("a name");
            add(&["logs", "-n", namespace, pod, "--all-containers", "--tail=-1"]);
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:9090/proxy/metrics");
            add(&["get", "--raw", &path]);
        }
        add(&["get", "events", "-n", namespace, "-o", "json"]);
        add(&["get", "events.events.k8s.io", "-n", namespace, "-o", "json"]);
        add(&["get", "deployments,pods,configmaps,leases", "-n", namespace, "-o", "json"]);
    }
    add(&["get", "mcpservers,mcproles,mcpapikeys", "-n", endpoint.namespace(), "-o", "json"]);
    let audit = endpoint.audit(&[]);
    assert!(audit.len() > 100, "{} rows", audit.len());
    places.push(("the audit".to_owned(), audit.iter().map(|row| format!("{row}\n")).collect()));
    places
}

const SPEC: &str = "authentication: {tokens: {enabled: true}, serviceAccounts: {enabled: true}, basic: {enabled: true, users: {name: users, key: users}}, jwt: [{issuer: 'https://issuer.example', hmacSecret: {name: hmac, key: secret}}]}";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_secrets_sent_everywhere_appear_nowhere() {
    let mut canaries = Canaries::default();
    let (password, hmac, imported) = (
        canaries.plain("the password of ann"),
        canaries.plain("the key of HS256") + "0123456789",
        canaries.plain("an imported key"),
    );
    let secret = |name: &str, entry: &str, value: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {entry: value}});
    let manifests = format!(
        "{}\n---\n{}\n---\n{}\n---\n{}\n---\n{}",
        users(&[format!("ann:{}", hash(&password))]),
        secret("hmac", "secret", &hmac),
        secret("given", "api-key", &imported),
        secret("weak", "api-key", &canaries.plain("a weak one").to_lowercase().replace(['!', '-', '_'], "a")),
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot}}"
    );
    let wishes = Wishes { replicas: 2, spec: SPEC, manifests: &manifests };
    let endpoint = Endpoint::start_with("canary", wishes).await;
    let (namespace, wire) = (endpoint.namespace().to_owned(), Wire::new(&endpoint));
    for name in ["given", "weak"] {
        let import = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "McpApiKey", "metadata": {"name": name},
            "spec": {"identity": name, "servers": ["ops"], "roles": [{"name": "viewer"}], "import": {"secretRef": {"name": name}}}});
        apply(&namespace, &import.to_string());
    }

    let mut answers = String::new();
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iss": "https://issuer.example", "aud": endpoint.resource(), "sub": "ann", "exp": now + 300, "iat": now});
    let signing = EncodingKey::from_secret(hmac.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &signing).expect("signed");
    let account =
        kubectl(&["create", "token", "-n", &namespace, "robot", "--audience", &endpoint.resource()]);
    let basic = BASE64_STANDARD.encode(format!("ann:{password}"));
    let own = eventually("tokens are made", Duration::from_secs(60), async || {
        endpoint.token(&endpoint.viewer).await.ok()
    })
    .await;
    let mut good = vec![
        ("x-api-key", endpoint.viewer.clone()),
        ("authorization", format!("Bearer {}", endpoint.admin)),
        ("authorization", format!("Bearer {own}")),
        ("authorization", format!("Bearer {token}")),
        ("authorization", format!("Bearer {}", account.trim())),
        ("authorization", format!("Basic {basic}")),
        ("x-api-key", imported.clone()),
    ];
    for (name, value) in &good {
        let secret = value.rsplit(' ').next().expect("a credential");
        canaries.remember(secret, name);
        canaries.remember(secret.rsplit(['.', '_']).next().expect("a part"), name);
    }
    for (name, value) in &good {
        eventually(&format!("{name} {}... is accepted", &value[..12]), Duration::from_secs(90), async || {
            let answer = wire.list_as(&[(name, value)]).await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
    fail_everywhere(&wire, &endpoint.viewer, &mut canaries, &mut answers).await;
    let (viewer, admin) = (endpoint.viewer.clone(), endpoint.admin.clone());
    put_in_arguments(&wire, &[&viewer, &admin], &mut canaries, &mut answers).await;

    remember_secrets(&namespace, &mut canaries);
    remember_secrets(OPERATOR_NAMESPACE, &mut canaries);
    for (name, what) in [("viewer", "rotate"), ("admin", "revoke")] {
        kubectl(&["annotate", "-n", &namespace, "mcpapikey", name, &format!("portcullis.dev/{what}=now")]);
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    for (name, old) in [("viewer", &viewer), ("admin", &admin)] {
        let new = key(&namespace, name).await;
        assert_ne!(&new, old, "{name} has a new key");
        canaries.remember(&new, "a new key");
        good.push(("x-api-key", new));
    }
    // Another try with what has just ended, and with what is new.
    for (name, value) in &good {
        send(&wire, wire.list(&[(name, value)], false), &mut answers).await;
    }
    remember_secrets(&namespace, &mut canaries);
    let _ = try_kubectl(&["delete", "secret", "-n", &namespace, "given"], "");
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut searched = places(&endpoint);
    // An answer may hold the token that was asked for, which is how one gets it; none was asked for by these requests.
    searched.push(("answers".to_owned(), answers));
    let size: usize = searched.iter().map(|(_, text)| text.len()).sum();
    eprintln!(
        "{} secrets ({} made up) were looked for in {} places with {size} bytes",
        canaries.secrets.len(),
        canaries.made,
        searched.len()
    );
    assert!(canaries.made >= 100, "{} canaries", canaries.made);
    let found: Vec<_> = searched
        .iter()
        .flat_map(|(place, text)| {
            let found = canaries.found_in(text);
            found.into_iter().map(move |what| format!("{what}: in {place}"))
        })
        .collect();
    assert!(found.is_empty(), "{} secrets were found: {found:#?}", found.len());
}
