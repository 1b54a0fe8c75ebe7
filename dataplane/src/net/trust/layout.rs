//! Names of the files of trust.

/// The authority's directory within a store, beside the repositories, none of which can have the name.
pub const DIRECTORY: &str = "trust";
/// The authority's certificate and key.
pub(super) const AUTHORITY: &str = "authority";
/// Its server's certificate and key.
pub(super) const SERVER: &str = "server";
/// Tokens and identities.
pub(super) const REGISTRY: &str = "registry";
/// The latest time ever seen.
pub(super) const TIME: &str = "time";
/// Whoever changes the files holds a lock on this one.
pub(super) const LOCK: &str = "lock";
/// A client's certificate, key and the authority that it trusts.
pub(super) const IDENTITY: &str = "identity";
/// A client's key whose certificate was asked for and has not arrived yet.
pub(super) const PENDING: &str = "pending";
