//! One running endpoint with tools that count, panic or wait, and a client for it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, AuditLog, Event, Filter, Writer, query};
use crate::authenticator::{self, Authenticator, Materials};
use crate::authn::ApiKey;
use crate::authz::{Permission, Permit, Target};
use crate::index::{Policy, Subject, files};
use crate::metrics::Metrics;
use crate::server::{InternalConfig, ServeConfig, ServeParts, Times, bind, self_signed};
use crate::tools::{self, Context, InvalidArguments, Invocation, Needs, Output, Tool, ToolError};

/// The objects of the tests. Two keys, of which the second belongs to somebody else.
pub(super) const OBJECTS: &str = "
apiVersion: portcullis.dev/v1alpha1
kind: McpServer
metadata: {name: ops, namespace: agents}
spec: {network: {allowedOrigins: ['https://console.example.com']}, tools: {deny: ['forbidden*']}}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: viewer}
spec: {permissions: ['k8s:pods:list', 'k8s:deployments:scale']}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: ci}
spec: {identity: ci-bot, servers: [ops], roles: [{kind: McpRole, name: viewer}]}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpApiKey
metadata: {name: other}
spec: {identity: other-bot, servers: [ops], roles: [{kind: McpRole, name: viewer}]}
";

/// How often the tool `write` has run, in this process.
pub(super) static WRITES: AtomicUsize = AtomicUsize::new(0);

/// Calls of the tool `gate` that may end.
pub(super) static GATE: Semaphore = Semaphore::const_new(0);

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    let list = Permission::of("pods", "list");
    let tool = |name, permission, parse| Tool {
        name,
        aliases: if name == "echo" { &["echo_alias"] } else { &[] },
        title: name,
        description: "A tool of the tests.",
        needs: Needs::Permission(permission),
        idempotent: true,
        input_schema: object,
        output_schema: object,
        parse,
    };
    vec![
        tool("write", Permission::of("deployments", "scale"), |arguments| probe("write", &arguments)),
        tool("gate", Permission::of("deployments", "restart"), |arguments| probe("gate", &arguments)),
        tool("delete", Permission::of("pods", "delete"), |arguments| probe("echo", &arguments)),
        tool("echo", list, |arguments| probe("echo", &arguments)),
        tool("panic", list, |arguments| probe("panic", &arguments)),
        tool("slow", list, |arguments| probe("slow", &arguments)),
        tool("large", list, |arguments| probe("large", &arguments)),
        tool("forbidden_by_spec", list, |arguments| probe("echo", &arguments)),
        Tool {
            needs: Needs::Verb("list"),
            ..tool("resources_list", list, |arguments| {
                let real = tools::registry().iter().find(|tool| tool.name == "resources_list");
                (real.expect("it is there").parse)(arguments)
            })
        },
        tool("not_granted", Permission::of("services", "list"), |arguments| probe("echo", &arguments)),
    ]
});

fn object() -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), json!("object"))])
}

struct Probe {
    what: &'static str,
    namespace: String,
}

fn probe(
    what: &'static str,
    arguments: &Map<String, Value>,
) -> Result<Box<dyn Invocation>, InvalidArguments> {
    let namespace = arguments.get("namespace").and_then(Value::as_str);
    let namespace = namespace.ok_or_else(|| InvalidArguments("namespace is missing".to_owned()))?;
    Ok(Box::new(Probe { what, namespace: namespace.to_owned() }))
}

impl Invocation for Probe {
    fn target(&self) -> Target<'_> {
        Target::Namespace(&self.namespace)
    }

    fn resource(&self) -> String {
        "pods".to_owned()
    }

    fn run(self: Box<Self>, _: Context, _: Permit) -> BoxFuture<'static, Result<Output, ToolError>> {
        async move {
            match self.what {
                "panic" => panic!("a tool of the tests panics"),
                "slow" => tokio::time::sleep(Duration::from_secs(60)).await,
                "gate" => GATE.acquire().await.expect("never closed").forget(),
                "write" => {
                    WRITES.fetch_add(1, Ordering::SeqCst);
                }
                _ => {}
            }
            let text = if self.what == "large" { "x".repeat(2 << 20) } else { self.namespace.clone() };
            Ok(Output { text, structured: json!({"namespace": self.namespace}) })
        }
        .boxed()
    }
}

