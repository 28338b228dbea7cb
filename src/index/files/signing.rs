//! The keys of an endpoint's own tokens, in `.portcullis/signing.json`: made, replaced by age and thrown away on request,
//! as the operator does for an endpoint in a cluster. There is one replica, so a new key signs at once.

use std::fs;
use std::io;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::keys::{random, write_private};
use super::{GENERATED, LoadFiles, read_error};
use crate::api::{McpServer, SigningKeyState, names};
use crate::authn::token::{LONGEST, OwnTokens, SigningKey, SigningKeys};

/// The file.
const FILE: &str = "signing.json";
/// How long a key verifies after it has signed its last token: that token, and clocks that differ.
const OVERLAP: SignedDuration = LONGEST.saturating_add(SignedDuration::from_mins(5));

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    /// Value of the annotation by which tokens were last revoked.
    #[serde(default)]
    handled_revoke: Option<String>,
    keys: SigningKeys,
}

/// The keys of now, and when they are to be looked at again.
pub(super) struct Signing {
    /// The entry for the Authenticator.
    pub(super) json: Vec<u8>,
    /// When a key is to be replaced or has ended.
    pub(super) due: Timestamp,
}

/// Finds, makes and replaces the keys of a server whose tokens are enabled. Notes in its status that a revocation was
/// carried out.
///
/// # Errors
/// [`LoadFiles`] if the file cannot be used.
pub(super) fn keys(directory: &Path, server: &mut McpServer, now: Timestamp) -> Result<Signing, LoadFiles> {
    let path = directory.join(GENERATED).join(FILE);
    let refuse = |text: String| LoadFiles::Object { path: path.clone(), text };
    let before = match fs::read(&path) {
        Ok(json) => Some(json),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(read_error(&path, source)),
    };
    let mut stored = match &before {
        // What is wrong could quote a secret.
        Some(json) => serde_json::from_slice(json)
            .map_err(|_| refuse("is not in the form in which it was written; delete it".to_owned()))?,
        None => Stored::default(),
    };
    let asked = server.annotations().get(names::REVOKE_ANNOTATION).cloned();
    if asked.is_some() && asked != stored.handled_revoke {
        stored.keys.keys.clear();
        stored.handled_revoke = asked;
    }
    let interval = SignedDuration::from_hours(server.spec.authentication.tokens.rotation_hours.into());
    renew(&mut stored.keys.keys, interval, now).map_err(refuse)?;
    let json = serde_json::to_vec(&stored.keys).map_err(|error| refuse(error.to_string()))?;
    OwnTokens::from_json(&json).map_err(|error| refuse(error.to_string()))?;
    let file = serde_json::to_vec(&stored).map_err(|error| refuse(error.to_string()))?;
    if before.as_ref() != Some(&file) {
        write_private(&path, &file).map_err(|source| read_error(&path, source))?;
    }
    let status = server.status.get_or_insert_default().authentication.get_or_insert_default();
    status.handled_revoke = stored.handled_revoke;
    Ok(Signing { json, due: due(&stored.keys.keys, interval, now) })
}

/// Forgets keys that have ended, and lets a new one sign if the one that does is as old as it may be.
fn renew(keys: &mut Vec<SigningKey>, interval: SignedDuration, now: Timestamp) -> Result<(), String> {
    keys.retain(|key| key.not_after.is_none_or(|end| end > now));
    let signs = |key: &SigningKey| key.state == SigningKeyState::Active;
    if keys.iter().any(|key| signs(key) && now.duration_since(key.created_at) < interval) {
        return Ok(());
    }
    for key in keys.iter_mut().filter(|key| key.not_after.is_none()) {
        (key.state, key.not_after) = (SigningKeyState::Retiring, Some(now + OVERLAP));
    }
    let mut fresh = SigningKey::generate(random(), now).map_err(|error| error.to_string())?;
    fresh.state = SigningKeyState::Active;
    keys.push(fresh);
    Ok(())
}

