//! The life of keys step by step, and any order of steps, crashes and leaders at once.

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

const LIFETIME: SignedDuration = SignedDuration::from_secs(300);
/// Tokens are accepted this much longer.
const LEEWAY: SignedDuration = SignedDuration::from_secs(30);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn key(number: usize, now: Timestamp) -> SigningKey {
    SigningKey {
        kid: format!("k{number}"),
        private_key: String::new(),
        public_key: String::new(),
        created_at: now,
        state: SigningKeyState::Pending,
        not_after: None,
    }
}

fn asked() -> Asked {
    Asked { rotate: None, revoke: None, lifetime: LIFETIME, rotation: SignedDuration::from_hours(24) }
}

fn to_rotate() -> Asked {
    Asked { rotate: Some("now".into()), ..asked() }
}

/// A replica that has read this content.
fn replica(held: Option<&Held>) -> ReplicaState {
    let kids = |held: &Held| held.keys.iter().map(|key| key.kid.clone()).collect();
    ReplicaState {
        verification_keys: held.map(kids).unwrap_or_default(),
        signing_key: held.and_then(|held| held.active().map(|key| key.kid.clone())),
        ..ReplicaState::default()
    }
}

fn step(
    held: Option<&Held>,
    asked: &Asked,
    replicas: Option<&[ReplicaState]>,
    seconds: i64,
    number: usize,
) -> Option<(Held, Change)> {
    let Ok(next) = next::<Infallible>(held, asked, replicas, at(seconds), || Ok(key(number, at(seconds))));
    next
}

/// The one key of a server that has just begun.
fn first(asked: &Asked) -> Held {
    step(None, asked, Some(&[]), 0, 1).expect("a step").0
}

/// Keys as `k1:Active`.
fn shown(held: &Held) -> Vec<String> {
    held.keys.iter().map(|key| format!("{}:{:?}", key.kid, key.state)).collect()
}

#[test]
fn without_replicas_the_first_key_signs_at_once() {
    let (held, change) = step(None, &asked(), Some(&[]), 0, 1).expect("a step");
    assert_eq!((shown(&held), change), (vec!["k1:Active".to_owned()], Change::Created("k1".into())));
    assert!(step(Some(&held), &asked(), Some(&[]), 1, 2).is_none());
}

#[test]
fn where_replicas_run_the_first_key_signs_when_all_verify_with_it() {
    for replicas in [Some(&[replica(None)][..]), None] {
        let (held, change) = step(None, &asked(), replicas, 0, 1).expect("a step");
        assert_eq!((shown(&held), change), (vec!["k1:Pending".to_owned()], Change::Announced));
        assert!(step(Some(&held), &asked(), replicas, 1, 2).is_none());
        let (held, change) =
            step(Some(&held), &asked(), Some(&[replica(Some(&held))]), 2, 2).expect("a step");
        assert_eq!((shown(&held), change), (vec!["k1:Active".to_owned()], Change::Created("k1".into())));
    }
}

#[test]
fn a_rotation_waits_for_every_replica_at_every_step() {
    let (first, rotate) = (first(&asked()), to_rotate());
    let (announced, change) = step(Some(&first), &rotate, None, 10, 2).expect("a step");
    assert_eq!(shown(&announced), ["k1:Active", "k2:Pending"]);
    assert_eq!(change, Change::Announced);
    let (old, new) = (replica(Some(&first)), replica(Some(&announced)));
    for waiting in [None, Some(&[][..]), Some(&[old, new.clone()][..])] {
        assert!(step(Some(&announced), &rotate, waiting, 11, 3).is_none());
    }
    let both = [new.clone(), new.clone()];
    let (rotated, change) = step(Some(&announced), &rotate, Some(&both), 12, 3).expect("a step");
    assert_eq!(shown(&rotated), ["k1:Retiring", "k2:Active"]);
    assert_eq!(change, Change::Rotated("k2".into()));
    // One still signs with the first key, so nobody knows when its last token ends.
    let signs = replica(Some(&rotated));
    assert!(step(Some(&rotated), &rotate, Some(&[new, signs.clone()]), 100, 3).is_none());
    let (limited, _) = step(Some(&rotated), &rotate, Some(&[signs.clone(), signs]), 200, 3).expect("a step");
    assert_eq!(limited.next_end(), Some(at(200 + 300 + 60)));
    assert!(step(Some(&limited), &rotate, None, 559, 3).is_none());
    let (alone, _) = step(Some(&limited), &rotate, None, 560, 3).expect("a step");
    assert_eq!(shown(&alone), ["k2:Active"]);
    assert!(step(Some(&alone), &rotate, None, 561, 3).is_none(), "one annotation is one rotation");
}

