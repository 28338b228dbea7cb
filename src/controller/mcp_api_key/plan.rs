//! Which step comes next for a generated key. Pure: object, Secret, answers of the replicas and time are arguments.
//!
//! Everything derives from what is written, so a crash at any step resumes. A text leaves the Secret before the status
//! calls it revoked or over: a step towards publishing it, decided before, then fails on the Secret's version.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{KeyGeneration, KeyState, McpApiKeyStatus};

use super::generations::{self, Rules};

/// What one entry of the Secret holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing.
    #[default]
    Absent,
    /// Something that is no key.
    Foreign,
    /// A key of this id and digest.
    Key {
        /// Its id.
        id: String,
        /// Its digest as it stands in a status.
        digest: String,
    },
}

/// What our Secret holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// What callers read.
    pub(super) current: Entry,
    /// What will take its place.
    pub(super) next: Entry,
    /// The wish that `next` was made for: the value of the annotation, empty if there was none. Absent: nobody knows.
    pub(super) made_for: Option<String>,
}

/// The Secret of the key's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is none.
    Absent,
    /// It belongs to somebody else.
    Foreign,
    /// It is ours.
    Ours(Held),
}

/// What a step is decided from.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    /// What the spec says.
    pub(super) rules: Rules,
    /// Whether another generation may be begun.
    pub(super) may_begin: bool,
    /// Value of the annotation that asks for a rotation.
    pub(super) rotate: Option<&'a str>,
    /// Value of the annotation that asks for a revocation.
    pub(super) revoke: Option<&'a str>,
    /// What was written last.
    pub(super) status: &'a McpApiKeyStatus,
    /// The Secret.
    pub(super) secret: &'a Seen,
    /// Whether every ready replica accepts the pending generation, once they were asked.
    pub(super) is_accepted: Option<bool>,
    /// Now, to the second.
    pub(super) now: Timestamp,
}

/// What becomes of the status. Refused when the object has changed since.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// Every generation.
    pub(super) keys: Vec<KeyGeneration>,
    /// When the key was last replaced.
    pub(super) last_rotated_at: Option<Time>,
    /// The last wish for a rotation that was carried out.
    pub(super) handled_rotate: Option<String>,
    /// The last wish for a revocation that was carried out.
    pub(super) handled_revoke: Option<String>,
}

impl Change {
    /// The same, with other generations.
    pub(super) fn of(status: &McpApiKeyStatus, keys: Vec<KeyGeneration>) -> Self {
        Self {
            keys,
            last_rotated_at: status.last_rotated_at.clone(),
            handled_rotate: status.handled_rotate.clone(),
            handled_revoke: status.handled_revoke.clone(),
        }
    }

    /// Writes it into a status.
    pub(super) fn apply(self, status: &mut McpApiKeyStatus) {
        status.keys = self.keys;
        status.last_rotated_at = self.last_rotated_at;
        status.handled_rotate = self.handled_rotate;
        status.handled_revoke = self.handled_revoke;
    }
}

/// What becomes of the Secret. Refused when the Secret, or the object that it was decided on, has changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// A new text that nobody reads yet.
    Stage {
        /// Whether what callers read stays.
        keeps_current: bool,
    },
    /// What is next becomes what callers read.
    Publish,
    /// What callers read has ended and goes; what is next stays.
    Withdraw,
    /// What is next goes; what callers read stays.
    Unstage,
    /// Both go.
    Strip,
    /// The Secret goes.
    Delete,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing: everything agrees, or only time can change it.
    Rest,
    /// The Secret's name is taken.
    Conflict,
    /// The status is written.
    Status(Change),
    /// The Secret is written.
    Secret(Write),
    /// The replicas are asked whether they accept this generation.
    Ask(String),
    /// Not every replica accepts this generation yet.
    Wait(String),
}

/// Decides what is to be done.
pub(super) fn next_step(facts: &Facts<'_>) -> Step {
    let Facts { rules, status, now, .. } = facts;
    let keys = &status.keys;
    if let Some(step) = revocation(facts) {
        return step;
    }
    let aged = generations::aged(keys, rules, *now);
    if rules.are_over(*now) && matches!(facts.secret, Seen::Ours(_)) {
        return Step::Secret(Write::Delete);
    }
    if aged != *keys {
        return Step::Status(Change::of(status, aged));
    }
    if rules.are_over(*now) {
        return Step::Rest;
    }
    let held = match facts.secret {
        Seen::Foreign => return Step::Conflict,
        Seen::Absent => &Held::default(),
        Seen::Ours(held) => held,
    };
    let current = find(keys, &held.current);
    match current.map(|generation| generation.state) {
        Some(KeyState::Pending) => return publication(facts, held),
        Some(KeyState::Active) => {
            let id = current.map(|generation| &generation.id);
            let surplus = |g: &KeyGeneration| g.state == KeyState::Active && Some(&g.id) != id;
            if keys.iter().any(surplus) {
                return Step::Status(Change::of(status, generations::revoked(keys, surplus)));
            }
        }
        _ => {
            if let (true, Entry::Key { id, digest }) = (keys.is_empty(), &held.current) {
                return Step::Status(adopted(facts, id, digest));
            }
            // Nobody can tell who has it.
            if generations::active(keys).is_some() {
                return Step::Status(Change::of(status, generations::revoked(keys, |_| true)));
            }
        }
    }
    succession(facts, held)
}

