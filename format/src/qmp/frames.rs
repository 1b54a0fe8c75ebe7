//! Where one message of a monitor's stream ends and the next begins.
//!
//! QEMU sends a message per line, but spread over many with `-qmp-pretty`: what ends a message is the brace
//! that closes its object.

use serde_json::Value;

use super::QmpError;

/// Longest message, in bytes. The schema, the longest answer there is, has about 300 KiB.
pub const MESSAGE_LEN_MAX: usize = 64 << 20;

/// Cuts a stream into JSON objects.
#[derive(Debug)]
pub struct Frames {
    limit: usize,
    bytes: Vec<u8>,
    /// How far `bytes` was looked at.
    scanned: usize,
    /// Braces and brackets that are open there.
    depth: usize,
    in_string: bool,
    after_backslash: bool,
    /// Where `bytes` begins in the stream.
    offset: u64,
}

/// A message and where it stood in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Its first byte's place.
    pub offset: u64,
    /// The object.
    pub value: Value,
}

impl Default for Frames {
    fn default() -> Self {
        Self::new(MESSAGE_LEN_MAX)
    }
}

impl Frames {
    /// The beginning of a stream whose messages have at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: Vec::new(),
            scanned: 0,
            depth: 0,
            in_string: false,
            after_backslash: false,
            offset: 0,
        }
    }

    /// Takes what came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, once it is complete.
    ///
    /// # Errors
    /// A message that is too long, or no JSON object.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, QmpError> {
        if self.depth == 0 && self.scanned == 0 {
            self.begin()?;
        }
        while self.scanned < self.bytes.len() {
            let byte = self.bytes[self.scanned];
            self.scanned += 1;
            if self.ends_with(byte) {
                return self.take().map(Some);
            }
            if self.scanned > self.limit {
                return Err(QmpError::TooLong {
                    offset: self.offset,
                    limit: self.limit,
                });
            }
        }
        Ok(None)
    }

    /// Passes over what stands between messages.
    fn begin(&mut self) -> Result<(), QmpError> {
        let spaces = self
            .bytes
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace());
        self.drop_first(spaces.count());
        match self.bytes.first() {
            None | Some(b'{') => Ok(()),
            Some(found) => Err(QmpError::NoObject {
                offset: self.offset,
                found: *found,
            }),
        }
    }

    /// Looks at one more byte: true if it closes the object.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.after_backslash => self.after_backslash = false,
                b'\\' => self.after_backslash = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    fn take(&mut self) -> Result<Frame, QmpError> {
        let offset = self.offset;
        let value = serde_json::from_slice(&self.bytes[..self.scanned]).map_err(|error| {
            QmpError::Json {
                offset,
                problem: error.to_string(),
            }
        })?;
        self.drop_first(self.scanned);
        Ok(Frame { offset, value })
    }

    fn drop_first(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.offset += count as u64;
        self.scanned = 0;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all(frames: &mut Frames) -> Result<Vec<Value>, QmpError> {
        let mut found = Vec::new();
        while let Some(frame) = frames.next_frame()? {
            found.push(frame.value);
        }
        Ok(found)
    }

    #[test]
    fn pieces_of_any_size_come_to_the_same() {
        let text = "\r\n{\"a\": \"}\\\"{\\\\\"}\r\n{\n  \"b\": [{}, \"]\"]\n}{\"c\":1}";
        let expected = [
            json!({"a": "}\"{\\"}),
            json!({"b": [{}, "]"]}),
            json!({"c": 1}),
        ];
        for cut in 1..text.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                frames.feed(piece);
                found.extend(all(&mut frames).expect("messages"));
            }
            assert_eq!(found, expected, "pieces of {cut} bytes");
        }
    }

    #[test]
    fn what_is_no_message_is_refused_with_its_place() {
        let refused = |text: &str| {
            let mut frames = Frames::new(16);
            frames.feed(text.as_bytes());
            all(&mut frames).expect_err(text)
        };
        assert_eq!(
            refused("{} \nnot QMP"),
            QmpError::NoObject {
                offset: 4,
                found: b'n'
            }
        );
        assert!(matches!(
            refused("{}{\"a\":}"),
            QmpError::Json { offset: 2, .. }
        ));
        assert!(matches!(refused("{]"), QmpError::Json { offset: 0, .. }));
        let long = QmpError::TooLong {
            offset: 3,
            limit: 16,
        };
        assert_eq!(refused("{} {\"a\": \"0123456789"), long);
        // Deep nesting is refused by the parser, before the stack ends.
        let mut frames = Frames::default();
        frames.feed("{\"a\":".repeat(10_000).as_bytes());
        frames.feed("}".repeat(10_000).as_bytes());
        assert!(matches!(frames.next_frame(), Err(QmpError::Json { .. })));
    }
}
