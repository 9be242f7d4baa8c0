use std::collections::{BTreeMap, VecDeque};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    core::{
        decoder::{Decoder, Item},
        frame::encode,
        hello::{EPOCH_BIT, HelloKind},
    },
    limits::{MAX_PAYLOAD, TX_BUFFER},
};

const EPOCH: u32 = EPOCH_BIT | 1;

/// One end, with a decoder and the bytes on their way to it.
struct End {
    mux: Mux,
    decoder: Decoder,
    wire: VecDeque<u8>,
}

/// What the model knows of one direction of a stream.
#[derive(Debug, Default)]
struct Direction {
    written: usize,
    read: usize,
    finished: bool,
    ended: bool,
}

#[derive(Debug, Clone)]
enum Op {
    Open,
    Answer { accept: bool },
    Write { host: bool, pick: usize, count: usize },
    Read { host: bool, pick: usize, count: usize },
    Finish { host: bool, pick: usize },
    Release { host: bool, pick: usize },
    Move { to_host: bool, count: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let (host, pick) = (any::<bool>, 0usize..16);
    prop_oneof![
        2 => Just(Op::Open),
        3 => prop::bool::weighted(0.8).prop_map(|accept| Op::Answer { accept }),
        8 => (host(), pick.clone(), 1usize..100_000).prop_map(|(host, pick, count)| Op::Write { host, pick, count }),
        8 => (host(), pick.clone(), 1usize..200_000).prop_map(|(host, pick, count)| Op::Read { host, pick, count }),
        2 => (host(), pick.clone()).prop_map(|(host, pick)| Op::Finish { host, pick }),
        1 => (host(), pick).prop_map(|(host, pick)| Op::Release { host, pick }),
        12 => (host(), 1usize..150_000).prop_map(|(to_host, count)| Op::Move { to_host, count }),
    ]
}

/// The byte that stands at `at` of a direction, so that a byte of another stream or place is found out.
fn byte(host: bool, stream: u32, at: usize) -> u8 {
    u8::try_from((at * 31 + at / 251 + stream as usize * 7 + usize::from(host) * 101) % 256).unwrap()
}

/// Two ends that talk through bytes, and a model of what each must see. Index 0 is the guest, 1 the host.
struct World {
    ends: [End; 2],
    offered: VecDeque<u32>,
    /// Held streams of each end.
    held: [Vec<u32>; 2],
    /// By writing end and stream.
    model: BTreeMap<(bool, u32), Direction>,
}

impl World {
    fn new() -> World {
        let end = |role, kind| {
            let mut decoder = Decoder::new(kind);
            decoder.begin(EPOCH);
            End { mux: Mux::new(role, EPOCH), decoder, wire: VecDeque::new() }
        };
        World {
            ends: [end(Role::Guest, HelloKind::Hello), end(Role::Host, HelloKind::Ack)],
            offered: VecDeque::new(),
            held: [Vec::new(), Vec::new()],
            model: BTreeMap::new(),
        }
    }

    fn pick(&self, host: bool, pick: usize) -> Option<u32> {
        let held = &self.held[usize::from(host)];
        (!held.is_empty()).then(|| held[pick % held.len()])
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Open => {
                let stream = self.ends[1].mux.open(80).unwrap();
                self.held[1].push(stream);
            }
            Op::Answer { accept } => {
                let Some(stream) = self.offered.pop_front() else { return };
                if accept {
                    self.ends[0].mux.accept(stream);
                    self.held[0].push(stream);
                } else {
                    self.ends[0].mux.refuse(stream, RefuseCode::Refused);
                    self.ends[0].mux.release(stream);
                }
            }
            Op::Write { host, pick, count } => {
                let Some(stream) = self.pick(host, pick) else { return };
                let dir = self.model.entry((host, stream)).or_default();
                let data: Vec<u8> = (dir.written..dir.written + count).map(|at| byte(host, stream, at)).collect();
                if let Ok(Some(count)) = self.ends[usize::from(host)].mux.write(stream, &data) {
                    assert!(!dir.finished, "written after the end");
                    dir.written += count;
                }
            }
            Op::Read { host, pick, count } => {
                let Some(stream) = self.pick(host, pick) else { return };
                self.read(host, stream, count);
            }
            Op::Finish { host, pick } => {
                let Some(stream) = self.pick(host, pick) else { return };
                if self.ends[usize::from(host)].mux.answer(stream) == Some(Ok(()))
                    && self.ends[usize::from(host)].mux.finish(stream).is_ok()
                {
                    self.model.entry((host, stream)).or_default().finished = true;
                }
            }
            Op::Release { host, pick } => {
                let Some(stream) = self.pick(host, pick) else { return };
                self.held[usize::from(host)].retain(|&held| held != stream);
                self.ends[usize::from(host)].mux.release(stream);
            }
            Op::Move { to_host, count } => self.carry(to_host, count),
        }
    }

