//! What controllers and watches share: writing children, conditions, guarded watches, queues, events, the lease.
//!
//! Nothing here knows what a server, a role or a key means.

pub(crate) mod apply;
pub(crate) mod condition;
pub(crate) mod event;
pub(crate) mod lease;
pub(crate) mod queue;
pub(crate) mod watch;
