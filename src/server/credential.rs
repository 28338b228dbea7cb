//! Which credential a request presents, decided for every request there can be.
//!
//! Three forms are known: `X-API-Key: <key>`, `Authorization: Bearer <key>` and `Authorization: ApiKey <key>`. Two
//! credentials are none. The headers leave here without credentials, so nothing behind can log or pass one on.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION};

use crate::authn::api_key::ParseKey;
use crate::authn::{ApiKey, Reason};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Takes the credential out of the headers.
///
/// # Errors
/// [`Reason`] when there is none, more than one, or one of no known form.
pub(crate) fn take(headers: &mut HeaderMap) -> Result<ApiKey, Reason> {
    let found = find(headers);
    for name in [&AUTHORIZATION, &API_KEY, &PROXY_AUTHORIZATION, &COOKIE] {
        while headers.remove(name).is_some() {}
    }
    found
}

fn find(headers: &HeaderMap) -> Result<ApiKey, Reason> {
    let mut presented = headers.get_all(AUTHORIZATION).iter().chain(headers.get_all(&API_KEY).iter());
    match (presented.next(), presented.next()) {
        (None, _) => return Err(Reason::Missing),
        (Some(_), Some(_)) => return Err(Reason::Ambiguous),
        (Some(_), None) => {}
    }
    let text = match headers.get(AUTHORIZATION) {
        Some(value) => after_scheme(value),
        None => headers.get(&API_KEY).and_then(|value| value.to_str().ok()),
    };
    let text = text.ok_or(Reason::UnknownForm)?;
    ApiKey::parse(text.trim()).map_err(|error| match error {
        ParseKey::Foreign | ParseKey::Damaged => Reason::UnknownForm,
    })
}

/// What follows `Bearer` or `ApiKey`.
fn after_scheme(value: &HeaderValue) -> Option<&str> {
    let (scheme, rest) = value.to_str().ok()?.trim().split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("apikey");
    known.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::generate([7; 10], [9; 32])
    }

    fn taken(headers: &[(&'static str, String)]) -> Result<ApiKey, Reason> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().expect("a header value"));
        }
        let found = take(&mut map);
        assert!(map.is_empty(), "credentials stay in {map:?}");
        found
    }

    #[test]
    fn each_form_presents_the_same_key() {
        let text = key().expose().to_owned();
        for (name, value) in [
            ("x-api-key", text.clone()),
            ("authorization", format!("Bearer {text}")),
            ("authorization", format!("bearer  {text}")),
            ("authorization", format!("ApiKey {text}")),
        ] {
            assert_eq!(taken(&[(name, value)]), Ok(key()));
        }
    }

    #[test]
    fn two_credentials_are_refused_even_when_they_are_the_same() {
        let text = key().expose().to_owned();
        let bearer = ("authorization", format!("Bearer {text}"));
        let header = ("x-api-key", text);
        assert_eq!(taken(&[header.clone(), bearer.clone()]), Err(Reason::Ambiguous));
        assert_eq!(taken(&[header.clone(), header]), Err(Reason::Ambiguous));
        assert_eq!(taken(&[bearer.clone(), bearer]), Err(Reason::Ambiguous));
    }

    #[test]
    fn nothing_and_the_unknown_are_told_apart_inside() {
        assert_eq!(taken(&[]), Err(Reason::Missing));
        let text = key().expose().to_owned();
        for (name, value) in [
            ("authorization", "Basic YTpi".to_owned()),
            ("authorization", text.clone()),
            ("authorization", "Bearer".to_owned()),
            ("x-api-key", "Bearer x".to_owned()),
            ("x-api-key", text[..80.min(text.len() - 1)].to_owned()),
        ] {
            assert_eq!(taken(&[(name, value)]), Err(Reason::UnknownForm));
        }
    }
}
