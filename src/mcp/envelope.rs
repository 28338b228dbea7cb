//! The envelope of one message: is it a request or a notification, which method, which tool.
//!
//! Parsed once, borrowing from the bytes. What is refused here reaches nothing else: broken JSON, batches, messages
//! with a field twice (of which two parsers might read different halves), answers to questions nobody asked.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR};

/// Most bytes of an id: it is kept, compared and sent back.
const MAX_ID: usize = 256;
/// The quotes around it.
const QUOTES: usize = 2;

/// What the driver needs to know of a message.
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    /// The id, a string or an integer; none for a notification.
    pub(crate) id: Option<&'a RawValue>,
    /// The method.
    pub(crate) method: Cow<'a, str>,
    /// `params.name` of a `tools/call`.
    pub(crate) tool: Option<Cow<'a, str>>,
    /// The revision that the request names for itself, if it does.
    pub(crate) revision: Option<Cow<'a, str>>,
    /// `params.requestId` of a `notifications/cancelled`.
    pub(crate) cancels: Option<&'a RawValue>,
}

/// Why a message is not one that is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidEnvelope {
    /// It is not JSON.
    #[error("parse error: the body is not JSON")]
    NotJson,
    /// It is a batch.
    #[error("invalid request: batches are not supported")]
    Batch,
    /// It is JSON and no message.
    #[error("invalid request: {0}")]
    NotAMessage(&'static str),
    /// The parameters do not fit the method.
    #[error("invalid params: {0}")]
    Params(&'static str),
}

impl InvalidEnvelope {
    /// Code of the error that answers it.
    pub(crate) fn code(&self) -> i32 {
        match self {
            InvalidEnvelope::NotJson => PARSE_ERROR,
            InvalidEnvelope::Batch | InvalidEnvelope::NotAMessage(_) => INVALID_REQUEST,
            InvalidEnvelope::Params(_) => INVALID_PARAMS,
        }
    }

    /// Fixed word for the audit.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            InvalidEnvelope::NotJson => "parse_error",
            InvalidEnvelope::Batch => "batch",
            InvalidEnvelope::NotAMessage(_) => "invalid_request",
            InvalidEnvelope::Params(_) => "invalid_params",
        }
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "requestId")]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "_meta")]
    meta: Option<Meta<'a>>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, rename = "io.modelcontextprotocol/protocolVersion")]
    revision: Option<Cow<'a, str>>,
}

/// Keeps an explicit `null` apart from absence.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&'a RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Envelope<'a> {
    /// Reads the envelope of a message.
    ///
    /// # Errors
    /// [`InvalidEnvelope`] says what to answer instead.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, InvalidEnvelope> {
        let text = std::str::from_utf8(body).map_err(|_| InvalidEnvelope::NotJson)?;
        let whole: &RawValue = serde_json::from_str(text).map_err(|_| InvalidEnvelope::NotJson)?;
        match whole.get().as_bytes().first() {
            Some(b'{') => {}
            Some(b'[') => return Err(InvalidEnvelope::Batch),
            _ => return Err(InvalidEnvelope::NotAMessage("a message is an object")),
        }
        let message: Message = serde_json::from_str(text).map_err(|_| {
            InvalidEnvelope::NotAMessage("a field has the wrong type or is there more than once")
        })?;
        if message.jsonrpc.as_deref() != Some("2.0") {
            return Err(InvalidEnvelope::NotAMessage("jsonrpc must be \"2.0\""));
        }
        let method = message.method.ok_or(InvalidEnvelope::NotAMessage("method is missing"))?;
        if message.id.is_some_and(|id| !is_id(id.get())) {
            return Err(InvalidEnvelope::NotAMessage("id must be a string or an integer"));
        }
        if message.id.is_some_and(|id| id.get().len() > MAX_ID + QUOTES) {
            return Err(InvalidEnvelope::NotAMessage("id must not be longer than 256 bytes"));
        }
        let params = params(message.params)?;
        let tool = if method == "tools/call" {
            let name = params.name.ok_or(InvalidEnvelope::Params("params.name must be a string"))?;
            Some(name)
        } else {
            None
        };
        Ok(Self {
            id: message.id,
            method,
            tool,
            revision: params.meta.and_then(|meta| meta.revision),
            cancels: params.request_id,
        })
    }
}

fn params(raw: Option<&RawValue>) -> Result<Params<'_>, InvalidEnvelope> {
    match raw {
        None => Ok(Params { name: None, request_id: None, meta: None }),
        Some(raw) if raw.get().starts_with('{') => serde_json::from_str(raw.get()).map_err(|_| {
            InvalidEnvelope::Params("a parameter has the wrong type or is there more than once")
        }),
        Some(_) => Err(InvalidEnvelope::Params("params must be an object")),
    }
}

/// Whether valid JSON is a string or an integer.
fn is_id(json: &str) -> bool {
    json.starts_with('"') || json.parse::<i64>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_names_its_method_its_tool_and_its_revision() {
        let body = br#" {"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"list_pods",
            "arguments":{"namespace":"a"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        let envelope = Envelope::parse(body).expect("a call");
        assert_eq!(envelope.id.map(RawValue::get), Some("7"));
        assert_eq!(envelope.method, "tools/call");
        assert_eq!(envelope.tool.as_deref(), Some("list_pods"));
        assert_eq!(envelope.revision.as_deref(), Some("2026-07-28"));
    }

    #[test]
    fn a_message_without_id_is_a_notification() {
        let envelope = Envelope::parse(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        assert!(envelope.expect("a notification").id.is_none());
    }

    #[test]
    fn an_id_has_at_most_256_bytes() {
        let message =
            |length: usize| format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(length));
        assert!(Envelope::parse(message(256).as_bytes()).is_ok());
        let error = Envelope::parse(message(257).as_bytes()).expect_err("refused");
        assert_eq!(error.code(), INVALID_REQUEST);
    }

    #[test]
    fn what_is_not_a_message_gets_the_code_that_says_why() {
        for (body, code) in [
            ("", PARSE_ERROR),
            ("{", PARSE_ERROR),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"} x"#, PARSE_ERROR),
            ("[]", INVALID_REQUEST),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, INVALID_REQUEST),
            ("7", INVALID_REQUEST),
            (r#"{"id":1,"method":"ping"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#, INVALID_REQUEST),
            (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, INVALID_PARAMS),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
                INVALID_PARAMS,
            ),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}"#, INVALID_PARAMS),
        ] {
            let error = Envelope::parse(body.as_bytes()).expect_err(body);
            assert_eq!(error.code(), code, "{body}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(body: Vec<u8>) {
            let _ = Envelope::parse(&body);
        }
    }
}
