//! The admission policies on people who write roles and keys.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::rules::{is_slice, rules};
use super::{
    acting_as, allowed, api, change, cluster_role_binding, create, given, grant, portcullis, role_binding,
    soon_allowed, with,
};
use crate::cluster;
use crate::rights::chart::Chart;
use crate::rights::grid::Right;

/// As the check on one rule, where the message is made for the attempt: each message has a test below.
#[track_caller]
fn refused(what: &str, policy: &str, result: Result<(), String>) {
    let message = result.expect_err(&format!("{what} must be refused"));
    assert!(message.contains(&format!("ValidatingAdmissionPolicy '{policy}'")), "{what}: {message}");
}

/// What a policy says when an author lacks a right: the rest of the message is the place.
const LACKS: &str = "spec.permissions names more than you may do, you do not hold";

/// Gives what `e2e/values.yaml` adds to the catalogue: whoever adds a CRD to it also says who administers its objects.
/// Of two policies that refuse it is open which one is told.
async fn grant_added(admin: &kube::Client, namespace: &str, user: &str) {
    for added in ["widgets.e2e.portcullis.dev", "fleets.e2e.portcullis.dev"] {
        for verb in ["get", "list"] {
            grant(admin, namespace, user, &format!("portcullis:catalogue:{added}:{verb}")).await;
        }
    }
}

#[tokio::test]
async fn who_writes_a_role_must_hold_what_it_names() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "authors").await;
    let ns = namespace.name();
    let role = |permissions: Value| portcullis("McpRole", ns, "role", json!({"permissions": permissions}));
    grant_added(&admin, ns, "writer").await;
    grant(&admin, ns, "writer", "portcullis:edit").await;
    let writer = acting_as("writer").await;
    let policy = "portcullis-role-author";

    soon_allowed("what the baseline covers", &writer, &role(json!(["k8s:namespaces:list"]))).await;
    for permission in
        ["k8s:*", "k8s:*:*", "k8s:pods:list", "k8s:pods:*", "k8s:*:list", "k8s:deployments.apps:scale"]
    {
        refused(permission, policy, create(&writer, &role(json!([permission]))).await);
    }
    grant(&admin, ns, "writer", "portcullis:catalogue:pods:list").await;
    soon_allowed("what the author holds", &writer, &role(json!(["k8s:pods:list"]))).await;
    let more = create(&writer, &role(json!(["k8s:pods:list", "k8s:pods:logs"]))).await;
    let message = more.as_ref().err().cloned().unwrap_or_default();
    assert!(message.contains("you do not hold pods/log:get"), "{message}");
    refused("one permission more", policy, more);

    grant(&admin, ns, "boss", "admin").await;
    grant_added(&admin, ns, "boss").await;
    let boss = acting_as("boss").await;
    soon_allowed("everything by an administrator of the namespace", &boss, &role(json!(["k8s:*"]))).await;
    let mut long = vec!["k8s:deployments.apps:restart".to_owned(); 127];
    long.push("k8s:*".to_owned());
    allowed("the longest list within the budget", create(&boss, &role(json!(long))).await);
    let wide = json!({"permissions": ["k8s:pods:list"], "servers": [{"namespace": ns, "name": "ops"}]});
    let mut wide = portcullis("ClusterMcpRole", "", "e2e-authors", wide);
    wide["metadata"].as_object_mut().expect("metadata").remove("namespace");
    allowed("a role of the cluster by its administrator", create(&admin, &wide).await);

    let strong = role(json!(["k8s:*"]));
    given(&admin, &strong).await;
    let labels = json!({"metadata": {"labels": {"team": "a"}}});
    allowed("touching what others wrote", change(&writer, &strong, labels).await);
    let servers = change(&writer, &strong, json!({"spec": {"servers": ["ops"]}})).await;
    refused("aiming what others wrote", policy, servers);
}

