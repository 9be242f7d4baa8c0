//! Processes of the guest (`/api/v1/processes`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who a process runs as: `"name"`, `"1000"`, `"1000:1000"`, `{"uid":1000,"gid":1000}` or `{"name":"x"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum UserSpec {
    /// `name`, `uid` or `uid:gid`.
    Text(String),
    /// By number; the group defaults to the user's own, or to the uid.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        #[serde(default)]
        gid: Option<u32>,
    },
    /// By name.
    Name {
        /// A name in the guest's `/etc/passwd`.
        name: String,
    },
}

/// What a process reads from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    Closed,
    /// A pipe that `POST .../stdin` writes to.
    Pipe,
}

/// Where a process's output goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Kept, followed and logged.
    #[default]
    Capture,
    /// `/dev/null`.
    Discard,
}

/// When a managed process starts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Not.
    #[default]
    Never,
    /// After a non-zero exit or a signal.
    OnFailure,
    /// After every end.
    Always,
}

/// Restart rule of a managed process; every field may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Restart {
    /// When.
    pub policy: RestartPolicy,
    /// How often in all; null is without end.
    pub max_restarts: Option<u32>,
    /// First pause, milliseconds; doubles each time.
    pub initial_backoff_ms: u64,
    /// Longest pause, milliseconds.
    pub max_backoff_ms: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self { policy: RestartPolicy::Never, max_restarts: None, initial_backoff_ms: 500, max_backoff_ms: 30_000 }
    }
}

/// How health is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheckType {
    /// `GET path` answers 2xx or 3xx.
    Http,
    /// A connection is accepted.
    Tcp,
}

/// Health check of a managed process on 127.0.0.1 of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// How.
    #[serde(rename = "type")]
    pub kind: HealthCheckType,
    /// Port.
    pub port: u16,
    /// Path of an http check; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Pause before the first, milliseconds.
    #[serde(default = "health::initial_delay")]
    pub initial_delay_ms: u64,
    /// Pause between two, milliseconds.
    #[serde(default = "health::interval")]
    pub interval_ms: u64,
    /// Longest wait for one, milliseconds.
    #[serde(default = "health::timeout")]
    pub timeout_ms: u64,
    /// Failures in a row that make it unhealthy, which restarts it where the policy says so.
    #[serde(default = "health::threshold")]
    pub failure_threshold: u32,
}

mod health {
    pub(super) fn initial_delay() -> u64 {
        5000
    }
    pub(super) fn interval() -> u64 {
        1000
    }
    pub(super) fn timeout() -> u64 {
        500
    }
    pub(super) fn threshold() -> u32 {
        3
    }
}

/// Body of `POST /api/v1/processes`. With `name`, `restart` or `health_check` the process is *managed*.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct StartProcess {
    /// Program: a path, or a name looked up in `PATH`.
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
    /// Stdin.
    #[serde(default)]
    pub stdin_mode: StdinMode,
    /// Stdout.
    #[serde(default)]
    pub stdout_mode: OutputMode,
    /// Stderr.
    #[serde(default)]
    pub stderr_mode: OutputMode,
    /// User; the image's when absent.
    #[serde(default)]
    pub user: Option<UserSpec>,
    /// Name of a managed process: not empty, no `/`, not all digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Restart rule of a managed process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Health check of a managed process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// Body of `POST /api/v1/processes/run`: stdin closed, both outputs captured.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct RunProcess {
    /// Program: a path, or a name looked up in `PATH`.
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
    /// Seconds after which it is killed; `timeout_secs` is read too.
    #[serde(default, alias = "timeout_secs", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// User; the image's when absent.
    #[serde(default)]
    pub user: Option<UserSpec>,
}

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProcessStatus {
    /// It runs.
    Running,
    /// It ended by itself.
    Exited,
    /// A signal ended it.
    Signaled,
    /// The kernel ended it for want of memory.
    OomKilled,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Number of the process in this sandbox, never used again.
    pub handle: i64,
    /// Process id in the guest.
    pub pid: i64,
    /// How it stands.
    pub status: ProcessStatus,
    /// Exit code, when it exited.
    pub exit_code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended it for want of memory.
    pub oom_killed: bool,
    /// Whether `POST .../stdin` works.
    pub stdin_writable: bool,
    /// The program.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Milliseconds since the epoch.
    pub started_at: i64,
    /// Milliseconds since the epoch; null while it runs.
    pub ended_at: Option<i64>,
    /// Set for a managed process.
    pub managed: Option<ManagedInfo>,
}

