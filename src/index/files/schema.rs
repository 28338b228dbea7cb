//! Holds a document against the schema of its kind, as the API server would: unknown fields, lengths and ranges.
//!
//! Patterns and CEL rules are left to the cluster; types and missing fields are found when the document is decoded.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde_json::Value;

/// Checks a document.
///
/// # Errors
/// A text that begins with the path of the field.
pub(crate) fn check(crd: &CustomResourceDefinition, document: &Value) -> Result<(), String> {
    let version = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    let schema = version.and_then(|schema| schema.open_api_v3_schema.as_ref());
    let fields = document.as_object().ok_or("a document must be an object")?;
    for (name, value) in fields {
        match name.as_str() {
            "apiVersion" | "kind" | "metadata" => {}
            other => {
                let known = schema.and_then(|schema| schema.properties.as_ref()?.get(other));
                let known = known.ok_or_else(|| format!("{other}: no such field"))?;
                walk(known, value, other)?;
            }
        }
    }
    Ok(())
}

fn walk(schema: &JSONSchemaProps, value: &Value, path: &str) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let inner = format!("{path}.{name}");
                if let Some(known) = schema.properties.as_ref().and_then(|properties| properties.get(name)) {
                    walk(known, value, &inner)?;
                } else if schema.properties.is_some() && schema.additional_properties.is_none() {
                    return Err(format!("{inner}: no such field"));
                }
            }
            Ok(())
        }
        Value::Array(items) => {
            within(items.len(), schema.min_items, schema.max_items, "items")
                .map_err(|e| format!("{path}: {e}"))?;
            let Some(JSONSchemaPropsOrArray::Schema(each)) = &schema.items else { return Ok(()) };
            items.iter().enumerate().try_for_each(|(i, item)| walk(each, item, &format!("{path}[{i}]")))
        }
        Value::String(text) => {
            let length = text.chars().count();
            within(length, schema.min_length, schema.max_length, "characters")
                .map_err(|e| format!("{path}: {e}"))
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let low = schema.minimum.is_some_and(|least| number < least);
            let high = schema.maximum.is_some_and(|most| number > most);
            if low || high {
                let limit = |bound: Option<f64>| bound.map_or("any".to_owned(), |bound| bound.to_string());
                let (least, most) = (limit(schema.minimum), limit(schema.maximum));
                return Err(format!("{path}: must be from {least} to {most}, not {number}"));
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

fn within(length: usize, least: Option<i64>, most: Option<i64>, what: &str) -> Result<(), String> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    match (least, most) {
        (Some(least), _) if length < least => Err(format!("must have at least {least} {what}")),
        (_, Some(most)) if length > most => Err(format!("must have at most {most} {what}")),
        _ => Ok(()),
    }
}
