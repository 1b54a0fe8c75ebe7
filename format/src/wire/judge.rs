//! Deep checks of an encrypted repository: the server reads, and the client, who has the key, says whether
//! sealed chunks are what they should be.
//!
//! The server sends batches while a deep [`Verify`](super::message::Verify) or
//! [`Repair`](super::message::Repair) runs, several before the first is answered. Of a record that does not
//! check out without the key, the client is not asked.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::pack::{RECORD_WIRE_LEN, RecordHeader};

use super::frame::{Body, FRAME_HEADER_LEN, FrameType, close_frame};
use super::lane::records_of;

/// Longest text of a problem, in bytes.
pub const PROBLEM_LEN_MAX: u64 = 200;
/// Most problems of one batch: a sealed chunk takes more than a hundred bytes of it.
const PROBLEMS_MAX: u64 = 4096;

/// Builds a batch of records.
#[derive(Debug)]
pub struct JudgeBuilder(Vec<u8>);

impl JudgeBuilder {
    /// A batch that the answer will name by `number`.
    pub fn new(number: u32) -> Self {
        let mut frame = vec![0; FRAME_HEADER_LEN];
        frame.extend_from_slice(&number.to_le_bytes());
        Self(frame)
    }

    /// Adds a record; the caller keeps the limit of the frame, see [`JudgeBuilder::room_for`].
    pub fn push(&mut self, header: &RecordHeader, payload: &[u8]) {
        self.0.extend_from_slice(&header.encode_on_wire());
        self.0.extend_from_slice(payload);
    }

    /// Bytes of the frame that a record of `payload_len` bytes takes.
    pub const fn room_for(payload_len: usize) -> usize {
        RECORD_WIRE_LEN + payload_len
    }

    /// The frame.
    pub fn finish(mut self) -> Vec<u8> {
        close_frame(FrameType::Judge, &mut self.0);
        self.0
    }
}

/// The number of a batch, and its records.
pub type Batch<'a> = (u32, Vec<(RecordHeader, &'a [u8])>);

/// What is in the body of a [`Judge`](FrameType::Judge) frame, payloads unchecked.
///
/// # Errors
/// If the body is none.
pub fn judged_records(body: &[u8]) -> Result<Batch<'_>, DecodeError> {
    let mut reader = Reader::new("judge", body);
    let number = reader.u32()?;
    Ok((number, records_of(&mut reader)?))
}

/// The client's answer to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The batch.
    pub batch: u32,
    /// Places of records that are not what they should be, ascending, and what is wrong with them, in at
    /// most [`PROBLEM_LEN_MAX`] bytes.
    pub problems: Vec<(u32, String)>,
}

impl Body for Judged {
    const KIND: FrameType = FrameType::Judged;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.batch.to_le_bytes());
        put_varint(out, self.problems.len() as u64);
        for (place, text) in &self.problems {
            put_varint(out, u64::from(*place));
            put_string(out, text);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let batch = reader.u32()?;
        let count = reader.count("problems", PROBLEMS_MAX, 2)?;
        let mut problems: Vec<(u32, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let at = reader.clone();
            let place = reader.varint("place", u32::MAX.into())? as u32;
            if problems.last().is_some_and(|(last, _)| *last >= place) {
                return Err(at.error(Problem::NotCanonical("places do not ascend")));
            }
            problems.push((place, reader.string("problem", PROBLEM_LEN_MAX)?));
        }
        Ok(Self { batch, problems })
    }
}
