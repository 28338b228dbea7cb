//! Tenants on every path by which a caller reaches a namespace. The role grants everything everywhere, so that it is the
//! tenant alone that is in the way.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::fixture::*;
use super::tokens::{exchange, set_signing_key};
use crate::api::{
    BasicSpec, ClusterMcpRole, MaterialKind, RoleKind, RoleReference, SecretKeyReference, Tenancy, names,
};
use crate::audit::{Event, Kind, Outcome};
use crate::authn::password;
use crate::index::Objects;
use crate::tools::registry;

const VIOLATION: &str = "tenant_isolation_violation";

/// The namespaces and their tenants.
const NAMESPACES: [(&str, Option<&str>); 5] = [
    ("blue-1", Some("blue")),
    ("common", None),
    ("nobody", Some("")),
    ("red-1", Some("red")),
    ("red-2", Some("red")),
];

/// Two keys with the same role of everything, the first of the tenant red and the second of blue.
fn two_tenants(objects: &mut Objects) {
    let role = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "ClusterMcpRole", "metadata": {"name": "all"},
        "spec": {"permissions": ["*"], "allNamespaces": true, "servers": [{"namespace": "agents", "name": "ops"}]}});
    let role: ClusterMcpRole = serde_json::from_value(role).expect("a role");
    objects.cluster_roles.insert("all".to_owned(), Arc::new(role));
    for (key, tenant) in [("ci", "red"), ("other", "blue")] {
        let key = Arc::make_mut(objects.keys.get_mut(key).expect("there"));
        key.spec.tenant = Some(tenant.to_owned());
        key.spec.roles = vec![RoleReference { kind: RoleKind::ClusterMcpRole, name: "all".to_owned() }];
    }
    for (namespace, tenant) in NAMESPACES {
        label(objects, namespace, tenant);
    }
}

fn label(objects: &mut Objects, namespace: &str, tenant: Option<&str>) {
    let labels = tenant.map(|tenant| (names::TENANT_LABEL.to_owned(), tenant.to_owned()));
    objects.namespaces.insert(namespace.to_owned(), labels.into_iter().collect());
}

/// An endpoint with the real tools before an API server that gives everything to everybody.
async fn start_tenants() -> (Fixture, ApiServer) {
    let api = ApiServer::start().await;
    let setup = Setup { client: Some(api.client.clone()), tools: Some(registry()), ..Setup::default() };
    let fixture = start_with(setup).await;
    fixture.publish(two_tenants);
    (fixture, api)
}

async fn ask(fixture: &Fixture, credential: &str, tool: &str, arguments: Value) -> Value {
    ask_with(fixture, &format!("Bearer {credential}"), tool, arguments).await
}

async fn ask_with(fixture: &Fixture, authorization: &str, tool: &str, arguments: Value) -> Value {
    let body = call(tool, arguments).to_string();
    fixture.reply(fixture.post("/mcp", &[("authorization", authorization)], body)).await.json()
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {answer}"))
}

/// Namespaces of the objects of an answer.
fn namespaces(answer: &Value) -> Vec<&str> {
    let items = answer["result"]["structuredContent"]["items"].as_array();
    let items = items.unwrap_or_else(|| panic!("no items: {answer}")).iter();
    items.map(|item| item["namespace"].as_str().or(item["name"].as_str()).expect("text")).collect()
}

#[track_caller]
fn assert_violation(event: &Event, tool: &str) {
    assert_eq!((event.event_type, event.result), (Kind::SecurityViolation, Outcome::Denied), "{event:?}");
    assert_eq!((event.reason.as_deref(), event.tool.as_deref()), (Some(VIOLATION), Some(tool)));
}

