//! The plan by examples, in the same model.

use super::*;

fn settled() -> World {
    let mut world = World::new(Vec::new(), None, true, false);
    world.is_disturbed = false;
    world.settle();
    world.is_settled().expect("it is settled");
    world
}

fn states(world: &World) -> Vec<KeyState> {
    world.object.status.keys.iter().map(|generation| generation.state).collect()
}

/// The next step that an operator would take now, if the replicas have not been asked.
fn next(world: &World) -> Step {
    world.step(&world.object, &world.secret, None)
}

#[test]
fn the_first_key_waits_for_nobody() {
    let mut world = World::new(Vec::new(), None, true, false);
    assert_eq!(next(&world), Step::Secret(Write::Stage { keeps_current: false }));
    world.write_secret(Write::Stage { keeps_current: false });
    let Step::Status(change) = next(&world) else { panic!("{:?}", next(&world)) };
    world.write_status(change);
    assert_eq!(states(&world), [KeyState::Pending]);
    assert_eq!(next(&world), Step::Secret(Write::Publish));
}

#[test]
fn a_rotation_publishes_when_every_replica_accepts_and_then_retires_the_old_one() {
    let mut world = settled();
    world.act(&Action::Rotate);
    for _ in 0..20 {
        world.act(&Action::Operate(0));
    }
    assert_eq!(states(&world), [KeyState::Active, KeyState::Pending], "it waits");
    let held = world.secret.held.clone().expect("a Secret");
    assert_eq!((held.current, held.next), (entry(21), entry(22)));
    for which in [0, 1] {
        world.act(&Action::Learn(which));
    }
    let id = "k22".to_owned();
    assert_eq!(next(&world), Step::Ask(id.clone()));
    assert_eq!(world.step(&world.object, &world.secret, Some(false)), Step::Wait(id));
    world.settle();
    assert_eq!(states(&world), [KeyState::Retiring, KeyState::Active]);
    assert_eq!(world.object.status.keys[0].not_after, Some(Time(at(world.now + OVERLAP))));
    assert_eq!(world.object.status.handled_rotate, world.object.rotate);
    assert_eq!(world.object.status.last_rotated_at, Some(Time(at(world.now))));
    world.now += OVERLAP;
    world.settle();
    assert_eq!(states(&world), [KeyState::Expired, KeyState::Active]);
}

#[test]
fn a_wish_during_a_rotation_starts_another_one_after_it() {
    let mut world = settled();
    world.act(&Action::Rotate);
    for _ in 0..20 {
        world.act(&Action::Operate(0));
    }
    world.act(&Action::Rotate);
    world.settle();
    assert_eq!(states(&world), [KeyState::Retiring, KeyState::Retiring, KeyState::Active]);
}

#[test]
fn by_schedule_a_rotation_begins_at_the_interval() {
    let mut world = World::new(Vec::new(), None, true, true);
    world.settle();
    world.now += INTERVAL - 1;
    assert_eq!(next(&world), Step::Rest);
    world.now += 1;
    assert_eq!(next(&world), Step::Secret(Write::Stage { keeps_current: true }));
}

#[test]
fn a_revocation_ends_everything_at_once_and_a_new_key_is_made() {
    let mut world = settled();
    world.act(&Action::Rotate);
    world.settle();
    world.act(&Action::Revoke);
    assert_eq!(next(&world), Step::Secret(Write::Strip), "no text stays readable");
    world.write_secret(Write::Strip);
    let Step::Status(change) = next(&world) else { panic!("{:?}", next(&world)) };
    world.write_status(change);
    assert_eq!(states(&world), [KeyState::Revoked, KeyState::Revoked]);
    assert_eq!(world.object.status.handled_revoke, world.object.revoke, "by the same write");
    world.settle();
    assert_eq!(states(&world), [KeyState::Revoked, KeyState::Revoked, KeyState::Active]);
}

#[test]
fn a_publication_that_was_decided_before_a_revocation_fails() {
    let mut world = settled();
    world.act(&Action::Rotate);
    for _ in 0..20 {
        world.act(&Action::Operate(0));
    }
    for which in 0..3 {
        world.act(&Action::Learn(which));
    }
    while !matches!(world.operators[0], Phase::MayWrite(_, Write::Publish)) {
        world.operate(0);
    }
    world.act(&Action::Revoke);
    for _ in 0..6 {
        world.act(&Action::Operate(1));
    }
    world.act(&Action::Operate(0));
    assert!(world.secret.held.as_ref().is_some_and(|held| held.current == Entry::Absent));
}

