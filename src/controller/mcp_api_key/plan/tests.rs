//! The plan in a model of a cluster: two operators that crash and interleave, replicas that lag
//! behind, people who rotate, revoke and tamper. Writes are refused by version, as the API server does.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

mod examples;

const OVERLAP: i64 = 100;
const INTERVAL: i64 = 1000;
const MAX_AGE: i64 = 5000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("in range")
}

/// The entry of the Secret that holds the text number `n`; 0 is no text and 255 is no key.
fn entry(n: u8) -> Entry {
    match n {
        0 => Entry::Absent,
        255 => Entry::Foreign,
        n => Entry::Key { id: format!("k{n}"), digest: format!("sha256:{n}") },
    }
}

fn generation(n: u8, state: KeyState, end: Option<i64>) -> KeyGeneration {
    KeyGeneration {
        id: format!("k{n}"),
        digest: format!("sha256:{n}"),
        created_at: Time(at(0)),
        not_after: end.map(|end| Time(at(end))),
        state,
    }
}

/// The object as it is written.
#[derive(Clone, Debug, Default)]
struct Object {
    version: u64,
    status: McpApiKeyStatus,
    rotate: Option<String>,
    revoke: Option<String>,
    expires: Option<i64>,
}

/// The Secret as it is written; it is always ours.
#[derive(Clone, Debug, Default)]
struct Stored {
    version: u64,
    held: Option<Held>,
}

/// How far an operator is in its pass.
#[derive(Clone, Debug, Default)]
enum Phase {
    #[default]
    Start,
    HasObject(Object),
    HasBoth(Object, Stored),
    /// The replicas have answered.
    HasAnswer(Object, Stored, bool),
    /// The object was read again and is the same.
    MayWrite(Stored, Write),
}

#[derive(Clone, Debug)]
enum Action {
    Operate(usize),
    Crash(usize),
    Learn(usize),
    Elapse(i64),
    Rotate,
    Revoke,
    Tamper(u8, u8),
    DeleteSecret,
    EndsIn(Option<i64>),
}

struct World {
    now: i64,
    object: Object,
    secret: Stored,
    operators: [Phase; 2],
    /// What each ready replica has seen of the object.
    replicas: [Vec<KeyGeneration>; 3],
    texts: u8,
    keep_expired: bool,
    rotates: bool,
    /// Whether a person revoked or tampered, so that something may end before its time.
    is_disturbed: bool,
    writes: usize,
}

impl World {
    fn new(keys: Vec<KeyGeneration>, held: Option<Held>, keep_expired: bool, rotates: bool) -> Self {
        let is_disturbed = !keys.is_empty() || held.is_some();
        let status = McpApiKeyStatus { keys: keys.clone(), ..McpApiKeyStatus::default() };
        Self {
            now: 10,
            object: Object { version: 1, status, ..Object::default() },
            secret: Stored { version: 1, held },
            operators: [Phase::Start, Phase::Start],
            replicas: [keys.clone(), keys.clone(), keys],
            texts: 20,
            keep_expired,
            rotates,
            is_disturbed,
            writes: 0,
        }
    }

    fn rules(&self, object: &Object) -> Rules {
        Rules {
            interval: self.rotates.then(|| SignedDuration::from_secs(INTERVAL)),
            overlap: SignedDuration::from_secs(OVERLAP),
            max_age: self.rotates.then(|| SignedDuration::from_secs(MAX_AGE)),
            keep_expired: self.keep_expired,
            expires_at: object.expires.map(at),
        }
    }

    fn step(&self, object: &Object, secret: &Stored, is_accepted: Option<bool>) -> Step {
        let secret = secret.held.clone().map_or(Seen::Absent, Seen::Ours);
        next_step(&Facts {
            rules: self.rules(object),
            may_begin: true,
            rotate: object.rotate.as_deref(),
            revoke: object.revoke.as_deref(),
            status: &object.status,
            secret: &secret,
            is_accepted,
            now: at(self.now),
        })
    }

