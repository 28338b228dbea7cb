//! Which texts are imported, and what follows from what they are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("in range")
}

fn key(more: &str) -> McpApiKey {
    serde_saphyr::from_str(&format!(
        "{{apiVersion: portcullis.dev/v1alpha1, kind: McpApiKey, metadata: {{name: ci, namespace: agents, uid: u}}, spec: {{identity: ci, servers: [ops], import: {{secretRef: {{name: old-key}}}}{more}}}}}"
    ))
    .expect("a key")
}

fn secret_of(type_: &str, entry: &str, text: &str) -> Secret {
    let mut secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "old-key"}, "type": type_})).expect("a Secret");
    let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
    secret.data = Some([(entry.to_owned(), bytes)].into());
    secret
}

fn read(secret: Option<&Secret>) -> Result<String, (&'static str, String)> {
    let reference = key("").spec.import.expect("an import").secret_ref;
    match source(&reference, secret) {
        Ok(plain) => Ok(plain.expose_secret().to_owned()),
        Err(problem) => Err((problem.reason, problem.message)),
    }
}

fn opaque(text: &str) -> Result<String, (&'static str, String)> {
    read(Some(&secret_of("Opaque", "api-key", text)))
}

#[test]
fn a_strong_key_is_read_without_the_line_end_of_its_file() {
    let strong = "Zx9!kQ-4mB7(vT2;";
    assert_eq!(opaque(strong), Ok(strong.to_owned()));
    assert_eq!(opaque(&format!("{strong}\n")), Ok(strong.to_owned()));
    assert_eq!(opaque(&format!("{strong}\r\n")), Ok(strong.to_owned()));
}

#[test]
fn a_weak_key_is_refused_with_the_field_and_what_to_do_and_never_shown() {
    for weak in
        ["short-1A", "aaaaaaaaaaaaaaaa", "Password12345678", "has a Blank 1234567", "pcl_damaged-Key-0123"]
    {
        let (reason, message) = opaque(weak).expect_err("it is weak");
        assert_eq!(reason, "WeakKey");
        assert!(message.starts_with("spec.import.secretRef: the key "), "{message}");
        assert!(message.contains("put a random one of 32 characters"), "{message}");
        assert!(!message.contains(weak), "{message}");
    }
}

#[test]
fn a_key_of_our_own_format_is_taken_as_it_is() {
    let own = ApiKey::generate([1; 10], [2; 32]);
    assert_eq!(opaque(own.expose()), Ok(own.expose().to_owned()));
    let rules = Rules::of(&key("").spec);
    let digest = api_key::format_digest(&own.digest());
    let new = Resolved::New { id: own.id().to_owned(), digest: digest.clone() };
    assert_eq!(resolve_own(&key(""), &own, &rules), new);
    let with = |state: &str| {
        let mut key = key("");
        let keys =
            json!([{"id": own.id(), "digest": digest, "createdAt": "2026-01-01T00:00:00Z", "state": state}]);
        key.status = Some(serde_json::from_value(json!({"keys": keys})).expect("a status"));
        resolve_own(&key, &own, &rules)
    };
    assert_eq!(with("Active"), Resolved::Known(own.id().to_owned()));
    assert_eq!(with("Revoked"), Resolved::Over(own.id().to_owned()));
    assert_eq!(with("Retiring"), new, "it is taken up again");
}

#[test]
fn what_is_missing_is_named() {
    let (reason, message) = read(None).expect_err("it is missing");
    assert_eq!(reason, "ReferenceNotFound");
    assert!(message.contains("Secret \"old-key\" does not exist"), "{message}");
    let (reason, message) = read(Some(&secret_of("Opaque", "key", "x"))).expect_err("it is missing");
    assert_eq!(reason, "ReferenceNotFound");
    assert!(message.contains("has no entry \"api-key\""), "{message}");
}

#[test]
fn tokens_certificates_and_secrets_of_servers_are_not_imported() {
    for type_ in [
        "kubernetes.io/service-account-token",
        "kubernetes.io/tls",
        names::IMPORTED_SECRET_TYPE,
        names::API_KEY_SECRET_TYPE,
    ] {
        let (reason, message) =
            read(Some(&secret_of(type_, "api-key", "Zx9!kQ-4mB7(vT2;"))).expect_err("it is refused");
        assert_eq!(reason, "Invalid");
        assert!(message.contains(type_), "{message}");
    }
}

