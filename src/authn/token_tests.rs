//! The endpoint's own tokens: what they carry, what ends them, and what is refused.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::super::fixtures::{AUDIENCE, NOW, at, claims, encode, world};
use super::*;
use jsonwebtoken::{Algorithm, EncodingKey};

const HOUR: SignedDuration = SignedDuration::from_hours(1);

fn key(kid: u8, state: SigningKeyState) -> SigningKey {
    SigningKey { state, ..SigningKey::generate([kid; 8], at(NOW)).expect("a key") }
}

fn tokens(keys: &[SigningKey]) -> Result<OwnTokens, InvalidSigningKeys> {
    let keys = SigningKeys { keys: keys.to_vec() };
    OwnTokens::from_json(serde_json::to_string(&keys).expect("JSON").as_bytes())
}

fn caller() -> Identity {
    Identity {
        key: Some("ci".into()),
        tenant: Some("acme".into()),
        groups: vec!["sre".into()],
        ..Identity::new(Method::ApiKey, "ci-bot", "0123456789abcdef")
    }
}

fn mint(own: &OwnTokens, identity: &Identity, lifetime: i64) -> Result<String, MintToken> {
    own.mint(identity, AUDIENCE, None, SignedDuration::from_secs(lifetime), at(NOW), [7; 16])
}

fn judge(own: &OwnTokens, token: &str, second: i64) -> Result<Identity, Reason> {
    own.verify(&Unverified::parse(token)?, AUDIENCE, at(second))
}

/// One key that signs, its tokens, and a way to sign anything with it.
struct Endpoint {
    own: OwnTokens,
    kid: String,
    signing: EncodingKey,
}

impl Endpoint {
    fn new() -> Self {
        let key = key(1, SigningKeyState::Active);
        let document = BASE64_STANDARD.decode(&key.private_key).expect("base64");
        let signing = EncodingKey::from_ed_der(&document);
        Self { own: tokens(std::slice::from_ref(&key)).expect("tokens"), kid: key.kid, signing }
    }

    fn sign(&self, header: &Value, claims: &str) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.signing, Algorithm::EdDSA);
        format!("{message}.{}", signature.expect("a signature"))
    }

    fn header(&self) -> Value {
        json!({"alg": "EdDSA", "kid": self.kid, "typ": "at+jwt"})
    }
}

/// Claims as the endpoint writes them.
fn own_claims() -> Value {
    json!({
        "iss": AUDIENCE, "aud": AUDIENCE, "sub": "ci-bot", "exp": NOW + 900, "nbf": NOW, "iat": NOW, "jti": "0a",
        "scope": "k8s:pods:list", "pcl": {"method": "api_key", "credential_id": "k1", "key": "ci"},
    })
}

#[test]
fn a_token_carries_the_caller_for_whom_it_was_made() {
    let endpoint = Endpoint::new();
    for method in
        [Method::ApiKey, Method::Basic, Method::ServiceAccount, Method::ClientCertificate, Method::Jwt]
    {
        let caller = Identity { method, issuer: Some("basic".into()), ..caller() };
        let token = mint(&endpoint.own, &caller, 900).expect("a token");
        let expected = Identity {
            method: Method::Token,
            credential_id: "07".repeat(16),
            origin: Some(Origin { method, credential_id: "0123456789abcdef".into() }),
            issued_at: Some(at(NOW)),
            expires_at: Some(at(NOW + 930)),
            ..caller.clone()
        };
        assert_eq!(judge(&endpoint.own, &token, NOW), Ok(expected));
    }
    let bare = Identity::new(Method::ApiKey, "ci-bot", "k1");
    let identity =
        judge(&endpoint.own, &mint(&endpoint.own, &bare, 900).expect("a token"), NOW).expect("accepted");
    assert_eq!(identity.key_id(), Some("k1"));
    assert_eq!((identity.issuer, identity.tenant, identity.key, identity.scopes), (None, None, None, None));
}

#[test]
fn a_token_lasts_an_hour_at_most_and_not_longer_than_its_credential() {
    let endpoint = Endpoint::new();
    let end = |identity: &Identity, lifetime| {
        let token = mint(&endpoint.own, identity, lifetime)?;
        Ok(judge(&endpoint.own, &token, NOW).expect("accepted").expires_at.map(|end| end.as_second() - NOW))
    };
    assert_eq!(end(&caller(), 900), Ok(Some(930)));
    assert_eq!(end(&caller(), 100_000), Ok(Some(3_630)));
    let ending = |seconds| Identity { expires_at: Some(at(NOW + seconds)), ..caller() };
    assert_eq!(end(&ending(600), 900), Ok(Some(600)));
    assert_eq!(end(&ending(31), 900), Ok(Some(31)));
    assert_eq!(end(&ending(30), 900), Err(MintToken::Ended));
    assert_eq!(end(&ending(-5), 900), Err(MintToken::Ended));
    assert_eq!(end(&caller(), 0), Err(MintToken::Ended));
    let token = mint(&endpoint.own, &caller(), 60).expect("a token");
    assert!(judge(&endpoint.own, &token, NOW + 89).is_ok());
    assert_eq!(judge(&endpoint.own, &token, NOW + 90), Err(Reason::Expired));
    assert_eq!(judge(&endpoint.own, &token, NOW - 31), Err(Reason::NotYetValid));
}

