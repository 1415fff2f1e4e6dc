//! The daemon on this machine, asked over its control socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use sync_core::control::{MAX_REPLY, Order, Reply, Request, SOCKET};
use sync_core::path::escape;

use crate::exit::Failure;

/// What a daemon answers to one request.
pub struct Answers {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// What has come of a line whose end has not.
    line: Vec<u8>,
}

/// Asks the daemon whose state directory this is.
///
/// # Errors
/// None runs, or this user may not ask it.
pub fn ask(state_dir: &Path, order: Order) -> Result<Answers, Failure> {
    let socket = state_dir.join(SOCKET);
    let place = escape(socket.as_os_str().as_encoded_bytes());
    let stream = connect(state_dir).map_err(|error| {
        Failure::failed(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                "no syncd runs with the state directory {}: start one (`syncd --config FILE`, or `systemctl start syncd`), \
                 or name the one it uses with --state-dir",
                escape(state_dir.as_os_str().as_encoded_bytes())
            ),
            io::ErrorKind::PermissionDenied => format!("cannot ask syncd at {place}: {error}; run this as its user, or as root"),
            _ => format!("cannot ask syncd at {place}: {error}"),
        })
    })?;
    let failed = |error: io::Error| Failure::failed(format!("cannot ask syncd at {place}: {error}"));
    let mut request = serde_json::to_vec(&Request::from(order)).map_err(|error| Failure::failed(error.to_string()))?;
    request.push(b'\n');
    (&stream).write_all(&request).map_err(failed)?;
    let lines = BufReader::new(stream.try_clone().map_err(failed)?);
    Ok(Answers { stream, lines, line: Vec::new() })
}

fn connect(state_dir: &Path) -> io::Result<UnixStream> {
    // The path of a socket is at most 107 bytes: this is one, whatever the directory's is.
    let dir = rustix::fs::open(state_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET))
}

impl Answers {
    /// Waits for the next reply, at most so long: `None` if there was none by then. What says that it failed is a failure
    /// here.
    ///
    /// # Errors
    /// The daemon could not do it, or it ended meanwhile.
    pub fn next(&mut self, patience: Option<Duration>) -> Result<Option<Reply>, Failure> {
        // Zero would be no limit.
        let patience = patience.map(|patience| patience.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(patience).map_err(|error| Failure::failed(format!("syncd: {error}")))?;
        let room = (MAX_REPLY - self.line.len().min(MAX_REPLY)) as u64;
        match (&mut self.lines).take(room).read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {}
            Ok(_) => return Err(Failure::failed("syncd ended before it was done; see its log")),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(Failure::failed(format!("syncd: {error}"))),
        }
        let reply = serde_json::from_slice(&self.line);
        self.line.clear();
        match reply {
            Ok(Reply::Failed { reason }) => Err(Failure::failed(reason)),
            Ok(reply) => Ok(Some(reply)),
            Err(error) => {
                let text =
                    format!("syncd says what this synccli does not understand ({error}): use those of one release");
                Err(Failure::failed(text))
            }
        }
    }

    /// The next reply, however long it takes.
    ///
    /// # Errors
    /// As [`Answers::next`].
    pub fn reply(&mut self) -> Result<Reply, Failure> {
        loop {
            if let Some(reply) = self.next(None)? {
                return Ok(reply);
            }
        }
    }
}
