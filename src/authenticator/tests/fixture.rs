//! An issuer with TLS on this machine, tokens signed by its keys, and an authenticator that is being followed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::{AuthenticationSpec, MaterialKind, McpServer, names};
use crate::authenticator::issuers::Times;
use crate::authenticator::materials::Entries;
use crate::authenticator::{Authenticator, Materials, Presented, Settings};
use crate::authn::{Credential, Identity, Reason};
use crate::index::{Objects, Policy, Snapshot};
use crate::pki::{Authority, Purpose};

/// What tokens of the tests are for.
pub(super) const RESOURCE: &str = "https://ops-mcp.agents.svc/mcp";
/// Where the CA of the issuer is, as an entry.
pub(super) const CA: &str = "configmap/issuer/ca.crt";
pub(super) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

/// A key of an issuer.
pub(super) struct Signing {
    pub(super) kid: String,
    pair: Ed25519KeyPair,
}

impl Signing {
    pub(super) fn new(kid: &str) -> Self {
        Self { kid: kid.to_owned(), pair: Ed25519KeyPair::generate().expect("a key") }
    }

    fn jwk(&self) -> Value {
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": x})
    }

    /// A token of an issuer for the resource, good for five minutes.
    pub(super) fn token(&self, issuer: &str) -> String {
        let now = Timestamp::now().as_second();
        let claims =
            json!({"iss": issuer, "aud": RESOURCE, "sub": "ann", "iat": now, "exp": now + 300, "jti": "t1"});
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": self.kid});
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.pair.sign(message.as_bytes()).as_ref());
        format!("{message}.{signature}")
    }
}

/// A key set as JSON.
pub(super) fn key_set(keys: &[&Signing]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

/// What the issuer answers at a path.
#[derive(Clone)]
pub(super) enum Answer {
    Json(String),
    Redirect(String),
    Status(StatusCode),
    /// After this time.
    Slow(Duration),
}

/// A running issuer.
pub(super) struct Issuer {
    pub(super) url: String,
    pub(super) ca: String,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    key_sets: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(super) const DISCOVERY: &str = "/.well-known/openid-configuration";
pub(super) const KEYS: &str = "/keys";

impl Issuer {
    /// Starts one that publishes these keys.
    pub(super) async fn start(keys: &[&Signing]) -> Self {
        let now = Timestamp::now();
        let (authority, own) =
            Authority::generate("issuer", KeyPair::generate().expect("a key"), now).expect("an authority");
        let purpose = Purpose::Endpoint { names: vec!["localhost".to_owned()] };
        let leaf = authority.issue(&purpose, &KeyPair::generate().expect("a key"), now).expect("a leaf");
        let chain = vec![CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).expect("PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("fits");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
        let (answers, key_sets) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::<AtomicUsize>::default());
        let serving = tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            answers.clone(),
            key_sets.clone(),
        ));
        let issuer = Self { url, ca: own.certificate_pem, answers, key_sets, serving };
        issuer.discovery(&issuer.url, &format!("{}{KEYS}", issuer.url));
        issuer.publish(keys);
        issuer
    }

    /// Publishes these keys from now on.
    pub(super) fn publish(&self, keys: &[&Signing]) {
        self.answer(KEYS, Answer::Json(key_set(keys)));
    }

    /// Publishes this discovery document from now on.
    pub(super) fn discovery(&self, issuer: &str, jwks_uri: &str) {
        self.answer(DISCOVERY, Answer::Json(json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string()));
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().expect("not poisoned").insert(path.to_owned(), answer);
    }

    /// How often the key set was fetched.
    pub(super) fn fetches(&self) -> usize {
        self.key_sets.load(Ordering::SeqCst)
    }

    /// The entries that a spec refers to.
    pub(super) fn entries(&self) -> Entries {
        Entries::from([(CA.to_owned(), self.ca.as_bytes().into())])
    }

    /// A spec that trusts the issuer, on this machine.
    pub(super) fn spec(&self) -> Value {
        json!({"issuer": self.url, "allowPrivateAddresses": true, "ca": {"name": "issuer", "key": "ca.crt"}})
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    key_sets: Arc<AtomicUsize>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, answers, key_sets) = (tls.clone(), answers.clone(), key_sets.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request: Request<Incoming>| {
                let path = request.uri().path().to_owned();
                if path == KEYS {
                    key_sets.fetch_add(1, Ordering::SeqCst);
                }
                let answer = answers.lock().expect("not poisoned").get(&path).cloned();
                async move { Ok::<_, Infallible>(response(answer).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn response(answer: Option<Answer>) -> Response<Full<Bytes>> {
    let (status, location, body) = match answer {
        Some(Answer::Json(text)) => (StatusCode::OK, None, text),
        Some(Answer::Redirect(to)) => (StatusCode::FOUND, Some(to), String::new()),
        Some(Answer::Status(status)) => (status, None, String::new()),
        Some(Answer::Slow(time)) => {
            tokio::time::sleep(time).await;
            (StatusCode::OK, None, "{}".to_owned())
        }
        None => (StatusCode::NOT_FOUND, None, String::new()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    if let Some(to) = location {
        response.headers_mut().insert("location", to.parse().expect("a header"));
    }
    response
}

/// An authenticator that is followed, and its policy.
pub(super) struct Fixture {
    pub(super) authenticator: Authenticator,
    pub(super) policy: Policy,
    stop: CancellationToken,
    following: JoinHandle<()>,
}

/// Times in which a test does not have to wait, but for those it is about.
pub(super) fn times() -> Times {
    Times { retry: Duration::from_millis(50), ..Times::default() }
}

/// The snapshot of a server with this `spec.authentication`.
pub(super) fn snapshot(authentication: &Value) -> Snapshot {
    let spec: AuthenticationSpec = serde_json::from_value(authentication.clone()).expect("a spec");
    let mut server: McpServer = serde_json::from_value(json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"name": "ops", "namespace": "agents"}, "spec": {},
    }))
    .expect("a server");
    server.spec.authentication = spec;
    let objects = Objects { server: Some(Arc::new(server)), ..Objects::default() };
    Snapshot::build(&objects, "agents", "ops", "portcullis-system")
}

/// Starts to follow a server with this `spec.authentication` and these entries.
pub(super) fn follow(authentication: &Value, entries: Entries, times: Times) -> Fixture {
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().expect("a URL")));
    let settings = Settings { namespace: "agents".into(), server: "ops".into(), ..Settings::default() };
    let client = client.expect("a client");
    let authenticator = Authenticator::with_times(client, Materials::given(entries), settings, times);
    let (policy, stop) = (Policy::local(snapshot(authentication)), CancellationToken::new());
    let following = tokio::spawn(authenticator.clone().follow(policy.clone(), stop.clone()));
    Fixture { authenticator, policy, stop, following }
}

impl Fixture {
    /// What is proved of a credential from somewhere.
    pub(super) async fn prove_from(
        &self,
        client_ip: IpAddr,
        credential: Result<Credential, Reason>,
    ) -> Result<Identity, Reason> {
        let presented = Presented { credential, certificate: None, client_ip, is_secure: true };
        self.authenticator.prove(&self.policy.load(), presented).await
    }

    /// What is proved of a token.
    pub(super) async fn token(&self, token: &str) -> Result<Identity, Reason> {
        self.prove_from(HERE, Ok(Credential::Jwt(SecretString::from(token)))).await
    }

    /// Stops, and waits until every task has ended.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.following).await.expect("in time").expect("ends");
    }
}

/// Path of an entry of a Secret.
pub(super) fn secret(name: &str, key: &str) -> String {
    names::material_path(MaterialKind::Secret, name, key)
}
