//! The streams of one session. Fed with the peer's frames, it says what happened; asked for output, it appends frames.
//!
//! It never waits and never grows with what the peer sends: answers are not queued but follow from the state of the
//! streams, of which there are at most `2 *` [`MAX_STREAMS`]. Streams with something to send stand in one queue
//! and take turns of at most one DATA frame.
//!
//! A frame for a stream that has left the table is dropped: the peer may have sent it before it knew.
//! A frame for a stream that never was, or that breaks the rules of one that is, is a [`Violation`].

use std::collections::{HashMap, VecDeque};

use super::{
    frame::{AbortCode, Body, Frame, RefuseCode, ResetCode},
    stream::{Fin, Phase, Stream},
};
use crate::limits::{MAX_STREAMS, OUT_BATCH, WINDOW};

/// A well-formed frame that the protocol does not allow. Ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame that only the other side may send.
    #[error("link: the peer sent {frame}, which only this side may send")]
    Direction {
        /// Name of the frame.
        frame: &'static str,
    },
    /// A frame for a stream that never was.
    #[error("link: the peer sent {frame} for stream {stream}, which never was opened")]
    UnknownStream {
        /// Name of the frame.
        frame: &'static str,
        /// The stream.
        stream: u32,
    },
    /// A frame that the stream cannot get now.
    #[error("link: the peer sent {frame} for stream {stream} out of order")]
    Order {
        /// Name of the frame.
        frame: &'static str,
        /// The stream.
        stream: u32,
    },
    /// More bytes than the window allows.
    #[error("link: the peer sent {sent} bytes on stream {stream} with only {allowed} allowed")]
    Window {
        /// The stream.
        stream: u32,
        /// Bytes of the frame.
        sent: usize,
        /// Bytes it could have had.
        allowed: usize,
    },
    /// No credit, or more than a whole window.
    #[error("link: the peer gave a credit of {credit} bytes on stream {stream}, beyond the window of {WINDOW}")]
    Credit {
        /// The stream.
        stream: u32,
        /// Bytes of the frame.
        credit: u32,
    },
    /// More streams than a host may have.
    #[error("link: the peer opened more than {MAX_STREAMS} streams at once")]
    TooManyStreams,
}

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Host,
    /// Is offered streams.
    Guest,
}

/// What a frame brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Guest: the host wants a stream; answer with [`Mux::accept`] or [`Mux::refuse`].
    Offered {
        /// The stream.
        stream: u32,
        /// Port that it is for.
        port: u16,
    },
    /// Host: [`Mux::answer`] has an answer.
    Answered {
        /// The stream.
        stream: u32,
    },
    /// There are bytes, or the end of them.
    Readable {
        /// The stream.
        stream: u32,
    },
    /// Reading or writing now fails.
    Broken {
        /// The stream.
        stream: u32,
    },
    /// Host: the guest has given up the session.
    Aborted(AbortCode),
}

/// Why a stream cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer gave it up.
    #[error("link stream: {0}")]
    Reset(ResetCode),
    /// Written after it was finished.
    #[error("link stream: written after shutdown")]
    Finished,
    /// It is not connected (any more).
    #[error("link stream: not connected")]
    NotConnected,
}

/// No more streams: [`MAX_STREAMS`] are in use, or a session's four thousand million ids are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// See the module doc.
#[derive(Debug)]
pub struct Mux {
    role: Role,
    epoch: u32,
    streams: HashMap<u32, Stream>,
    /// Streams with something to send, each once.
    ready: VecDeque<u32>,
    /// Greatest stream id so far. Ids start at 1 and are never used again.
    last: u32,
}

impl Mux {
    /// A session without streams.
    #[must_use]
    pub fn new(role: Role, epoch: u32) -> Mux {
        Mux { role, epoch, streams: HashMap::new(), ready: VecDeque::new(), last: 0 }
    }

