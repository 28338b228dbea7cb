//! TLS of both listeners, from mounted files, and the identity of peers on the internal one.
//!
//! A Secret volume swaps its files under the process: the content decides, not the time. New handshakes take the new
//! certificate; open connections live on. Files that do not fit together are not used, and tried again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::extensions::GeneralName;

use crate::api::names;

/// Time between two looks at the files.
const POLL: Duration = Duration::from_secs(2);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadTls {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{file} holds no usable PEM")]
    Pem {
        /// Name of the file.
        file: &'static str,
    },
    /// Certificate, key and CA do not fit together.
    #[error("use certificate and key")]
    Unusable(#[source] rustls::Error),
    /// Clients must be verified, and what they are verified with is not there.
    #[error("the authority of client certificates is not there")]
    NoClientAuthorities,
    /// The CA cannot be used to know peers by.
    #[error("use authority for client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Content of the files of one directory.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Files {
    certificate: Vec<u8>,
    /// PEM of the private key.
    pub(super) key: Vec<u8>,
    ca: Option<Vec<u8>>,
}

impl Files {
    fn read(directory: &Path, with_ca: bool) -> Result<Self, LoadTls> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| LoadTls::Read { path, source })
        };
        let ca = if with_ca { Some(read("ca.crt")?) } else { None };
        Ok(Self { certificate: read("tls.crt")?, key: read("tls.key")?, ca })
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, LoadTls> {
        certificates(&self.certificate, "tls.crt")
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, LoadTls> {
        PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| LoadTls::Pem { file: "tls.key" })
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, LoadTls> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(self.ca.as_deref().unwrap_or_default(), "ca.crt")? {
            roots.add(certificate).map_err(LoadTls::Unusable)?;
        }
        Ok(Arc::new(roots))
    }
}

/// The certificates of a PEM, at least one.
pub(super) fn certificates(pem: &[u8], file: &'static str) -> Result<Vec<CertificateDer<'static>>, LoadTls> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or(LoadTls::Pem { file })
}

/// Makes something of the files of a directory.
type Build<T> = Box<dyn Fn(&Files) -> Result<T, LoadTls> + Send + Sync>;

/// What is made of the files of a directory, made anew when they change.
pub(super) struct Hot<T> {
    directory: PathBuf,
    with_ca: bool,
    build: Build<T>,
    tried: Mutex<Files>,
    current: ArcSwap<T>,
}

impl<T: Send + Sync> Hot<T> {
    /// Reads the directory for the first time.
    pub(super) fn open(
        directory: &Path,
        with_ca: bool,
        build: impl Fn(&Files) -> Result<T, LoadTls> + Send + Sync + 'static,
    ) -> Result<Self, LoadTls> {
        let files = Files::read(directory, with_ca)?;
        let current = ArcSwap::from_pointee(build(&files)?);
        let (directory, build) = (directory.to_owned(), Box::new(build));
        Ok(Self { directory, with_ca, build, tried: Mutex::new(files), current })
    }

    /// What is in use now.
    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Looks at the files, and says whether something new is in use.
    pub(super) fn reload(&self) -> Result<bool, LoadTls> {
        let files = Files::read(&self.directory, self.with_ca)?;
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if *tried == files {
            return Ok(false);
        }
        let built = (self.build)(&files);
        *tried = files;
        self.current.store(Arc::new(built?));
        Ok(true)
    }

    /// Looks at the files until told to stop.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            match self.reload() {
                Ok(false) => {}
                Ok(true) => info!(directory = %self.directory.display(), "certificate reloaded"),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    warn!(directory = %self.directory.display(), error, "certificate not reloaded");
                }
            }
        }
    }
}

/// The cryptography of every listener.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The versions of HTTP that are spoken.
pub(super) fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

/// The certificate of the endpoint.
pub(super) fn leaf(files: &Files) -> Result<CertifiedKey, LoadTls> {
    CertifiedKey::from_der(files.chain()?, files.private_key()?, &provider()).map_err(LoadTls::Unusable)
}

/// Both sides of the internal port: TLS 1.3 with certificates of the internal CA.
pub(super) struct Internal {
    /// For the listener.
    pub(super) server: Arc<ServerConfig>,
    /// For connections to other replicas.
    pub(super) client: Arc<ClientConfig>,
}

impl Internal {
    /// Makes both from the leaf and the CA.
    pub(super) fn build(files: &Files) -> Result<Self, LoadTls> {
        let roots = files.roots()?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(LoadTls::Verifier)?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(LoadTls::Unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(files.chain()?, files.private_key()?)
            .map_err(LoadTls::Unusable)?;
        server.alpn_protocols = alpn();
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(LoadTls::Unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(files.chain()?, files.private_key()?)
            .map_err(LoadTls::Unusable)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Anybody; only what the request carries proves more.
    Client,
    /// The operator.
    Operator,
    /// A replica of this very server.
    Replica,
}

/// Knows a peer of the internal port by the URI in its certificate, which the handshake has verified.
pub(super) fn identify(certificate: &CertificateDer<'_>, namespace: &str, server: &str) -> Option<Peer> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let own = names::internal_uri(namespace, server);
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) if *uri == names::OPERATOR_URI => Some(Peer::Operator),
        GeneralName::URI(uri) if *uri == own => Some(Peer::Replica),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::server::self_signed;

    fn open(directory: &Path) -> Hot<Vec<u8>> {
        let build = |files: &Files| leaf(files).map(|_| files.certificate.clone());
        Hot::open(directory, false, build).expect("usable")
    }

    #[test]
    fn a_swapped_volume_is_used_and_files_that_do_not_fit_are_not() {
        let (mount, next) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        self_signed::ensure(mount.path(), &[]).expect("made");
        self_signed::ensure(next.path(), &[]).expect("made");
        let hot = open(mount.path());
        let first = hot.current();
        assert!(!hot.reload().expect("readable"), "nothing has changed");
        let copy = |name: &str| fs::copy(next.path().join(name), mount.path().join(name)).expect("copied");
        copy("tls.crt");
        assert!(matches!(hot.reload(), Err(LoadTls::Unusable(_))), "the key is still the old one");
        assert_eq!(hot.current(), first);
        copy("tls.key");
        assert!(hot.reload().expect("usable"));
        assert_ne!(hot.current(), first);
    }

    #[test]
    fn an_error_names_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        self_signed::ensure(directory.path(), &[]).expect("made");
        fs::write(directory.path().join("tls.crt"), "").expect("written");
        let error = Hot::open(directory.path(), false, leaf).err().expect("refused");
        assert_eq!(error.to_string(), "tls.crt holds no usable PEM");
        fs::remove_file(directory.path().join("tls.key")).expect("removed");
        let error = Hot::open(directory.path(), false, leaf).err().expect("refused");
        assert!(error.to_string().ends_with("tls.key"), "{error}");
    }
}
