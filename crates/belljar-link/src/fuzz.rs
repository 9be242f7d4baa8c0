//! The body of the fuzz target `link_decoder`, here so that an ordinary test runs and compiles it too.

use crate::{
    core::{
        decoder::{Decoder, Item},
        frame::{self, AbortCode, Body, RefuseCode, ResetCode},
        hello::{EPOCH_BIT, HelloKind},
        mux::{Event, Mux, Role},
    },
    limits::{MAX_PAYLOAD, MAX_STREAMS},
};

const EPOCH: u32 = EPOCH_BIT | 0x5a5a;

/// Feeds `data` to both roles, once as raw bytes, cut in two different ways that must give the same, and once as a
/// script of well-formed frames in any order, which checksums would otherwise keep the fuzzer from finding.
///
/// # Panics
/// When it finds a bug.
pub fn fuzz_decoder(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else { return };
    let role = if how & 1 == 0 { Role::Host } else { Role::Guest };
    let step = usize::from(how >> 2) + 1;
    let hunting = how & 2 == 0;
    let whole = decode(role, hunting, data, data.len().max(1));
    assert_eq!(whole, decode(role, hunting, data, step), "the result depends on how the input is cut");

    let mut wire = Vec::new();
    script(data, &mut wire);
    decode(role, false, &wire, 4096);
}

/// What came out: a count of items and errors, and the bytes left to send.
fn decode(role: Role, hunting: bool, data: &[u8], step: usize) -> (usize, usize, Vec<u8>) {
    let looks_for = if role == Role::Host { HelloKind::Ack } else { HelloKind::Hello };
    let mut decoder = Decoder::new(looks_for);
    let mut mux = Mux::new(role, EPOCH);
    if role == Role::Host {
        // Streams for the guest to play with.
        for port in 0..4 {
            let _ = mux.open(port);
        }
        mux.transmit(&mut Vec::new(), |_| {});
    }
    if !hunting {
        decoder.begin(EPOCH);
    }
    let (mut items, mut errors) = (0, 0);
    for mut chunk in data.chunks(step) {
        while !chunk.is_empty() {
            let space = decoder.space();
            let count = space.len().min(chunk.len());
            space[..count].copy_from_slice(&chunk[..count]);
            decoder.filled(count);
            chunk = &chunk[count..];
            loop {
                match decoder.decode() {
                    Ok(None) => break,
                    Ok(Some(Item::Hello(hello))) => decoder.begin(hello.epoch),
                    Ok(Some(Item::Frame(frame))) => match mux.on_frame(frame) {
                        Ok(Some(event)) => react(&mut mux, event),
                        Ok(None) => {}
                        Err(_) => errors += 1,
                    },
                    Err(_) => errors += 1,
                }
                items += 1;
            }
        }
    }
    let mut out = Vec::new();
    mux.transmit(&mut out, |_| {});
    assert!(out.len() <= (2 * MAX_STREAMS + 8) * 64 + 4 * MAX_PAYLOAD, "output grows with the input");
    (items, errors, out)
}

/// A local program that takes every stream, reads some of it and lets some go.
fn react(mux: &mut Mux, event: Event) {
    match event {
        Event::Offered { stream, port } if port % 2 == 0 => mux.accept(stream),
        Event::Offered { stream, .. } => mux.refuse(stream, RefuseCode::Refused),
        Event::Readable { stream } if stream % 4 != 3 => {
            let _ = mux.read(stream, |a, b| a.len() + b.len());
        }
        Event::Answered { stream } => {
            let _ = mux.write(stream, b"hello");
        }
        Event::Broken { stream } => mux.release(stream),
        Event::Readable { .. } | Event::Aborted(_) => {}
    }
}

/// Turns each four bytes into a frame.
fn script(data: &[u8], wire: &mut Vec<u8>) {
    for word in data.chunks_exact(4).take(1024) {
        let &[kind, stream, a, b] = word else { continue };
        let value = u16::from_le_bytes([a, b]);
        let payload = vec![a; usize::from(value).clamp(1, MAX_PAYLOAD)];
        let body = match kind % 8 {
            0 => Body::Open { port: value },
            1 => Body::Opened,
            2 => Body::Refused(if a % 2 == 0 { RefuseCode::Refused } else { RefuseCode::Failed }),
            3 => Body::Data(&payload),
            4 => Body::Window { credit: u32::from(value) << (b % 16) },
            5 => Body::Fin,
            6 => Body::Reset(if a % 2 == 0 { ResetCode::Cancelled } else { ResetCode::Done }),
            _ => Body::Abort(AbortCode::NotAFrame),
        };
        frame::encode(wire, EPOCH, u32::from(stream % 8), body);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::hello::Hello;

    proptest! {
        #[test]
        fn survives_generated_inputs(data in proptest::collection::vec(any::<u8>(), 0..2048)) {
            fuzz_decoder(&data);
        }

        #[test]
        fn survives_nearly_valid_inputs(how in any::<u8>(), at in any::<proptest::sample::Index>(), flip in any::<u8>(),
                                        words in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut data = vec![how];
            for kind in [HelloKind::Hello, HelloKind::Ack] {
                Hello { version: 1, epoch: EPOCH, nonce: 1 }.encode(kind, &mut data);
            }
            script(&words, &mut data);
            let at = at.index(data.len());
            data[at] ^= flip;
            fuzz_decoder(&data);
        }
    }
}
