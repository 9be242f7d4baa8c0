//! One stream of a session: its phase, and the two directions with their bytes and credit.
//!
//! ```text
//!  host:   OpenQueued -> OpenSent -> Open ---------> Closed      (both directions finished)
//!                            |         `-----------> Reset       (the peer gave up)
//!                            `-> Refused
//!  guest:  Offered -> AcceptQueued -> Open -> as above
//!             `-> RefuseQueued
//!  both:   OpenSent, Open -> ResetQueued                         (we gave up)
//! ```
//!
//! A stream leaves the table when nothing more is to be sent for it *and* no local program holds it.

use std::collections::VecDeque;

use super::frame::{self, Body, RefuseCode, ResetCode};
use crate::limits::{MAX_PAYLOAD, TX_BUFFER, WINDOW, WINDOW_STEP};

/// See the module doc. "Queued" means: decided, and the frame that says so is not sent yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    OpenQueued { port: u16 },
    OpenSent,
    Offered,
    AcceptQueued,
    RefuseQueued(RefuseCode),
    Open,
    ResetQueued(ResetCode),
    Refused(RefuseCode),
    Reset(ResetCode),
    Closed,
}

/// How far our direction is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fin {
    No,
    Queued,
    Sent,
}

#[derive(Debug)]
pub(super) struct Tx {
    pub(super) bytes: VecDeque<u8>,
    /// Bytes that the peer lets us send now.
    pub(super) credit: usize,
    pub(super) fin: Fin,
}

#[derive(Debug)]
pub(super) struct Rx {
    pub(super) bytes: VecDeque<u8>,
    /// Bytes that we let the peer send now.
    pub(super) allowance: usize,
    /// Bytes read by the local program for which no credit went back yet.
    /// `bytes.len() + allowance + taken` is [`WINDOW`] for as long as somebody reads.
    pub(super) taken: usize,
    pub(super) fin: bool,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    pub(super) tx: Tx,
    pub(super) rx: Rx,
    /// A local program holds it.
    pub(super) held: bool,
    /// It stands in the queue of those with something to send.
    pub(super) queued: bool,
}

impl Stream {
    pub(super) fn new(phase: Phase) -> Stream {
        Stream {
            phase,
            tx: Tx { bytes: VecDeque::new(), credit: WINDOW, fin: Fin::No },
            rx: Rx { bytes: VecDeque::new(), allowance: WINDOW, taken: 0, fin: false },
            held: true,
            queued: false,
        }
    }

    /// Nothing more will be sent or received; only the local program may still hold it.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Refused(_) | Phase::Reset(_) | Phase::Closed)
    }

    pub(super) fn has_output(&self) -> bool {
        match self.phase {
            Phase::OpenQueued { .. } | Phase::AcceptQueued | Phase::RefuseQueued(_) | Phase::ResetQueued(_) => true,
            Phase::Open => {
                let data = !self.tx.bytes.is_empty() && self.tx.credit > 0;
                let fin = self.tx.bytes.is_empty() && self.tx.fin == Fin::Queued;
                data || fin || self.credit_is_due()
            }
            Phase::OpenSent | Phase::Offered | Phase::Refused(_) | Phase::Reset(_) | Phase::Closed => false,
        }
    }

    fn credit_is_due(&self) -> bool {
        self.held && !self.rx.fin && self.rx.taken >= WINDOW_STEP
    }

    /// Enters a phase in which no bytes flow any more, and frees those that nobody can get.
    pub(super) fn give_up(&mut self, phase: Phase) {
        self.phase = phase;
        self.tx.bytes = VecDeque::new();
        if !self.rx.fin || !self.held {
            self.rx.bytes = VecDeque::new();
        }
    }

    /// Room for written bytes.
    pub(super) fn tx_room(&self) -> usize {
        TX_BUFFER.saturating_sub(self.tx.bytes.len())
    }

    /// Appends what is next to be sent: one turn, at most one DATA frame. Answers true if it took bytes of the writer.
    pub(super) fn transmit(&mut self, epoch: u32, id: u32, out: &mut Vec<u8>) -> bool {
        match self.phase {
            Phase::OpenQueued { port } => {
                frame::encode(out, epoch, id, Body::Open { port });
                self.phase = Phase::OpenSent;
            }
            Phase::RefuseQueued(code) => {
                frame::encode(out, epoch, id, Body::Refused(code));
                self.phase = Phase::Closed;
            }
            Phase::ResetQueued(code) => {
                frame::encode(out, epoch, id, Body::Reset(code));
                self.phase = Phase::Closed;
            }
            Phase::AcceptQueued => {
                frame::encode(out, epoch, id, Body::Opened);
                self.phase = Phase::Open;
                return self.transmit_open(epoch, id, out);
            }
            Phase::Open => return self.transmit_open(epoch, id, out),
            Phase::OpenSent | Phase::Offered | Phase::Refused(_) | Phase::Reset(_) | Phase::Closed => {}
        }
        false
    }

    fn transmit_open(&mut self, epoch: u32, id: u32, out: &mut Vec<u8>) -> bool {
        if self.credit_is_due() {
            let credit = u32::try_from(self.rx.taken).unwrap_or(u32::MAX);
            frame::encode(out, epoch, id, Body::Window { credit });
            self.rx.allowance += self.rx.taken;
            self.rx.taken = 0;
        }
        let count = self.tx.bytes.len().min(self.tx.credit).min(MAX_PAYLOAD);
        if count > 0 {
            let (a, b) = self.tx.bytes.as_slices();
            let a = &a[..a.len().min(count)];
            frame::encode_data(out, epoch, id, a, &b[..count - a.len()]);
            self.tx.bytes.drain(..count);
            self.tx.credit -= count;
        }
        if self.tx.bytes.is_empty() && self.tx.fin == Fin::Queued {
            frame::encode(out, epoch, id, Body::Fin);
            self.tx.fin = Fin::Sent;
            if self.rx.fin {
                self.phase = Phase::Closed;
            } else if !self.held {
                frame::encode(out, epoch, id, Body::Reset(ResetCode::Done));
                self.phase = Phase::Closed;
            }
        }
        count > 0
    }
}
