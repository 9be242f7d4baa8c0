//! Terminals of the guest (`/api/v1/pty`).
//!
//! The WebSocket carries binary messages of at most 64 KiB; the first byte is the [`opcode`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::process::UserSpec;

/// First byte of a terminal message.
pub mod opcode {
    /// Both ways: raw terminal bytes.
    pub const DATA: u8 = 0x00;
    /// Client to guest: columns u16, rows u16, big endian.
    pub const RESIZE: u8 = 0x01;
    /// Client to guest, first message: send the replay buffer, then live output.
    pub const READY: u8 = 0x02;
    /// Guest to client: exit code i32 big endian; then close 1000 with reason `exit:<code>`.
    pub const EXIT: u8 = 0x03;
}

/// Body of `POST /api/v1/pty`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatePty {
    /// Program, looked up in `PATH`.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment on top of the image's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; the image's when absent.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User; the image's when absent.
    #[serde(default)]
    pub user: Option<UserSpec>,
    /// Height, clamped to 1..=500.
    #[serde(default = "default_rows")]
    pub rows: u16,
    /// Width, clamped to 1..=1000.
    #[serde(default = "default_cols")]
    pub cols: u16,
}

fn default_rows() -> u16 {
    24
}

fn default_cols() -> u16 {
    80
}

/// Answer of `POST /api/v1/pty`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedPty {
    /// Names the session in paths.
    pub session_id: String,
    /// 64 hex digits; needed to attach, never listed.
    pub token: String,
}

/// Body of `POST /api/v1/pty/{id}/resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResizePty {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// A terminal session, without its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PtyInfo {
    /// Names the session in paths.
    pub session_id: String,
    /// Process id of the program in the guest.
    pub pid: i64,
    /// The program.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch; null while it runs.
    pub ended_at: Option<i64>,
    /// Exit code; a signal counts as its negative number.
    pub exit_code: Option<i32>,
    /// Whether the program runs.
    pub is_alive: bool,
    /// Clients attached now.
    pub client_count: usize,
}

/// Answer of `GET /api/v1/pty`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PtyList {
    /// All sessions, oldest first.
    pub sessions: Vec<PtyInfo>,
}
