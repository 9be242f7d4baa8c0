//! Finds handshake records and frames in a byte stream that may start, break or lie anywhere.
//!
//! ```text
//!             begin(epoch)                  frame, padding
//!  HUNTING ------------------> FRAMES ---------------------+
//!    ^  | skips everything       | ^                       |
//!    +--+ but a record           | +-----------------------+
//!    ^                           |
//!    +---------------------------+  record (guest only), or an error
//! ```
//!
//! A record in HUNTING is only *reported*; the caller decides whether it starts a session ([`Decoder::begin`]). The
//! host reports anything but a frame as an error once a session has begun: only the host starts sessions.
//! After a bad header the hunt begins at that header; after a bad trailer it begins behind the frame, because its
//! payload is somebody's data, in which a record may have been planted.

use super::{
    frame::{DecodeError, Frame, HEADER_LEN, Header, MAX_FRAME},
    hello::{HELLO_LEN, Hello, HelloKind, MAGIC_LEN},
};
use crate::limits::IN_BUFFER;

/// Something found in the byte stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record of the kind the decoder looks for.
    Hello(Hello),
    /// A frame of the current session.
    Frame(Frame<'a>),
}

/// Holds the input bytes that are not decoded yet, at most [`IN_BUFFER`]. See the module doc.
#[derive(Debug)]
pub struct Decoder {
    /// `start..end` is input not decoded yet.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    looks_for: HelloKind,
    mode: Mode,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Hunting,
    /// `header` is that of the frame at `start`, once it is there, so that it is checked only once.
    Frames {
        epoch: u32,
        header: Option<Header>,
    },
}

/// What [`Decoder::advance`] found, not yet borrowed from the buffer.
enum Found {
    Hello(Hello),
    /// Already consumed; its bytes start at `at`.
    Frame {
        header: Header,
        at: usize,
    },
}

impl Decoder {
    /// A decoder that hunts for records of `looks_for`: ACK on the host, HELLO on the guest.
    #[must_use]
    pub fn new(looks_for: HelloKind) -> Decoder {
        Decoder { buf: vec![0; IN_BUFFER], start: 0, end: 0, looks_for, mode: Mode::Hunting }
    }

    /// Where the next input goes; say how much with [`Decoder::filled`]. Never empty after [`Decoder::decode`] has
    /// answered `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buf.len() - self.end < MAX_FRAME {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buf[self.end..]
    }

    /// `count` bytes were put at the front of [`Decoder::space`].
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buf.len());
    }

    /// Takes frames of `epoch` from here on.
    pub fn begin(&mut self, epoch: u32) {
        self.mode = Mode::Frames { epoch, header: None };
    }

    /// Gives up the session: everything up to the next record is skipped.
    pub fn hunt(&mut self) {
        self.mode = Mode::Hunting;
    }

    /// The next item, or `None` if more input is needed.
    ///
    /// # Errors
    /// The input is not what a session allows. The decoder hunts from here on.
    pub fn decode(&mut self) -> Result<Option<Item<'_>>, DecodeError> {
        match self.advance() {
            Ok(None) => Ok(None),
            Ok(Some(Found::Hello(hello))) => {
                self.mode = Mode::Hunting;
                Ok(Some(Item::Hello(hello)))
            }
            Ok(Some(Found::Frame { header, at })) => {
                let frame = header.complete(&self.buf[at + HEADER_LEN..at + header.frame_len()]);
                if frame.is_err() {
                    self.mode = Mode::Hunting;
                }
                frame.map(|frame| Some(Item::Frame(frame)))
            }
            Err(error) => {
                self.mode = Mode::Hunting;
                Err(error)
            }
        }
    }

    fn advance(&mut self) -> Result<Option<Found>, DecodeError> {
        match self.mode {
            Mode::Hunting => Ok(self.hunt_on().map(Found::Hello)),
            Mode::Frames { epoch, header: Some(header) } => Ok(self.take_frame(epoch, header)),
            Mode::Frames { epoch, header: None } => {
                let padding = self.input().iter().take_while(|&&byte| byte == 0).count();
                self.start += padding;
                let input = self.input();
                if self.looks_for == HelloKind::Hello && input.first() == Some(&HelloKind::Hello.magic()[0]) {
                    return self.record();
                }
                let Some(bytes) = input.first_chunk::<HEADER_LEN>() else { return Ok(None) };
                let header = Header::parse(bytes, epoch)?;
                Ok(self.take_frame(epoch, header))
            }
        }
    }

    fn input(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    fn take_frame(&mut self, epoch: u32, header: Header) -> Option<Found> {
        let whole = self.input().len() >= header.frame_len();
        self.mode = Mode::Frames { epoch, header: (!whole).then_some(header) };
        if !whole {
            return None;
        }
        let at = self.start;
        self.start += header.frame_len();
        Some(Found::Frame { header, at })
    }

    /// The record at the front of the input, where a frame or a record must be.
    fn record(&mut self) -> Result<Option<Found>, DecodeError> {
        let input = self.input();
        if !self.may_be_record(input) {
            return Err(DecodeError::Header { first: input.first().copied().unwrap_or(0) });
        }
        let Some(bytes) = input.first_chunk::<HELLO_LEN>() else { return Ok(None) };
        let hello = Hello::parse(self.looks_for, bytes).ok_or(DecodeError::Header { first: bytes[0] })?;
        self.start += HELLO_LEN;
        Ok(Some(Found::Hello(hello)))
    }

    fn may_be_record(&self, input: &[u8]) -> bool {
        let known = input.len().min(MAGIC_LEN);
        input[..known] == self.looks_for.magic()[..known]
    }

    fn hunt_on(&mut self) -> Option<Hello> {
        loop {
            let first = self.looks_for.magic()[0];
            let Some(skip) = self.input().iter().position(|&byte| byte == first) else {
                self.start = self.end;
                return None;
            };
            self.start += skip;
            if self.may_be_record(self.input()) {
                let bytes = self.input().first_chunk::<HELLO_LEN>()?;
                if let Some(hello) = Hello::parse(self.looks_for, bytes) {
                    self.start += HELLO_LEN;
                    return Some(hello);
                }
            }
            self.start += 1;
        }
    }
}

#[cfg(test)]
#[path = "decoder_test.rs"]
mod tests;
