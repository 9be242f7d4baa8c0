//! Every limit of the server, with its unit and its reason.

use std::time::Duration;

/// Longest a create blocks when the client names no time: the published clients' own request timeout.
pub(crate) const CREATE_WAIT_DEFAULT: Duration = Duration::from_secs(300);
/// Longest a create blocks, whatever the client asks for: a connection is not held for ever.
pub(crate) const CREATE_WAIT_MAX: Duration = Duration::from_secs(600);
/// Longest that a suspend, a resume or a snapshot is waited for: the published clients ask for 30 s.
pub(crate) const STATE_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long a proxied request waits for a sandbox that boots, before the client is told to replay it. Below the
/// 30 s for which the published clients replay.
pub(crate) const READY_WAIT: Duration = Duration::from_secs(20);

/// Live sandboxes of one server: bounds the memory of the route table.
pub(crate) const LIVE_SANDBOXES_MAX: u64 = 50_000;
/// Most rows of one page.
pub(crate) const PAGE_MAX: usize = 1000;
/// Rows of an archive page when the client names no number.
pub(crate) const PAGE_DEFAULT: usize = 100;
/// Snapshots in all: bounds a node's account.
pub(crate) const SNAPSHOTS_MAX: u64 = 20_000;
/// Most copies that one request makes.
pub(crate) const COPIES_MAX: usize = 100;
/// How long an idempotency key is remembered.
pub(crate) const COPY_REQUEST_TTL: Duration = Duration::from_secs(24 * 3600);
/// Idempotency keys that are remembered at once.
pub(crate) const COPY_REQUESTS_MAX: u64 = 100_000;
/// Longest idempotency key, in characters.
pub(crate) const IDEMPOTENCY_KEY_MAX: usize = 255;
/// Image builds under way, waiting ones included: each holds a stream of its node open.
pub(crate) const BUILDS_MAX: u64 = 64;
/// How long a build that is over is remembered, and its idempotency key with it.
pub(crate) const BUILD_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Builds that are over and remembered; of more, those that ended last.
pub(crate) const BUILDS_KEPT_MAX: u64 = 1000;
/// Longest image name of a build, in characters: what nodes take.
pub(crate) const IMAGE_NAME_MAX: usize = 128;
/// Longest image reference of a build, in bytes: a registry, a name, a tag and a digest.
pub(crate) const IMAGE_REF_MAX: usize = 1024;
/// Longest registry credentials of a build, in bytes: a `config.json` with dozens of registries.
pub(crate) const REGISTRY_CREDENTIALS_MAX: usize = 256 * 1024;
/// First pause before a build's end is noted again that the store could not take; it doubles.
pub(crate) const BUILD_END_RETRY_FIRST: Duration =
    if cfg!(test) { Duration::from_millis(10) } else { Duration::from_secs(1) };
