//! Random roles, worlds and callers, ten million times.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::extension::Extension;
use super::super::random::Random;
use super::comparison::*;
use super::*;
use crate::alone::alone;

/// Namespaces of the random questions: near misses of the protected ones among them.
pub(super) const NAMESPACES: [&str; 14] = [
    "agents",
    "team",
    "team-a",
    "team-b",
    "a",
    "kube",
    "kubernetes",
    "kube-system",
    "kube-public",
    "a-kube-system",
    "portcullis",
    "portcullis-system",
    "portcullis-system-a",
    "a-portcullis-system",
];

/// Texts that stand for no permission.
const NONSENSE: [&str; 16] = [
    "",
    "openid",
    "mcp:nothing:read",
    "mcp",
    "k8s:tools:access_whoami",
    "pods:list",
    "k8s:",
    "k8s:pods",
    "k8s:pods:list:*",
    "k8s:po*:list",
    "k8s:pods:**",
    "k8s:Pods:list",
    "k8s:secrets:*",
    "k8s:pods.:list",
    "k8s:*.apps:list",
    "k8s:deployments.extensions:list",
];

/// Names that a role can inherit from, and one that there never is.
const PARENTS: [&str; 7] = ["base-0", "base-1", "base-2", "base-3", "base-4", "base-5", "absent"];

pub(super) fn random_pattern(random: &mut Random, world: &World) -> String {
    if random.once_in(60) {
        return (*random.pick(&NONSENSE)).to_owned();
    }
    if random.once_in(15) {
        return (*random.pick(&["*", "k8s:*", "mcp:*", "*:*", "k8s:*:*"])).to_owned();
    }
    let Named { family, resource, group, verb, .. } = random.pick(&world.catalogue);
    let resource = match random.below(5) {
        0 if random.once_in(4) => "resources".to_owned(),
        0 => "*".to_owned(),
        1 if !group.is_empty() => format!("{resource}.{group}"),
        _ => resource.clone(),
    };
    // The verb of another resource may not exist for this one.
    let other = &random.pick(&world.catalogue).verb;
    let verb = if random.once_in(5) { "*" } else { verb.as_str() };
    let family = if random.once_in(10) { "*" } else { family.as_str() };
    format!("{family}:{resource}:{}", if random.once_in(30) { other } else { verb })
}

/// A name, or a glob with one star or more.
fn random_namespace(random: &mut Random) -> String {
    const PIECES: [&str; 9] = ["*", "*", "team", "-", "a", "kube", "kube-", "portcullis", "-system"];
    if random.once_in(2) {
        return (*random.pick(&NAMESPACES)).to_owned();
    }
    (0..=random.below(4)).map(|_| *random.pick(&PIECES)).collect()
}

/// Labels and requirements; one in many is none.
fn random_selector(random: &mut Random) -> LabelSelector {
    const KEYS: [&str; 3] = ["env", "tier", "portcullis.dev/tenant"];
    const VALUES: [&str; 4] = ["red", "blue", "a", ""];
    let requirement = |random: &mut Random| {
        let operator = *random.pick(&["In", "In", "NotIn", "NotIn", "Exists", "DoesNotExist"]);
        let odd = random.once_in(30);
        let values = match operator.ends_with("In") != odd {
            true => (0..=random.below(2)).map(|_| (*random.pick(&VALUES)).to_owned()).collect(),
            false => Vec::new(),
        };
        LabelSelectorRequirement {
            key: (*random.pick(&KEYS)).to_owned(),
            operator: operator.to_owned(),
            values: Some(values),
        }
    };
    let label = |random: &mut Random| ((*random.pick(&KEYS)).to_owned(), (*random.pick(&VALUES)).to_owned());
    LabelSelector {
        match_labels: Some((0..random.below(2)).map(|_| label(random)).collect()),
        match_expressions: Some((0..random.below(3)).map(|_| requirement(random)).collect()),
    }
}

fn random_place(random: &mut Random) -> Place {
    let names = |random: &mut Random, count: usize| (0..count).map(|_| random_namespace(random)).collect();
    match random.below(8) {
        0 | 1 => Place::Own((*random.pick(&NAMESPACES)).to_owned()),
        2 => Place::everywhere(),
        3 | 4 => Place::selected(&random_selector(random)),
        // Several answers to one question, sometimes.
        5 if random.once_in(5) => {
            let count = random.below(2);
            let selector = random.once_in(2).then(|| random_selector(random));
            Place::Cluster(names(random, count), selector, random.once_in(2))
        }
        _ => {
            let count = random.below(4);
            Place::Cluster(names(random, count), None, false)
        }
    }
}

fn random_role(random: &mut Random, world: &World) -> Written {
    let permissions = (0..=random.below(3)).map(|_| random_pattern(random, world)).collect();
    let inherits = match random.once_in(4) {
        true => random.some(&PARENTS[..6], 2).into_iter().map(str::to_owned).collect(),
        false => Vec::new(),
    };
    let place = random_place(random);
    let mut server = || {
        let namespace = match &place {
            Place::Own(own) => own.as_str(),
            Place::Cluster(..) => *random.pick(&["agents", "team-a"]),
        };
        (namespace.to_owned(), (*random.pick(&["ops", "dev", "*"])).to_owned())
    };
    let servers = [server(), server(), server()];
    let servers = servers[..random.below(4)].to_vec();
    Written { permissions, inherits, place, servers }
}