    fn read(&mut self, host: bool, stream: u32, count: usize) {
        let dir = self.model.entry((!host, stream)).or_default();
        let end = &mut self.ends[usize::from(host)];
        let mut got: Vec<u8> = Vec::new();
        let result = end.mux.read(stream, |a, b| {
            got.extend(a.iter().chain(b).take(count));
            got.len()
        });
        for (i, &got) in got.iter().enumerate() {
            assert_eq!(got, byte(!host, stream, dir.read + i), "stream {stream} at {}", dir.read + i);
        }
        dir.read += got.len();
        assert!(dir.read <= dir.written, "more read than written");
        if result == Ok(Some(0)) {
            assert!(dir.finished && dir.read == dir.written, "an end that is not the end: {dir:?}");
            dir.ended = true;
        }
    }

    /// Carries `count` bytes to one end.
    fn carry(&mut self, to_host: bool, count: usize) {
        let mut out = Vec::new();
        self.ends[usize::from(!to_host)].mux.transmit(&mut out, |_| {});
        assert!(out.len() < OUT_BATCH + 2 * MAX_PAYLOAD);
        let end = &mut self.ends[usize::from(to_host)];
        end.wire.extend(out);
        let mut left = count.min(end.wire.len());
        while left > 0 {
            let space = end.decoder.space();
            let now = left.min(space.len());
            for (to, from) in space.iter_mut().zip(end.wire.drain(..now)) {
                *to = from;
            }
            end.decoder.filled(now);
            left -= now;
            while let Some(item) = end.decoder.decode().expect("an honest peer sends frames") {
                let Item::Frame(frame) = item else { panic!("a record amid frames") };
                if let Some(Event::Offered { stream, .. }) = end.mux.on_frame(frame).expect("an honest peer") {
                    self.offered.push_back(stream);
                }
            }
        }
    }

    fn check(&self) {
        for end in &self.ends {
            end.mux.check_windows();
            let (streams, bytes) = end.mux.usage();
            assert!(bytes <= streams * (WINDOW + TX_BUFFER));
        }
    }

