//! What the ends of a tunnel agree on.
//!
//! **Client to guest**: `GET /api/v1/tunnels/tcp?port=N`, a WebSocket for each connection. Without more, the end of
//! either direction is a Close frame, after which the client can get nothing more. With `half_close=true` it is an empty
//! binary message instead, and the client closes once both directions have ended; what breaks off is closed with
//! another code than 1000.
//!
//! **Guest to client**: `GET /api/v1/tunnels/reverse?port=N` (0: any free one) with `Upgrade: belljar-reverse`. 101 means
//! that 127.0.0.1:N listens in the guest; the answer's [`PORT_HEADER`] names the port. The connection then speaks HTTP/2
//! with prior knowledge, the *guest* as its client: each `CONNECT` is a connection that was accepted, its authority is
//! who connected, and its stream the bytes. A success takes it, anything else resets it.

/// Route of tunnels to the guest.
pub const TCP_PATH: &str = "/api/v1/tunnels/tcp";
/// Route of tunnels from the guest.
pub const REVERSE_PATH: &str = "/api/v1/tunnels/reverse";
/// Protocol that the latter asks for.
pub const REVERSE_UPGRADE: &str = "belljar-reverse";
/// Header of its answer: where it listens.
pub const PORT_HEADER: &str = "x-belljar-port";

/// Connections that one reverse tunnel carries at once; more wait to be accepted.
pub const REVERSE_CONNECTIONS_MAX: u32 = 256;
/// Bytes of one such connection that may wait for a reader who stands still. The window of the whole is one for each,
/// so that no connection stops another.
pub const REVERSE_WINDOW: u32 = 512 * 1024;
/// Largest frame that either side takes, bytes: fewer of them, and still none that keeps the others waiting.
pub const REVERSE_FRAME: u32 = 64 * 1024;

const _: () = assert!((REVERSE_WINDOW as u64) * (REVERSE_CONNECTIONS_MAX as u64) < 1 << 31);