#[test]
fn scopes_narrow_and_never_widen() {
    let endpoint = Endpoint::new();
    let scopes = |held: Option<&[&str]>, asked: Option<&[&str]>| {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let caller = Identity { scopes: held.map(owned), ..caller() };
        let token = endpoint.own.mint(&caller, AUDIENCE, asked.map(owned), HOUR, at(NOW), [7; 16])?;
        Ok(judge(&endpoint.own, &token, NOW).expect("accepted").scopes.map(|scopes| scopes.join(" ")))
    };
    assert_eq!(scopes(None, None), Ok(None));
    assert_eq!(scopes(None, Some(&["k8s:pods:list", "mcp:x"])), Ok(Some("k8s:pods:list mcp:x".into())));
    assert_eq!(scopes(None, Some(&[])), Ok(Some(String::new())));
    assert_eq!(scopes(Some(&["k8s:pods:list"]), None), Ok(Some("k8s:pods:list".into())));
    assert_eq!(scopes(Some(&[]), None), Ok(Some(String::new())));
    assert_eq!(scopes(Some(&["k8s:pods:list"]), Some(&["k8s:pods:delete"])), Err(MintToken::Scope));
    for word in ["admin", "", "k8s:pods:list k8s:*", "k8s:\n"] {
        assert_eq!(scopes(None, Some(&[word])), Err(MintToken::Scope), "{word:?}");
    }
}

#[test]
fn a_token_begets_no_token_and_nobody_gets_none() {
    let endpoint = Endpoint::new();
    let made =
        judge(&endpoint.own, &mint(&endpoint.own, &caller(), 900).expect("a token"), NOW).expect("accepted");
    for identity in [made, Identity::anonymous(), Identity::new(Method::Operator, "operator", "x")] {
        assert_eq!(mint(&endpoint.own, &identity, 900), Err(MintToken::Method));
    }
    let unusable = Identity { groups: vec!["g".repeat(500); 40], ..caller() };
    assert_eq!(mint(&endpoint.own, &unusable, 900), Err(MintToken::Unusable));
    assert_eq!(
        mint(&endpoint.own, &Identity { subject: "a\nb".into(), ..caller() }, 900),
        Err(MintToken::Unusable)
    );
}

#[test]
fn keys_verify_before_they_sign_and_until_their_last_token_has_ended() {
    let (one, two) = (key(1, SigningKeyState::Active), key(2, SigningKeyState::Pending));
    let before = tokens(std::slice::from_ref(&one)).expect("tokens");
    let spread = tokens(&[one.clone(), two.clone()]).expect("tokens");
    let retiring =
        SigningKey { state: SigningKeyState::Retiring, not_after: Some(at(NOW + 4_000)), ..one.clone() };
    let active = SigningKey { state: SigningKeyState::Active, ..two };
    let after = tokens(&[retiring, active.clone()]).expect("tokens");
    assert_eq!((spread.signing_key(), after.signing_key()), (Some(&*one.kid), Some(&*active.kid)));
    assert_eq!(spread.verification_keys(), [one.kid.clone(), active.kid.clone()]);
    let old = mint(&before, &caller(), 3_600).expect("a token");
    let new = mint(&after, &caller(), 3_600).expect("a token");
    assert!(judge(&spread, &new, NOW).is_ok(), "a replica that lags behind knows the new key");
    assert!(judge(&after, &old, NOW + 3_629).is_ok(), "and one that is ahead the old one");
    assert_eq!(judge(&before, &new, NOW), Err(Reason::UnknownSigningKey));
    let ended = SigningKey { state: SigningKeyState::Retiring, not_after: Some(at(NOW + 10)), ..one };
    let ended = tokens(&[ended, active]).expect("tokens");
    assert!(judge(&ended, &old, NOW + 9).is_ok());
    assert_eq!(judge(&ended, &old, NOW + 10), Err(Reason::UnknownSigningKey));
    assert!(matches!(mint(&tokens(&[]).expect("tokens"), &caller(), 900), Err(MintToken::NoKey)));
}

