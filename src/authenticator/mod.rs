//! Proves credentials, with what lies outside: Secrets and ConfigMaps that are mounted, issuers, the API server.
//!
//! The rules are in `authn`; here is what they need to be asked with: files that change, keys that are fetched, answers
//! that are kept for a while, and work that must not be too much. Which identity may come in is judged afterwards, by the
//! snapshot. What the spec and the files say is parsed once for each change of them.

mod configured;
mod https;
mod issuers;
mod materials;
mod passwords;
mod places;
mod review;
#[cfg(test)]
mod tests;
mod throttle;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

pub(crate) use materials::Materials;

use crate::api::{AuthenticationSpec, names};
use crate::authn::imported::{ID_PREFIX, ImportedKey};
use crate::authn::jwt::Unverified;
use crate::authn::token::OwnTokens;
use crate::authn::{Credential, Identity, Method, Reason, Verifier, authenticate_key, certificate};
use crate::index::{Policy, Snapshot};
use configured::{Configuration, Parts};
use issuers::{Following, Times};
use passwords::Passwords;
use review::Reviews;

/// Time between two looks at what may be forgotten.
const TIDY: Duration = Duration::from_secs(60);

/// What a request shows of its caller.
pub(crate) struct Presented {
    /// The credential in its headers.
    pub(crate) credential: Result<Credential, Reason>,
    /// The certificate of its connection, and whether the handshake has verified it.
    pub(crate) certificate: Option<Certificate>,
    /// Where it comes from.
    pub(crate) client_ip: IpAddr,
    /// Whether nobody on the way could read it.
    pub(crate) is_secure: bool,
}

/// A certificate that a client showed. Its holder has the private key in every case: the handshake sees to that.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    /// The leaf.
    pub(crate) der: Arc<CertificateDer<'static>>,
    /// Whether an authority of the server's vouches for it. One that is not verified proves nothing.
    pub(crate) verified: bool,
}

impl Certificate {
    /// SHA-256 of the certificate in hexadecimal, for the record.
    pub(crate) fn fingerprint(&self) -> String {
        hex_digest(&self.der, 64)
    }
}

/// Of which server credentials are proved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Namespace of the `McpServer`.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) server: String,
    /// URL by which clients know the endpoint if the spec does not say. Default: the one inside the cluster.
    pub(crate) resource: Option<String>,
    /// File with the process's own token of the cluster, if it runs in a pod.
    pub(crate) token_file: Option<PathBuf>,
}

/// Proves credentials. One for each process; clones share everything.
#[derive(Clone)]
pub(crate) struct Authenticator {
    /// What Secrets and ConfigMaps hold.
    pub(crate) materials: Materials,
    shared: Arc<Shared>,
}

struct Shared {
    configuration: Configuration,
    reviews: Reviews,
    passwords: Passwords,
}

impl Authenticator {
    /// Proves what those materials, that cluster and the issuers of the server confirm.
    pub(crate) fn new(client: kube::Client, materials: Materials, settings: Settings) -> Self {
        Self::with_times(client, materials, settings, Times::default())
    }

    fn with_times(client: kube::Client, materials: Materials, settings: Settings, times: Times) -> Self {
        let shared = Shared {
            reviews: Reviews::new(client, settings.token_file.clone()),
            configuration: Configuration::new(settings, times),
            passwords: Passwords::new(),
        };
        Self { materials, shared: Arc::new(shared) }
    }

    /// Proves who is calling. Whether that caller may come in is for [`Snapshot::admit`].
    ///
    /// # Errors
    /// [`Reason`], for which every answer is the same.
    pub(crate) async fn prove(&self, snapshot: &Snapshot, presented: Presented) -> Result<Identity, Reason> {
        if let Ok(Credential::ApiKey(key)) = &presented.credential {
            return authenticate_key(key, snapshot.keys.get(key.id()).map(|held| &held.record));
        }
        // In a box, so that requests with a key do not carry the room for the others.
        let mut identity = Box::pin(self.prove_other(snapshot, presented)).await?;
        identity.tenant = snapshot.tenant(&identity).map(str::to_owned);
        Ok(identity)
    }

    async fn prove_other(&self, snapshot: &Snapshot, presented: Presented) -> Result<Identity, Reason> {
        let server = snapshot.server.as_ref().ok_or(Reason::MethodDisabled)?;
        let spec = &server.spec.authentication;
        let client_ip = presented.client_ip;
        match presented.credential {
            Ok(Credential::ApiKey(_)) => Err(Reason::UnknownKey),
            Ok(Credential::ImportedKey(text)) => self.prove_imported(snapshot, spec, &text, client_ip).await,
            Ok(Credential::Jwt(text)) => self.prove_token(snapshot, spec, text.expose_secret()).await,
            // A password is used elsewhere too: it is not taken from where others can read.
            Ok(Credential::Basic { .. }) if !presented.is_secure => Err(Reason::Insecure),
            Ok(Credential::Basic { user, password }) => {
                let parts = self.parts(snapshot);
                let users = parts.users.as_ref().filter(|_| spec.basic.enabled);
                let users = users.ok_or(Reason::MethodDisabled)?;
                self.shared.passwords.login(users, &user, &password, client_ip).await
            }
            Err(Reason::Missing) => match presented.certificate.filter(|shown| shown.verified) {
                Some(shown) => {
                    let certificates = &spec.client_certificates;
                    certificate::identify(&shown.der, certificates.identity, certificates.tenant)
                }
                None if spec.anonymous.unsafe_enabled => Ok(Identity::anonymous()),
                None => Err(Reason::Missing),
            },
            Err(reason) => Err(reason),
        }
    }

