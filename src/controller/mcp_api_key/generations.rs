//! The generations of a key: who is accepted until when, and how one follows another. Pure: the time is an argument.
//!
//! At most one is `Active`. The list stands in the order in which the generations were made, and is bounded.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{KeyGeneration, KeyState, McpApiKeySpec, RotationSpec};

/// Generations that are kept in a status; the oldest ended ones go first.
pub(super) const MAX_GENERATIONS: usize = 32;
/// Shortest time between the making of a successor and the end of a generation by its age.
const LEAD: SignedDuration = SignedDuration::from_mins(10);

/// What the spec says about the life of generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Age at which a successor is made, if one is made by itself.
    pub(super) interval: Option<SignedDuration>,
    /// Time for which a generation is accepted beside its successor.
    pub(super) overlap: SignedDuration,
    /// Age at which a generation ends whatever happens.
    pub(super) max_age: Option<SignedDuration>,
    /// Whether ended generations stay in the status.
    pub(super) keep_expired: bool,
    /// When every generation ends.
    pub(super) expires_at: Option<Timestamp>,
}

impl Rules {
    /// Reads the spec. Without `spec.rotation` nothing rotates by itself or ends by its age.
    pub(super) fn of(spec: &McpApiKeySpec) -> Self {
        let rotation = spec.rotation.clone().unwrap_or_default();
        let RotationSpec { interval_hours, overlap_minutes, max_age_hours, keep_expired } = rotation;
        let hours = |hours: i32| SignedDuration::from_hours(i64::from(hours));
        let by_itself = spec.rotation.is_some();
        let interval = by_itself.then(|| hours(interval_hours));
        Self {
            // An imported key is replaced by whoever keeps its Secret.
            interval: interval.filter(|_| spec.import.is_none()),
            overlap: SignedDuration::from_mins(i64::from(overlap_minutes)),
            max_age: by_itself.then(|| hours(max_age_hours)),
            keep_expired,
            expires_at: spec.expires_at.as_ref().map(|time| time.0),
        }
    }