#[tokio::test]
async fn a_list_of_everything_is_a_list_of_the_tenants_own_namespaces() {
    let (fixture, api) = start_tenants().await;
    for (key, own) in [(&fixture.key, &["red-1", "red-2"][..]), (&fixture.other_key, &["blue-1"])] {
        for (tool, resource) in
            [("pods_list", "pods"), ("services_list", "services"), ("events_list", "events")]
        {
            let mut found = namespaces(&ask(&fixture, key, tool, json!({})).await).join(" ");
            if tool == "events_list" {
                let mut sorted: Vec<_> = found.split(' ').collect();
                sorted.sort_unstable();
                found = sorted.join(" ");
            }
            assert_eq!(found, own.join(" "), "{tool}");
            let requests = own.iter().map(|name| format!("GET /api/v1/namespaces/{name}/{resource}"));
            assert_eq!(api.asked(), requests.collect::<Vec<_>>(), "{tool} asks for no more");
        }
        assert_eq!(namespaces(&ask(&fixture, key, "namespaces_list", json!({})).await), own);
        let event = fixture.last_event();
        assert_eq!((event.event_type, event.result), (Kind::McpRequest, Outcome::Success));
    }
    fixture.stop().await;
}

#[tokio::test]
async fn reaching_for_what_is_not_the_tenants_is_refused_recorded_and_counted() {
    let (fixture, api) = start_tenants().await;
    let calls = [
        ("pods_list", json!({})),
        ("events_list", json!({})),
        ("pods_log", json!({"name": "web"})),
        ("pods_delete", json!({"name": "web"})),
        ("deployments_scale", json!({"name": "web", "replicas": 0})),
    ];
    let mut crossings = 0;
    for namespace in ["blue-1", "common", "nobody", "agents", "not-there"] {
        for (tool, arguments) in &calls {
            let mut arguments = arguments.clone();
            arguments["namespace"] = json!(namespace);
            let answer = ask(&fixture, &fixture.key, tool, arguments).await;
            let tool = registry().iter().find(|known| known.name == *tool).expect("a tool");
            let permission = tool.needs.permissions().next().expect("what it needs");
            let short = format!("permission denied: {permission} in namespace {namespace:?}");
            assert_eq!((text(&answer), &answer["result"]["isError"]), (short.as_str(), &json!(true)));
            let event = fixture.last_event();
            assert_violation(&event, tool.name);
            let message = event.error_message.as_deref().expect("a message");
            let owner = if namespace == "blue-1" { "tenant \"blue\"" } else { "no tenant" };
            assert!(
                message.contains("tenant \"red\"") && message.ends_with(&format!("of {owner}")),
                "{message}"
            );
            assert_eq!(event.metadata["tenant"], "red");
            assert_eq!(event.metadata["permission"], permission.to_string());
            assert_eq!(event.namespace.as_deref(), Some(namespace));
            crossings += 1;
        }
    }
    assert_eq!(api.asked(), [""; 0], "the API server was asked");
    assert_eq!(fixture.violations(VIOLATION), crossings);
    fixture.stop().await;
}

#[tokio::test]
async fn outside_a_crossing_looks_like_any_denial() {
    let (fixture, _api) = start_tenants().await;
    let list = json!({"namespace": "blue-1"});
    let crossing = ask(&fixture, &fixture.key, "pods_list", list.clone()).await;
    fixture.publish(|objects| {
        two_tenants(objects);
        let key = Arc::make_mut(objects.keys.get_mut("ci").expect("there"));
        key.spec.tenant = None;
        key.spec.roles = vec![RoleReference { kind: RoleKind::McpRole, name: "viewer".to_owned() }];
    });
    let denied = ask(&fixture, &fixture.key, "pods_list", list).await;
    assert_eq!(fixture.last_event().event_type, Kind::Authorization);
    assert_eq!(crossing, denied);
    fixture.stop().await;
}