    /// Handles a frame.
    ///
    /// # Errors
    /// The peer broke the protocol; the session is of no further use.
    pub fn on_frame(&mut self, frame: Frame<'_>) -> Result<Option<Event>, Violation> {
        let name = name(&frame.body);
        let for_guest = matches!(frame.body, Body::Open { .. });
        let for_host = matches!(frame.body, Body::Opened | Body::Refused(_) | Body::Abort(_));
        if for_guest && self.role == Role::Host || for_host && self.role == Role::Guest {
            return Err(Violation::Direction { frame: name });
        }
        let id = frame.stream;
        match frame.body {
            Body::Abort(code) => return Ok(Some(Event::Aborted(code))),
            Body::Open { port } => return self.on_open(id, port),
            _ if id == 0 || id > self.last => return Err(Violation::UnknownStream { frame: name, stream: id }),
            _ => {}
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if stream.is_over() || matches!(stream.phase, Phase::ResetQueued(_) | Phase::RefuseQueued(_)) {
            // Sent before the peer knew that the stream is over.
            if matches!((frame.body, stream.phase), (Body::Reset(_), Phase::ResetQueued(_) | Phase::RefuseQueued(_))) {
                stream.give_up(Phase::Closed);
            }
            self.remove_if_done(id);
            return Ok(None);
        }
        let event = stream.on_frame(id, frame.body).ok_or(Violation::Order { frame: name, stream: id })??;
        self.settle(id);
        Ok(event)
    }

    fn on_open(&mut self, id: u32, port: u16) -> Result<Option<Event>, Violation> {
        if id <= self.last {
            return Err(Violation::Order { frame: "OPEN", stream: id });
        }
        // The host counts a stream until both ends are finished with it, and so never has more than MAX_STREAMS that
        // we must remember; on top come at most MAX_STREAMS that are over but that a local program still holds.
        if self.streams.len() >= 2 * MAX_STREAMS {
            return Err(Violation::TooManyStreams);
        }
        self.last = id;
        let full = self.streams.len() >= MAX_STREAMS;
        let phase = if full { Phase::RefuseQueued(RefuseCode::TooManyStreams) } else { Phase::Offered };
        self.streams.insert(id, Stream { held: !full, ..Stream::new(phase) });
        self.settle(id);
        Ok((!full).then_some(Event::Offered { stream: id, port }))
    }

    /// Host: a new stream to `port` of the guest, held by the caller until [`Mux::release`].
    ///
    /// # Errors
    /// There are too many.
    pub fn open(&mut self, port: u16) -> Result<u32, Full> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(Full);
        }
        self.last = self.last.checked_add(1).ok_or(Full)?;
        self.streams.insert(self.last, Stream::new(Phase::OpenQueued { port }));
        self.settle(self.last);
        Ok(self.last)
    }

    /// Host: what the guest said to [`Mux::open`]; `None` if nothing yet.
    #[must_use]
    pub fn answer(&self, id: u32) -> Option<Result<(), RefuseCode>> {
        match self.streams.get(&id)?.phase {
            Phase::OpenQueued { .. } | Phase::OpenSent => None,
            Phase::Refused(code) => Some(Err(code)),
            _ => Some(Ok(())),
        }
    }

    /// Guest: takes an offered stream. No effect if the host has given it up meanwhile.
    pub fn accept(&mut self, id: u32) {
        self.decide(id, Phase::AcceptQueued);
    }

    /// Guest: refuses an offered stream. It still is to be released.
    pub fn refuse(&mut self, id: u32, code: RefuseCode) {
        self.decide(id, Phase::RefuseQueued(code));
    }

    fn decide(&mut self, id: u32, phase: Phase) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.phase == Phase::Offered) {
            stream.phase = phase;
            self.settle(id);
        }
    }

    /// Guest: whether an offered stream still waits for an answer.
    #[must_use]
    pub fn is_offered(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.phase == Phase::Offered)
    }

    /// Hands received bytes to `take`, which says how many it took. `None` if there are none yet; `Some(0)` at the end.
    ///
    /// # Errors
    /// The peer gave the stream up before its end.
    pub fn read(&mut self, id: u32, take: impl FnOnce(&[u8], &[u8]) -> usize) -> Result<Option<usize>, StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::NotConnected)?;
        if stream.rx.bytes.is_empty() {
            return match stream.phase {
                _ if stream.rx.fin => Ok(Some(0)),
                Phase::Reset(code) => Err(StreamError::Reset(code)),
                Phase::Refused(_) | Phase::Closed | Phase::ResetQueued(_) | Phase::RefuseQueued(_) => {
                    Err(StreamError::NotConnected)
                }
                Phase::OpenQueued { .. } | Phase::OpenSent | Phase::Offered | Phase::AcceptQueued | Phase::Open => {
                    Ok(None)
                }
            };
        }
        let (a, b) = stream.rx.bytes.as_slices();
        let taken = take(a, b).min(stream.rx.bytes.len());
        stream.rx.bytes.drain(..taken);
        stream.rx.taken += taken;
        self.settle(id);
        Ok(Some(taken))
    }

    /// True if the peer's direction has ended in order: what is left can be read even when the session is gone.
    #[must_use]
    pub fn is_complete(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.rx.fin)
    }

    /// Takes bytes to be sent, as many as there is room for; `None` if there is no room now.
    ///
    /// # Errors
    /// The stream cannot carry any more bytes.
    pub fn write(&mut self, id: u32, bytes: &[u8]) -> Result<Option<usize>, StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::NotConnected)?;
        match stream.phase {
            _ if stream.tx.fin != Fin::No => return Err(StreamError::Finished),
            Phase::Open | Phase::AcceptQueued => {}
            Phase::Reset(code) => return Err(StreamError::Reset(code)),
            _ => return Err(StreamError::NotConnected),
        }
        let count = bytes.len().min(stream.tx_room());
        if count == 0 && !bytes.is_empty() {
            return Ok(None);
        }
        stream.tx.bytes.extend(&bytes[..count]);
        self.settle(id);
        Ok(Some(count))
    }

    /// No more bytes follow those written. Idempotent.
    ///
    /// # Errors
    /// The peer has given the stream up, so that it may not have got all of them.
    pub fn finish(&mut self, id: u32) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(&id).ok_or(StreamError::NotConnected)?;
        match stream.phase {
            Phase::Reset(code) if stream.tx.fin != Fin::Sent => return Err(StreamError::Reset(code)),
            Phase::Open | Phase::AcceptQueued if stream.tx.fin == Fin::No => {
                stream.tx.fin = Fin::Queued;
                self.settle(id);
            }
            _ => {}
        }
        Ok(())
    }

    /// The local program no longer holds the stream. If it had finished writing, the rest of that is still sent;
    /// otherwise the stream is reset.
    pub fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.held = false;
        match stream.phase {
            // Never announced: the peer need not know.
            Phase::OpenQueued { .. } => stream.give_up(Phase::Closed),
            Phase::Offered => stream.give_up(Phase::RefuseQueued(RefuseCode::Failed)),
            Phase::AcceptQueued if stream.tx.fin == Fin::No => stream.give_up(Phase::RefuseQueued(RefuseCode::Failed)),
            Phase::OpenSent => stream.give_up(Phase::ResetQueued(ResetCode::Cancelled)),
            Phase::Open if stream.tx.fin == Fin::No => stream.give_up(Phase::ResetQueued(ResetCode::Cancelled)),
            Phase::Open if stream.tx.fin == Fin::Sent => stream.give_up(Phase::ResetQueued(ResetCode::Done)),
            Phase::Open | Phase::AcceptQueued => stream.rx.bytes = VecDeque::new(),
            Phase::RefuseQueued(_) | Phase::ResetQueued(_) | Phase::Refused(_) | Phase::Reset(_) | Phase::Closed => {}
        }
        self.settle(id);
    }

    /// Appends frames until there are no more, or until `out` holds about [`OUT_BATCH`] bytes (it ends on a whole
    /// frame). Calls `writable` with each stream that has room again.
    pub fn transmit(&mut self, out: &mut Vec<u8>, mut writable: impl FnMut(u32)) {
        while out.len() < OUT_BATCH {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            if stream.transmit(self.epoch, id, out) {
                writable(id);
            }
            self.settle(id);
        }
    }

    /// True if [`Mux::transmit`] has something to append.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The session is over: frees every byte but those of streams that are received completely.
    pub fn abandon(&mut self) {
        self.ready.clear();
        for stream in self.streams.values_mut() {
            stream.queued = false;
            stream.give_up(Phase::Closed);
        }
        self.streams.retain(|_, stream| stream.held);
    }

    /// Puts a changed stream where it belongs: among those with something to send, or out of the table.
    fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.has_output() && !stream.queued {
            stream.queued = true;
            self.ready.push_back(id);
        }
        self.remove_if_done(id);
    }

    fn remove_if_done(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_over() && !stream.held) {
            let removed = self.streams.remove(&id);
            if removed.is_some_and(|stream| stream.queued) {
                self.ready.retain(|&ready| ready != id);
            }
        }
    }

    /// Streams in the table and bytes in their buffers, for tests of the bounds.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, usize) {
        let bytes = |stream: &Stream| stream.rx.bytes.len() + stream.tx.bytes.len();
        (self.streams.len(), self.streams.values().map(bytes).sum())
    }

    /// Checks the sum that [`super::stream::Rx::taken`] states.
    #[cfg(test)]
    pub(crate) fn check_windows(&self) {
        for (id, stream) in &self.streams {
            let rx = &stream.rx;
            if stream.held && stream.phase == Phase::Open {
                assert_eq!(rx.bytes.len() + rx.allowance + rx.taken, WINDOW, "stream {id}");
            }
            assert!(rx.bytes.len() <= WINDOW && stream.tx.credit <= WINDOW, "stream {id}");
            assert_eq!(stream.queued, self.ready.contains(id), "stream {id}");
        }
    }
}

