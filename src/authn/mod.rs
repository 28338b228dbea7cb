//! Who is calling: credentials as they are presented and identities as they are proved.
//!
//! Pure: the directory of keys and the time are arguments. Absence of a credential is anonymous, and anonymous is
//! refused; every failure looks the same outside and has its own reason inside.

pub(crate) mod api_key;

use jiff::Timestamp;

pub(crate) use api_key::ApiKey;

use crate::authz::RoleId;

/// A proved caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// How it was proved.
    pub(crate) method: Method,
    /// The name under which the caller appears in decisions and in the audit.
    pub(crate) subject: String,
    /// Id of the credential, for audit and for ending what it opened. Never secret.
    pub(crate) credential_id: String,
}

/// How an identity was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    /// An `McpApiKey`.
    ApiKey,
    /// The operator, by its certificate on the internal port. It may list and nothing else.
    Operator,
}

impl Method {
    /// The word for it in audit and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Method::ApiKey => "apikey",
            Method::Operator => "operator",
        }
    }
}

/// What the endpoint knows of one generation of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    /// SHA-256 of the whole key.
    pub(crate) digest: [u8; 32],
    /// Name of the `McpApiKey`.
    pub(crate) name: String,
    /// `spec.identity`.
    pub(crate) identity: String,
    /// `spec.enabled`.
    pub(crate) enabled: bool,
    /// Whether this generation was revoked.
    pub(crate) revoked: bool,
    /// `spec.expiresAt`.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether the key names this server.
    pub(crate) opens_server: bool,
    /// The roles it names.
    pub(crate) roles: Vec<RoleId>,
}

impl KeyRecord {
    /// Whether the key is accepted now by this server, its secret aside.
    ///
    /// # Errors
    /// [`Reason`] says why not.
    pub(crate) fn usable(&self, now: Timestamp) -> Result<(), Reason> {
        if self.revoked {
            return Err(Reason::Revoked);
        }
        if !self.enabled {
            return Err(Reason::Disabled);
        }
        if self.expires_at.is_some_and(|end| end <= now) {
            return Err(Reason::Expired);
        }
        if !self.opens_server {
            return Err(Reason::OtherServer);
        }
        Ok(())
    }
}

/// Why a credential proves nothing. For audit and metrics; callers are told none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Reason {
    /// No credential in the request.
    #[error("no credential")]
    Missing,
    /// More than one credential in the request.
    #[error("more than one credential")]
    Ambiguous,
    /// Not in a form that any method knows.
    #[error("credential of unknown form")]
    UnknownForm,
    /// No key with this id.
    #[error("unknown key")]
    UnknownKey,
    /// The id is known and the secret is wrong.
    #[error("wrong key")]
    WrongKey,
    /// The key is switched off.
    #[error("disabled key")]
    Disabled,
    /// This generation of the key was revoked.
    #[error("revoked key")]
    Revoked,
    /// The key has expired.
    #[error("expired key")]
    Expired,
    /// The key does not name this server.
    #[error("key of another server")]
    OtherServer,
}

impl Reason {
    /// Fixed word for audit and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Missing => "missing",
            Reason::Ambiguous => "ambiguous",
            Reason::UnknownForm => "unknown_form",
            Reason::UnknownKey => "unknown_key",
            Reason::WrongKey => "wrong_key",
            Reason::Disabled => "disabled",
            Reason::Revoked => "revoked",
            Reason::Expired => "expired",
            Reason::OtherServer => "other_server",
        }
    }
}

/// Proves a key against the record that its id found.
///
/// An unknown id is compared with a digest that nothing has, so that it takes as long as a known one.
///
/// # Errors
/// [`Reason`] says why the key proves nothing.
pub(crate) fn authenticate_key<'a>(
    key: &ApiKey,
    record: Option<&'a KeyRecord>,
    now: Timestamp,
) -> Result<(Identity, &'a KeyRecord), Reason> {
    let digest = key.digest();
    let expected = record.map_or(&[0; 32], |record| &record.digest);
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(&digest, expected).is_ok();
    let record = record.ok_or(Reason::UnknownKey)?;
    if !same {
        return Err(Reason::WrongKey);
    }
    record.usable(now)?;
    let identity = Identity {
        method: Method::ApiKey,
        subject: record.identity.clone(),
        credential_id: key.id().to_owned(),
    };
    Ok((identity, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::generate([7; 10], [9; 32])
    }

    fn record(key: &ApiKey) -> KeyRecord {
        KeyRecord {
            digest: key.digest(),
            name: "ci-bot".into(),
            identity: "ci-bot".into(),
            enabled: true,
            revoked: false,
            expires_at: None,
            opens_server: true,
            roles: vec![],
        }
    }

    fn outcome(record: Option<&KeyRecord>) -> Result<String, Reason> {
        let now = Timestamp::from_second(1_000).expect("in range");
        authenticate_key(&key(), record, now).map(|(identity, _)| identity.subject)
    }

    #[test]
    fn a_known_key_proves_its_identity() {
        assert_eq!(outcome(Some(&record(&key()))), Ok("ci-bot".into()));
    }

    #[test]
    fn an_unknown_or_wrong_key_is_refused() {
        assert_eq!(outcome(None), Err(Reason::UnknownKey));
        let other = ApiKey::generate([7; 10], [8; 32]);
        assert_eq!(outcome(Some(&record(&other))), Err(Reason::WrongKey));
    }

    #[test]
    fn a_disabled_revoked_or_expired_key_is_refused_from_that_moment() {
        let valid = record(&key());
        let disabled = KeyRecord { enabled: false, ..valid.clone() };
        assert_eq!(outcome(Some(&disabled)), Err(Reason::Disabled));
        let revoked = KeyRecord { revoked: true, ..valid.clone() };
        assert_eq!(outcome(Some(&revoked)), Err(Reason::Revoked));
        let at = |second| Some(Timestamp::from_second(second).expect("in range"));
        let expired = KeyRecord { expires_at: at(1_000), ..valid.clone() };
        assert_eq!(outcome(Some(&expired)), Err(Reason::Expired));
        let expiring = KeyRecord { expires_at: at(1_001), ..valid };
        assert!(outcome(Some(&expiring)).is_ok());
    }

    #[test]
    fn a_key_of_another_server_is_refused() {
        let other = KeyRecord { opens_server: false, ..record(&key()) };
        assert_eq!(outcome(Some(&other)), Err(Reason::OtherServer));
    }
}
