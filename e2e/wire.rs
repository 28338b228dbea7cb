//! Requests on the wire, for what no client library would send, and for many of them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::server::Endpoint;

/// Current protocol revision.
pub(crate) const REVISION: &str = "2026-07-28";

/// A way to one endpoint.
#[derive(Clone)]
pub(crate) struct Wire {
    host: String,
    port: u16,
    /// Address of this machine that connections come from, if it matters.
    source: Option<Ipv4Addr>,
    tls: tokio_rustls::TlsConnector,
    multiplexed: tokio_rustls::TlsConnector,
}

/// An open connection.
pub(crate) type Connection = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// An open connection of HTTP/2. Clones share it.
pub(crate) type Multiplexed = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// What went wrong before there was an answer.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Wire {
    /// To an endpoint in the cluster.
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let pem = std::fs::read(&endpoint.ca).expect("the CA's file");
        Self::to(&endpoint.url, &pem)
    }

    /// To `https://host:port`, trusting one CA.
    pub(crate) fn to(url: &str, ca_pem: &[u8]) -> Self {
        Self::build(url, ca_pem, None)
    }

    /// As [`Wire::to`], showing a certificate.
    pub(crate) fn with_certificate(url: &str, ca_pem: &[u8], certificate: &str, key: &str) -> Self {
        Self::build(url, ca_pem, Some((certificate, key)))
    }

    fn build(url: &str, ca_pem: &[u8], shown: Option<(&str, &str)>) -> Self {
        let uri: http::Uri = url.parse().expect("a URL");
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate.expect("PEM")).expect("a CA");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match shown {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
                let chain = chain.map(|certificate| certificate.expect("PEM")).collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
                config.with_client_auth_cert(chain, key).expect("a certificate and its key")
            }
        };
        let mut multiplexed = config.clone();
        multiplexed.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            host: uri.host().expect("a host").to_owned(),
            port: uri.port_u16().expect("a port"),
            source: None,
            tls: Arc::new(config).into(),
            multiplexed: Arc::new(multiplexed).into(),
        }
    }

    /// The same way, from another address of this machine.
    pub(crate) fn from(&self, source: Ipv4Addr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    async fn handshake(
        &self,
        tls: &tokio_rustls::TlsConnector,
    ) -> Result<TokioIo<TlsStream<TcpStream>>, Failure> {
        let tcp = match self.source {
            None => TcpStream::connect((self.host.as_str(), self.port)).await?,
            Some(source) => {
                let socket = TcpSocket::new_v4()?;
                socket.bind((source, 0).into())?;
                socket.connect((self.host.parse::<Ipv4Addr>()?, self.port).into()).await?
            }
        };
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        Ok(TokioIo::new(tls.connect(name, tcp).await?))
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(self.handshake(&self.tls).await?).await?;
        tokio::spawn(async move {
            // The end of a connection shows itself in the request that used it.
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// Opens a connection of HTTP/2.
    pub(crate) async fn connect_multiplexed(&self) -> Result<Multiplexed, Failure> {
        let stream = self.handshake(&self.multiplexed).await?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// `tools/list` with headers that prove who is calling, for HTTP/2 where `absolute`.
    pub(crate) fn list(&self, headers: &[(&str, &str)], absolute: bool) -> Request<Full<Bytes>> {
        let path =
            if absolute { format!("https://{}:{}/mcp", self.host, self.port) } else { "/mcp".to_owned() };
        let mut builder = Request::builder()
            .method("POST")
            .uri(path)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", REVISION)
            .header("mcp-method", "tools/list");
        if !absolute {
            builder = builder.header("host", format!("{}:{}", self.host, self.port));
        }
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": REVISION,
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}});
        builder.body(Full::from(body.to_string())).expect("a request")
    }

    /// Sends `tools/list` with such headers on a new connection.
    pub(crate) async fn list_as(&self, headers: &[(&str, &str)]) -> Result<Response<Bytes>, Failure> {
        self.send(self.list(headers, false)).await
    }

    /// A request to a path, with the Host header that the connection implies.
    pub(crate) fn request(&self, method: &str, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("{}:{}", self.host, self.port))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
    }

    /// Sends a request on a new connection and reads the whole answer.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Failure> {
        let mut connection = self.connect().await?;
        exchange(&mut connection, request).await
    }

    /// A request of the current revision.
    pub(crate) fn modern(&self, key: &str, method: &str, params: Value) -> Request<Full<Bytes>> {
        let mut params = params;
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": REVISION,
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let mut builder = self
            .request("POST", "/mcp")
            .header("x-api-key", key)
            .header("mcp-protocol-version", REVISION)
            .header("mcp-method", method);
        if let Some(name) = params["name"].as_str() {
            builder = builder.header("mcp-name", name);
        }
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        builder.body(Full::from(body.to_string())).expect("a request")
    }

    /// Calls a method on a new connection; anything but a result is a failure.
    pub(crate) async fn call_raw(&self, key: &str, method: &str, params: Value) -> Result<Value, Failure> {
        let mut connection = self.connect().await?;
        self.call_on(&mut connection, key, method, params).await
    }

    /// Calls a method on an open connection.
    pub(crate) async fn call_on(
        &self,
        connection: &mut Connection,
        key: &str,
        method: &str,
        params: Value,
    ) -> Result<Value, Failure> {
        let answer = exchange(connection, self.modern(key, method, params)).await?;
        let body: Value = serde_json::from_slice(answer.body())?;
        if answer.status().is_success() && body.get("result").is_some() {
            return Ok(body["result"].clone());
        }
        Err(format!("{}: {body}", answer.status()).into())
    }

    /// Calls a tool on a new connection.
    pub(crate) async fn tool(&self, key: &str, tool: &str, arguments: Value) -> Result<Value, Failure> {
        self.call_raw(key, "tools/call", json!({"name": tool, "arguments": arguments})).await
    }
}

/// Sends a request on an open connection and reads the whole answer.
pub(crate) async fn exchange(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, Failure> {
    connection.ready().await?;
    let (parts, body) = connection.send_request(request).await?.into_parts();
    Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
}