fn due(keys: &[SigningKey], interval: SignedDuration, now: Timestamp) -> Timestamp {
    let end = |key: &SigningKey| key.not_after.or_else(|| key.created_at.checked_add(interval).ok());
    keys.iter().filter_map(end).min().unwrap_or(now + OVERLAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::jwt::Unverified;
    use crate::authn::{Identity, Method, Reason};
    use crate::index::files::tests::{SERVER, directory, read};

    const HERE: &str = "https://127.0.0.1:8443/mcp";

    fn server(annotations: &str) -> McpServer {
        let text = SERVER
            .replace("{name: ops}", &format!("{{name: ops, annotations: {annotations}}}"))
            .replace("spec: {}", "spec: {authentication: {tokens: {enabled: true, rotationHours: 24}}}");
        serde_saphyr::from_str(&text).expect("a server")
    }

    fn at(hours: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)
    }

    fn token(signing: &Signing, now: Timestamp) -> String {
        let own = OwnTokens::from_json(&signing.json).expect("keys");
        let identity = Identity::new(Method::ApiKey, "ann", "k1");
        own.mint(&identity, HERE, None, LONGEST, now, [1; 16]).expect("a token")
    }

    fn accepts(signing: &Signing, token: &str, now: Timestamp) -> Result<(), Reason> {
        let own = OwnTokens::from_json(&signing.json).expect("keys");
        own.verify(&Unverified::parse(token)?, HERE, now).map(|_| ())
    }

    #[test]
    fn a_signing_key_is_made_once_and_replaced_by_age_without_ending_tokens() {
        let directory = directory(&[]);
        let keys = |hours| keys(directory.path(), &mut server("{}"), at(hours)).expect("keys");
        let first = keys(0);
        assert_eq!((first.due, keys(23).json == first.json), (at(24), true));
        let last = at(24) - SignedDuration::from_mins(1);
        let old = token(&first, last);
        let second = keys(24);
        assert_eq!(accepts(&second, &old, at(24)), Ok(()));
        assert_eq!(second.due, at(24) + OVERLAP);
        let fresh = token(&second, at(24));
        assert_eq!(accepts(&first, &fresh, at(24)), Err(Reason::UnknownSigningKey));
        let third = keys(26);
        assert_eq!(OwnTokens::from_json(&third.json).expect("keys").verification_keys().len(), 1);
        assert_eq!(third.due, at(48));
    }

    #[test]
    fn a_revocation_throws_every_key_away_once() {
        let directory = directory(&[]);
        let keys = |server: &mut McpServer| keys(directory.path(), server, at(0)).expect("keys");
        let first = token(&keys(&mut server("{}")), at(0));
        let mut revoked = server("{portcullis.dev/revoke: now}");
        let second = keys(&mut revoked);
        assert_eq!(accepts(&second, &first, at(0)), Err(Reason::UnknownSigningKey));
        let status = revoked.status.and_then(|status| status.authentication).expect("a status");
        assert_eq!(status.handled_revoke.as_deref(), Some("now"));
        assert_eq!(keys(&mut server("{portcullis.dev/revoke: now}")).json, second.json);
        assert_eq!(keys(&mut server("{}")).json, second.json);
    }

    #[test]
    fn a_server_with_tokens_has_its_keys_among_the_materials() {
        let text = SERVER.replace("spec: {}", "spec: {authentication: {tokens: {enabled: true}}}");
        let loaded = read(&text, &[]).expect("loads");
        let json = &loaded.materials["secret/ops-mcp-signing/keys.json"];
        assert!(OwnTokens::from_json(json).expect("keys").signing_key().is_some());
        assert!(read(SERVER, &[]).expect("loads").materials.is_empty());
    }

    #[test]
    fn a_damaged_file_is_an_error_that_shows_nothing_of_it() {
        let directory = directory(&[]);
        let path = directory.path().join(GENERATED).join(FILE);
        write_private(&path, b"{\"keys\": \"hidden\"}").expect("written");
        let error = keys(directory.path(), &mut server("{}"), at(0)).map(|_| ()).expect_err("refused");
        let expected = format!("{}: is not in the form in which it was written; delete it", path.display());
        assert_eq!(error.to_string(), expected);
    }
}
