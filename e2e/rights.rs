//! The API server is asked what each ServiceAccount may do, and the answer is compared in both directions.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use crate::cluster::{OPERATOR_NAMESPACE, client, kubectl};
use crate::server::Endpoint;

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// Group, resource and subresource of everything that is interesting to somebody who stole a token.
const RESOURCES: [(&str, &str, &str); 27] = [
    ("", "pods", ""),
    ("", "pods", "log"),
    ("", "pods", "exec"),
    ("", "pods", "attach"),
    ("", "pods", "portforward"),
    ("", "pods", "eviction"),
    ("", "secrets", ""),
    ("", "configmaps", ""),
    ("", "services", ""),
    ("", "events", ""),
    ("events.k8s.io", "events", ""),
    ("", "serviceaccounts", ""),
    ("", "serviceaccounts", "token"),
    ("", "namespaces", ""),
    ("", "nodes", ""),
    ("apps", "deployments", ""),
    ("apps", "deployments", "scale"),
    ("apps", "replicasets", ""),
    ("apps", "statefulsets", ""),
    ("rbac.authorization.k8s.io", "roles", ""),
    ("rbac.authorization.k8s.io", "rolebindings", ""),
    ("rbac.authorization.k8s.io", "clusterroles", ""),
    ("rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("portcullis.dev", "mcpservers", ""),
    ("portcullis.dev", "mcproles", ""),
    ("portcullis.dev", "mcpapikeys", ""),
    ("portcullis.dev", "clustermcproles", ""),
];

/// Everything of the grid that the API server allows, as `verb group/resource/subresource`.
pub(crate) async fn allowed(client: &kube::Client, account: &str, namespace: &str) -> BTreeSet<String> {
    let grid = RESOURCES.iter().flat_map(|resource| VERBS.iter().map(move |verb| (resource, *verb)));
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    stream::iter(grid)
        .map(|(&(group, resource, subresource), verb)| {
            let reviews = reviews.clone();
            async move {
                let review = SubjectAccessReview {
                    spec: SubjectAccessReviewSpec {
                        user: Some(account.to_owned()),
                        groups: Some(vec![
                            "system:serviceaccounts".to_owned(),
                            "system:authenticated".to_owned(),
                        ]),
                        resource_attributes: Some(ResourceAttributes {
                            namespace: Some(namespace.to_owned()).filter(|name| !name.is_empty()),
                            verb: Some(verb.to_owned()),
                            group: Some(group.to_owned()),
                            resource: Some(resource.to_owned()),
                            subresource: Some(subresource.to_owned()).filter(|name| !name.is_empty()),
                            ..ResourceAttributes::default()
                        }),
                        ..SubjectAccessReviewSpec::default()
                    },
                    ..SubjectAccessReview::default()
                };
                let answer = reviews.create(&PostParams::default(), &review).await.expect("a review");
                let allowed = answer.status.is_some_and(|status| status.allowed);
                allowed.then(|| format!("{verb} {group}/{resource}/{subresource}"))
            }
        })
        .buffer_unordered(16)
        .filter_map(std::future::ready)
        .collect()
        .await
}

fn set(rights: &[&str]) -> BTreeSet<String> {
    rights.iter().map(|right| (*right).to_owned()).collect()
}

/// What every server may do anywhere: watch cluster roles and namespaces.
const CLUSTER_BASELINE: [&str; 6] = [
    "get portcullis.dev/clustermcproles/",
    "list portcullis.dev/clustermcproles/",
    "watch portcullis.dev/clustermcproles/",
    "get /namespaces/",
    "list /namespaces/",
    "watch /namespaces/",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_server_has_exactly_its_baseline_and_the_union_of_its_roles() {
    let endpoint = Endpoint::start("rights", 1).await;
    let client = client().await;
    let namespace = endpoint.namespace();
    kubectl(&["delete", "-n", namespace, "mcprole", "admin"]);
    let account = format!("system:serviceaccount:{namespace}:ops-mcp");
    let mut wanted = set(&CLUSTER_BASELINE);
    for kind in ["mcpservers", "mcproles", "mcpapikeys"] {
        for verb in ["get", "list", "watch"] {
            wanted.insert(format!("{verb} portcullis.dev/{kind}/"));
        }
    }
    wanted.extend(set(&["create events.k8s.io/events/", "patch events.k8s.io/events/"]));
    // The role `viewer`.
    wanted.extend(set(&["list /pods/", "get /pods/log", "list apps/deployments/"]));
    crate::cluster::eventually("the bindings follow", std::time::Duration::from_secs(10), async || {
        (allowed(&client, &account, namespace).await == wanted).then_some(())
    })
    .await;
    for elsewhere in ["kube-system", "default", OPERATOR_NAMESPACE, ""] {
        assert_eq!(allowed(&client, &account, elsewhere).await, set(&CLUSTER_BASELINE), "{elsewhere:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_has_no_secret_where_it_does_not_work_and_never_lists_them() {
    let client = client().await;
    let endpoint = Endpoint::start("operator", 1).await;
    let account = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:portcullis-operator");
    let in_namespace = allowed(&client, &account, endpoint.namespace()).await;
    for (namespace, rights) in [
        (endpoint.namespace(), in_namespace),
        ("kube-system", allowed(&client, &account, "kube-system").await),
        ("", allowed(&client, &account, "").await),
    ] {
        let has = |right: &str| rights.contains(right);
        for forbidden in
            ["list /secrets/", "watch /secrets/", "create /pods/exec", "create /serviceaccounts/token"]
        {
            assert!(!has(forbidden), "{forbidden} in {namespace:?}");
        }
        for verb in ["create", "update", "patch", "delete"] {
            for kind in ["roles", "clusterroles"] {
                let right = format!("{verb} rbac.authorization.k8s.io/{kind}/");
                assert!(!has(&right), "{right} in {namespace:?}");
            }
        }
        let works_here = namespace == endpoint.namespace();
        assert_eq!(has("get /secrets/"), works_here, "{namespace:?}");
        assert_eq!(has("create apps/deployments/"), works_here, "{namespace:?}");
    }
}
