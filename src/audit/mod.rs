//! The record: one event per request, recorded before anything changes.
//!
//! ```text
//! record -> redact -> queue -> writer: gather floods -> append (group commit, chain) -> answer -> log line, notify
//! ```
//!
//! The database is the record. `record` resolves when the event is on disk, so that a caller can wait for it before
//! it acts: no record, no effect.

pub(crate) mod event;
mod gather;
mod log;
mod notify;
mod query;
mod redact;
mod store;
mod verify;

pub(crate) use event::{Event, Kind, Outcome};
#[cfg(test)]
pub(crate) use log::Writer;
pub(crate) use log::{AuditLog, Settings};
pub(crate) use notify::{Notifier, Refusal};
pub(crate) use query::{Filter, MAX_LIMIT, query};
pub(crate) use redact::{json_size, text as without_secrets};
pub(crate) use store::Link;
pub(crate) use verify::verify;
