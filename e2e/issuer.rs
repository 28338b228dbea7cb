//! A real OpenID Connect provider on loopback: the npm package oidc-provider behind a certificate of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::wire::Wire;

/// A running provider that ends with the test.
pub(crate) struct Issuer {
    /// The `iss` of its tokens, and where it is.
    pub(crate) url: String,
    /// Certificate of the authority that vouches for its address.
    pub(crate) ca: String,
    resource: String,
    wire: Wire,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for 127.0.0.1 by an authority of its own: the authority's certificate, the leaf and its key.
fn certificate() -> (String, String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "issuer of the end-to-end tests");
    let ca = authority.self_signed(&key).expect("signed");
    let authority = rcgen::Issuer::new(authority, key);
    let leaf_key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("names");
    let leaf = leaf.signed_by(&leaf_key, &authority).expect("signed");
    (ca.pem(), leaf.pem(), leaf_key.serialize_pem())
}

impl Issuer {
    /// Starts one whose tokens are for a resource.
    pub(crate) fn start(algorithm: &str, resource: &str) -> Self {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run by `just e2e`"))
        };
        let directory = tempfile::tempdir().expect("a directory");
        let (ca, leaf, key) = certificate();
        let (leaf_file, key_file) = (directory.path().join("leaf.pem"), directory.path().join("key.pem"));
        std::fs::write(&leaf_file, leaf).expect("written");
        std::fs::write(&key_file, key).expect("written");
        let mut child = Command::new(variable("PORTCULLIS_E2E_NODE"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/clients/oidc_provider.cjs"))
            .args([&leaf_file, &key_file])
            .args([algorithm, resource])
            .env("NODE_PATH", variable("PORTCULLIS_E2E_NODE_MODULES"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node runs");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut output = BufReader::new(output);
        let url = answer(&mut output)["issuer"].as_str().expect("its URL").to_owned();
        let wire = Wire::to(&url, ca.as_bytes());
        let resource = resource.to_owned();
        Self { url, ca, resource, wire, child, input, output, _directory: directory }
    }

    fn command(&mut self, line: &str) -> Value {
        writeln!(self.input, "{line}").expect("it reads");
        answer(&mut self.output)
    }

    /// Manifests of the server `ops` in a namespace that trusts the issuer for this resource, with `more` of what it says of
    /// the issuer.
    pub(crate) fn server(&self, resource: &str, more: &str) -> impl Fn(&str) -> String + use<> {
        let (url, resource, more) = (self.url.clone(), resource.to_owned(), more.to_owned());
        let ca = self.ca.replace('\n', "\n    ");
        move |namespace| {
            format!(
                r"
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {{name: ops, namespace: {namespace}}}
spec:
  authentication:
    resource: {resource}
    jwt:
    - issuer: {url}
      ca: {{kind: ConfigMap, name: issuer-ca, key: ca.crt}}
      allowPrivateAddresses: true
      {more}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: issuer-ca, namespace: {namespace}}}
data:
  ca.crt: |
    {ca}"
            )
        }
    }

    /// A new key signs from now on; the old ones stay in the key set.
    pub(crate) fn rotate(&mut self) {
        assert!(self.command("rotate")["kid"].is_string());
    }

    /// The key set holds the key that signs and no other.
    pub(crate) fn drop_old_keys(&mut self) {
        assert!(self.command("drop")["kid"].is_string());
    }

    /// How often the key set was fetched.
    pub(crate) fn fetches(&mut self) -> u64 {
        self.command("fetches")["fetches"].as_u64().expect("a number")
    }

    /// A token with any claims, signed with the provider's key. `header` among them adds to the header.
    pub(crate) fn sign(&mut self, claims: &Value) -> String {
        let answer = self.command(&format!("sign {claims}"));
        answer["token"].as_str().expect("a token").to_owned()
    }

    /// Claims of a token that should pass: for the resource, from now on for five minutes.
    pub(crate) fn claims(&self) -> Value {
        let now = jiff::Timestamp::now().as_second();
        serde_json::json!({"iss": self.url, "aud": self.resource, "sub": "robot", "iat": now, "exp": now + 300,
            "groups": ["robots"]})
    }

    /// A token as clients get it, by client credentials for the resource (RFC 8707).
    pub(crate) async fn token(&self, scope: &str) -> String {
        let encoded = |text: &str| text.replace(':', "%3A").replace('/', "%2F").replace(' ', "+");
        let mut form = format!(
            "grant_type=client_credentials&client_id=robot&client_secret=robot-secret&resource={}",
            encoded(&self.resource)
        );
        if !scope.is_empty() {
            form += &format!("&scope={}", encoded(scope));
        }
        let request = Request::builder()
            .method("POST")
            .uri("/token")
            .header("host", self.url.trim_start_matches("https://"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .expect("a request");
        let answer = self.wire.send(request).await.expect("an answer");
        let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
        body["access_token"].as_str().unwrap_or_else(|| panic!("no token: {body}")).to_owned()
    }

    /// Ends it: its address refuses connections.
    pub(crate) fn stop(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

fn answer(output: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    output.read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}
