//! Reads the record back, by what people ask for.
//!
//! It reads through a connection of its own and never waits for the writer, nor the writer for it.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::named_params;

use super::event::{Event, Kind, Outcome, time_text};
use super::store::open_read_only;

/// Most events that one query gives.
pub(crate) const MAX_LIMIT: u32 = 10_000;

/// Which events are wanted; `None` is any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Most events to give, the latest ones; at most [`MAX_LIMIT`].
    pub(crate) limit: u32,
    /// The caller.
    pub(crate) user: Option<String>,
    /// Canonical name of the tool.
    pub(crate) tool: Option<String>,
    /// MCP method, or `authenticate`.
    pub(crate) action: Option<String>,
    /// How it went.
    pub(crate) result: Option<Outcome>,
    /// What it is about.
    pub(crate) event_type: Option<Kind>,
    /// At this time or later.
    pub(crate) since: Option<Timestamp>,
    /// Before this time.
    pub(crate) until: Option<Timestamp>,
    /// Of one request.
    pub(crate) request_id: Option<String>,
    /// Id of the last event of the page before: give those recorded before it.
    pub(crate) cursor: Option<String>,
}

/// Why the record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryLog {
    /// The database cannot be read.
    #[error("failed to read the audit log")]
    ReadDatabase(#[from] rusqlite::Error),
    /// A row is not an event.
    #[error("failed to read row {sequence} of the audit log")]
    ParseEvent {
        /// Number of the row.
        sequence: i64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No event has the id that stands in the cursor.
    #[error("failed to find the event {0:?} to continue from")]
    FindCursor(String),
}

/// Gives the events that fit, the latest first.
///
/// # Errors
/// [`QueryLog`] says what cannot be read.
pub(crate) fn query(path: &Path, filter: &Filter) -> Result<Vec<Event>, QueryLog> {
    let mut connection = open_read_only(path)?;
    // One transaction: the cursor is looked up in the same state that is read.
    let transaction = connection.transaction()?;
    let before = match &filter.cursor {
        None => None,
        Some(id) => {
            let mut rows = transaction.prepare("SELECT sequence FROM events WHERE event_id = ?1")?;
            let sequence = rows.query_map([id], |row| row.get::<_, i64>(0))?.next().transpose()?;
            Some(sequence.ok_or_else(|| QueryLog::FindCursor(id.clone()))?)
        }
    };
    let mut select = transaction.prepare(
        "SELECT sequence, event FROM events
         WHERE (:before IS NULL OR sequence < :before)
           AND (:user IS NULL OR user = :user)
           AND (:tool IS NULL OR tool = :tool)
           AND (:action IS NULL OR action = :action)
           AND (:result IS NULL OR result = :result)
           AND (:event_type IS NULL OR event_type = :event_type)
           AND (:since IS NULL OR timestamp >= :since)
           AND (:until IS NULL OR timestamp < :until)
           AND (:request_id IS NULL OR request_id = :request_id)
         ORDER BY sequence DESC LIMIT :limit",
    )?;
    let mut rows = select.query(named_params! {
        ":before": before,
        ":user": filter.user,
        ":tool": filter.tool,
        ":action": filter.action,
        ":result": filter.result.map(Outcome::as_str),
        ":event_type": filter.event_type.map(Kind::as_str),
        ":since": filter.since.map(time_text),
        ":until": filter.until.map(time_text),
        ":request_id": filter.request_id,
        ":limit": filter.limit.min(MAX_LIMIT),
    })?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let event = serde_json::from_str(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?)
            .map_err(|source| QueryLog::ParseEvent { sequence: row.get(0).unwrap_or_default(), source })?;
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::event;
    use super::super::store::Store;
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn recorded() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.db");
        let base = event("ci-bot", Kind::McpRequest, Outcome::Success);
        let rows = [
            Event { event_id: "mcp_1".into(), ..base.clone() },
            Event {
                event_id: "mcp_2".into(),
                timestamp: at("2026-11-23T10:41:50.5Z"),
                tool: Some("deployments_scale".into()),
                result: Outcome::Failure,
                ..base.clone()
            },
            Event {
                event_id: "authz_3".into(),
                timestamp: at("2026-11-23T10:41:51Z"),
                event_type: Kind::Authorization,
                user: "o'brien\"; DROP TABLE events".into(),
                result: Outcome::Denied,
                request_id: "request-3".into(),
                ..base.clone()
            },
            Event {
                event_id: "auth_4".into(),
                timestamp: at("2026-11-23T10:41:52Z"),
                event_type: Kind::Authentication,
                action: "authenticate".into(),
                tool: None,
                ..base
            },
        ];
        Store::open(&path, 100).expect("it opens").append(&rows).expect("they are written");
        (directory, path)
    }

    fn ids(filter: Filter) -> Vec<String> {
        let (_directory, path) = recorded();
        let events = query(&path, &Filter { limit: 100, ..filter }).expect("it can be read");
        events.into_iter().map(|event| event.event_id).collect()
    }

    #[test]
    fn each_filter_narrows_and_the_latest_come_first() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(ids(Filter::default()), ["auth_4", "authz_3", "mcp_2", "mcp_1"]);
        assert_eq!(ids(Filter { user: text("ci-bot"), ..Filter::default() }), ["auth_4", "mcp_2", "mcp_1"]);
        let hostile = text("o'brien\"; DROP TABLE events");
        assert_eq!(ids(Filter { user: hostile, ..Filter::default() }), ["authz_3"]);
        assert_eq!(ids(Filter { tool: text("deployments_scale"), ..Filter::default() }), ["mcp_2"]);
        assert_eq!(ids(Filter { action: text("authenticate"), ..Filter::default() }), ["auth_4"]);
        assert_eq!(ids(Filter { result: Some(Outcome::Failure), ..Filter::default() }), ["mcp_2"]);
        assert_eq!(ids(Filter { event_type: Some(Kind::Authorization), ..Filter::default() }), ["authz_3"]);
        assert_eq!(ids(Filter { request_id: text("request-3"), ..Filter::default() }), ["authz_3"]);
        assert_eq!(ids(Filter { user: text("nobody"), ..Filter::default() }), [""; 0]);
    }

    #[test]
    fn times_are_compared_as_times() {
        let since = Some(at("2026-11-23T10:41:50.1Z"));
        assert_eq!(ids(Filter { since, ..Filter::default() }), ["auth_4", "authz_3", "mcp_2"]);
        let until = Some(at("2026-11-23T10:41:51Z"));
        assert_eq!(ids(Filter { since, until, ..Filter::default() }), ["mcp_2"]);
    }

    #[test]
    fn pages_join_without_gap_or_overlap() {
        let (_directory, path) = recorded();
        let mut cursor = None;
        let mut seen = Vec::new();
        loop {
            let page =
                query(&path, &Filter { limit: 3, cursor, ..Filter::default() }).expect("it can be read");
            let Some(last) = page.last() else { break };
            cursor = Some(last.event_id.clone());
            seen.extend(page.into_iter().map(|event| event.event_id));
        }
        assert_eq!(seen, ["auth_4", "authz_3", "mcp_2", "mcp_1"]);
        let lost = Filter { limit: 3, cursor: Some("mcp_lost".into()), ..Filter::default() };
        assert!(matches!(query(&path, &lost), Err(QueryLog::FindCursor(_))));
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.db");
        assert!(matches!(query(&path, &Filter::default()), Err(QueryLog::ReadDatabase(_))));
        assert!(!path.exists());
    }
}
