//! What clients are answered: headers and whole messages, to which the shell adds bytes of the disk.

use super::negotiation::ALLOCATION_CONTEXT;
use crate::nbd::extents::StatusExtent;
use crate::nbd::wire::{
    CHUNK_BLOCK_STATUS, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_FLAG_DONE, CHUNK_LEN, CHUNK_MAGIC,
    CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, Cookie, Errno, SIMPLE_REPLY_LEN,
    SIMPLE_REPLY_MAGIC, STRING_LEN_MAX,
};

/// Bytes before the bytes of the disk, at most.
pub const DATA_HEADER_MAX: usize = CHUNK_LEN + 8;
/// Bytes before the bytes of the disk in a simple reply.
pub const SIMPLE_HEADER_LEN: usize = SIMPLE_REPLY_LEN;

/// Appends the answer that a request without bytes is done, or the header of a simple reply to a read, whose
/// bytes follow. Not for reads and block status where structured replies were agreed on.
pub fn put_simple(out: &mut Vec<u8>, cookie: Cookie) {
    simple(out, cookie, 0);
}

/// Appends the answer that a request failed. `offset` is where on the export.
pub fn put_error(
    out: &mut Vec<u8>,
    structured: bool,
    cookie: Cookie,
    errno: Errno,
    text: &str,
    offset: Option<u64>,
) {
    if !structured {
        return simple(out, cookie, errno.code());
    }
    let text = &text.as_bytes()[..text.floor_char_boundary(STRING_LEN_MAX)];
    let (kind, tail) = match offset {
        Some(_) => (CHUNK_ERROR_OFFSET, 8),
        None => (CHUNK_ERROR, 0),
    };
    chunk(out, true, kind, cookie, (6 + text.len() + tail) as u32);
    out.extend_from_slice(&errno.code().to_be_bytes());
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
    if let Some(offset) = offset {
        out.extend_from_slice(&offset.to_be_bytes());
    }
}

/// Appends the header of a chunk with `len` bytes of the disk from `offset` on, which follow.
pub fn put_data_header(out: &mut Vec<u8>, is_last: bool, cookie: Cookie, offset: u64, len: u32) {
    chunk(out, is_last, CHUNK_OFFSET_DATA, cookie, len + 8);
    out.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a chunk that says that `len` bytes from `offset` on are zeros.
pub fn put_hole(out: &mut Vec<u8>, is_last: bool, cookie: Cookie, offset: u64, len: u32) {
    chunk(out, is_last, CHUNK_OFFSET_HOLE, cookie, 12);
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends the end of a structured reply.
pub fn put_end(out: &mut Vec<u8>, cookie: Cookie) {
    chunk(out, true, CHUNK_NONE, cookie, 0);
}

/// Appends the answer to a request for block status. `extents` begin where the request does.
pub fn put_status(out: &mut Vec<u8>, cookie: Cookie, extents: &[StatusExtent]) {
    let len = 4 + extents.len() * 8;
    chunk(out, true, CHUNK_BLOCK_STATUS, cookie, len as u32);
    out.extend_from_slice(&ALLOCATION_CONTEXT.to_be_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.len.to_be_bytes());
        out.extend_from_slice(&extent.state.to_be_bytes());
    }
}

fn simple(out: &mut Vec<u8>, cookie: Cookie, error: u32) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
}

fn chunk(out: &mut Vec<u8>, is_last: bool, kind: u16, cookie: Cookie, len: u32) {
    let flags = if is_last { CHUNK_FLAG_DONE } else { 0 };
    out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}
