//! What the random and the exhaustive cases do not ask: servers, scopes of credentials, and the matcher of globs.

use super::super::random::Random;
use super::super::scope::wildcard;
use super::super::{Grants, Permission, Target, authorize, within_scopes};
use super::comparison::*;
use super::random::{NAMESPACES, random_pattern, random_roles, random_world};
use super::*;

#[test]
fn a_random_role_counts_for_the_servers_that_the_model_says() {
    let mut random = Random::new(1);
    let world = random_world(&mut random);
    let mut selected = 0;
    for (_, role) in random_roles(&mut random, &world, 5000).1 {
        for namespace in NAMESPACES {
            for server in ["ops", "dev", "*", "other", ""] {
                let expected = role.meaning.selects(namespace, server);
                assert_eq!(
                    role.real.selects(namespace, server),
                    expected,
                    "{namespace}/{server}: {role:?}",
                    role = role.real
                );
                selected += usize::from(expected);
            }
        }
    }
    assert!(selected > 1000, "{selected} say little");
}

#[test]
fn scopes_let_through_what_the_model_says_and_only_ever_take_away() {
    let (questions, mut random) = (questions(), Random::new(2));
    let world = random_world(&mut random);
    let mut taken = 0;
    for _ in 0..1000 {
        let (_, roles) = random_roles(&mut random, &world, 3);
        let roles = Grants::all_of(roles.into_iter().map(|(_, role)| role.real));
        let scopes: Vec<String> = (0..random.below(4)).map(|_| random_pattern(&mut random, &world)).collect();
        let named: Vec<String> = scopes.iter().flat_map(|scope| stood_for(scope, &world)).collect();
        for (permission, name) in &questions {
            let within = within_scopes(&scopes, *permission);
            assert_eq!(within, named.contains(name), "{name} within {scopes:?}");
            let allowed = authorize(&roles, *permission, Target::Anywhere).is_ok();
            taken += usize::from(allowed && !within);
            // A scope more never takes away, and none at all lets nothing through.
            assert!(
                !within || within_scopes(&[&scopes[..], &["k8s:pods:get".to_owned()]].concat(), *permission)
            );
            assert!(!within_scopes(&[], *permission));
        }
    }
    assert!(taken > 1000, "{taken} say little");
}

#[test]
fn the_wildcard_matcher_agrees_with_the_naive_one_on_all_short_texts() {
    let words = |letters: &[u8], longest: u32| -> Vec<Vec<u8>> {
        let count = letters.len();
        let word = |length: u32, number: usize| {
            (0..length).map(|i| letters[number / count.pow(i) % count]).collect::<Vec<u8>>()
        };
        (0..=longest)
            .flat_map(|length| (0..count.pow(length)).map(move |n| (length, n)))
            .map(|(length, number)| word(length, number))
            .collect()
    };
    let (patterns, texts) = (words(b"ab*", 6), words(b"ab", 6));
    assert_eq!((patterns.len(), texts.len()), (1093, 127));
    for pattern in &patterns {
        for text in &texts {
            let [shown, read] = [pattern, text].map(|word| std::str::from_utf8(word).expect("ASCII"));
            assert_eq!(wildcard(shown, read), glob(pattern, text), "{shown} {read}");
        }
    }
}

const LIST: Permission = Permission::of("pods", "list");

#[test]
fn a_glob_that_only_system_namespaces_fit_is_refused() {
    for glob in ["kube-*", "kube-system*", "kube-*-*"] {
        let place = Place::named(&[glob]);
        let role = small::role(&["k8s:pods:list".to_owned()], &place);
        assert!(both(&role, "fleet", &unlabelled(&NAMESPACES)).is_none(), "{glob}");
    }
}

#[test]
fn the_empty_namespace_needs_the_right_on_all() {
    for (place, granted) in
        [(Place::everywhere(), true), (Place::named(&["*"]), false), (Place::Own(String::new()), false)]
    {
        let role = small::role(&["k8s:pods:list".to_owned()], &place);
        let role = both(&role, "fleet", &unlabelled(&NAMESPACES)).expect("accepted");
        let grants = Grants::all_of([role.real]);
        assert_eq!(authorize(&grants, LIST, Target::Namespace("")).is_ok(), granted, "{place:?}");
    }
}