/// A running endpoint.
pub(super) struct Fixture {
    pub(super) address: SocketAddr,
    pub(super) internal: Option<SocketAddr>,
    /// Address without TLS.
    pub(super) plain: SocketAddr,
    pub(super) policy: Policy,
    pub(super) materials: Materials,
    pub(super) shakes_hands: Box<dyn Fn() -> bool>,
    pub(super) key: String,
    pub(super) other_key: String,
    registry: Registry,
    directory: tempfile::TempDir,
    database: PathBuf,
    writer: Option<Writer>,
    roots: Arc<ClientConfig>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

/// What is special about an endpoint.
#[derive(Default)]
pub(super) struct Setup<'a> {
    /// Address of the internal port, and the directory with its certificates.
    pub(super) internal: Option<(SocketAddr, &'a Path)>,
    /// Directory with the objects of another endpoint, to share its keys.
    pub(super) shared: Option<&'a Path>,
    /// A policy instead of the one of the files.
    pub(super) policy: Option<Policy>,
    /// Longest time of a call, unless it is to be short.
    pub(super) call: Option<Duration>,
    /// The cluster, unless there is none.
    pub(super) client: Option<kube::Client>,
    /// Tools instead of those of the tests.
    pub(super) tools: Option<&'static [Tool]>,
}

pub(super) async fn start() -> Fixture {
    start_with(Setup::default()).await
}

pub(super) async fn start_with(setup: Setup<'_>) -> Fixture {
    let directory = tempfile::tempdir().expect("a directory");
    let objects = setup.shared.unwrap_or(directory.path());
    fs::write(objects.join("all.yaml"), OBJECTS).expect("written");
    let loaded = files::load(objects, "portcullis-system").expect("loads");
    let text = |i: usize| fs::read_to_string(&loaded.keys[i].path).expect("a key").trim().to_owned();
    let policy =
        setup.policy.clone().unwrap_or_else(|| Policy::local(loaded.subject.snapshot(&loaded.objects)));
    let tls_dir = directory.path().join("tls");
    self_signed::ensure(&tls_dir, &[]).expect("a certificate");
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let database = directory.path().join("audit.db");
    let tools = setup.tools.unwrap_or(&TOOLS);
    let recording = audit::Settings { tools: tools::names(tools).collect(), ..audit::Settings::default() };
    let opened = AuditLog::open_with(&database, "agents/ops", metrics.clone(), recording);
    let (audit, writer) = opened.expect("a database");
    let Subject { namespace, server, .. } = loaded.subject.clone();
    let config = ServeConfig {
        namespace,
        server,
        pod_ip: setup.internal.map(|(address, _)| address.ip()),
        listen: "127.0.0.1:0".parse().expect("an address"),
        plain_listen: Some("127.0.0.1:0".parse().expect("an address")),
        tls_dir: tls_dir.clone(),
        internal: setup.internal.map(|(listen, dir)| InternalConfig { listen, tls_dir: dir.to_owned() }),
        times: Times {
            call: setup.call.unwrap_or(Duration::from_millis(500)),
            linger: Duration::ZERO,
            drain: Duration::from_secs(2),
        },
    };
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().expect("a URL")));
    let client = setup.client.unwrap_or(client.expect("a client"));
    let materials = Materials::given(Default::default());
    let settings = authenticator::Settings {
        namespace: config.namespace.clone(),
        server: config.server.clone(),
        ..authenticator::Settings::default()
    };
    let parts = ServeParts {
        authenticator: Authenticator::new(client.clone(), materials.clone(), settings),
        client,
        policy: policy.clone(),
        audit,
        metrics,
        tools,
        ready: Arc::default(),
    };
    let server = bind(config, parts).await.expect("binds");
    let shakes_hands = Box::new(server.shakes_hands());
    let plain = server.plain_address().expect("bound");
    let (address, internal) = (server.address().expect("bound"), server.internal_address());
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    Fixture {
        address,
        internal,
        plain,
        policy,
        materials,
        shakes_hands,
        key: text(0),
        other_key: text(1),
        roots: trusting(&tls_dir.join("ca.crt")),
        registry,
        directory,
        database,
        writer: Some(writer),
        stop,
        running,
    }
}

/// A client's TLS that trusts one CA.
fn trusting(ca: &Path) -> Arc<ClientConfig> {
    Arc::new(trusting_builder(ca).with_no_client_auth())
}

/// The same, before it is said which certificate the client shows.
pub(super) fn trusting_builder(
    ca: &Path,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a CA");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    config.expect("versions").with_root_certificates(roots)
}

/// Sends a request over a connection of its own. HTTP/1.1.
pub(super) async fn send(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    name: &str,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned())?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await;
    if response.is_err() {
        connection.abort();
    }
    Ok(response?)
}