/// Longest such pause.
pub(crate) const BUILD_END_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a cancellation waits until it is known what came of it: a node answers at once.
pub(crate) const CANCEL_WAIT: Duration = Duration::from_secs(60);
/// Most bytes of the context of a build.
pub(crate) const CONTEXT_BYTES_MAX: u64 = 2 << 30;
/// Most bytes of the contexts of all builds under way.
pub(crate) const CONTEXTS_BYTES_MAX: u64 = 8 << 30;
/// How long the upload of a context may stand still.
pub(crate) const CONTEXT_STALL: Duration = Duration::from_secs(60);
/// How long a build waits for its context.
pub(crate) const CONTEXT_WAIT: Duration = Duration::from_secs(30 * 60);
/// Largest Dockerfile, in bytes: those that programs write have some hundred KiB.
pub(crate) const DOCKERFILE_BYTES_MAX: u64 = 1 << 20;
/// Build arguments of a build, and secrets.
pub(crate) const BUILD_ARGS_MAX: usize = 256;
/// Longest of them, in bytes: what a command line takes.
pub(crate) const BUILD_VALUE_MAX: usize = 64 * 1024;
/// How long a Dockerfile may take to build, from the builder's start on.
pub(crate) const BUILD_TIME_MAX: Duration = Duration::from_secs(2 * 3600);
/// Processors of a builder, unless the request says otherwise.
pub(crate) const BUILDER_CPUS: f64 = 2.0;
/// MiB of its memory.
pub(crate) const BUILDER_MEMORY_MB: u64 = 4096;
/// MiB of its disk.
pub(crate) const BUILDER_DISK_MB: u64 = 20480;
/// MiB of its memory that the steps do not get: for its kernel and its agent.
pub(crate) const BUILDER_RESERVE_MB: u64 = 256;
/// Processes and threads of all steps: a compiler on every processor, and no end in sight of what forks endlessly.
pub(crate) const BUILDER_PIDS_MAX: u32 = 2048;
/// How long a build waits until there is room for its builder, and until that is up.
pub(crate) const BUILDER_WAIT: Duration = Duration::from_secs(10 * 60);
/// After which idle time a builder ends by itself: more than its snapshot takes.
pub(crate) const BUILDER_IDLE: Duration = Duration::from_secs(30 * 60);
/// How long a builder stays when its build is over: clients look every 3 s, and read its log then.
pub(crate) const BUILDER_LINGER: Duration = Duration::from_secs(15);
/// Failed attempts in a row to read a builder's log before that counts as lost.
pub(crate) const BUILDER_RETRIES: u32 = 5;
/// Largest answer of a builder's agent, in bytes.
pub(crate) const BUILDER_ANSWER_MAX: usize = 1 << 20;
/// Longest line that a builder writes, in bytes, as it comes: its agent cuts longer ones.
pub(crate) const BUILDER_LINE_MAX: usize = 4 << 20;
/// Most bytes of what a short program in a builder writes.
pub(crate) const BUILDER_OUTPUT_MAX: usize = 1 << 20;
/// How full a builder's disk may be, in per cent, to be kept for the next build: that needs room, too.
pub(crate) const BUILD_CACHE_FULL_PERCENT: u32 = 60;
/// How long a snapshot of a builder is waited for.
pub(crate) const BUILD_CACHE_WAIT: Duration = Duration::from_secs(15 * 60);
/// Pools in all: every one is looked at when one changes.
pub(crate) const POOLS_MAX: u64 = 1000;
/// Most sandboxes of one pool.
pub(crate) const POOL_CONTAINERS_MAX: u32 = 1000;
/// How long a pool rests after a start that failed; doubles with each further one.
pub(crate) const POOL_PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest such rest.
pub(crate) const POOL_PAUSE_MAX: Duration = Duration::from_secs(300);
/// A failed start counts with the one before it only when that was not longer ago.
pub(crate) const POOL_FORGET: Duration = Duration::from_secs(900);
/// API keys in all: the cache holds every one of them.
pub(crate) const KEYS_MAX: u64 = 10_000;
/// SSH keys in all: the cache holds every one of them.
pub(crate) const SSH_KEYS_MAX: u64 = 10_000;
/// Longest line of a public SSH key, bytes: RSA keys of 16384 bits take less than 3 KiB.
pub(crate) const SSH_KEY_BYTES_MAX: usize = 8 * 1024;
/// Smallest RSA key that is taken, bits.
pub(crate) const SSH_RSA_BITS_MIN: u32 = 2048;
/// Largest RSA key that is taken, bits: OpenSSH's own limit; a larger one makes each login slow.
pub(crate) const SSH_RSA_BITS_MAX: u32 = 16_384;
/// An SSH key's last use is noted when it is so much older than now: a write per minute, and not per connection.
pub(crate) const SSH_TOUCH: Duration = Duration::from_secs(60);

/// SSH connections at once.
pub(crate) const SSH_CONNECTIONS_MAX: usize = 512;
/// Of these, how many may be without a key: further ones are closed at once.
pub(crate) const SSH_PENDING_MAX: usize = 64;
/// How long a connection may be without a key.
pub(crate) const SSH_LOGIN_GRACE: Duration = Duration::from_secs(60);
/// Signatures that may fail in one connection.
pub(crate) const SSH_AUTH_TRIES: usize = 6;
/// Keys that a connection may ask about; agents hold a dozen.
pub(crate) const SSH_OFFERS_MAX: usize = 32;
/// A client that is silent for so long is asked whether it is there…
pub(crate) const SSH_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// …and so many times; then it is gone: an open session keeps a sandbox awake.
pub(crate) const SSH_KEEP_ALIVE_TRIES: usize = 3;
/// How long a client may take to hang up after it was told to go.
pub(crate) const SSH_GOODBYE: Duration = Duration::from_secs(2);
/// Bytes that a channel's client may send before the sandbox has taken them: the memory of a channel that is not read.
pub(crate) const SSH_WINDOW: u32 = 512 * 1024;
/// Bytes of one packet's data.
pub(crate) const SSH_PACKET: u32 = 32 * 1024;
/// Channels of one connection.
pub(crate) const SSH_CHANNELS_MAX: usize = 128;
/// Ports of the sandbox that one connection may have forwarded to its client.
pub(crate) const SSH_FORWARDS_MAX: usize = 16;
/// How long a sandbox may take to listen on one: a wake fits in, and the connection stands still for so long.
pub(crate) const SSH_FORWARD_PATIENCE: Duration = Duration::from_secs(10);
/// Environment variables of one channel.
pub(crate) const SSH_ENV_MAX: usize = 128;
/// Bytes of their names and values.
pub(crate) const SSH_ENV_BYTES_MAX: usize = 64 * 1024;
/// Signals and new window sizes of a channel that wait to be sent on; further ones are dropped.
pub(crate) const SSH_CONTROLS: usize = 16;
/// Longest label of a key, in characters.
pub(crate) const KEY_NAME_MAX: usize = 100;