/// Every generation that there is ends at once.
fn revocation(facts: &Facts<'_>) -> Option<Step> {
    let status = facts.status;
    facts.revoke.filter(|asked| Some(*asked) != status.handled_revoke.as_deref())?;
    if let Seen::Ours(held) = facts.secret
        && (held.current != Entry::Absent || held.next != Entry::Absent)
    {
        return Some(Step::Secret(Write::Strip));
    }
    let mut change = Change::of(status, generations::revoked(&status.keys, |_| true));
    change.handled_revoke = facts.revoke.map(str::to_owned);
    Some(Step::Status(change))
}

/// The status was lost: what our Secret holds is the key.
fn adopted(facts: &Facts<'_>, id: &str, digest: &str) -> Change {
    let Facts { rules, status, now, .. } = facts;
    let begun = generations::begun(&[], id, digest, rules, *now);
    Change::of(status, generations::promoted(&begun, id, rules, *now))
}

/// The Secret already holds what the status calls pending.
fn publication(facts: &Facts<'_>, held: &Held) -> Step {
    let Facts { rules, status, now, .. } = facts;
    let Some(published) = find(&status.keys, &held.current) else { return Step::Rest };
    let mut change = Change::of(status, generations::promoted(&status.keys, &published.id, rules, *now));
    if !is_first(&status.keys, published) {
        change.last_rotated_at = Some(Time(*now));
    }
    match held.made_for.as_deref() {
        Some("") => {}
        Some(wish) => change.handled_rotate = Some(wish.to_owned()),
        None => change.handled_rotate = facts.rotate.map(str::to_owned).or(change.handled_rotate),
    }
    Step::Status(change)
}

/// What is active, if anything, is what the Secret holds. Whether another takes its place, and how far that is.
fn succession(facts: &Facts<'_>, held: &Held) -> Step {
    let Facts { rules, status, now, .. } = facts;
    let keys = &status.keys;
    let active = generations::active(keys);
    let is_dead = active.is_none() && held.current != Entry::Absent;
    let next = find(keys, &held.next);
    if keys.iter().any(|generation| generation.state == KeyState::Pending) {
        let pending = next.filter(|generation| generation.state == KeyState::Pending);
        // A text that is lost was never seen by anybody.
        let is_lost =
            |g: &KeyGeneration| g.state == KeyState::Pending && Some(&g.id) != pending.map(|p| &p.id);
        if keys.iter().any(is_lost) {
            return Step::Status(Change::of(status, generations::revoked(keys, is_lost)));
        }
        return match pending {
            Some(_) if is_dead => Step::Secret(Write::Withdraw),
            Some(pending) if is_first(keys, pending) => Step::Secret(Write::Publish),
            Some(pending) => match facts.is_accepted {
                None => Step::Ask(pending.id.clone()),
                Some(true) => Step::Secret(Write::Publish),
                Some(false) => Step::Wait(pending.id.clone()),
            },
            None => Step::Rest,
        };
    }
    let is_asked = asks_to_rotate(facts.rotate, status);
    let is_due = active.and_then(|active| rules.due(active)).is_some_and(|due| due <= *now);
    let is_wanted = active.is_none() || is_asked || is_due;
    if !is_wanted && held.next != Entry::Absent {
        return Step::Secret(Write::Unstage);
    }
    if is_wanted && facts.may_begin && generations::have_room(keys) {
        return match &held.next {
            Entry::Key { id, digest } if !keys.iter().any(|generation| generation.id == *id) => {
                Step::Status(Change::of(status, generations::begun(keys, id, digest, rules, *now)))
            }
            _ => Step::Secret(Write::Stage { keeps_current: active.is_some() }),
        };
    }
    if is_dead { Step::Secret(Write::Withdraw) } else { Step::Rest }
}

/// Whether a new value of the annotation asks for a rotation. An empty one asks for nothing.
pub(super) fn asks_to_rotate(rotate: Option<&str>, status: &McpApiKeyStatus) -> bool {
    let asked = rotate.filter(|value| !value.is_empty());
    asked.is_some() && asked != status.handled_rotate.as_deref()
}

/// Whether nothing was ever published before: then nobody is served by waiting.
fn is_first(keys: &[KeyGeneration], pending: &KeyGeneration) -> bool {
    keys.iter().all(|generation| generation.id == pending.id)
}

fn find<'a>(keys: &'a [KeyGeneration], entry: &Entry) -> Option<&'a KeyGeneration> {
    let Entry::Key { id, digest } = entry else { return None };
    keys.iter().find(|generation| generation.id == *id && generation.digest == *digest)
}

#[cfg(test)]
mod tests;
