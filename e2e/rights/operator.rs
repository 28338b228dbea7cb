//! What the operator may do, as two files that people read in review, and what it may do nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::grid::{Right, confirm, rights};
use super::{becomes, own};
use crate::cluster::{Namespace, OPERATOR_NAMESPACE, apply, client, eventually};

/// The operator as the API server names it.
pub(super) const OPERATOR: &str = "system:serviceaccount:portcullis-system:portcullis-operator";

/// The most pairs of resource and verb that the operator may have in the whole cluster.
const CLUSTER_PAIRS: usize = 40;

const SERVER: &str =
    "{apiVersion: portcullis.dev/v1alpha1, kind: McpServer, metadata: {name: ops}, spec: {}}";

/// Pairs of resource and verb, whatever the names that they are limited to.
fn pairs(rights: &BTreeSet<Right>) -> usize {
    rights.iter().map(|right| (right.target(), &right.verb)).collect::<BTreeSet<_>>().len()
}

/// One line for each resource: what may be done with it, and with which objects only.
fn table(title: &str, rights: &BTreeSet<Right>) -> String {
    let mut verbs = BTreeMap::<(String, &str), BTreeSet<&str>>::new();
    for right in rights {
        verbs.entry((right.target(), &right.name)).or_default().insert(&right.verb);
    }
    let mut objects = BTreeMap::<(String, String), BTreeSet<&str>>::new();
    for ((target, name), verbs) in verbs {
        let verbs: Vec<&str> = verbs.into_iter().collect();
        let names = objects.entry((target, verbs.join(" "))).or_default();
        if !name.is_empty() {
            names.insert(name);
        }
    }
    let count = pairs(rights);
    let noun = if count == 1 { "pair" } else { "pairs" };
    let mut text = format!("# {title}\n# {count} {noun} of resource and verb.\n\n");
    for ((target, verbs), names) in objects {
        let _ = writeln!(text, "{target:<44} {verbs}{}", if names.is_empty() { "" } else { ", only:" });
        for name in names {
            let _ = writeln!(text, "    {name}");
        }
    }
    text
}

fn compare_with_file(name: &str, actual: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/rights").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("the file can be written");
    }
    let agreed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        agreed == actual,
        "the operator's rights are not those of e2e/rights/{name}. More rights for the operator are more for whoever \
         steals its token: if the change is meant, run `UPDATE_GOLDEN=1 just e2e-only rights::operator`, and somebody \
         must review the difference of the file; now it is\n{actual}"
    );
}

/// What the operator must have nowhere.
fn assert_harmless(place: &str, rights: &BTreeSet<Right>) {
    for right in rights {
        let words = [&right.group, &right.resource, &right.verb];
        assert!(
            !words.iter().any(|word| word.contains('*')) || right.resource.starts_with('/'),
            "{right} in {place:?}"
        );
        assert!(
            !right.verb.contains("escalate") && !right.verb.contains("impersonate"),
            "{right} in {place:?}"
        );
        let resource = right.resource.split('/').next().unwrap_or_default();
        let secrets = resource == "secrets";
        let looks_around = ["list", "watch", "deletecollection"].contains(&right.verb.as_str());
        assert!(!(secrets && (looks_around || place.is_empty())), "{right} in {place:?}");
        assert!(right.verb != "bind" || !right.name.is_empty(), "{right} in {place:?}");
        let roles = ["roles", "clusterroles"].contains(&resource);
        assert!(!roles || right.verb == "bind", "{right} in {place:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_has_the_rights_that_two_files_list_and_no_others() {
    let client = client().await;
    let (works, empty) = (Namespace::opted_in("operator"), Namespace::opted_in("operator-empty"));
    let (unlabelled, reaches) =
        (Namespace::plain("operator-unlabelled"), Namespace::plain("operator-reaches"));
    reaches.label("portcullis.dev/servers=cluster");
    for namespace in [&works, &unlabelled, &reaches] {
        apply(namespace.name(), SERVER);
    }
    let everywhere = own(&client, OPERATOR, "").await;
    compare_with_file(
        "operator-cluster.txt",
        &table("What the operator may do in the whole cluster, beyond what every account may.", &everywhere),
    );
    assert!(pairs(&everywhere) <= CLUSTER_PAIRS, "{} pairs", pairs(&everywhere));

    eventually("the operator enters", Duration::from_secs(20), async || {
        (own(&client, OPERATOR, works.name()).await != everywhere).then_some(())
    })
    .await;
    let own_in_works = own(&client, OPERATOR, works.name()).await;
    let inside: BTreeSet<Right> = own_in_works.difference(&everywhere).cloned().collect();
    let reach = eventually("the operator can reach out", Duration::from_secs(20), async || {
        let there = own(&client, OPERATOR, reaches.name()).await;
        let more: BTreeSet<Right> = there.difference(&own_in_works).cloned().collect();
        (own_in_works.is_subset(&there) && !more.is_empty()).then_some(more)
    })
    .await;
    let inside = table(
        "What the operator may do beyond that in a namespace that lets servers in and has one.",
        &inside,
    );
    let reach = table("And beyond that where they may have rights outside their namespace.", &reach);
    compare_with_file("operator-namespace.txt", &format!("{inside}\n{reach}"));
    // Leader election, and its two CAs.
    let mut home = everywhere.clone();
    home.extend([Right::new("coordination.k8s.io", "leases", "create"), Right::new("", "secrets", "create")]);
    for verb in ["get", "update"] {
        home.insert(Right::new("coordination.k8s.io", "leases", verb).named("portcullis-operator"));
    }
    for ca in ["portcullis-ca", "portcullis-internal-ca"] {
        home.insert(Right::new("", "secrets", "get").named(ca));
    }
    becomes(&client, OPERATOR, OPERATOR_NAMESPACE, &home).await;
    for nothing_there in [unlabelled.name(), empty.name(), "kube-system", "default"] {
        becomes(&client, OPERATOR, nothing_there, &everywhere).await;
    }
    for place in [works.name(), reaches.name(), unlabelled.name(), OPERATOR_NAMESPACE, "kube-system", ""] {
        let all = rights(&client, OPERATOR, place).await;
        assert_harmless(place, &all);
        confirm(&client, OPERATOR, place, &all, true, 100).await;
    }
}

#[test]
fn a_table_of_rights_has_one_line_for_each_resource_and_names_objects_below() {
    let bind = Right::new("rbac.authorization.k8s.io", "clusterroles", "bind");
    let rights = BTreeSet::from([
        Right::new("", "pods", "list"),
        Right::new("", "pods", "get"),
        bind.clone().named("b"),
        bind.named("a"),
    ]);
    let text = table("Title.", &rights);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines[1], "# 3 pairs of resource and verb.");
    assert!(
        lines[3].starts_with("clusterroles.rbac.authorization.k8s.io ") && lines[3].ends_with("bind, only:")
    );
    assert_eq!(lines[4..6], ["    a", "    b"]);
    assert!(lines[6].starts_with("pods ") && lines[6].ends_with(" get list"), "{text}");
}