#[tokio::test]
async fn a_role_of_the_cluster_asks_for_its_rights_in_every_namespace() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "cluster-authors").await;
    let ns = namespace.name();
    let user = format!("{ns}-author");
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    let rules =
        json!([{"apiGroups": ["portcullis.dev"], "resources": ["clustermcproles"], "verbs": ["create"]}]);
    // What has no namespace goes away with the test's.
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(admin.clone());
    let uid = namespaces.get(ns).await.expect("it was made").metadata.uid;
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": ns, "uid": uid}]);
    let writing = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": rules,
        "metadata": {"name": user, "ownerReferences": owner}});
    given(&admin, &writing).await;
    let binding = cluster_role_binding(&user, &user, subjects);
    given(&admin, &with(&binding, "/metadata/ownerReferences", owner)).await;
    grant(&admin, ns, &user, "admin").await;
    let spec = json!({"permissions": ["k8s:pods:list"], "namespaces": [ns],
        "servers": [{"namespace": ns, "name": "ops"}]});
    let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "spec": spec,
        "metadata": {"name": user}});
    let author = acting_as(&user).await;
    let message = cluster::eventually("the author may write roles", Duration::from_secs(10), async || {
        create(&author, &role).await.err().filter(|message| !message.contains("cannot create resource"))
    })
    .await;
    refused("an administrator of one namespace", "portcullis-cluster-role-author", Err(message));
}

#[tokio::test]
async fn who_binds_a_role_to_a_key_needs_the_verb_bind_on_it() {
    let admin = cluster::client().await;
    let namespace = cluster::temp_namespace(&admin, "key-authors").await;
    let ns = namespace.name();
    let roles = |kind: &str, count: usize| -> Value {
        (0..count).map(|index| json!({"kind": kind, "name": format!("role-{index}")})).collect()
    };
    let key = |roles: Value| {
        portcullis("McpApiKey", ns, "bot", json!({"identity": "bot", "servers": ["ops"], "roles": roles}))
    };
    grant(&admin, ns, "writer", "portcullis:edit").await;
    let names: Vec<String> = (0..63).map(|index| format!("role-{index}")).collect();
    given(&admin, &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "bind", "namespace": ns},
        "rules": [{"apiGroups": ["portcullis.dev"], "resources": ["mcproles"], "verbs": ["bind"], "resourceNames": names}]}))
    .await;
    let writer = acting_as("writer").await;
    soon_allowed("a key without roles", &writer, &key(json!([]))).await;
    refused("one role", "portcullis-key-author", create(&writer, &key(roles("McpRole", 1))).await);
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "writer"}]);
    let binding = with(&role_binding(ns, "bind", "bind", subjects), "/roleRef/kind", json!("Role"));
    given(&admin, &binding).await;
    soon_allowed("one role that may be bound", &writer, &key(roles("McpRole", 1))).await;
    allowed("as many as may be bound", create(&writer, &key(roles("McpRole", 63))).await);
    let one_more = create(&writer, &key(roles("McpRole", 64))).await;
    assert!(one_more.as_ref().is_err_and(|message| message.contains("McpRole role-63")), "{one_more:?}");
    refused("one more, in the last place", "portcullis-key-author-3", one_more);
    let same_name = create(&writer, &key(roles("ClusterMcpRole", 1))).await;
    refused("a role of the cluster with the same name", "portcullis-key-author", same_name);

    grant(&admin, ns, "boss", "admin").await;
    let boss = acting_as("boss").await;
    allowed(
        "every role by an administrator of the namespace",
        create(&boss, &key(roles("McpRole", 64))).await,
    );
    refused(
        "roles of the cluster",
        "portcullis-key-author",
        create(&boss, &key(roles("ClusterMcpRole", 1))).await,
    );

    let foreign = key(roles("ClusterMcpRole", 1));
    given(&admin, &foreign).await;
    let enabled = |enabled: bool| json!({"spec": {"enabled": enabled}});
    allowed("stopping a key", change(&writer, &foreign, enabled(false)).await);
    let identity = json!({"spec": {"identity": "mallory"}});
    refused(
        "using a key for something else",
        "portcullis-key-author",
        change(&writer, &foreign, identity).await,
    );
    api(&admin, &foreign)
        .patch("bot", &PatchParams::default(), &Patch::Merge(enabled(false)))
        .await
        .expect("an administrator may");
    let starting = change(&writer, &foreign, enabled(true)).await;
    refused("starting a key again", "portcullis-key-author", starting);
}

