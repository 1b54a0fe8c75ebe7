//! What enrolment sends and keeps: tokens, messages, and the names, roles and scopes in them.
//!
//! docs/trust.md has the formats and the reasons. Certificates and keys are bytes here; what is done with
//! them is in the crate `undercroft-dataplane`, under `net::trust`.

pub mod envelope;
pub mod fingerprint;
pub mod message;
pub mod name;
pub mod pattern;
pub mod refusal;
pub mod role;
pub mod scope;
pub mod serial;
pub mod time;
pub mod token;
