use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use serde_json::json;
use tokio::net::TcpStream;

use super::authority::*;
use super::fixture::*;
use crate::api::{CertificateIdentity, CertificateTenant, ClientCertificateMode, MaterialReference, names};
use crate::authenticator::Certificate;

const CA: &str = "ca.crt";

fn reference() -> MaterialReference {
    MaterialReference { name: "clients".into(), key: CA.into(), kind: Default::default() }
}

/// What the endpoint verifies clients with, from now on.
fn set_authorities(fixture: &Fixture, pem: &str) {
    let reference = reference();
    let path = names::material_path(reference.kind, &reference.name, &reference.key);
    fixture.materials.set([(path, Arc::from(pem.as_bytes()))].into());
}

fn ask_for(fixture: &Fixture, mode: ClientCertificateMode) {
    fixture.publish_server(|spec| {
        spec.authentication.client_certificates.mode = mode;
        spec.authentication.client_certificates.ca = Some(reference());
    });
}

fn without(fixture: &Fixture) -> Arc<ClientConfig> {
    Arc::new(trusting_builder(&fixture.ca()).with_no_client_auth())
}

fn leaf_of(directory: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = vec![CertificateDer::from_pem_file(directory.join("tls.crt")).expect("a leaf")];
    (chain, PrivateKeyDer::from_pem_file(directory.join("tls.key")).expect("a key"))
}

fn with(fixture: &Fixture, leaf: &Path) -> Arc<ClientConfig> {
    let (chain, key) = leaf_of(leaf);
    Arc::new(trusting_builder(&fixture.ca()).with_client_auth_cert(chain, key).expect("fits"))
}

fn ping(fixture: &Fixture) -> Request<Full<Bytes>> {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    fixture.post("/mcp", &[("x-api-key", &fixture.key)], body)
}

/// The status, or none where the handshake failed.
async fn answered(fixture: &Fixture, tls: Arc<ClientConfig>) -> Option<StatusCode> {
    let response = send(fixture.address, tls, "localhost", ping(fixture)).await;
    response.ok().map(|response| response.status())
}