/// The messages of a policy and its slices.
fn messages(chart: &Chart, policy: &str) -> BTreeSet<String> {
    let all = rules(chart).into_iter().filter(|(name, _)| is_slice(name, policy));
    all.map(|(_, message)| message).collect()
}

/// A user who may write roles and holds everything that the catalogue stands for, in the whole cluster, but one right.
async fn author_without(admin: &kube::Client, name: &str, owner: &Value, all: &BTreeSet<Right>, one: &Right) {
    let held = all.iter().filter(|right| *right != one).map(
        |right| json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]}),
    );
    let writing = json!({"apiGroups": ["portcullis.dev"], "resources": ["mcproles", "clustermcproles"],
        "verbs": ["create"]});
    // What `e2e/values.yaml` adds has policies of its own, and of two that refuse it is open which one is told.
    let added = json!({"apiGroups": ["e2e.portcullis.dev"], "resources": ["widgets", "fleets"], "verbs": ["get", "list"]});
    let rules: Vec<Value> = held.chain([writing, added]).collect();
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": rules,
        "metadata": {"name": name, "ownerReferences": owner}});
    given(admin, &role).await;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]);
    let binding = cluster_role_binding(name, name, subjects);
    given(admin, &with(&binding, "/metadata/ownerReferences", owner.clone())).await;
}