/// A response, read whole.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Fixture {
    /// A POST with the headers of a client, a key and JSON.
    pub(super) fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut builder = Request::post(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            builder = builder.header(header::HOST, "localhost");
        }
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Full::new(body.into())).expect("a request")
    }

    pub(super) async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        send(self.address, self.roots.clone(), "localhost", request).await.expect("an answer")
    }

    pub(super) async fn reply(&self, request: Request<Full<Bytes>>) -> Reply {
        let response = self.open(request).await;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        Reply { status, headers, text: String::from_utf8(body.to_vec()).expect("text") }
    }

    /// A connection on which nothing has been said yet.
    pub(super) async fn connect(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(self.roots.clone());
        connector.connect(name, stream).await.expect("a handshake")
    }

    /// The answer to a message on a connection of HTTP/2.
    pub(super) async fn status_over_http_2(&self, authority: &str, body: &'static str) -> StatusCode {
        let mut tls = (*self.roots).clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = TokioIo::new(connector.connect(name, stream).await.expect("a handshake"));
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let request = Request::post(format!("https://{authority}/mcp"))
            .header("x-api-key", &self.key)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(body.as_bytes())));
        let response = sender.send_request(request.expect("a request")).await.expect("an answer");
        connection.abort();
        response.status()
    }

    /// A message on the Streamable HTTP path with the first key.
    pub(super) async fn message(&self, body: &Value) -> Reply {
        let key = format!("Bearer {}", self.key);
        self.reply(self.post("/mcp", &[("authorization", &key)], body.to_string())).await
    }

    /// A call of a tool in the handshake era.
    pub(super) async fn call(&self, tool: &str, arguments: Value) -> Reply {
        self.message(&call(tool, arguments)).await
    }

    /// Everything on record, the latest first.
    pub(super) fn events(&self) -> Vec<Event> {
        query(&self.database, &Filter { limit: 1000, ..Filter::default() }).expect("readable")
    }

    /// The latest event.
    pub(super) fn last_event(&self) -> Event {
        self.events().into_iter().next().expect("an event")
    }

    /// What a counter with its labels stands at, if it is shown at all.
    pub(super) fn counted(&self, counter: &str) -> Option<u64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(counter));
        value.map(|value| value.trim().parse().expect("a number"))
    }

    /// How often a rule of the endpoint was broken, by the counters.
    pub(super) fn violations(&self, violation_type: &str) -> u64 {
        let counter = format!("mcp_security_violations_total{{violation_type=\"{violation_type}\"}}");
        self.counted(&counter).expect("every type is shown from the start")
    }

    /// The CA of the endpoint's certificate.
    pub(super) fn ca(&self) -> PathBuf {
        self.directory.path().join("tls/ca.crt")
    }

    /// Publishes the server with another spec.
    pub(super) fn publish_server(&self, change: impl FnOnce(&mut crate::api::McpServerSpec)) {
        self.publish(|objects| change(&mut Arc::make_mut(objects.server.as_mut().expect("there")).spec));
    }

    /// Publishes the first key with another spec.
    pub(super) fn publish_key(&self, change: impl FnOnce(&mut crate::api::McpApiKeySpec)) {
        self.publish(|objects| change(&mut Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec));
    }

    /// A GET with headers.
    pub(super) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut builder = Request::get(path).header(header::HOST, "localhost");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        self.reply(builder.body(Full::default()).expect("a request")).await
    }

    /// Directory with the objects, for an endpoint that shares the keys.
    pub(super) fn objects(&self) -> &Path {
        self.directory.path()
    }

    /// Makes recording impossible.
    pub(super) async fn break_audit(&mut self) {
        self.writer.take().expect("not broken yet").close().await.expect("closes");
    }

    /// Publishes the objects again, changed.
    pub(super) fn publish(&self, change: impl FnOnce(&mut crate::index::Objects)) {
        let mut loaded = files::load(self.directory.path(), "portcullis-system").expect("loads");
        change(&mut loaded.objects);
        self.policy.publish(loaded.subject.snapshot(&loaded.objects));
    }

    /// Tells the endpoint to stop, and waits until it has.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.running).await.expect("in time").expect("ends");
    }
}

/// A call of a tool as JSON.
pub(super) fn call(tool: &str, arguments: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
}

/// A key that was never issued.
pub(super) fn unknown_key() -> String {
    ApiKey::generate([1; 10], [2; 32]).expose().to_owned()
}

/// Waits for something that another task does.
pub(super) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..200 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not happen");
}

/// The same for a check that has to wait itself.
pub(super) async fn eventually_async<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    for _ in 0..200 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not happen");
}

/// The public part of a key.
pub(super) fn key_id(key: &str) -> String {
    ApiKey::parse(key).expect("a key").id().to_owned()
}
