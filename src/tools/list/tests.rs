use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::ClusterMcpRole;
use crate::authz::{Grants, NamespaceLabels, Permission, Role, authorize};

const LIST: Permission = Permission::of("pods", "list");

fn permit(scope: Value, target: Target<'_>) -> Permit {
    let mut spec =
        json!({"permissions": ["k8s:pods:list"], "servers": [{"namespace": "agents", "name": "ops"}]});
    spec.as_object_mut().unwrap().extend(scope.as_object().unwrap().clone());
    let role: ClusterMcpRole = serde_json::from_value(json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
        "metadata": {"name": "fleet"}, "spec": spec,
    }))
    .expect("a role");
    let role = Arc::new(
        Role::from_cluster_role(&role, "portcullis-system", &NamespaceLabels::new(), &|_| None)
            .expect("valid"),
    );
    authorize(&Grants::all_of([role]), LIST, target).expect("granted")
}

fn namespaces() -> Vec<String> {
    ["kube-system", "shop", "team-a", "team-b", "team-c"].map(str::to_owned).to_vec()
}

fn teams() -> Permit {
    permit(json!({"namespaces": ["team-*"]}), Target::Anywhere)
}

fn cursor(namespace: Option<&str>, token: Option<&str>) -> Cursor {
    Cursor {
        resource: "pods".into(),
        namespace: namespace.map(str::to_owned),
        token: token.map(str::to_owned),
    }
}

fn step(namespace: Option<&str>, token: Option<&str>) -> Step {
    Step { namespace: namespace.map(str::to_owned), token: token.map(str::to_owned) }
}

#[test]
fn a_list_without_a_namespace_asks_only_those_that_the_permit_covers() {
    assert_eq!(
        plan(&teams(), None, &namespaces(), None).expect("a plan"),
        [step(Some("team-a"), None), step(Some("team-b"), None), step(Some("team-c"), None)]
    );
}

#[test]
fn a_permit_for_the_whole_cluster_needs_one_request() {
    let permit = permit(json!({"allNamespaces": true}), Target::Anywhere);
    assert_eq!(plan(&permit, None, &namespaces(), None).expect("a plan"), [step(None, None)]);
    let next = cursor(None, Some("token"));
    assert_eq!(plan(&permit, None, &namespaces(), Some(&next)).expect("a plan"), [step(None, Some("token"))]);
}

#[test]
fn a_cursor_goes_on_inside_its_namespace_and_then_with_those_after_it() {
    let next = cursor(Some("team-b"), Some("token"));
    assert_eq!(
        plan(&teams(), None, &namespaces(), Some(&next)).expect("a plan"),
        [step(Some("team-b"), Some("token")), step(Some("team-c"), None)]
    );
}

#[test]
fn a_cursor_grants_nothing() {
    let forged = cursor(Some("kube-system"), Some("token"));
    let steps = plan(&teams(), None, &namespaces(), Some(&forged)).expect("a plan");
    assert!(
        steps.iter().all(|step| teams().covers(step.namespace.as_deref().unwrap()) && step.token.is_none())
    );
    assert!(plan(&teams(), None, &namespaces(), Some(&cursor(None, Some("token")))).is_err());
}

#[test]
fn a_permit_for_one_namespace_does_not_serve_for_another() {
    let permit = permit(json!({"namespaces": ["team-*"]}), Target::Namespace("team-a"));
    assert!(plan(&permit, Some("team-a"), &namespaces(), None).is_ok());
    let error = plan(&permit, Some("team-b"), &namespaces(), None).expect_err("refused");
    assert_eq!(error.reason(), "forbidden");
}

#[test]
fn a_damaged_cursor_is_refused_and_says_how_to_go_on() {
    let good = cursor(Some("team-a"), Some("token")).encode();
    assert_eq!(Cursor::decode(&good, "pods"), Ok(cursor(Some("team-a"), Some("token"))));
    for (text, resource) in [
        (&good[1..], "pods"),
        (&good[..good.len() - 3], "pods"),
        (good.as_str(), "services"),
        ("not base64!", "pods"),
        ("e30", "pods"),
        (&encode(&json!({"resource": "pods"})), "pods"),
        (&encode(&json!({"resource": "pods", "namespace": "../x"})), "pods"),
        (&encode(&json!({"resource": "pods", "namespace": "a", "other": 1})), "pods"),
    ] {
        let error = Cursor::decode(text, resource).expect_err(text).to_string();
        assert!(error.starts_with("argument \"continue\" is not one of this list"), "{error}");
    }
}