fn generation(id: &str, state: KeyState) -> KeyGeneration {
    KeyGeneration {
        id: id.into(),
        digest: format!("argon2id:{id}"),
        created_at: Time(at(0)),
        not_after: None,
        state,
    }
}

fn status(keys: &[KeyGeneration]) -> McpApiKeyStatus {
    McpApiKeyStatus { keys: keys.to_vec(), ..McpApiKeyStatus::default() }
}

fn states(step: Step) -> Vec<(String, KeyState)> {
    let Step::Write(change) = step else { panic!("{step:?}") };
    change.keys.into_iter().map(|generation| (generation.id, generation.state)).collect()
}

#[test]
fn a_new_text_waits_for_the_replicas_and_then_the_old_one_retires() {
    let rules = Rules::of(&key("").spec);
    let status = status(&[generation("a", KeyState::Active)]);
    let new = Resolved::New { id: "b".into(), digest: "argon2id:b".into() };
    let Step::Write(change) = next_step(&status, new, &rules, at(5)) else { panic!("it is begun") };
    let mut begun = status.clone();
    change.apply(&mut begun);
    assert_eq!(begun.keys[1].state, KeyState::Pending);
    assert_eq!(next_step(&begun, Resolved::Known("b".into()), &rules, at(6)), Step::Ask("b".into()));
    taken_over(&begun, "b", &rules, at(7)).apply(&mut begun);
    let found: Vec<_> = begun.keys.iter().map(|generation| generation.state).collect();
    assert_eq!(found, [KeyState::Retiring, KeyState::Active]);
    assert_eq!(begun.keys[0].not_after, Some(Time(at(7 + 24 * 3600))), "the overlap of a day");
    assert_eq!(begun.last_rotated_at, Some(Time(at(7))));
    assert_eq!(next_step(&begun, Resolved::Known("b".into()), &rules, at(8)), Step::Rest);
}

#[test]
fn a_text_that_was_replaced_before_anybody_accepted_it_is_given_up() {
    let rules = Rules::of(&key("").spec);
    let keys = [generation("a", KeyState::Active), generation("b", KeyState::Pending)];
    let new = Resolved::New { id: "c".into(), digest: "argon2id:c".into() };
    let found = states(next_step(&status(&keys), new, &rules, at(5)));
    let expected = [("a", KeyState::Active), ("b", KeyState::Revoked), ("c", KeyState::Pending)];
    assert_eq!(found, expected.map(|(id, state)| (id.to_owned(), state)));
    let back = states(next_step(&status(&keys), Resolved::Known("a".into()), &rules, at(5)));
    assert_eq!(back[1], ("b".to_owned(), KeyState::Revoked));
}

#[test]
fn a_revoked_text_and_one_that_is_too_old_are_not_imported_again() {
    let rules = Rules::of(&key(", rotation: {maxAgeHours: 200}").spec);
    let keys = [generation("a", KeyState::Revoked), generation("b", KeyState::Expired)];
    assert!(is_over(&keys[0], &rules, at(0)));
    assert!(is_over(&keys[1], &rules, at(200 * 3600)), "by its age");
    assert!(!is_over(&keys[1], &rules, at(100 * 3600)), "by spec.expiresAt, which may be extended");
    let Step::Problem(problem) = next_step(&status(&keys), Resolved::Over("a".into()), &rules, at(0)) else {
        panic!("it is a problem");
    };
    assert_eq!(problem.reason, "Revoked");
    assert!(problem.message.contains("put another one into the Secret"));
}

#[test]
fn a_wish_to_revoke_and_the_end_of_a_key_need_no_secret() {
    let rules = Rules::of(&key(", expiresAt: '1970-01-01T00:01:00Z'").spec);
    let known = status(&[generation("a", KeyState::Active)]);
    let mut key = key("");
    assert_eq!(ended(&key, &known, &rules, at(59)), None);
    let change = ended(&key, &known, &rules, at(60)).expect("it has ended");
    assert_eq!(change.keys[0].state, KeyState::Expired);
    key.annotations_mut().insert(names::REVOKE_ANNOTATION.to_owned(), "now".to_owned());
    let change = ended(&key, &known, &rules, at(0)).expect("it is revoked");
    assert_eq!((change.keys[0].state, change.handled_revoke.as_deref()), (KeyState::Revoked, Some("now")));
}
