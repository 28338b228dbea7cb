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

use crate::authz::Permission;
use crate::index::{Objects, Snapshot, Subject};
use crate::server::opens;
use crate::tools::registry;

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

    /// The tools of the server that the permission opens.
    fn opened(&self, permission: Permission) -> Vec<&'static str> {
        let Some(server) = self.snapshot.server.as_ref() else { return Vec::new() };
        let tools = registry().iter().filter(|tool| opens(&server.spec.tools, tool, permission));
        tools.map(|tool| tool.name).collect()
    }

    /// Whether there are tools for the permission and the spec of the server lets in none of them, so that every call is
    /// refused whatever the roles grant.
    fn is_closed(&self, permission: Permission) -> bool {
        let is_needed = registry().iter().any(|tool| tool.needs.includes(permission));
        is_needed && self.opened(permission).is_empty()
    }
}
