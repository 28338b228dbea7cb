//! Questions that people ask of a policy: who can do what, and may they.
//!
//! The answers come from the conversion that the endpoint uses itself: the same objects, the same snapshot, the same
//! judgement of callers, the same decision. Only [`load`] does I/O, and it only reads.

mod access;
mod callers;
mod can_i;
mod csv;
#[cfg(test)]
mod fixture;
mod load;

pub(crate) use access::{Row, rows};
pub(crate) use can_i::{Caller, Question, Where, answer};
pub(crate) use csv::record;
pub(crate) use load::Place;

use crate::index::{Objects, Snapshot, Subject};

/// The policy of one server.
#[derive(Debug)]
pub(crate) struct Policy {
    /// The server.
    pub(crate) subject: Subject,
    /// Its objects, as they are written.
    pub(crate) objects: Objects,
    /// What its endpoint makes of them.
    pub(crate) snapshot: Snapshot,
}

impl Policy {
    /// The policy that these objects are for this server.
    pub(crate) fn of(subject: Subject, objects: Objects) -> Self {
        let snapshot = subject.snapshot(&objects);
        Self { subject, objects, snapshot }
    }

    /// The server, as people name it.
    pub(crate) fn server(&self) -> String {
        format!("{}/{}", self.subject.namespace, self.subject.server)
    }
}
