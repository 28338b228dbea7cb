use serde_json::json;

use super::scope::wildcard;
use super::*;
use crate::api::{ClusterMcpRole, McpRole};

mod tenants;

const OPERATOR_NAMESPACE: &str = "portcullis-system";

fn role(permissions: &[&str]) -> Arc<Role> {
    let role: McpRole = serde_json::from_value(json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
        "metadata": {"name": "viewer", "namespace": "agents"},
        "spec": {"permissions": permissions},
    }))
    .expect("a role");
    Arc::new(Role::from_role(&role, &|_| None).expect("valid"))
}

fn cluster_role(spec: serde_json::Value) -> Result<Arc<Role>, role::InvalidRole> {
    let role: ClusterMcpRole = serde_json::from_value(json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole",
        "metadata": {"name": "fleet"}, "spec": spec,
    }))
    .expect("a role");
    Role::from_cluster_role(&role, OPERATOR_NAMESPACE, &NamespaceLabels::new(), &|_| None).map(Arc::new)
}

fn fleet(namespaces: &[&str]) -> Arc<Role> {
    cluster_role(json!({
        "permissions": ["k8s:pods:*"], "namespaces": namespaces,
        "servers": [{"namespace": "agents", "name": "ops"}],
    }))
    .expect("valid")
}

fn everywhere() -> Arc<Role> {
    cluster_role(json!({
        "permissions": ["k8s:pods:list"], "allNamespaces": true,
        "servers": [{"namespace": "agents", "name": "ops"}],
    }))
    .expect("valid")
}

const LIST: Permission = Permission::of("pods", "list");
const SCALE: Permission = Permission::of("deployments", "scale");

/// Decides for somebody who holds all of these roles.
fn authorize(roles: &[Arc<Role>], permission: Permission, target: Target<'_>) -> Result<Permit, Denial> {
    super::authorize(&Grants::all_of(roles.iter().cloned()), permission, target)
}

#[test]
fn without_a_role_everything_is_denied() {
    for permission in Permission::all() {
        assert!(authorize(&[], permission, Target::Anywhere).is_err());
        assert!(authorize(&[], permission, Target::Namespace("agents")).is_err());
    }
}

#[test]
fn a_role_grants_what_it_names_in_its_own_namespace_only() {
    let roles = [role(&["k8s:pods:list"])];
    assert!(authorize(&roles, LIST, Target::Namespace("agents")).is_ok());
    assert!(authorize(&roles, LIST, Target::Namespace("kube-system")).is_err());
    assert!(authorize(&roles, SCALE, Target::Namespace("agents")).is_err());
    assert!(authorize(&roles, SCALE, Target::Anywhere).is_err());
}

#[test]
fn the_empty_namespace_means_all_and_needs_the_right_on_all() {
    assert!(authorize(&[role(&["k8s:*"])], LIST, Target::Namespace("")).is_err());
    assert!(authorize(&[fleet(&["*"])], LIST, Target::Namespace("")).is_err());
    let permit = authorize(&[everywhere()], LIST, Target::Namespace("")).expect("granted");
    assert!(permit.is_cluster_wide());
}

#[test]
fn a_permit_covers_only_the_namespace_that_was_asked_for() {
    let permit = authorize(&[fleet(&["team-*"])], LIST, Target::Namespace("team-a")).expect("granted");
    assert!(permit.covers("team-a"));
    assert!(!permit.covers("team-b"));
    assert_eq!(permit.role().to_string(), "ClusterMcpRole fleet");
}

#[test]
fn a_permit_for_anywhere_covers_the_union_of_the_granting_roles() {
    let roles = [role(&["k8s:pods:list"]), fleet(&["team-*"])];
    let permit = authorize(&roles, LIST, Target::Anywhere).expect("granted");
    for (namespace, covered) in [("agents", true), ("team-a", true), ("other", false)] {
        assert_eq!(permit.covers(namespace), covered, "{namespace}");
    }
    assert!(!permit.is_cluster_wide());
}

#[test]
fn a_pattern_matches_neither_system_namespaces_nor_the_operators_own() {
    let roles = [fleet(&["*"])];
    assert!(authorize(&roles, LIST, Target::Namespace("team-a")).is_ok());
    for namespace in ["kube-system", "kube-public", OPERATOR_NAMESPACE] {
        assert!(authorize(&roles, LIST, Target::Namespace(namespace)).is_err(), "{namespace}");
        assert!(authorize(&[fleet(&[namespace])], LIST, Target::Namespace(namespace)).is_ok());
    }
}

#[test]
fn an_empty_list_of_namespaces_grants_nothing() {
    let roles = [fleet(&[])];
    assert!(authorize(&roles, LIST, Target::Anywhere).is_err());
    assert!(authorize(&roles, LIST, Target::Namespace("agents")).is_err());
}

