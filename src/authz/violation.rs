//! What a caller does that is more than asking for too much: each is recorded as a security violation and counted.

/// A rule of the endpoint that a request broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Violation {
    /// A caller of one tenant asked for what belongs to another, or belongs to none where it must.
    TenantIsolation,
    /// A caller behaves unlike itself.
    AnomalousRequest,
    /// Something that the endpoint had sealed came back changed, or in the hands of somebody else.
    Integrity,
    /// What permitted the request was withdrawn before it ran.
    StalePermit,
    /// A request came so far without an identity.
    NoIdentity,
}

impl Violation {
    /// Every rule there is.
    pub(crate) const ALL: [Violation; 5] = [
        Violation::TenantIsolation,
        Violation::AnomalousRequest,
        Violation::Integrity,
        Violation::StalePermit,
        Violation::NoIdentity,
    ];

    /// The word for it in the record and in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Violation::TenantIsolation => "tenant_isolation_violation",
            Violation::AnomalousRequest => "anomalous_request",
            Violation::Integrity => "integrity_violation",
            Violation::StalePermit => "stale_permit",
            Violation::NoIdentity => "no_identity",
        }
    }
}
