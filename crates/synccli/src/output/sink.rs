//! A stream of lines that never panics: a closed pipe silences it, any other failure is kept for the end.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Large enough that an itemized push of a whole tree costs few system calls.
const BUFFER: usize = 64 << 10;

/// A shared writer of lines.
#[derive(Clone)]
pub struct Sink(Arc<Mutex<State>>);

struct State {
    writer: Writer,
    /// Each line is wanted at once: a person is looking, or it is standard error.
    eager: bool,
    /// Nothing is written any more; the error is `None` if the reader just went away.
    ended: Option<Option<io::Error>>,
}

enum Writer {
    Stream(Box<dyn Write + Send>),
    #[cfg(test)]
    Memory(Vec<u8>),
}

impl Sink {
    /// Standard output, in blocks unless a person is looking.
    pub fn stdout() -> Self {
        let eager = io::stdout().is_terminal();
        Self::new(Writer::Stream(Box::new(BufWriter::with_capacity(BUFFER, io::stdout()))), eager)
    }

    /// Standard error, line by line.
    pub fn stderr() -> Self {
        Self::new(Writer::Stream(Box::new(io::stderr())), true)
    }

    fn new(writer: Writer, eager: bool) -> Self {
        Self(Arc::new(Mutex::new(State { writer, eager, ended: None })))
    }

    /// Writes one line. `text` must be safe for a terminal already.
    pub fn line(&self, text: &str) {
        // One write per line, so that lines of two processes on one terminal do not mix.
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Writes bytes that are whole lines.
    pub fn bytes(&self, bytes: &[u8]) {
        self.with(|state| {
            let eager = state.eager;
            let writer = state.writer.as_write();
            writer.write_all(bytes)?;
            if eager { writer.flush() } else { Ok(()) }
        });
    }

    /// Makes everything so far visible to the reader.
    pub fn flush(&self) {
        self.with(|state| state.writer.as_write().flush());
    }

    /// Whether nobody reads it any more, or it could not be written.
    pub fn is_closed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ended.is_some()
    }

    /// Flushes, and tells what went wrong on the way. A reader that went away is no error.
    ///
    /// # Errors
    /// The first failure to write, such as a full disk behind a redirection.
    pub fn finish(&self) -> io::Result<()> {
        self.flush();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.ended {
            Some(error) => error.take().map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    fn with(&self, write: impl FnOnce(&mut State) -> io::Result<()>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ended.is_some() {
            return;
        }
        if let Err(error) = write(&mut state) {
            state.ended = Some((error.kind() != io::ErrorKind::BrokenPipe).then_some(error));
        }
    }
}

impl Writer {
    fn as_write(&mut self) -> &mut dyn Write {
        match self {
            Self::Stream(stream) => stream,
            #[cfg(test)]
            Self::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
impl Sink {
    /// Keeps what is written.
    pub fn memory() -> Self {
        Self::new(Writer::Memory(Vec::new()), true)
    }

    /// What was written to [`Sink::memory`].
    pub fn text(&self) -> String {
        match &self.0.lock().unwrap().writer {
            Writer::Memory(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Writer::Stream(_) => panic!("not in memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is() {
        for (kind, fine) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let sink = Sink::new(Writer::Stream(Box::new(Failing(kind))), true);
            sink.line("one");
            sink.line("two");
            assert_eq!(sink.finish().is_ok(), fine, "{kind}");
        }
    }
}
