//! What a tenant takes away, whatever the roles say.

use fixedbitset::FixedBitSet;

use super::*;
use crate::alone::alone;
use crate::api::{Tenancy, names};

const WHOAMI: Permission = Permission::tool("access_whoami");

/// Somebody confined like this who holds a role of everything everywhere. The namespaces `red-1` and `red-2` belong to
/// the tenant `red`, `blue-1` to `blue`, and `free` and `blank` to nobody.
fn holder(confinement: Confinement) -> Grants {
    let role = cluster_role(json!({
        "permissions": ["*"], "allNamespaces": true, "servers": [{"namespace": "agents", "name": "ops"}],
    }));
    let owned = [
        ("red-1", Some("red")),
        ("red-2", Some("red")),
        ("blue-1", Some("blue")),
        ("free", None),
        ("blank", Some("")),
    ];
    let labels = |owner: Option<&str>| owner.map(|owner| (names::TENANT_LABEL.to_owned(), owner.to_owned()));
    let namespaces = owned.map(|(name, owner)| (name.to_owned(), labels(owner).into_iter().collect()));
    let roles = Roles::compile(vec![role.expect("valid")], &namespaces.into());
    let mut held = FixedBitSet::with_capacity(roles.len());
    held.insert_range(..);
    Grants::new(roles.into(), held.into(), confinement)
}

fn red() -> Grants {
    holder(Confinement::Tenant("red".into()))
}

/// What is against it.
fn against(grants: &Grants, permission: Permission, target: Target<'_>) -> Option<Cause> {
    crate::authz::authorize(grants, permission, target).err().map(|denial| denial.cause)
}

fn not_of_red(owner: Option<&str>) -> Option<Cause> {
    Some(Cause::OtherTenant { tenant: "red".to_owned(), owner: owner.map(str::to_owned) })
}

#[test]
fn a_tenant_reaches_its_own_namespaces_and_no_others() {
    let asked = |namespace| against(&red(), LIST, Target::Namespace(namespace));
    assert_eq!((asked("red-1"), asked("red-2")), (None, None));
    assert_eq!(asked("blue-1"), not_of_red(Some("blue")));
    for of_nobody in ["free", "blank", "not-there", ""] {
        assert_eq!(asked(of_nobody), not_of_red(None), "{of_nobody:?}");
    }
    let permit = crate::authz::authorize(&red(), LIST, Target::Anywhere).expect("somewhere");
    let covered = ["red-1", "red-2", "blue-1", "free", ""].map(|namespace| permit.covers(namespace));
    assert_eq!((covered, permit.is_cluster_wide()), ([true, true, false, false, false], false));
    let other = holder(Confinement::Tenant("green".into()));
    assert_eq!(against(&other, LIST, Target::Anywhere), Some(Cause::NoRole), "nothing is green");
}

#[test]
fn a_tenant_has_something_to_do_in_its_own_namespaces_only() {
    let within = |grants: Grants| ["red-1", "blue-1", "free", ""].map(|namespace| grants.reach(namespace));
    assert_eq!(within(holder(Confinement::None)), [true; 4]);
    assert_eq!(within(red()), [true, false, false, false]);
    assert_eq!(within(holder(Confinement::Nowhere)), [false; 4]);
}

#[test]
fn callers_with_the_same_roles_are_told_apart_by_their_tenants() {
    let [red_again, other] = ["red", "green"].map(|tenant| holder(Confinement::Tenant(tenant.into())));
    assert_eq!(red().key(), red_again.key());
    assert_ne!(red().key(), other.key());
    assert_ne!(red().key(), holder(Confinement::None).key());
    assert_ne!(red().key(), Grants::new(Arc::default(), Arc::default(), red().confinement().clone()).key());
}

#[test]
fn there_are_tenants_as_soon_as_a_namespace_belongs_to_one() {
    let labelled = |tenant: &str| [(names::TENANT_LABEL.to_owned(), tenant.to_owned())].into();
    let are_there =
        |tenant| Roles::compile(Vec::new(), &[("a".to_owned(), labelled(tenant))].into()).has_tenants();
    assert!(!Roles::default().has_tenants() && !are_there("") && are_there("red"));
}

#[test]
fn whoever_has_a_tenant_is_confined_to_it_and_whoever_has_none_if_that_is_required() {
    for tenancy in [Tenancy::IfGiven, Tenancy::Required] {
        assert_eq!(Confinement::of(Some("red"), tenancy), Confinement::Tenant("red".into()));
    }
    // An empty text is no tenant.
    for none in [None, Some("")] {
        assert_eq!(Confinement::of(none, Tenancy::IfGiven), Confinement::None);
        assert_eq!(Confinement::of(none, Tenancy::Required), Confinement::Nowhere);
    }
}

#[test]
fn what_belongs_to_the_endpoint_has_no_tenant() {
    for target in [Target::Anywhere, Target::Namespace("blue-1")] {
        assert_eq!(against(&red(), WHOAMI, target), None, "{target:?}");
    }
}

#[test]
fn who_must_have_a_tenant_and_has_none_may_do_nothing() {
    for permission in Permission::all() {
        for target in [Target::Anywhere, Target::Namespace("free"), Target::Namespace("")] {
            assert_eq!(against(&holder(Confinement::Nowhere), permission, target), Some(Cause::NoTenant));
            assert_eq!(against(&holder(Confinement::None), permission, target), None, "{permission}");
        }
    }
}

#[test]
fn crossing_a_tenant_is_told_from_having_no_role() {
    let crossing = [Cause::NoTenant, not_of_red(None).expect("a cause")];
    assert!(crossing.iter().all(Cause::is_tenancy) && !Cause::NoRole.is_tenancy());
}

#[test]
fn objects_without_a_namespace_are_for_roles_that_count_everywhere_and_for_no_tenant() {
    let name = "objects_without_a_namespace_are_for_roles_that_count_everywhere_and_for_no_tenant";
    if !alone(&format!("authz::tests::tenants::{name}")) {
        return;
    }
    let fleets = r#"{"extra": [{"group": "example.com", "resource": "fleets", "kind": "Fleet", "version": "v1",
        "scope": "Cluster", "verbs": ["list"]}]}"#;
    extension::Extension::parse(fleets)
        .and_then(extension::Extension::install)
        .expect("valid, and the first");
    let list = Permission::named("fleets.example.com", "list").expect("it was added");
    let patterns = cluster_role(json!({
        "permissions": ["k8s:*"], "namespaces": ["*", "kube-system"],
        "servers": [{"namespace": "agents", "name": "ops"}],
    }));
    let patterns = Grants::all_of([patterns.expect("valid")]);
    for target in [Target::Anywhere, Target::Namespace(""), Target::Namespace("red-1")] {
        let everywhere = holder(Confinement::None);
        let permit = crate::authz::authorize(&everywhere, list, target).expect("granted");
        assert!(permit.is_cluster_wide() && !permit.covers("red-1"));
        assert_eq!(against(&patterns, list, target), Some(Cause::NoRole));
        assert_eq!(against(&red(), list, target), not_of_red(None));
    }
}
