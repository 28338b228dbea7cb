//! Which key sets are read, and which of their keys may be used.

use jsonwebtoken::Algorithm as Cipher;
use proptest::prelude::*;
use serde_json::json;

use super::super::fixtures::{asymmetric, encode, world};
use super::*;

fn read(keys: Value) -> Result<KeySet, InvalidKeySet> {
    KeySet::from_json(json!({ "keys": keys }).to_string().as_bytes(), &asymmetric())
}

fn flaw(keys: Value) -> InvalidKeySet {
    read(keys.clone()).err().unwrap_or_else(|| panic!("accepted: {keys}"))
}

/// The key of this algorithm with members changed; null removes one.
fn key_with(cipher: Cipher, changes: Value) -> Value {
    let mut jwk = world().key(cipher).jwk.clone();
    let members = jwk.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    jwk
}

#[test]
fn keys_of_other_purposes_types_and_algorithms_are_passed_over() {
    let good = world().key(Cipher::EdDSA).jwk.clone();
    for other in [
        key_with(Cipher::RS256, json!({"use": "enc"})),
        key_with(Cipher::RS256, json!({"key_ops": ["encrypt"]})),
        key_with(Cipher::RS256, json!({"alg": "RSA-OAEP-256"})),
        key_with(Cipher::RS256, json!({"alg": "HS256"})).clone(),
        json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "p521"}),
        json!({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "k1"}),
        json!({"kty": "OKP", "crv": "Ed448", "x": "AA", "kid": "ed448"}),
        json!({"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "x"}),
        json!({"kty": "AKP", "alg": "ML-DSA-65", "pub": "AA", "kid": "pq"}),
    ] {
        if other["alg"] == "HS256" {
            assert_eq!(flaw(json!([other])), InvalidKeySet::Damaged(0), "an RSA key is no shared key");
            continue;
        }
        assert_eq!(read(json!([other, good])).expect("a key set").len(), 1, "{other}");
        assert_eq!(flaw(json!([other])), InvalidKeySet::Empty);
    }
    let only_elliptic = [JwtAlgorithm::ES256];
    let all: Vec<&Value> = world().keys[..5].iter().map(|key| &key.jwk).collect();
    let set =
        KeySet::from_json(json!({ "keys": all }).to_string().as_bytes(), &only_elliptic).expect("a set");
    assert!(set.len() == 1 && set.knows("key-ES256") && !set.knows("key-RS256"));
}

#[test]
fn a_set_with_a_private_or_shared_key_is_refused_whole() {
    let good = world().key(Cipher::EdDSA).jwk.clone();
    for secret in [
        key_with(Cipher::EdDSA, json!({"d": "AAAA"})),
        key_with(Cipher::RS256, json!({"d": "AAAA", "use": "enc"})),
        json!({"kty": "oct", "k": "AAAA"}),
    ] {
        assert_eq!(flaw(json!([good, secret])), InvalidKeySet::Secret(1), "{secret}");
    }
}

#[test]
fn a_weak_or_damaged_key_is_refused() {
    let zeros = |length: usize| encode(vec![0; length]);
    let mut short = vec![0xff; 255];
    short[254] = 0x01;
    let weak = [
        json!({"n": encode(&short)}),
        json!({"n": zeros(256)}),
        json!({"n": ""}),
        json!({"e": "Aw"}),
        json!({"e": "AQ"}),
        json!({"e": ""}),
        json!({"n": encode(vec![0xff; 1025])}),
    ];
    for changes in weak {
        assert_eq!(
            flaw(json!([key_with(Cipher::RS256, changes.clone())])),
            InvalidKeySet::Weak(0),
            "{changes}"
        );
    }
    let damaged = [
        (Cipher::RS256, json!({"n": null})),
        (Cipher::RS256, json!({"n": 5})),
        (Cipher::RS256, json!({"n": "AQAB="})),
        (Cipher::RS256, json!({"e": "AQAC"})),
        (Cipher::RS256, json!({"e": encode(vec![0xff; 40])})),
        (Cipher::RS256, json!({"alg": "ES256"})),
        (Cipher::RS256, json!({"kid": ""})),
        (Cipher::RS256, json!({"kid": 5})),
        (Cipher::RS256, json!({"kty": null})),
        (Cipher::RS256, json!({"use": 5})),
        (Cipher::RS256, json!({"key_ops": "verify"})),
        (Cipher::ES256, json!({"x": zeros(32)})),
        (Cipher::ES256, json!({"x": zeros(31)})),
        (Cipher::ES256, json!({"y": zeros(33)})),
        (Cipher::ES256, json!({"y": null})),
        (Cipher::ES256, json!({"crv": null})),
        (Cipher::ES256, json!({"crv": "P-384"})),
        (Cipher::ES256, json!({"crv": "P-384", "alg": null})),
        (Cipher::ES384, json!({"x": zeros(48)})),
        (Cipher::EdDSA, json!({"x": zeros(31)})),
        (Cipher::EdDSA, json!({"x": ""})),
    ];
    for (cipher, changes) in damaged {
        let key = key_with(cipher, changes.clone());
        assert_eq!(flaw(json!([key])), InvalidKeySet::Damaged(0), "{cipher:?} {changes}");
    }
}

