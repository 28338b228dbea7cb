//! What controllers and watches share: apply, ownership, conditions, events, guarded watches, the lease.