    fn accept(&self, id: &str) -> bool {
        self.replicas.iter().all(|seen| {
            seen.iter().any(|g| g.id == id && !matches!(g.state, KeyState::Expired | KeyState::Revoked))
        })
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Operate(which) => self.operate(*which),
            Action::Crash(which) => self.operators[*which] = Phase::Start,
            Action::Learn(which) => self.replicas[*which].clone_from(&self.object.status.keys),
            Action::Elapse(seconds) => self.now += seconds,
            Action::Rotate => {
                self.object.version += 1;
                self.object.rotate = Some(self.object.version.to_string());
            }
            Action::Revoke => {
                self.object.version += 1;
                self.object.revoke = Some(self.object.version.to_string());
                self.is_disturbed = true;
            }
            Action::Tamper(current, next) => {
                let made_for = self.secret.held.as_ref().and_then(|held| held.made_for.clone());
                self.secret.version += 1;
                self.secret.held = Some(Held { current: entry(*current), next: entry(*next), made_for });
                self.is_disturbed = true;
            }
            Action::DeleteSecret => {
                self.secret = Stored { version: self.secret.version + 1, held: None };
                self.is_disturbed = true;
            }
            Action::EndsIn(end) => {
                self.object.version += 1;
                self.object.expires = end.map(|end| self.now + end);
                self.is_disturbed = true;
            }
        }
    }

    /// One request, or one decision, of an operator.
    fn operate(&mut self, which: usize) {
        let phase = std::mem::take(&mut self.operators[which]);
        self.operators[which] = match phase {
            Phase::Start => Phase::HasObject(self.object.clone()),
            Phase::HasObject(object) => Phase::HasBoth(object, self.secret.clone()),
            Phase::HasBoth(object, secret) => {
                let step = self.step(&object, &secret, None);
                match step {
                    Step::Ask(id) => {
                        let is_accepted = self.accept(&id);
                        Phase::HasAnswer(object, secret, is_accepted)
                    }
                    step => self.decided(step, &object, secret),
                }
            }
            Phase::HasAnswer(object, secret, is_accepted) => {
                let step = self.step(&object, &secret, Some(is_accepted));
                self.decided(step, &object, secret)
            }
            Phase::MayWrite(secret, write) => {
                if secret.version == self.secret.version {
                    self.write_secret(write);
                }
                Phase::Start
            }
        };
    }

    fn decided(&mut self, step: Step, object: &Object, secret: Stored) -> Phase {
        match step {
            Step::Status(change) => {
                if object.version == self.object.version {
                    self.write_status(change);
                }
                Phase::Start
            }
            Step::Secret(write) if object.version == self.object.version => Phase::MayWrite(secret, write),
            Step::Ask(_) => panic!("it was asked already"),
            Step::Secret(_) | Step::Rest | Step::Wait(_) | Step::Conflict => Phase::Start,
        }
    }

    fn write_status(&mut self, change: Change) {
        let before = std::mem::take(&mut self.object.status);
        let actives = |keys: &[KeyGeneration]| keys.iter().filter(|g| g.state == KeyState::Active).count();
        let mut after = before.clone();
        change.apply(&mut after);
        assert_ne!(before, after, "a write that changes nothing");
        assert!(actives(&after.keys) <= actives(&before.keys).max(1), "two active ones: {after:?}");
        assert!(after.keys.len() <= generations::MAX_GENERATIONS);
        for old in &before.keys {
            let new = after.keys.iter().find(|new| new.id == old.id);
            let new_state = new.map_or(KeyState::Expired, |new| new.state);
            match (old.state, new_state) {
                (KeyState::Retiring, KeyState::Expired) => {
                    let end = old.not_after.as_ref().map(|end| end.0);
                    let is_over = self.object.expires.is_some_and(|end| end <= self.now);
                    assert!(is_over || end.is_some_and(|end| end <= at(self.now)), "lost early: {old:?}");
                }
                (KeyState::Active, KeyState::Retiring) => {
                    let end = new.and_then(|new| new.not_after.as_ref()).expect("it has an end").0;
                    let by_age = old.created_at.0.as_second() + MAX_AGE;
                    assert!(end.as_second() >= (self.now + OVERLAP).min(by_age), "no overlap: {new:?}");
                }
                (KeyState::Active, KeyState::Expired) => {
                    let is_over = self.object.expires.is_some_and(|end| end <= self.now);
                    let is_old = self.rotates && old.created_at.0.as_second() + MAX_AGE <= self.now;
                    assert!(is_over || is_old, "lost early: {old:?}");
                }
                (KeyState::Active | KeyState::Retiring, KeyState::Revoked) => {
                    assert!(self.is_disturbed, "nobody revoked {old:?}");
                }
                (KeyState::Active | KeyState::Retiring, KeyState::Pending) => panic!("backwards: {old:?}"),
                (KeyState::Expired | KeyState::Revoked, new) => {
                    assert!(matches!(new, KeyState::Expired | KeyState::Revoked), "it rose again: {old:?}");
                }
                _ => {}
            }
        }
        self.object.status = after;
        self.object.version += 1;
        self.writes += 1;
    }

    fn write_secret(&mut self, write: Write) {
        let mut held = self.secret.held.clone().unwrap_or_default();
        match write {
            Write::Stage { keeps_current } => {
                self.texts += 1;
                held.next = entry(self.texts);
                held.made_for = Some(self.object.rotate.clone().unwrap_or_default());
                if !keeps_current {
                    held.current = Entry::Absent;
                }
            }
            Write::Publish => {
                let Entry::Key { id, .. } = &held.next else { panic!("nothing is published") };
                let keys = &self.object.status.keys;
                let is_first = keys.len() == 1;
                assert!(is_first || self.accept(id), "a replica does not accept {id}: {:?}", self.replicas);
                let state = keys.iter().find(|g| g.id == *id).map(|g| g.state);
                assert_eq!(state, Some(KeyState::Pending), "published {id}");
                held.current = std::mem::take(&mut held.next);
            }
            Write::Withdraw => held.current = Entry::Absent,
            Write::Unstage => held.next = Entry::Absent,
            Write::Strip => (held.current, held.next) = (Entry::Absent, Entry::Absent),
            Write::Delete => {}
        }
        self.secret.held = Some(held).filter(|_| write != Write::Delete);
        self.secret.version += 1;
        self.writes += 1;
    }

    /// Lets one operator work undisturbed until it rests.
    fn settle(&mut self) {
        self.operators = [Phase::Start, Phase::Start];
        let mut resting = 0;
        for _ in 0..400 {
            let writes = self.writes;
            self.operate(0);
            for which in 0..3 {
                self.act(&Action::Learn(which));
            }
            resting = if self.writes == writes { resting + 1 } else { 0 };
            if resting > 12 {
                return;
            }
        }
        panic!("it does not come to rest: {:?} {:?}", self.object, self.secret);
    }

    fn is_settled(&self) -> Result<(), String> {
        let keys = &self.object.status.keys;
        let held = self.secret.held.clone().unwrap_or_default();
        let active: Vec<_> = keys.iter().filter(|g| g.state == KeyState::Active).collect();
        let ids: BTreeSet<_> = keys.iter().map(|g| &g.id).collect();
        let problem = if ids.len() != keys.len() {
            "an id is there twice"
        } else if self.object.expires.is_some_and(|end| end <= self.now) {
            match (self.secret.held.is_some(), keys.iter().any(generations::is_living)) {
                (false, false) => return Ok(()),
                _ => "the key has ended and lives on",
            }
        } else if active.len() != 1 {
            "not one active generation"
        } else if !generations::have_room(keys) {
            return Ok(());
        } else if find(keys, &held.current) != Some(active[0]) {
            "the Secret does not hold the active one"
        } else if held.next != Entry::Absent || keys.iter().any(|g| g.state == KeyState::Pending) {
            "something is under way"
        } else if asks_to_rotate(self.object.rotate.as_deref(), &self.object.status) {
            "a wish to rotate is open"
        } else if self.object.revoke != self.object.status.handled_revoke {
            "a wish to revoke is open"
        } else {
            return Ok(());
        };
        Err(format!("{problem}: {:?} {:?}", self.object, self.secret))
    }
}

