//! Every limit of the node, with its unit and its reason.

use std::time::Duration;

/// How long a VM may take from its start until its agent has answered. A boot takes about a second in software
/// emulation; an overloaded host stretches that.
pub(crate) const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one handshake of the link may take once the guest has answered before.
pub(crate) const RELINK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a restored VM may take until its agent has answered: it need not boot.
pub(crate) const RESTORE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the processes of a guest may take to come to rest, what they wrote included.
pub(crate) const FREEZE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a guest may take to become small before a golden snapshot; 2 s are usual in software emulation.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for one with systemd, whose agent first waits for what starts with it: three minutes at most.
pub(crate) const SYSTEM_SETTLE_TIMEOUT: Duration = Duration::from_secs(240);
/// How long a sleeping sandbox's memory is held for a quick wake, unless the configuration says otherwise.
pub(crate) const RESIDENT: Duration = Duration::from_secs(30);
/// Host memory that stays available; below it sleeping sandboxes give theirs back at once, MiB.
pub(crate) const MEMORY_RESERVE_MB: u64 = 1024;
/// Bytes of its memory that a sandbox may have changed to be woken with its changes copied in: some 10 ms of copying.
pub(crate) const CHANGES_MAX: u64 = 32 << 20;
/// Bytes of a page of guest memory.
pub(crate) const PAGE: usize = 4096;
/// Golden snapshots on a node; the one that was not used for the longest time goes first.
pub(crate) const TEMPLATES_MAX: usize = 8;
/// How long the guest of a golden snapshot is watched at once, before it is frozen.
pub(crate) const REST_WINDOW: Duration = Duration::from_millis(500);
/// The part of a processor that a guest at rest uses less than, one in so many; emulated ones use 3 % for their clock.
pub(crate) const REST_SHARE: u32 = 12;
/// A guest that reports free memory begins with that after two seconds.
pub(crate) const REST_REPORTING_WINDOWS: u32 = 6;
/// One that does not come to rest is frozen as it is.
pub(crate) const REST_WINDOWS_MAX: u32 = 30;
/// VMs that are kept ready for one golden snapshot. Each holds about 40 MiB, most of them the VMM's own.
pub(crate) const SPARES_PER_TEMPLATE: usize = 2;
/// VMs that are kept ready in all.
pub(crate) const SPARES_MAX: usize = 4;
/// VM processes that wait for a guest, in all; one of each kind. Each holds about 4 MiB.
pub(crate) const STANDBY_MAX: usize = 4;
/// Copies that one command may make.
pub(crate) const COPIES_MAX: usize = 100;
/// Snapshots that are being written at once: each takes a processor and memory for what changed.
pub(crate) const SNAPSHOT_WRITERS: usize = 2;
/// Failed snapshots that are remembered until the server has taken note.
pub(crate) const FAILED_SNAPSHOTS_MAX: usize = 1024;

/// Imports that are made at once for builds over the API. The store makes one at a time; whoever waits for it here holds no
/// thread.
pub(crate) const IMPORTS_AT_ONCE: usize = 1;
/// Imports under way and waiting: more than a server begins.
pub(crate) const IMPORTS_MAX: usize = 128;
/// Most bytes of an archive that comes out of a sandbox: more than a builder's disk holds beside the layers themselves.
pub(crate) const BUILT_ARCHIVE_MAX: u64 = 64 << 30;
/// Bytes of an image on its way into a sandbox that go at once: as much as a link takes well.
pub(crate) const GIVEN_CHUNK: usize = 256 << 10;
/// Such pieces that wait for a slow sandbox.
pub(crate) const GIVEN_CHUNKS: usize = 4;
/// Reports of an import that wait for a slow server: there are fewer in all.
pub(crate) const IMPORT_REPORTS: usize = 8;

