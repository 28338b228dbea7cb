//! Which step comes next for the keys of a server's own tokens. Pure: the Secret, the answers of the replicas, the time
//! and new keys are arguments.
//!
//! A key verifies on every replica before it signs on any, and verifies until its last token has ended. The Secret
//! alone says how far a rotation is, so it goes on from wherever it was stopped.

use jiff::{SignedDuration, Timestamp};

use crate::api::SigningKeyState;
use crate::api::replica::ReplicaState;
use crate::authn::token::SigningKey;

/// Keys of one Secret; a rotation that somebody asks for waits while there are as many.
const MAX_KEYS: usize = 32;
/// A token may be accepted this much longer than it lasts, because clocks differ.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// What stands in the Secret.
#[derive(Clone, Default)]
pub(super) struct Held {
    /// The keys, newest last. At most one is active, at most one pending.
    pub(super) keys: Vec<SigningKey>,
    /// The rotation that was carried out or is under way.
    pub(super) handled_rotate: Option<String>,
    /// The revocation that was carried out.
    pub(super) handled_revoke: Option<String>,
    /// How long tokens of these keys last at most.
    pub(super) longest_lifetime: SignedDuration,
    /// When the keys were last changed.
    pub(super) changed_at: Option<Timestamp>,
}

/// What the server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Value of the annotation that asks for a rotation.
    pub(super) rotate: Option<String>,
    /// Value of the annotation that asks for a revocation.
    pub(super) revoke: Option<String>,
    /// How long a token lasts.
    pub(super) lifetime: SignedDuration,
    /// How long a key signs.
    pub(super) rotation: SignedDuration,
}

/// What a step does, for those who want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The first key signs.
    Created(String),
    /// A key is made known to the replicas.
    Announced,
    /// A key signs in the place of another.
    Rotated(String),
    /// One key is in the place of all that were.
    Revoked(String),
    /// How long keys and tokens last is on record, or keys have ended.
    Noted,
}

/// What every replica must have done before the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Verify with this key.
    Verify(String),
    /// Sign with this key.
    Sign(String),
    /// Sign with the first, and know no other keys than these.
    Forget(String, Vec<String>),
}

impl Awaited {
    /// Whether a replica has done it.
    pub(super) fn is_done_by(&self, replica: &ReplicaState) -> bool {
        match self {
            Awaited::Verify(kid) => replica.verification_keys.contains(kid),
            Awaited::Sign(kid) => replica.signing_key.as_ref() == Some(kid),
            Awaited::Forget(kid, known) => {
                replica.signing_key.as_ref() == Some(kid)
                    && replica.verification_keys.iter().all(|key| known.contains(key))
            }
        }
    }
}

impl Held {
    /// The key in a state, if there is one.
    fn find(&self, state: SigningKeyState) -> Option<&SigningKey> {
        self.keys.iter().find(|key| key.state == state)
    }

    /// The key that signs.
    pub(super) fn active(&self) -> Option<&SigningKey> {
        self.find(SigningKeyState::Active)
    }

    /// The key that will sign next.
    pub(super) fn pending(&self) -> Option<&SigningKey> {
        self.find(SigningKeyState::Pending)
    }

    /// What is waited for. `handled` is the revocation that the status says was carried out: as long as it is
    /// another, no replica accepts any token, and that must not end while one of them still knows a revoked key.
    pub(super) fn awaited(&self, handled: Option<&str>) -> Option<Awaited> {
        let revokes = self.handled_revoke.is_some() && self.handled_revoke.as_deref() != handled;
        let kids = || self.keys.iter().map(|key| key.kid.clone()).collect();
        match (self.pending(), self.active()) {
            (Some(pending), _) => Some(Awaited::Verify(pending.kid.clone())),
            (None, Some(active)) if revokes => Some(Awaited::Forget(active.kid.clone(), kids())),
            (None, Some(active)) if self.keys.iter().any(is_open_end) => {
                Some(Awaited::Sign(active.kid.clone()))
            }
            (None, _) => None,
        }
    }

    /// When the first of the keys that signed ends.
    pub(super) fn next_end(&self) -> Option<Timestamp> {
        self.keys.iter().filter_map(|key| key.not_after).min()
    }
}

/// Whether a key has signed and it is not known yet until when its tokens last.
fn is_open_end(key: &SigningKey) -> bool {
    key.state == SigningKeyState::Retiring && key.not_after.is_none()
}

