//! Types and reasons of conditions. Reasons are API: people alert on them.

/// The spec and everything it refers to are valid; the data plane uses the object.
pub const ACCEPTED: &str = "Accepted";
/// The children serve: at least one replica is ready.
pub const AVAILABLE: &str = "Available";
/// Summary: the object does what its spec says, now.
pub const READY: &str = "Ready";
/// The keys of an endpoint's own tokens are made and replaced as the spec asks.
pub const SIGNING_KEYS: &str = "SigningKeys";

/// A successor of a key is under way: replicas learn to accept it before anybody can read it.
pub const ROTATING: &str = "Rotating";
/// A key ends soon.
pub const EXPIRING: &str = "Expiring";

/// Everything is as the spec asks.
pub const REASON_READY: &str = "Ready";
/// The object is valid and in use.
pub const REASON_ACCEPTED: &str = "Accepted";
/// A field of the spec has a value that cannot work; the message names it.
pub const REASON_INVALID: &str = "Invalid";
/// A permission is not in the catalogue; the message names it.
pub const REASON_UNKNOWN_PERMISSION: &str = "UnknownPermission";
/// An object that the spec refers to does not exist; the message names it.
pub const REASON_NOT_FOUND: &str = "ReferenceNotFound";
/// The namespace does not carry the label `portcullis.dev/servers`.
pub const REASON_NAMESPACE_NOT_OPTED_IN: &str = "NamespaceNotOptedIn";
/// Somebody has asked for the object to be deleted; the message names the finalizers that it waits for.
pub const REASON_DELETING: &str = "Deleting";
/// The name of a child is taken by an object that the operator did not make.
pub const REASON_NAME_CONFLICT: &str = "NameConflict";
/// Replicas are starting; the message says how many are ready.
pub const REASON_PROGRESSING: &str = "Progressing";
/// The roles of a server would need more bindings than the operator keeps; the message says how many.
pub const REASON_TOO_MANY_BINDINGS: &str = "TooManyBindings";
/// The endpoint did not complete an MCP handshake.
pub const REASON_HANDSHAKE: &str = "HandshakeFailing";
/// A write to the cluster failed and is being tried again; the message says which.
pub const REASON_APPLY: &str = "ApplyFailing";
/// The key is switched off by `spec.enabled`.
pub const REASON_DISABLED: &str = "Disabled";
/// The key's `expiresAt` has passed.
pub const REASON_EXPIRED: &str = "Expired";
/// Not looked at yet.
pub const REASON_PENDING: &str = "Pending";
/// A replica does not take part in a rotation; the message names it.
pub const REASON_ROTATION_BLOCKED: &str = "RotationBlocked";
/// A key that is to be imported could be guessed or was published; the message says what to do.
pub const REASON_WEAK_KEY: &str = "WeakKey";
/// A key that is to be imported was revoked before.
pub const REASON_REVOKED: &str = "Revoked";
/// No successor is under way.
pub const REASON_NOT_ROTATING: &str = "NotRotating";
/// Not every ready replica accepts the successor yet; the message says how many do.
pub const REASON_WAITING_FOR_REPLICAS: &str = "WaitingForReplicas";
/// The key has no end, or one that is far away.
pub const REASON_NOT_EXPIRING: &str = "NotExpiring";
/// The key ends within seven days.
pub const REASON_WITHIN_SEVEN_DAYS: &str = "WithinSevenDays";
/// The key ends within a day.
pub const REASON_WITHIN_ONE_DAY: &str = "WithinOneDay";