#[tokio::test]
async fn no_cursor_leads_into_the_namespaces_of_another_tenant() {
    let (fixture, api) = start_tenants().await;
    let first = ask(&fixture, &fixture.key, "pods_list", json!({"limit": 1})).await;
    assert_eq!(namespaces(&first), ["red-1"]);
    let next = first["result"]["structuredContent"]["continue"].as_str().expect("more").to_owned();
    let second = ask(&fixture, &fixture.key, "pods_list", json!({"limit": 1, "continue": next})).await;
    assert_eq!(namespaces(&second), ["red-2"]);
    api.asked();
    let forged = |cursor: Value| {
        use base64::Engine;
        base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(cursor.to_string())
    };
    let into_blue = forged(json!({"resource": "pods", "namespace": "blue-1", "token": "t"}));
    let answer = ask(&fixture, &fixture.key, "pods_list", json!({"continue": into_blue})).await;
    assert_eq!(namespaces(&answer), ["red-1", "red-2"]);
    let whole_cluster = forged(json!({"resource": "pods", "token": "t"}));
    let answer = ask(&fixture, &fixture.key, "pods_list", json!({"continue": whole_cluster})).await;
    assert_eq!(answer["result"]["isError"], true, "{answer}");
    // What red was given is worth nothing to blue: it begins behind all that blue has.
    let answer = ask(&fixture, &fixture.other_key, "pods_list", json!({"continue": next})).await;
    assert_eq!(namespaces(&answer), [""; 0]);
    let red = ["GET /api/v1/namespaces/red-1/pods", "GET /api/v1/namespaces/red-2/pods"];
    assert_eq!(api.asked(), red, "each once, and nothing of others");
    fixture.stop().await;
}

#[tokio::test]
async fn a_namespace_changes_hands_with_its_label() {
    let (fixture, _api) = start_tenants().await;
    let list = json!({"namespace": "red-2"});
    let of =
        async |key: &str| ask(&fixture, key, "pods_list", list.clone()).await["result"]["isError"] != true;
    assert!(of(&fixture.key).await && !of(&fixture.other_key).await);
    fixture.publish(|objects| {
        two_tenants(objects);
        label(objects, "red-2", Some("blue"));
    });
    assert!(!of(&fixture.key).await && of(&fixture.other_key).await);
    fixture.stop().await;
}

#[tokio::test]
async fn a_token_of_the_endpoints_own_stays_with_the_tenant_of_its_key() {
    let (fixture, _api) = start_tenants().await;
    set_signing_key(&fixture);
    fixture.publish(|objects| {
        two_tenants(objects);
        let server = Arc::make_mut(objects.server.as_mut().expect("there"));
        server.spec.authentication.tokens.enabled = true;
    });
    let made = exchange(&fixture, &fixture.key, json!({})).await.json();
    let token = made["access_token"].as_str().expect("a token").to_owned();
    let own = ask(&fixture, &token, "namespaces_list", json!({})).await;
    assert_eq!(namespaces(&own), ["red-1", "red-2"]);
    ask(&fixture, &token, "pods_list", json!({"namespace": "blue-1"})).await;
    assert_violation(&fixture.last_event(), "pods_list");
    assert_eq!(fixture.last_event().auth_type, "token");
    fixture.stop().await;
}

#[tokio::test]
async fn where_a_tenant_is_required_a_caller_without_one_may_do_nothing() {
    let (fixture, api) = start_tenants().await;
    fixture.publish(|objects| {
        two_tenants(objects);
        Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.tenant = None;
    });
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let listed = async || {
        let list = fixture.message(&list).await.json();
        list["result"]["tools"].as_array().expect("tools").len()
    };
    assert_eq!(listed().await, registry().len(), "where none is required it acts wherever its roles reach");
    fixture.publish(|objects| {
        two_tenants(objects);
        Arc::make_mut(objects.keys.get_mut("ci").expect("there")).spec.tenant = None;
        let server = Arc::make_mut(objects.server.as_mut().expect("there"));
        server.spec.authorization.tenancy = Tenancy::Required;
    });
    assert_eq!(listed().await, 0);
    let refused = ask(&fixture, &fixture.key, "pods_list", json!({"namespace": "red-1"})).await;
    assert_violation(&fixture.last_event(), "pods_list");
    let unknown = ask(&fixture, &fixture.other_key, "pods_lost", json!({"namespace": "red-1"})).await;
    assert_eq!(
        refused.to_string().replace("pods_list", "pods_lost"),
        unknown.to_string(),
        "as of no such tool"
    );
    for tool in ["namespaces_list", "events_list", "access_whoami"] {
        let refused = ask(&fixture, &fixture.key, tool, json!({})).await;
        assert!(refused.get("error").is_some(), "{tool}: {refused}");
        assert_violation(&fixture.last_event(), tool);
    }
    assert_eq!(api.asked(), [""; 0]);
    let own = ask(&fixture, &fixture.other_key, "namespaces_list", json!({})).await;
    assert_eq!(namespaces(&own), ["blue-1"], "members of tenants go on");
    fixture.stop().await;
}