#[test]
fn a_key_that_has_signed_for_long_enough_is_replaced() {
    let first = first(&asked());
    assert!(step(Some(&first), &asked(), None, 24 * 3600 - 1, 2).is_none());
    let (next, _) = step(Some(&first), &asked(), None, 24 * 3600, 2).expect("a step");
    assert_eq!(shown(&next), ["k1:Active", "k2:Pending"]);
}

#[test]
fn a_revocation_replaces_every_key_at_once_and_is_told_when_no_replica_knows_an_old_one() {
    let (announced, _) = step(Some(&first(&asked())), &to_rotate(), None, 10, 2).expect("a step");
    let revoke = Asked { revoke: Some("leaked".into()), ..to_rotate() };
    let (revoked, change) = step(Some(&announced), &revoke, None, 11, 3).expect("a step");
    assert_eq!((shown(&revoked), change), (vec!["k3:Active".to_owned()], Change::Revoked("k3".into())));
    assert!(step(Some(&revoked), &revoke, None, 12, 4).is_none(), "both annotations are carried out");
    let awaited = revoked.awaited(None).expect("a wait");
    assert!(!is_done(&awaited, Some(&[replica(Some(&revoked)), replica(Some(&announced))])));
    assert!(!is_done(&awaited, Some(&[])) && !is_done(&awaited, None));
    assert!(is_done(&awaited, Some(&[replica(Some(&revoked))])));
    assert_eq!(revoked.awaited(Some("leaked")), None);
}

#[test]
fn keys_that_come_back_from_an_old_copy_are_revoked_again() {
    let revoke = Asked { revoke: Some("leaked".into()), ..asked() };
    let (next, change) = step(Some(&first(&asked())), &revoke, None, 9, 2).expect("a step");
    assert_eq!((shown(&next), change), (vec!["k2:Active".to_owned()], Change::Revoked("k2".into())));
}

#[test]
fn tokens_that_lasted_longer_before_are_waited_for() {
    let long = Asked { lifetime: SignedDuration::from_secs(3600), ..asked() };
    let rotate = to_rotate();
    let (announced, _) = step(Some(&first(&long)), &rotate, None, 10, 2).expect("a step");
    let all = [replica(Some(&announced))];
    let (rotated, _) = step(Some(&announced), &rotate, Some(&all), 11, 3).expect("a step");
    let all = [replica(Some(&rotated))];
    let (limited, _) = step(Some(&rotated), &rotate, Some(&all), 12, 3).expect("a step");
    assert_eq!(limited.next_end(), Some(at(12 + 3600 + 60)));
    // A longer life is on record before any rotation.
    let (noted, change) = step(Some(&first(&asked())), &long, None, 1, 2).expect("a step");
    assert_eq!((noted.longest_lifetime, change), (long.lifetime, Change::Noted));
}

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Happening {
    /// A leader reads the object, the Secret and then the replicas.
    Look(usize),
    /// A leader takes the step that follows from its last look; the write counts only if nobody wrote since.
    Act(usize),
    /// A leader writes the status that follows from its last look.
    Report(usize),
    /// A leader stops and forgets all that it saw.
    Crash(usize),
    /// A replica reads the Secret, or is replaced by a new one that does.
    Learn(usize),
    /// Somebody asks for a rotation.
    Rotate,
    /// Somebody asks for a revocation.
    Revoke,
    /// A replica makes a token.
    Mint(usize),
    /// Time passes.
    Pass(i64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0..2_usize).prop_map(Happening::Look),
        6 => (0..2_usize).prop_map(Happening::Act),
        3 => (0..2_usize).prop_map(Happening::Report),
        1 => (0..2_usize).prop_map(Happening::Crash),
        6 => (0..3_usize).prop_map(Happening::Learn),
        1 => Just(Happening::Rotate),
        1 => Just(Happening::Revoke),
        4 => (0..3_usize).prop_map(Happening::Mint),
        3 => (1..400_i64).prop_map(Happening::Pass),
    ]
}

/// What a leader has seen.
struct Look {
    version: usize,
    held: Option<Held>,
    asked: Asked,
    replicas: Vec<ReplicaState>,
}

/// A cluster of three replicas and two leaders that both believe in themselves.
struct World {
    now: i64,
    version: usize,
    held: Option<Held>,
    asked: Asked,
    handled_revoke: Option<String>,
    replicas: [Option<Held>; 3],
    looks: [Option<Look>; 2],
    /// Key and end of every token that must be accepted.
    tokens: Vec<(String, Timestamp)>,
    /// Keys that were revoked.
    revoked: Vec<String>,
    made: usize,
    annotations: usize,
}

