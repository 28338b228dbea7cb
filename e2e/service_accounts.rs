//! Tokens of Kubernetes ServiceAccounts, made for the endpoint and proved by the API server.

use std::time::{Duration, Instant};

use http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

use crate::cluster::{client, eventually, kubectl};
use crate::server::{Endpoint, Wishes};
use crate::wire::Wire;

const SUBJECTS: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nobody}
---
apiVersion: portcullis.dev/v1alpha1
kind: McpRole
metadata: {name: robots}
spec: {permissions: ['k8s:pods:list'], subjects: [{kind: ServiceAccount, name: robot}]}
";

/// A token of an account for an audience, by TokenRequest; none is the API server's own.
pub(crate) async fn token(namespace: &str, account: &str, audience: Option<&str>) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(client().await, namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.map(str::to_owned).into_iter().collect(),
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    answer.expect("a token").status.expect("of the API server").token
}

async fn answer(wire: &Wire, token: &str) -> (StatusCode, Vec<String>) {
    let answer = wire.list_as(&[("authorization", &format!("Bearer {token}"))]).await.expect("an answer");
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let tools = body["result"]["tools"].as_array().cloned().unwrap_or_default();
    let names = tools.iter().map(|tool| tool["name"].as_str().unwrap_or_default().to_owned());
    (answer.status(), names.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_is_who_the_api_server_says_and_only_by_a_token_made_for_us() {
    let spec = "authentication: {serviceAccounts: {enabled: true}}";
    let wishes = Wishes { spec, manifests: SUBJECTS, ..Wishes::default() };
    let endpoint = Endpoint::start_with("accounts", wishes).await;
    let (wire, namespace) = (Wire::new(&endpoint), endpoint.namespace());
    let ours = endpoint.resource();

    let robot = token(namespace, "robot", Some(&ours)).await;
    let (status, tools) = answer(&wire, &robot).await;
    assert_eq!((status, tools), (StatusCode::OK, vec!["pods_list".to_owned(), "resources_list".to_owned()]));
    let (status, tools) = answer(&wire, &token(namespace, "nobody", Some(&ours)).await).await;
    assert_eq!((status, tools), (StatusCode::OK, vec![]), "proved, and without a role");

    let missing = wire.list_as(&[]).await.expect("an answer");
    for (what, audience) in [("the API server's", None), ("another's", Some("https://other.example"))] {
        let token = token(namespace, "robot", audience).await;
        let refused =
            wire.list_as(&[("authorization", &format!("Bearer {token}"))]).await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{what} audience");
        assert_eq!(refused.body(), missing.body(), "{what} audience");
    }
    let mut damaged = robot.clone();
    let last = damaged.pop().expect("a token");
    damaged.insert(damaged.len() - 10, last);
    assert_eq!(answer(&wire, &damaged).await.0, StatusCode::UNAUTHORIZED);

    kubectl(&["delete", "serviceaccount", "-n", namespace, "robot"]);
    let began = Instant::now();
    eventually("the deleted account is refused", Duration::from_secs(75), async || {
        (answer(&wire, &robot).await.0 == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let after = began.elapsed();
    eprintln!("the token of a deleted ServiceAccount was refused after {after:?}");
    assert!(after < Duration::from_secs(62), "{after:?}");
    kubectl(&["create", "serviceaccount", "-n", namespace, "robot"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(answer(&wire, &robot).await.0, StatusCode::UNAUTHORIZED, "a new account of the same name");

    let events = endpoint.audit(&[]);
    let user = format!("system:serviceaccount:{namespace}:robot");
    assert!(
        events.iter().any(|event| event["user"] == user.as_str() && event["auth_type"] == "serviceaccount"),
        "the audit names the account"
    );
    assert!(events.iter().all(|event| !event.to_string().contains(&robot)), "and never its token");
}