#[tokio::test]
async fn each_mode_asks_of_clients_what_it_says() {
    let fixture = start().await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (known, unknown) = (authority.leaf("spiffe://known"), stranger.leaf("spiffe://unknown"));
    set_authorities(&fixture, &authority.pem());
    use ClientCertificateMode::{None, Request, RequireAndVerify, RequireAny, VerifyIfGiven};
    for (mode, nothing, any, valid) in [
        (None, true, true, true),
        (Request, true, true, true),
        (RequireAny, false, true, true),
        (VerifyIfGiven, true, false, true),
        (RequireAndVerify, false, false, true),
    ] {
        ask_for(&fixture, mode);
        let comes_in = async |tls| answered(&fixture, tls).await == Some(StatusCode::OK);
        assert_eq!(comes_in(without(&fixture)).await, nothing, "{mode:?} without a certificate");
        assert_eq!(comes_in(with(&fixture, unknown.path())).await, any, "{mode:?} with any certificate");
        assert_eq!(comes_in(with(&fixture, known.path())).await, valid, "{mode:?} with a valid certificate");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn authorities_are_swapped_under_open_connections_and_nobody_comes_in_without() {
    let fixture = start().await;
    let (first, second) = (Authority::new(), Authority::new());
    let (of_first, of_second) = (first.leaf("spiffe://a"), second.leaf("spiffe://b"));
    set_authorities(&fixture, &first.pem());
    ask_for(&fixture, ClientCertificateMode::RequireAndVerify);
    let stream = TcpStream::connect(fixture.address).await.expect("connects");
    let connector = tokio_rustls::TlsConnector::from(with(&fixture, of_first.path()));
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = connector.connect(name, stream).await.expect("a handshake");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    let connection = tokio::spawn(connection);
    let mut open = async || {
        let response = sender.send_request(ping(&fixture)).await.expect("an answer");
        let status = response.status();
        response.into_body().collect().await.expect("a body");
        status
    };
    assert_eq!(open().await, StatusCode::OK);
    set_authorities(&fixture, &second.pem());
    assert_eq!(open().await, StatusCode::OK, "the connection lives on");
    assert_eq!(answered(&fixture, with(&fixture, of_first.path())).await, None);
    assert_eq!(answered(&fixture, with(&fixture, of_second.path())).await, Some(StatusCode::OK));
    for broken in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        set_authorities(&fixture, broken);
        assert!(!(fixture.shakes_hands)());
        for tls in [without(&fixture), with(&fixture, of_second.path())] {
            assert_eq!(answered(&fixture, tls).await, None, "nobody can be verified");
        }
    }
    fixture.materials.set(Default::default());
    assert!(!(fixture.shakes_hands)());
    set_authorities(&fixture, &format!("{}{}", first.pem(), second.pem()));
    assert!((fixture.shakes_hands)());
    for leaf in [&of_first, &of_second] {
        assert_eq!(answered(&fixture, with(&fixture, leaf.path())).await, Some(StatusCode::OK));
    }
    connection.abort();
    fixture.stop().await;
}

#[tokio::test]
async fn a_connection_from_before_certificates_were_needed_is_of_no_use() {
    let fixture = start().await;
    let stream = TokioIo::new(fixture.connect().await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("HTTP");
    let connection = tokio::spawn(connection);
    let mut ask = async || sender.send_request(ping(&fixture)).await.expect("an answer").status();
    assert_eq!(ask().await, StatusCode::OK);
    ask_for(&fixture, ClientCertificateMode::RequireAny);
    assert_eq!(ask().await, StatusCode::UNAUTHORIZED);
    assert_eq!(fixture.last_event().reason.as_deref(), Some("certificate_required"));
    connection.abort();
    fixture.stop().await;
}

/// Who a client without any other credential is.
async fn who(fixture: &Fixture, tls: Arc<ClientConfig>) -> (StatusCode, serde_json::Value) {
    let request = Request::get("/auth/whoami").header("host", "localhost").body(Full::default());
    let response = send(fixture.address, tls, "localhost", request.expect("a request")).await;
    let response = response.expect("an answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn a_verified_certificate_names_its_caller_and_another_is_on_record_only() {
    let fixture = start().await;
    let authority = Authority::new();
    let leaf = authority.leaf("spiffe://cluster/agent");
    set_authorities(&fixture, &authority.pem());
    let ask_for_uri = |mode| {
        fixture.publish_server(|spec| {
            let certificates = &mut spec.authentication.client_certificates;
            certificates.mode = mode;
            certificates.ca = Some(reference());
            certificates.identity = CertificateIdentity::Uri;
        });
    };
    ask_for_uri(ClientCertificateMode::VerifyIfGiven);
    let (status, told) = who(&fixture, with(&fixture, leaf.path())).await;
    assert_eq!((status, &told["subject"]), (StatusCode::OK, &json!("spiffe://cluster/agent")));
    assert_eq!((&told["method"], &told["issuer"]), (&json!("certificate"), &json!("certificate")));
    assert_eq!(who(&fixture, without(&fixture)).await.0, StatusCode::UNAUTHORIZED);
    let fingerprint = fingerprint_of(leaf.path());
    for mode in [ClientCertificateMode::Request, ClientCertificateMode::RequireAny] {
        ask_for_uri(mode);
        assert_eq!(who(&fixture, with(&fixture, leaf.path())).await.0, StatusCode::UNAUTHORIZED, "{mode:?}");
        let event = fixture.last_event();
        assert!(event.metadata.values().any(|value| value.contains(&fingerprint)), "{event:?}");
        assert_eq!(answered(&fixture, with(&fixture, leaf.path())).await, Some(StatusCode::OK));
        let event = fixture.last_event();
        assert_eq!(event.user, "ci-bot");
        assert!(event.metadata.values().any(|value| value.contains(&fingerprint)), "{event:?}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_certificate_brings_its_tenant_where_the_server_asks_for_one() {
    let fixture = start().await;
    let authority = Authority::new();
    let (red, without) = (authority.leaf_of("spiffe://a", Some("red")), authority.leaf("spiffe://b"));
    set_authorities(&fixture, &authority.pem());
    let ask_for_tenant = |tenant| {
        fixture.publish_server(|spec| {
            let certificates = &mut spec.authentication.client_certificates;
            certificates.mode = ClientCertificateMode::RequireAndVerify;
            certificates.ca = Some(reference());
            certificates.identity = CertificateIdentity::Uri;
            certificates.tenant = tenant;
        });
    };
    ask_for_tenant(Some(CertificateTenant::Organization));
    let (status, told) = who(&fixture, with(&fixture, red.path())).await;
    assert_eq!((status, &told["tenant"]), (StatusCode::OK, &json!("red")));
    assert_eq!(fixture.last_event().metadata["tenant"], "red");
    assert_eq!(who(&fixture, with(&fixture, without.path())).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(fixture.last_event().reason.as_deref(), Some("certificate_tenant"));
    ask_for_tenant(None);
    assert_eq!(who(&fixture, with(&fixture, without.path())).await.0, StatusCode::OK);
    assert_eq!(who(&fixture, with(&fixture, red.path())).await.1["tenant"], json!(null));
    fixture.stop().await;
}

fn fingerprint_of(leaf: &Path) -> String {
    let (chain, _) = leaf_of(leaf);
    Certificate { der: Arc::new(chain[0].clone()), verified: false }.fingerprint()
}

/// Shows a certificate that it does not have the key of.
#[derive(Debug)]
struct Thief(Arc<CertifiedKey>);

impl ResolvesClientCert for Thief {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused_in_every_mode() {
    let fixture = start().await;
    let authority = Authority::new();
    set_authorities(&fixture, &authority.pem());
    let (stolen, own) = (authority.leaf("spiffe://a"), authority.leaf("spiffe://b"));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider.key_provider.load_private_key(leaf_of(own.path()).1).expect("a key");
    let thief = Thief(Arc::new(CertifiedKey::new(leaf_of(stolen.path()).0, key)));
    let tls = trusting_builder(&fixture.ca()).with_client_cert_resolver(Arc::new(thief));
    let tls = Arc::new(tls);
    use ClientCertificateMode::{Request, RequireAndVerify, RequireAny, VerifyIfGiven};
    for mode in [Request, RequireAny, VerifyIfGiven, RequireAndVerify] {
        ask_for(&fixture, mode);
        assert_eq!(answered(&fixture, tls.clone()).await, None, "{mode:?}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_handshake_with_certificates_is_always_a_whole_one() {
    let fixture = start().await;
    let authority = Authority::new();
    set_authorities(&fixture, &authority.pem());
    let leaf = authority.leaf("spiffe://a");
    let kinds = async |mode| {
        ask_for(&fixture, mode);
        let mut tls = (*with(&fixture, leaf.path())).clone();
        tls.resumption = Resumption::in_memory_sessions(8);
        let tls = Arc::new(tls);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let stream = TcpStream::connect(fixture.address).await.expect("connects");
            let connector = tokio_rustls::TlsConnector::from(tls.clone());
            let name = ServerName::try_from("localhost").expect("a name");
            let stream = connector.connect(name, stream).await.expect("a handshake");
            kinds.push(stream.get_ref().1.handshake_kind());
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
            let connection = tokio::spawn(connection);
            assert_eq!(
                sender.send_request(ping(&fixture)).await.expect("an answer").status(),
                StatusCode::OK
            );
            connection.abort();
        }
        kinds
    };
    let plain = kinds(ClientCertificateMode::None).await;
    assert_eq!(plain[1], Some(rustls::HandshakeKind::Resumed), "this client resumes where it can");
    for mode in [ClientCertificateMode::Request, ClientCertificateMode::RequireAndVerify] {
        assert_eq!(kinds(mode).await, [Some(rustls::HandshakeKind::Full); 2], "{mode:?}");
    }
    fixture.stop().await;
}