/// Whether every ready replica has done it. `None`: they were not asked, or one did not answer. No ready replica at
/// all has done nothing: one that is only busy must not be forgotten.
pub(super) fn is_done(awaited: &Awaited, replicas: Option<&[ReplicaState]>) -> bool {
    replicas.is_some_and(|all| !all.is_empty() && all.iter().all(|replica| awaited.is_done_by(replica)))
}

/// The next content of the Secret, or nothing if it stays. `make` makes a key.
///
/// # Errors
/// Whatever `make` fails with.
pub(super) fn next<E>(
    held: Option<&Held>,
    asked: &Asked,
    replicas: Option<&[ReplicaState]>,
    now: Timestamp,
    make: impl FnOnce() -> Result<SigningKey, E>,
) -> Result<Option<(Held, Change)>, E> {
    let nobody_is_ready = replicas.is_some_and(<[_]>::is_empty);
    let Some(held) = held.filter(|held| held.active().is_some() || held.pending().is_some()) else {
        let state = if nobody_is_ready { SigningKeyState::Active } else { SigningKeyState::Pending };
        let key = SigningKey { state, ..make()? };
        let change = if nobody_is_ready { Change::Created(key.kid.clone()) } else { Change::Announced };
        return Ok(Some((only(key, asked, now), change)));
    };
    if asked.revoke.is_some() && asked.revoke != held.handled_revoke {
        let key = SigningKey { state: SigningKeyState::Active, ..make()? };
        let change = Change::Revoked(key.kid.clone());
        return Ok(Some((only(key, asked, now), change)));
    }
    let longest_lifetime = held.longest_lifetime.max(asked.lifetime);
    let next = Held { longest_lifetime, ..held.clone() };
    if let Some(pending) = held.pending() {
        let awaited = Awaited::Verify(pending.kid.clone());
        let may_sign = is_done(&awaited, replicas) || (nobody_is_ready && held.active().is_none());
        return Ok(may_sign.then(|| promote(next, now)));
    }
    if let Some(active) = held.active()
        && held.keys.iter().any(is_open_end)
    {
        let done = is_done(&Awaited::Sign(active.kid.clone()), replicas);
        return Ok(done.then(|| (limit(next, now), Change::Noted)));
    }
    if held.next_end().is_some_and(|end| end <= now) {
        let mut next = next;
        next.keys.retain(|key| key.not_after.is_none_or(|end| end > now));
        return Ok(Some((next, Change::Noted)));
    }
    if held.keys.len() < MAX_KEYS && is_due(held, asked, now) {
        let mut next = next;
        next.keys.push(SigningKey { state: SigningKeyState::Pending, ..make()? });
        next.handled_rotate.clone_from(&asked.rotate);
        next.changed_at = Some(now);
        return Ok(Some((next, Change::Announced)));
    }
    Ok((longest_lifetime != held.longest_lifetime).then_some((next, Change::Noted)))
}

/// One key and nothing else; whatever was asked for is carried out with it.
fn only(key: SigningKey, asked: &Asked, now: Timestamp) -> Held {
    Held {
        keys: vec![key],
        handled_rotate: asked.rotate.clone(),
        handled_revoke: asked.revoke.clone(),
        longest_lifetime: asked.lifetime,
        changed_at: Some(now),
    }
}

/// The pending key signs, and the one that did verifies on.
fn promote(mut held: Held, now: Timestamp) -> (Held, Change) {
    let (mut change, mut is_first) = (Change::Noted, true);
    for key in &mut held.keys {
        match key.state {
            SigningKeyState::Active => {
                key.state = SigningKeyState::Retiring;
                is_first = false;
            }
            SigningKeyState::Pending => {
                key.state = SigningKeyState::Active;
                change = Change::Rotated(key.kid.clone());
            }
            SigningKeyState::Retiring => {}
        }
    }
    held.changed_at = Some(now);
    match change {
        Change::Rotated(kid) if is_first => (held, Change::Created(kid)),
        change => (held, change),
    }
}

/// No replica signs with these keys any more, so their last tokens end when the longest has lasted.
fn limit(mut held: Held, now: Timestamp) -> Held {
    let end = now.saturating_add(held.longest_lifetime + MARGIN).unwrap_or(Timestamp::MAX);
    held.keys.iter_mut().filter(|key| is_open_end(key)).for_each(|key| key.not_after = Some(end));
    held
}

/// Whether the key that signs has done so for long enough, or somebody asks for another.
fn is_due(held: &Held, asked: &Asked, now: Timestamp) -> bool {
    let is_asked = asked.rotate.is_some() && asked.rotate != held.handled_rotate;
    let is_old = held.active().is_some_and(|key| now.duration_since(key.created_at) >= asked.rotation);
    is_asked || is_old
}

#[cfg(test)]
mod tests;
