//! What it costs to prove a caller: `cargo bench --features bench --bench authn`.
//!
//! The goals: an API key below 2 µs and no dearer among 100,000 than among 10, a token of the endpoint's own below
//! 100 µs. Every round proves that the credential is accepted, so that no refusal is measured by mistake.

use std::cell::Cell;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use divan::Bencher;
use jiff::Timestamp;
use portcullis::bench::{ApiKeys, Endpoint, Issuer};
use serde_json::{Value, json};

const ISSUER: &str = "https://login.example.com";
const AUDIENCE: &str = "https://ops-mcp.agents.svc/mcp";

fn main() {
    divan::main();
}

#[divan::bench(args = [10, 1_000, 100_000])]
fn an_api_key_among(bencher: Bencher, count: usize) {
    let (keys, turn, now) = (ApiKeys::new(count), Cell::new(0), Timestamp::now());
    bencher.bench_local(|| {
        turn.set(turn.get() + 1);
        assert!(keys.prove(turn.get(), now));
    });
}

#[divan::bench]
fn a_token_of_our_own(bencher: Bencher) {
    let now = Timestamp::now();
    let endpoint = Endpoint::new(now).expect("a signing key");
    let token = endpoint.mint(now).expect("a token");
    bencher.bench_local(|| assert!(endpoint.prove(&token, now)));
}

#[divan::bench]
fn making_a_token_of_our_own(bencher: Bencher) {
    let now = Timestamp::now();
    let endpoint = Endpoint::new(now).expect("a signing key");
    bencher.bench_local(|| endpoint.mint(now).expect("a token"));
}

#[divan::bench]
fn a_token_with_es256(bencher: Bencher) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a pair");
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "k", "x": encode(x), "y": encode(y)});
    let sign = |message: &[u8]| encode(pair.sign(&SystemRandom::new(), message).expect("a signature"));
    prove(bencher, "ES256", &jwk, sign);
}

#[divan::bench]
fn a_token_with_rs256(bencher: Bencher) {
    let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).expect("a pair");
    let document: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("a document");
    let pair = RsaKeyPair::from_pkcs8(document.as_ref()).expect("a pair");
    let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
    let number = |bytes: &[u8]| encode(bytes);
    let jwk = json!({
        "kty": "RSA", "kid": "k", "n": number(n.big_endian_without_leading_zero()),
        "e": number(e.big_endian_without_leading_zero()),
    });
    let sign = |message: &[u8]| {
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).expect("a signature");
        encode(signature)
    };
    prove(bencher, "RS256", &jwk, sign);
}

fn prove(bencher: Bencher, algorithm: &str, jwk: &Value, sign: impl Fn(&[u8]) -> String) {
    let now = Timestamp::now();
    let issuer =
        Issuer::new(ISSUER, AUDIENCE, json!({"keys": [jwk]}).to_string().as_bytes()).expect("a key set");
    let second = now.as_second();
    let header = json!({"alg": algorithm, "kid": "k", "typ": "at+jwt"});
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": second + 900, "nbf": second, "iat": second,
        "jti": "token-1", "groups": ["sre", "dev"], "scope": "openid k8s:pods:list",
    });
    let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let token = format!("{message}.{}", sign(message.as_bytes()));
    bencher.bench_local(|| assert!(issuer.prove(&token, now)));
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