#[test]
fn all_namespaces_must_be_said_and_then_means_all() {
    let permit = authorize(&[everywhere()], LIST, Target::Anywhere).expect("granted");
    assert!(permit.is_cluster_wide() && permit.covers("kube-system"));
}

#[test]
fn a_permit_tells_the_pattern_that_decided_and_whose_it_is() {
    let rule = |role| authorize(&[role], LIST, Target::Namespace("agents")).expect("granted").rule();
    assert_eq!(rule(role(&["k8s:services:list", "k8s:pods:*"])), "k8s:pods:*");
    let heir: McpRole = serde_json::from_value(json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
        "metadata": {"name": "heir", "namespace": "agents"}, "spec": {"inherits": ["viewer"]},
    }))
    .expect("a role");
    let parent = |_: &str| {
        Some(inheritance::Parent { permissions: vec!["k8s:pods:list".to_owned()], inherits: Vec::new() })
    };
    let heir = Arc::new(Role::from_role(&heir, &parent).expect("valid"));
    assert_eq!(rule(heir), "k8s:pods:list inherited from viewer");
}

#[test]
fn a_denial_tells_what_was_asked_for_where_and_what_was_against_it() {
    let told = |namespace: Option<&str>, cause| {
        let namespace = namespace.map(str::to_owned);
        Denial { permission: LIST, namespace, roles: 2, cause }.to_string()
    };
    assert_eq!(told(Some("a"), Cause::NoRole), "none of 2 roles grants k8s:pods:list in namespace \"a\"");
    assert_eq!(told(Some(""), Cause::NoRole), "none of 2 roles grants k8s:pods:list in every namespace");
    assert_eq!(told(None, Cause::NoRole), "none of 2 roles grants k8s:pods:list anywhere");
    let other = |owner: Option<&str>| Cause::OtherTenant {
        tenant: "red".to_owned(),
        owner: owner.map(str::to_owned),
    };
    assert_eq!(
        told(Some("a"), other(Some("blue"))),
        "the caller belongs to tenant \"red\" and asked for k8s:pods:list in namespace \"a\", of tenant \"blue\""
    );
    assert!(told(Some("a"), other(None)).ends_with("in namespace \"a\", of no tenant"));
    assert_eq!(told(None, Cause::NoTenant), "the caller belongs to no tenant and asked for k8s:pods:list");
}

#[test]
fn an_invalid_role_names_the_field_at_fault() {
    let error = |spec| cluster_role(spec).expect_err("invalid").to_string();
    let servers = json!([{"namespace": "agents", "name": "ops"}]);
    assert_eq!(
        error(json!({"permissions": ["k8s:pods:list", "k8s:secrets:manage"], "servers": servers})),
        "spec.permissions[1]: \"k8s:secrets:manage\" is not in the catalogue of permissions"
    );
    assert!(
        error(json!({"permissions": ["k8s:*"], "namespaces": ["Team"], "servers": servers}))
            .starts_with("spec.namespaces[0]: \"Team\"")
    );
    assert!(error(json!({"permissions": ["k8s:*"], "servers": []})).starts_with("spec.servers"));
    assert!(error(json!({"permissions": [], "servers": servers})).starts_with("spec.permissions"));
}

/// A role of either kind with these subjects.
fn held_by(is_cluster: bool, subjects: serde_json::Value) -> Result<Arc<Role>, role::InvalidRole> {
    if is_cluster {
        return cluster_role(json!({
            "permissions": ["k8s:pods:list"], "allNamespaces": true, "subjects": subjects,
            "servers": [{"namespace": "agents", "name": "ops"}],
        }));
    }
    let role: McpRole = serde_json::from_value(json!({
        "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
        "metadata": {"name": "viewer", "namespace": "agents"},
        "spec": {"permissions": ["k8s:pods:list"], "subjects": subjects},
    }))
    .expect("a role");
    Role::from_role(&role, &|_| None).map(Arc::new)
}