/// Client connections at once, all listeners together: below the usual limit on open files.
pub(crate) const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take to send a request's head, the idle time before it included. Above the 90 s for which
/// the published clients keep an idle connection, so that they and not we close it.
pub(crate) const HEADER_READ_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(100) };
/// How long a client may take for the TLS handshake.
pub(crate) const TLS_HANDSHAKE_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(15) };
/// Orders of certificates that are under way at once: ACME servers limit them, and each is a conversation.
pub(crate) const ACME_ORDERS_MAX: usize = 4;
/// Names that wait for an order or have one under way; those of further sandboxes get none for now.
pub(crate) const ACME_WAITING_MAX: usize = 64;
/// Certificates and failures that are remembered; the others lie on the disk.
pub(crate) const ACME_CERTIFICATES_MAX: usize = 1000;
/// How long a name rests after an order that failed; doubles with each further one. Let's Encrypt takes five failures of a
/// name in an hour.
pub(crate) const ACME_RETRY_FIRST: Duration =
    if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(300) };
/// Longest such rest.
pub(crate) const ACME_RETRY_MAX: Duration =
    if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(12 * 3600) };
/// The wall clock is looked at when it was not for so long: a certificate's end is a time of day.
pub(crate) const ACME_CLOCK_CHECK: Duration = Duration::from_secs(24 * 3600);
/// How long the ACME server may take for one answer.
pub(crate) const ACME_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// First pause before the ACME server is asked whether it is done.
pub(crate) const ACME_POLL_FIRST: Duration = Duration::from_millis(250);
/// How long it may take to look at a proof, or to make the certificate.
pub(crate) const ACME_PATIENCE: Duration = Duration::from_secs(120);
/// How long the DNS hook may take: it waits until the record is seen.
pub(crate) const ACME_HOOK_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of what a failed hook wrote that are logged.
pub(crate) const ACME_HOOK_WORDS_MAX: usize = 1000;
/// How long open connections may go on after the shutdown began.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// A client that is silent for this long is asked whether it is still there…
pub(crate) const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);
/// …again after this pause…
pub(crate) const KEEP_ALIVE_PAUSE: Duration = Duration::from_secs(5);
/// …and so many times; then it is gone: an open connection keeps a sandbox awake.
pub(crate) const KEEP_ALIVE_TRIES: u32 = 3;
/// The same for one to which bytes were sent that it does not acknowledge.
pub(crate) const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// How long a client may leave lying what it asked for. The kernel counts less for a whole connection; this is for one stream
/// of several, which has to wait for its turn.
pub(crate) const CLIENT_READ_STALL: Duration =
    if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(60) };
/// Pause after the operating system refused to accept a connection: it is out of descriptors, and spinning does not help.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests that one HTTP/2 connection has under way at once.
pub(crate) const CLIENT_STREAMS_MAX: u32 = 100;
/// Flow-control window of one request of an HTTP/2 client, and of a gRPC call's answer from a guest, bytes: what may
/// wait here for a reader that stands still.
pub(crate) const CLIENT_STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a connection: one such window each, so that a request that stands still stops no other.
pub(crate) const CLIENT_CONNECTION_WINDOW: u32 = CLIENT_STREAMS_MAX * CLIENT_STREAM_WINDOW;
/// Bytes of one HTTP/2 stream that wait to be written; more only adds delay.
pub(crate) const STREAM_SEND_BUFFER: usize = 256 * 1024;
/// Longest head of a request or of a guest's answer, bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most header lines of a request or of a guest's answer.
pub(crate) const HEADERS_MAX: usize = 128;