/// How a managed process's supervisor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManagedStatus {
    /// Being started.
    Starting,
    /// Running.
    Running,
    /// Ended; starts again after a pause.
    BackingOff,
    /// Ended for good.
    Stopped,
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// There is no check.
    Disabled,
    /// No answer yet.
    Starting,
    /// It answers.
    Healthy,
    /// It failed `failure_threshold` times in a row.
    Unhealthy,
}

/// How a managed process ended last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastExit {
    /// Exit code, when it exited.
    pub exit_code: Option<i32>,
    /// Signal, when one ended it.
    pub signal: Option<i32>,
    /// Whether the kernel ended it for want of memory.
    pub oom_killed: bool,
    /// Milliseconds since the epoch.
    pub ended_at: i64,
}

/// The managed part of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ManagedInfo {
    /// Id of the supervisor; stays over restarts.
    pub id: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How the supervisor stands.
    pub status: ManagedStatus,
    /// Restarts so far.
    pub restart_count: u32,
    /// The rule, whole.
    pub restart: Restart,
    /// The check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What it says.
    pub health_status: HealthStatus,
    /// Failures in a row.
    pub consecutive_health_failures: u32,
    /// The last end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<LastExit>,
    /// Why it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Milliseconds since the epoch, while backing off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_restart_at: Option<i64>,
}

/// Answer of `GET /api/v1/processes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessList {
    /// All that run, and the last that ended.
    pub processes: Vec<ProcessInfo>,
}

/// Body of `POST /api/v1/processes/{p}/signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SendSignal {
    /// Signal number, 1 to 64.
    pub signal: i32,
}

/// Answer of `POST /api/v1/processes/{p}/signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignalSent {
    /// Always true.
    pub success: bool,
}

/// Answer of `GET /api/v1/processes/{p}/stdout|stderr|output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputLines {
    /// The process.
    pub pid: i64,
    /// Lines without their newline.
    pub lines: Vec<String>,
    /// How many there are in `lines`.
    pub line_count: usize,
    /// Lines older than the kept ones; an addition of ours.
    #[serde(default)]
    pub dropped: u64,
}

/// Which pipe a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Stdout.
    Stdout,
    /// Stderr.
    Stderr,
}

/// `data:` of a `run` or `follow` event, tried in this order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum RunEvent {
    /// A line, without its newline.
    Line {
        /// The text; bytes that are not UTF-8 are replaced.
        line: String,
        /// Milliseconds since the epoch.
        timestamp: i64,
        /// Which pipe; absent on `stdout/follow` and `stderr/follow`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stream: Option<OutputStream>,
        /// Number of the line in the process's output, from 0: what `?offset=` takes. An addition of ours.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
    },
    /// The first event of `run`.
    Started {
        /// See [`ProcessInfo::handle`].
        handle: i64,
        /// Process id in the guest.
        pid: i64,
        /// Milliseconds since the epoch.
        started_at: i64,
    },
    /// The last event of `run`.
    Ended {
        /// Exit code, when it exited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// Signal, when one ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Whether the kernel ended it for want of memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oom_killed: Option<bool>,
        /// `exited`, `signaled`, `oom_killed` or `timed_out`.
        reason: String,
    },
    /// `{}` after the last line of `follow`.
    Eof {},
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, expected: RunEvent) {
        assert_eq!(serde_json::from_str::<RunEvent>(json).expect(json), expected);
    }

    #[test]
    fn run_events_are_told_apart_by_their_fields() {
        check(
            r#"{"handle":1,"pid":42,"started_at":1710000000000}"#,
            RunEvent::Started { handle: 1, pid: 42, started_at: 1_710_000_000_000 },
        );
        check(
            r#"{"line":"hello","timestamp":1710,"stream":"stdout"}"#,
            RunEvent::Line { line: "hello".into(), timestamp: 1710, stream: Some(OutputStream::Stdout), offset: None },
        );
        check(
            r#"{"exit_code":0,"reason":"exited"}"#,
            RunEvent::Ended { exit_code: Some(0), signal: None, oom_killed: None, reason: "exited".into() },
        );
        check("{}", RunEvent::Eof {});
    }

    #[test]
    fn users_are_read_in_every_form() {
        for (json, expected) in [
            (r#""bob""#, UserSpec::Text("bob".into())),
            (r#""1000:1000""#, UserSpec::Text("1000:1000".into())),
            (r#"{"uid":1000,"gid":5}"#, UserSpec::Ids { uid: 1000, gid: Some(5) }),
            (r#"{"name":"bob"}"#, UserSpec::Name { name: "bob".into() }),
        ] {
            assert_eq!(serde_json::from_str::<UserSpec>(json).expect(json), expected);
        }
    }
}
