use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::core::{
    frame::{Body, RefuseCode, ResetCode, encode},
    hello::EPOCH_BIT,
};

const OLD: u32 = EPOCH_BIT | 0x0102_0304;
const NEW: u32 = EPOCH_BIT | 0x0506_0708;

/// An item without its borrow.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Hello(Hello),
    Frame(u32, String, Vec<u8>),
    Error(DecodeError),
}

/// Decodes `bytes` in pieces that end at `cuts`. Like the guest, begins a session with each HELLO.
fn decode(kind: HelloKind, epoch: Option<u32>, bytes: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let mut decoder = Decoder::new(kind);
    if let Some(epoch) = epoch {
        decoder.begin(epoch);
    }
    let mut cuts = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect::<Vec<_>>();
    cuts.sort_unstable();
    let mut seen = Vec::new();
    for pair in cuts.windows(2) {
        let mut rest = &bytes[pair[0]..pair[1]];
        while !rest.is_empty() {
            let space = decoder.space();
            let count = space.len().min(rest.len());
            assert!(count > 0, "a decoder that needs more must have room for it");
            space[..count].copy_from_slice(&rest[..count]);
            decoder.filled(count);
            rest = &rest[count..];
            loop {
                let item = match decoder.decode() {
                    Ok(None) => break,
                    Ok(Some(Item::Hello(hello))) => Seen::Hello(hello),
                    Ok(Some(Item::Frame(frame))) => match frame.body {
                        Body::Data(data) => Seen::Frame(frame.stream, "Data".to_owned(), data.to_vec()),
                        body => Seen::Frame(frame.stream, format!("{body:?}"), Vec::new()),
                    },
                    Err(error) => Seen::Error(error),
                };
                if let Seen::Hello(hello) = &item {
                    decoder.begin(hello.epoch);
                }
                seen.push(item);
            }
        }
    }
    seen
}

/// A payload that tries hard to be taken for something else.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let planted = |kind| {
        let mut record = Vec::new();
        Hello { version: 1, epoch: NEW ^ 1, nonce: 7 }.encode(kind, &mut record);
        record
    };
    let mut frame = Vec::new();
    encode(&mut frame, OLD, 1, Body::Data(b"planted"));
    prop_oneof![
        vec(any::<u8>(), 1..200),
        (1usize..=crate::limits::MAX_PAYLOAD).prop_map(|len| vec![0; len]),
        Just(planted(HelloKind::Hello)),
        Just(planted(HelloKind::Ack)),
        Just(frame),
        Just(vec![0x5a; crate::limits::MAX_PAYLOAD]),
    ]
}

/// Frames of one session: bytes, and for each frame where it ends and how it is seen.
fn frames(epoch: u32) -> impl Strategy<Value = (Vec<u8>, Vec<(usize, Seen)>)> {
    vec((any::<u32>(), 0u8..8, any::<u16>(), payload(), 0usize..3), 0..12).prop_map(move |list| {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for (stream, kind, value, data, padding) in list {
            let body = match kind {
                0 => Body::Open { port: value },
                1 => Body::Opened,
                2 => Body::Refused(RefuseCode::NotAllowed),
                3 => Body::Window { credit: u32::from(value) + 1 },
                4 => Body::Fin,
                5 => Body::Reset(ResetCode::Done),
                _ => Body::Data(&data),
            };
            bytes.resize(bytes.len() + padding, 0);
            encode(&mut bytes, epoch, stream, body);
            let seen = match body {
                Body::Data(data) => Seen::Frame(stream, "Data".to_owned(), data.to_vec()),
                body => Seen::Frame(stream, format!("{body:?}"), Vec::new()),
            };
            ends.push((bytes.len(), seen));
        }
        (bytes, ends)
    })
}

