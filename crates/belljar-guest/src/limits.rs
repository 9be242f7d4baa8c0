//! Every limit of the agent, with its unit and its reason. A sandbox's owner may be careless and its programs hostile:
//! nothing in the agent grows without one of these.

use std::time::Duration;

/// Processes that run at once, started through the API (they may start as many of their own as the kernel lets them).
pub(crate) const PROCESSES_RUNNING_MAX: usize = 1024;
/// Ended processes that are still listed, so that a client can come back for the exit code and the output.
pub(crate) const PROCESSES_ENDED_MAX: usize = 256;

/// Bytes of output kept per process; older lines are dropped and counted.
pub(crate) const OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of output kept over all processes: beyond it every process keeps [`OUTPUT_BYTES_SQUEEZED`].
pub(crate) const OUTPUT_TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes that a process may keep when the total is used up.
pub(crate) const OUTPUT_BYTES_SQUEEZED: usize = 64 * 1024;
/// What a line costs beside its text, bytes: empty lines must not be free.
pub(crate) const LINE_OVERHEAD: usize = 64;
/// Longest line, bytes; a longer one is split.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes read from a pipe or terminal at once: the capacity of a pipe.
pub(crate) const READ_CHUNK: usize = 64 * 1024;
/// Bytes of events sent at once to a follower.
pub(crate) const FOLLOW_CHUNK: usize = 64 * 1024;
/// How long a pipe that outlives its process must be quiet before the run counts as ended.
pub(crate) const DRAIN_QUIET: Duration = Duration::from_millis(50);
/// How long a pipe that outlives its process may go on in all before the run counts as ended.
pub(crate) const DRAIN_MAX: Duration = Duration::from_millis(250);
/// Pause between two comments on a silent event stream: clients and proxies take silence for death.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a managed process has between SIGTERM and SIGKILL.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(10);
/// Longest `timeout` of a run, seconds: a year. Longer is a mistake.
pub(crate) const RUN_TIMEOUT_MAX_SECS: f64 = 366.0 * 24.0 * 3600.0;
/// Shortest pause between two starts or two health checks, whatever a request says: no busy loop.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest name of a managed process, characters.
pub(crate) const MANAGED_NAME_MAX: usize = 128;
/// Orders that wait for a supervisor; further ones wait outside.
pub(crate) const ORDERS_MAX: usize = 8;
/// Bytes of an answer that an http health check reads: the status line.
pub(crate) const HEALTH_ANSWER_MAX: usize = 512;

/// Lines of the log sent at once.
pub(crate) const LOG_BATCH: usize = 256;
/// Wall clock error that is left alone while programs look at the clock: what is promised, and more than the way of the
/// request itself adds on a busy host.
pub(crate) const CLOCK_DRIFT_MAX: Duration = Duration::from_millis(50);
/// The same while nobody looks at it, before processes run or run again.
pub(crate) const CLOCK_DRIFT_STOPPED_MAX: Duration = Duration::from_millis(2);
/// How long processes may take to stop: one that waits for the disk stops when that has answered.
pub(crate) const FREEZE_PATIENCE: Duration = Duration::from_secs(3);
/// Processes that a failed freeze names.
pub(crate) const STUCK_NAMED_MAX: usize = 3;
/// Bytes of an answer of the kernel about sockets: it fills at most this.
pub(crate) const NETLINK_BUFFER: usize = 32 * 1024;
/// How long the kernel may take for such an answer, seconds; it has it at once.
pub(crate) const NETLINK_PATIENCE_SECS: i64 = 1;
/// Memory that stays untouched when free memory is zeroed, bytes: the kernel's own reserves, and then some.
pub(crate) const SETTLE_MARGIN: u64 = 48 * 1024 * 1024;
/// Memory that is zeroed at once, bytes: between two looks at how much is left.
pub(crate) const SETTLE_STEP: usize = 16 * 1024 * 1024;
/// How long zeroing may take in all. Of a large memory most was never used, and is zeros already.
pub(crate) const SETTLE_ZERO_MAX: Duration = Duration::from_secs(10);
/// How long systemd and all that it starts may take before a golden snapshot; half a minute in software emulation.
pub(crate) const SYSTEM_UP_MAX: Duration = Duration::from_secs(180);
/// How long the program that warms the guest may take.
pub(crate) const WARM_UP_MAX: Duration = Duration::from_secs(5);

/// Lines kept for `GET /v1/logs`.
pub(crate) const LOG_LINES_MAX: usize = 20_000;
/// Bytes kept for `GET /v1/logs`.
pub(crate) const LOG_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest line of the log, bytes.
pub(crate) const LOG_LINE_MAX: usize = 16 * 1024;
/// Longest command of the log, characters.
pub(crate) const LOG_COMMAND_MAX: usize = 256;

