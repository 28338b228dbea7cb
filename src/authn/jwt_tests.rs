//! What tokens of an issuer prove, and the published examples.

use serde_json::json;

use super::super::fixtures::{
    ALGORITHMS, AUDIENCE, ISSUER, NOW, RsaPair, TestKey, at, claims, claims_with, encode, key_set, spec,
    world,
};
use super::*;
use crate::api::SecretKeyReference;
use jsonwebtoken::{Algorithm, EncodingKey};

/// The widely published sample token of HS256 (row 11 of the requirements).
const SAMPLE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";

fn judge(token: &str, rules: &IssuerRules) -> Result<Identity, Reason> {
    verify(&Unverified::parse(token)?, rules, &world().public, at(NOW))
}

#[test]
fn a_token_of_every_algorithm_says_who_is_calling() {
    for key in &world().keys {
        let identity = world().judge(key.algorithm, &key.token(&claims())).expect("accepted");
        let expected = Identity {
            issuer: Some(ISSUER.into()),
            groups: vec!["sre".into(), "dev".into()],
            scopes: Some(vec!["k8s:pods:list".into()]),
            issued_at: Some(at(NOW)),
            expires_at: Some(at(NOW + 330)),
            ..Identity::new(Method::Jwt, "ann", "token-1")
        };
        assert_eq!(identity, expected, "{:?}", key.algorithm);
    }
}

#[test]
fn the_larger_hashes_of_rsa_work_with_a_key_that_does_not_say() {
    let rsa = RsaPair::generate();
    for algorithm in [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ] {
        let mut key = TestKey::generate(algorithm, "rsa", &rsa);
        key.jwk.as_object_mut().expect("an object").remove("alg");
        let token = key.token(&claims());
        let token = Unverified::parse(&token).expect("well formed");
        let rules = IssuerRules::from_spec(&spec(), AUDIENCE);
        let judged = verify(&token, &rules, &key_set([&key]), at(NOW));
        assert!(judged.is_ok(), "{algorithm:?}: {judged:?}");
        let narrow = IssuerRules { algorithms: vec![JwtAlgorithm::ES256], ..rules };
        assert_eq!(verify(&token, &narrow, &key_set([&key]), at(NOW)), Err(Reason::Algorithm));
    }
}

#[test]
fn the_published_sample_token_has_the_right_shape_and_proves_nothing() {
    let token = Unverified::parse(SAMPLE).expect("its shape passes");
    assert_eq!((token.issuer(), token.key_id(), SAMPLE.len() >= MIN_LENGTH), ("", None, true));
    let world = world();
    assert_eq!(judge(SAMPLE, &world.public_rules), Err(Reason::Algorithm));
    assert_eq!(world.judge(Algorithm::HS256, SAMPLE), Err(Reason::Signature));
    // The key that everybody knows makes this very token, and cannot be configured.
    let known = EncodingKey::from_secret(b"your-256-bit-secret");
    let message = token.message.as_bytes();
    let signature = jsonwebtoken::crypto::sign(message, &known, Algorithm::HS256).expect("a signature");
    assert_eq!(format!("{}.{signature}", token.message), SAMPLE);
    assert!(KeySet::from_hmac(b"your-256-bit-secret").is_err());
}

#[test]
fn the_published_broken_tokens_are_refused_for_their_true_reasons() {
    let two_parts = SAMPLE.rsplit_once('.').expect("three parts").0;
    assert!(two_parts.len() > 100, "not for being short, as the document says, but for its two parts");
    assert_eq!(Unverified::parse(two_parts).map(|_| ()), Err(Reason::MalformedToken));
    let no_dots = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpX";
    assert_eq!(no_dots.len(), 32);
    assert_eq!(Unverified::parse(no_dots).map(|_| ()), Err(Reason::MalformedToken));
    assert_eq!(Unverified::parse(&format!("{SAMPLE}$")).map(|_| ()), Err(Reason::MalformedToken));
    let short = "eyJhbGciOiJIUzI1NiJ9.e30.AAAA";
    assert_eq!(
        (short.len() < MIN_LENGTH, Unverified::parse(short).map(|_| ())),
        (true, Err(Reason::MalformedToken))
    );
}

#[test]
fn plus_and_slash_belong_to_another_alphabet() {
    let key = world().key(Algorithm::ES256);
    let token = (0..).map(|i| key.token(&claims_with("x", Some(i.into())))).find(|token| token.contains('-'));
    let token = token.expect("soon there is one");
    assert!(judge(&token, &world().public_rules).is_ok());
    assert_eq!(judge(&token.replace('-', "+"), &world().public_rules), Err(Reason::MalformedToken));
}

