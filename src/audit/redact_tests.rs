use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::super::event::tests::event;
use super::super::event::{Kind, Outcome};
use super::*;
use crate::authn::ApiKey;

fn params(params: Value) -> Value {
    let event = Event { params: Some(params), ..event("ci-bot", Kind::McpRequest, Outcome::Intent) };
    redact(event).params.expect("they are kept")
}

fn message(message: &str) -> String {
    let event = event("ci-bot", Kind::McpRequest, Outcome::Failure);
    redact(Event { error_message: Some(message.into()), ..event }).error_message.expect("it is kept")
}

#[test]
fn an_event_without_secrets_is_recorded_as_it_is() {
    let plain = Event {
        reason: Some("role agents/viewer: k8s:secrets:get, k8s:serviceaccounts/token:create".into()),
        error_message: Some("pods \"web\" not found: the basic authentication of the token service".into()),
        params: Some(
            json!({"namespace": "agents", "name": "web", "tail": 10, "selector": "app=web,tier!=db"}),
        ),
        metadata: BTreeMap::from([("client".into(), "claude 1.0".into())]),
        ..event("system:serviceaccount:agents:bot", Kind::McpRequest, Outcome::Success)
    };
    assert_eq!(redact(plain.clone()), plain);
}

#[test]
fn values_under_masked_names_are_masked_at_any_depth_and_in_any_spelling() {
    let given = json!({
        "password": "hunter2", "dbPassword": 1234, "X-API-Key": "k", "api_key": ["a", "b"],
        "nested": [{"Authorization": "Basic abc", "client_secret": {"a": "b"}, "Set-Cookie": "id=1"}],
        "automountServiceAccountToken": false, "secretName": "web-tls", "keys": 3
    });
    let expected = json!({
        "password": MASK, "dbPassword": MASK, "X-API-Key": MASK, "api_key": MASK,
        "nested": [{"Authorization": MASK, "client_secret": MASK, "Set-Cookie": MASK}],
        "automountServiceAccountToken": false, "secretName": "web-tls", "keys": 3
    });
    assert_eq!(params(given), expected);
}

