//! The admission policy that fences tenants: who says whose a namespace is.

use std::time::Duration;

use serde_json::{Value, json};

use super::rules::TENANT_LABEL;
use super::{
    acting_as, allowed, change, change_status, cluster_role_binding, create, delete, given, refused, with,
};
use crate::cluster;

#[tokio::test]
async fn who_gives_a_namespace_to_a_tenant_or_takes_it_away_needs_the_verb_admit() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "fence-tenant").await;
    let ns = namespace.name();
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}});
    let label = |value: Value| json!({"metadata": {"labels": {"portcullis.dev/tenant": value}}});
    let owner = format!("{ns}-owner");
    // What has no namespace goes away with the test's.
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(admin.clone());
    let uid = namespaces.get(ns).await.expect("it was made").metadata.uid;
    let reference = json!([{"apiVersion": "v1", "kind": "Namespace", "name": ns, "uid": uid}]);
    let rules = json!([{"apiGroups": [""], "resources": ["namespaces", "namespaces/status"],
        "verbs": ["get", "patch", "create", "delete"]}]);
    given(
        &admin,
        &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": rules,
        "metadata": {"name": owner, "ownerReferences": reference}}),
    )
    .await;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": owner}]);
    let binding = cluster_role_binding(&owner, &owner, subjects);
    given(&admin, &with(&binding, "/metadata/ownerReferences", reference)).await;
    let owner = acting_as(&owner).await;

    cluster::eventually("other labels are allowed", Duration::from_secs(10), async || {
        change(&owner, &object, json!({"metadata": {"labels": {"team": "a"}}})).await.ok()
    })
    .await;
    refused("giving it to a tenant", TENANT_LABEL, change(&owner, &object, label(json!("red"))).await);
    refused("beside the status", TENANT_LABEL, change_status(&owner, &object, label(json!("red"))).await);
    allowed("an empty label, which is none", change(&owner, &object, label(json!(""))).await);
    let mut new = label(json!("red"));
    new["apiVersion"] = json!("v1");
    new["kind"] = json!("Namespace");
    new["metadata"]["name"] = json!(format!("{ns}-new"));
    refused("making one of a tenant", TENANT_LABEL, create(&owner, &new).await);
    allowed("making one of none", create(&owner, &with(&new, "/metadata/labels", json!({}))).await);
    allowed("deleting one of none", delete(&owner, &object).await);

    allowed("giving it as administrator", change(&admin, &object, label(json!("red"))).await);
    namespace.label("portcullis.dev/tenant=red");
    for (what, value) in [
        ("giving it to another", json!("blue")),
        ("taking it away", Value::Null),
        ("leaving the label empty", json!("")),
    ] {
        refused(what, TENANT_LABEL, change(&owner, &object, label(value)).await);
    }
    refused("deleting it", TENANT_LABEL, delete(&owner, &object).await);
    let no_labels = json!({"metadata": {"labels": null}});
    refused("taking every label away", TENANT_LABEL, change(&owner, &object, no_labels).await);
    let team = json!({"metadata": {"labels": {"team": "a"}}});
    allowed("other labels of a tenant's namespace", change(&owner, &object, team).await);
    allowed("taking it away as administrator", change(&admin, &object, label(Value::Null)).await);
}