impl Stream {
    /// Handles a frame in a phase that is not over. `None` if it is out of order.
    fn on_frame(&mut self, id: u32, body: Body<'_>) -> Option<Result<Option<Event>, Violation>> {
        let open = self.phase == Phase::Open;
        Some(Ok(match body {
            Body::Opened if self.phase == Phase::OpenSent => {
                self.phase = Phase::Open;
                Some(Event::Answered { stream: id })
            }
            Body::Refused(code) if self.phase == Phase::OpenSent => {
                self.give_up(Phase::Refused(code));
                Some(Event::Answered { stream: id })
            }
            Body::Data(bytes) if open && !self.rx.fin => {
                let allowed = self.rx.allowance;
                if bytes.len() > allowed {
                    return Some(Err(Violation::Window { stream: id, sent: bytes.len(), allowed }));
                }
                self.rx.allowance -= bytes.len();
                if self.held {
                    self.rx.bytes.extend(bytes);
                }
                self.held.then_some(Event::Readable { stream: id })
            }
            Body::Window { credit } if open => {
                let total = usize::try_from(credit).ok().and_then(|credit| credit.checked_add(self.tx.credit));
                match total.filter(|&total| credit > 0 && total <= WINDOW) {
                    Some(total) => self.tx.credit = total,
                    None => return Some(Err(Violation::Credit { stream: id, credit })),
                }
                None
            }
            Body::Fin if open && !self.rx.fin => {
                self.rx.fin = true;
                if self.tx.fin == Fin::Sent {
                    self.phase = Phase::Closed;
                }
                Some(Event::Readable { stream: id })
            }
            Body::Reset(code) if open || matches!(self.phase, Phase::Offered | Phase::AcceptQueued) => {
                self.give_up(Phase::Reset(code));
                Some(Event::Broken { stream: id })
            }
            _ => return None,
        }))
    }
}

fn name(body: &Body<'_>) -> &'static str {
    match body {
        Body::Open { .. } => "OPEN",
        Body::Opened => "OPENED",
        Body::Refused(_) => "REFUSED",
        Body::Data(_) => "DATA",
        Body::Window { .. } => "WINDOW",
        Body::Fin => "FIN",
        Body::Reset(_) => "RESET",
        Body::Abort(_) => "ABORT",
    }
}

#[cfg(test)]
#[path = "mux_test.rs"]
mod tests;
