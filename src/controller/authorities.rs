//! The two authorities, kept in Secrets of the operator's namespace. Whoever makes a Secret first wins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use rcgen::KeyPair;

use crate::api::names;
use crate::k8s::apply::text;
use crate::pki::{self, Authority, Issued};

use super::Context;

/// Secret of the authority that clients trust.
const ENDPOINT: &str = "portcullis-ca";
/// Secret of the authority that joins operator and replicas.
const INTERNAL: &str = "portcullis-internal-ca";

/// The authorities in use.
#[derive(Default)]
pub(super) struct Authorities {
    endpoint: ArcSwapOption<Pair>,
    internal: ArcSwapOption<Pair>,
}

/// An authority, and its Secret's content to restore it from.
struct Pair {
    authority: Arc<Authority>,
    data: BTreeMap<String, ByteString>,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to read Secret {0:?}: {1}")]
    Read(&'static str, String),
    #[error("failed to create Secret {0:?}: {1}")]
    Create(&'static str, String),
    #[error("Secret {0:?} holds no authority")]
    Parse(&'static str, #[source] pki::Error),
    #[error("failed to make the authority {0:?}")]
    Make(&'static str, #[source] pki::Error),
}

impl Authorities {
    /// Signs what clients see. `None` until it was loaded.
    pub(super) fn endpoint(&self) -> Option<Arc<Authority>> {
        self.endpoint.load().as_ref().map(|pair| pair.authority.clone())
    }

    /// Signs what joins operator and replicas. `None` until it was loaded.
    pub(super) fn internal(&self) -> Option<Arc<Authority>> {
        self.internal.load().as_ref().map(|pair| pair.authority.clone())
    }
}

/// Loads both authorities, or makes them. Tries each until it succeeds: without them no certificate can be issued.
pub(super) async fn load(context: &Context) {
    let authorities = &context.authorities;
    tokio::join!(
        load_one(context, ENDPOINT, &authorities.endpoint),
        load_one(context, INTERNAL, &authorities.internal)
    );
}

async fn load_one(context: &Context, name: &'static str, slot: &ArcSwapOption<Pair>) {
    while slot.load().is_none() {
        match read_or_make(context, name, None).await {
            Ok(pair) => slot.store(Some(Arc::new(pair))),
            Err(error) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "Authority not loaded");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

/// Looks at both Secrets again: one that is gone is restored, one that was replaced is used from now on.
pub(super) async fn check(context: &Context) {
    for (name, slot) in [(ENDPOINT, &context.authorities.endpoint), (INTERNAL, &context.authorities.internal)]
    {
        let before = slot.load_full();
        match read_or_make(context, name, before.as_deref()).await {
            Ok(pair) => {
                if before.is_none_or(|before| before.data != pair.data) {
                    tracing::info!(secret = name, "Authority replaced");
                    slot.store(Some(Arc::new(pair)));
                    context.cluster.look_at_servers(|_| true);
                }
            }
            Err(error) => tracing::error!(%error, "Authority not checked"),
        }
    }
}

async fn read_or_make(context: &Context, name: &'static str, known: Option<&Pair>) -> Result<Pair, Error> {
    let api = Api::<Secret>::namespaced(context.client.clone(), &context.config.namespace);
    let read = async || api.get_opt(name).await.map_err(|error| Error::Read(name, text(&error)));
    if let Some(secret) = read().await? {
        return pair(name, secret);
    }
    let data = match known {
        Some(known) => known.data.clone(),
        None => make(name)?,
    };
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                names::FIELD_MANAGER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(secret) => pair(name, secret),
        // Somebody else was first: theirs is used.
        Err(kube::Error::Api(status)) if status.is_already_exists() => match read().await? {
            Some(secret) => pair(name, secret),
            None => Err(Error::Read(name, "it is gone again".to_owned())),
        },
        Err(error) => Err(Error::Create(name, text(&error))),
    }
}

fn make(name: &'static str) -> Result<BTreeMap<String, ByteString>, Error> {
    let key = KeyPair::generate().map_err(|error| Error::Make(name, pki::Error::Make(error)))?;
    let common_name = if name == ENDPOINT { "Portcullis CA" } else { "Portcullis internal CA" };
    let (_, Issued { certificate_pem, key_pem }) =
        Authority::generate(common_name, key, Timestamp::now()).map_err(|error| Error::Make(name, error))?;
    Ok(BTreeMap::from([
        ("tls.crt".to_owned(), ByteString(certificate_pem.into_bytes())),
        ("tls.key".to_owned(), ByteString(key_pem.into_bytes())),
    ]))
}

fn pair(name: &'static str, secret: Secret) -> Result<Pair, Error> {
    let data = secret.data.unwrap_or_default();
    let part =
        |key: &str| data.get(key).and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default();
    let authority =
        Authority::from_pem(part("tls.crt"), part("tls.key")).map_err(|error| Error::Parse(name, error))?;
    Ok(Pair { authority: Arc::new(authority), data })
}
