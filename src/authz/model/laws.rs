//! Laws that hold whatever the roles are: what may be changed in them without giving more, less, or anything else.

use super::super::random::Random;
use super::comparison::*;
use super::random::{NAMESPACES, random_caller, random_roles, random_world};
use super::*;

/// Every answer to every question.
fn answers(roles: &[&Both], caller: &Caller, world: &World) -> Vec<bool> {
    let case = Case::new(&compiled(roles, world), roles, caller, world);
    let of = |question: &Question| {
        targets(world).into_iter().map(|asked| case.agree(question, asked, &[])).collect::<Vec<_>>()
    };
    questions().iter().flat_map(of).collect()
}

/// Whether nothing that the one says yes to is denied by the other.
fn within(less: &[bool], more: &[bool]) -> bool {
    less.len() == more.len() && less.iter().zip(more).all(|(less, more)| *more || !less)
}

fn count(answers: &[bool]) -> usize {
    answers.iter().filter(|yes| **yes).count()
}

/// Does something with many random sets of roles, and somebody who holds the first half of them.
fn with_random_roles(mut law: impl FnMut(&mut Random, &World, &Caller, &Others, &[(Written, Both)])) {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let world = random_world(&mut random);
        let (others, roles) = random_roles(&mut random, &world, 12);
        let caller = random_caller(&mut random);
        law(&mut random, &world, &caller, &others, &roles);
    }
}

#[test]
fn a_role_or_a_permission_more_never_takes_away() {
    let mut grown = 0;
    with_random_roles(|_, world, caller, others, roles| {
        let all: Vec<&Both> = roles.iter().map(|(_, role)| role).collect();
        let few = &all[..all.len() / 2];
        let (less, more) = (answers(few, caller, world), answers(&all, caller, world));
        assert!(within(&less, &more));
        grown += count(&more) - count(&less);
        let Some((written, role)) = roles.first() else { return };
        let mut longer = written.clone();
        longer.permissions.push("k8s:pods:*".to_owned());
        let longer = inheriting(&longer, "role", others, world).expect("accepted");
        let (less, more) = (answers(&[role], caller, world), answers(&[&longer], caller, world));
        assert!(within(&less, &more), "{written:?}");
        grown += count(&more) - count(&less);
    });
    assert!(grown > 1000, "{grown} say little");
}

#[test]
fn neither_order_nor_repetition_of_anything_that_is_written_matters() {
    with_random_roles(|_, world, caller, others, roles| {
        let same = |(written, _): &(Written, Both)| {
            let mut turned = written.clone();
            turned.permissions.reverse();
            turned.permissions.extend(written.permissions.clone());
            turned.inherits.reverse();
            turned.inherits.extend(written.inherits.clone());
            if let Place::Cluster(names, ..) = &mut turned.place {
                names.reverse();
                names.extend(names.clone());
            }
            turned
        };
        let turned = roles.iter().rev().enumerate();
        let turned: Vec<Both> = turned
            .map(|(i, role)| {
                inheriting(&same(role), &format!("other-{i}"), others, world).expect("as accepted as before")
            })
            .collect();
        // Every role twice, under two names, the other way round.
        let twice: Vec<&Both> = turned.iter().chain(roles.iter().map(|(_, role)| role)).collect();
        let once: Vec<&Both> = roles.iter().map(|(_, role)| role).collect();
        assert_eq!(answers(&once, caller, world), answers(&twice, caller, world));
    });
}

#[test]
fn a_narrower_glob_never_gives_more() {
    let mut narrowed = 0;
    with_random_roles(|random, world, caller, others, roles| {
        for (written, role) in roles {
            let Place::Cluster(names, None, false) = &written.place else { continue };
            // Something that is fixed in place of one of the stars, beside it, or before it.
            let fixed = *random.pick(&["", "a", "team-", "-system", "a*", "*a", "team*-"]);
            let narrower: Vec<String> = names.iter().map(|name| name.replacen('*', fixed, 1)).collect();
            if narrower == *names || narrower.iter().any(String::is_empty) {
                continue;
            }
            let place = Place::Cluster(narrower.clone(), None, false);
            let narrow = Written { place, ..written.clone() };
            let Some(narrow) = inheriting(&narrow, "role", others, world) else { continue };
            let protected = |name: &String| name.starts_with("kube-") || name == OPERATOR_NAMESPACE;
            // A literal name of a protected namespace is no narrower glob: it is the only thing that reaches it.
            if narrower.iter().any(protected) {
                continue;
            }
            let (less, more) = (answers(&[&narrow], caller, world), answers(&[role], caller, world));
            assert!(within(&less, &more), "{names:?} to {narrower:?}");
            narrowed += count(&more) - count(&less);
        }
    });
    assert!(narrowed > 300, "{narrowed} say little");
}