impl World {
    fn new() -> Self {
        World {
            now: 0,
            version: 0,
            held: None,
            asked: Asked { rotation: SignedDuration::from_hours(100_000), ..asked() },
            handled_revoke: None,
            replicas: [None, None, None],
            looks: [None, None],
            tokens: Vec::new(),
            revoked: Vec::new(),
            made: 0,
            annotations: 0,
        }
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Look(leader) => {
                self.looks[*leader] = Some(Look {
                    version: self.version,
                    held: self.held.clone(),
                    asked: self.asked.clone(),
                    replicas: self.replicas.iter().map(|held| replica(held.as_ref())).collect(),
                });
            }
            Happening::Act(leader) => self.act(*leader),
            Happening::Report(leader) => self.report(*leader),
            Happening::Crash(leader) => self.looks[*leader] = None,
            Happening::Learn(replica) => self.replicas[*replica].clone_from(&self.held),
            Happening::Rotate => {
                self.annotations += 1;
                self.asked.rotate = Some(self.annotations.to_string());
            }
            Happening::Revoke => {
                self.annotations += 1;
                self.asked.revoke = Some(self.annotations.to_string());
                self.tokens.clear();
            }
            Happening::Mint(replica) => {
                let active = self.replicas[*replica].as_ref().and_then(Held::active);
                if let Some(active) = active.filter(|_| self.accepts_tokens()) {
                    self.tokens.push((active.kid.clone(), at(self.now) + LIFETIME + LEEWAY));
                }
            }
            Happening::Pass(seconds) => self.now += seconds,
        }
        let now = at(self.now);
        self.tokens.retain(|(_, end)| *end > now);
    }

    /// As the endpoint decides it: by the annotation and the status.
    fn accepts_tokens(&self) -> bool {
        self.asked.revoke.is_none() || self.asked.revoke == self.handled_revoke
    }

    fn act(&mut self, leader: usize) {
        let Some(look) = self.looks[leader].take() else { return };
        let (now, number) = (at(self.now), self.made + 1);
        let make = || Ok::<_, Infallible>(key(number, now));
        let Ok(next) = next(look.held.as_ref(), &look.asked, Some(&look.replicas), now, make);
        let Some((next, change)) = next.filter(|_| look.version == self.version) else { return };
        if let Change::Revoked(_) = change {
            let old = self.held.iter().flat_map(|held| &held.keys);
            self.revoked.extend(old.map(|key| key.kid.clone()));
        }
        self.made += usize::from(next.keys.iter().any(|key| key.kid == format!("k{number}")));
        (self.held, self.version) = (Some(next), self.version + 1);
    }

    fn report(&mut self, leader: usize) {
        let Some(Look { held: Some(held), replicas, .. }) = &self.looks[leader] else { return };
        if let Some(awaited @ Awaited::Forget(..)) = held.awaited(self.handled_revoke.as_deref())
            && is_done(&awaited, Some(replicas))
        {
            self.handled_revoke.clone_from(&held.handled_revoke);
        }
    }

    fn check(&self) {
        let now = at(self.now);
        let keys = || self.held.iter().flat_map(|held| &held.keys);
        let count = |state: SigningKeyState| keys().filter(|key| key.state == state).count();
        assert!(count(SigningKeyState::Active) <= 1 && count(SigningKeyState::Pending) <= 1);
        if !self.accepts_tokens() {
            return;
        }
        for known in &self.replicas {
            let known = || known.iter().flat_map(|held| &held.keys);
            // Every token is accepted by every replica until its end, whichever made it, and none that was revoked.
            for (kid, _) in &self.tokens {
                let key = known().find(|key| key.kid == *kid);
                assert!(key.is_some_and(|key| key.not_after.is_none_or(|end| end > now)), "{kid} is refused");
            }
            assert!(known().all(|key| !self.revoked.contains(&key.kid)), "a revoked key is accepted");
        }
    }

    /// Everything goes on undisturbed until nothing is left to do.
    fn settle(&mut self) {
        let pass = [
            Happening::Look(0),
            Happening::Act(0),
            Happening::Look(0),
            Happening::Report(0),
            Happening::Learn(0),
            Happening::Learn(1),
            Happening::Learn(2),
            Happening::Pass(60),
        ];
        for happening in pass.iter().cycle().take(pass.len() * 20) {
            self.happen(happening);
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_token_is_refused_early_and_the_keys_settle(
        happenings in proptest::collection::vec(happening(), 0..160)
    ) {
        let mut world = World::new();
        for happening in &happenings {
            world.happen(happening);
            world.check();
        }
        world.settle();
        let held = world.held.as_ref().expect("a key");
        prop_assert_eq!(shown(held), vec![format!("{}:Active", held.keys[0].kid)]);
        prop_assert_eq!(&held.handled_rotate, &world.asked.rotate);
        prop_assert_eq!(&world.handled_revoke, &world.asked.revoke);
        // Two leaders and any crash make one key for each thing that was asked for, at most.
        prop_assert!(world.made <= 1 + world.annotations, "{} keys for {}", world.made, world.annotations);
    }
}
