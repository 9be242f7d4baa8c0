use super::*;
use proptest::prelude::*;

/// What tells the memory of a VM with 64 MiB, as QEMU 10.0 writes it, with a smaller second block.
pub(in crate::qemu) const HEAD: &[&[u8]] = &[
    b"QEVM\0\0\0\x03",
    b"\x07\0\0\0\x07microvm\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared",
    // START of section 2, with the sizes of all blocks.
    b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04",
    b"\0\0\0\0\x04\0\x20\x04",
    b"\x03mem\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0",
    b"\x07pc.bios\0\0\0\0\0\0\x20\0\0\0\0\0\xff\xff\xe0\0",
    b"\0\0\0\0\0\0\0\x10",
    b"\x7e\0\0\0\x02",
    // A page, another one of the same block, which is zero, a flush.
    b"\x02\0\0\0\x02",
    b"\0\0\0\0\0\0\0\x08\x07pc.bios",
    &[4; PAGE_BYTES],
    b"\0\0\0\0\0\0\x10\x22\0",
    b"\0\0\0\0\0\0\x02\0",
    b"\0\0\0\0\0\0\0\x10",
    b"\x7e\0\0\0\x02",
    b"\x08\0\x0b\0\x01x",
    b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02",
];

/// Two devices; the first holds what looks like sections.
pub(in crate::qemu) const DEVICES: &[&[u8]] = &[
    b"QEVM\0\0\0\x03",
    b"\x04\0\0\0\0\x05timer\0\0\0\0\0\0\0\x02\0\x04\x7e\0\0\0\0",
    b"\x04\0\0\0\x01\x03cpu\0\0\0\0\0\0\0\x0c12345\x7e\0\0\0\x01",
    b"\0",
];

fn stream() -> Vec<u8> {
    [HEAD.concat(), DEVICES[1..].concat()].concat()
}

#[test]
fn head_ends_before_the_first_device() {
    let found = head(&stream()).unwrap();
    assert_eq!(found, Head { bytes: 0..HEAD.concat().len(), memory: 64 << 20 });
}

#[test]
fn every_cut_of_a_head_is_noticed() {
    let whole = HEAD.concat();
    for at in 0..whole.len() {
        assert!(head(&whole[..at]).is_err(), "{at}");
    }
}

/// Replaces the part of the head that begins with `begin`, and expects a refusal.
#[test]
fn what_is_no_head_is_refused() {
    let check = |begin: &[u8], instead: &[u8], expected: &str| {
        let position = HEAD.iter().position(|part| part.starts_with(begin)).unwrap();
        let mut parts = HEAD.to_vec();
        parts[position] = instead;
        let error = head(&[parts.concat(), DEVICES[1..].concat()].concat()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(b"QEVM", b"QEVM\0\0\0\x04", "a migration stream");
    check(b"\x07\0\0\0", b"\x07\0\0\0\x07microvm", "does not leave memory out");
    check(b"\x07\0\0\0", b"\x07\0\0\0\x01x\x05\x01y", "capabilities");
    check(b"\x03mem", b"\x03mex\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0", "no guest memory");
    check(b"\x03mem", b"\x03mem\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0", "the size of a memory block");
    check(b"\x03mem", b"\x03mem\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "the size of a memory block");
    check(b"\0\0\0\0\0\0\0\x08", b"\0\0\0\0\0\0\0\x08\x03mem", "does not leave memory out");
    check(b"\0\0\0\0\0\0\x02", b"\0\0\0\0\0\0\x04\0", "a page");
    check(b"\x7e", b"\x7e\0\0\0\x03", "a section's number");
    check(b"\x08", b"\x09", "a section");
}

#[test]
fn joined_and_annotated() {
    let joined = join(&HEAD.concat(), &DEVICES.concat()).unwrap();
    let state = annotate(joined.clone(), b"{}").unwrap();
    // Up to its EOF it is what QEMU would have written.
    assert!(state.starts_with(&stream()));
    let (again, note) = annotation(&state).unwrap();
    assert_eq!(again, joined);
    assert_eq!(note.trim_ascii(), b"{}");
    assert_eq!(annotate(joined, &[0; NOTE_BYTES + 1]), Err(StreamError::LongNote(NOTE_BYTES + 1)));

    let devices = DEVICES.concat();
    for at in 0..devices.len() {
        assert!(join(&HEAD.concat(), &devices[..at]).is_err(), "{at}");
    }
    assert!(join(&devices, &devices).is_err());
}

proptest! {
    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(head(&bytes).is_err() && annotation(&bytes).is_err() && join(&bytes, &bytes).is_err());
    }

    /// Whatever changes, it is read or refused; and what is read lies inside.
    #[test]
    fn damage_is_survived(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = stream();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(head) = head(&bytes) {
            prop_assert!(head.bytes.end < bytes.len());
            prop_assert_eq!(bytes[head.bytes.end], FULL);
        }
    }
}