/// Link failures within [`LINK_FAILURE_WINDOW`] after which a guest counts as broken.
pub(crate) const LINK_FAILURES_MAX: usize = 3;
/// See [`LINK_FAILURES_MAX`].
pub(crate) const LINK_FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// How long the end of a VM's process may take to be noticed after its link broke.
pub(crate) const EXIT_GRACE: Duration = Duration::from_secs(2);
/// How long the guest's agent may take to accept one connection.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection waits for a sandbox that wakes, before its client is told to try again.
pub(crate) const WAKE_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes per direction and proxied connection that the node holds; bounds its memory.
pub(crate) const SPLICE_BUFFER: usize = 128 * 1024;
/// Commands that wait for one sandbox's task.
pub(crate) const MAILBOX: usize = 16;
/// Commands that wait for a sandbox to run: more than a server sends before it hears of one.
pub(crate) const DEFERRED_MAX: usize = 64;
/// Reports that a slow server connection may lag behind before it is told everything again.
pub(crate) const REPORT_LAG: usize = 1024;
/// Sandboxes on one node, running or just ended.
pub(crate) const SANDBOXES_MAX: usize = 10_000;
/// Proxied connections at once, over all sandboxes.
pub(crate) const CONNECTIONS_MAX: usize = 3_800;
/// Pause between two pings of a server that is not in this process.
pub(crate) const SERVER_PING: Duration = Duration::from_secs(30);
/// How long a server may take to answer a ping before its connection counts as dead.
pub(crate) const SERVER_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// First and last pause before the server is dialled again.
pub(crate) const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// First and last pause before a clean-up that failed is tried again.
pub(crate) const UNDO_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// Bytes in each direction of a connection to a server in the same process: as a socket's buffer, some of the largest frames.
pub(crate) const PIPE: usize = 256 * 1024;
/// Streams of the connection to the server at once: every proxied connection, and the server's own requests.
pub(crate) const H2_STREAMS_MAX: u32 = 4_000;
/// HTTP/2 window of one stream from the server, bytes: what is held here for a guest that does not read.
pub(crate) const H2_STREAM_WINDOW: u32 = 512 * 1024;
/// The same for the connection: a window for each stream. With less, a few guests that do not read would stop all
/// others, and the server's commands. Memory is taken by what waits, not by the window.
pub(crate) const H2_CONNECTION_WINDOW: u32 = H2_STREAMS_MAX * H2_STREAM_WINDOW;
/// Networks of all nodes of a host: each takes two of the 65536 addresses that lead to them.
pub(crate) const NETWORKS_MAX: u32 = 32 * 1024;
/// Networks that are made ahead: a create and a wake or two at once wait for none.
pub(crate) const NETWORKS_READY: usize = 3;
/// How long work for the next sandboxes waits for those that are being started: a start takes less, and there may always be one.
pub(crate) const CALM_PATIENCE: Duration = Duration::from_secs(4);
/// How long after a start the machine is left to whoever waited for it.
pub(crate) const CALM_AFTER: Duration = Duration::from_secs(1);
/// Connections of one sandbox that the kernel keeps track of at once, unless somebody wants something else.
pub(crate) const NETWORK_CONNECTIONS: u32 = 8 * 1024;
/// How long the proxy of a sandbox waits for one address of a host.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that one sandbox may begin in a second, unless somebody wants something else.
pub(crate) const NETWORK_NEW_PER_SECOND: u32 = 500;
/// Bytes that one `nft` process is told before another one takes its place: it keeps them all in memory.
pub(crate) const NFT_INPUT: usize = 1024 * 1024;
/// How long the reader of a log waits for what the kernel has noted last.
pub(crate) const TELL_PATIENCE: Duration = Duration::from_secs(1);
/// Characters of what a program wrote that an error message quotes.
pub(crate) const PROGRAM_OUTPUT: usize = 500;
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
/// Most bytes of all secrets in one request of the server: as many as there may be, each as long as it may be.
pub(crate) const CREDENTIALS_MAX: usize = 32 * 1024 * 1024;
/// What a caller may keep beside a snapshot, bytes: a command's specification fits with room to spare.
pub(crate) const SNAPSHOT_METADATA_MAX: usize = 2 * COMMAND_MAX;
/// Largest manifest, bytes: a terabyte in scattered chunks. More is not read back.
pub(crate) const SNAPSHOT_MANIFEST_MAX: usize = 256 * 1024 * 1024;
/// Largest flat file in a snapshot, bytes: the numbers of its chunks stay within 32 bits.
pub(crate) const SNAPSHOT_PART_MAX: u64 = 16 << 40;
/// Threads that hash and compress one snapshot: the sandboxes need the other cpus.
pub(crate) const SNAPSHOT_THREADS: usize = 2;
/// Level of zstd. A snapshot has to be durable soon; higher levels take twice the time to save a few percent.
pub(crate) const SNAPSHOT_ZSTD_LEVEL: i32 = 1;
/// Packs that a snapshot may need before they are compacted: each costs a file to open and read in pieces.
pub(crate) const SNAPSHOT_PACKS_MAX: usize = 8;

/// Files that the answer of one diff names.
pub(crate) const DIFF_ENTRIES_MAX: usize = 10_000;
/// Files that one diff looks at, over both disks: bounds its memory.
pub(crate) const DIFF_WALK_MAX: usize = 4_000_000;
/// How long one diff may take: a client waits for it.
pub(crate) const DIFF_TIMEOUT: Duration = Duration::from_secs(25);
/// Diffs at once: each takes a cpu.
pub(crate) const DIFFS_MAX: usize = 2;
/// Live chunks that one compaction step moves, bytes: what has to be free for it.
pub(crate) const SNAPSHOT_COMPACT_STEP: u64 = 1024 * 1024 * 1024;
/// Unpacked snapshots that are kept, bytes: a few dozen of an ordinary sandbox.
pub(crate) const SNAPSHOT_CACHE_MAX: u64 = 16 * 1024 * 1024 * 1024;

const _: () =
    assert!(SNAPSHOT_PART_MAX / 4096 <= u32::MAX as u64 + 1 && SNAPSHOT_THREADS > 0 && SNAPSHOT_PACKS_MAX > 1);
const _: () = assert!(LINK_FAILURES_MAX > 0 && (LOG_LINE_MAX as u64) < LOG_BYTES_MAX);

/// How often a link is made again that breaks before anything was said on it, and how long after the first time; each pause is
/// twice as long as the last: 0.6 s in all. A guest that breaks each one costs no more.
pub(crate) const LINK_RETRIES: u32 = 6;
pub(crate) const LINK_RETRY_FIRST: Duration = Duration::from_millis(10);
