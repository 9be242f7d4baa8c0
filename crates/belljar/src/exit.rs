//! How the program ends.

use std::process::ExitCode;

/// Exit code of a run or exec that was stopped by its own time limit, as `timeout(1)` has it.
pub const TIMED_OUT: u8 = 124;
/// Added to the number of the signal that ended a program, as shells do.
pub const SIGNAL_BASE: u8 = 128;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: it did what was asked.
    Success,
    /// 1: it could not; an `error:` says why.
    Failure,
    /// 2: the command line makes no sense.
    Usage,
    /// 125: `run`, `exec` or `shell` could not, and the program in the sandbox has no exit code of its own. Another
    /// number than 1, so that scripts can tell it from the program's.
    NotRun,
    /// 127: the sandbox has no such program, as shells say it.
    NoSuchProgram,
    /// Whatever the program in the sandbox ended with.
    Program(u8),
}

impl ExitStatus {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotRun => 125,
            Self::NoSuchProgram => 127,
            Self::Program(code) => code,
        }
    }

    /// Of a program in a sandbox: its exit code, or 128 + signal.
    pub fn of_program(exit_code: Option<i32>, signal: Option<i32>) -> Self {
        match (exit_code, signal) {
            (Some(code), _) if code >= 0 => Self::Program(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            // Terminals count a signal as its negative number.
            (Some(code), _) => Self::of_signal(code.saturating_neg()),
            (None, Some(signal)) => Self::of_signal(signal),
            (None, None) => Self::NotRun,
        }
    }

    fn of_signal(signal: i32) -> Self {
        Self::Program(u8::try_from(signal).map_or(u8::MAX, |signal| SIGNAL_BASE.saturating_add(signal)))
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_pass_their_codes_on() {
        for (exit_code, signal, expected) in [
            (Some(0), None, 0),
            (Some(3), None, 3),
            (Some(256), None, 0),
            (None, Some(9), 137),
            (Some(-15), None, 143),
            (None, Some(1000), 255),
            (Some(i32::MIN), None, 255),
            (None, None, 125),
        ] {
            assert_eq!(ExitStatus::of_program(exit_code, signal).code(), expected, "{exit_code:?} {signal:?}");
        }
    }
}