fn whole(ends: &[(usize, Seen)], cut: usize) -> Vec<Seen> {
    ends.iter().filter(|(end, _)| *end <= cut).map(|(_, seen)| seen.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_split_gives_the_same(
        (bytes, ends) in frames(OLD),
        garbage in vec(any::<u8>(), 0..64),
        host in any::<bool>(),
        cuts in vec(any::<usize>(), 0..20),
    ) {
        let kind = if host { HelloKind::Ack } else { HelloKind::Hello };
        prop_assert_eq!(decode(kind, Some(OLD), &bytes, &cuts), whole(&ends, bytes.len()));
        let bytes = [bytes, garbage].concat();
        prop_assert_eq!(decode(kind, Some(OLD), &bytes, &cuts), decode(kind, Some(OLD), &bytes, &[]));
    }

    #[test]
    fn garbage_is_never_a_frame_or_a_record(bytes in vec(any::<u8>(), 0..4096), cuts in vec(any::<usize>(), 0..8)) {
        for (kind, epoch) in [(HelloKind::Ack, Some(OLD)), (HelloKind::Hello, Some(OLD)), (HelloKind::Hello, None)] {
            let seen = decode(kind, epoch, &bytes, &cuts);
            prop_assert!(seen.iter().all(|seen| matches!(seen, Seen::Error(_))), "{:?}", seen);
        }
    }

    #[test]
    fn a_cut_frame_is_never_delivered((bytes, ends) in frames(OLD), cut in any::<Index>(), rest in payload()) {
        let cut = cut.index(bytes.len() + 1);
        // A planted frame at the border is one, so that only zeros and chance come there.
        let rest = if rest.len() < 100 { vec![0; rest.len()] } else { rest };
        let wire = [&bytes[..cut], &rest].concat();
        // A strange tail is the right one by chance where a byte or two was missing.
        let right = bytes.iter().zip(&wire).take_while(|(one, other)| one == other).count();
        let seen = decode(HelloKind::Ack, Some(OLD), &wire, &[]);
        let delivered: Vec<_> = seen.into_iter().filter(|seen| !matches!(seen, Seen::Error(_))).collect();
        prop_assert_eq!(delivered, whole(&ends, right));
    }

    #[test]
    fn one_hello_resynchronizes_after_any_cut(
        (old, old_ends) in frames(OLD),
        cut in any::<Index>(),
        half_hello in 0..crate::core::frame::MAX_FRAME + HELLO_LEN,
        (new, new_ends) in frames(NEW),
        cuts in vec(any::<usize>(), 0..8),
        fresh in any::<bool>(),
    ) {
        let hello = Hello { version: 1, epoch: NEW, nonce: 9 };
        let cut = cut.index(old.len() + 1);
        // A handshake that was cut itself comes between the two.
        let half = Hello { version: 1, epoch: NEW ^ 2, nonce: 8 }.preamble();
        let wire = [&old[..cut], &half[..half_hello], &hello.preamble(), &new].concat();
        // `fresh`: a guest agent that just started and sees the middle of something; the planted records of the old
        // session may be found then, but the real one is found all the same.
        let seen = decode(HelloKind::Hello, (!fresh).then_some(OLD), &wire, &cuts);
        let at = seen.iter().position(|seen| *seen == Seen::Hello(hello));
        prop_assert!(at.is_some(), "not found: {:?}", seen);
        let (before, after) = seen.split_at(at.unwrap_or(0));
        prop_assert_eq!(&after[1..], &whole(&new_ends, new.len())[..]);
        if !fresh {
            let delivered: Vec<_> = before.iter().filter(|seen| !matches!(seen, Seen::Error(_))).cloned().collect();
            prop_assert_eq!(delivered, whole(&old_ends, cut));
        }
    }

    #[test]
    fn the_host_finds_its_ack_behind_anything((old, _) in frames(OLD), cut in any::<Index>(), from in any::<Index>()) {
        let from = from.index(old.len() + 1);
        let cut = from + cut.index(old.len() + 1 - from);
        let ack = Hello { version: 1, epoch: NEW, nonce: 9 };
        let mut wire = old[from..cut].to_vec();
        ack.encode(HelloKind::Ack, &mut wire);
        let mut decoder = Decoder::new(HelloKind::Ack);
        let mut found = false;
        for chunk in wire.chunks(1000) {
            decoder.space()[..chunk.len()].copy_from_slice(chunk);
            decoder.filled(chunk.len());
            while let Ok(Some(Item::Hello(hello))) = decoder.decode() {
                found = hello == ack;
            }
        }
        prop_assert!(found);
    }
}

fn check(bytes: &[u8], want: DecodeError) {
    let seen = decode(HelloKind::Ack, Some(OLD), bytes, &[]);
    assert_eq!(seen.first(), Some(&Seen::Error(want)), "{bytes:02x?}");
}

/// A header with a right checksum and whatever else.
fn header(kind: u8, flags: u8, length: u16, epoch: u32) -> Vec<u8> {
    let mut out = vec![kind, flags];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

#[test]
fn each_bad_header_is_named_before_its_payload_arrives() {
    check(b"GET / HTTP/1.1\r\n", DecodeError::Header { first: b'G' });
    check(&header(4, 0, 10, NEW), DecodeError::Epoch { got: NEW, want: OLD });
    check(&header(9, 0, 0, OLD), DecodeError::Type { kind: 9, flags: 0 });
    check(&header(4, 1, 10, OLD), DecodeError::Type { kind: 4, flags: 1 });
    check(&header(4, 0, 0, OLD), DecodeError::Length { kind: 4, length: 0 });
    check(&header(4, 0, 32769, OLD), DecodeError::Length { kind: 4, length: 32769 });
    check(&header(5, 0, 2, OLD), DecodeError::Length { kind: 5, length: 2 });
    let mut refused = header(3, 0, 2, OLD);
    refused.extend_from_slice(&[99, 0]);
    refused.extend_from_slice(&(OLD ^ 0x5a5a_5a5a ^ 2).to_le_bytes());
    check(&refused, DecodeError::Code { kind: 3, code: 99 });
    let mut cut = header(6, 0, 0, OLD);
    cut.extend_from_slice(&[0; 4]);
    check(&cut, DecodeError::Trailer);
}
