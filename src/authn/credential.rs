//! Which credential a request presents, decided for every request there can be, by its form alone.
//!
//! `X-API-Key: v`, `Authorization: Bearer v`, `Authorization: ApiKey v` and `Authorization: Basic v` are known. What
//! begins with `pcl_` is a key of ours, three parts of base64url under `Bearer` are a token, other text is a key from
//! elsewhere. Two credentials are none, and no credential is [`Reason::Missing`], whatever else a request says. The
//! headers leave here without credentials, so nothing behind can log or pass one on. Query parameters never count.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use http::{HeaderMap, header};
use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::api_key::ParseKey;
use super::{ApiKey, Reason, key_rules};

/// The header of S0 for keys.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Headers that carry credentials elsewhere. They are taken away and never read.
const ELSEWHERE: [HeaderName; 5] = [
    PROXY_AUTHORIZATION,
    COOKIE,
    header::SET_COOKIE,
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("kubernetes-authorization"),
];

/// Bytes of the largest value that is looked at.
const MAX_VALUE: usize = 16 * 1024;
/// Fewer characters than any real token has.
const MIN_TOKEN: usize = 32;
/// Bytes of the longest user name and of the longest password.
const MAX_USER: usize = 256;
const MAX_PASSWORD: usize = 1024;

/// What a caller presents. Nothing of it is proved; its `Debug` shows no secret.
#[derive(Clone, Debug)]
pub(crate) enum Credential {
    /// A key of ours, intact.
    ApiKey(ApiKey),
    /// A key that was made elsewhere and may have been imported.
    ImportedKey(SecretString),
    /// Three parts of base64url: a token, ours or an issuer's.
    Jwt(SecretString),
    /// User name and password.
    Basic {
        /// The name, not empty.
        user: String,
        /// The password, not empty.
        password: SecretString,
    },
}

/// Takes the credential out of the headers, and every other header that carries one.
///
/// # Errors
/// [`Reason`] when there is none, more than one, or one of no known form.
pub(crate) fn take(headers: &mut HeaderMap) -> Result<Credential, Reason> {
    let found = find(headers);
    for name in ELSEWHERE.iter().chain([&AUTHORIZATION, &API_KEY]) {
        headers.remove(name);
    }
    found
}

fn find(headers: &HeaderMap) -> Result<Credential, Reason> {
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    let mut keys = headers.get_all(&API_KEY).iter();
    match (authorizations.next(), keys.next(), authorizations.next().or(keys.next())) {
        (None, None, _) => Err(Reason::Missing),
        (Some(value), None, None) => authorization(text(value)?),
        (None, Some(value), None) => key(text(value)?),
        _ => Err(Reason::Ambiguous),
    }
}

/// A value that is visible ASCII and not too large, without blanks around it.
fn text(value: &HeaderValue) -> Result<&str, Reason> {
    if value.len() > MAX_VALUE {
        return Err(Reason::TooLarge);
    }
    value.to_str().map(|text| text.trim_matches([' ', '\t'])).map_err(|_| Reason::UnknownForm)
}

fn authorization(value: &str) -> Result<Credential, Reason> {
    let (scheme, rest) = value.split_once(' ').ok_or(Reason::UnknownForm)?;
    let rest = rest.trim_start_matches(' ');
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    match rest {
        _ if is("bearer") => bearer(rest),
        _ if is("apikey") => key(rest),
        _ if is("basic") => basic(rest),
        _ => Err(Reason::UnknownForm),
    }
}

fn bearer(text: &str) -> Result<Credential, Reason> {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if text.split('.').count() == 3 && text.split('.').all(part) {
        return match text.len() {
            MIN_TOKEN.. => Ok(Credential::Jwt(text.into())),
            _ => Err(Reason::UnknownForm),
        };
    }
    // The beginning of `{"` in base64: meant as a token, and none. Nobody has such a key.
    if text.starts_with("eyJ") && text.contains('.') {
        return Err(Reason::MalformedToken);
    }
    key(text)
}

fn key(text: &str) -> Result<Credential, Reason> {
    match ApiKey::parse(text) {
        Ok(key) => return Ok(Credential::ApiKey(key)),
        Err(ParseKey::Damaged) => return Err(Reason::UnknownForm),
        Err(ParseKey::Foreign) => {}
    }
    let length = (key_rules::MIN_LENGTH..=key_rules::MAX_LENGTH).contains(&text.len());
    match text.bytes().all(|byte| byte.is_ascii_graphic()) && length {
        true => Ok(Credential::ImportedKey(text.into())),
        false => Err(Reason::UnknownForm),
    }
}