    /// Everybody finishes and reads until nothing moves; then everything written is read, and nothing is left.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "it does not come to rest");
            for host in [false, true] {
                self.carry(host, usize::MAX);
                while let Some(stream) = self.offered.pop_front() {
                    self.ends[0].mux.accept(stream);
                    self.held[0].push(stream);
                }
                for stream in self.held[usize::from(host)].clone() {
                    self.apply(&Op::Finish { host, pick: self.position(host, stream) });
                    self.read(host, stream, usize::MAX);
                }
            }
            let quiet = self.ends.iter().all(|end| !end.mux.has_output() && end.wire.is_empty());
            if quiet && round > 4 {
                break;
            }
        }
        for host in [false, true] {
            for stream in &self.held[usize::from(host)] {
                if self.held[usize::from(!host)].contains(stream) {
                    let dir = &self.model[&(!host, *stream)];
                    assert!(dir.ended && dir.read == dir.written, "stream {stream}: {dir:?}");
                }
            }
        }
        for host in [false, true] {
            for stream in std::mem::take(&mut self.held[usize::from(host)]) {
                self.ends[usize::from(host)].mux.release(stream);
            }
        }
        for _ in 0..4 {
            self.carry(true, usize::MAX);
            self.carry(false, usize::MAX);
        }
        assert_eq!([self.ends[0].mux.usage(), self.ends[1].mux.usage()], [(0, 0); 2], "streams are left over");
    }

    fn position(&self, host: bool, stream: u32) -> usize {
        self.held[usize::from(host)].iter().position(|&held| held == stream).unwrap_or(0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_ends_agree_with_the_model(ops in vec(op(), 1..120)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.settle();
    }
}

/// A host with stream 1 open, 2 not answered, 3 refused and released; next would be 4.
fn host() -> Mux {
    let mut mux = Mux::new(Role::Host, EPOCH);
    for port in 1..=3 {
        mux.open(port).unwrap();
    }
    mux.transmit(&mut Vec::new(), |_| {});
    mux.on_frame(Frame { stream: 1, body: Body::Opened }).unwrap();
    mux.on_frame(Frame { stream: 3, body: Body::Refused(RefuseCode::Refused) }).unwrap();
    mux.release(3);
    mux
}

/// What a host does with `frames` of a hostile guest: the first violation, or none.
#[track_caller]
fn check(frames: &[(u32, Body<'_>)], want: Result<(), Violation>) {
    let mut mux = host();
    let got = frames.iter().try_for_each(|&(stream, body)| mux.on_frame(Frame { stream, body }).map(|_| ()));
    assert_eq!(got, want, "{:?}", frames.iter().map(|(id, body)| (id, name(body))).collect::<Vec<_>>());
}

#[test]
fn a_hostile_guest_is_told_apart() {
    let order = |frame, stream| Err(Violation::Order { frame, stream });
    let unknown = |frame, stream| Err(Violation::UnknownStream { frame, stream });
    let chunk = vec![0; MAX_PAYLOAD];
    check(&[(9, Body::Open { port: 1 })], Err(Violation::Direction { frame: "OPEN" }));
    check(&[(4, Body::Data(b"x"))], unknown("DATA", 4));
    check(&[(0, Body::Fin)], unknown("FIN", 0));
    check(&[(u32::MAX, Body::Reset(ResetCode::Cancelled))], unknown("RESET", u32::MAX));
    check(&[(1, Body::Opened)], order("OPENED", 1));
    check(&[(1, Body::Refused(RefuseCode::Refused))], order("REFUSED", 1));
    check(&[(2, Body::Data(b"x"))], order("DATA", 2));
    check(&[(2, Body::Fin)], order("FIN", 2));
    check(&[(2, Body::Reset(ResetCode::Cancelled))], order("RESET", 2));
    check(&[(1, Body::Fin), (1, Body::Data(b"x"))], order("DATA", 1));
    check(&[(1, Body::Fin), (1, Body::Fin)], order("FIN", 1));
    check(&[(1, Body::Window { credit: 1 })], Err(Violation::Credit { stream: 1, credit: 1 }));
    check(&[(1, Body::Window { credit: 0 })], Err(Violation::Credit { stream: 1, credit: 0 }));
    check(&[(1, Body::Window { credit: u32::MAX })], Err(Violation::Credit { stream: 1, credit: u32::MAX }));
    let flood = vec![(1, Body::Data(&chunk)); WINDOW / MAX_PAYLOAD + 1];
    check(&flood, Err(Violation::Window { stream: 1, sent: MAX_PAYLOAD, allowed: 0 }));
    check(&flood[1..], Ok(()));
    // Late frames for what is gone are no crime, however many.
    check(&vec![(3, Body::Data(&chunk)); 1000], Ok(()));
    check(&vec![(1, Body::Reset(ResetCode::Cancelled)); 1000], Ok(()));
}

#[test]
fn a_guest_refuses_what_it_cannot_hold_and_gives_up_what_no_host_sends() {
    let mut mux = Mux::new(Role::Guest, EPOCH);
    let mut stream = 0;
    let mut open = |mux: &mut Mux| {
        stream += 1;
        mux.on_frame(Frame { stream, body: Body::Open { port: 1 } })
    };
    for _ in 0..MAX_STREAMS {
        assert!(matches!(open(&mut mux), Ok(Some(Event::Offered { .. }))));
    }
    for _ in 0..MAX_STREAMS {
        assert_eq!(open(&mut mux), Ok(None), "refused without being offered");
    }
    assert_eq!(open(&mut mux), Err(Violation::TooManyStreams));
    let again = mux.on_frame(Frame { stream: 1, body: Body::Open { port: 1 } });
    assert_eq!(again, Err(Violation::Order { frame: "OPEN", stream: 1 }));
    let opened = mux.on_frame(Frame { stream: 1, body: Body::Opened });
    assert_eq!(opened, Err(Violation::Direction { frame: "OPENED" }));
}

#[test]
fn streams_take_turns() {
    let mut mux = host();
    mux.on_frame(Frame { stream: 2, body: Body::Opened }).unwrap();
    mux.write(1, &vec![1; TX_BUFFER]).unwrap();
    mux.write(2, b"small").unwrap();
    let mut out = Vec::new();
    mux.transmit(&mut out, |_| {});
    let mut want = Vec::new();
    encode(&mut want, EPOCH, 1, Body::Data(&[1; MAX_PAYLOAD]));
    encode(&mut want, EPOCH, 2, Body::Data(b"small"));
    encode(&mut want, EPOCH, 1, Body::Data(&[1; MAX_PAYLOAD]));
    assert!(out == want, "the small message waits for one frame, not for all of the large one");
}
