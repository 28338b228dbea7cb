//! Everything there is in small worlds: every set of patterns, of globs, of selectors, every way to inherit, and every
//! owner of every namespace.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::comparison::*;
use super::*;

/// Three resources, three verbs.
pub(super) const RESOURCES: [&str; 4] = ["pods", "deployments", "services", "*"];
const VERBS: [&str; 4] = ["get", "list", "restart", "*"];
pub(super) const NAMESPACES: [&str; 3] = ["team-a", "kube-system", OPERATOR_NAMESPACE];
const GLOBS: [&str; 7] = ["team-a", "kube-system", OPERATOR_NAMESPACE, "*", "team-*", "kube-*", "*-system"];

/// Sixteen patterns, of which one (`k8s:services:restart`) is not in the catalogue.
pub(super) fn patterns() -> Vec<String> {
    RESOURCES
        .iter()
        .flat_map(|resource| VERBS.iter().map(move |verb| format!("k8s:{resource}:{verb}")))
        .collect()
}

/// What is asked: all that the patterns name, and a permission that only wildcards reach.
pub(super) fn questions() -> Vec<Question> {
    let asked = |(_, name): &Question| {
        let ["k8s", resource, verb] = name.split(':').collect::<Vec<_>>()[..] else { return false };
        name == "k8s:pods:logs" || RESOURCES.contains(&resource) && VERBS.contains(&verb)
    };
    comparison::questions().into_iter().filter(asked).collect()
}

/// Every place: three namespaces of `McpRole`s, every set of names and globs, and all namespaces with and without.
pub(super) fn places() -> Vec<Place> {
    let globs = GLOBS.map(str::to_owned);
    let own = NAMESPACES.iter().map(|name| Place::Own((*name).to_owned()));
    let sets = (0..1 << globs.len()).map(|bits| Place::Cluster(subset(&globs, bits), None, false));
    let all = [Place::everywhere(), Place::Cluster(vec!["team-a".to_owned()], None, true)];
    own.chain(sets).chain(all).collect()
}

/// A role with these permissions in this place, for one server.
pub(super) fn role(permissions: &[String], place: &Place) -> Written {
    let namespace = match place {
        Place::Own(own) => own.clone(),
        Place::Cluster(..) => "agents".to_owned(),
    };
    let servers = vec![(namespace, "ops".to_owned())];
    Written { permissions: permissions.to_vec(), place: place.clone(), servers, inherits: Vec::new() }
}

/// Every list of one or two of them.
pub(super) fn pairs(of: &[String]) -> Vec<Vec<String>> {
    let mut lists: Vec<Vec<String>> = Vec::new();
    for (i, first) in of.iter().enumerate() {
        lists.push(vec![first.clone()]);
        lists.extend(of[..i].iter().map(|second| vec![first.clone(), second.clone()]));
    }
    lists
}

#[test]
fn every_set_of_patterns_of_a_small_world_grants_what_the_model_says() {
    let (world, patterns) = (unlabelled(&NAMESPACES[..2]), patterns());
    let (questions, place) = (questions(), Place::Own("team-a".to_owned()));
    assert_eq!((patterns.len(), questions.len()), (16, 9));
    let accepted = AtomicUsize::new(0);
    spread(1 << patterns.len(), |bits| {
        let role = role(&subset(&patterns, bits), &place);
        if let Some(role) = both(&role, "role", &world) {
            accepted.fetch_add(1, Ordering::Relaxed);
            agree_on_all(&[&role], &questions, &world);
        }
    });
    assert_eq!(accepted.into_inner(), (1 << 15) - 1, "all without the unknown pattern, except the empty set");
}

#[test]
fn every_set_of_namespaces_and_globs_of_a_small_world_grants_what_the_model_says() {
    let (world, questions, lists) = (unlabelled(&NAMESPACES), questions(), pairs(&patterns()));
    let places = places();
    assert_eq!((lists.len(), places.len()), (136, 133));
    spread(places.len(), |number| {
        for list in &lists {
            if let Some(role) = both(&role(list, &places[number]), "role", &world) {
                agree_on_all(&[&role], &questions, &world);
            }
        }
    });
}

