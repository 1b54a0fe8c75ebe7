//! One request: what is done to the disk, and the reply.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use undercroft_format::nbd::extents::StatusExtent;
use undercroft_format::nbd::server::negotiation::Opened;
use undercroft_format::nbd::server::replies::{
    put_data_header, put_end, put_error, put_hole, put_simple, put_status,
};
use undercroft_format::nbd::server::requests::Request;
use undercroft_format::nbd::wire::{Command, CommandFlags, Errno, STATE_HOLE, STATE_ZERO};
use undercroft_format::units::DiskRange;

use super::disk::{Disk, ZeroFlags};
use super::reply::{Buffers, Reply};

/// Most extents of one answer: clients ask again for the rest.
const EXTENTS_MAX: usize = 4096;
/// Reads from this length on are answered with holes where there are some: below it pays to send zeros.
const HOLES_FROM: u32 = 64 << 10;
/// Reads from this length on go to buffers of their own.
const BUFFERED_FROM: usize = 32 << 10;
/// Most parts of one reply to a read.
const PARTS_MAX: usize = 128;
/// What CACHE reads at once, and at most.
const CACHE_STEP: u64 = 1 << 20;
const CACHE_MAX: u64 = 32 << 20;

/// What requests of a connection are served with.
pub(super) struct Worker {
    pub disk: Disk,
    pub opened: Opened,
    pub buffers: Arc<Buffers>,
}

/// Serves `request`, with the bytes that it brought, and gives the reply.
pub(super) fn serve(worker: &Worker, request: &Request, payload: &[u8]) -> Reply {
    let served = catch_unwind(AssertUnwindSafe(|| attempt(worker, request, payload)));
    let error = match served {
        Ok(Ok(reply)) => return reply,
        Ok(Err(error)) => error,
        Err(_) => io::Error::other("the request met a bug of ours"),
    };
    let Request {
        command,
        offset,
        len,
        ..
    } = *request;
    tracing::warn!(%command, offset, len, "a request failed: {}", chain(&error));
    let mut reply = Vec::new();
    let (errno, text) = (errno_of(&error), error.to_string());
    let structured = worker.opened.structured;
    put_error(&mut reply, structured, request.cookie, errno, &text, None);
    Reply::new(reply)
}

fn attempt(worker: &Worker, request: &Request, payload: &[u8]) -> io::Result<Reply> {
    let disk = &worker.disk;
    let range = DiskRange::new(request.offset, request.offset + u64::from(request.len));
    match request.command {
        Command::Read => return read(worker, request, range),
        Command::BlockStatus => return status(disk, request, range),
        Command::Cache => cache(disk, range),
        Command::Write => disk.write()?.write_at(range.start, payload)?,
        Command::WriteZeroes => {
            let may_punch = !request.flags.contains(CommandFlags::NO_HOLE);
            disk.write()?.write_zeros(range, ZeroFlags { may_punch })?;
        }
        Command::Trim => disk.write()?.trim(range)?,
        Command::Flush => flush(disk)?,
        Command::Disconnect | Command::Other(_) => return Err(io::ErrorKind::InvalidInput.into()),
    }
    if request.flags.contains(CommandFlags::FUA) {
        flush(disk)?;
    }
    let mut reply = Vec::new();
    put_simple(&mut reply, request.cookie);
    Ok(Reply::new(reply))
}

fn flush(disk: &Disk) -> io::Result<()> {
    match disk {
        Disk::ReadOnly(_) => Ok(()),
        Disk::Writable(disk) => disk.flush(),
    }
}

fn read(worker: &Worker, request: &Request, range: DiskRange) -> io::Result<Reply> {
    let (cookie, len) = (request.cookie, request.len);
    let mut reply = Reply::default();
    let in_one = request.flags.contains(CommandFlags::DF);
    if !worker.opened.structured {
        put_simple(reply.message(), cookie);
    } else if len == 0 {
        put_end(reply.message(), cookie);
    } else if len >= HOLES_FROM && !in_one {
        return read_parts(worker, request, range);
    } else {
        put_data_header(reply.message(), true, cookie, range.start, len);
    }
    append(worker, range, &mut reply)?;
    Ok(reply)
}

/// Appends the bytes of `range`.
fn append(worker: &Worker, range: DiskRange, reply: &mut Reply) -> io::Result<()> {
    let (disk, len) = (worker.disk.read(), range.len() as usize);
    if range.is_empty() {
        return Ok(());
    }
    if len < BUFFERED_FROM {
        let message = reply.message();
        let start = message.len();
        message.resize(start + len, 0);
        return disk.read_at(range.start, &mut message[start..]);
    }
    let mut buffer = worker.buffers.take(len);
    disk.read_at(range.start, buffer.as_mut())?;
    reply.add(buffer);
    Ok(())
}

fn read_parts(worker: &Worker, request: &Request, range: DiskRange) -> io::Result<Reply> {
    let cookie = request.cookie;
    let mut reply = Reply::default();
    let mut at = range.start;
    for part in worker.disk.read().allocation(range, PARTS_MAX)? {
        let hole = part.range.intersect(DiskRange::new(at, range.end));
        if part.is_data || hole.is_empty() {
            continue;
        }
        let before = DiskRange::new(at, hole.start);
        if !before.is_empty() {
            let len = before.len() as u32;
            put_data_header(reply.message(), false, cookie, before.start, len);
            append(worker, before, &mut reply)?;
        }
        let is_last = hole.end == range.end;
        let len = hole.len() as u32;
        put_hole(reply.message(), is_last, cookie, hole.start, len);
        at = hole.end;
    }
    let rest = DiskRange::new(at, range.end);
    if !rest.is_empty() {
        let len = rest.len() as u32;
        put_data_header(reply.message(), true, cookie, rest.start, len);
        append(worker, rest, &mut reply)?;
    }
    Ok(reply)
}

fn status(disk: &Disk, request: &Request, range: DiskRange) -> io::Result<Reply> {
    let extents_max = match request.flags.contains(CommandFlags::REQ_ONE) {
        true => 1,
        false => EXTENTS_MAX,
    };
    let known = disk.read().allocation(range, extents_max)?;
    let extents: Vec<_> = known
        .iter()
        .map(|part| part.range.intersect(range))
        .zip(&known)
        .filter(|(part, _)| !part.is_empty())
        .map(|(part_range, part)| StatusExtent {
            len: part_range.len() as u32,
            state: match part.is_data {
                true => 0,
                false => STATE_HOLE | STATE_ZERO,
            },
        })
        .collect();
    if extents.is_empty() {
        return Err(io::Error::other("nothing is known of the range"));
    }
    let mut reply = Vec::new();
    put_status(&mut reply, request.cookie, &extents);
    Ok(Reply::new(reply))
}

/// Reads ahead. What fails is told to whoever reads it.
fn cache(disk: &Disk, range: DiskRange) {
    let end = range.end.min(range.start + CACHE_MAX);
    let mut buffer = vec![0; CACHE_STEP.min(end - range.start) as usize];
    let mut at = range.start;
    while at < end {
        let len = CACHE_STEP.min(end - at) as usize;
        if disk.read().read_at(at, &mut buffer[..len]).is_err() {
            return;
        }
        at += len as u64;
    }
}

fn errno_of(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Errno::NoSpace
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Errno::Perm,
        io::ErrorKind::OutOfMemory => Errno::NoMemory,
        io::ErrorKind::Unsupported => Errno::NotSupported,
        io::ErrorKind::InvalidInput => Errno::Invalid,
        _ => Errno::Io,
    }
}

fn chain(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}
