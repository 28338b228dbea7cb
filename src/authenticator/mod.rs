//! Proves credentials, with what lies outside: Secrets and ConfigMaps that are mounted, issuers, the API server.
//!
//! The rules are in `authn`; here is what they need to be asked with: files that change, keys that are fetched, answers
//! that are kept for a while, and work that must not be too much. Which identity may come in is judged afterwards, by the
//! snapshot.

mod materials;

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

pub(crate) use materials::Materials;

use crate::authn::{Credential, Identity, Reason, authenticate_key};
use crate::index::Snapshot;

/// What a request shows of its caller.
pub(crate) struct Presented {
    /// The credential in its headers.
    pub(crate) credential: Result<Credential, Reason>,
    /// The certificate of its connection, and whether the handshake has verified it.
    pub(crate) certificate: Option<Arc<CertificateDer<'static>>>,
    /// Where it comes from.
    pub(crate) client_ip: IpAddr,
}

/// Proves credentials. One for each process.
pub(crate) struct Authenticator {
    /// What Secrets and ConfigMaps hold.
    pub(crate) materials: Materials,
    client: kube::Client,
}

impl Authenticator {
    /// Proves what those materials, that cluster and the issuers of the server confirm.
    pub(crate) fn new(client: kube::Client, materials: Materials) -> Self {
        Self { materials, client }
    }

    /// Proves who is calling. Whether that caller may come in is for [`Snapshot::admit`].
    ///
    /// # Errors
    /// [`Reason`], for which every answer is the same.
    pub(crate) async fn prove(&self, snapshot: &Snapshot, presented: Presented) -> Result<Identity, Reason> {
        let Credential::ApiKey(key) = presented.credential? else {
            return Err(Reason::MethodDisabled);
        };
        authenticate_key(&key, snapshot.keys.get(key.id()).map(|held| &held.record))
    }
}