#[test]
fn two_keys_of_one_id_and_too_many_keys_are_refused() {
    let jwk = |cipher| world().key(cipher).jwk.clone();
    let same = key_with(Cipher::ES256, json!({"kid": "key-EdDSA"}));
    assert_eq!(flaw(json!([jwk(Cipher::EdDSA), same])), InvalidKeySet::SameId(1));
    let many = |count: usize| -> Value {
        (0..count).map(|i| key_with(Cipher::EdDSA, json!({"kid": format!("k{i}")}))).collect()
    };
    assert_eq!(read(many(64)).expect("a set").len(), 64);
    assert_eq!(flaw(many(65)), InvalidKeySet::TooMany);
    let anonymous = |cipher| key_with(cipher, json!({"kid": null}));
    assert!(read(json!([anonymous(Cipher::EdDSA), anonymous(Cipher::ES256)])).is_ok());
}

#[test]
fn what_is_no_key_set_is_refused() {
    let refused = |text: &str| KeySet::from_json(text.as_bytes(), &asymmetric()).expect_err("refused");
    for text in ["", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#, r#"{"keys":null}"#] {
        assert_eq!(refused(text), InvalidKeySet::Read, "{text}");
    }
    assert_eq!(refused(r#"{"keys":[]}"#), InvalidKeySet::Empty);
    assert_eq!(refused(r#"{"keys":[5]}"#), InvalidKeySet::Damaged(0));
    assert_eq!(refused(r#"{"keys":[{"kty":"RSA","kty":"EC"}]}"#), InvalidKeySet::Read);
    assert_eq!(refused(&" ".repeat(MAX_BYTES + 1)), InvalidKeySet::TooLarge);
}

#[test]
fn a_zero_before_the_modulus_does_not_count() {
    let text = world().key(Cipher::RS256).jwk["n"].as_str().expect("a text").to_owned();
    let modulus = BASE64_URL_SAFE_NO_PAD.decode(text).expect("base64url");
    let padded = key_with(Cipher::RS256, json!({"n": encode([&[0], &modulus[..]].concat())}));
    assert_eq!(read(json!([padded])).expect("a set").len(), 1);
}

#[test]
fn a_shared_key_has_thirty_two_random_bytes_that_nobody_has_published() {
    let refused = |shared: &[u8]| KeySet::from_hmac(shared).err();
    let random: Vec<u8> = (0..32_u8).map(|byte| byte.wrapping_mul(73)).collect();
    assert_eq!(refused(&random), None);
    assert_eq!(refused(&random[..31]), Some(InvalidKeySet::Short));
    assert_eq!(refused(b"your-256-bit-secret"), Some(InvalidKeySet::Short));
    assert_eq!(refused(&[b'a'; 64]), Some(InvalidKeySet::NotRandom));
    assert_eq!(refused(b"secretsecretsecretsecretsecretsecret"), Some(InvalidKeySet::NotRandom));
    for published in PUBLISHED {
        assert_eq!(refused(published.as_bytes()), Some(InvalidKeySet::NotRandom));
        assert_eq!(refused(format!("{published}\n").as_bytes()), Some(InvalidKeySet::NotRandom));
    }
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(PUBLISHED[1]).expect("base64url");
    assert_eq!(refused(&decoded), Some(InvalidKeySet::NotRandom));
}

#[test]
fn what_is_shown_of_a_key_set_is_its_ids() {
    let set = read(json!([world().key(Cipher::EdDSA).jwk])).expect("a set");
    assert_eq!(format!("{set:?}"), r#"[Some("key-EdDSA")]"#);
    assert_eq!(format!("{:?}", world().shared), "[None]");
}

proptest! {
    #[test]
    fn reading_a_key_set_never_panics(text in "\\PC{0,120}", n: Vec<u8>, e: Vec<u8>, x: Vec<u8>) {
        let _ = KeySet::from_json(text.as_bytes(), &asymmetric());
        let _ = read(json!([key_with(Cipher::RS256, json!({"n": encode(&n), "e": encode(&e)}))]));
        let _ = read(json!([key_with(Cipher::ES256, json!({"x": encode(&x), "y": encode(&n)}))]));
        let _ = read(json!([key_with(Cipher::EdDSA, json!({"x": encode(&x)})), text]));
    }
}
