//! What a tool's result goes through before it leaves: keys of ours are masked, and too much is refused whole.

use serde_json::Value;

use crate::audit::json_size;
use crate::authn::{ApiKey, api_key};
use crate::tools::Output;

/// Most bytes of one result.
const LIMIT: usize = 1 << 20;
const PREFIX: &str = "pcl_";
const MASK: &str = "***REDACTED***";

/// A result that is larger than an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the result has {0} bytes and the limit is {LIMIT}: ask for less, by a namespace, a selector or a limit"
)]
pub(super) struct TooLarge(usize);

/// Masks keys and measures the result.
pub(super) fn checked(output: Output) -> Result<Output, TooLarge> {
    let size = output.text.len() + json_size(&output.structured);
    if size > LIMIT {
        return Err(TooLarge(size));
    }
    Ok(Output { text: masked(output.text), structured: masked_value(output.structured) })
}

/// Replaces every whole API key in a text: logs of a program may hold one.
fn masked(text: String) -> String {
    if !text.contains(PREFIX) {
        return text;
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(at) = rest.find(PREFIX) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let key = from.get(..api_key::LENGTH).filter(|candidate| ApiKey::parse(candidate).is_ok());
        let (shown, taken) = key.map_or((PREFIX, PREFIX.len()), |key| (MASK, key.len()));
        out.push_str(shown);
        rest = &from[taken..];
    }
    out + rest
}

fn masked_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(masked(text)),
        Value::Array(items) => Value::Array(items.into_iter().map(masked_value).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, masked_value(value))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_in_a_result_does_not_leave() {
        let key = ApiKey::generate([7; 10], [9; 32]).expose().to_owned();
        let output = Output { text: format!("a {key}é pcl_x {key}"), structured: json!({"log": [key]}) };
        let checked = checked(output).expect("small");
        assert_eq!(checked.text, format!("a {MASK}é pcl_x {MASK}"));
        assert_eq!(checked.structured, json!({"log": [MASK]}));
    }

    #[test]
    fn too_much_is_refused_and_the_text_says_what_to_do() {
        let output = |n: usize| Output { text: "x".repeat(n), structured: json!("y".repeat(n)) };
        assert!(checked(output(LIMIT / 2 - 10)).is_ok());
        let error = checked(output(LIMIT / 2)).expect_err("too large").to_string();
        assert!(error.contains("ask for less"), "{error}");
    }
}