#[tokio::test]
async fn who_lacks_one_right_is_told_which_and_writes_no_role_with_it() {
    let (admin, chart) = (cluster::client().await, Chart::read());
    let namespace = cluster::temp_namespace(&admin, "lacking-authors").await;
    let (ns, owner) = (namespace.name(), namespace.owner());
    let mut all = chart.permission("k8s:*");
    // The mark on the right to restart allows nothing, so nobody is asked for it.
    all.remove(&Right::new("portcullis.dev", "deployments", "restart"));
    let expected = |place: &str| -> BTreeSet<String> {
        let message = |right: &Right| format!("{LACKS} {}:{} in {place}", right.resource, right.verb);
        all.iter().map(message).collect()
    };
    assert_eq!(messages(&chart, "portcullis-role-author"), expected("this namespace"));
    assert_eq!(messages(&chart, "portcullis-cluster-role-author"), expected("every namespace"));

    let names: Vec<String> = (0..all.len()).map(|index| format!("{ns}-{index}")).collect();
    for (name, one) in names.iter().zip(&all) {
        author_without(&admin, name, &owner, &all, one).await;
    }
    let local = portcullis("McpRole", ns, "role", json!({"permissions": ["k8s:*"]}));
    let spec =
        json!({"permissions": ["k8s:*"], "namespaces": [ns], "servers": [{"namespace": ns, "name": "ops"}]});
    let wide = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "spec": spec,
        "metadata": {"name": ns}});
    for (name, one) in names.iter().zip(&all) {
        let author = acting_as(name).await;
        for (object, place) in [(&local, "this namespace"), (&wide, "every namespace")] {
            let message = format!("denied request: {LACKS} {}:{} in {place}", one.resource, one.verb);
            // The author's other rights are new.
            cluster::eventually(&message, Duration::from_secs(10), async || {
                create(&author, object).await.expect_err(&message).ends_with(&message).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn who_does_not_hold_everything_names_nothing_ahead_of_the_catalogue() {
    let (admin, all) = (cluster::client().await, Chart::read().permission("k8s:*"));
    let namespace = cluster::temp_namespace(&admin, "ahead-authors").await;
    let (ns, owner) = (namespace.name(), namespace.owner());
    grant(&admin, ns, "boss", "admin").await;
    grant_added(&admin, ns, "boss").await;
    let writer = format!("{ns}-writer");
    author_without(&admin, &writer, &owner, &all, &Right::new("", "secrets", "get")).await;
    let (boss, writer) = (acting_as("boss").await, acting_as(&writer).await);
    let role = |permissions: Value| portcullis("McpRole", ns, "role", json!({"permissions": permissions}));
    let wide = |permissions: Value| {
        let spec = json!({"permissions": permissions, "namespaces": [ns],
            "servers": [{"namespace": ns, "name": "ops"}]});
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "spec": spec, "metadata": {"name": ns}})
    };
    let known =
        json!(["k8s:namespaces:list", "mcp:tools:access_whoami", "mcp:tools:*", "mcp:*", "*:tools:*"]);
    soon_allowed("what nobody needs a right for", &writer, &role(known.clone())).await;
    soon_allowed("the same in the whole cluster", &writer, &wide(known)).await;
    let every_form = json!([
        "*",
        "*:*",
        "k8s:*",
        "k8s:*:*",
        "k8s:pods:*",
        "k8s:*:list",
        "*:pods:logs",
        "k8s:deployments.apps:scale",
        "k8s:widgets.e2e.portcullis.dev:get",
        "k8s:resources:list",
        "k8s:resources:*"
    ]);
    soon_allowed("every form of what there is", &boss, &role(every_form)).await;
    for unknown in [
        "k8s:secrets:get",
        "k8s:secrets:*",
        "k8s:*:create",
        "k8s:*:manage",
        "k8s:resources:delete",
        "k8s:pods:evict",
        "k8s:pods.:list",
        "k8s:pods.apps:list",
        "k8s:gadgets.e2e.portcullis.dev:get",
        "k8s:widgets:get",
        "mcp:audit:read",
        "mcp:tools:shell",
        "k8s",
        "k8s:pods",
        "k8s:pods:list:now",
        "other:pods:list",
    ] {
        let permissions = json!(["k8s:namespaces:list", unknown]);
        for (author, object, place) in [
            (&boss, role(permissions.clone()), "this namespace"),
            (&writer, wide(permissions.clone()), "every namespace"),
        ] {
            let told = format!(
                "spec.permissions names {unknown}, which is not in the catalogue of permissions; to name it ahead takes the right to everything in {place}"
            );
            let message = create(author, &object).await.expect_err(unknown);
            assert!(message.ends_with(&told), "{unknown}: {message}");
        }
    }
    let many = role(json!(vec!["k8s:deployments.apps:restart"; 128]));
    allowed("the longest list within the budget", create(&boss, &many).await);
    let ahead = json!(["k8s:secrets:get"]);
    allowed("ahead by who holds everything", create(&admin, &role(ahead.clone())).await);
    allowed("ahead in the whole cluster", create(&admin, &wide(ahead)).await);
}

#[tokio::test]
async fn every_role_of_a_key_is_looked_at_in_its_place() {
    let (admin, chart) = (cluster::client().await, Chart::read());
    let namespace = cluster::temp_namespace(&admin, "key-places").await;
    let ns = namespace.name();
    let places = messages(&chart, "portcullis-key-author").len();
    let named = |index: usize| json!({"kind": "McpRole", "name": format!("role-{index}")});
    let names: Vec<String> = (0..places).map(|index| format!("role-{index}")).collect();
    given(&admin, &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "bind", "namespace": ns},
        "rules": [{"apiGroups": ["portcullis.dev"], "resources": ["mcproles"], "verbs": ["bind"], "resourceNames": names}]}))
    .await;
    grant(&admin, ns, "writer", "portcullis:edit").await;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "writer"}]);
    given(&admin, &with(&role_binding(ns, "bind", "bind", subjects), "/roleRef/kind", json!("Role"))).await;
    let writer = acting_as("writer").await;
    let key = |roles: &[Value]| {
        portcullis("McpApiKey", ns, "bot", json!({"identity": "bot", "servers": ["ops"], "roles": roles}))
    };
    let own: Vec<Value> = (0..places).map(named).collect();
    soon_allowed("as many roles as a key may have", &writer, &key(&own)).await;
    let more = create(&admin, &key(&(0..=places).map(named).collect::<Vec<_>>())).await;
    assert!(
        more.is_err_and(|message| message.contains("Too many")),
        "a key has no more places than are looked at"
    );
    for place in 0..places {
        for foreign in [
            json!({"kind": "McpRole", "name": "foreign"}),
            json!({"kind": "ClusterMcpRole", "name": "role-0"}),
        ] {
            let mut roles = own.clone();
            roles[place] = foreign.clone();
            let message = create(&writer, &key(&roles)).await.expect_err("a role that may not be bound");
            let (kind, name) =
                (foreign["kind"].as_str().expect("text"), foreign["name"].as_str().expect("text"));
            let expected =
                format!("denied request: spec.roles[{place}]: you do not hold bind on {kind} {name}");
            assert!(message.ends_with(&expected), "not {expected:?} but {message}");
        }
    }
}

