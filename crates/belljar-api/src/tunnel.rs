//! What the ends of a tunnel agree on.
//!
//! **Client to guest**: `GET /api/v1/tunnels/tcp?port=N`, a WebSocket for each connection, which ends in the
//! server. Without more, the end of either direction is a Close frame, after which the client can get nothing more. With
//! `half_close=true` it is an empty binary message instead, and the client closes once both directions have ended; what
//! breaks off is closed with another code than 1000.
//!
//! **Guest to client**: `GET /api/v1/tunnels/reverse?port=N` (0: any free one) with `Upgrade: belljar-reverse`. 101 means
//! that 127.0.0.1:N listens in the guest; the answer's [`PORT_HEADER`] names the port. The connection then speaks HTTP/2
//! with prior knowledge, the *server* as its client: each `POST` is a connection that was accepted, its authority is who
//! connected, and the two bodies are its bytes. A success takes it, anything else resets it. The end of a body is the end of
//! that direction; what breaks off is reset with `INTERNAL_ERROR`.
//!
//! **Guest to server**, for that: the same request, answered with a line of JSON for each connection ([`Offer`]).
//! `GET /api/v1/tunnels/reverse/{id}`, upgraded alike, takes it: 101, and then its bytes; 404 when it does not wait any more.

use serde::{Deserialize, Serialize};

/// A connection that somebody in the guest has made to a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// By which it is taken.
    pub id: u64,
    /// Who connected, `127.0.0.1:port`.
    pub peer: String,
}

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