#[test]
fn an_operator_that_read_an_old_object_cannot_touch_a_newer_secret() {
    let mut world = settled();
    world.act(&Action::Revoke);
    while world.object.status.handled_revoke != world.object.revoke {
        world.operate(1);
    }
    world.operators = [Phase::Start, Phase::Start];
    world.operate(0);
    for _ in 0..40 {
        world.operate(1);
        (0..3).for_each(|which| world.act(&Action::Learn(which)));
    }
    let published = world.secret.held.clone();
    assert!(published.as_ref().is_some_and(|held| held.current == entry(22)), "{published:?}");
    for _ in 0..3 {
        world.operate(0);
    }
    assert_eq!(world.secret.held, published);
}

#[test]
fn a_deleted_or_changed_secret_revokes_what_it_held() {
    for tampering in
        [Action::DeleteSecret, Action::Tamper(9, 0), Action::Tamper(255, 0), Action::Tamper(0, 0)]
    {
        let mut world = settled();
        world.act(&tampering);
        world.settle();
        assert_eq!(states(&world), [KeyState::Revoked, KeyState::Active], "{tampering:?}");
        assert!(!world.object.status.keys.iter().any(|generation| generation.id == "k9"), "nothing foreign");
    }
}

#[test]
fn a_text_that_somebody_else_puts_next_is_removed() {
    let mut world = settled();
    world.act(&Action::Tamper(21, 9));
    assert_eq!(next(&world), Step::Secret(Write::Unstage));
}

#[test]
fn a_lost_status_is_restored_from_our_secret() {
    let mut world = settled();
    world.object.status = McpApiKeyStatus::default();
    world.settle();
    assert_eq!(states(&world), [KeyState::Active]);
    assert_eq!(world.object.status.keys[0].id, "k21");
}

#[test]
fn a_key_that_has_ended_cannot_be_read_and_an_extended_one_is_another() {
    let mut world = settled();
    world.act(&Action::EndsIn(Some(5)));
    assert_eq!(next(&world), Step::Rest);
    world.now += 5;
    assert_eq!(next(&world), Step::Secret(Write::Delete));
    world.settle();
    assert_eq!((states(&world), world.secret.held.is_some()), (vec![KeyState::Expired], false));
    world.act(&Action::EndsIn(Some(500)));
    world.settle();
    assert_eq!(states(&world), [KeyState::Expired, KeyState::Active]);
}

#[test]
fn a_key_that_is_too_old_ends_even_if_it_could_not_be_replaced() {
    let mut world = World::new(Vec::new(), None, true, true);
    world.settle();
    world.now += MAX_AGE;
    for _ in 0..40 {
        world.act(&Action::Operate(0));
    }
    assert_eq!(states(&world), [KeyState::Expired, KeyState::Pending]);
    let held = world.secret.held.clone().expect("a Secret");
    assert_eq!(held.current, Entry::Absent, "an ended key cannot be read");
    world.settle();
    assert_eq!(states(&world), [KeyState::Expired, KeyState::Active]);
}

#[test]
fn a_key_that_cannot_work_begins_no_other_and_still_ends() {
    let mut world = settled();
    world.act(&Action::Rotate);
    let step = |world: &World| {
        let secret = world.secret.held.clone().map_or(Seen::Absent, Seen::Ours);
        next_step(&Facts {
            rules: world.rules(&world.object),
            may_begin: false,
            rotate: world.object.rotate.as_deref(),
            revoke: world.object.revoke.as_deref(),
            status: &world.object.status,
            secret: &secret,
            is_accepted: None,
            now: at(world.now),
        })
    };
    assert_eq!(step(&world), Step::Rest);
    world.act(&Action::Revoke);
    assert_eq!(step(&world), Step::Secret(Write::Strip));
}

#[test]
fn a_secret_of_somebody_else_is_left_alone() {
    let world = settled();
    let facts = |status| Facts {
        rules: world.rules(&world.object),
        may_begin: true,
        rotate: None,
        revoke: None,
        status,
        secret: &Seen::Foreign,
        is_accepted: None,
        now: at(world.now),
    };
    assert_eq!(next_step(&facts(&world.object.status)), Step::Conflict);
}
