//! Tables: what the API server's printers make of a list, and how rows become text.
//!
//! The API server knows best which columns matter, so lists are asked for as tables. A server that cannot make one
//! answers with objects, and the columns are then made here. Text is bounded and holds no control characters.

use serde::Deserialize;
use serde_json::{Map, Value};

/// What to accept: a table, else the objects.
pub(super) const ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Most bytes of a rendered table; the rows that do not fit are counted.
const MAX_TEXT: usize = 128 * 1024;

/// Most characters of one cell.
const MAX_CELL: usize = 512;

/// One page of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Page {
    /// Names of the columns after namespace and name, as the API server writes them: `Up-to-date`.
    pub(super) columns: Vec<String>,
    /// What the page holds.
    pub(super) rows: Vec<Row>,
    /// The API server's token for the next page.
    pub(super) token: Option<String>,
    /// How many follow, where the API server knows.
    pub(super) remaining: Option<i64>,
}

/// One object of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// Its namespace.
    pub(super) namespace: Option<String>,
    /// Its name.
    pub(super) name: String,
    /// One scalar per column.
    pub(super) cells: Vec<Value>,
}

/// A column that is made here, where the API server makes none.
pub(super) struct Column {
    /// As the API server would name it.
    pub(super) name: &'static str,
    /// From an object to what stands in the column.
    pub(super) value: fn(&Value) -> String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default)]
    column_definitions: Vec<ColumnDefinition>,
    #[serde(default)]
    rows: Option<Vec<TableRow>>,
    #[serde(default)]
    items: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default, rename = "continue")]
    token: String,
    #[serde(default)]
    remaining_item_count: Option<i64>,
}

#[derive(Deserialize)]
struct ColumnDefinition {
    name: String,
    #[serde(default)]
    priority: i32,
}

#[derive(Deserialize)]
struct TableRow {
    #[serde(default)]
    cells: Vec<Value>,
    object: TableObject,
}

#[derive(Deserialize)]
struct TableObject {
    metadata: TableMetadata,
}

#[derive(Deserialize)]
struct TableMetadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

/// Reads a table, or a list of objects with the columns that are made here.
///
/// # Errors
/// The answer is neither.
pub(super) fn read(answer: &[u8], columns: &[Column]) -> Result<Page, serde_json::Error> {
    let answer: Answer = serde_json::from_slice(answer)?;
    let token = Some(answer.metadata.token).filter(|token| !token.is_empty());
    let remaining = answer.metadata.remaining_item_count;
    let (columns, rows) = if answer.kind == "Table" {
        from_table(answer.column_definitions, answer.rows.unwrap_or_default())
    } else {
        from_objects(answer.items.unwrap_or_default(), columns)?
    };
    Ok(Page { columns, rows, token, remaining })
}

fn from_table(definitions: Vec<ColumnDefinition>, rows: Vec<TableRow>) -> (Vec<String>, Vec<Row>) {
    // Name and namespace come from the object; columns of a lower priority are for wide output.
    let shown: Vec<usize> = (0..definitions.len())
        .filter(|at| definitions[*at].priority == 0)
        .filter(|at| !matches!(definitions[*at].name.as_str(), "Name" | "Namespace"))
        .collect();
    let rows = rows
        .into_iter()
        .map(|mut row| Row {
            namespace: row.object.metadata.namespace,
            name: row.object.metadata.name,
            cells: shown
                .iter()
                .map(|at| row.cells.get_mut(*at).map_or(Value::Null, |cell| scalar(cell.take())))
                .collect(),
        })
        .collect();
    (shown.iter().map(|at| definitions[*at].name.clone()).collect(), rows)
}

fn from_objects(items: Vec<Value>, columns: &[Column]) -> Result<(Vec<String>, Vec<Row>), serde_json::Error> {
    let row = |item: Value| {
        let cells = columns.iter().map(|column| Value::String((column.value)(&item))).collect();
        let TableObject { metadata } = TableObject::deserialize(item)?;
        Ok(Row { namespace: metadata.namespace, name: metadata.name, cells })
    };
    let rows = items.into_iter().map(row).collect::<Result<_, serde_json::Error>>()?;
    Ok((columns.iter().map(|column| column.name.to_owned()).collect(), rows))
}

/// A cell may hold small lists or maps; the output schema promises scalars.
fn scalar(cell: Value) -> Value {
    match cell {
        Value::Array(_) | Value::Object(_) => Value::String(cell.to_string()),
        scalar => scalar,
    }
}

/// Key of a column in structured output: `Up-to-date` is `upToDate`, `Port(s)` is `ports`.
pub(super) fn key(column: &str) -> String {
    let column: String = column.chars().filter(|c| !matches!(c, '(' | ')')).collect();
    let mut key = String::with_capacity(column.len());
    for word in column.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        let word = word.to_ascii_lowercase();
        if key.is_empty() {
            key.push_str(&word);
        } else {
            let (first, rest) = word.split_at(1);
            key.push_str(&first.to_ascii_uppercase());
            key.push_str(rest);
        }
    }
    key
}

/// A row of structured output: the columns by key.
pub(super) fn columns_by_key(keys: &[String], cells: Vec<Value>) -> Map<String, Value> {
    keys.iter().cloned().zip(cells).collect()
}

/// A cell as text.
pub(super) fn text(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => plain(text, MAX_CELL),
        other => plain(&other.to_string(), MAX_CELL),
    }
}

/// The text in one line, without control characters, cut after so many characters.
///
/// Objects hold text of strangers; it must neither break a table nor drive a terminal.
pub(super) fn plain(text: &str, most: usize) -> String {
    let mut plain: String = text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        plain.push('…');
    }
    plain
}

