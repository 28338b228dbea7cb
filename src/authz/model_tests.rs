use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use fixedbitset::FixedBitSet;

use super::super::random::Random;
use super::super::scope::wildcard;
use super::super::{
    Confinement, Grants, NamespaceLabels, Permission, Role, Roles, Target, authorize, within_scopes,
};
use super::*;
use crate::api::{ClusterMcpRole, ClusterMcpRoleSpec, McpRole, McpRoleSpec, ServerReference};

const OPERATOR_NAMESPACE: &str = "portcullis-system";

/// Namespaces of the random questions: near misses of the protected ones among them.
const NAMESPACES: [&str; 14] = [
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

/// A role as the decision has it and as the model has it.
struct Both {
    real: Arc<Role>,
    meaning: Meaning,
}

/// A permission of the catalogue and its name.
type Question = (Permission, String);

fn world(namespaces: &[&'static str]) -> World {
    let row = |permission: Permission| {
        let entry = permission.entry();
        let group = entry.rules.first().map_or("", |rule| rule.group);
        [entry.resource, group, entry.verb].map(str::to_owned)
    };
    World {
        catalogue: of_cluster().map(row).collect(),
        namespaces: namespaces.to_vec(),
        operator_namespace: OPERATOR_NAMESPACE,
    }
}

/// Permissions on the cluster.
fn of_cluster() -> impl Iterator<Item = Permission> {
    Permission::all().filter(|permission| permission.entry().family == "k8s")
}

/// Every one of these roles, compiled for a cluster with these namespaces.
fn compiled(roles: &[&Both], namespaces: &[&str]) -> Arc<Roles> {
    let namespaces = namespaces.iter().map(|name| ((*name).to_owned(), Default::default())).collect();
    Arc::new(Roles::compile(roles.iter().map(|role| role.real.clone()).collect(), &namespaces))
}

/// Somebody who holds some of the roles.
fn held(all: &Arc<Roles>, roles: &[&Both]) -> Grants {
    let mut held = FixedBitSet::with_capacity(all.len());
    let positions = roles.iter().map(|role| all.position(role.real.id()).expect("compiled"));
    positions.for_each(|position| held.insert(position));
    Grants::new(all.clone(), held.into(), Confinement::None)
}

fn questions() -> Vec<Question> {
    of_cluster().map(|permission| (permission, permission.to_string())).collect()
}

/// The role as an object and through the conversion that everything else uses.
fn converted(role: &Written, name: &str) -> Option<Role> {
    let permissions = role.permissions.clone();
    match &role.place {
        Place::Own(namespace) => {
            let servers = role.servers.iter().map(|(_, name)| name.clone()).collect();
            let mut object =
                McpRole::new(name, McpRoleSpec { permissions, servers, ..McpRoleSpec::default() });
            object.metadata.namespace = Some(namespace.clone());
            Role::from_role(&object, &|_| None).ok()
        }
        Place::Cluster(namespaces, all_namespaces) => {
            let reference = |(namespace, name): &(String, String)| ServerReference {
                namespace: namespace.clone(),
                name: name.clone(),
            };
            let spec = ClusterMcpRoleSpec {
                permissions,
                namespaces: namespaces.clone(),
                all_namespaces: *all_namespaces,
                servers: role.servers.iter().map(reference).collect(),
                ..ClusterMcpRoleSpec::default()
            };
            let role = ClusterMcpRole::new(name, spec);
            Role::from_cluster_role(&role, OPERATOR_NAMESPACE, &NamespaceLabels::new(), &|_| None).ok()
        }
    }
}

/// Both views of a role, if it is accepted; they must agree about that.
fn both(role: &Written, name: &str, world: &World) -> Option<Both> {
    let (real, meaning) = (converted(role, name), Meaning::of(role, world));
    assert_eq!(real.is_some(), meaning.is_some(), "accepted or not? {role:?}");
    Some(Both { real: Arc::new(real?), meaning: meaning? })
}

/// Asks one question of both and compares everything that the answer says. Returns whether it was yes.
fn agree(grants: &Grants, roles: &[&Both], asked: &Question, target: Target<'_>, probes: &[&str]) -> bool {
    let (permission, name) = (asked.0, asked.1.as_str());
    let yes = |role: &&Both| match target {
        Target::Namespace(namespace) => role.meaning.grants(name, namespace),
        Target::Anywhere => role.meaning.grants_somewhere(name),
    };
    let expected = roles.iter().any(yes);
    match authorize(grants, permission, target) {
        Ok(permit) => {
            assert!(expected, "a permit that the model refuses: {name} {target:?} {grants:?}");
            let decided = roles.iter().find(|role| role.real.id() == permit.role());
            assert!(decided.is_some_and(yes), "the role that decided does not grant: {name} {target:?}");
            let anywhere = target == Target::Anywhere;
            for probe in probes {
                let covered = match target {
                    Target::Namespace(namespace) => namespace == *probe,
                    Target::Anywhere => roles.iter().any(|role| role.meaning.grants(name, probe)),
                };
                assert_eq!(permit.covers(probe), covered, "{name} {target:?} in {probe}: {grants:?}");
            }
            let wide = |role: &&Both| role.meaning.everywhere && role.meaning.names(name);
            assert_eq!(permit.is_cluster_wide(), anywhere && roles.iter().any(wide), "{name} {target:?}");
        }
        Err(denial) => {
            assert!(!expected, "a denial where the model permits: {name} {target:?} {grants:?}");
            assert_eq!((denial.permission, denial.roles), (permission, grants.count()));
            let namespace = denial.namespace.as_deref();
            assert_eq!(namespace.map_or(Target::Anywhere, Target::Namespace), target);
        }
    }
    expected
}

/// Asks every question about every namespace and about anywhere.
fn agree_on_all(roles: &[&Both], questions: &[Question], namespaces: &[&str]) {
    let grants = held(&compiled(roles, namespaces), roles);
    for asked in questions {
        for namespace in namespaces {
            agree(&grants, roles, asked, Target::Namespace(namespace), namespaces);
        }
        agree(&grants, roles, asked, Target::Anywhere, namespaces);
    }
}

/// Does the work with every number up to a limit, on all cores.
fn spread(limit: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= limit {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// The small world: three resources, three verbs, three namespaces.
mod small {
    use super::*;

    const RESOURCES: [&str; 4] = ["pods", "deployments", "services", "*"];
    const VERBS: [&str; 4] = ["get", "list", "restart", "*"];
    pub(super) const NAMESPACES: [&str; 3] = ["team-a", "kube-system", OPERATOR_NAMESPACE];
    const GLOBS: [&str; 7] =
        ["team-a", "kube-system", OPERATOR_NAMESPACE, "*", "team-*", "kube-*", "*-system"];

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
            let [_, resource, verb] = name.split(':').collect::<Vec<_>>()[..] else { return false };
            name == "k8s:pods:logs" || RESOURCES.contains(&resource) && VERBS.contains(&verb)
        };
        super::questions().into_iter().filter(asked).collect()
    }

    /// The members of a set by the bits of a number.
    pub(super) fn subset<T: Clone>(of: &[T], bits: usize) -> Vec<T> {
        of.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, item)| item.clone()).collect()
    }

    /// Every place: three namespaces of `McpRole`s, every set of names and globs, and all namespaces with and without.
    pub(super) fn places() -> Vec<Place> {
        let globs = GLOBS.map(str::to_owned);
        let own = NAMESPACES.iter().map(|name| Place::Own((*name).to_owned()));
        let sets = (0..1 << globs.len()).map(|bits| Place::Cluster(subset(&globs, bits), false));
        let all = [Place::Cluster(vec![], true), Place::Cluster(vec!["team-a".to_owned()], true)];
        own.chain(sets).chain(all).collect()
    }

    /// A role with these permissions in this place, for one server.
    pub(super) fn role(permissions: &[String], place: &Place) -> Written {
        let namespace = match place {
            Place::Own(own) => own.clone(),
            Place::Cluster(..) => "agents".to_owned(),
        };
        let servers = vec![(namespace, "ops".to_owned())];
        Written { permissions: permissions.to_vec(), place: place.clone(), servers }
    }
}