fn basic(encoded: &str) -> Result<Credential, Reason> {
    let decoded = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| Reason::UnknownForm)?);
    let text = std::str::from_utf8(&decoded).map_err(|_| Reason::UnknownForm)?;
    let (user, password) = text.split_once(':').ok_or(Reason::UnknownForm)?;
    if user.is_empty() || password.is_empty() || text.chars().any(char::is_control) {
        return Err(Reason::UnknownForm);
    }
    if user.len() > MAX_USER || password.len() > MAX_PASSWORD {
        return Err(Reason::TooLarge);
    }
    Ok(Credential::Basic { user: user.to_owned(), password: password.into() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    const SAMPLE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
    const FOREIGN: &str = "Zx9!kQ-4mB7(vT2;";

    fn ours() -> String {
        ApiKey::generate([7; 10], [9; 32]).expose().to_owned()
    }

    /// What was found, in words, and that nothing is left.
    fn taken(headers: &[(&'static str, &str)]) -> Result<String, Reason> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().expect("a header value"));
        }
        let found = take(&mut map);
        assert!(map.is_empty(), "credentials stay in {map:?}");
        found.map(in_words)
    }

    fn in_words(credential: Credential) -> String {
        match credential {
            Credential::ApiKey(key) => format!("ours {}", key.expose()),
            Credential::ImportedKey(key) => format!("imported {}", key.expose_secret()),
            Credential::Jwt(token) => format!("token {}", token.expose_secret()),
            Credential::Basic { user, password } => format!("user {user} {}", password.expose_secret()),
        }
    }

    fn basic_of(text: &[u8]) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn each_spelling_presents_the_same_key() {
        for (key, word) in [(ours(), "ours"), (FOREIGN.to_owned(), "imported")] {
            let expected = Ok(format!("{word} {key}"));
            assert_eq!(taken(&[("x-api-key", &key)]), expected);
            for scheme in ["Bearer", "bearer ", "BEARER", "ApiKey", "apikey", "APIKEY  "] {
                assert_eq!(taken(&[("authorization", &format!("{scheme} {key}"))]), expected, "{scheme}");
            }
        }
    }

    #[test]
    fn a_token_is_one_under_bearer_only() {
        assert_eq!(taken(&[("authorization", &format!("Bearer {SAMPLE}"))]), Ok(format!("token {SAMPLE}")));
        assert_eq!(taken(&[("x-api-key", SAMPLE)]), Ok(format!("imported {SAMPLE}")));
        assert_eq!(taken(&[("authorization", "Bearer a.b.c")]), Err(Reason::UnknownForm));
        let short = format!("Bearer {}.b.c", "a".repeat(27));
        assert_eq!(taken(&[("authorization", &short)]), Err(Reason::UnknownForm));
        let enough = format!("{}.b.c", "a".repeat(28));
        assert_eq!(taken(&[("authorization", &format!("Bearer {enough}"))]), Ok(format!("token {enough}")));
    }

    #[test]
    fn the_published_invalid_tokens_are_refused_for_their_true_reason() {
        let bearer = |text: &str| taken(&[("authorization", &format!("Bearer {text}"))]);
        let two_parts = SAMPLE.rsplit_once('.').expect("it has parts").0;
        assert!(two_parts.len() > 32, "the document says it were shorter");
        assert_eq!(bearer(two_parts), Err(Reason::MalformedToken));
        assert_eq!(bearer(&format!("{}$", &SAMPLE[..SAMPLE.len() - 1])), Err(Reason::MalformedToken));
        assert_eq!(bearer(&SAMPLE.replace('_', "+")), Err(Reason::MalformedToken));
        assert_eq!(bearer(&format!("{two_parts}.")), Err(Reason::MalformedToken));
        // Without any structure it is not a token: it has the form of a key, which nobody has imported.
        let text = "abcdefgh12345678abcdefgh12345678";
        assert_eq!(bearer(text), Ok(format!("imported {text}")));
    }

    #[test]
    fn a_user_has_a_name_and_a_password() {
        let basic = |text: &[u8]| taken(&[("authorization", &basic_of(text))]);
        assert_eq!(basic(b"ann:s3:cret"), Ok("user ann s3:cret".to_owned()));
        assert_eq!(basic("jürgen:pässword".as_bytes()), Ok("user jürgen pässword".to_owned()));
        for text in [&b"ann"[..], b":secret", b"ann:", b":", b"", b"ann:a\nb", b"a\0n:secret", b"ann:\xff"] {
            assert_eq!(basic(text), Err(Reason::UnknownForm), "{text:?}");
        }
        assert_eq!(basic(&[b"ann:".as_slice(), &[b'x'; 1025]].concat()), Err(Reason::TooLarge));
        assert_eq!(basic(&[[b'x'; 257].as_slice(), b":secret"].concat()), Err(Reason::TooLarge));
        // Without padding, with that of the other alphabet, with bits left over, with blanks inside.
        for encoded in ["YTpi YQ==", "YTpiYQ", "YTpiY-==", "YTpiYR==", "YTpi\tYQ==", "%%%%"] {
            let value = format!("Basic {encoded}");
            assert_eq!(taken(&[("authorization", &value)]), Err(Reason::UnknownForm), "{encoded}");
        }
        assert_eq!(taken(&[("authorization", "Basic YTpiYQ==")]), Ok("user a ba".to_owned()));
    }

    #[test]
    fn two_credentials_are_refused_even_when_they_are_the_same() {
        let ours = ours();
        let bearer = ("authorization", &*format!("Bearer {ours}"));
        let header = ("x-api-key", &*ours);
        for pair in [[header, bearer], [bearer, header], [header, header], [bearer, bearer]] {
            assert_eq!(taken(&pair), Err(Reason::Ambiguous));
        }
        assert_eq!(taken(&[header, ("authorization", "")]), Err(Reason::Ambiguous));
    }

    #[test]
    fn nothing_and_the_unknown_are_told_apart_inside() {
        assert_eq!(taken(&[]), Err(Reason::Missing));
        assert_eq!(taken(&[("cookie", "session=1"), ("x-auth-token", FOREIGN)]), Err(Reason::Missing));
        let ours = ours();
        for (name, value) in [
            ("authorization", &*ours),
            ("authorization", "Bearer"),
            ("authorization", "Bearer "),
            ("authorization", ""),
            ("authorization", "Digest username=ann"),
            ("authorization", "Negotiate YWJjZGVmZ2hpamtsbW5vcA=="),
            ("x-api-key", ""),
            ("x-api-key", "Bearer 0123456789abcdef"),
            ("x-api-key", "fifteen-letters"),
            ("x-api-key", &ours[..ours.len() - 1]),
            ("x-api-key", "pcl_this-is-not-one-of-ours"),
        ] {
            assert_eq!(taken(&[(name, value)]), Err(Reason::UnknownForm), "{name}: {value}");
        }
        assert_eq!(taken(&[("x-api-key", &"x".repeat(MAX_VALUE + 1))]), Err(Reason::TooLarge));
        assert_eq!(taken(&[("x-api-key", &"x".repeat(513))]), Err(Reason::UnknownForm));
    }

    #[test]
    fn bytes_that_are_not_ascii_are_no_credential() {
        for bytes in [&b"\xff0123456789abcdef"[..], "schlüssel-schlüssel".as_bytes()] {
            let value = HeaderValue::from_bytes(bytes).expect("opaque bytes are allowed");
            let mut headers = HeaderMap::from_iter([(API_KEY, value)]);
            assert_eq!(take(&mut headers).map(in_words), Err(Reason::UnknownForm));
            assert!(headers.is_empty());
        }
    }

    #[test]
    fn what_is_printed_for_programmers_holds_no_secret() {
        let show = |name: HeaderName, value: &str| {
            let mut headers = HeaderMap::from_iter([(name, value.parse().expect("a value"))]);
            format!("{:?}", take(&mut headers).expect("a credential"))
        };
        assert!(!show(API_KEY, FOREIGN).contains(FOREIGN));
        assert!(!show(API_KEY, &ours()).contains(&ours()[22..]));
        assert!(!show(AUTHORIZATION, &format!("Bearer {SAMPLE}")).contains("eyJ"));
        assert!(!show(AUTHORIZATION, &basic_of(b"ann:hunter22")).contains("hunter22"));
    }

    fn values() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "(?i)(bearer|apikey|basic|digest|)[ \t]{0,2}[ -~]{0,60}".prop_map(String::into_bytes),
            "(Bearer )?[A-Za-z0-9_-]{0,20}(\\.[A-Za-z0-9_+-]{0,20}){0,4}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| basic_of(&bytes).into_bytes()),
            prop::collection::vec(any::<u8>(), 0..60),
            Just(ours().into_bytes()),
            Just(format!("Bearer {SAMPLE}").into_bytes()),
        ]
    }

    fn names() -> impl Strategy<Value = HeaderName> {
        let plain = ["accept", "x-forwarded-for", "x-user-id", "mcp-session-id"].map(HeaderName::from_static);
        prop_oneof![
            3 => prop::sample::select(vec![AUTHORIZATION, API_KEY]),
            1 => prop::sample::select(ELSEWHERE.to_vec()),
            1 => prop::sample::select(plain.to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn any_headers_are_judged_and_leave_without_credentials(
            pairs in prop::collection::vec((names(), values()), 0..5),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    headers.append(name, value);
                }
            }
            let presented = headers.get_all(AUTHORIZATION).iter().count() + headers.get_all(API_KEY).iter().count();
            let others = headers.len()
                - presented
                - ELSEWHERE.iter().map(|name| headers.get_all(name).iter().count()).sum::<usize>();
            let found = take(&mut headers);
            for name in ELSEWHERE.iter().chain([&AUTHORIZATION, &API_KEY]) {
                prop_assert!(!headers.contains_key(name));
            }
            prop_assert_eq!(headers.len(), others, "other headers stay");
            match presented {
                0 => prop_assert_eq!(found.err(), Some(Reason::Missing), "absence is absence"),
                1 => prop_assert!(!matches!(found, Err(Reason::Missing | Reason::Ambiguous))),
                _ => prop_assert_eq!(found.err(), Some(Reason::Ambiguous), "two are none"),
            }
        }
    }
}