#[test]
fn the_public_keys_are_a_key_set_that_any_client_can_use() {
    let own = tokens(&[key(1, SigningKeyState::Active), key(2, SigningKeyState::Pending)]).expect("tokens");
    let text = own.jwks().to_string();
    assert!(!text.contains("\"d\""));
    let set = KeySet::from_json(text.as_bytes(), &[JwtAlgorithm::EdDSA]).expect("a key set");
    assert!(set.len() == 2 && set.knows("0101010101010101") && set.knows("0202020202020202"));
    let token = mint(&own, &caller(), 900).expect("a token");
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&text).expect("a key set");
    let jwk = jwks.find("0101010101010101").expect("the key");
    let decoding = jsonwebtoken::DecodingKey::from_jwk(jwk).expect("a key");
    let mut validation = jsonwebtoken::Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[AUDIENCE]);
    validation.validate_exp = false;
    assert!(jsonwebtoken::decode::<Value>(&token, &decoding, &validation).is_ok());
}

#[test]
fn damaged_signing_keys_are_refused_without_being_quoted() {
    let one = key(1, SigningKeyState::Active);
    let two = key(2, SigningKeyState::Active);
    assert!(matches!(tokens(&[one.clone(), two.clone()]), Err(InvalidSigningKeys::TwoActive)));
    let same = SigningKey { kid: one.kid.clone(), state: SigningKeyState::Pending, ..two.clone() };
    assert!(matches!(
        tokens(&[one.clone(), same]),
        Err(InvalidSigningKeys::Public(InvalidKeySet::SameId(1)))
    ));
    let mixed = SigningKey { public_key: two.public_key.clone(), ..one.clone() };
    assert!(matches!(tokens(&[mixed]), Err(InvalidSigningKeys::Damaged(0))));
    let cut = SigningKey { private_key: one.private_key[..20].to_owned(), ..one.clone() };
    assert!(matches!(tokens(&[cut]), Err(InvalidSigningKeys::Damaged(0))));
    let unnamed = SigningKey { kid: String::new(), ..one.clone() };
    assert!(matches!(tokens(&[unnamed]), Err(InvalidSigningKeys::Public(_))));
    for text in ["", "{}", "[]", r#"{"keys":[{"kid":"canary-secret"}]}"#, r#"{"keys":"canary-secret"}"#] {
        let error = OwnTokens::from_json(text.as_bytes()).expect_err("refused");
        assert!(!format!("{error:?} {error}").contains("canary"), "{error:?}");
    }
    let own = tokens(std::slice::from_ref(&one)).expect("tokens");
    assert!(!format!("{own:?}").contains(&one.private_key));
}

