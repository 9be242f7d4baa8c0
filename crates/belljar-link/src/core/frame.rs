//! One frame and its bytes.
//!
//! ```text
//!  0      1       2        4          8         12      16            16+n    20+n
//!  | type | flags | length | stream   | epoch   | crc32 | payload (n) | trailer |    little endian
//!                                                 |                     `- epoch ^ 0x5a5a5a5a ^ length
//!                                                 `- over the first 12 bytes
//!  type      payload          direction      stream
//!  1 OPEN    port u16         host -> guest  new, greater than all before
//!  2 OPENED  -                guest -> host
//!  3 REFUSED code u16         guest -> host
//!  4 DATA    1..=32768 bytes  both
//!  5 WINDOW  credit u32       both
//!  6 FIN     -                both
//!  7 RESET   code u16         both
//!  8 ABORT   code u16         guest -> host  0
//! ```
//!
//! A zero byte where a type is expected is padding. `flags` is 0. The payload has no checksum: the byte stream below is
//! reliable, it can only be *cut*, and a cut shows in the trailer.

use super::hello::EPOCH_BIT;
use crate::limits::MAX_PAYLOAD;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 16;
/// Bytes after the payload.
pub const TRAILER_LEN: usize = 4;
/// Bytes of the largest frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD + TRAILER_LEN;

const TRAILER_MASK: u32 = 0x5a5a_5a5a;
/// Bytes that the header's checksum covers.
const SUMMED: usize = HEADER_LEN - 4;

const _: () = assert!(TRAILER_MASK & EPOCH_BIT == 0 && MAX_PAYLOAD < EPOCH_BIT as usize);

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The header's checksum is wrong: garbage, or a frame that was cut.
    #[error("link: no frame header where one must be (first byte {first:#04x}); the byte stream was cut or is garbage")]
    Header {
        /// First byte of what should be a header.
        first: u8,
    },
    /// A whole header of another session.
    #[error("link: frame of session {got:#010x} in session {want:#010x}")]
    Epoch {
        /// Epoch of the frame.
        got: u32,
        /// Epoch of the session.
        want: u32,
    },
    /// A type that this version does not have, or flags, of which it has none.
    #[error("link: unknown frame type {kind} with flags {flags:#04x}")]
    Type {
        /// Type byte.
        kind: u8,
        /// Flags byte.
        flags: u8,
    },
    /// A payload length that the type does not allow.
    #[error("link: a frame of type {kind} cannot have {length} bytes of payload")]
    Length {
        /// Type byte.
        kind: u8,
        /// Length in the header, bytes.
        length: u16,
    },
    /// The frame was cut, and other bytes took the place of its rest.
    #[error("link: a frame was cut: its end is missing")]
    Trailer,
    /// A code that this version does not have.
    #[error("link: unknown code {code} in a frame of type {kind}")]
    Code {
        /// Type byte.
        kind: u8,
        /// The code.
        code: u16,
    },
}

/// Why a guest does not open a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u16)]
pub enum RefuseCode {
    /// Nobody listens on the port.
    #[error("connection refused")]
    Refused = 1,
    /// The guest has as many streams as it can hold.
    #[error("too many streams")]
    TooManyStreams = 2,
    /// The guest does not let anybody connect to this port.
    #[error("not allowed")]
    NotAllowed = 3,
    /// The guest tried and could not.
    #[error("failed in the guest")]
    Failed = 4,
}

/// Why one end of a stream is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u16)]
pub enum ResetCode {
    /// Its holder dropped it before it was finished; what it had sent is incomplete.
    #[error("cancelled by the other end")]
    Cancelled = 1,
    /// Its holder finished sending and reads no more; what it had sent is complete.
    #[error("the other end reads no more")]
    Done = 2,
}

/// Why a guest gave up a session and now waits for a new HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u16)]
pub enum AbortCode {
    /// It received bytes that are not a frame.
    #[error("it received bytes that are not a frame")]
    NotAFrame = 1,
    /// It received a frame that breaks the protocol.
    #[error("it received a frame that breaks the protocol")]
    Violation = 2,
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Connect a new stream to `port`.
    Open {
        /// Port in the guest.
        port: u16,
    },
    /// The stream is connected.
    Opened,
    /// The stream is not connected, and is gone.
    Refused(RefuseCode),
    /// Bytes of the stream, at least one.
    Data(&'a [u8]),
    /// The sender of this may be sent so many bytes more.
    Window {
        /// Bytes, at least one.
        credit: u32,
    },
    /// No more bytes follow in this direction.
    Fin,
    /// The stream is gone.
    Reset(ResetCode),
    /// The session is gone.
    Abort(AbortCode),
}

/// Frame types on the wire.
mod kind {
    pub(super) const OPEN: u8 = 1;
    pub(super) const OPENED: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const DATA: u8 = 4;
    pub(super) const WINDOW: u8 = 5;
    pub(super) const FIN: u8 = 6;
    pub(super) const RESET: u8 = 7;
    pub(super) const ABORT: u8 = 8;
}

/// A frame as received: whole, of the current session, and well-formed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Stream it belongs to.
    pub stream: u32,
    /// What it says.
    pub body: Body<'a>,
}