#[test]
fn every_pair_of_roles_of_a_small_world_grants_what_the_model_says() {
    let (world, questions) = (unlabelled(&NAMESPACES), questions());
    let one = |place: &Place| !matches!(place, Place::Cluster(names, ..) if names.len() > 1);
    let mut roles = Vec::new();
    for place in places().iter().filter(|place| one(place)) {
        for pattern in patterns() {
            let name = format!("role-{}", roles.len());
            roles.extend(both(&role(&[pattern], place), &name, &world));
        }
    }
    assert_eq!(roles.len(), 15 * 11);
    spread(roles.len(), |number| {
        for other in &roles {
            agree_on_all(&[&roles[number], other], &questions, &world);
        }
    });
}

/// Every pattern of one to three of these segments: both families, and neither.
pub(super) fn patterns_of_families() -> Vec<String> {
    let (families, resources, verbs) =
        (["k8s", "mcp", "*", "aws"], ["pods", "tools", "*"], ["list", "access_whoami", "*"]);
    let two = families.iter().flat_map(|f| resources.iter().map(move |r| format!("{f}:{r}")));
    let two: Vec<String> = two.collect();
    let three = two.iter().flat_map(|start| verbs.iter().map(move |verb| format!("{start}:{verb}")));
    let three: Vec<String> = three.collect();
    families.iter().map(|family| (*family).to_owned()).chain(two).chain(three).collect()
}

