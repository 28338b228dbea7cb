//! TLS for clients: the endpoint's certificate, and what is asked of theirs.
//!
//! Made anew for the first handshake after the certificate, the authority of the clients or the mode has changed; open
//! connections live on. Where clients must be verified and their authority cannot be used, there is no handshake at all.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use tracing::{error, info};

use super::listener::Handshake;
use super::tls::{Hot, LoadTls, alpn, certificates, provider};
use crate::api::ClientCertificateMode;

/// What is asked of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asking {
    /// Whether a certificate is asked for, needed, verified.
    pub(super) mode: ClientCertificateMode,
    /// Authorities in PEM that certificates are verified with.
    pub(super) authorities: Option<Arc<[u8]>>,
}

impl Asking {
    /// Whether certificates are verified.
    fn verifies(&self) -> bool {
        self.mode.verifies()
    }
}

/// TLS for clients.
pub(super) struct ClientTls {
    leaf: Arc<Hot<CertifiedKey>>,
    asking: Box<dyn Fn() -> Asking + Send + Sync>,
    made: Mutex<Option<Made>>,
}

/// What was made last, and of what.
struct Made {
    leaf: Arc<CertifiedKey>,
    asking: Asking,
    handshake: Option<Handshake>,
}

impl ClientTls {
    /// Serves that certificate and asks that of clients, each as it is at the time of a handshake.
    pub(super) fn new(
        leaf: Arc<Hot<CertifiedKey>>,
        asking: impl Fn() -> Asking + Send + Sync + 'static,
    ) -> Self {
        Self { leaf, asking: Box::new(asking), made: Mutex::default() }
    }

    /// The next handshake. None: clients must be verified, and there is nothing to verify them with.
    pub(super) fn current(&self) -> Option<Handshake> {
        let (leaf, asking) = (self.leaf.current(), (self.asking)());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|m| Arc::ptr_eq(&m.leaf, &leaf) && m.asking == asking) {
            return made.handshake.clone();
        }
        let handshake = match handshake(leaf.clone(), &asking) {
            Ok(handshake) => {
                info!(mode = ?asking.mode, "TLS for clients is in use");
                Some(handshake)
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                error!(mode = ?asking.mode, error, "clients cannot be verified: every handshake is refused");
                None
            }
        };
        *made = Some(Made { leaf, asking, handshake: handshake.clone() });
        handshake
    }
}

fn handshake(leaf: Arc<CertifiedKey>, asking: &Asking) -> Result<Handshake, LoadTls> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(LoadTls::Unusable)?;
    let builder = match verifier(asking)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf)));
    tls.alpn_protocols = alpn();
    if asking.mode != ClientCertificateMode::None {
        // A resumed session would bring its certificate along without being verified again.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
    }
    Ok(Handshake { tls: Arc::new(tls), verifies: asking.verifies() })
}

fn verifier(asking: &Asking) -> Result<Option<Arc<dyn ClientCertVerifier>>, LoadTls> {
    Ok(match asking.mode {
        ClientCertificateMode::None => None,
        ClientCertificateMode::Request => Some(Arc::new(AnyCertificate::new(false))),
        ClientCertificateMode::RequireAny => Some(Arc::new(AnyCertificate::new(true))),
        ClientCertificateMode::VerifyIfGiven | ClientCertificateMode::RequireAndVerify => {
            let authorities = asking.authorities.as_deref().ok_or(LoadTls::NoClientAuthorities)?;
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authorities, "the authority of client certificates")? {
                roots.add(certificate).map_err(LoadTls::Unusable)?;
            }
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            let optional = asking.mode == ClientCertificateMode::VerifyIfGiven;
            let builder = if optional { builder.allow_unauthenticated() } else { builder };
            Some(builder.build().map_err(LoadTls::Verifier)?)
        }
    })
}

/// Takes any certificate whose private key the client has. It proves nothing else.
#[derive(Debug)]
struct AnyCertificate {
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyCertificate {
    fn new(mandatory: bool) -> Self {
        Self { mandatory, algorithms: provider().signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
