//! What a decision costs: `cargo bench --features bench --bench authz`.
//!
//! The goal: below 1 µs with 1,000 roles and 10,000 keys, however many of the roles the caller holds. Cedar decides the
//! same cases beside it. Every round proves the answer, so that no refusal is measured by mistake. And what every edit
//! of a role costs a server: building anew what its requests use.

use std::str::FromStr;
use std::sync::LazyLock;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
};
use divan::Bencher;
use portcullis::bench::{Policy, Question};

/// Namespaces that no server has seen.
const ABSENT: [&str; 5] = ["team-1-new", "team-17-new", "team-997-new", "new-of-2", "nowhere"];
const LIST: &str = "k8s:pods:list";
/// Numbers of roles that a caller holds.
const HELD: [usize; 2] = [20, 1_000];

static POLICY: LazyLock<Policy> = LazyLock::new(|| Policy::new(1_000, 10_000, 500));
static CEDAR: LazyLock<Cedar> = LazyLock::new(Cedar::new);

struct Cedar {
    policies: PolicySet,
    entities: Entities,
}

impl Cedar {
    fn new() -> Self {
        let (policies, entities) = POLICY.cedar(&ABSENT);
        Self {
            policies: PolicySet::from_str(&policies).expect("policies"),
            entities: Entities::from_json_value(entities, None).expect("entities"),
        }
    }

    fn decide(&self, request: &Request) -> bool {
        Authorizer::new().is_authorized(request, &self.policies, &self.entities).decision() == Decision::Allow
    }
}

fn request(question: &Question) -> Request {
    let uid = |kind: &str, id: &str| {
        EntityUid::from_type_name_and_id(EntityTypeName::from_str(kind).expect("a kind"), EntityId::new(id))
    };
    let principal = uid("Caller", &question.caller);
    let (action, resource) = (uid("Action", &question.permission), uid("Namespace", &question.namespace));
    Request::new(principal, action, resource, Context::empty(), None).expect("a request")
}

/// The last of the roles that a caller holds which names a namespace (0) or has a glob (1).
fn last(held: usize, kind: usize) -> usize {
    held.saturating_sub(1) / 4 * 4 + kind
}

/// One case, decided by the endpoint and by Cedar.
macro_rules! case {
    ($name:ident, $held:expr, $permits:expr, $permission:expr, $namespace:expr) => {
        mod $name {
            use super::*;

            fn question(held: usize) -> Question {
                POLICY.question(held, $permission, &$namespace(held)).expect("a question")
            }

            #[divan::bench(args = $held)]
            fn ours(bencher: Bencher, held: usize) {
                let question = question(held);
                bencher.bench_local(|| assert_eq!(POLICY.decide(&question), $permits));
            }

            #[divan::bench(args = $held, sample_count = 20)]
            fn cedar(bencher: Bencher, held: usize) {
                let request = request(&question(held));
                bencher.bench_local(|| assert_eq!(CEDAR.decide(&request), $permits));
            }
        }
    };
}

case!(permit_in_a_named_namespace, [1, 20, 1_000], true, LIST, |held| format!("app-{}", last(held, 0) / 4));
case!(permit_by_a_glob, HELD, true, LIST, |held: usize| format!("team-{}-prod", last(held.min(500), 1)));
case!(permit_in_an_unknown_namespace, HELD, true, LIST, |held| format!("team-{}-new", last(held, 1)));
case!(denial_of_a_permission, [1, 20, 1_000], false, "k8s:deployments:scale", |_| "app-0".to_owned());
case!(denial_in_a_known_namespace, [1, 20, 1_000], false, LIST, |_| "kube-system".to_owned());
case!(denial_in_an_unknown_namespace, [1, 20, 1_000], false, LIST, |_| "nowhere".to_owned());

#[divan::bench]
fn compiling_the_roles(bencher: Bencher) {
    bencher.bench_local(|| assert_eq!(POLICY.compile(), 1_000));
}

#[divan::bench]
fn building_what_requests_use(bencher: Bencher) {
    bencher.bench_local(|| assert_eq!(POLICY.build(), 10_000));
}

fn main() {
    divan::main();
}