#[test]
fn any_of_several_audiences_will_do_and_the_case_of_a_host_does_not_matter() {
    let key = world().key(Algorithm::EdDSA);
    for audience in [json!(["account", AUDIENCE]), json!([AUDIENCE]), json!("HTTPS://OPS-MCP.agents.svc/mcp")]
    {
        let token = key.token(&claims_with("aud", Some(audience.clone())));
        assert!(judge(&token, &world().public_rules).is_ok(), "{audience}");
    }
    let rules = IssuerRules { audiences: vec!["a".into(), "api://b".into()], ..world().public_rules.clone() };
    for (audience, accepted) in
        [("a", true), ("api://b", true), ("API://B", true), ("A", false), (AUDIENCE, false)]
    {
        let token = key.token(&claims_with("aud", Some(audience.into())));
        assert_eq!(judge(&token, &rules).is_ok(), accepted, "{audience}");
    }
}

#[test]
fn clocks_may_differ_by_thirty_seconds_and_no_more() {
    let key = world().key(Algorithm::EdDSA);
    let token = key.token(&claims());
    let token = Unverified::parse(&token).expect("well formed");
    let at_second = |second| verify(&token, &world().public_rules, &world().public, at(second)).map(|_| ());
    assert_eq!(at_second(NOW - 31), Err(Reason::NotYetValid));
    assert_eq!(at_second(NOW - 30), Ok(()));
    assert_eq!(at_second(NOW + 329), Ok(()));
    assert_eq!(at_second(NOW + 330), Err(Reason::Expired));
    let day = key.token(&claims_with("exp", Some(json!(NOW + 86_400))));
    assert!(judge(&day, &world().public_rules).is_ok());
    let fractional = key.token(&claims_with("exp", Some(json!(NOW as f64 + 0.5))));
    assert!(judge(&fractional, &world().public_rules).is_ok());
}

#[test]
fn claims_are_mapped_as_the_spec_says() {
    let key = world().key(Algorithm::EdDSA);
    let names = ClaimsSpec {
        user: "email".into(),
        groups: "roles".into(),
        tenant: Some("org".into()),
        scopes: "scp".into(),
    };
    let rules = IssuerRules { claims: names, ..world().public_rules.clone() };
    let mut claims = claims();
    assert_eq!(judge(&key.token(&claims), &rules), Err(Reason::Claim), "the user is missing");
    claims["email"] = "ann@example.com".into();
    assert_eq!(judge(&key.token(&claims), &rules), Err(Reason::Claim), "the tenant is missing");
    claims["org"] = json!(7);
    assert_eq!(judge(&key.token(&claims), &rules), Err(Reason::Claim), "the tenant is a number");
    claims["org"] = "acme".into();
    claims["roles"] = "admin".into();
    claims["scp"] = json!(["mcp:read", "email", "k8s:*"]);
    let identity = judge(&key.token(&claims), &rules).expect("accepted");
    assert_eq!(identity.subject, "ann@example.com");
    assert_eq!(identity.tenant.as_deref(), Some("acme"));
    assert_eq!(identity.groups, ["admin"]);
    assert_eq!(identity.scopes, Some(vec!["mcp:read".into(), "k8s:*".into()]));
}

#[test]
fn a_token_without_scopes_may_do_nothing_where_scopes_are_required() {
    let key = world().key(Algorithm::EdDSA);
    let required = IssuerRules { scopes: ScopesMode::Required, ..world().public_rules.clone() };
    for scope in [None, Some(json!("")), Some(json!("openid email")), Some(json!([]))] {
        let token = key.token(&claims_with("scope", scope));
        let scopes = |rules| judge(&token, rules).expect("accepted").scopes;
        assert_eq!(scopes(&world().public_rules), None);
        assert_eq!(scopes(&required), Some(vec![]));
    }
}

#[test]
fn what_a_token_says_of_roles_and_permissions_makes_nobody_of_its_caller() {
    let key = world().key(Algorithm::EdDSA);
    let plain = judge(&key.token(&claims()), &world().public_rules).expect("accepted");
    for said in [json!("admin"), json!(["admin", "k8s:*", "*"]), json!({"k8s:*": true})] {
        let mut claims = claims();
        for claim in ["permissions", "permission", "roles", "role", "realm_access", "authorities"] {
            claims[claim] = said.clone();
        }
        assert_eq!(judge(&key.token(&claims), &world().public_rules), Ok(plain.clone()), "{said}");
    }
}

