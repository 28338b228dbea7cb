//! Claims of a token, each read by the type that it must have.
//!
//! A claim of another type is refused and never taken for absent, and so is an object in which a member stands twice:
//! two readers would disagree about it. Text is bounded and free of control characters, as it ends up in the audit.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Reason;

/// Tolerance for clocks that are not exactly alike.
pub(crate) const LEEWAY: SignedDuration = SignedDuration::from_secs(30);
/// Most bytes of a name, an id or any other single text.
pub(super) const MAX_TEXT: usize = 512;
/// Most texts in one claim.
const MAX_TEXTS: usize = 512;

/// The claims of a token.
pub(super) struct Claims(Map<String, Value>);

/// From when to when a token is valid, as it says itself.
pub(super) struct Validity {
    /// `exp`, in range and after `nbf` and `iat`.
    pub(super) expires_at: Timestamp,
    /// `nbf`.
    pub(super) not_before: Option<Timestamp>,
    /// `iat`.
    pub(super) issued_at: Option<Timestamp>,
}

impl Claims {
    /// Reads one JSON object without members that stand twice.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        parse_object(json).map(Self)
    }

    /// Names of the claims.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A claim that is an object of claims.
    pub(super) fn object(&self, name: &str) -> Result<Option<Self>, Reason> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(Self(members.clone()))),
            Some(_) => Err(Reason::Claim),
        }
    }

    /// The claim as it stands.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A claim that is one text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Reason> {
        self.0.get(name).map(plain_text).transpose()
    }

    /// A claim that is one text and must be there.
    pub(super) fn required_text(&self, name: &str) -> Result<&str, Reason> {
        self.text(name)?.ok_or(Reason::Claim)
    }

    /// A claim that is one text or a list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<&str>>, Reason> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() <= MAX_TEXTS => {
                values.iter().map(plain_text).collect::<Result<_, _>>().map(Some)
            }
            Some(value) => plain_text(value).map(|text| Some(vec![text])),
        }
    }

    /// A claim that is words with spaces between them or a list of words. The text may be empty.
    pub(super) fn words(&self, name: &str) -> Result<Option<Vec<&str>>, Reason> {
        match self.0.get(name) {
            Some(Value::String(text)) if text.chars().any(char::is_control) => Err(Reason::Claim),
            Some(Value::String(text)) => Ok(Some(text.split(' ').filter(|word| !word.is_empty()).collect())),
            _ => self.texts(name),
        }
    }

    /// A claim that is a point in time: seconds since 1970, whole or not.
    pub(super) fn time(&self, name: &str) -> Result<Option<Timestamp>, Reason> {
        self.0.get(name).map(|value| point_in_time(value).ok_or(Reason::Claim)).transpose()
    }

    /// Checks `exp`, `nbf` and `iat` with the tolerance for clocks, and that the token does not last longer than it may.
    pub(super) fn validity(&self, now: Timestamp, longest: SignedDuration) -> Result<Validity, Reason> {
        let expires_at = self.time("exp")?.ok_or(Reason::Claim)?;
        let (not_before, issued_at) = (self.time("nbf")?, self.time("iat")?);
        if [not_before, issued_at].into_iter().flatten().any(|start| start >= expires_at) {
            return Err(Reason::Claim);
        }
        if now.duration_since(expires_at) >= LEEWAY {
            return Err(Reason::Expired);
        }
        if [not_before, issued_at].into_iter().flatten().any(|start| start.duration_since(now) > LEEWAY) {
            return Err(Reason::NotYetValid);
        }
        if expires_at.duration_since(issued_at.unwrap_or(now)) > longest {
            return Err(Reason::Lifetime);
        }
        Ok(Validity { expires_at, not_before, issued_at })
    }
}

/// A text that may stand in decisions and in the audit: not empty, of bounded size, without control characters.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control)
}

