//! How a run ends: the documented exit codes.

use std::process::ExitCode;

/// The documented exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Every destination is identical and durable; or the command did what it was asked.
    Done,
    /// Some entry or some destination failed, and each was named on standard error.
    Failed,
    /// The arguments make no sense; nothing was touched.
    Usage,
    /// Something differs, and the caller wanted to see that in the exit code.
    Differs,
    /// SIGINT.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Exit {
    /// The number the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Differs => 3,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command ended early.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code it asks for.
    pub exit: Exit,
    /// What failed and why; safe on a terminal.
    pub message: String,
}

impl Failure {
    /// A mistake in what was asked for; nothing was touched.
    pub fn usage(message: impl ToString) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }

    /// Something that went wrong on the way.
    pub fn failed(message: impl ToString) -> Self {
        Self { exit: Exit::Failed, message: message.to_string() }
    }
}