/// Bytes read from a file at once.
pub(crate) const FILE_CHUNK: usize = 256 * 1024;
/// Bytes of an upload that are written at once, two such blocks for each: few enough for many uploads, enough that the
/// work per write does not show.
pub(crate) const UPLOAD_BLOCK: usize = 512 * 1024;
/// What disks want blocks aligned to in memory, bytes: a page satisfies all.
pub(crate) const UPLOAD_ALIGNMENT: usize = 4096;
/// Entries of a directory that are listed; more is an error rather than an endless answer.
pub(crate) const DIRECTORY_ENTRIES_MAX: usize = 100_000;
/// Symbolic links followed for one path: the kernel's own limit.
pub(crate) const SYMLINKS_MAX: usize = 40;
/// Archives packed or unpacked at once: each holds a thread for as long as it takes.
pub(crate) const ARCHIVES_MAX: usize = 8;
/// Chunks between the archive thread and the connection.
pub(crate) const ARCHIVE_QUEUE: usize = 4;

/// How long a terminal has between SIGHUP and SIGKILL.
pub(crate) const PTY_STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a terminal lives without a client.
pub(crate) const PTY_IDLE: Duration = Duration::from_secs(300);
/// How long an ended terminal is still listed and replayed.
pub(crate) const PTY_DEAD_KEPT: Duration = Duration::from_secs(60);
/// Terminals in all, those that ended included: bounds what a loop of short ones keeps.
pub(crate) const PTY_LISTED_MAX: usize = 2 * belljar_api::limits::PTY_SESSIONS_MAX;
/// Clients of one terminal.
pub(crate) const PTY_CLIENTS_MAX: usize = 16;
/// Pause between two pings of a terminal's client.
pub(crate) const PTY_PING: Duration = Duration::from_secs(30);
/// A client that sends nothing, not even a pong, for this long is gone.
pub(crate) const PTY_SILENCE_MAX: Duration = Duration::from_secs(95);
/// A client that holds the program up for this long is cut off.
pub(crate) const PTY_STALL_MAX: Duration = Duration::from_secs(30);

/// Bytes of one message of an attached program, beside its first.
pub(crate) const EXEC_CHUNK: usize = 32 * 1024;
/// How long a client may take to say what to run.
pub(crate) const EXEC_START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may take to close the connection of a program that has ended.
pub(crate) const EXEC_GOODBYE: Duration = Duration::from_secs(5);
/// Longest SFTP packet, bytes: OpenSSH's own limit, and the memory that one request takes.
pub(crate) const SFTP_PACKET_MAX: usize = 256 * 1024;
/// Bytes of a file in one SFTP answer or request: a packet's, less what stands around them.
pub(crate) const SFTP_DATA_MAX: usize = SFTP_PACKET_MAX - 1024;
/// Open files and directories of one SFTP client.
pub(crate) const SFTP_HANDLES_MAX: usize = 512;
/// Entries of a directory in one SFTP answer.
pub(crate) const SFTP_NAMES: usize = 128;
/// How long the client of a reverse tunnel may take to reach its service.
pub(crate) const REVERSE_ANSWER: Duration = Duration::from_secs(30);
/// Pause after a failed accept: it fails for want of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of each direction's buffer of a forwarded port.
pub(crate) const SPLICE_BUFFER: usize = 32 * 1024;
/// How long a local connection may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of the link served at once.
pub(crate) const STREAMS_MAX: usize = 1024;

/// Threads for file work; they are made on demand and go away when idle.
pub(crate) const BLOCKING_THREADS_MAX: usize = 32;
/// Stack of such a thread, bytes: packing an archive needs little.
pub(crate) const THREAD_STACK: usize = 512 * 1024;
/// How long the root device and the link's port may take to appear.
pub(crate) const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// Open files of a process unless it asks for more: what most distributions' services get.
pub(crate) const OPEN_FILES_SOFT: u64 = 65_536;
/// Open files that a process can ask for: the kernel's own limit.
pub(crate) const OPEN_FILES_HARD: u64 = 1_048_576;
/// Stack of a child before it executes, bytes: a few system calls.
pub(crate) const CHILD_STACK: usize = 32 * 1024;

const _: () = assert!(PROCESSES_RUNNING_MAX * OUTPUT_BYTES_SQUEEZED <= OUTPUT_TOTAL_BYTES_MAX);
const _: () = assert!(LINE_BYTES_MAX >= LOG_LINE_MAX && OUTPUT_BYTES_SQUEEZED >= LINE_BYTES_MAX);
const _: () = assert!(UPLOAD_BLOCK.is_multiple_of(UPLOAD_ALIGNMENT));
const _: () = assert!(EXEC_CHUNK < belljar_api::limits::WS_MESSAGE_MAX);
const _: () = assert!(READ_CHUNK < belljar_api::limits::PTY_REPLAY_BYTES);

/// Bytes of a refused upload that are read and thrown away before the answer; who sends more sees the connection close.
pub(crate) const REFUSED_BODY_MAX: usize = 1024 * 1024 * 1024;
