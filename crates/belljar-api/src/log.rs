//! Sandbox logs (`/v1/namespaces/{ns}/sandboxes/{ref}/logs` and `/processes`), camelCase as the clients expect.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Log levels of the wire format: 1 trace, 2 debug, 3 info, 4 warn, 5 error, 6 fatal.
pub mod level {
    /// Lines of stdout, and the sandbox's own story.
    pub const INFO: u8 = 3;
    /// Trouble that the sandbox survives.
    pub const WARN: u8 = 4;
    /// Lines of stderr, and the end of a sandbox by failure.
    pub const ERROR: u8 = 5;
}

/// One line of a sandbox's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// Nanoseconds since the epoch.
    pub timestamp: u64,
    /// A UUID: the clients refuse anything else.
    pub uuid: String,
    /// Namespace.
    pub namespace: String,
    /// Always empty.
    pub application: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// Pairs such as `["processId","3"]`.
    pub resource_attributes: Vec<(String, String)>,
    /// The line.
    pub body: String,
    /// JSON text: `{"stream":"stdout","processId":"3","pid":42}`.
    pub log_attributes: String,
    /// Always empty.
    pub allocations: Vec<String>,
    /// Always empty.
    pub function_runs: Vec<String>,
    /// See [`level`].
    pub level: u8,
    /// Days it is kept.
    pub retention: u32,
}

/// Answer of `GET .../logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogPage {
    /// Oldest first.
    pub logs: Vec<LogLine>,
    /// Where the next page begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_token: Option<String>,
}

/// A process that wrote to the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogProcess {
    /// Its handle, as text.
    pub process_id: String,
    /// Its pid, as text.
    pub process_pid: String,
    /// Program and arguments.
    pub process_command: String,
    /// Id of its supervisor, or empty.
    pub process_managed_id: String,
    /// Name of its supervisor, or empty.
    pub process_managed_name: String,
    /// Nanoseconds since the epoch of its first line.
    pub first_seen: i64,
    /// Nanoseconds since the epoch of its last line.
    pub last_seen: i64,
    /// Lines it wrote.
    pub log_count: u64,
}

/// Answer of `GET .../processes` beside `logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogProcessList {
    /// In order of their first line.
    pub processes: Vec<LogProcess>,
}