/// The tenants, and beside them a user with a password who holds the role of everything too.
fn with_user(objects: &mut Objects, users: &SecretKeyReference, tenancy: Tenancy) {
    two_tenants(objects);
    let role = Arc::make_mut(objects.cluster_roles.get_mut("all").expect("there"));
    let ann = json!([{"kind": "User", "name": "ann", "issuer": "basic"}]);
    role.spec.subjects = serde_json::from_value(ann).expect("subjects");
    let server = &mut Arc::make_mut(objects.server.as_mut().expect("there")).spec;
    server.authentication.basic = BasicSpec { enabled: true, users: Some(users.clone()) };
    server.authorization.tenancy = tenancy;
}

#[tokio::test]
async fn a_user_with_a_password_has_no_tenant_and_may_do_nothing_where_one_is_required() {
    let (fixture, api) = start_tenants().await;
    let users = SecretKeyReference { name: "people".into(), key: "users".into() };
    let hash = password::hash(b"a password of hers", [1; 16]).expect("hashed");
    let path = names::material_path(MaterialKind::Secret, &users.name, &users.key);
    fixture.materials.set([(path, Arc::from(format!("ann:{hash}").into_bytes()))].into());
    let ann = format!("Basic {}", BASE64_STANDARD.encode("ann:a password of hers"));
    let here = || json!({"namespace": "red-1"});

    fixture.publish(|objects| with_user(objects, &users, Tenancy::IfGiven));
    let all = ask_with(&fixture, &ann, "namespaces_list", json!({})).await;
    let every = ["agents"].into_iter().chain(NAMESPACES.map(|(name, _)| name)).collect::<Vec<_>>();
    assert_eq!(namespaces(&all), every, "nothing confines the user");
    assert_eq!(
        (fixture.last_event().user.as_str(), fixture.last_event().auth_type.as_str()),
        ("ann", "basic")
    );

    fixture.publish(|objects| with_user(objects, &users, Tenancy::Required));
    let asked = api.asked().len();
    for (tool, arguments) in
        [("namespaces_list", json!({})), ("pods_list", here()), ("access_whoami", json!({}))]
    {
        let refused = ask_with(&fixture, &ann, tool, arguments).await;
        assert!(refused.get("error").is_some(), "{tool}: {refused}");
        assert_violation(&fixture.last_event(), tool);
        assert_eq!(fixture.last_event().user, "ann");
    }
    assert_eq!(api.asked().len(), asked, "the cluster was not asked");
    fixture.stop().await;
}

#[tokio::test]
async fn access_whoami_says_who_is_calling_and_what_it_may_do_without_a_secret() {
    let (fixture, api) = start_tenants().await;
    let answer = ask(&fixture, &fixture.key, "access_whoami", json!({})).await;
    let told = &answer["result"]["structuredContent"];
    assert_eq!((&told["user"], &told["method"]), (&json!("ci-bot"), &json!("apikey")), "{answer}");
    assert_eq!((&told["tenant"], &told["key"]), (&json!("red"), &json!("ci")));
    assert_eq!(told["credentialId"], key_id(&fixture.key));
    assert_eq!(told["roles"], json!(["ClusterMcpRole all"]));
    let permission = |name: &str| {
        let all = told["permissions"].as_array().expect("permissions").iter();
        all.into_iter().find(|one| one["permission"] == name).cloned().unwrap_or_default()
    };
    let own =
        json!({"permission": "k8s:pods:list", "allNamespaces": false, "namespaces": ["red-1", "red-2"]});
    assert_eq!(permission("k8s:pods:list"), own);
    assert_eq!(permission("mcp:tools:access_whoami")["namespaces"], json!([]));
    let tools: Vec<&str> = registry().iter().map(|tool| tool.name).collect();
    assert_eq!(told["tools"], json!(tools));
    let text = text(&answer);
    assert!(text.starts_with("You are ci-bot, proved by apikey, credential "), "{text}");
    assert!(text.contains("Tenant: red") && text.contains("red-1, red-2"), "{text}");
    assert!(!answer.to_string().contains(&fixture.key), "the key is in the answer");
    assert_eq!(api.asked(), [""; 0]);
    let event = fixture.last_event();
    assert_eq!((event.tool.as_deref(), event.result), (Some("access_whoami"), Outcome::Success));
    fixture.stop().await;
}

