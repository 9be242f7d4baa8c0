//! Many concurrent byte-stream connections over one byte stream between the host and a guest: a virtio-serial port (on
//! the host a unix socket) or a vsock connection. The node opens streams to ports of the guest; the guest agent accepts
//! them. It knows no HTTP, no sandboxes and no tenants, and it never connects to or listens on anything: the caller
//! brings the byte stream.
//!
//! - [`core`]: frames, handshake and streams as plain state machines, without I/O;
//! - [`connect`] (host) and [`serve`] (guest): the same over tokio I/O.
//!
//! # Wire
//!
//! ```text
//!  host                                                        guest
//!   | more than a whole frame of zero bytes                      |  HUNTING: skips all up to HELLO. The zeros end
//!   | HELLO { magic, version, epoch, nonce } ------------------> |  any frame of an older session it is in
//!   | skips all up to  <------- ACK { magic, version, the same } |  older session ends, this one begins
//!   |                                                            |
//!   | OPEN 1 -> port 9501 -------------------------------------> |
//!   | <------------------------------------- OPENED 1            |  or REFUSED 1 { code }
//!   | DATA 1, OPEN 2 -> port 80, DATA 1, ----------------------> |
//!   | <---------------- DATA 1, WINDOW 1, REFUSED 2, DATA 1      |
//!   | FIN 1  --------------------------------------------------> |  each direction ends for itself
//!   | <------------------------------------- DATA 1, FIN 1       |  gone
//!
//!  frame: | type u8 | flags u8 | length u16 | stream u32 | epoch u32 | crc32 u32 | payload | trailer u32 |
//! ```
//!
//! [`core::frame`] and [`core::hello`] have every field.
//!
//! - **Epoch.** A random number for each session, in every header and, mixed with the length, in every trailer. A frame
//!   counts only when all of it has arrived within one session. What is left of a session in any buffer, of the host,
//!   the VMM, the guest kernel or a restored snapshot, is never taken for part of another.
//! - **Resynchronization.** The byte stream can be cut at any byte: the host process was replaced, or the VM restored
//!   from a snapshot. One HELLO puts both ends in step again, and may be sent long before the guest reads. Padding never
//!   completes a cut frame, because the last byte of a trailer is never zero.
//! - **Errors.** On the host every protocol error ends the session; the caller may connect again. The guest sends ABORT,
//!   so that the host does not wait in vain, and hunts for the next HELLO.
//! - **Credit.** A stream may have [`limits::WINDOW`] bytes under way that its reader has not taken. A reader that
//!   stands still stops its own stream only.
//! - **Cost.** No checksum over the payload and no timers: a write is sent at once, and what gathers while the byte
//!   stream is busy goes out in one write. A byte is copied into and out of its stream's buffer, and once to be sent.
//! - **Trust.** The guest is hostile. Whatever it sends, the host holds at most [`limits::MAX_STREAMS`] windows,
//!   and a violation ends the session with an error that names it.

pub mod core;
mod error;
mod fuzz;
mod guest;
mod host;
pub mod limits;
mod session;
mod stream;

#[doc(hidden)]
pub use crate::fuzz::fuzz_decoder;
pub use crate::{
    core::frame::RefuseCode,
    error::{LinkError, OpenError},
    guest::{Acceptor, Incoming, serve},
    host::{ConnectOptions, Connector, connect},
    session::Session,
    stream::LinkStream,
};

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