fn quiet() -> impl Strategy<Value = Action> {
    prop_oneof![
        24 => (0_usize..2).prop_map(Action::Operate),
        2 => (0_usize..2).prop_map(Action::Crash),
        6 => (0_usize..3).prop_map(Action::Learn),
        2 => (0_i64..150).prop_map(Action::Elapse),
        1 => (0_i64..1500).prop_map(Action::Elapse),
        1 => Just(Action::Rotate),
    ]
}

fn any_action() -> impl Strategy<Value = Action> {
    let number = || prop_oneof![Just(0_u8), Just(255), 1_u8..10, 21_u8..40];
    prop_oneof![
        20 => quiet(),
        1 => Just(Action::Revoke),
        1 => (number(), number()).prop_map(|(current, next)| Action::Tamper(current, next)),
        1 => Just(Action::DeleteSecret),
        1 => prop::option::of(0_i64..300).prop_map(Action::EndsIn),
    ]
}

fn any_keys() -> impl Strategy<Value = Vec<KeyGeneration>> {
    let state = prop_oneof![
        Just(KeyState::Pending),
        Just(KeyState::Active),
        Just(KeyState::Retiring),
        Just(KeyState::Expired),
        Just(KeyState::Revoked)
    ];
    let one = (state, prop::option::of(0_i64..400));
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let made = all.into_iter().zip(1_u8..);
        made.map(|((state, end), n)| generation(n, state, end)).collect()
    })
}

fn any_held() -> impl Strategy<Value = Option<Held>> {
    let number = || prop_oneof![2 => Just(0_u8), 1 => Just(255), 6 => 1_u8..8];
    let wish = prop::option::of(prop_oneof![Just(String::new()), Just("a".to_owned())]);
    let held = (number(), number(), wish).prop_map(|(current, next, made_for)| Held {
        current: entry(current),
        next: entry(next),
        made_for,
    });
    prop::option::of(held)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn from_any_state_whatever_happens_one_active_generation_is_published(
        keys in any_keys(),
        held in any_held(),
        keep in any::<bool>(),
        rotates in any::<bool>(),
        actions in prop::collection::vec(any_action(), 0..120),
    ) {
        let mut world = World::new(keys, held, keep, rotates);
        for action in &actions {
            world.act(action);
        }
        world.settle();
        world.is_settled().map_err(TestCaseError::fail)?;
        let writes = world.writes;
        world.settle();
        prop_assert_eq!(world.writes, writes, "a second pass writes nothing");
    }

    #[test]
    fn while_nobody_revokes_or_tampers_no_key_is_lost(
        keep in any::<bool>(),
        rotates in any::<bool>(),
        actions in prop::collection::vec(quiet(), 0..300),
    ) {
        let mut world = World::new(Vec::new(), None, keep, rotates);
        for action in &actions {
            world.act(action);
        }
        world.settle();
        world.is_settled().map_err(TestCaseError::fail)?;
        let (wished, done) = (&world.object.rotate, &world.object.status.handled_rotate);
        prop_assert!(wished == done || !generations::have_room(&world.object.status.keys));
    }
}