#[test]
fn a_tenant_only_takes_away() {
    let mut taken = 0;
    with_random_roles(|_, world, _, _, roles| {
        let roles: Vec<&Both> = roles.iter().map(|(_, role)| role).collect();
        let free = answers(&roles, &Caller::default(), world);
        for tenant in ["red", "blue", "green", ""] {
            for must_belong in [false, true] {
                let caller = Caller { tenant: Some(tenant.to_owned()), must_belong };
                let confined = answers(&roles, &caller, world);
                assert!(within(&confined, &free), "{caller:?}");
                taken += count(&free) - count(&confined);
            }
        }
    });
    assert!(taken > 1000, "{taken} say little");
}

#[test]
fn what_is_listed_can_be_called_somewhere_and_what_can_be_called_is_listed() {
    let mut listed = 0;
    with_random_roles(|_, world, caller, others, roles| {
        // Namespaces that are not there, one for every glob, can be asked about as well.
        let examples = roles.iter().flat_map(|(_, role)| role.meaning.namespaces.iter().cloned());
        let examples = examples.filter(|name| !world.namespaces.contains_key(name)).map(|name| (name, None));
        let world = &comparison::world(world.namespaces.clone().into_iter().chain(examples));
        let again = roles.iter().enumerate().map(|(i, (written, _))| {
            inheriting(written, &format!("role-{i}"), others, world).expect("as accepted as before")
        });
        let again: Vec<Both> = again.collect();
        let roles: Vec<&Both> = again.iter().collect();
        let case = Case::new(&compiled(&roles, world), &roles, caller, world);
        for question in &questions() {
            let callable = world.namespaces.keys().any(|name| case.agree(question, Asked::In(name), &[]));
            assert_eq!(case.agree(question, Asked::Anywhere, &[]), callable, "{}", question.1);
            // All at once is more than each by itself.
            if case.agree(question, Asked::Everywhere, &[]) {
                assert!(world.namespaces.keys().all(|name| case.agree(question, Asked::In(name), &[])));
            }
            listed += usize::from(callable);
        }
    });
    assert!(listed > 500, "{listed} say little");
}

#[test]
fn names_that_change_places_everywhere_change_places_in_the_answers() {
    let renamed = |name: &str| match name {
        "team-a" => "agents".to_owned(),
        "agents" => "team-a".to_owned(),
        other => other.to_owned(),
    };
    with_random_roles(|_, world, caller, others, roles| {
        let namespaces = world.namespaces.iter().map(|(name, labels)| (renamed(name), labels.clone()));
        let other_world = comparison::world(namespaces);
        // Globs tell the two apart by their letters, so only literal names are exchanged.
        let is_literal = |names: &[String]| !names.iter().any(|name| name.contains('*'));
        let mut pairs = Vec::new();
        for (written, role) in roles {
            let place = match &written.place {
                Place::Own(own) => Place::Own(renamed(own)),
                Place::Cluster(names, selector, everywhere) if is_literal(names) => {
                    let names = names.iter().map(|name| renamed(name)).collect();
                    Place::Cluster(names, selector.clone(), *everywhere)
                }
                Place::Cluster(..) => continue,
            };
            let other = Written { place, ..written.clone() };
            let other = inheriting(&other, &format!("role-{}", pairs.len()), others, &other_world);
            pairs.push((role, other.expect("as accepted as before")));
        }
        let here: Vec<&Both> = pairs.iter().map(|(role, _)| *role).collect();
        let there: Vec<&Both> = pairs.iter().map(|(_, role)| role).collect();
        let here = Case::new(&compiled(&here, world), &here, caller, world);
        let there = Case::new(&compiled(&there, &other_world), &there, caller, &other_world);
        for question in &questions() {
            for name in NAMESPACES {
                let other = renamed(name);
                assert_eq!(
                    here.agree(question, Asked::In(name), &[]),
                    there.agree(question, Asked::In(&other), &[]),
                    "{name}"
                );
            }
        }
    });
}
