//! Attached programs of the guest (`GET /api/v1/exec`, a WebSocket): every byte of their input and output as it is, with
//! backpressure both ways. They live as long as the connection: when it goes, a program with a terminal loses that, and
//! one without gets SIGHUP.
//!
//! Messages are binary and the first byte is the [`opcode`]. The client begins with one START; the guest answers STARTED
//! or REFUSED.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::process::UserSpec;

/// First byte of a message.
pub mod opcode {
    /// Client to guest, once, first: [`StartExec`](super::StartExec) as JSON.
    pub const START: u8 = 0x00;
    /// Client to guest: bytes for stdin, or typed into the terminal.
    pub const STDIN: u8 = 0x01;
    /// Client to guest: no more input. A terminal has no such end and does not notice.
    pub const STDIN_END: u8 = 0x02;
    /// Client to guest: columns u16, rows u16, big endian.
    pub const RESIZE: u8 = 0x03;
    /// Client to guest: a signal's number, u8, for the program's process group. It comes after the input before it.
    pub const SIGNAL: u8 = 0x04;
    /// Guest to client: the process id, u32 big endian; 0 where there is no process.
    pub const STARTED: u8 = 0x10;
    /// Guest to client: bytes of stdout, or of the terminal.
    pub const STDOUT: u8 = 0x11;
    /// Guest to client: bytes of stderr.
    pub const STDERR: u8 = 0x12;
    /// Guest to client, after all output: [`ExecExit`](super::ExecExit) as JSON; then close 1000.
    pub const EXIT: u8 = 0x13;
    /// Guest to client instead of STARTED: an `ErrorBody` as JSON; then close 1000.
    pub const REFUSED: u8 = 0x14;
}

/// What START asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartExec {
    /// What to run.
    #[serde(default)]
    pub program: ExecProgram,
    /// Environment on top of the image's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; the image's when absent.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User; the image's when absent.
    #[serde(default)]
    pub user: Option<UserSpec>,
    /// Gives the program a terminal of this size; without, it has three pipes.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
}

/// What an attached program is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecProgram {
    /// The user's shell, as after a login.
    #[default]
    Login,
    /// A command line for the user's shell.
    Line(String),
    /// The agent's SFTP server, with the user's rights.
    Sftp,
}

/// A terminal's size; each side is clamped to what a terminal can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TerminalSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// How an attached program ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecExit {
    /// Its exit code, when it ended by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended it for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
}