#[test]
fn every_set_of_patterns_of_a_small_world_grants_what_the_model_says() {
    let (world, patterns) = (world(&small::NAMESPACES), small::patterns());
    let (questions, place) = (small::questions(), Place::Own("team-a".to_owned()));
    assert_eq!((patterns.len(), questions.len()), (16, 9));
    let accepted = AtomicUsize::new(0);
    spread(1 << patterns.len(), |bits| {
        let role = small::role(&small::subset(&patterns, bits), &place);
        if let Some(role) = both(&role, "role", &world) {
            accepted.fetch_add(1, Ordering::Relaxed);
            agree_on_all(&[&role], &questions, &small::NAMESPACES[..2]);
        }
    });
    assert_eq!(accepted.into_inner(), (1 << 15) - 1, "all without the unknown pattern, except the empty set");
}

#[test]
fn every_set_of_namespaces_and_globs_of_a_small_world_grants_what_the_model_says() {
    let (world, patterns, questions) = (world(&small::NAMESPACES), small::patterns(), small::questions());
    let mut lists: Vec<Vec<String>> = Vec::new();
    for (i, first) in patterns.iter().enumerate() {
        lists.push(vec![first.clone()]);
        lists.extend(patterns[..i].iter().map(|second| vec![first.clone(), second.clone()]));
    }
    let places = small::places();
    assert_eq!((lists.len(), places.len()), (136, 133));
    spread(places.len(), |number| {
        for list in &lists {
            if let Some(role) = both(&small::role(list, &places[number]), "role", &world) {
                agree_on_all(&[&role], &questions, &small::NAMESPACES);
            }
        }
    });
}