#[test]
fn a_cursor_of_one_namespace_is_refused_with_another() {
    static LISTING: Listing = Listing { object: Object::of("pods"), columns: &[] };
    let parse = |namespace: &str| {
        let next = cursor(Some("team-a"), Some("token")).encode();
        let given = json!({"namespace": namespace, "continue": next});
        parse(&LISTING, given.as_object().unwrap()).map(|_| ())
    };
    assert_eq!(parse("team-a"), Ok(()));
    assert_eq!(parse("team-b"), Err(damaged()));
}

/// Pods by namespace, paged as the API server pages them: its token is the position to go on with.
fn paged(pods: &[(&str, usize)], step: &Step, limit: u32) -> Page {
    let (namespace, count) = pods.iter().find(|(name, _)| Some(*name) == step.namespace.as_deref()).unwrap();
    let begin: usize = step.token.as_ref().map_or(0, |token| token.parse().unwrap());
    let end = (begin + limit as usize).min(*count);
    let row = |at| Row {
        namespace: Some((*namespace).to_owned()),
        name: format!("{namespace}-{at:03}"),
        cells: Vec::new(),
    };
    Page {
        columns: Vec::new(),
        rows: (begin..end).map(row).collect(),
        token: (end < *count).then(|| end.to_string()),
        remaining: None,
    }
}

/// Every page of the list over these namespaces, as a caller gets them.
fn pages(pods: &[(&str, usize)], limit: u32) -> Vec<Vec<String>> {
    let names: Vec<String> = pods.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut pages = Vec::new();
    let mut next: Option<Cursor> = None;
    loop {
        let steps = plan(&teams(), None, &names, next.as_ref()).expect("a plan");
        let fetch = |step: Step, limit| std::future::ready(Ok(paged(pods, &step, limit)));
        let found = futures::executor::block_on(collect("pods", &steps, limit, fetch)).expect("found");
        pages.push(found.rows.into_iter().map(|row| row.name).collect());
        next = found.next.map(|cursor| Cursor::decode(&cursor.encode(), "pods").expect("our own"));
        if next.is_none() {
            return pages;
        }
    }
}

#[test]
fn pages_are_full_across_namespaces() {
    let pages = pages(&[("team-a", 3), ("team-b", 0), ("team-c", 4), ("team-d", 2)], 4);
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 1]);
    assert_eq!(pages[0], ["team-a-000", "team-a-001", "team-a-002", "team-c-000"]);
}

proptest! {
    #[test]
    fn all_pages_together_hold_each_object_once_and_in_order(
        counts in proptest::collection::vec(0usize..12, 0..9),
        limit in 1u32..10,
    ) {
        let names: Vec<String> = (0..counts.len()).map(|at| format!("team-{at}")).collect();
        let pods: Vec<(&str, usize)> = names.iter().map(String::as_str).zip(counts).collect();
        let expected: Vec<String> = pods
            .iter()
            .flat_map(|(name, count)| (0..*count).map(move |at| format!("{name}-{at:03}")))
            .collect();
        let pages = pages(&pods, limit);
        prop_assert!(pages.iter().all(|page| page.len() <= limit as usize));
        prop_assert_eq!(pages.concat(), expected);
    }
}

#[test]
fn a_namespace_that_the_endpoint_cannot_read_yet_is_left_out_and_named() {
    let steps = [step(Some("team-a"), None), step(Some("team-b"), None)];
    let refuse = |name: &'static str| {
        move |step: Step, limit: u32| {
            let refused = name == "all" || step.namespace.as_deref() == Some(name);
            std::future::ready(if refused {
                Err(ToolError::Forbidden("lacks the right".into()))
            } else {
                Ok(paged(&[("team-a", 1), ("team-b", 1)], &step, limit))
            })
        }
    };
    let run = |fetch| futures::executor::block_on(collect("pods", &steps, 10, fetch));
    let found = run(refuse("team-a")).expect("the other one");
    assert_eq!((found.rows.len(), found.skipped), (1, vec!["team-a".to_owned()]));
    assert_eq!(run(refuse("all")).expect_err("nothing to show").reason(), "forbidden");
}

#[test]
fn a_call_looks_into_so_many_namespaces_and_the_cursor_goes_on() {
    let names: Vec<String> = (0..300).map(|at| format!("team-{at:03}")).collect();
    let pods: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 0)).collect();
    assert_eq!(pages(&pods, 10).len(), 2);
}
