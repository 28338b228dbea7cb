//! Who did what: one event per request, recorded before anything changes.
//!
//! The database is the record. `record` resolves when the event is on disk, so that a caller can wait for it before
//! it acts: no record, no effect.

pub(crate) mod event;

pub(crate) use event::{Event, Kind, Outcome};
