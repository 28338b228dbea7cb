//! The decision and Cedar, on the same roles, callers and namespaces.

use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use cedar_policy::{
    Authorizer, Context, Decision, Entities, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
};

use super::super::random::Random;
use super::super::{Grants, Target, authorize, cedar};
use super::comparison::*;
use super::random::{random_caller, random_roles, random_world};
use super::*;
use crate::api::Tenancy;

/// Cedar, with roles and callers.
struct Oracle {
    policies: PolicySet,
    entities: Entities,
    /// Every resource that there is to be asked about.
    namespaces: Vec<String>,
}

/// Who asks, and the roles that they hold.
type Holder<'a> = (Caller, Vec<&'a Both>);

impl Oracle {
    /// Tells Cedar what was written. All callers must have the same rule about tenants.
    fn new(roles: &[(&Written, &Both)], others: &Others, holders: &[Holder<'_>], world: &World) -> Self {
        let mut written = cedar::Written {
            operator_namespace: OPERATOR_NAMESPACE.to_owned(),
            namespaces: existing(world),
            ..cedar::Written::default()
        };
        let mut add = |object: Object| match object {
            Object::Own(role) => written.roles.push(role),
            Object::Cluster(role) => written.cluster_roles.push(role),
        };
        for (role, both) in roles {
            add(object(role, &both.real.id().name));
        }
        // What can be inherited is there once for each namespace, and once for all.
        let owners: BTreeSet<&str> = roles.iter().filter_map(|(role, _)| owner(role)).collect();
        // Circles are not among them: no accepted role leads into one.
        let is_used =
            |name: &String| roles.iter().any(|(role, _)| reached(&role.inherits, others).contains(name));
        for (name, other) in others.iter().filter(|(name, _)| is_used(name)) {
            add(object(&Written { place: Place::default(), ..other.clone() }, name));
            for own in &owners {
                add(object(&Written { place: Place::Own((*own).to_owned()), ..other.clone() }, name));
            }
        }
        let examples = roles.iter().flat_map(|(_, both)| both.meaning.namespaces.iter().cloned());
        let namespaces: BTreeSet<String> = world.namespaces.keys().cloned().chain(examples).collect();
        let is_absent = |name: &&String| !written.namespaces.contains_key(*name);
        written.absent = namespaces.iter().filter(is_absent).cloned().collect();
        let caller = |(i, (caller, held)): (usize, &Holder<'_>)| cedar::Caller {
            name: i.to_string(),
            roles: held.iter().map(|role| role.real.id().to_string()).collect(),
            tenant: caller.tenant.clone(),
        };
        written.callers = holders.iter().enumerate().map(caller).collect();
        if holders.iter().any(|(caller, _)| caller.must_belong) {
            written.tenancy = Tenancy::Required;
        }
        let policies = PolicySet::from_str(&written.policies()).expect("Cedar understands the policies");
        let entities = Entities::from_json_value(written.entities(), None).expect("and the entities");
        Self { policies, entities, namespaces: namespaces.into_iter().collect() }
    }

    fn permits(&self, holder: usize, permission: &str, kind: &str, resource: &str) -> bool {
        let uid = |kind: &str, id: &str| {
            EntityUid::from_type_name_and_id(
                EntityTypeName::from_str(kind).expect("a kind"),
                EntityId::new(id),
            )
        };
        let (principal, action) = (uid("Caller", &holder.to_string()), uid("Action", permission));
        let request = Request::new(principal, action, uid(kind, resource), Context::empty(), None);
        let request = request.expect("a request");
        let response = Authorizer::new().is_authorized(&request, &self.policies, &self.entities);
        let errors: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{errors:?}");
        response.decision() == Decision::Allow
    }

    /// What Cedar says. A right on the endpoint is had where any place gives it.
    fn says(&self, holder: usize, permission: &str, asked: Asked<'_>) -> bool {
        let inside = |name: &str| self.permits(holder, permission, "Namespace", name);
        match asked {
            Asked::In(namespace) if !is_for_the_endpoint(permission) => inside(namespace),
            Asked::Everywhere if !is_for_the_endpoint(permission) => {
                self.permits(holder, permission, "Cluster", cedar::EVERYWHERE)
            }
            _ => self.namespaces.iter().any(|name| inside(name)),
        }
    }
}

fn owner(role: &Written) -> Option<&str> {
    match &role.place {
        Place::Own(own) => Some(own),
        Place::Cluster(..) => None,
    }
}

/// Whether both say yes; they must not differ.
fn agree(oracle: &Oracle, holder: usize, grants: &Grants, question: &Question, asked: Asked<'_>) -> bool {
    let target = match asked {
        Asked::Anywhere => Target::Anywhere,
        Asked::Everywhere => Target::Namespace(""),
        Asked::In(namespace) => Target::Namespace(namespace),
    };
    let decided = authorize(grants, question.0, target).is_ok();
    let said = oracle.says(holder, &question.1, asked);
    assert_eq!(decided, said, "Cedar says {said}: {} {asked:?} with {grants:?}", question.1);
    decided
}

/// Asks everything about each of the roles by itself. Returns how many cases there were, and how often it was yes.
fn agree_about_each(
    written: &[Written],
    others: &Others,
    caller: &Caller,
    questions: &[Question],
    world: &World,
) -> (usize, usize) {
    let both = |(i, role): (usize, &Written)| inheriting(role, &format!("role-{i}"), others, world);
    let roles: Vec<Option<Both>> = written.iter().enumerate().map(both).collect();
    let roles: Vec<(&Written, &Both)> =
        written.iter().zip(&roles).filter_map(|(written, both)| Some((written, both.as_ref()?))).collect();
    let holders: Vec<Holder<'_>> = roles.iter().map(|(_, both)| (caller.clone(), vec![*both])).collect();
    let oracle = Oracle::new(&roles, others, &holders, world);
    let every: Vec<&Both> = roles.iter().map(|(_, both)| *both).collect();
    let all = compiled(&every, world);
    let (mut cases, mut yes) = (0, 0);
    for (holder, (caller, held)) in holders.iter().enumerate() {
        let grants = comparison::held(&all, held, caller);
        for question in questions {
            for asked in targets(world) {
                cases += 1;
                yes += usize::from(agree(&oracle, holder, &grants, question, asked));
            }
        }
    }
    (cases, yes)
}

/// Asks in parallel about lots of roles, and sees to it that the cases are many and of both kinds.
fn agree_about_all(lots: &[(Vec<Written>, Others)], questions: &[Question], world: &World, at_least: usize) {
    let (cases, permits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    spread(lots.len(), |number| {
        let (written, others) = &lots[number];
        let (asked, yes) = agree_about_each(written, others, &Caller::default(), questions, world);
        cases.fetch_add(asked, Ordering::Relaxed);
        permits.fetch_add(yes, Ordering::Relaxed);
    });
    let (cases, permits) = (cases.into_inner(), permits.into_inner());
    assert!(cases >= at_least && permits > cases / 50, "{permits} of {cases} say little");
}

fn lots(roles: Vec<Written>) -> Vec<(Vec<Written>, Others)> {
    roles.chunks(12).map(|lot| (lot.to_vec(), Others::new())).collect()
}

#[test]
fn cedar_agrees_about_every_set_of_namespaces_and_globs_with_every_pattern() {
    let world = unlabelled(&small::NAMESPACES);
    let with = |place: Place| small::patterns().into_iter().map(move |p| small::role(&[p], &place));
    let roles: Vec<Written> = small::places().into_iter().flat_map(with).collect();
    agree_about_all(&lots(roles), &small::questions(), &world, 30_000);
}

#[test]
fn cedar_agrees_about_every_pair_of_patterns_of_two_families() {
    let world = unlabelled(&small::NAMESPACES[..1]);
    let place = Place::named(&["team-*"]);
    let lists = small::pairs(&small::patterns_of_families());
    let roles: Vec<Written> = lists.iter().map(|list| small::role(list, &place)).collect();
    agree_about_all(&lots(roles), &questions(), &world, 10_000);
}

#[test]
fn cedar_agrees_about_every_selector() {
    let world = small::labelled();
    let permission = ["k8s:pods:list".to_owned()];
    let role = |selector: &LabelSelector| small::role(&permission, &Place::selected(selector));
    let roles: Vec<Written> = small::selectors().iter().map(role).collect();
    let questions: Vec<Question> =
        questions().into_iter().filter(|(_, name)| name == "k8s:pods:list").collect();
    agree_about_all(&lots(roles), &questions, &world, 2_000);
}

#[test]
fn cedar_agrees_about_every_way_in_which_three_roles_can_inherit() {
    let names = ["a", "b", "role-0"].map(str::to_owned);
    let own = ["k8s:pods:list", "k8s:services:*", "mcp:*"].map(str::to_owned);
    let world = unlabelled(&small::NAMESPACES[..1]);
    let lot = |bits: usize| {
        let role = |i: usize| {
            let inherits = subset(&names, bits >> (3 * i) & 7);
            let permissions = if bits >> (9 + i) & 1 == 1 { vec![own[i].clone()] } else { vec![] };
            Written { inherits, ..small::role(&permissions, &Place::named(&["team-a"])) }
        };
        (vec![role(2)], (0..2).map(|i| (names[i].clone(), role(i))).collect())
    };
    let lots: Vec<(Vec<Written>, Others)> = (0..1 << 12).map(lot).collect();
    agree_about_all(&lots, &questions(), &world, 10_000);
}

#[test]
fn cedar_agrees_about_every_caller_of_every_tenant_of_a_small_world() {
    let (worlds, callers, questions) = (small::owned(), small::callers(), small::questions_of_tenants());
    let (cases, permits) = (AtomicUsize::new(0), AtomicUsize::new(0));
    spread(worlds.len(), |number| {
        for caller in &callers {
            let (asked, yes) = agree_about_each(
                &small::roles_of_tenants(),
                &Others::new(),
                caller,
                &questions,
                &worlds[number],
            );
            cases.fetch_add(asked, Ordering::Relaxed);
            permits.fetch_add(yes, Ordering::Relaxed);
        }
    });
    let (cases, permits) = (cases.into_inner(), permits.into_inner());
    assert!(cases > 100_000 && permits > cases / 50, "{permits} of {cases} say little");
}

#[test]
fn cedar_agrees_about_a_hundred_thousand_random_decisions() {
    const CHUNKS: usize = 100;
    const HOLDERS: usize = 25;
    const CASES: usize = 40;
    let questions = questions();
    let permits = AtomicUsize::new(0);
    spread(CHUNKS, |chunk| {
        let mut random = Random::new(1_000_000 + chunk);
        let world = random_world(&mut random);
        let (others, roles) = random_roles(&mut random, &world, 12);
        let roles: Vec<(&Written, &Both)> = roles.iter().map(|(written, both)| (written, both)).collect();
        let every: Vec<&Both> = roles.iter().map(|(_, both)| *both).collect();
        let must_belong = random.once_in(4);
        let holder =
            |random: &mut Random| (Caller { must_belong, ..random_caller(random) }, random.some(&every, 6));
        let holders: Vec<Holder<'_>> = (0..HOLDERS).map(|_| holder(&mut random)).collect();
        let oracle = Oracle::new(&roles, &others, &holders, &world);
        let all = compiled(&every, &world);
        let mut yes = 0;
        for (holder, (caller, held)) in holders.iter().enumerate() {
            let grants = comparison::held(&all, held, caller);
            for _ in 0..CASES {
                // What Cedar is to say about anywhere costs a question for each namespace.
                let asked = match random.below(20) {
                    0 => Asked::Anywhere,
                    1 => Asked::Everywhere,
                    _ => Asked::In(random.pick::<&str>(&random::NAMESPACES)),
                };
                yes += usize::from(agree(&oracle, holder, &grants, random.pick(&questions), asked));
            }
        }
        permits.fetch_add(yes, Ordering::Relaxed);
    });
    let (permits, cases) = (permits.into_inner(), CHUNKS * HOLDERS * CASES);
    assert_eq!(cases, 100_000);
    assert!(permits > cases / 20 && permits < cases * 9 / 10, "{permits} of {cases} say little");
}
