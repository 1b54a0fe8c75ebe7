//! Bytes from a thread of their own: what waits for a network, or costs CPU time, runs beside the reader.
//!
//! A few buffers go round between the two, which is all the memory it takes.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::clock::Stopwatch;

/// Bytes handed over at once.
const BUFFER_LEN: usize = 512 << 10;
/// Buffers that go round.
const BUFFERS: usize = 4;
/// How often a wait looks whether it should go on.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How long to wait for bytes.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tells whether the user asked to stop.
    pub is_stopping: fn() -> bool,
    /// Longest silence; `None` for a source that ends by itself.
    pub silence_max: Option<Duration>,
}

/// The reading end.
pub struct Pump {
    filled: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    taken: usize,
    patience: Patience,
    is_over: bool,
}

impl Pump {
    /// Starts a thread called `name` that reads `source` to its end. Dropping the pump ends it with its next
    /// buffer.
    ///
    /// # Errors
    /// The system can start no thread.
    pub fn start(
        name: &str,
        mut source: Box<dyn Read + Send>,
        patience: Patience,
    ) -> io::Result<Self> {
        let (filled_sender, filled) = bounded(BUFFERS);
        let (empty, empty_receiver) = bounded(BUFFERS);
        for _ in 0..BUFFERS {
            let _ = empty.send(Vec::new());
        }
        let pump = move || {
            for mut buffer in empty_receiver {
                buffer.resize(BUFFER_LEN, 0);
                let read = read_some(&mut *source, &mut buffer);
                let is_last = !matches!(read, Ok(1..));
                let read = read.map(|got| {
                    buffer.truncate(got);
                    buffer
                });
                if filled_sender.send(read).is_err() || is_last {
                    return;
                }
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(pump)?;
        Ok(Self {
            filled,
            empty,
            current: Vec::new(),
            taken: 0,
            patience,
            is_over: false,
        })
    }

    /// The next buffer; an empty one at the end.
    fn next(&self) -> io::Result<Vec<u8>> {
        let waited = Stopwatch::start();
        loop {
            match self.filled.recv_timeout(LOOK_EVERY) {
                Ok(read) => return read,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the thread that reads it is gone"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if (self.patience.is_stopping)() {
                return Err(io::Error::other("stopped on request"));
            }
            if let Some(longest) = self.patience.silence_max
                && waited.elapsed() > longest
            {
                let text = format!("nothing came for {} seconds", longest.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    }
}

/// Fills most of a buffer, so that small reads do not become small hand-overs.
fn read_some(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() / 2 {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl BufRead for Pump {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.current.len() && !self.is_over {
            let next = self.next()?;
            self.is_over = next.is_empty();
            self.taken = 0;
            // The thread may be gone already.
            let _ = self.empty.send(std::mem::replace(&mut self.current, next));
        }
        Ok(&self.current[self.taken..])
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount;
    }
}

impl Read for Pump {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let len = available.len().min(buffer.len());
        buffer[..len].copy_from_slice(&available[..len]);
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENT: Patience = Patience {
        is_stopping: || false,
        silence_max: None,
    };

    #[test]
    fn all_bytes_come_in_order() {
        let bytes: Vec<u8> = (0..3 * BUFFER_LEN + 17)
            .map(|at| (at % 251) as u8)
            .collect();
        let source = io::Cursor::new(bytes.clone());
        let mut pump = Pump::start("pump", Box::new(source), PATIENT).unwrap();
        let mut read = Vec::new();
        pump.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        assert_eq!(pump.read(&mut [0]).unwrap(), 0, "the end stays the end");
    }

    #[test]
    fn errors_come_after_what_was_read() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Ok(buffer.len()),
                    _ => Err(io::ErrorKind::ConnectionReset.into()),
                }
            }
        }
        let mut pump = Pump::start("pump", Box::new(Broken(0)), PATIENT).unwrap();
        let mut read = Vec::new();
        let error = pump.read_to_end(&mut read).unwrap_err();
        assert_eq!(
            (error.kind(), read.len()),
            (io::ErrorKind::ConnectionReset, BUFFER_LEN)
        );
    }

    #[test]
    fn silence_ends_and_so_does_patience() {
        struct Silent;
        impl Read for Silent {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_secs(2));
                Ok(0)
            }
        }
        let impatient = Patience {
            silence_max: Some(Duration::from_millis(100)),
            ..PATIENT
        };
        let mut pump = Pump::start("pump", Box::new(Silent), impatient).unwrap();
        let error = pump.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let stopping = Patience {
            is_stopping: || true,
            ..PATIENT
        };
        let mut pump = Pump::start("pump", Box::new(Silent), stopping).unwrap();
        let error = pump.read(&mut [0]).unwrap_err().to_string();
        assert!(error.contains("stopped"), "{error}");
    }
}
