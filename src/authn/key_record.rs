//! What the endpoint knows of one generation of a key, and the proof of a key against it.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::{ApiKey, Identity, Method, Reason};
use crate::api::RateLimitSpec;

/// What the endpoint knows of one generation of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    /// What proves it.
    pub(crate) verifier: Verifier,
    /// Name of the `McpApiKey`.
    pub(crate) name: String,
    /// `spec.identity`.
    pub(crate) identity: String,
    /// `spec.tenant`.
    pub(crate) tenant: Option<String>,
    /// `spec.enabled`.
    pub(crate) enabled: bool,
    /// Whether this generation was revoked, or every one was and the operator has not yet said so.
    pub(crate) revoked: bool,
    /// `spec.expiresAt` or the generation's own end, whichever comes first.
    pub(crate) expires_at: Option<Timestamp>,
    /// Whether the key names this server.
    pub(crate) opens_server: bool,
    /// `spec.allowedCidrs`; empty means anywhere.
    pub(crate) allowed: Vec<IpNet>,
    /// `spec.rateLimit`.
    pub(crate) rate_limit: Option<RateLimitSpec>,
}

/// What proves one generation of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verifier {
    /// SHA-256 of a whole key that the operator made.
    Sha256([u8; 32]),
    /// The salted hash of an imported key, which stays in a Secret; this is the SHA-256 of that hash.
    Imported([u8; 32]),
}

impl KeyRecord {
    /// Whether the key is accepted now by this server from this address, its secret aside.
    ///
    /// # Errors
    /// [`Reason`] says why not.
    pub(crate) fn usable(&self, client_ip: IpAddr, now: Timestamp) -> Result<(), Reason> {
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
        if !self.allowed.is_empty() && !self.allowed.iter().any(|net| net.contains(&client_ip)) {
            return Err(Reason::Address);
        }
        Ok(())
    }

    /// The identity that this generation proves.
    pub(crate) fn identify(&self, id: &str) -> Identity {
        Identity {
            tenant: self.tenant.clone(),
            key: Some(self.name.clone()),
            expires_at: self.expires_at,
            ..Identity::new(Method::ApiKey, self.identity.clone(), id)
        }
    }
}

/// Proves a key against the record that its id found. Whether it may be used here and now is judged later.
///
/// An unknown id is compared with a digest that nothing has, so that it takes as long as a known one.
///
/// # Errors
/// [`Reason`] says why the key proves nothing.
pub(crate) fn authenticate_key(key: &ApiKey, record: Option<&KeyRecord>) -> Result<Identity, Reason> {
    let expected = match record.map(|record| &record.verifier) {
        Some(Verifier::Sha256(digest)) => Some(digest),
        Some(Verifier::Imported(_)) | None => None,
    };
    let same = aws_lc_rs::constant_time::verify_slices_are_equal(&key.digest(), expected.unwrap_or(&[0; 32]));
    let record = record.filter(|_| expected.is_some()).ok_or(Reason::UnknownKey)?;
    same.map_err(|_| Reason::WrongKey)?;
    Ok(record.identify(key.id()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

    fn key() -> ApiKey {
        ApiKey::generate([7; 10], [9; 32])
    }

    fn record(key: &ApiKey) -> KeyRecord {
        KeyRecord {
            verifier: Verifier::Sha256(key.digest()),
            name: "ci-bot".into(),
            identity: "ci-bot".into(),
            tenant: None,
            enabled: true,
            revoked: false,
            expires_at: None,
            opens_server: true,
            allowed: vec![],
            rate_limit: None,
        }
    }

    fn outcome(record: Option<&KeyRecord>) -> Result<String, Reason> {
        let now = Timestamp::from_second(1_000).expect("in range");
        let identity = authenticate_key(&key(), record)?;
        record.map_or(Ok(()), |record| record.usable(HERE, now))?;
        Ok(identity.subject)
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
        let imported = KeyRecord { verifier: Verifier::Imported(key().digest()), ..record(&key()) };
        assert_eq!(outcome(Some(&imported)), Err(Reason::UnknownKey));
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
    fn a_key_of_another_server_or_from_another_address_is_refused() {
        let other = KeyRecord { opens_server: false, ..record(&key()) };
        assert_eq!(outcome(Some(&other)), Err(Reason::OtherServer));
        let net = |text: &str| vec![text.parse().expect("a network")];
        let elsewhere = KeyRecord { allowed: net("10.1.0.0/16"), ..record(&key()) };
        assert_eq!(outcome(Some(&elsewhere)), Err(Reason::Address));
        assert!(outcome(Some(&KeyRecord { allowed: net("10.0.0.0/8"), ..record(&key()) })).is_ok());
    }
}