    async fn prove_imported(
        &self,
        snapshot: &Snapshot,
        spec: &AuthenticationSpec,
        text: &SecretString,
        client_ip: IpAddr,
    ) -> Result<Identity, Reason> {
        if !spec.api_keys.enabled {
            return Err(Reason::MethodDisabled);
        }
        let parts = self.parts(snapshot);
        let keys = parts.imported.as_ref().ok_or(Reason::UnknownKey)?;
        let identify = |key: &ImportedKey| {
            let record = &snapshot.keys.get(&key.id)?.record;
            (record.verifier == Verifier::Imported(key.fingerprint())).then(|| record.identify(&key.id))
        };
        self.shared.passwords.imported(keys, text, client_ip, identify).await
    }

    /// One method by the issuer that a token names, before anything of it is proved.
    async fn prove_token(
        &self,
        snapshot: &Snapshot,
        spec: &AuthenticationSpec,
        text: &str,
    ) -> Result<Identity, Reason> {
        let (token, now) = (Unverified::parse(text)?, Timestamp::now());
        let parts = self.parts(snapshot);
        if token.issuer() == parts.resource {
            if !spec.tokens.enabled {
                return Err(Reason::MethodDisabled);
            }
            let own = parts.own_tokens.as_ref().ok_or(Reason::IssuerUnavailable)?;
            return own.verify(&token, &parts.resource, now);
        }
        match parts.issuers.get(token.issuer()) {
            Some(issuer) => issuer.verify(&token, now).await,
            None if spec.service_accounts.enabled => {
                self.shared.reviews.verify(text, &token, &parts.reviewed_audiences, now).await
            }
            None => Err(Reason::UnknownIssuer),
        }
    }

    fn parts(&self, snapshot: &Snapshot) -> Arc<Parts> {
        self.shared.configuration.of(snapshot.server.as_ref(), self.materials.load())
    }

    /// The keys of the endpoint's own tokens.
    pub(crate) fn own_tokens(&self) -> Option<Arc<OwnTokens>> {
        self.shared.configuration.own_tokens(&self.materials.load())
    }

    /// The certificate authorities in PEM that clients are verified with.
    pub(crate) fn client_ca(&self, snapshot: &Snapshot) -> Option<Arc<[u8]>> {
        let ca = snapshot.server.as_ref()?.spec.authentication.client_certificates.ca.as_ref()?;
        self.materials.load().get(&names::material_path(ca.kind, &ca.name, &ca.key)).cloned()
    }

    /// Those of the generations of keys that would be accepted now, whatever their owner may do.
    pub(crate) fn accepted(&self, snapshot: &Snapshot, key_ids: &[String]) -> Vec<String> {
        let parts = self.parts(snapshot);
        let is_accepted = |id: &&String| match snapshot.keys.get(*id).map(|key| &key.record.verifier) {
            Some(Verifier::Sha256(_)) => true,
            Some(Verifier::Imported(digest)) => {
                let mut keys = parts.imported.iter().flat_map(|keys| keys.iter());
                keys.any(|key| key.id == **id && key.fingerprint() == *digest)
            }
            None => false,
        };
        key_ids.iter().filter(is_accepted).cloned().collect()
    }

    /// URL by which clients know the endpoint: what tokens must be for, and the issuer of its own.
    pub(crate) fn resource(&self, snapshot: &Snapshot) -> String {
        self.parts(snapshot).resource.clone()
    }

    /// Whether the password or the imported key that proved the identity, or that its token was made for, is still the one
    /// that counts. Of other credentials the snapshot knows as much, and this says yes.
    pub(crate) fn still_holds(&self, identity: &Identity) -> bool {
        let origin = identity.origin.as_ref();
        let method = origin.map_or(identity.method, |origin| origin.method);
        let id = origin.map_or(&identity.credential_id, |origin| &origin.credential_id);
        match method {
            Method::Basic => self.shared.configuration.current().users.as_ref().is_some_and(|users| {
                users.get(&identity.subject).is_some_and(|user| {
                    passwords::credential_id(&user.phc) == *id && user.groups == identity.groups
                })
            }),
            // No key that the operator made has such an id.
            Method::ApiKey if id.starts_with(ID_PREFIX) => {
                let current = self.shared.configuration.current();
                current.imported.as_ref().is_some_and(|keys| keys.iter().any(|key| key.id == *id))
            }
            _ => true,
        }
    }

    /// Follows what changes outside, until told to stop: what is mounted, and the keys of the server's issuers.
    pub(crate) async fn follow(self, policy: Policy, stop: CancellationToken) {
        tokio::join!(
            self.materials.follow(stop.clone()),
            self.follow_issuers(&policy, &stop),
            self.tidy(&stop)
        );
    }

    async fn follow_issuers(&self, policy: &Policy, stop: &CancellationToken) {
        let (mut policies, mut materials) = (policy.changes(), self.materials.changes());
        let mut following = Following::default();
        loop {
            policies.mark_unchanged();
            materials.mark_unchanged();
            let parts = self.parts(&policy.load());
            let used: Vec<_> = parts.issuers.values().filter_map(|issuer| issuer.remote().cloned()).collect();
            following.set(&self.shared.configuration.remotes, &used);
            let changed = async {
                tokio::select! {
                    changed = policies.changed() => changed.is_ok(),
                    changed = materials.changed() => changed.is_ok(),
                }
            };
            if stop.run_until_cancelled(changed).await != Some(true) {
                break;
            }
        }
        following.end().await;
    }

    async fn tidy(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(TIDY)).await.is_some() {
            self.shared.passwords.forget();
        }
    }
}

/// The first hexadecimal digits of the SHA-256.
fn hex_digest(bytes: &[u8], digits: usize) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    let mut text = HEXLOWER.encode(digest.as_ref());
    text.truncate(digits);
    text
}
