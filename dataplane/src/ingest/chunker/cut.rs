//! What the chunker says about a run of bytes.

/// A piece of the input, with its length in bytes; never empty.
///
/// Pieces come in address order and cover the input exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// All zero. Two of them are never neighbours.
    Zero(u32),
    /// A chunk.
    Data(u32),
}

impl Cut {
    /// Bytes covered, never 0.
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Zero(len) | Self::Data(len) => len as usize,
        }
    }
}

/// Appends pieces to a list, zeros that follow each other as one.
pub(super) struct CutList<'a> {
    cuts: &'a mut Vec<Cut>,
    zero_len: u32,
}

impl<'a> CutList<'a> {
    pub(super) fn new(cuts: &'a mut Vec<Cut>) -> Self {
        Self { cuts, zero_len: 0 }
    }

    pub(super) fn zero(&mut self, len: u32) {
        self.zero_len += len;
    }

    /// A chunk of `len` bytes; none if that is 0.
    pub(super) fn data(&mut self, len: u32) {
        if len > 0 {
            self.flush();
            self.cuts.push(Cut::Data(len));
        }
    }

    pub(super) fn finish(mut self) {
        self.flush();
    }

    fn flush(&mut self) {
        if self.zero_len > 0 {
            self.cuts.push(Cut::Zero(self.zero_len));
            self.zero_len = 0;
        }
    }
}
