//! Which step comes next for a key. Pure: the status and the Secret are arguments, randomness comes later.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{KeyGeneration, KeyState};
use crate::authn::{ApiKey, api_key};

/// Generations that are kept in a status; the oldest revoked ones go first.
const MAX_GENERATIONS: usize = 32;

/// Makes the generations once the new key is there.
type WithNewKey = Box<dyn FnOnce(&ApiKey, Timestamp) -> Vec<KeyGeneration> + Send>;

/// What is to be done.
pub(super) enum Step {
    /// The status and the Secret agree.
    Keep(Vec<KeyGeneration>),
    /// The Secret, which is ours, holds a key that the status does not know: it is taken into the status.
    Adopt(Vec<KeyGeneration>),
    /// There is no key, or not the right one: a new one is made; the function gives the generations with it.
    Generate(WithNewKey),
}

/// Decides from what the status says and what the Secret holds.
///
/// - An active generation whose text the Secret holds: nothing to do.
/// - A Secret with a key of which the status knows nothing at all: the status was lost, the key is adopted.
/// - Anything else: what was active is revoked, because nobody can tell who has it, and a new key is made.
pub(super) fn next_step(generations: Vec<KeyGeneration>, held: Option<&ApiKey>, now: Timestamp) -> Step {
    if let Some(held) = held {
        let digest = api_key::format_digest(&held.digest());
        let is_held = |generation: &KeyGeneration| generation.id == held.id() && generation.digest == digest;
        if generations.iter().any(|generation| is_held(generation) && generation.state == KeyState::Active) {
            return Step::Keep(revoke(generations, |generation| !is_held(generation)));
        }
        if generations.is_empty() {
            return Step::Adopt(with(generations, held, now));
        }
    }
    let revoked = revoke(generations, |_| true);
    Step::Generate(Box::new(move |fresh, now| with(revoked, fresh, now)))
}

fn revoke(generations: Vec<KeyGeneration>, which: impl Fn(&KeyGeneration) -> bool) -> Vec<KeyGeneration> {
    let revoke = |generation: KeyGeneration| match which(&generation) {
        true => KeyGeneration { state: KeyState::Revoked, ..generation },
        false => generation,
    };
    generations.into_iter().map(revoke).collect()
}

fn with(mut generations: Vec<KeyGeneration>, key: &ApiKey, now: Timestamp) -> Vec<KeyGeneration> {
    let surplus = (generations.len() + 1).saturating_sub(MAX_GENERATIONS);
    generations.drain(..surplus);
    generations.push(KeyGeneration {
        id: key.id().to_owned(),
        digest: api_key::format_digest(&key.digest()),
        created_at: Time(now),
        not_after: None,
        state: KeyState::Active,
    });
    generations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> ApiKey {
        ApiKey::generate([seed; 10], [seed; 32])
    }

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    /// Ids and states after the step, where a new key has the seed 9.
    fn after(step: Step) -> (&'static str, Vec<(String, KeyState)>) {
        let (word, generations) = match step {
            Step::Keep(generations) => ("keep", generations),
            Step::Adopt(generations) => ("adopt", generations),
            Step::Generate(make) => ("generate", make(&key(9), now())),
        };
        (word, generations.into_iter().map(|generation| (generation.id, generation.state)).collect())
    }

    fn id(seed: u8) -> String {
        key(seed).id().to_owned()
    }

    #[test]
    fn a_new_key_is_generated_and_then_kept() {
        let (word, generations) = after(next_step(Vec::new(), None, now()));
        assert_eq!((word, generations), ("generate", vec![(id(9), KeyState::Active)]));
        let known = with(Vec::new(), &key(9), now());
        assert_eq!(after(next_step(known, Some(&key(9)), now())).0, "keep");
    }

    #[test]
    fn stopped_before_the_secret_was_written_the_unseen_generation_is_revoked() {
        let known = with(Vec::new(), &key(1), now());
        assert_eq!(
            after(next_step(known, None, now())),
            ("generate", vec![(id(1), KeyState::Revoked), (id(9), KeyState::Active)])
        );
    }

    #[test]
    fn a_text_that_somebody_else_put_into_the_secret_is_never_accepted() {
        let known = with(Vec::new(), &key(1), now());
        assert_eq!(
            after(next_step(known, Some(&key(2)), now())),
            ("generate", vec![(id(1), KeyState::Revoked), (id(9), KeyState::Active)])
        );
        let revoked = revoke(with(Vec::new(), &key(1), now()), |_| true);
        assert_eq!(
            after(next_step(revoked, Some(&key(1)), now())),
            ("generate", vec![(id(1), KeyState::Revoked), (id(9), KeyState::Active)])
        );
    }

    #[test]
    fn a_lost_status_is_restored_from_our_secret() {
        assert_eq!(
            after(next_step(Vec::new(), Some(&key(1)), now())),
            ("adopt", vec![(id(1), KeyState::Active)])
        );
    }

    #[test]
    fn there_is_never_more_than_one_active_generation() {
        let two = with(with(Vec::new(), &key(1), now()), &key(2), now());
        assert_eq!(
            after(next_step(two, Some(&key(1)), now())),
            ("keep", vec![(id(1), KeyState::Active), (id(2), KeyState::Revoked)])
        );
    }

    #[test]
    fn a_status_keeps_a_bounded_number_of_generations() {
        let mut known = Vec::new();
        for seed in 0..40 {
            known = with(revoke(known, |_| true), &key(seed), now());
        }
        assert_eq!(known.len(), MAX_GENERATIONS);
        assert_eq!(known.last().map(|generation| generation.id.clone()), Some(id(39)));
    }
}
