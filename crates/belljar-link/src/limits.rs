//! Every limit of the link, with its unit and its reason.

/// Version of the wire format; both ends must have the same.
pub const VERSION: u32 = 1;

/// Largest payload of a frame, bytes. Large enough that the 20 bytes around it and the work per frame do not show,
/// small enough that one stream's turn does not delay another's small message for long.
pub const MAX_PAYLOAD: usize = 32 * 1024;

/// Bytes that a sender may have under way on one stream before the reader has taken them. At the 0.3 ms that a round
/// trip over virtio-serial takes this allows far more than the port carries.
pub const WINDOW: usize = 256 * 1024;

/// Taken bytes after which the reader returns credit: often enough that a busy sender never stands still.
pub const WINDOW_STEP: usize = WINDOW / 4;

/// Streams of a session at one time. With [`WINDOW`] it bounds what a hostile peer can make us hold: 256 MiB, and
/// that only if the local program opens so many and reads none of them.
pub const MAX_STREAMS: usize = 1024;

/// Written bytes that a stream keeps until the link takes them. More only adds delay.
pub const TX_BUFFER: usize = 64 * 1024;

/// Input buffer of a link, bytes: several frames for each read, and always room for a whole one.
pub const IN_BUFFER: usize = 128 * 1024;

/// Output bytes after which no further frame is added to a write. Writes larger than this gain nothing.
pub const OUT_BATCH: usize = 128 * 1024;

/// Rounds of reading and writing after which a busy link lets other tasks run.
pub(crate) const ROUNDS: usize = 32;

const _: () = assert!(MAX_PAYLOAD <= u16::MAX as usize && WINDOW <= u32::MAX as usize);
const _: () = assert!(IN_BUFFER >= 2 * crate::core::frame::MAX_FRAME);
const _: () = assert!(WINDOW_STEP > 0 && WINDOW_STEP <= WINDOW);