#[test]
fn no_forged_or_broken_token_of_the_endpoint_is_accepted() {
    let endpoint = Endpoint::new();
    let (header, valid) = (endpoint.header(), own_claims());
    assert!(judge(&endpoint.own, &endpoint.sign(&header, &valid.to_string()), NOW).is_ok());
    let mut found: Vec<(String, Reason)> = Vec::new();
    for name in ["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "pcl"] {
        let mut claims = valid.clone();
        claims.as_object_mut().expect("an object").remove(name);
        found.push((endpoint.sign(&header, &claims.to_string()), Reason::Claim));
        for value in [json!(null), json!([]), json!({}), json!(true), json!(""), json!([1]), json!(["a"])] {
            claims[name] = value;
            found.push((endpoint.sign(&header, &claims.to_string()), Reason::Claim));
        }
    }
    let changed = |pointer: &str, value: Value| {
        let mut claims = valid.clone();
        *claims.pointer_mut(pointer).expect("a claim") = value;
        endpoint.sign(&header, &claims.to_string())
    };
    for (pointer, value, reason) in [
        ("/iss", json!("https://other.agents.svc/mcp"), Reason::UnknownIssuer),
        ("/aud", json!("https://other.agents.svc/mcp"), Reason::Audience),
        ("/aud", json!([AUDIENCE]), Reason::Claim),
        ("/exp", json!(NOW + 3_601), Reason::Lifetime),
        ("/exp", json!(NOW - 30), Reason::Claim),
        ("/iat", json!(NOW - 3_600), Reason::Lifetime),
        ("/iat", json!(NOW + 31), Reason::NotYetValid),
        ("/nbf", json!(NOW + 31), Reason::NotYetValid),
        ("/scope", json!(null), Reason::Claim),
        ("/scope", json!(5), Reason::Claim),
        ("/pcl/method", json!("token"), Reason::Claim),
        ("/pcl/method", json!("operator"), Reason::Claim),
        ("/pcl/method", json!("anonymous"), Reason::Claim),
        ("/pcl/method", json!("other"), Reason::Claim),
        ("/pcl/method", json!(null), Reason::Claim),
        ("/pcl/credential_id", json!(null), Reason::Claim),
        ("/pcl/credential_id", json!(""), Reason::Claim),
        ("/pcl/key", json!(null), Reason::Claim),
        ("/pcl/key", json!(5), Reason::Claim),
        ("/pcl", json!({"method": "api_key"}), Reason::Claim),
        ("/pcl", json!({"credential_id": "k1"}), Reason::Claim),
        ("/pcl", json!({"method": "api_key", "credential_id": "k1", "roles": ["admin"]}), Reason::Claim),
        ("/pcl", json!({"method": "api_key", "credential_id": "k1", "groups": null}), Reason::Claim),
        ("/pcl", json!({"method": "api_key", "credential_id": "k1", "tenant": 7}), Reason::Claim),
        ("/pcl", json!({"method": "api_key", "credential_id": "k1", "issuer": []}), Reason::Claim),
    ] {
        found.push((changed(pointer, value), reason));
    }
    for (member, value, reason) in [
        ("typ", json!("JWT"), Reason::TokenType),
        ("typ", json!("application/at+jwt"), Reason::TokenType),
        ("alg", json!("none"), Reason::Algorithm),
        ("alg", json!("HS256"), Reason::Algorithm),
        ("alg", json!("RS256"), Reason::Algorithm),
        ("kid", json!("other"), Reason::UnknownSigningKey),
        ("crit", json!(["exp"]), Reason::CriticalHeader),
        ("jwk", json!({}), Reason::MalformedToken),
    ] {
        let mut header = header.clone();
        header[member] = value;
        found.push((endpoint.sign(&header, &valid.to_string()), reason));
    }
    let bare = |member: &str| {
        let mut header = header.clone();
        header.as_object_mut().expect("an object").remove(member);
        endpoint.sign(&header, &valid.to_string())
    };
    found.push((bare("typ"), Reason::TokenType));
    found.push((bare("kid"), Reason::UnknownSigningKey));
    found.push((bare("alg"), Reason::MalformedToken));
    let forger = Endpoint::new();
    found.push((forger.sign(&header, &valid.to_string()), Reason::Signature));
    // A token of an issuer that the server trusts is not the endpoint's own.
    let mut issued = world().key(Algorithm::EdDSA).header();
    found.push((
        world().key(Algorithm::EdDSA).sign(&issued.to_string(), &claims().to_string()),
        Reason::TokenType,
    ));
    issued["typ"] = "at+jwt".into();
    let issued = world().key(Algorithm::EdDSA).sign(&issued.to_string(), &valid.to_string());
    found.push((issued, Reason::UnknownSigningKey));
    let distinct: BTreeSet<&String> = found.iter().map(|(token, _)| token).collect();
    assert!(distinct.len() >= 90, "only {} different tokens", distinct.len());
    for (token, reason) in &found {
        let judged = judge(&endpoint.own, token, NOW).map(|identity| identity.subject);
        let claims = token.split('.').nth(1).map(|part| BASE64_URL_SAFE_NO_PAD.decode(part));
        assert_eq!(judged, Err(*reason), "{:?}", claims.map(|part| part.map(String::from_utf8)));
    }
}

#[test]
fn a_token_is_good_for_this_endpoint_and_no_other() {
    let endpoint = Endpoint::new();
    let token = mint(&endpoint.own, &caller(), 900).expect("a token");
    let parsed = Unverified::parse(&token).expect("well formed");
    assert_eq!(parsed.issuer(), AUDIENCE);
    let other = endpoint.own.verify(&parsed, "https://other-mcp.agents.svc/mcp", at(NOW));
    assert_eq!(other, Err(Reason::UnknownIssuer));
    assert_eq!(judge(&Endpoint::new().own, &token, NOW), Err(Reason::Signature), "other keys of the same id");
    let issued = world().judge(Algorithm::EdDSA, &token).map(|identity| identity.subject);
    assert_eq!(issued, Err(Reason::UnknownSigningKey));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whoever_can_be_named_gets_a_token_that_names_them(subject in "\\PC{1,60}", groups in proptest::collection::vec("\\PC{1,20}", 0..6), lifetime in 1..4_000_i64, start in 0..4_000_000_000_000_i64) {
        let endpoint = Endpoint::new();
        let caller = Identity { subject, groups, ..caller() };
        let now = Timestamp::from_millisecond(start).expect("in range");
        let asked = SignedDuration::from_secs(lifetime);
        let token = endpoint.own.mint(&caller, AUDIENCE, None, asked, now, [7; 16]).expect("a token");
        let parsed = Unverified::parse(&token).expect("well formed");
        let identity = endpoint.own.verify(&parsed, AUDIENCE, now).expect("accepted");
        prop_assert_eq!((&identity.subject, &identity.groups), (&caller.subject, &caller.groups));
        let mut changed = token.clone();
        let place = usize::try_from(start).expect("in range") % token.len();
        changed.replace_range(place..=place, if &token[place..=place] == "A" { "B" } else { "A" });
        let judged = Unverified::parse(&changed).and_then(|token| endpoint.own.verify(&token, AUDIENCE, now));
        prop_assert!(judged.is_err());
    }
}