#[test]
fn every_pair_of_roles_of_a_small_world_grants_what_the_model_says() {
    let (world, questions) = (world(&small::NAMESPACES), small::questions());
    let one = |place: &Place| !matches!(place, Place::Cluster(names, _) if names.len() > 1);
    let mut roles = Vec::new();
    for place in small::places().iter().filter(|place| one(place)) {
        for pattern in small::patterns() {
            let name = format!("role-{}", roles.len());
            roles.extend(both(&small::role(&[pattern], place), &name, &world));
        }
    }
    assert_eq!(roles.len(), 15 * 11);
    spread(roles.len(), |number| {
        for other in &roles {
            agree_on_all(&[&roles[number], other], &questions, &small::NAMESPACES);
        }
    });
}

/// Texts that stand for no permission.
const NONSENSE: [&str; 14] = [
    "",
    "openid",
    "mcp:audit:read",
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

fn random_pattern(random: &mut Random, world: &World) -> String {
    if random.once_in(40) {
        return (*random.pick(&NONSENSE)).to_owned();
    }
    if random.once_in(20) {
        return "k8s:*".to_owned();
    }
    let [resource, group, verb] = random.pick(&world.catalogue);
    let resource = match random.below(5) {
        0 => "*".to_owned(),
        1 if !group.is_empty() => format!("{resource}.{group}"),
        _ => resource.clone(),
    };
    // The verb of another resource may not exist for this one.
    let other = &random.pick(&world.catalogue)[2];
    let verb = if random.once_in(5) { "*" } else { verb.as_str() };
    format!("k8s:{resource}:{}", if random.once_in(20) { other } else { verb })
}

/// A name, or a glob with one star or more.
fn random_namespace(random: &mut Random) -> String {
    const PIECES: [&str; 9] = ["*", "*", "team", "-", "a", "kube", "kube-", "portcullis", "-system"];
    if random.once_in(2) {
        return (*random.pick(&NAMESPACES)).to_owned();
    }
    (0..=random.below(4)).map(|_| *random.pick(&PIECES)).collect()
}

fn random_role(random: &mut Random, world: &World) -> Written {
    let permissions = (0..=random.below(3)).map(|_| random_pattern(random, world)).collect();
    let place = match random.below(6) {
        0 | 1 => Place::Own((*random.pick(&NAMESPACES)).to_owned()),
        2 => Place::Cluster((0..random.below(8) / 7).map(|_| random_namespace(random)).collect(), true),
        _ => Place::Cluster((0..random.below(4)).map(|_| random_namespace(random)).collect(), false),
    };
    let mut server = || {
        let namespace = match &place {
            Place::Own(own) => own.as_str(),
            Place::Cluster(..) => *random.pick(&["agents", "team-a"]),
        };
        (namespace.to_owned(), (*random.pick(&["ops", "dev", "*"])).to_owned())
    };
    let servers = [server(), server(), server()];
    let servers = servers[..random.below(4)].to_vec();
    Written { permissions, place, servers }
}

/// As many random roles as are accepted among so many.
fn random_roles(random: &mut Random, world: &World, count: usize) -> Vec<Both> {
    let written = (0..count).map(|i| (random_role(random, world), format!("role-{i}")));
    written.filter_map(|(role, name)| both(&role, &name, world)).collect()
}

#[test]
fn ten_million_random_decisions_are_those_of_the_model() {
    const CHUNKS: usize = 1000;
    const CASES: usize = 10_000;
    let (world, questions) = (world(&NAMESPACES), questions());
    let permits = AtomicUsize::new(0);
    spread(CHUNKS, |chunk| {
        let mut random = Random::new(chunk);
        let roles = random_roles(&mut random, &world, 40);
        let all: Vec<&Both> = roles.iter().collect();
        // Of some clusters no namespace is known beforehand.
        let all = compiled(&all, if chunk % 2 == 0 { &NAMESPACES } else { &[] });
        let mut yes = 0;
        for _ in 0..CASES / 4 {
            let some: Vec<&Both> = (0..random.below(5)).map(|_| random.pick(&roles)).collect();
            let grants = held(&all, &some);
            for _ in 0..4 {
                let target = match random.below(4) {
                    0 => Target::Anywhere,
                    _ => Target::Namespace(random.pick::<&str>(&NAMESPACES)),
                };
                let (asked, probe) = (random.pick(&questions), *random.pick(&NAMESPACES));
                yes += usize::from(agree(&grants, &some, asked, target, &[probe]));
            }
        }
        permits.fetch_add(yes, Ordering::Relaxed);
    });
    let permits = permits.into_inner();
    let cases = CHUNKS * CASES;
    assert!(permits > cases / 10 && permits < cases * 9 / 10, "{permits} of {cases} say little");
}

#[test]
fn a_random_role_counts_for_the_servers_that_the_model_says() {
    let (world, mut random) = (world(&NAMESPACES), Random::new(1));
    let mut selected = 0;
    for role in random_roles(&mut random, &world, 5000) {
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
    let (world, questions, mut random) = (world(&NAMESPACES), questions(), Random::new(2));
    let mut taken = 0;
    for _ in 0..1000 {
        let roles = random_roles(&mut random, &world, 3);
        let roles = Grants::all_of(roles.into_iter().map(|role| role.real));
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
        let place = Place::Cluster(vec![glob.to_owned()], false);
        let role = small::role(&["k8s:pods:list".to_owned()], &place);
        assert!(both(&role, "fleet", &world(&NAMESPACES)).is_none(), "{glob}");
    }
}

#[test]
fn the_empty_namespace_needs_the_right_on_all() {
    for (place, granted) in [
        (Place::Cluster(vec![], true), true),
        (Place::Cluster(vec!["*".to_owned()], false), false),
        (Place::Own(String::new()), false),
    ] {
        let role = small::role(&["k8s:pods:list".to_owned()], &place);
        let role = both(&role, "fleet", &world(&NAMESPACES)).expect("accepted");
        let grants = Grants::all_of([role.real]);
        assert_eq!(authorize(&grants, LIST, Target::Namespace("")).is_ok(), granted, "{place:?}");
    }
}
