//! A CA of the tests, leaves of it, and clients that show them to the internal port.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use super::fixture::send;
use crate::api::names;

/// An internal CA, and leaves of it in directories.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA"))
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn leaf(&self, uri: &str) -> tempfile::TempDir {
        self.leaf_of(uri, None)
    }

    /// A leaf of a member of an organization.
    pub(super) fn leaf_of(&self, uri: &str, organization: Option<&str>) -> tempfile::TempDir {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![names::internal_host("agents", "ops")]).expect("names");
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a URI")));
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.0).expect("a leaf");
        let directory = tempfile::tempdir().expect("a directory");
        let files = [("ca.crt", self.0.pem()), ("tls.crt", leaf.pem()), ("tls.key", key.serialize_pem())];
        for (name, content) in files {
            fs::write(directory.path().join(name), content).expect("written");
        }
        directory
    }

    pub(super) fn client(&self, leaf: &Path) -> Arc<ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(leaf.join("ca.crt")).expect("a CA")).expect("a CA");
        let chain = vec![CertificateDer::from_pem_file(leaf.join("tls.crt")).expect("a leaf")];
        let key = PrivateKeyDer::from_pem_file(leaf.join("tls.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots);
        Arc::new(config.with_client_auth_cert(chain, key).expect("fits"))
    }
}

pub(super) fn own_uri() -> String {
    names::internal_uri("agents", "ops")
}

pub(super) async fn ask(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    path: &str,
    body: &Value,
) -> Option<(StatusCode, Value)> {
    let request =
        Request::post(path).header(header::HOST, "x").header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Full::new(Bytes::from(body.to_string()))).expect("a request");
    let response = send(address, tls, &names::internal_host("agents", "ops"), request).await.ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, serde_json::from_slice(&body).unwrap_or_default()))
}
