//! What callers usually do, on this replica since its start, and what becomes of a call that is unlike its caller.
//!
//! The rules are in `authz::anomaly`; here is whom they compare with whom, and the clock.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::request::Caller;
use crate::api::AnomalyMode;
use crate::authn::{Identity, Method};
use crate::authz::Class;
use crate::authz::anomaly::{Anomaly, Detector, Limits, Network, Regime};

/// What callers usually do.
pub(super) struct Habits {
    start: Instant,
    detector: Mutex<Detector>,
}

/// A call that is unlike its caller.
#[derive(Debug)]
pub(super) struct Unusual {
    /// How.
    pub(super) anomaly: Anomaly,
    /// Whether it is refused for that.
    pub(super) is_refused: bool,
}

impl Habits {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), detector: Mutex::default() }
    }

    /// Judges a call of a tool, whichever tool it is.
    pub(super) fn judge_call(&self, caller: &Caller) -> Option<Unusual> {
        let (who, regime) = watched(caller)?;
        let network = network(caller);
        let found = self.detector().judge_call(&who, network, regime, self.start.elapsed());
        found.map(|anomaly| Unusual { anomaly, is_refused: regime.refuses })
    }

    /// Judges a call of a tool that the caller may use, by how dangerous it is.
    pub(super) fn judge_class(&self, caller: &Caller, class: Class) -> Option<Unusual> {
        let (who, regime) = watched(caller)?;
        let found = self.detector().judge_class(&who, class, regime, self.start.elapsed());
        found.map(|anomaly| Unusual { anomaly, is_refused: regime.refuses })
    }

    /// Notes that a caller asked for a tool that it may not use, or not there.
    pub(super) fn note_refusal(&self, caller: &Caller) {
        if let Some((who, _)) = watched(caller) {
            self.detector().note_refusal(&who, self.start.elapsed());
        }
    }

    fn detector(&self) -> MutexGuard<'_, Detector> {
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose past a call is compared with, and by which numbers. None: nobody looks.
fn watched(caller: &Caller) -> Option<(Cow<'_, str>, Regime)> {
    let spec = &caller.snapshot.server.as_ref()?.spec.monitoring.anomaly_detection;
    let refuses = match spec.mode {
        AnomalyMode::Disabled => return None,
        AnomalyMode::Observe => false,
        AnomalyMode::Enforce => true,
    };
    Some((past_of(&caller.identity)?, Regime { limits: Limits::of(spec.sensitivity), refuses }))
}

/// A name for the past that counts. A key or a password has one of its own, which ends with it; everybody else has one as
/// a person or a workload, whichever token or certificate proves it. Anonymous callers are many, and have none.
fn past_of(identity: &Identity) -> Option<Cow<'_, str>> {
    let (method, id) = proof(identity);
    match method {
        Method::Anonymous | Method::Operator => None,
        Method::ApiKey | Method::Basic => Some(Cow::Borrowed(id)),
        _ => Some(Cow::Owned(identity.principal())),
    }
}

/// The network that the caller should be known from. Only a credential that can be copied and lives long is bound to the
/// places where it is used: people and pods move. Where a person has said where a key may be used from, that counts.
fn network(caller: &Caller) -> Option<Network> {
    let (method, id) = proof(&caller.identity);
    let names_networks = |id| caller.snapshot.keys.get(id).is_some_and(|key| !key.record.allowed.is_empty());
    match method {
        Method::ApiKey if names_networks(id) => None,
        Method::ApiKey | Method::Basic => Some(caller.client_ip.into()),
        _ => None,
    }
}

/// How the caller was proved in the first place, and the id of that credential.
fn proof(identity: &Identity) -> (Method, &str) {
    match &identity.origin {
        Some(origin) => (origin.method, &origin.credential_id),
        None => (identity.method, &identity.credential_id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::Origin;

    #[test]
    fn a_rotated_key_begins_anew_and_a_token_made_for_a_key_does_not() {
        let key = |id: &str| Identity { key: Some("ci".into()), ..Identity::new(Method::ApiKey, "ci", id) };
        let token = Identity {
            method: Method::Token,
            credential_id: "jti".into(),
            origin: Some(Origin { method: Method::ApiKey, credential_id: "k1".into() }),
            ..key("k1")
        };
        assert_eq!(past_of(&key("k1")), past_of(&token));
        assert_ne!(past_of(&key("k1")), past_of(&key("k2")));
    }

    #[test]
    fn a_person_has_one_past_whatever_number_a_token_has_and_nobody_has_none() {
        let issued = |subject: &str, id: &str| Identity {
            issuer: Some("https://a.example".into()),
            ..Identity::new(Method::Jwt, subject, id)
        };
        assert_eq!(past_of(&issued("ann", "t1")), past_of(&issued("ann", "t2")));
        assert_ne!(past_of(&issued("ann", "t1")), past_of(&issued("bob", "t1")));
        assert_eq!(past_of(&Identity::anonymous()), None);
    }
}
