//! Every limit of the node, with its unit and its reason.

use std::time::Duration;

/// How long a VM may take from its start until its agent has answered. A boot takes about a second in software
/// emulation; an overloaded host stretches that.
pub(crate) const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one handshake of the link may take once the guest has answered before.
pub(crate) const RELINK_TIMEOUT: Duration = Duration::from_secs(20);
/// Link failures within [`LINK_FAILURE_WINDOW`] after which a guest counts as broken.
pub(crate) const LINK_FAILURES_MAX: usize = 3;
/// See [`LINK_FAILURES_MAX`].
pub(crate) const LINK_FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// How long the end of a VM's process may take to be noticed after its link broke.
pub(crate) const EXIT_GRACE: Duration = Duration::from_secs(2);
/// How long the guest's agent may take to accept one connection.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes per direction and proxied connection that the node holds; bounds its memory.
pub(crate) const SPLICE_BUFFER: usize = 128 * 1024;
/// Commands that wait for one sandbox's task.
pub(crate) const MAILBOX: usize = 16;
/// Reports that a slow server connection may lag behind before it is told everything again.
pub(crate) const REPORT_LAG: usize = 1024;
/// Sandboxes on one node, running or just ended.
pub(crate) const SANDBOXES_MAX: usize = 10_000;
/// Proxied connections at once, over all sandboxes.
pub(crate) const CONNECTIONS_MAX: usize = 20_000;
/// First and last pause before the server is dialled again.
pub(crate) const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// First and last pause before a clean-up that failed is tried again.
pub(crate) const UNDO_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// HTTP/2 windows towards the server: one stream must not be able to starve the others.
pub(crate) const H2_STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// See [`H2_STREAM_WINDOW`].
pub(crate) const H2_CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Bytes of console output that an error message quotes.
pub(crate) const CONSOLE_QUOTE: usize = 1024;
/// Free bytes below which no sandbox is made: its neighbours need what is left.
pub(crate) const FREE_DISK_MIN: u64 = 256 * 1024 * 1024;
/// Bytes of one sandbox's log on the host; the older half goes when it is full.
pub(crate) const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest line that the guest's log stream may send, bytes of JSON.
pub(crate) const LOG_LINE_MAX: usize = 256 * 1024;
/// How long the log of an ended sandbox is kept, days.
pub(crate) const LOG_RETENTION_DAYS: u32 = 7;
/// Most lines in one answer of the log API.
pub(crate) const LOG_PAGE: usize = 1000;
/// Largest body of a guest's system API answer, bytes.
pub(crate) const SYSTEM_ANSWER_MAX: usize = 64 * 1024;
/// Largest command body from the server, bytes.
pub(crate) const COMMAND_MAX: usize = 4 * 1024 * 1024;

const _: () = assert!(LINK_FAILURES_MAX > 0 && (LOG_LINE_MAX as u64) < LOG_BYTES_MAX);
