//! Errors of JSON-RPC as they are written out: one code, one text, the id of the request if it is known.

use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The text is not JSON.
pub(crate) const PARSE_ERROR: i32 = -32700;
/// The message is not one that JSON-RPC and MCP know.
pub(crate) const INVALID_REQUEST: i32 = -32600;
/// The method does not exist here.
pub(crate) const METHOD_NOT_FOUND: i32 = -32601;
/// The parameters do not fit the method.
pub(crate) const INVALID_PARAMS: i32 = -32602;
/// The server failed.
pub(crate) const INTERNAL_ERROR: i32 = -32603;
/// The revision of MCP is not spoken here.
pub(crate) const UNSUPPORTED_PROTOCOL_VERSION: i32 = -32022;

/// The caller's credential does not reach this far. The number is HTTP's: those of JSON-RPC and MCP are taken.
pub(crate) const FORBIDDEN: i32 = 403;

/// Writes an error answer. Without an id it answers a message whose id could not be read.
pub(crate) fn answer(id: Option<&RawValue>, code: i32, message: &str) -> Vec<u8> {
    with_data(id, code, message, None)
}

/// As [`answer`], with details as data.
pub(crate) fn with_data(id: Option<&RawValue>, code: i32, message: &str, data: Option<Value>) -> Vec<u8> {
    let mut error = json!({"code": code, "message": message});
    if let Some(data) = data {
        error["data"] = data;
    }
    // The id is text of the client that was parsed as a string or a number: it is JSON as it stands.
    let id = id.map_or("null", RawValue::get);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_repeats_the_id_as_it_was_written() {
        let id = RawValue::from_string("\"a\\u0062\"".into()).expect("JSON");
        let text =
            String::from_utf8(answer(Some(&id), METHOD_NOT_FOUND, "no \"such\" method")).expect("UTF-8");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["id"], "ab");
        assert_eq!(value["error"], json!({"code": -32601, "message": "no \"such\" method"}));
    }
}
