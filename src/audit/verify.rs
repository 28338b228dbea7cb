//! Checks the chain: that no row was changed, removed or put in since it was written.
//!
//! Whoever can write the file can also make a whole new chain; a link that was noted elsewhere (each audit line of the
//! process log carries one) shows that too.

use std::path::Path;

use super::store::{Link, chain, open_read_only};

/// What a sound audit log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Number of rows.
    pub(crate) records: u64,
    /// Rows that retention has deleted before them.
    pub(crate) deleted: i64,
    /// The last link; note it to prove later that nothing before it was changed.
    pub(crate) head: Link,
}

/// Why an audit log cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyLog {
    /// It cannot be read.
    #[error("failed to read the audit log")]
    ReadDatabase(#[from] rusqlite::Error),
    /// A row is not the one that was written there, or the one before it is not.
    #[error("row {0} or the one before it was changed, removed or put in")]
    MatchRow(i64),
    /// The last rows are not those that were written.
    #[error("the end was changed or cut off: {expected} should be the last row and {found} is")]
    MatchHead {
        /// Last row that was written.
        expected: i64,
        /// Last row that is there.
        found: i64,
    },
    /// The link that was noted elsewhere is not in this chain.
    #[error("row {0} is not the one whose digest was noted")]
    MatchKnown(i64),
}

/// Checks the whole chain, and that it holds a link which was noted elsewhere.
///
/// # Errors
/// [`VerifyLog`] says where the chain breaks first.
pub(crate) fn verify(path: &Path, known: Option<Link>) -> Result<Verified, VerifyLog> {
    let mut connection = open_read_only(path)?;
    // One transaction: rows that are written meanwhile are not seen in part.
    let transaction = connection.transaction()?;
    let (start, head) = chain(&transaction)?;
    let mut link = start;
    let mut known_found = known == Some(start);
    let mut select = transaction.prepare("SELECT sequence, previous, event FROM events ORDER BY sequence")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let sequence: i64 = row.get(0)?;
        // Compared as a slice: a blob of another length is a changed row, not an unreadable one.
        if sequence != link.sequence + 1 || row.get_ref(1)?.as_blob().ok() != Some(&link.digest) {
            return Err(VerifyLog::MatchRow(sequence));
        }
        link = link.next(row.get_ref(2)?.as_str().map_err(|_| VerifyLog::MatchRow(sequence))?);
        known_found |= known == Some(link);
    }
    if link != head {
        return Err(VerifyLog::MatchHead { expected: head.sequence, found: link.sequence });
    }
    if let Some(known) = known.filter(|_| !known_found) {
        return Err(VerifyLog::MatchKnown(known.sequence));
    }
    let records = (head.sequence - start.sequence).unsigned_abs();
    Ok(Verified { records, deleted: start.sequence, head })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rusqlite::Connection;

    use super::super::event::tests::event;
    use super::super::event::{Event, Kind, Outcome};
    use super::super::store::Store;
    use super::*;

    fn written(directory: &tempfile::TempDir, rows: usize, max_records: u32) -> (PathBuf, Vec<Link>) {
        let path = directory.path().join("audit.db");
        let mut store = Store::open(&path, max_records).expect("it opens");
        let row = |i| Event {
            request_id: format!("request-{i}"),
            ..event("a", Kind::McpRequest, Outcome::Success)
        };
        let links = (0..rows).map(|i| store.append(&[row(i)]).expect("it is written")[0]).collect();
        (path, links)
    }

    fn tampered(sql: &str) -> VerifyLog {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, _) = written(&directory, 20, 100);
        assert_eq!(verify(&path, None).expect("it is sound").records, 20);
        let connection = Connection::open(&path).expect("it opens");
        assert!(connection.execute(sql, []).expect("it can be changed") > 0);
        verify(&path, None).expect_err("the change shows")
    }

    #[test]
    fn an_edited_row_shows() {
        let edit =
            "UPDATE events SET event = replace(event, '\"user\":\"a\"', '\"user\":\"b\"') WHERE sequence = 7";
        assert!(matches!(tampered(edit), VerifyLog::MatchRow(8)));
        let last = "UPDATE events SET event = replace(event, 'success', 'failure') WHERE sequence = 20";
        assert!(matches!(tampered(last), VerifyLog::MatchHead { expected: 20, found: 20 }));
        let link = "UPDATE events SET previous = x'00' WHERE sequence = 7";
        assert!(matches!(tampered(link), VerifyLog::MatchRow(7)));
    }

    #[test]
    fn a_missing_row_shows_wherever_it_stood() {
        assert!(matches!(tampered("DELETE FROM events WHERE sequence = 1"), VerifyLog::MatchRow(2)));
        assert!(matches!(tampered("DELETE FROM events WHERE sequence = 7"), VerifyLog::MatchRow(8)));
        let end = tampered("DELETE FROM events WHERE sequence > 17");
        assert!(matches!(end, VerifyLog::MatchHead { expected: 20, found: 17 }));
    }

    #[test]
    fn rows_that_changed_places_show() {
        let swap = "UPDATE events SET event = (SELECT event FROM events AS other WHERE other.sequence = 11 - events.sequence)
                    WHERE sequence IN (5, 6)";
        assert!(matches!(tampered(swap), VerifyLog::MatchRow(6)));
    }

    #[test]
    fn the_chain_holds_after_old_rows_were_deleted() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, links) = written(&directory, 50, 10);
        let verified = verify(&path, Some(links[45])).expect("it is sound");
        assert_eq!(verified, Verified { records: 10, deleted: 40, head: links[49] });
        assert!(verify(&path, Some(links[39])).is_ok(), "the last deleted row is still known");
    }

    #[test]
    fn a_chain_that_was_made_anew_does_not_hold_the_noted_link() {
        let (first, second) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let (_, links) = written(&first, 5, 100);
        let (forged, _) = written(&second, 5, 100);
        assert!(verify(&forged, None).is_ok());
        assert!(matches!(verify(&forged, Some(links[2])), Err(VerifyLog::MatchKnown(3))));
    }
}
