//! The link without its I/O: bytes in, events and bytes out. It knows no sockets, tasks, clocks or locks.
//!
//! - [`hello`]: the two records of the handshake;
//! - [`frame`]: one frame and its bytes;
//! - [`decoder`]: finds handshake records and frames in a byte stream that may start, break or lie anywhere;
//! - [`mux`]: the streams of one session, fed with frames, asked for bytes;
//! - `stream`: one stream of it.
//!
//! The tokio layer (and the tests) own one decoder per byte stream and one [`mux::Mux`] per session.

pub mod decoder;
pub mod frame;
pub mod hello;
pub mod mux;
mod stream;