#[test]
fn every_pair_of_patterns_of_two_families_grants_what_the_model_says() {
    let (world, questions) = (unlabelled(&NAMESPACES), comparison::questions());
    let (lists, mut places) = (pairs(&patterns_of_families()), places());
    assert_eq!(lists.len(), 52 * 53 / 2);
    // Nothing, one name, one glob, two of them, a namespace of its own, and all.
    places.retain(|place| match place {
        Place::Own(own) => own == "team-a",
        Place::Cluster(names, _, _) => names.len() < 2 && !names.contains(&"kube-*".to_owned()),
    });
    let (accepted, permits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    spread(lists.len(), |number| {
        for place in &places {
            if let Some(role) = both(&role(&lists[number], place), "role", &world) {
                accepted.fetch_add(1, Ordering::Relaxed);
                permits.fetch_add(agree_on_all(&[&role], &questions, &world), Ordering::Relaxed);
            }
        }
    });
    let (accepted, permits) = (accepted.into_inner(), permits.into_inner());
    assert!(accepted > 1000 && permits > 10 * accepted, "{accepted} with {permits} say little");
}

#[test]
fn every_way_in_which_three_roles_can_inherit_gives_what_the_model_says() {
    const NAMES: [&str; 4] = ["a", "b", "c", "absent"];
    let own = ["k8s:pods:list", "k8s:services:list", "mcp:*"];
    let (world, place) = (unlabelled(&NAMESPACES), Place::named(&["team-a"]));
    let (accepted, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let names = NAMES.map(str::to_owned);
    // Each of three inherits from some of four.
    spread(1 << 12, |bits| {
        for contents in 0..27_usize {
            let role = |i: usize| {
                let permissions = match contents / 3_usize.pow(i as u32) % 3 {
                    0 => vec![],
                    1 => vec![own[i].to_owned()],
                    _ => vec![own[i].to_owned(), "k8s:pods:exec".to_owned()],
                };
                let inherits = subset(&names, bits >> (4 * i) & 15);
                Written { inherits, ..small::role(&permissions, &place) }
            };
            let all: Others = (0..3).map(|i| (NAMES[i].to_owned(), role(i))).collect();
            // The role itself may be another one than what is known of its name: its own text counts.
            match inheriting(&role(0), "a", &all, &world) {
                None => refused.fetch_add(1, Ordering::Relaxed),
                Some(role) => {
                    let real = role.real.permissions().iter().map(ToString::to_string);
                    assert_eq!(real.collect::<BTreeSet<_>>(), role.meaning.permissions);
                    accepted.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    });
    let (accepted, refused) = (accepted.into_inner(), refused.into_inner());
    assert!(accepted > 2000 && refused > 50_000, "{accepted} and {refused} say little");
}

#[test]
fn a_role_inherits_from_so_many_and_no_more() {
    let world = unlabelled(&NAMESPACES);
    let place = Place::named(&["team-a"]);
    let named = |inherits: Vec<String>| Written { inherits, ..role(&["k8s:pods:list".to_owned()], &place) };
    for (count, accepted) in [(63, true), (64, true), (65, false), (100, false)] {
        let name = |i: usize| format!("role-{i}");
        // Side by side, one behind the other, and each with all that follow.
        let flat: Others = (0..count).map(|i| (name(i), named(vec![]))).collect();
        let chain: Others = (0..count)
            .map(|i| (name(i), named(if i + 1 < count { vec![name(i + 1)] } else { vec![] })))
            .collect();
        let dense: Others =
            (0..count).map(|i| (name(i), named((i + 1..count).map(name).collect()))).collect();
        for (from, others) in
            [((0..count).map(name).collect(), flat), (vec![name(0)], chain), (vec![name(0)], dense)]
        {
            let role = inheriting(&named(from), "heir", &others, &world);
            assert_eq!(role.is_some(), accepted, "{count}");
        }
    }
}

/// A requirement as it is written.
fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then(|| values.iter().map(|value| (*value).to_owned()).collect()),
    }
}

/// Every selector of three labels and two of ten requirements, three of which are none.
pub(super) fn selectors() -> Vec<LabelSelector> {
    let required = [("env", "a"), ("tier", "a"), ("absent", "a")];
    let requirements = [
        requirement("env", "In", &["a"]),
        requirement("env", "In", &["a", "b"]),
        requirement("env", "NotIn", &["a"]),
        requirement("env", "Exists", &[]),
        requirement("env", "DoesNotExist", &[]),
        requirement("tier", "Exists", &[]),
        requirement("tier", "NotIn", &["a", "b"]),
        requirement("env", "In", &[]),
        requirement("env", "Exists", &["a"]),
        requirement("env", "Near", &["a"]),
    ];
    let few = (0..1_usize << requirements.len()).filter(|bits| bits.count_ones() <= 2);
    let sets: Vec<Vec<LabelSelectorRequirement>> = few.map(|bits| subset(&requirements, bits)).collect();
    let required = required.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let labels = (0..1 << required.len()).map(|bits| subset(&required, bits));
    labels
        .flat_map(|labels| sets.iter().map(move |set| (labels.clone(), set.clone())))
        .map(|(labels, set)| LabelSelector {
            match_labels: Some(labels.into_iter().collect()),
            match_expressions: Some(set),
        })
        .collect()
}

/// Namespaces with every set of two labels, and protected ones and one that is not there.
pub(super) fn labelled() -> World {
    let env = [None, Some(("env", "a")), Some(("env", "b"))];
    let tier = [None, Some(("tier", "a"))];
    let sets = env.iter().flat_map(|env| tier.iter().map(move |tier| [*env, *tier]));
    let set = |(i, set): (usize, [Option<(&str, &str)>; 2])| {
        (format!("team-{i}"), labels(&set.into_iter().flatten().collect::<Vec<_>>()))
    };
    let all = labels(&[("env", "a"), ("tier", "a")]);
    let protected = ["kube-system", OPERATOR_NAMESPACE].map(|name| (name.to_owned(), all.clone()));
    world(sets.enumerate().map(set).chain(protected).chain([("new".to_owned(), None)]))
}

#[test]
fn every_selector_of_a_small_world_chooses_the_namespaces_that_the_model_says() {
    let (world, selectors) = (labelled(), selectors());
    assert_eq!((world.namespaces.len(), selectors.len()), (9, 8 * 56));
    let questions: Vec<Question> = comparison::questions()
        .into_iter()
        .filter(|(_, name)| ["k8s:pods:list", "mcp:tools:access_whoami"].contains(&name.as_str()))
        .collect();
    let permissions = questions.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
    let (accepted, permits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    spread(selectors.len(), |number| {
        for (names, everywhere) in [(vec![], false), (vec!["team-1".to_owned()], false), (vec![], true)] {
            let place = Place::Cluster(names, Some(selectors[number].clone()), everywhere);
            if let Some(role) = both(&role(&permissions, &place), "role", &world) {
                accepted.fetch_add(1, Ordering::Relaxed);
                permits.fetch_add(agree_on_all(&[&role], &questions, &world), Ordering::Relaxed);
            }
        }
    });
    let (accepted, permits) = (accepted.into_inner(), permits.into_inner());
    assert_eq!(accepted, 8 * 29 - 1, "all without the three that are none, except the empty one");
    assert!(permits > accepted, "{permits} say little");
}

/// Every way in which three namespaces can belong to tenants; a fourth one is not there.
pub(super) fn owned() -> Vec<World> {
    let owner = [None, Some(""), Some("red"), Some("blue")];
    let namespace = |name: &str, owner: Option<&str>| {
        let set: Vec<(&str, &str)> =
            owner.map(|owner| ("portcullis.dev/tenant", owner)).into_iter().collect();
        (name.to_owned(), labels(&set))
    };
    let of = |number: usize| {
        let named =
            NAMESPACES.iter().enumerate().map(|(i, name)| namespace(name, owner[number >> (2 * i) & 3]));
        world(named.chain([("team-new".to_owned(), None)]))
    };
    (0..64).map(of).collect()
}

/// Callers of every tenant, on servers with every rule.
pub(super) fn callers() -> Vec<Caller> {
    let tenants = [None, Some(""), Some("red"), Some("blue"), Some("green")];
    let caller =
        |tenant: Option<&str>, must_belong| Caller { tenant: tenant.map(str::to_owned), must_belong };
    tenants.iter().flat_map(|tenant| [caller(*tenant, false), caller(*tenant, true)]).collect()
}

/// Roles with both kinds of permission in places of every kind.
pub(super) fn roles_of_tenants() -> Vec<Written> {
    let selector = LabelSelector {
        match_expressions: Some(vec![requirement("portcullis.dev/tenant", "In", &["red"])]),
        ..LabelSelector::default()
    };
    let places = [
        Place::Own("team-a".to_owned()),
        Place::named(&[]),
        Place::named(&["kube-system"]),
        Place::named(&["*"]),
        Place::named(&["team-*", OPERATOR_NAMESPACE]),
        Place::selected(&selector),
        Place::everywhere(),
    ];
    let lists = [&["k8s:pods:list"][..], &["mcp:*", "k8s:pods:get"]];
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    places.iter().flat_map(|place| lists.iter().map(|list| role(&texts(list), place))).collect()
}

/// What the roles of tenants grant, and something that none does.
pub(super) fn questions_of_tenants() -> Vec<Question> {
    let asked = ["k8s:pods:list", "k8s:pods:get", "mcp:tools:access_whoami", "k8s:pods:logs"];
    comparison::questions().into_iter().filter(|(_, name)| asked.contains(&name.as_str())).collect()
}

#[test]
fn every_caller_of_every_tenant_in_a_small_world_may_do_what_the_model_says() {
    let (worlds, callers, questions) = (owned(), callers(), questions_of_tenants());
    let permits = AtomicUsize::new(0);
    spread(worlds.len(), |number| {
        let world = &worlds[number];
        let written = roles_of_tenants().into_iter().enumerate();
        let roles: Vec<Both> =
            written.filter_map(|(i, role)| both(&role, &format!("role-{i}"), world)).collect();
        assert_eq!(roles.len(), 14);
        let every: Vec<&Both> = roles.iter().collect();
        let all = compiled(&every, world);
        for caller in &callers {
            let mut yes = 0;
            for (i, one) in roles.iter().enumerate() {
                for other in &roles[i..] {
                    yes += Case::new(&all, &[one, other], caller, world).agree_on_all(&questions);
                }
            }
            permits.fetch_add(yes, Ordering::Relaxed);
        }
    });
    let permits = permits.into_inner();
    assert!(permits > 10_000, "{permits} say little");
}