fn plain_text(value: &Value) -> Result<&str, Reason> {
    value.as_str().filter(|text| is_plain(text)).ok_or(Reason::Claim)
}

fn point_in_time(value: &Value) -> Option<Timestamp> {
    let Value::Number(number) = value else { return None };
    let since_1970 = match number.as_u64() {
        Some(seconds) => SignedDuration::from_secs(i64::try_from(seconds).ok()?),
        None => SignedDuration::try_from_secs_f64(number.as_f64()?).ok()?,
    };
    Timestamp::from_duration(since_1970).ok().filter(|time| *time >= Timestamp::UNIX_EPOCH)
}

/// Reads one JSON object in which no member stands twice, at any depth.
pub(super) fn parse_object(json: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(json) {
        Ok(Strict(Value::Object(members))) => Some(members),
        _ => None,
    }
}

/// A JSON value without objects in which a member stands twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without members that stand twice")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Strict, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = access.next_element()? {
            values.push(value);
        }
        Ok(Strict(values.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Strict, A::Error> {
        let mut members = Map::new();
        while let Some((name, Strict(value))) = access.next_entry::<String, Strict>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands twice"));
            }
        }
        Ok(Strict(members.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Claims {
        Claims::parse(json.as_bytes()).expect("an object")
    }

    #[test]
    fn a_member_that_stands_twice_is_refused_at_any_depth() {
        for json in [r#"{"a":1,"a":1}"#, r#"{"a":{"b":1,"b":2}}"#, r#"{"a":[{"b":1,"\u0062":2}]}"#] {
            assert!(Claims::parse(json.as_bytes()).is_none(), "{json}");
        }
        assert!(
            Claims::parse(br#"{"a":{"b":1},"b":[1,{"b":2}],"c":null,"d":true,"e":-1,"f":1.5}"#).is_some()
        );
    }

    #[test]
    fn only_one_whole_object_is_read() {
        for json in ["", "1", "[]", "null", "{} {}", "{}x", "{\"a\":}", "\u{feff}{}", "{\"a\":1e999}"] {
            assert!(Claims::parse(json.as_bytes()).is_none(), "{json}");
        }
        assert!(Claims::parse(b"{\"a\":\"\xff\"}").is_none(), "not UTF-8");
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(Claims::parse(deep.as_bytes()).is_none(), "too deep");
    }

    #[test]
    fn a_claim_of_another_type_is_refused_and_never_taken_for_absent() {
        let claims = claims(r#"{"n":null,"t":"x","i":5,"l":["x",5],"o":{},"b":true,"e":"","c":"a\nb"}"#);
        for name in ["n", "i", "l", "o", "b", "e", "c"] {
            assert_eq!(claims.text(name), Err(Reason::Claim), "{name}");
            assert_eq!(claims.texts(name), Err(Reason::Claim), "{name}");
        }
        for name in ["n", "t", "l", "o", "b", "e"] {
            assert_eq!(claims.time(name), Err(Reason::Claim), "{name}");
        }
        assert_eq!((claims.text("t"), claims.text("absent")), (Ok(Some("x")), Ok(None)));
        assert_eq!(claims.words("e"), Ok(Some(vec![])));
        assert_eq!(claims.words("n"), Err(Reason::Claim));
    }

    #[test]
    fn a_point_in_time_is_any_number_in_range() {
        let claims = claims(r#"{"a":1,"b":1.5,"c":1e3,"d":-1,"e":1e300,"f":18446744073709551615,"g":-0.0}"#);
        let at = |millisecond| Ok(Some(Timestamp::from_millisecond(millisecond).expect("in range")));
        assert_eq!(claims.time("a"), at(1_000));
        assert_eq!(claims.time("b"), at(1_500));
        assert_eq!(claims.time("c"), at(1_000_000));
        assert_eq!(claims.time("g"), at(0));
        for name in ["d", "e", "f"] {
            assert_eq!(claims.time(name), Err(Reason::Claim), "{name}");
        }
    }
}
