//! What travels between a proxy and a repository server: frames, messages, and the books both ends keep.
//!
//! A QUIC stream carries one conversation: frames one after the other, questions answered in the order in
//! which they were asked. The first frame of a stream says what kind of conversation it is.
//! `docs/protocol.md` shows the same byte by byte, with the reasons.
//!
//! - [`frame`]: the header of every frame, its type, and the longest body of each type
//! - [`message`]: all messages as one type, for what treats them alike
//! - [`hello`]: versions, capabilities, limits; opening a repository
//! - [`session`]: a session from begin to commit; [`ledger`]: what the server remembers of it
//! - [`lane`]: the streams that carry a session's data: questions, records, finished segments
//! - [`mod@reference`]: what a session's reference holds, in few bytes
//! - [`fetch`]: records by id
//! - [`snapshots`]: the roots: list, read, hold, forget, protect, lock
//! - [`upkeep`]: long work with progress, figures, what an administrator asks; [`judge`]: what takes the key
//! - [`proxy`]: what is said to a proxy; [`task`]: what it is to do; [`books`]: what it remembers of that
//! - [`failure`]: what went wrong at the other end

pub mod books;
pub mod failure;
pub mod fetch;
pub mod frame;
pub mod hello;
pub mod judge;
pub mod lane;
pub mod ledger;
pub mod message;
pub mod proxy;
pub mod reference;
pub mod session;
pub mod snapshots;
pub mod task;
pub mod upkeep;

/// Version of the protocol.
pub const VERSION: u16 = 1;
/// The protocol's name in the TLS handshake (ALPN, RFC 7301).
pub const ALPN: &[u8] = b"undercroft/1";
