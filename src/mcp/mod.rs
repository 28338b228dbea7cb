//! The pure part of MCP: the envelope of a message, its names and its errors.
//!
//! No library, no I/O: bytes go in, and either what the driver needs to know comes out or the error that answers them.

pub(crate) mod envelope;
pub(crate) mod error;

pub(crate) use envelope::Envelope;

/// The revision from which on every request carries its own version, and no handshake exists.
pub(crate) const STATELESS_REVISION: &str = "2026-07-28";
/// The revisions that begin with a handshake, oldest first.
pub(crate) const HANDSHAKE_REVISIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