#[test]
fn secrets_of_kubernetes_are_masked_as_objects_and_as_text() {
    let secret = json!({"kind": "Secret", "metadata": {"name": "db"}, "data": {"a": "aHVudGVyMg=="}});
    let masked = json!({"kind": "Secret", "metadata": {"name": "db"}, "data": MASK});
    assert_eq!(params(secret.clone()), masked);
    assert_eq!(params(json!({"manifest": secret.to_string()})), json!({"manifest": MASK}));
    let yaml = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: db\nstringData:\n  a: hunter2\n";
    assert_eq!(params(json!({"manifest": yaml})), json!({"manifest": MASK}));
    let environment =
        json!({"env": [{"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "A", "value": "b"}]});
    let expected = json!({"env": [{"name": "DB_PASSWORD", "value": MASK}, {"name": "A", "value": "b"}]});
    assert_eq!(params(environment), expected);
}

#[test]
fn secrets_on_a_command_line_are_masked() {
    assert_eq!(
        params(json!({"command": ["login", "--token", "hunter2", "--user", "a", "--password=hunter2"]})),
        json!({"command": ["login", "--token", MASK, "--user", "a", format!("--password={MASK}")]})
    );
    assert_eq!(message("run: mysql --password hunter2 -u a"), format!("run: mysql --password {MASK} -u a"));
}

#[test]
fn what_looks_like_a_secret_is_masked_wherever_it_stands() {
    let key = ApiKey::generate([7; 10], [9; 32]);
    assert_eq!(message(&format!("refused {}.", key.expose())), format!("refused {MASK}"));
    assert_eq!(message("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln here"), format!("got {MASK} here"));
    assert_eq!(message("AKIAIOSFODNN7EXAMPLE"), MASK);
    assert_eq!(message("sent Bearer abcdef123 to it"), format!("sent Bearer {MASK} to it"));
    assert_eq!(message("Basic dXNlcjpw"), format!("Basic {MASK}"));
    assert_eq!(message("https://a:hunter2@example.com/x"), format!("https://a:{MASK}@example.com/x"));
    let pem = "a -----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY----- b";
    assert_eq!(message(pem), format!("a {MASK} b"));
    assert_eq!(message("-----BEGIN PRIVATE KEY-----\nMHc"), MASK);
    let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----";
    assert_eq!(message(certificate), certificate);
}

#[test]
fn what_is_assigned_to_a_masked_name_in_a_text_is_masked() {
    assert_eq!(message("GET /x?token=hunter2&page=2"), format!("GET /x?token={MASK}&page=2"));
    assert_eq!(message("x-api-key: hunter 2\nnext"), format!("x-api-key: {MASK}\nnext"));
    assert_eq!(message(r#"{"password": "a\"b", "c": "d"}"#), format!(r#"{{"password": {MASK}, "c": "d"}}"#));
    assert_eq!(message("password: |\n  hunter2\n  more"), format!("password: {MASK}"));
    assert_eq!(message("password:\n  hunter2\nnext: a"), format!("password:\n  {MASK}\nnext: a"));
    for nested in
        [r#""{\"token\":\"hunter2\"}""#, "TOKEN = 'hunter2'", "token=\"hunter2", "secret: >\nhunter2"]
    {
        assert!(!message(nested).contains("hunter2"), "{nested} became {}", message(nested));
    }
}

#[test]
fn large_parameters_and_texts_keep_their_beginning_only() {
    let large = params(json!({"text": "\"\\\u{1}ä".repeat(4_000)}));
    assert!(large.to_string().len() <= MAX_PARAMS, "{}", large.to_string().len());
    assert!(large["beginning"].as_str().is_some_and(|text| text.starts_with("{\"text\":")));
    assert!(message(&"ä".repeat(5_000)).len() <= MAX_TEXT + '…'.len_utf8());
    let deep = (0..100).fold(json!("hunter2"), |inner, _| json!([inner]));
    assert!(!params(deep).to_string().contains("hunter2"));
}

/// Any JSON, with the secret somewhere in it: in a text, in a name, or nowhere.
fn json_with(secret: &'static str) -> impl Strategy<Value = Value> {
    let text = ("[ -~\n]{0,12}", any::<bool>(), "[ -~\n]{0,12}");
    let text = text
        .prop_map(move |(before, put, after)| format!("{before}{}{after}", if put { secret } else { "" }));
    let leaf = prop_oneof![
        text.clone().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(Value::Null)
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let fields = prop::collection::btree_map(text.clone(), inner.clone(), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            fields.prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn known_key() -> &'static str {
    static KEY: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| ApiKey::generate([7; 10], [9; 32]).expose().to_owned());
    &KEY
}

proptest! {
    #[test]
    fn a_known_key_anywhere_in_an_event_never_reaches_the_record(
        params in json_with(known_key()),
        before in "[ -~\n]{0,20}",
        after in "[ -~\n]{0,1200}",
    ) {
        let key = known_key();
        let text = format!("{before}{key}{after}");
        let mut given = event(&text, Kind::Authentication, Outcome::Denied);
        given.params = Some(params);
        for field in [
            &mut given.event_id, &mut given.request_id, &mut given.server, &mut given.auth_type, &mut given.action,
        ] {
            field.clone_from(&text);
        }
        for field in [
            &mut given.credential_id, &mut given.client_ip, &mut given.tool, &mut given.resource,
            &mut given.namespace, &mut given.reason, &mut given.error_message,
        ] {
            *field = Some(text.clone());
        }
        given.metadata.insert(text.clone(), text);
        let row = serde_json::to_string(&redact(given)).expect("an event has a JSON form");
        prop_assert!(!row.contains(&key[..28]), "{}", row);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(?s)((k8s:|token|password:|--pwd |=|://|@|\"|'|\\\\|eyJ|Bearer |-----BEGIN |kind: Secret|ä|.){0,20})") {
        message(&text);
        params(json!({ text.clone(): [text] }));
    }
}

#[test]
fn parameters_that_are_too_large_are_counted_and_not_looked_into() {
    let text = "password=hunter2 ".repeat(300_000);
    let params = parameters(json!({ "manifest": text }));
    assert_eq!(params, json!({ "omitted_bytes": text.len() + r#"{"manifest":""}"#.len() }));
}

#[test]
fn many_secrets_take_time_in_proportion() {
    let started = std::time::Instant::now();
    let addresses = passwords_in_addresses("://a:b@c ".repeat(400_000));
    assert!(addresses.starts_with("://a:***REDACTED***@c ://a:***REDACTED***@c "));
    assert_eq!(passwords_in_addresses("a://b://c:d@e".to_owned()), "a://b://c:***REDACTED***@e");
    let key = "-----BEGIN PRIVATE KEY-----x-----END PRIVATE KEY----- ";
    assert!(private_keys(key.repeat(100_000)).starts_with("***REDACTED*** ***REDACTED*** "));
    assert!(private_keys("-----BEGIN ".repeat(300_000)).starts_with("-----BEGIN "));
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
}