/// Renders rows under headers, in columns of equal width. The last column is not padded.
pub(super) fn render(headers: &[String], rows: &[Vec<String>]) -> String {
    let headers: Vec<String> = headers.iter().map(|header| header.to_uppercase()).collect();
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    push_row(&mut text, &headers, &widths);
    for (shown, row) in rows.iter().enumerate() {
        let before = text.len();
        push_row(&mut text, row, &widths);
        if text.len() > MAX_TEXT {
            text.truncate(before);
            text.push_str(&format!("({} more rows, cut for length)\n", rows.len() - shown));
            break;
        }
    }
    text
}

fn push_row(text: &mut String, cells: &[String], widths: &[usize]) {
    let last = cells.len().saturating_sub(1);
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        text.push_str(cell);
        if at < last {
            let padding = width - cell.chars().count() + 2;
            text.extend(std::iter::repeat_n(' ', padding));
        }
    }
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

/// How long ago, as the API server's printers say it: `45s`, `12m`, `5h`, `3d`.
pub(super) fn age(since: jiff::Timestamp, now: jiff::Timestamp) -> String {
    match now.duration_since(since).as_secs().max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// The age of an object by its `metadata.creationTimestamp`.
pub(super) fn object_age(object: &Value) -> String {
    let created = object.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
    match created.and_then(|text| text.parse().ok()) {
        Some(created) => age(created, jiff::Timestamp::now()),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: &[Column] =
        &[Column { name: "Phase", value: |object| object["status"]["phase"].as_str().unwrap_or("?").into() }];

    #[test]
    fn a_table_keeps_its_columns_of_the_first_priority() {
        let page = read(
            &serde_json::to_vec(&json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"continue": "next", "remainingItemCount": 7},
                "columnDefinitions": [
                    {"name": "Name", "type": "string", "format": "name", "priority": 0},
                    {"name": "Ready", "type": "string", "priority": 0},
                    {"name": "IP", "type": "string", "priority": 1},
                    {"name": "Restarts", "type": "integer", "priority": 0},
                ],
                "rows": [{
                    "cells": ["web", "1/1", "10.0.0.1", 3],
                    "object": {"kind": "PartialObjectMetadata", "metadata": {"name": "web", "namespace": "a"}},
                }],
            }))
            .unwrap(),
            COLUMNS,
        )
        .expect("a table");
        assert_eq!(page.columns, ["Ready", "Restarts"]);
        assert_eq!(page.rows[0].cells, [json!("1/1"), json!(3)]);
        assert_eq!((page.rows[0].namespace.as_deref(), page.rows[0].name.as_str()), (Some("a"), "web"));
        assert_eq!((page.token.as_deref(), page.remaining), (Some("next"), Some(7)));
    }

    #[test]
    fn objects_instead_of_a_table_get_the_columns_made_here() {
        let page = read(
            br#"{"kind": "PodList", "metadata": {"continue": ""}, "items": [
                {"metadata": {"name": "web", "namespace": "a"}, "status": {"phase": "Running"}}]}"#,
            COLUMNS,
        )
        .expect("a list");
        assert_eq!(page.columns, ["Phase"]);
        assert_eq!(page.rows[0].cells, [json!("Running")]);
        assert_eq!(page.token, None);
    }

    #[test]
    fn what_is_neither_is_refused() {
        assert!(read(b"<html>", COLUMNS).is_err());
        assert!(read(br#"{"kind": "PodList", "items": [{"status": {}}]}"#, COLUMNS).is_err());
    }

    #[test]
    fn columns_have_keys_as_fields_of_kubernetes_have() {
        for (column, key_) in [
            ("Ready", "ready"),
            ("Up-to-date", "upToDate"),
            ("Cluster-IP", "clusterIp"),
            ("Port(s)", "ports"),
            ("Last Seen", "lastSeen"),
        ] {
            assert_eq!(key(column), key_);
        }
    }

    #[test]
    fn rendered_columns_stand_under_each_other() {
        let rows = [vec!["web".into(), "1/1".into()], vec!["a-long-name".into(), "0/1".into()]];
        assert_eq!(
            render(&["Name".into(), "Ready".into()], &rows),
            "NAME         READY\nweb          1/1\na-long-name  0/1\n"
        );
    }

    #[test]
    fn text_of_strangers_neither_breaks_the_table_nor_drives_a_terminal() {
        assert_eq!(text(&json!("a\nb\u{1b}[31mc\td")), "a b [31mc d");
        assert_eq!(plain("äöü", 2), "äö…");
        assert_eq!(plain("äö", 2), "äö");
    }

    #[test]
    fn a_table_that_is_too_long_is_cut_between_rows_and_says_so() {
        let rows: Vec<Vec<String>> = (0..2_000).map(|at| vec![format!("{at:0500}")]).collect();
        let text = render(&["Name".into()], &rows);
        assert!(text.len() < MAX_TEXT + 100);
        assert!(text.ends_with("more rows, cut for length)\n"), "{}", &text[text.len() - 60..]);
    }

    #[test]
    fn an_age_has_one_unit() {
        let now: jiff::Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (since, text) in [
            ("2026-01-10T00:00:05Z", "0s"),
            ("2026-01-09T23:58:01Z", "119s"),
            ("2026-01-09T23:30:00Z", "30m"),
            ("2026-01-09T00:00:00Z", "24h"),
            ("2026-01-01T00:00:00Z", "9d"),
        ] {
            assert_eq!(age(since.parse().unwrap(), now), text);
        }
    }
}
