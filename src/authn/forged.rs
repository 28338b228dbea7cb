//! Forged and broken tokens, by the hundred: none is accepted, and each is refused for its own reason.

use std::collections::BTreeSet;

use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::Reason;
use super::fixtures::{
    ALGORITHMS, AUDIENCE, ISSUER, NOW, TestKey, World, at, claims, claims_with, encode, world,
};
use super::jwt::{IssuerRules, Unverified, verify};
use crate::api::JwtAlgorithm;

/// One token, and why it is refused.
struct Forgery {
    what: String,
    token: String,
    reason: Reason,
}

fn forgery(what: impl Into<String>, token: String, reason: Reason) -> Forgery {
    Forgery { what: what.into(), token, reason }
}

/// Headers that lie or ask for more than a server gives, each under a signature that fits.
fn headers(key: &TestKey, world: &World) -> Vec<Forgery> {
    let mut found = Vec::new();
    let mut add = |member: &str, value: Value, reason| {
        let mut header = key.header();
        header[member] = value.clone();
        let token = key.sign(&header.to_string(), &claims().to_string());
        found.push(forgery(format!("header with {member} = {value}"), token, reason));
    };
    for name in ["none", "None", "NONE", "nOnE"] {
        add("alg", name.into(), Reason::Algorithm);
    }
    for name in
        ["HS384", "HS512", "ES512", "ES256K", "RS1", "dir", "A128KW", "RSA-OAEP", "hs256", "rs256", " RS256"]
    {
        add("alg", name.into(), Reason::Algorithm);
    }
    for other in ALGORITHMS.iter().filter(|other| **other != key.algorithm) {
        add("alg", format!("{other:?}").into(), Reason::Algorithm);
    }
    for value in [json!(null), json!(5), json!(["RS256"]), json!(""), json!({}), json!(true)] {
        add("alg", value.clone(), Reason::MalformedToken);
        add("kid", value.clone(), Reason::MalformedToken);
        add("typ", value, Reason::MalformedToken);
    }
    for value in [json!([]), json!(["exp"]), json!(["b64"]), json!(null), json!("exp")] {
        add("crit", value, Reason::CriticalHeader);
    }
    let forger = world.forgers.iter().find(|other| other.algorithm == key.algorithm).expect("one of each");
    add("jwk", forger.jwk.clone(), Reason::MalformedToken);
    add("jwk", json!(null), Reason::MalformedToken);
    for address in ["https://evil.example.com/keys", "file:///etc/keys", "http://169.254.169.254/"] {
        add("jku", address.into(), Reason::MalformedToken);
        add("x5u", address.into(), Reason::MalformedToken);
    }
    add("x5c", json!(["MIIB"]), Reason::MalformedToken);
    for name in ["refresh+jwt", "dpop+jwt", "logout+jwt", "secevent+jwt", "JOSE", "at+jwt2", "ID"] {
        add("typ", name.into(), Reason::TokenType);
    }
    let text = claims().to_string();
    let alg = format!("{:?}", key.algorithm);
    for header in [
        format!(r#"{{"alg":"{alg}","alg":"{alg}","kid":"{}"}}"#, key.kid),
        format!(r#"{{"alg":"none","kid":"{}","\u0061lg":"{alg}"}}"#, key.kid),
        format!(r#"{{"kid":"{0}","kid":"{0}","alg":"{alg}"}}"#, key.kid),
        format!(r#"["{alg}"]"#),
        format!(r#""{alg}""#),
        format!(r#"{{"alg":"{alg}"}} {{}}"#),
        format!(r#"{{"alg":"{alg}""#),
        format!(r#"{{alg:"{alg}"}}"#),
        "{}".to_owned(),
        "null".to_owned(),
        String::new(),
        "[".repeat(4_000),
    ] {
        let token = key.sign(&header, &text);
        found.push(forgery(format!("header {header}"), token, Reason::MalformedToken));
    }
    found
}

/// Keys that are unknown, other than the one named, or public ones taken for shared ones.
fn key_confusion(key: &TestKey, world: &World) -> Vec<Forgery> {
    let mut found = Vec::new();
    let text = claims().to_string();
    let shared = key.algorithm == Algorithm::HS256;
    for kid in ["other", "../../../../dev/null", "' OR 1=1 --", "key-RS256\\u0000", "KEY-ES256"] {
        let header = key.header().to_string().replace(&key.kid, kid);
        let token = key.sign(&header, &text);
        let control = kid.contains("u0000");
        // A shared key has no id, so that none is wrong; only a control character is.
        if control || !shared {
            let reason = if control { Reason::MalformedToken } else { Reason::UnknownSigningKey };
            found.push(forgery(format!("kid {kid}"), token, reason));
        }
    }
    for other in world.keys.iter().filter(|other| !shared && other.kid != key.kid) {
        let token = key.sign(&key.header().to_string().replace(&key.kid, &other.kid), &text);
        let reason = match other.algorithm {
            Algorithm::HS256 => Reason::UnknownSigningKey,
            _ => Reason::Algorithm,
        };
        found.push(forgery(format!("kid of the {:?} key", other.algorithm), token, reason));
    }
    let public = |member: &str| key.jwk[member].as_str().unwrap_or_default().to_owned();
    let mut public_texts = vec![key.jwk.to_string(), format!("-----BEGIN PUBLIC KEY-----\n{}\n", key.jwk)];
    public_texts.extend(["n", "x"].map(public));
    for public in public_texts.into_iter().filter(|text| !shared && !text.is_empty()) {
        let decoded = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, &public);
        for bytes in [Some(public.into_bytes()), decoded.ok()].into_iter().flatten() {
            let forger = TestKey {
                kid: key.kid.clone(),
                algorithm: Algorithm::HS256,
                signing: EncodingKey::from_secret(&bytes),
                jwk: Value::Null,
            };
            found.push(forgery("the public key as a shared one", forger.token(&claims()), Reason::Algorithm));
        }
    }
    found
}

/// Signatures that do not fit, and texts that are not in the form of a token.
fn shapes(key: &TestKey, world: &World) -> Vec<Forgery> {
    let forger = world.forgers.iter().find(|other| other.algorithm == key.algorithm).expect("one of each");
    let token = key.token(&claims());
    let (message, signature) = token.rsplit_once('.').expect("three parts");
    let (header, payload) = message.split_once('.').expect("two parts");
    let other = key.token(&claims_with("sub", Some("root".into())));
    let (other_message, other_signature) = other.rsplit_once('.').expect("three parts");
    let other_payload = other_message.split_once('.').expect("two parts").1;
    let bytes =
        base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, signature).expect("a signature");
    let mut flipped = bytes.clone();
    flipped[0] ^= 1;
    let signed = |bytes: &[u8]| format!("{message}.{}", encode(bytes));
    let mut found = vec![
        forgery("the forger's signature", forger.token(&claims()), Reason::Signature),
        forgery("other claims", format!("{header}.{other_payload}.{signature}"), Reason::Signature),
        forgery("the signature of another token", format!("{message}.{other_signature}"), Reason::Signature),
        forgery("one bit of the signature", signed(&flipped), Reason::Signature),
        forgery("a signature of zeros", signed(&vec![0; bytes.len()]), Reason::Signature),
        forgery("a signature of ones", signed(&vec![255; bytes.len()]), Reason::Signature),
        forgery("a signature cut short", signed(&bytes[..bytes.len() - 1]), Reason::Signature),
        forgery("a signature with a byte more", signed(&[&bytes[..], &[0]].concat()), Reason::Signature),
        forgery("a signature twice", signed(&[&bytes[..], &bytes].concat()), Reason::Signature),
        forgery("a signature of one byte", signed(&[1]), Reason::Signature),
        forgery(
            "a signature in DER",
            signed(&[&[0x30, 6, 2, 1, 0, 2, 1, 0][..]].concat()),
            Reason::Signature,
        ),
        forgery(
            "a very large token",
            key.token(&claims_with("x", Some("a".repeat(16_384).into()))),
            Reason::TooLarge,
        ),
    ];
    let unsigned = encode(key.header().to_string().replace(&format!("{:?}", key.algorithm), "none"));
    found.push(forgery("alg none without a signature", format!("{unsigned}.{payload}."), Reason::Algorithm));
    for text in [
        message.to_owned(),
        format!("{message}."),
        format!("{header}..{signature}"),
        format!(".{payload}.{signature}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{signature}"),
        format!("{token}.{signature}.{signature}"),
        format!("{token}="),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}==.{signature}"),
        format!("{token}$"),
        format!("{token}+"),
        format!("{token}/"),
        format!("{token} "),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{token}\0"),
        format!("{token}\u{e9}"),
        format!("Bearer {token}"),
        format!("{header}.{payload}\n.{signature}"),
        format!("{header} .{payload}.{signature}"),
        format!("{header}.%2e{payload}.{signature}"),
        format!("{token},{token}"),
        header.to_owned() + payload + signature,
        message.replace('.', "") + "." + signature,
        json!({"payload": payload, "protected": header, "signature": signature}).to_string(),
        format!("{}.{}.{}", ".".repeat(20), payload, signature),
    ] {
        found.push(forgery(format!("form {:.200}", text), text, Reason::MalformedToken));
    }
    found
}

/// Claims that are missing, mistyped, out of range or somebody else's, each under a signature that fits.
fn wrong_claims(key: &TestKey) -> Vec<Forgery> {
    let mut found = Vec::new();
    let mut add = |name: &str, value: Option<Value>, reason| {
        let what = format!("{name} = {value:?}");
        found.push(forgery(what, key.token(&claims_with(name, value)), reason));
    };
    for name in ["iss", "aud", "exp", "sub"] {
        add(name, None, Reason::Claim);
    }
    for name in ["iss", "aud", "sub", "jti", "groups", "scope"] {
        for value in [json!(null), json!(5), json!(true), json!({}), json!("a\nb")] {
            add(name, Some(value), Reason::Claim);
        }
    }
    for name in ["iss", "sub", "jti"] {
        for value in [json!(""), json!([]), json!(["ann"]), json!("a".repeat(513)), json!("a\u{7f}")] {
            add(name, Some(value), Reason::Claim);
        }
    }
    for name in ["aud", "groups", "scope"] {
        for value in [json!([AUDIENCE, 5]), json!([null]), json!([[AUDIENCE]]), json!([""])] {
            add(name, Some(value), Reason::Claim);
        }
    }
    for name in ["exp", "nbf", "iat"] {
        let text = (NOW + 300).to_string();
        let wrong =
            [json!(null), json!(text), json!(true), json!([NOW]), json!({}), json!(""), json!("never")];
        for value in wrong.into_iter().chain([json!(-1), json!(1e300), json!(u64::MAX), json!(-0.5)]) {
            add(name, Some(value), Reason::Claim);
        }
    }
    for other in
        ["https://evil.example.com", "https://login.example.com/", "https://LOGIN.example.com", "kubernetes"]
    {
        add("iss", Some(other.into()), Reason::UnknownIssuer);
    }
    let own = AUDIENCE.trim_end_matches("/mcp");
    let audiences = [own.to_owned(), format!("{AUDIENCE}/"), format!("{AUDIENCE}x"), format!("{own}/MCP")];
    for other in
        audiences.into_iter().chain(["*".into(), format!(" {AUDIENCE}"), AUDIENCE.replace("https", "http")])
    {
        add("aud", Some(json!([other])), Reason::Audience);
        add("aud", Some(other.into()), Reason::Audience);
    }
    add("aud", Some(json!([])), Reason::Audience);
    found
}

/// Tokens of another time, or for too long, or whose claims are no claims, each under a signature that fits.
fn wrong_times(key: &TestKey) -> Vec<Forgery> {
    let mut found = Vec::new();
    // Whoever compares the end without looking at the start would let these in.
    for end in [json!(NOW - 30), json!(NOW - 31), json!(NOW - 86_400), json!(1), json!(0), json!(-0.0)] {
        let mut claims = claims_with("exp", Some(end.clone()));
        claims.as_object_mut().expect("an object").retain(|name, _| name != "nbf" && name != "iat");
        found.push(forgery(format!("expired at {end}"), key.token(&claims), Reason::Expired));
    }
    let mut add = |name: &str, value: Value, reason| {
        found.push(forgery(format!("{name} = {value}"), key.token(&claims_with(name, Some(value))), reason));
    };
    add("exp", json!(NOW), Reason::Claim);
    add("iat", json!(NOW + 300), Reason::Claim);
    add("nbf", json!(NOW + 301), Reason::Claim);
    for start in [json!(NOW + 31), json!(NOW + 299), json!(NOW as f64 + 30.5)] {
        add("nbf", start.clone(), Reason::NotYetValid);
        add("iat", start, Reason::NotYetValid);
    }
    for end in [json!(NOW + 86_401), json!(NOW + 31_536_000), json!(253_402_207_200_i64)] {
        found.push(forgery("too long", key.token(&claims_with("exp", Some(end.clone()))), Reason::Lifetime));
        let mut claims = claims_with("exp", Some(end));
        claims.as_object_mut().expect("an object").remove("iat");
        found.push(forgery("too long, without iat", key.token(&claims), Reason::Lifetime));
    }
    found.push(forgery(
        "made long ago",
        key.token(&claims_with("iat", Some(json!(NOW - 86_400)))),
        Reason::Lifetime,
    ));
    let header = key.header().to_string();
    let text = claims().to_string();
    for (member, twice) in [("exp", json!(NOW + 300)), ("aud", AUDIENCE.into()), ("iss", ISSUER.into())] {
        let claims = text.replacen('{', &format!("{{\"{member}\":{twice},"), 1);
        found.push(forgery(format!("{member} twice"), key.sign(&header, &claims), Reason::MalformedToken));
    }
    for claims in
        ["", "null", "5", "\"text\"", "[]", "{", "{}{}", "{\"exp\":1e999}", "{\"exp\":NaN}", "{'a':1}"]
    {
        found.push(forgery(format!("claims {claims}"), key.sign(&header, claims), Reason::MalformedToken));
    }
    found.push(forgery("no claims", key.sign(&header, "{}"), Reason::Claim));
    found
}

fn corpus(key: &TestKey, world: &World) -> Vec<Forgery> {
    [headers(key, world), key_confusion(key, world), shapes(key, world), wrong_claims(key), wrong_times(key)]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn no_forged_or_broken_token_of_an_issuer_is_accepted_and_each_is_refused_for_its_reason() {
    let world = world();
    let mut distinct = BTreeSet::new();
    for key in &world.keys {
        let valid = world.judge(key.algorithm, &key.token(&claims()));
        assert!(valid.is_ok(), "the token that is forged is good: {valid:?}");
        for Forgery { what, token, reason } in corpus(key, world) {
            let judged = world.judge(key.algorithm, &token).map(|identity| identity.subject);
            assert_eq!(judged, Err(reason), "{:?}: {what}", key.algorithm);
            distinct.insert(token);
        }
    }
    assert!(distinct.len() >= 1_500, "only {} different tokens", distinct.len());
}

#[test]
fn a_public_key_is_never_taken_for_a_shared_one_even_where_hs256_is_listed() {
    let world = world();
    let careless = IssuerRules {
        algorithms: [world.public_rules.algorithms.clone(), vec![JwtAlgorithm::HS256]].concat(),
        ..world.public_rules.clone()
    };
    let mut tried = 0;
    for key in world.keys.iter().filter(|key| key.algorithm != Algorithm::HS256) {
        for Forgery { what, token, reason } in key_confusion(key, world) {
            let token = Unverified::parse(&token);
            let judged = token.and_then(|token| verify(&token, &careless, &world.public, at(NOW)));
            assert_eq!(judged.map(|identity| identity.subject), Err(reason), "{what}");
            tried += 1;
        }
    }
    assert!(tried > 40, "only {tried}");
}

#[test]
fn a_change_of_any_one_character_is_noticed() {
    let world = world();
    for key in &world.keys {
        let token = key.token(&claims());
        for at in 0..token.len() {
            for with in [if &token[at..=at] == "A" { "B" } else { "A" }, [".", "=", "+"][at % 3]] {
                let mut changed = token.clone();
                changed.replace_range(at..=at, with);
                let judged = world.judge(key.algorithm, &changed);
                assert!(changed == token || judged.is_err(), "{:?} at {at}: {with}", key.algorithm);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn reading_never_panics(text in "\\PC{0,200}", parts in "[A-Za-z0-9_.-]{0,200}") {
        let _ = Unverified::parse(&text);
        let _ = Unverified::parse(&parts);
    }

    #[test]
    fn any_three_parts_in_base64url_prove_nothing(header: Vec<u8>, claims: Vec<u8>, signature: Vec<u8>, which in 0..6_usize) {
        let world = world();
        let key = &world.keys[which];
        let random = format!("{}.{}.{}", encode(header), encode(&claims), encode(&signature));
        prop_assert!(world.judge(key.algorithm, &random).is_err());
        let with_header = format!("{}.{}.{}", encode(key.header().to_string()), encode(claims), encode(signature));
        prop_assert!(world.judge(key.algorithm, &with_header).is_err());
    }

    #[test]
    fn any_claims_are_judged_without_panic(name in "(exp|nbf|iat|aud|iss|sub|jti|groups|scope)", number: f64, text: String, which in 0..6_usize) {
        let world = world();
        let key = &world.keys[which];
        for value in [json!(number), json!(text), json!([text]), json!({"a": number})] {
            let token = key.token(&claims_with(&name, Some(value)));
            if let Ok(identity) = world.judge(key.algorithm, &token) {
                prop_assert!(!identity.subject.is_empty() && !identity.subject.contains(char::is_control));
            }
        }
    }

    #[test]
    fn a_token_with_parts_moved_cut_or_replaced_is_refused(start in 0..900_usize, length in 0..40_usize, with in "[A-Za-z0-9_.=+/-]{0,40}", which in 0..6_usize) {
        let world = world();
        let key = &world.keys[which];
        let token = key.token(&claims());
        let start = start % token.len();
        let end = (start + length).min(token.len());
        let mut changed = token.clone();
        changed.replace_range(start..end, &with);
        prop_assert!(changed == token || world.judge(key.algorithm, &changed).is_err());
    }
}
