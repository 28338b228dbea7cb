//! A public key in PEM as a JSON Web Key Set (RFC 7517, RFC 7518), so that there is one way to judge keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::api::JwtAlgorithm;

/// Algorithm identifier of Ed25519 (RFC 8410).
const ED25519: &str = "1.3.101.112";
/// Curve P-256 (RFC 5480).
const P256: &str = "1.2.840.10045.3.1.7";
/// Curve P-384 (RFC 5480).
const P384: &str = "1.3.132.0.34";

/// The key set with this key alone, for this algorithm.
///
/// # Errors
/// A text for people; it never shows the key.
pub(super) fn key_set(pem: &str, algorithm: JwtAlgorithm) -> Result<Vec<u8>, String> {
    if pem.contains("PRIVATE KEY-----") {
        return Err("is a private key; only the issuer may have it, and here its public half is needed \
                    (openssl pkey -pubout)"
            .to_owned());
    }
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        "must be a public key in PEM that begins with -----BEGIN PUBLIC KEY----- (openssl pkey -pubin, \
         openssl x509 -pubkey)"
            .to_owned()
    })?;
    let damaged = || "is a damaged public key".to_owned();
    let (rest, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| damaged())?;
    if !rest.is_empty() {
        return Err(damaged());
    }
    let jwk = jwk(&info, algorithm).ok_or_else(|| format!("is not a public key for {algorithm:?}"))?;
    serde_json::to_vec(&json!({"keys": [jwk]})).map_err(|_| damaged())
}

fn jwk(info: &SubjectPublicKeyInfo<'_>, algorithm: JwtAlgorithm) -> Option<Value> {
    use JwtAlgorithm::{ES256, ES384, EdDSA, HS256, PS256, PS384, PS512, RS256, RS384, RS512};
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut jwk = match algorithm {
        RS256 | RS384 | RS512 | PS256 | PS384 | PS512 => {
            let PublicKey::RSA(key) = info.parsed().ok()? else { return None };
            let unsigned =
                |bytes: &[u8]| encode(&bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]);
            json!({"kty": "RSA", "n": unsigned(key.modulus), "e": unsigned(key.exponent)})
        }
        ES256 | ES384 => {
            let (curve, name, size) = match algorithm {
                ES256 => (P256, "P-256", 32),
                _ => (P384, "P-384", 48),
            };
            let named = info.algorithm.parameters.as_ref()?.as_oid().ok()?;
            let point: &[u8] = &info.subject_public_key.data;
            let (form, x_and_y) = point.split_first()?;
            if named.to_id_string() != curve || *form != 4 || x_and_y.len() != 2 * size {
                return None;
            }
            let (x, y) = x_and_y.split_at(size);
            json!({"kty": "EC", "crv": name, "x": encode(x), "y": encode(y)})
        }
        EdDSA => {
            let point: &[u8] = &info.subject_public_key.data;
            if info.algorithm.algorithm.to_id_string() != ED25519 || point.len() != 32 {
                return None;
            }
            json!({"kty": "OKP", "crv": "Ed25519", "x": encode(point)})
        }
        HS256 => return None,
    };
    jwk["alg"] = json!(algorithm);
    jwk["use"] = json!("sig");
    Some(jwk)
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};

    use super::*;

    fn public(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
        KeyPair::generate_for(algorithm).expect("a key").public_key_pem()
    }

    fn converted(pem: &str, algorithm: JwtAlgorithm) -> Result<Value, String> {
        key_set(pem, algorithm).map(|json| serde_json::from_slice(&json).expect("JSON"))
    }

    #[test]
    fn a_public_key_becomes_a_key_set_of_its_algorithm_alone() {
        for (made, algorithm, kind) in [
            (&PKCS_RSA_SHA256, JwtAlgorithm::RS256, "RSA"),
            (&PKCS_RSA_SHA256, JwtAlgorithm::PS512, "RSA"),
            (&PKCS_ECDSA_P256_SHA256, JwtAlgorithm::ES256, "EC"),
            (&PKCS_ECDSA_P384_SHA384, JwtAlgorithm::ES384, "EC"),
            (&PKCS_ED25519, JwtAlgorithm::EdDSA, "OKP"),
        ] {
            let set = converted(&public(made), algorithm).expect("converts");
            assert_eq!(set["keys"][0]["kty"], kind);
            assert_eq!(set["keys"][0]["alg"], json!(algorithm));
            let parsed: jsonwebtoken::jwk::JwkSet = serde_json::from_value(set).expect("a key set");
            jsonwebtoken::DecodingKey::from_jwk(&parsed.keys[0]).expect("a key");
        }
    }

    #[test]
    fn what_is_no_public_key_of_the_algorithm_is_refused() {
        let other = "is not a public key for ES256";
        for made in [&PKCS_RSA_SHA256, &PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            assert_eq!(converted(&public(made), JwtAlgorithm::ES256), Err(other.to_owned()));
        }
        let private = KeyPair::generate().expect("a key").serialize_pem();
        let error = converted(&private, JwtAlgorithm::ES256).expect_err("private");
        assert!(error.starts_with("is a private key; "), "{error}");
        let error = converted("a shared secret", JwtAlgorithm::RS256).expect_err("no PEM");
        assert!(error.starts_with("must be a public key in PEM"), "{error}");
    }
}