/// Jobs that wait for the store's thread; a full queue makes the next caller wait.
pub(crate) const STORE_QUEUE: usize = 256;
/// Most jobs in one transaction: bounds how long the first of them waits for its answer.
pub(crate) const STORE_BATCH: usize = 64;
/// How long SQLite waits for another process's lock.
pub(crate) const STORE_BUSY: Duration = Duration::from_secs(5);

/// Flow-control window of one stream to a node, bytes: what is held here for a client that does not read.
pub(crate) const NODE_STREAM_WINDOW: u32 = 512 * 1024;
/// Flow-control window of a node connection, bytes: a window for each stream that there can be, or as many clients that
/// do not read would stop all others, and the reports. Memory is taken by what waits, not by the window.
pub(crate) const NODE_CONNECTION_WINDOW: u32 = NODE_STREAMS_MAX * NODE_STREAM_WINDOW;
/// Streams of one node connection at once; beyond it a request is refused.
pub(crate) const NODE_STREAMS_MAX: u32 = 4000;
/// Pause between two pings of a node connection.
pub(crate) const NODE_PING: Duration = Duration::from_secs(30);
/// How long a node may take to answer a ping before its connection counts as dead.
pub(crate) const NODE_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a node may take for one answer.
pub(crate) const NODE_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long whoever changes a sandbox's network waits for the new rules to hold.
pub(crate) const SETTINGS_WAIT: Duration = Duration::from_secs(10);
/// How long a node may take for an answer that reads or cleans its disk.
pub(crate) const NODE_WORK_TIMEOUT: Duration = Duration::from_secs(280);
/// Most bytes of a node's answer: a page of logs.
pub(crate) const NODE_ANSWER_MAX: usize = 32 * 1024 * 1024;
/// Longest report line, bytes.
pub(crate) const REPORT_LINE_MAX: usize = 64 * 1024;
/// Sandboxes and snapshots that one node may report: no node is that large.
pub(crate) const NODE_REPORTS_MAX: usize = 50_000;
/// Pause before a command is repeated that the node could not take just now.
pub(crate) const COMMAND_RETRY: Duration = Duration::from_secs(1);
/// Commands read from the outbox at once.
pub(crate) const OUTBOX_BATCH: usize = 64;
/// Image names remembered per node connection.
pub(crate) const IMAGE_NAMES_MAX: usize = 1000;

/// How long an unused guest connection is kept. Short, because a node counts an open connection as activity, and idle
/// timeouts are to hold to the second.
pub(crate) const GUEST_IDLE: Duration = Duration::from_millis(500);
/// Unused guest connections kept per sandbox: as many as a busy service has requests under way at once.
pub(crate) const GUEST_IDLE_MAX: usize = 64;
/// How long the guest may keep a request without a byte in either direction before its answer begins.
pub(crate) const GUEST_ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a client that has begun a body may leave the guest waiting for the rest, before the answer begins.
pub(crate) const CLIENT_BODY_STALL: Duration =
    if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(60) };
/// Answers of the kind "not yet" (1xx) that a guest may send to one request.
pub(crate) const INTERIM_ANSWERS_MAX: usize = 16;
/// How long opening a connection to a guest port may take: longer than a node lets it wait for a sandbox that wakes (15 s), and
/// for its agent after that, or nobody would hear why it did not.
pub(crate) const GUEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(25);
/// Buffer of each direction of a spliced connection, bytes.
pub(crate) const SPLICE_BUFFER: usize = 64 * 1024;

const _: () = assert!(CREATE_WAIT_DEFAULT.as_secs() <= CREATE_WAIT_MAX.as_secs());
const _: () = assert!(POOL_PAUSE_MAX.as_secs() < POOL_FORGET.as_secs());
const _: () = assert!(READY_WAIT.as_secs() < 30);
const _: () = assert!(NODE_STREAM_WINDOW <= NODE_CONNECTION_WINDOW);
const _: () = assert!(NODE_CONNECTION_WINDOW < 1 << 31 && CLIENT_CONNECTION_WINDOW < 1 << 31);
const _: () = assert!(PAGE_DEFAULT <= PAGE_MAX);

/// Bytes of a refused body that are read and thrown away before the answer; who sends more sees the connection close.
pub(crate) const DRAIN_MAX: usize = 16 * 1024 * 1024;

/// How long a request waits for a node that is not connected: it dials again within a few seconds.
pub(crate) const NODE_WAIT: Duration = Duration::from_secs(8);