#[tokio::test]
async fn access_whoami_tells_each_caller_of_one_policy_its_own() {
    let (fixture, _api) = start_tenants().await;
    for _ in 0..2 {
        for (key, user, tenant, own) in [
            (&fixture.key, "ci-bot", "red", json!(["red-1", "red-2"])),
            (&fixture.other_key, "other-bot", "blue", json!(["blue-1"])),
        ] {
            let answer = ask(&fixture, key, "access_whoami", json!({})).await;
            let told = &answer["result"]["structuredContent"];
            assert_eq!((&told["user"], &told["tenant"]), (&json!(user), &json!(tenant)), "{answer}");
            assert_eq!(told["credentialId"], key_id(key));
            let permissions = told["permissions"].as_array().expect("permissions").iter();
            let places =
                permissions.filter(|one| one["permission"].as_str().expect("text").starts_with("k8s:"));
            let places: Vec<_> = places.map(|one| &one["namespaces"]).collect();
            assert!(!places.is_empty() && places.iter().all(|place| **place == own), "{answer}");
            assert!(text(&answer).starts_with(&format!("You are {user}, ")), "{}", text(&answer));
            assert_eq!(fixture.last_event().user, user);
        }
    }
    fixture.stop().await;
}

#[tokio::test]
async fn access_whoami_tells_what_the_scopes_of_a_credential_keep_from_its_caller() {
    let (fixture, _api) = start_tenants().await;
    set_signing_key(&fixture);
    fixture.publish(|objects| {
        two_tenants(objects);
        let key = Arc::make_mut(objects.keys.get_mut("ci").expect("there"));
        key.spec.tenant = None;
        key.spec.roles.push(RoleReference { kind: RoleKind::McpRole, name: "viewer".to_owned() });
        let server = Arc::make_mut(objects.server.as_mut().expect("there"));
        server.spec.authentication.tokens.enabled = true;
    });
    let asked = json!({"scope": "k8s:pods:list mcp:*"});
    let made = exchange(&fixture, &fixture.key, asked).await.json();
    let token = made["access_token"].as_str().expect("a token").to_owned();
    let answer = ask(&fixture, &token, "access_whoami", json!({})).await;
    let told = &answer["result"]["structuredContent"];
    assert_eq!(told["scopes"], json!(["k8s:pods:list", "mcp:*"]), "{answer}");
    let permissions = told["permissions"].as_array().expect("permissions");
    assert_eq!(
        permissions[0],
        json!({"permission": "k8s:pods:list", "allNamespaces": true, "namespaces": []})
    );
    assert!(
        permissions[1..].iter().all(|one| one["permission"].as_str().is_some_and(|p| p.starts_with("mcp:")))
    );
    assert!(told["outOfScope"].as_array().expect("kept").contains(&json!("k8s:pods:delete")));
    assert!(told["expiresAt"].is_string() && told.get("tenant").is_none());
    assert!(!answer.to_string().contains(&token) && !answer.to_string().contains(&fixture.key));
    let beyond = ask(&fixture, &token, "pods_get", json!({"namespace": "red-1", "name": "web"})).await;
    assert!(beyond.get("result").is_none(), "{beyond}");
    fixture.stop().await;
}

#[tokio::test]
async fn access_whoami_needs_its_permission_like_every_tool() {
    let (fixture, _api) = start_tenants().await;
    fixture.publish(|objects| {
        two_tenants(objects);
        let role = Arc::make_mut(objects.cluster_roles.get_mut("all").expect("there"));
        role.spec.permissions = vec!["k8s:*".to_owned()];
    });
    let refused = ask(&fixture, &fixture.key, "access_whoami", json!({})).await;
    assert!(refused.get("error").is_some(), "{refused}");
    assert_eq!(fixture.last_event().reason.as_deref(), Some("unknown_tool"));
    let whoami = fixture.get("/auth/whoami", &[("x-api-key", &fixture.key)]).await;
    assert_eq!(whoami.status, StatusCode::OK);
    fixture.stop().await;
}