#[test]
fn who_holds_a_role_is_known_by_name_and_by_who_vouches_for_it() {
    let account = |namespace: &str| role::Holder {
        name: role::HolderName::User(format!("system:serviceaccount:{namespace}:ci")),
        issuer: Some("kubernetes".to_owned()),
    };
    let held = |is_cluster, subjects| held_by(is_cluster, subjects).expect("valid").subjects().to_vec();
    let people = json!([{"kind": "User", "name": "ann", "issuer": "basic"}, {"kind": "Group", "name": "ops", "issuer": "basic"}]);
    for is_cluster in [false, true] {
        let holder = |name| role::Holder { name, issuer: Some("basic".to_owned()) };
        let expected = [
            holder(role::HolderName::User("ann".to_owned())),
            holder(role::HolderName::Group("ops".to_owned())),
        ];
        assert_eq!(held(is_cluster, people.clone()), expected);
        let elsewhere = json!([{"kind": "ServiceAccount", "name": "ci", "namespace": "build"}]);
        assert_eq!(held(is_cluster, elsewhere), [account("build")]);
    }
    assert_eq!(held(false, json!([{"kind": "ServiceAccount", "name": "ci"}])), [account("agents")]);
    let anybodys = held(false, json!([{"kind": "User", "name": "ann"}]));
    assert_eq!(anybodys[0].issuer, None, "whoever the server trusts vouches for it");
}

#[test]
fn a_role_of_the_cluster_says_who_vouches_for_a_user_and_where_an_account_is() {
    for (subject, message) in [
        (json!({"kind": "User", "name": "ann"}), "spec.subjects[0].issuer: name who vouches for \"ann\""),
        (json!({"kind": "Group", "name": "ops"}), "spec.subjects[0].issuer: name who vouches for \"ops\""),
        (
            json!({"kind": "ServiceAccount", "name": "ci"}),
            "spec.subjects[0].namespace: name the namespace of ServiceAccount \"ci\"",
        ),
    ] {
        assert_eq!(held_by(true, json!([subject])).expect_err("invalid").to_string(), message);
    }
}

#[test]
fn an_unknown_permission_and_what_is_inherited_are_told_from_other_mistakes() {
    let invalid = |spec| cluster_role(spec).expect_err("invalid");
    let servers = json!([{"namespace": "agents", "name": "ops"}]);
    let spec = |permission: &str, inherits: &[&str]| json!({"permissions": [permission], "inherits": inherits, "allNamespaces": true, "servers": servers});
    let told = |invalid: role::InvalidRole| (invalid.is_unknown_permission(), invalid.is_inherited());
    assert_eq!(told(invalid(spec("k8s:pods:evict", &[]))), (true, false));
    assert_eq!(told(invalid(spec("k8s:pods", &[]))), (false, false));
    assert_eq!(told(invalid(spec("k8s:pods:list", &["gone"]))), (false, true));
}

#[test]
fn a_role_counts_for_the_servers_it_selects() {
    assert!(role(&["k8s:*"]).selects("agents", "any"));
    assert!(!role(&["k8s:*"]).selects("other", "any"));
    assert!(fleet(&["*"]).selects("agents", "ops"));
    assert!(!fleet(&["*"]).selects("agents", "ops2"));
}

#[test]
fn the_wildcard_matcher_agrees_with_its_definition() {
    for (pattern, text, matches) in [
        ("feature-*", "feature-login", true),
        ("feature-*", "feature-", true),
        ("feature-*", "features", false),
        ("*-dev", "team-dev", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("a**c", "ac", true),
        ("a*b", "ab-ab", true),
        ("ab*ba", "aba", false),
        ("*a*", "bab", true),
        ("*", "", true),
        ("", "", true),
        ("", "a", false),
    ] {
        assert_eq!(wildcard(pattern, text), matches, "{pattern} {text}");
    }
    let hostile = format!("{}b", "a*".repeat(30));
    assert!(!wildcard(&hostile, &"a".repeat(60)));
}

#[test]
fn of_several_roles_and_patterns_that_grant_the_first_is_named() {
    let role = |name: &str, permissions: &[&str]| {
        let role: McpRole = serde_json::from_value(json!({
            "apiVersion": "portcullis.dev/v1alpha1", "kind": "McpRole",
            "metadata": {"name": name, "namespace": "agents"}, "spec": {"permissions": permissions},
        }))
        .expect("a role");
        Arc::new(Role::from_role(&role, &|_| None).expect("valid"))
    };
    let decided = |roles: [&Arc<Role>; 3]| {
        let permit = authorize(&roles.map(Arc::clone), LIST, Target::Namespace("agents")).expect("granted");
        (permit.role().to_string(), permit.rule())
    };
    let none = role("a", &["k8s:services:list"]);
    for patterns in [["k8s:pods:*", "k8s:pods:list"], ["k8s:pods:list", "k8s:pods:*"], ["*", "k8s:*:list"]] {
        let (first, second) = (role("b", &patterns), role("c", &["k8s:*"]));
        let expected = ("McpRole agents/b".to_owned(), patterns[0].to_owned());
        for roles in [[&none, &first, &second], [&second, &first, &none], [&first, &none, &second]] {
            assert_eq!(decided(roles), expected, "by name, however they are held");
        }
    }
}
