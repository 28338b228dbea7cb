//! Watches become snapshots: what the endpoint knows of its own server, the roles, the keys and the namespaces.
//!
//! One immutable [`Snapshot`] at a time, swapped whole; a request borrows one and so sees one policy.

pub(crate) mod snapshot;

pub(crate) use snapshot::{Objects, Snapshot};