/// Roles to inherit from, which inherit from one another: now and then in a circle, or from one that is not there.
fn random_parents(random: &mut Random, world: &World) -> Others {
    let parent = |i: usize, random: &mut Random| {
        let permissions = (0..random.below(3)).map(|_| random_pattern(random, world)).collect();
        let later = if random.once_in(8) { &PARENTS[..] } else { &PARENTS[i + 1..6] };
        let inherits = match later.is_empty() || random.once_in(2) {
            true => Vec::new(),
            false => random.some(later, 2).into_iter().map(str::to_owned).collect(),
        };
        Written { permissions, inherits, ..Written::default() }
    };
    (0..6).map(|i| (PARENTS[i].to_owned(), parent(i, random))).collect()
}

/// The namespaces of the questions with labels; some are not there.
pub(super) fn random_world(random: &mut Random) -> World {
    let label = |random: &mut Random| {
        let key = *random.pick(&["env", "tier", "portcullis.dev/tenant", "portcullis.dev/tenant"]);
        (key.to_owned(), (*random.pick(&["red", "blue", "a", ""])).to_owned())
    };
    let all_there = random.once_in(2);
    let namespace = |name: &&str| {
        let there = all_there || !random.once_in(4);
        ((*name).to_owned(), there.then(|| (0..random.below(4)).map(|_| label(random)).collect()))
    };
    let namespaces: Vec<(String, Namespace)> = NAMESPACES.iter().map(namespace).collect();
    world(namespaces)
}

pub(super) fn random_caller(random: &mut Random) -> Caller {
    let tenant = match random.below(6) {
        0 => Some("red"),
        1 => Some("blue"),
        2 => Some(""),
        _ => None,
    };
    Caller { tenant: tenant.map(str::to_owned), must_belong: random.once_in(4) }
}

/// A question about one namespace, and now and then about anywhere or everywhere.
pub(super) fn random_target(random: &mut Random) -> Asked<'static> {
    match random.below(8) {
        0 | 1 => Asked::Anywhere,
        2 => Asked::Everywhere,
        _ => Asked::In(random.pick::<&str>(&NAMESPACES)),
    }
}

/// Random roles that are accepted, of so many that were tried, as they were written and as both have them.
pub(super) fn random_roles(
    random: &mut Random,
    world: &World,
    count: usize,
) -> (Others, Vec<(Written, Both)>) {
    let others = random_parents(random, world);
    let mut roles = Vec::new();
    for i in 0..count {
        let written = random_role(random, world);
        let both = inheriting(&written, &format!("role-{i}"), &others, world);
        roles.extend(both.map(|both| (written, both)));
    }
    (others, roles)
}

/// Asks at random, ten thousand times for each set of roles.
fn agree_at_random(chunks: usize) {
    const CASES: usize = 10_000;
    let questions = questions();
    let (permits, crossings) = (AtomicUsize::new(0), AtomicUsize::new(0));
    spread(chunks, |chunk| {
        let mut random = Random::new(chunk);
        let world = random_world(&mut random);
        let (_, roles) = random_roles(&mut random, &world, 40);
        let roles: Vec<&Both> = roles.iter().map(|(_, role)| role).collect();
        let all = compiled(&roles, &world);
        let (mut yes, mut crossed) = (0, 0);
        for _ in 0..CASES / 4 {
            let some = random.some(&roles, 4);
            let caller = random_caller(&mut random);
            let case = Case::new(&all, &some, &caller, &world);
            for _ in 0..4 {
                let asked = random_target(&mut random);
                let (question, probe) = (random.pick(&questions), *random.pick(&NAMESPACES));
                yes += usize::from(case.agree(question, asked, &[probe]));
                crossed += usize::from(caller.crosses(&question.1, asked, &world));
            }
        }
        permits.fetch_add(yes, Ordering::Relaxed);
        crossings.fetch_add(crossed, Ordering::Relaxed);
    });
    let (permits, crossings, cases) = (permits.into_inner(), crossings.into_inner(), chunks * CASES);
    assert!(permits > cases / 20 && permits < cases * 9 / 10, "{permits} of {cases} say little");
    assert!(crossings > cases / 20, "{crossings} of {cases} say little");
}

#[test]
fn ten_million_random_decisions_are_those_of_the_model() {
    agree_at_random(1000);
}

#[test]
fn a_million_random_decisions_with_an_extended_catalogue_are_those_of_the_model() {
    let name = "a_million_random_decisions_with_an_extended_catalogue_are_those_of_the_model";
    if alone(&format!("authz::model::random::{name}")) {
        Extension::parse(EXTENSION).and_then(Extension::install).expect("valid, and the first");
        assert_eq!(comparison::unlabelled(&[]).unplaced.len(), 3);
        agree_at_random(100);
    }
}
