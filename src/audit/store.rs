//! The database file: its schema, appending to the chain of rows, and forgetting the oldest.
//!
//! Each row carries the digest of the one before, so that a row that was changed, removed or put in shows. The first
//! link is random and stands in the table `chain`; when old rows are deleted, the link they end in takes its place.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::event::Event;

/// One step per version of the schema; never change one that was released, add the next.
///
/// The row is one JSON text, and the queried fields are columns computed from it: they cannot disagree.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE events (
        sequence   INTEGER PRIMARY KEY,
        previous   BLOB NOT NULL,
        event      TEXT NOT NULL,
        event_id   TEXT GENERATED ALWAYS AS (event ->> '$.event_id') VIRTUAL,
        timestamp  TEXT GENERATED ALWAYS AS (event ->> '$.timestamp') VIRTUAL,
        event_type TEXT GENERATED ALWAYS AS (event ->> '$.event_type') VIRTUAL,
        request_id TEXT GENERATED ALWAYS AS (event ->> '$.request_id') VIRTUAL,
        user       TEXT GENERATED ALWAYS AS (event ->> '$.user') VIRTUAL,
        action     TEXT GENERATED ALWAYS AS (event ->> '$.action') VIRTUAL,
        tool       TEXT GENERATED ALWAYS AS (event ->> '$.tool') VIRTUAL,
        result     TEXT GENERATED ALWAYS AS (event ->> '$.result') VIRTUAL
    ) STRICT;
    CREATE TABLE chain (
        id             INTEGER PRIMARY KEY CHECK (id = 1),
        start_sequence INTEGER NOT NULL,
        start_digest   BLOB NOT NULL,
        head_sequence  INTEGER NOT NULL,
        head_digest    BLOB NOT NULL
    ) STRICT;
    INSERT INTO chain
    SELECT 1, 0, start, 0, start FROM (SELECT randomblob(32) AS start);
"];

/// How long a connection waits for another one. Nobody but this process writes, so this is for backups and tools.
const BUSY: Duration = Duration::from_secs(2);

/// A place in the chain: the row of this number has this digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Number of the row; 0 is before the first.
    pub(crate) sequence: i64,
    /// SHA-256 over the digest before, the number and the text of the row.
    pub(crate) digest: [u8; 32],
}

impl Link {
    /// The link of the row after this one.
    pub(super) fn next(&self, event: &str) -> Self {
        let sequence = self.sequence + 1;
        let mut context = Context::new(&SHA256);
        context.update(&self.digest);
        context.update(&sequence.to_be_bytes());
        context.update(event.as_bytes());
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self { sequence, digest }
    }

    /// The digest as it stands in log lines.
    pub(super) fn digest_text(&self) -> String {
        HEXLOWER.encode(&self.digest)
    }
}

/// As it is noted and given back: `<number>:<digest in hexadecimal>`.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.digest_text())
    }
}

impl FromStr for Link {
    type Err = ParseLink;

    fn from_str(text: &str) -> Result<Self, ParseLink> {
        let (sequence, hexadecimal) = text.split_once(':').ok_or(ParseLink)?;
        let digest = HEXLOWER_PERMISSIVE.decode(hexadecimal.as_bytes()).map_err(|_| ParseLink)?;
        let digest = digest.try_into().map_err(|_| ParseLink)?;
        Ok(Self { sequence: sequence.parse().map_err(|_| ParseLink)?, digest })
    }
}

/// A text is not a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a row number, a colon and 64 hexadecimal digits")]
pub(crate) struct ParseLink;

/// Why the audit log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenLog {
    /// The directory or the file cannot be made.
    #[error("failed to create the audit log {path:?}")]
    CreateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a database, or not a sound one.
    #[error("failed to open the audit log")]
    OpenDatabase(#[from] rusqlite::Error),
    /// Write-ahead logging does not work there, on a network file system for example.
    #[error(
        "failed to open the audit log: its file system does not allow write-ahead logging (journal mode {0:?})"
    )]
    UseWriteAheadLog(String),
    /// A later version of Portcullis wrote it.
    #[error("failed to open the audit log: its schema has version {0}, which is newer than this program")]
    KnowSchema(u32),
    /// The thread that writes cannot be started.
    #[error("failed to start the writer of the audit log")]
    StartWriter(#[source] io::Error),
}

/// The database, open for writing.
#[derive(Debug)]
pub(super) struct Store {
    connection: Connection,
    max_records: i64,
}

impl Store {
    /// Opens the file, makes it where it does not exist, and brings its schema up to date. What a killed process had
    /// committed is there again.
    pub(super) fn open(path: &Path, max_records: u32) -> Result<Self, OpenLog> {
        create(path).map_err(|source| OpenLog::CreateFile { path: path.to_owned(), source })?;
        let mut connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(BUSY)?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        if mode != "wal" {
            return Err(OpenLog::UseWriteAheadLog(mode));
        }
        // A row that was answered for is on disk even when the machine loses power.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        migrate(&mut connection)?;
        Ok(Self { connection, max_records: i64::from(max_records.max(1)) })
    }

    /// Appends rows, all or none, and gives the link of each. They are on disk when this returns.
    pub(super) fn append(&mut self, events: &[Event]) -> Result<Vec<Link>, rusqlite::Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (start, mut head) = chain(&transaction)?;
        let mut links = Vec::with_capacity(events.len());
        let mut insert = transaction
            .prepare_cached("INSERT INTO events (sequence, previous, event) VALUES (?1, ?2, ?3)")?;
        for event in events {
            let text = serde_json::to_string(event)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
            insert.execute((head.sequence + 1, head.digest, &text))?;
            head = head.next(&text);
            links.push(head);
        }
        drop(insert);
        transaction
            .prepare_cached("UPDATE chain SET head_sequence = ?1, head_digest = ?2")?
            .execute((head.sequence, head.digest))?;
        let last_deleted = head.sequence - self.max_records;
        if last_deleted > start.sequence {
            forget(&transaction, last_deleted)?;
        }
        transaction.commit()?;
        Ok(links)
    }
}

/// Opens the file for reading; the writer is not disturbed.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// The links before the first row and of the last one.
pub(super) fn chain(connection: &Connection) -> Result<(Link, Link), rusqlite::Error> {
    connection
        .prepare_cached("SELECT start_sequence, start_digest, head_sequence, head_digest FROM chain")?
        .query_one([], |row| {
            let start = Link { sequence: row.get(0)?, digest: row.get(1)? };
            Ok((start, Link { sequence: row.get(2)?, digest: row.get(3)? }))
        })
}

/// Deletes rows up to a number. The row after them carries the digest that the chain then starts from.
fn forget(transaction: &Transaction<'_>, last: i64) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "UPDATE chain SET start_sequence = ?1, start_digest = (SELECT previous FROM events WHERE sequence = ?1 + 1)",
        )?
        .execute([last])?;
    transaction.prepare_cached("DELETE FROM events WHERE sequence <= ?1")?.execute([last])?;
    Ok(())
}

fn migrate(connection: &mut Connection) -> Result<(), OpenLog> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = u32::try_from(MIGRATIONS.len()).expect("there are few versions");
    if version > known {
        return Err(OpenLog::KnowSchema(version));
    }
    for step in &MIGRATIONS[version as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known)?;
    Ok(transaction.commit()?)
}

/// Makes the file before SQLite does: what is in it is for its owner only.
fn create(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    Ok(())
}
