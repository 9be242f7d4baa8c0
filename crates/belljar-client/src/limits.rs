//! Every limit of the client, with its unit and its reason.

use std::time::Duration;

/// Longest wait for a TCP connection: a server on the same network answers within milliseconds.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer. A create blocks until the sandbox runs, which the server bounds below this.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// Part of [`REQUEST_TIMEOUT`] that the server leaves us, so that its answer arrives before we give up.
pub const REQUEST_GRACE: Duration = Duration::from_secs(5);
/// Part of a wait for another state that one request covers; then it is asked again. The server caps it there.
pub const STATE_WAIT: Duration = Duration::from_secs(120);
/// Longest silence inside a body. The server sends a comment every 15 seconds into event streams.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a request is replayed that the server says was not delivered: a boot or a wake fits in.
pub const REPLAY_TOTAL: Duration = Duration::from_secs(30);
/// First pause between replays; doubles each time.
pub const REPLAY_FIRST: Duration = Duration::from_millis(150);
/// Longest pause between replays.
pub const REPLAY_MAX: Duration = Duration::from_millis(3750);

/// Most bytes of a JSON answer. The longest real one is a list of some thousand sandboxes.
pub const JSON_ANSWER_MAX: usize = 64 * 1024 * 1024;
/// Most bytes of an error answer that are read; the rest is of no use to anyone.
pub const ERROR_ANSWER_MAX: usize = 64 * 1024;
/// Most bytes of one server-sent event. Lines are cut at 16 KiB by the guest; what is far longer is an attack.
pub const EVENT_MAX: usize = 1024 * 1024;
/// Bytes read at once from a local file or tunnel socket that is sent on.
pub const CHUNK: usize = 64 * 1024;
/// Bytes read at once from a WebSocket: several of the largest messages, because one that lies across two reads is copied.
pub const READ_BUFFER: usize = 256 * 1024;

/// Pause between pings of a terminal or tunnel, so that a dead connection is noticed.
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// How long the other side of a reverse tunnel may take to answer a ping.
pub const PING_PATIENCE: Duration = Duration::from_secs(20);
/// Connections that one tunnel carries at once; more wait to be accepted.
pub const TUNNEL_CONNECTIONS: usize = 256;

const _: () = assert!(REPLAY_FIRST.as_millis() < REPLAY_MAX.as_millis());
const _: () = assert!(REQUEST_GRACE.as_millis() < REQUEST_TIMEOUT.as_millis());