#[test]
fn a_token_without_an_id_has_one_that_its_holder_cannot_change() {
    let key = world().key(Algorithm::ES256);
    let claims = claims_with("jti", None);
    let (one, two) = (key.token(&claims), key.token(&claims));
    assert_ne!(one, two, "the signature is different each time");
    let id = |token: &str| judge(token, &world().public_rules).expect("accepted").credential_id;
    assert_eq!(id(&one), id(&two));
    assert_eq!(id(&one).len(), 16);
    assert_ne!(id(&one), id(&key.token(&claims_with("jti", Some("other".into())))));
}

#[test]
fn old_and_new_keys_both_prove_while_an_issuer_rotates() {
    let rsa = RsaPair::generate();
    for algorithm in ALGORITHMS.into_iter().filter(|algorithm| *algorithm != Algorithm::HS256) {
        let (old, new) =
            (TestKey::generate(algorithm, "old", &rsa), TestKey::generate(algorithm, "new", &rsa));
        let judge = |key: &TestKey, set: &KeySet| {
            let token = key.token(&claims());
            verify(&Unverified::parse(&token)?, &world().public_rules, set, at(NOW)).map(|_| ())
        };
        let (before, during, after) = (key_set([&old]), key_set([&old, &new]), key_set([&new]));
        assert_eq!((judge(&old, &before), judge(&new, &before)), (Ok(()), Err(Reason::UnknownSigningKey)));
        assert_eq!((judge(&old, &during), judge(&new, &during)), (Ok(()), Ok(())));
        assert_eq!((judge(&old, &after), judge(&new, &after)), (Err(Reason::UnknownSigningKey), Ok(())));
        assert!(during.knows("old") && during.knows("new") && !after.knows("old") && during.len() == 2);
    }
}

#[test]
fn a_token_without_a_key_id_is_proved_by_the_only_key_of_its_algorithm() {
    let key = world().key(Algorithm::ES256);
    let other = TestKey::generate(Algorithm::ES256, "second", &RsaPair::generate());
    let token = key.sign(r#"{"alg":"ES256"}"#, &claims().to_string());
    let token = Unverified::parse(&token).expect("well formed");
    let judge = |set: &KeySet| verify(&token, &world().public_rules, set, at(NOW)).map(|_| ());
    assert_eq!(judge(&world().public), Ok(()));
    assert_eq!(judge(&key_set([key, &other])), Err(Reason::UnknownSigningKey));
    assert_eq!(judge(&key_set([&other])), Err(Reason::Signature));
}

#[test]
fn hs256_counts_with_a_shared_key_and_nothing_else() {
    let reference = SecretKeyReference { name: "issuer".into(), key: "hmac".into() };
    let listed = vec![JwtAlgorithm::HS256, JwtAlgorithm::RS256];
    let public = JwtIssuerSpec { algorithms: listed, ..spec() };
    assert_eq!(IssuerRules::from_spec(&public, AUDIENCE).algorithms, [JwtAlgorithm::RS256]);
    let shared = JwtIssuerSpec { hmac_secret: Some(reference.clone()), ..public };
    assert_eq!(IssuerRules::from_spec(&shared, AUDIENCE).algorithms, [JwtAlgorithm::HS256]);
    let unlisted = JwtIssuerSpec { hmac_secret: Some(reference), ..spec() };
    assert_eq!(IssuerRules::from_spec(&unlisted, AUDIENCE).algorithms, [JwtAlgorithm::HS256]);
    let all = IssuerRules::from_spec(&spec(), AUDIENCE);
    assert_eq!((all.algorithms.len(), all.audiences), (9, vec![AUDIENCE.to_owned()]));
}

#[test]
fn an_issuer_never_speaks_for_another_method() {
    let key = world().key(Algorithm::EdDSA);
    for word in ["kubernetes", "basic", "certificate", "anonymous"] {
        let rules = IssuerRules { issuer: word.into(), ..world().public_rules.clone() };
        let token = key.token(&claims_with("iss", Some(word.into())));
        assert_eq!(judge(&token, &rules), Err(Reason::UnknownIssuer), "{word}");
    }
}

#[test]
fn what_is_shown_of_a_token_is_no_secret() {
    let token = world().key(Algorithm::EdDSA).token(&claims());
    let shown = format!("{:?}", Unverified::parse(&token).expect("well formed"));
    assert_eq!(shown, format!("Unverified({ISSUER:?}, Some(\"key-EdDSA\"))"));
    let parse = |token: &str| Unverified::parse(token).map(|token| token.issuer().to_owned());
    let mistyped = format!("{}.{}.AAAA", encode(r#"{"alg":"RS256"}"#), encode(r#"{"iss":["https://a"]}"#));
    assert_eq!(parse(&mistyped), Ok(String::new()), "nobody is asked about it");
}