/// A header that passed every check which needs no payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    kind: u8,
    length: u16,
    stream: u32,
    epoch: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN], epoch: u32) -> Result<Header, DecodeError> {
        let [kind, flags, l0, l1, s0, s1, s2, s3, e0, e1, e2, e3, crc @ ..] = *bytes;
        if crc32fast::hash(&bytes[..SUMMED]) != u32::from_le_bytes(crc) {
            return Err(DecodeError::Header { first: kind });
        }
        let got = u32::from_le_bytes([e0, e1, e2, e3]);
        if got != epoch {
            return Err(DecodeError::Epoch { got, want: epoch });
        }
        let length = u16::from_le_bytes([l0, l1]);
        let allowed = match kind {
            kind::OPENED | kind::FIN => 0..=0,
            kind::OPEN | kind::REFUSED | kind::RESET | kind::ABORT => 2..=2,
            kind::WINDOW => 4..=4,
            kind::DATA => 1..=MAX_PAYLOAD,
            _ => return Err(DecodeError::Type { kind, flags }),
        };
        if flags != 0 {
            return Err(DecodeError::Type { kind, flags });
        }
        if !allowed.contains(&usize::from(length)) {
            return Err(DecodeError::Length { kind, length });
        }
        Ok(Header { kind, length, stream: u32::from_le_bytes([s0, s1, s2, s3]), epoch })
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_len(&self) -> usize {
        HEADER_LEN + usize::from(self.length) + TRAILER_LEN
    }

    /// The frame, given what follows its header: payload and trailer.
    pub(super) fn complete<'a>(&self, rest: &'a [u8]) -> Result<Frame<'a>, DecodeError> {
        let Some((payload, end)) = rest.split_at_checked(usize::from(self.length)) else {
            return Err(DecodeError::Trailer);
        };
        if end != trailer(self.epoch, self.length) {
            return Err(DecodeError::Trailer);
        }
        Ok(Frame { stream: self.stream, body: self.body(payload)? })
    }

    fn body<'a>(&self, payload: &'a [u8]) -> Result<Body<'a>, DecodeError> {
        let short = || payload.first_chunk::<2>().map_or(0, |b| u16::from_le_bytes(*b));
        let unknown = |code| DecodeError::Code { kind: self.kind, code };
        Ok(match self.kind {
            kind::OPEN => Body::Open { port: short() },
            kind::OPENED => Body::Opened,
            kind::REFUSED => Body::Refused(match short() {
                1 => RefuseCode::Refused,
                2 => RefuseCode::TooManyStreams,
                3 => RefuseCode::NotAllowed,
                4 => RefuseCode::Failed,
                code => return Err(unknown(code)),
            }),
            kind::DATA => Body::Data(payload),
            kind::WINDOW => Body::Window { credit: payload.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b)) },
            kind::FIN => Body::Fin,
            kind::RESET => Body::Reset(match short() {
                1 => ResetCode::Cancelled,
                2 => ResetCode::Done,
                code => return Err(unknown(code)),
            }),
            kind::ABORT => Body::Abort(match short() {
                1 => AbortCode::NotAFrame,
                2 => AbortCode::Violation,
                code => return Err(unknown(code)),
            }),
            kind => return Err(DecodeError::Type { kind, flags: 0 }),
        })
    }
}

fn trailer(epoch: u32, length: u16) -> [u8; TRAILER_LEN] {
    (epoch ^ TRAILER_MASK ^ u32::from(length)).to_le_bytes()
}

/// Appends a frame. A [`Body::Data`] has 1 to [`MAX_PAYLOAD`] bytes.
pub fn encode(out: &mut Vec<u8>, epoch: u32, stream: u32, body: Body<'_>) {
    let code = |code: u16| code.to_le_bytes();
    match body {
        Body::Open { port } => put(out, epoch, stream, kind::OPEN, &code(port), &[]),
        Body::Opened => put(out, epoch, stream, kind::OPENED, &[], &[]),
        Body::Refused(c) => put(out, epoch, stream, kind::REFUSED, &code(c as u16), &[]),
        Body::Data(bytes) => put(out, epoch, stream, kind::DATA, bytes, &[]),
        Body::Window { credit } => put(out, epoch, stream, kind::WINDOW, &credit.to_le_bytes(), &[]),
        Body::Fin => put(out, epoch, stream, kind::FIN, &[], &[]),
        Body::Reset(c) => put(out, epoch, stream, kind::RESET, &code(c as u16), &[]),
        Body::Abort(c) => put(out, epoch, stream, kind::ABORT, &code(c as u16), &[]),
    }
}

/// Appends a DATA frame whose payload lies in two pieces, as it does in a ring. Together 1 to [`MAX_PAYLOAD`] bytes.
pub(super) fn encode_data(out: &mut Vec<u8>, epoch: u32, stream: u32, a: &[u8], b: &[u8]) {
    put(out, epoch, stream, kind::DATA, a, b);
}

fn put(out: &mut Vec<u8>, epoch: u32, stream: u32, kind: u8, a: &[u8], b: &[u8]) {
    debug_assert!(a.len() + b.len() <= MAX_PAYLOAD, "callers cut at MAX_PAYLOAD");
    let length = u16::try_from(a.len() + b.len()).unwrap_or(u16::MAX);
    let start = out.len();
    out.reserve(HEADER_LEN + usize::from(length) + TRAILER_LEN);
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(a);
    out.extend_from_slice(b);
    out.extend_from_slice(&trailer(epoch, length));
}
