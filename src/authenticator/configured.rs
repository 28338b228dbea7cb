//! What the spec of a server and the entries that it refers to come to, parsed once for each change.
//!
//! Every request brings the snapshot by which it is judged; as long as that names the same object and the entries are the
//! same, what was made of them before is used again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::Settings;
use super::issuers::{Issuer, Remotes, Times};
use super::materials::Entries;
use crate::api::{MaterialKind, McpServer, names};
use crate::authn::imported::ImportedKeys;
use crate::authn::token::OwnTokens;
use crate::authn::users::Users;

/// What requests are proved with.
#[derive(Default)]
pub(super) struct Parts {
    /// URL by which clients know the endpoint.
    pub(super) resource: String,
    /// Issuers by name.
    pub(super) issuers: HashMap<String, Issuer>,
    /// What the token of a ServiceAccount must be for, one of these.
    pub(super) reviewed_audiences: Vec<String>,
    /// Users with passwords, if there are any.
    pub(super) users: Option<Users>,
    /// Imported keys, if there are any.
    pub(super) imported: Option<ImportedKeys>,
    /// The endpoint's own tokens, if there are keys for them.
    pub(super) own_tokens: Option<Arc<OwnTokens>>,
}

/// Parts, and what they were made from.
#[derive(Default)]
struct Made {
    server: Option<Arc<McpServer>>,
    entries: Arc<Entries>,
    parts: Arc<Parts>,
}

/// The parts of now, made when they are needed.
pub(super) struct Configuration {
    settings: Settings,
    /// Issuers whose keys are fetched.
    pub(super) remotes: Remotes,
    made: ArcSwap<Made>,
    making: Mutex<()>,
}

impl Configuration {
    /// Nothing made yet.
    pub(super) fn new(settings: Settings, times: Times) -> Self {
        let remotes = Remotes::new(times);
        Self { settings, remotes, made: ArcSwap::default(), making: Mutex::default() }
    }

    /// What this object with these entries comes to.
    pub(super) fn of(&self, server: Option<&Arc<McpServer>>, entries: Arc<Entries>) -> Arc<Parts> {
        if let Some(parts) = self.made_of(server, &entries) {
            return parts;
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parts) = self.made_of(server, &entries) {
            return parts;
        }
        let before = self.made.load();
        let parts = match server {
            Some(server) if before.says_the_same(server, &entries) => before.parts.clone(),
            Some(server) => Arc::new(self.make(server, &entries)),
            None => Arc::default(),
        };
        self.made.store(Arc::new(Made { server: server.cloned(), entries, parts: parts.clone() }));
        parts
    }

    /// The parts of the last snapshot that anybody had.
    pub(super) fn current(&self) -> Arc<Parts> {
        self.made.load().parts.clone()
    }

    /// The keys of the endpoint's own tokens, whatever the spec says of them.
    pub(super) fn own_tokens(&self, entries: &Arc<Entries>) -> Option<Arc<OwnTokens>> {
        let made = self.made.load();
        if made.server.is_some() && Arc::ptr_eq(&made.entries, entries) {
            return made.parts.own_tokens.clone();
        }
        self.parse_own_tokens(entries)
    }

    fn made_of(&self, server: Option<&Arc<McpServer>>, entries: &Arc<Entries>) -> Option<Arc<Parts>> {
        let made = self.made.load();
        let same = match (&made.server, server) {
            (Some(before), Some(server)) => Arc::ptr_eq(before, server),
            (None, None) => true,
            _ => false,
        };
        (same && Arc::ptr_eq(&made.entries, entries)).then(|| made.parts.clone())
    }

    fn make(&self, server: &McpServer, entries: &Entries) -> Parts {
        let spec = &server.spec.authentication;
        let resource = spec.resource.clone().or_else(|| self.settings.resource.clone());
        let resource = resource.unwrap_or_else(|| {
            let path = &server.spec.transports.streamable_http.path;
            names::resource_url(&self.settings.namespace, &self.settings.server, path)
        });
        let issuers = spec
            .jwt
            .iter()
            .map(|issuer| (issuer.issuer.clone(), Issuer::new(issuer, &resource, entries, &self.remotes)));
        let users = spec.basic.users.as_ref().filter(|_| spec.basic.enabled);
        let imported = names::imported_secret(&self.settings.server);
        let imported = entries.get(&secret(&imported, names::IMPORTED_DATA));
        let audiences = match &spec.service_accounts.audiences[..] {
            [] => vec![resource.clone()],
            audiences => audiences.to_vec(),
        };
        Parts {
            issuers: issuers.collect(),
            reviewed_audiences: audiences,
            users: users.and_then(|users| parse_users(entries.get(&secret(&users.name, &users.key))?)),
            imported: imported.and_then(|json| usable("imported keys", ImportedKeys::from_json(json))),
            own_tokens: self.parse_own_tokens(entries),
            resource,
        }
    }

    fn parse_own_tokens(&self, entries: &Entries) -> Option<Arc<OwnTokens>> {
        let name = names::signing_secret(&self.settings.server);
        let json = entries.get(&secret(&name, names::SIGNING_DATA))?;
        usable("signing keys", OwnTokens::from_json(json)).map(Arc::new)
    }
}

impl Made {
    /// Whether nothing has changed that parts are made from: the status of a server changes more often than its spec.
    fn says_the_same(&self, server: &McpServer, entries: &Arc<Entries>) -> bool {
        let same = |before: &Arc<McpServer>| {
            before.spec.authentication == server.spec.authentication
                && before.spec.transports.streamable_http.path == server.spec.transports.streamable_http.path
        };
        self.server.as_ref().is_some_and(same) && Arc::ptr_eq(&self.entries, entries)
    }
}

fn secret(name: &str, key: &str) -> String {
    names::material_path(MaterialKind::Secret, name, key)
}

fn parse_users(content: &[u8]) -> Option<Users> {
    usable("users", Users::parse(usable("users", std::str::from_utf8(content))?))
}

/// What was parsed; what could not be counts as absent. The causes of an error could quote a secret and are not told.
fn usable<T, E: std::fmt::Display>(what: &str, parsed: Result<T, E>) -> Option<T> {
    parsed.inspect_err(|error| tracing::warn!(%error, "{what} cannot be used")).ok()
}