#[tokio::test]
async fn every_inherited_role_is_looked_at_in_its_place() {
    let (admin, chart) = (cluster::client().await, Chart::read());
    let namespace = cluster::temp_namespace(&admin, "inheritance").await;
    let (ns, owner) = (namespace.name(), namespace.owner());
    let places = messages(&chart, "portcullis-role-author-inheritance").len();
    assert_eq!(messages(&chart, "portcullis-cluster-role-author-inheritance").len(), places);
    let own: Vec<String> = (0..places).map(|index| format!("role-{index}")).collect();
    let user = format!("{ns}-heir");
    let rules = json!([
        {"apiGroups": ["portcullis.dev"], "resources": ["mcproles", "clustermcproles"], "verbs": ["create"]},
        {"apiGroups": ["portcullis.dev"], "resources": ["mcproles", "clustermcproles"], "verbs": ["bind"],
            "resourceNames": own}]);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": rules,
        "metadata": {"name": user, "ownerReferences": owner}});
    given(&admin, &role).await;
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    let binding = cluster_role_binding(&user, &user, subjects);
    given(&admin, &with(&binding, "/metadata/ownerReferences", owner)).await;
    let heir = acting_as(&user).await;
    let local = |inherits: &[String]| portcullis("McpRole", ns, "heir", json!({"inherits": inherits}));
    let wide = |inherits: &[String]| {
        let spec =
            json!({"inherits": inherits, "namespaces": [ns], "servers": [{"namespace": ns, "name": "ops"}]});
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "spec": spec,
            "metadata": {"name": ns}})
    };
    soon_allowed("roles that may be bound", &heir, &local(&own)).await;
    allowed("roles of the cluster that may be bound", create(&heir, &wide(&own)).await);
    let more: Vec<String> = (0..=places).map(|index| format!("role-{index}")).collect();
    for role in [local(&more), wide(&more)] {
        let refusal = create(&admin, &role).await.expect_err("no more places than are looked at");
        assert!(refusal.contains("Too many"), "{refusal}");
    }
    for place in 0..places {
        let mut inherits = own.clone();
        "foreign".clone_into(&mut inherits[place]);
        for role in [local(&inherits), wide(&inherits)] {
            let message = create(&heir, &role).await.expect_err("a role that may not be bound");
            let expected = format!("denied request: spec.inherits[{place}]: you do not hold bind on foreign");
            assert!(message.ends_with(&expected), "not {expected:?} but {message}");
        }
    }
}