    /// Whether the key as a whole has ended.
    pub(super) fn are_over(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// When a generation ends by its age.
    pub(super) fn end_of(&self, generation: &KeyGeneration) -> Option<Timestamp> {
        self.max_age.map(|age| after(generation.created_at.0, age))
    }

    /// When a successor of a generation is made by itself: early enough that both are accepted for a while.
    pub(super) fn due(&self, generation: &KeyGeneration) -> Option<Timestamp> {
        let interval = self.interval?;
        let latest = self.max_age.map(|age| age - self.overlap.max(LEAD));
        let age = latest.map_or(interval, |latest| interval.min(latest.max(interval / 2)));
        Some(after(generation.created_at.0, age))
    }
}

/// A time after another, at most the last that there is.
pub(super) fn after(time: Timestamp, duration: SignedDuration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// Whether a generation is accepted or about to be.
pub(super) fn is_living(generation: &KeyGeneration) -> bool {
    matches!(generation.state, KeyState::Pending | KeyState::Active | KeyState::Retiring)
}

/// The active generation.
pub(super) fn active(generations: &[KeyGeneration]) -> Option<&KeyGeneration> {
    generations.iter().find(|generation| generation.state == KeyState::Active)
}

/// Whether another generation can be begun without one that is still accepted being forgotten.
pub(super) fn have_room(generations: &[KeyGeneration]) -> bool {
    generations.iter().filter(|generation| is_living(generation)).count() < MAX_GENERATIONS
}

/// The generations as they are at this time: those end whose time is over.
pub(super) fn aged(generations: &[KeyGeneration], rules: &Rules, now: Timestamp) -> Vec<KeyGeneration> {
    let are_over = rules.are_over(now);
    let age = |generation: &KeyGeneration| {
        let mut generation = generation.clone();
        if generation.state == KeyState::Active {
            generation.not_after = rules.end_of(&generation).map(Time);
        }
        let has_ended = generation.not_after.as_ref().is_some_and(|end| end.0 <= now);
        if is_living(&generation) && (are_over || has_ended) {
            generation.state = KeyState::Expired;
        }
        generation
    };
    tidied(generations.iter().map(age).collect(), rules)
}

/// Those that are not ended become revoked where the test says so.
pub(super) fn revoked(
    generations: &[KeyGeneration],
    which: impl Fn(&KeyGeneration) -> bool,
) -> Vec<KeyGeneration> {
    let revoke = |generation: &KeyGeneration| match is_living(generation) && which(generation) {
        true => KeyGeneration { state: KeyState::Revoked, ..generation.clone() },
        false => generation.clone(),
    };
    generations.iter().map(revoke).collect()
}

/// Takes in a generation that replicas are to learn first. One with the same id, which must have ended, is replaced.
pub(super) fn begun(
    generations: &[KeyGeneration],
    id: &str,
    digest: &str,
    rules: &Rules,
    now: Timestamp,
) -> Vec<KeyGeneration> {
    let others = generations.iter().filter(|generation| generation.id != id).cloned();
    let pending = KeyGeneration {
        id: id.to_owned(),
        digest: digest.to_owned(),
        created_at: Time(now),
        not_after: None,
        state: KeyState::Pending,
    };
    tidied(others.chain([pending]).collect(), rules)
}

/// Makes a generation the active one. The one before it is accepted until the overlap is over, or its age.
pub(super) fn promoted(
    generations: &[KeyGeneration],
    id: &str,
    rules: &Rules,
    now: Timestamp,
) -> Vec<KeyGeneration> {
    let overlap = after(now, rules.overlap);
    let promote = |generation: &KeyGeneration| {
        let mut generation = generation.clone();
        if generation.id == id {
            generation.state = KeyState::Active;
        } else if generation.state == KeyState::Active {
            let end = generation.not_after.map_or(overlap, |end| end.0.min(overlap));
            generation.not_after = Some(Time(end));
            generation.state = KeyState::Retiring;
        }
        generation
    };
    aged(&generations.iter().map(promote).collect::<Vec<_>>(), rules, now)
}

/// Drops what need not be kept. Without a published one the last that ended stays: it tells a key that has to be
/// replaced from one that never was.
fn tidied(mut generations: Vec<KeyGeneration>, rules: &Rules) -> Vec<KeyGeneration> {
    let is_published =
        |generation: &KeyGeneration| matches!(generation.state, KeyState::Active | KeyState::Retiring);
    if !rules.keep_expired {
        let last = match generations.iter().any(is_published) {
            true => None,
            false => generations.iter().rfind(|generation| !is_living(generation)).map(|g| g.id.clone()),
        };
        generations.retain(|generation| is_living(generation) || Some(&generation.id) == last.as_ref());
    }
    while generations.len() > MAX_GENERATIONS {
        let oldest = generations.iter().position(|generation| !is_living(generation)).unwrap_or(0);
        generations.remove(oldest);
    }
    generations
}

/// When a successor will be made by itself.
pub(super) fn next_rotation(generations: &[KeyGeneration], rules: &Rules) -> Option<Timestamp> {
    let due = rules.due(active(generations)?)?;
    Some(due).filter(|due| rules.expires_at.is_none_or(|end| *due < end))
}

/// When something ends or is due by itself, after this time.
pub(super) fn next_change(generations: &[KeyGeneration], rules: &Rules, now: Timestamp) -> Option<Timestamp> {
    let ends = generations.iter().filter(|generation| is_living(generation));
    let ends = ends.filter_map(|generation| generation.not_after.as_ref().map(|end| end.0));
    let times = ends.chain(next_rotation(generations, rules)).chain(rules.expires_at);
    times.filter(|time| *time > now).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    fn rules(rotation: &str) -> Rules {
        let spec: McpApiKeySpec =
            serde_saphyr::from_str(&format!("{{identity: ci, servers: [ops]{rotation}}}")).expect("a spec");
        Rules::of(&spec)
    }

    fn made(id: &str, seconds: i64, state: KeyState) -> KeyGeneration {
        KeyGeneration {
            id: id.to_owned(),
            digest: format!("sha256:{id}"),
            created_at: Time(at(seconds)),
            not_after: None,
            state,
        }
    }

    fn states(generations: &[KeyGeneration]) -> Vec<(&str, KeyState)> {
        generations.iter().map(|generation| (generation.id.as_str(), generation.state)).collect()
    }

    const HOUR: i64 = 3600;

    #[test]
    fn the_old_generation_is_accepted_until_the_overlap_is_over() {
        let rules = rules(", rotation: {intervalHours: 24, overlapMinutes: 5}");
        let first = promoted(&begun(&[], "k1", "d", &rules, at(0)), "k1", &rules, at(0));
        let both = begun(&first, "k2", "d", &rules, at(HOUR));
        let both = promoted(&both, "k2", &rules, at(HOUR));
        assert_eq!(states(&both), [("k1", KeyState::Retiring), ("k2", KeyState::Active)]);
        assert_eq!(both[0].not_after, Some(Time(at(HOUR + 300))));
        assert_eq!(next_change(&both, &rules, at(HOUR)), Some(at(HOUR + 300)));
        assert_eq!(aged(&both, &rules, at(HOUR + 299)), both);
        let ended = aged(&both, &rules, at(HOUR + 300));
        assert_eq!(states(&ended), [("k1", KeyState::Expired), ("k2", KeyState::Active)]);
    }

    #[test]
    fn without_an_overlap_the_old_generation_ends_with_its_publication() {
        let rules = rules(", rotation: {overlapMinutes: 0, keepExpired: false}");
        let first = promoted(&begun(&[], "k1", "d", &rules, at(0)), "k1", &rules, at(0));
        let second = promoted(&begun(&first, "k2", "d", &rules, at(9)), "k2", &rules, at(9));
        assert_eq!(states(&second), [("k2", KeyState::Active)], "and nothing of it is kept");
    }

    #[test]
    fn by_default_a_key_rotates_weekly_and_ends_after_thirty_days() {
        let rules = rules(", rotation: {}");
        let key = made("k1", 0, KeyState::Active);
        assert_eq!(rules.due(&key), Some(at(168 * HOUR)));
        assert_eq!(next_rotation(std::slice::from_ref(&key), &rules), Some(at(168 * HOUR)));
        let day_29 = aged(std::slice::from_ref(&key), &rules, at(719 * HOUR));
        assert_eq!(
            (day_29[0].state, day_29[0].not_after.clone()),
            (KeyState::Active, Some(Time(at(720 * HOUR))))
        );
        assert_eq!(states(&aged(&[key], &rules, at(720 * HOUR))), [("k1", KeyState::Expired)]);
    }

    #[test]
    fn a_key_without_rotation_stays_as_it_is() {
        let rules = rules("");
        let key = [made("k1", 0, KeyState::Active)];
        assert_eq!(aged(&key, &rules, at(100 * 8760 * HOUR)), key);
        assert_eq!((next_rotation(&key, &rules), next_change(&key, &rules, at(1))), (None, None));
    }

    #[test]
    fn a_successor_is_made_early_enough_where_the_greatest_age_is_the_interval() {
        let due = |rotation: &str| {
            let rules = rules(&format!(", rotation: {{{rotation}}}"));
            rules.due(&made("k1", 0, KeyState::Active)).map(Timestamp::as_second)
        };
        assert_eq!(due("intervalHours: 24, maxAgeHours: 24, overlapMinutes: 60"), Some(23 * HOUR));
        assert_eq!(due("intervalHours: 24, maxAgeHours: 24, overlapMinutes: 0"), Some(24 * HOUR - 600));
        assert_eq!(due("intervalHours: 2, maxAgeHours: 2, overlapMinutes: 120"), Some(HOUR));
    }

    #[test]
    fn after_the_end_of_the_key_every_generation_has_ended() {
        let rules = rules(", expiresAt: '1970-01-01T01:00:00Z'");
        let keys = [
            made("k0", 0, KeyState::Revoked),
            made("k1", 0, KeyState::Retiring),
            made("k2", 0, KeyState::Active),
        ];
        assert_eq!(next_change(&keys, &rules, at(0)), Some(at(HOUR)));
        let ended = aged(&keys, &rules, at(HOUR));
        assert_eq!(
            states(&ended),
            [("k0", KeyState::Revoked), ("k1", KeyState::Expired), ("k2", KeyState::Expired)]
        );
    }

    #[test]
    fn a_status_keeps_a_bounded_number_and_forgets_the_oldest_that_ended() {
        let rules = rules("");
        let mut keys = vec![made("living", 0, KeyState::Active)];
        for i in 0..40 {
            keys = begun(&keys, &format!("k{i}"), "d", &rules, at(i));
            keys = revoked(&keys, |generation| generation.id != "living");
        }
        assert_eq!(keys.len(), MAX_GENERATIONS);
        assert_eq!((keys[0].id.as_str(), keys[1].id.as_str(), keys[31].id.as_str()), ("living", "k9", "k39"));
        let full: Vec<_> = (0..32).map(|i| made(&i.to_string(), 0, KeyState::Retiring)).collect();
        assert!(!have_room(&full) && have_room(&full[1..]));
    }

    #[test]
    fn the_last_that_ended_stays_until_another_is_published() {
        let rules = rules(", rotation: {keepExpired: false}");
        let keys = revoked(&[made("k1", 0, KeyState::Active)], |_| true);
        let keys = begun(&aged(&keys, &rules, at(1)), "k2", "d", &rules, at(1));
        assert_eq!(states(&keys), [("k1", KeyState::Revoked), ("k2", KeyState::Pending)]);
        assert_eq!(states(&promoted(&keys, "k2", &rules, at(2))), [("k2", KeyState::Active)]);
    }
}
