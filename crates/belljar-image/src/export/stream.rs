//! Writes a layer: the members of a tar stream, each with a PAX header where ustar cannot say it.
//!
//! Sparse files are written as GNU tar does it (`GNU.sparse` 1.0), which everything that reads OCI layers understands.

use std::io::{self, Write};

use tar::{EntryType, Header};

use crate::limits::MAX_SEGMENTS;

/// Unit of a tar stream.
const BLOCK_BYTES: usize = 512;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// A member, but for its content.
#[derive(Debug, Clone)]
pub(super) struct Member<'a> {
    pub(super) kind: EntryType,
    pub(super) name: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: (i64, u32),
    pub(super) device: (u32, u32),
    pub(super) attributes: &'a [(Vec<u8>, Vec<u8>)],
    /// Bytes of its content, holes included.
    pub(super) size: u64,
    /// Where it has data, when it has holes that are worth it: starts and lengths.
    pub(super) map: Option<&'a [(u64, u64)]>,
}

/// Bytes of holes below which a file is not worth a map of them.
pub(super) const HOLES_WORTH: u64 = 64 << 10;

/// Where a file has data if it is to be written as a sparse one.
pub(super) fn sparse_map(stretches: &[(u64, u64)], size: u64) -> Option<Vec<(u64, u64)>> {
    let mut map: Vec<(u64, u64)> = Vec::new();
    for &(start, length) in stretches {
        match map.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += length,
            _ => map.push((start, length)),
        }
    }
    let data: u64 = map.iter().map(|(_, length)| length).sum();
    if size - data < HOLES_WORTH || map.len() >= MAX_SEGMENTS {
        return None;
    }
    // The end of the last one is the size of the file.
    if map.last().is_none_or(|(start, length)| start + length < size) {
        map.push((size, 0));
    }
    Some(map)
}

/// Writes the headers of a member. Its content has to follow, and [`pad`].
pub(super) fn begin(to: &mut impl Write, member: &Member<'_>) -> io::Result<()> {
    let map = member.map.map(map_text);
    let records = records(member);
    if !records.is_empty() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        put(&mut header.as_old_mut().name, b"PaxHeaders/member");
        header.set_size(records.len() as u64);
        header.set_mode(0o644);
        for set in [Header::set_uid, Header::set_gid, Header::set_mtime] {
            set(&mut header, 0);
        }
        header.set_cksum();
        to.write_all(header.as_bytes())?;
        to.write_all(&records)?;
        pad(to, records.len() as u64)?;
    }
    let mut header = Header::new_ustar();
    header.set_entry_type(member.kind);
    put(&mut header.as_old_mut().name, member.name);
    put(&mut header.as_old_mut().linkname, member.link);
    header.set_mode(member.mode);
    header.set_uid(fitting(member.uid));
    header.set_gid(fitting(member.gid));
    header.set_mtime(u64::try_from(member.modified.0).unwrap_or(0).min(OCTAL_MAX));
    if matches!(member.kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(member.device.0)?;
        header.set_device_minor(member.device.1)?;
    }
    let stored = stored_size(member);
    header.set_size(if stored > OCTAL_MAX { 0 } else { stored });
    header.set_cksum();
    to.write_all(header.as_bytes())?;
    to.write_all(&map.unwrap_or_default())
}

/// Bytes that follow the headers.
pub(super) fn stored_size(member: &Member<'_>) -> u64 {
    member.map.map_or(member.size, |map| map_text(map).len() as u64 + map.iter().map(|(_, length)| length).sum::<u64>())
}

/// Fills the last block of what has so many bytes.
pub(super) fn pad(to: &mut impl Write, size: u64) -> io::Result<()> {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let missing = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
    to.write_all(&ZEROS[..missing])
}

/// Ends the stream.
pub(super) fn end(to: &mut impl Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK_BYTES])
}

/// Largest number of eleven octal digits.
const OCTAL_MAX: u64 = 0o777_7777_7777;
/// Largest one of seven.
const ID_MAX: u32 = 0o777_7777;

fn fitting(id: u32) -> u64 {
    if id > ID_MAX { 0 } else { id.into() }
}

/// As much as there is room for; the rest is in a PAX header.
fn put(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// `1\n0\n4096\n`, in whole blocks.
fn map_text(map: &[(u64, u64)]) -> Vec<u8> {
    let mut text = format!("{}\n", map.len());
    for (start, length) in map {
        text.push_str(&format!("{start}\n{length}\n"));
    }
    let mut text = text.into_bytes();
    text.resize(text.len().next_multiple_of(BLOCK_BYTES), 0);
    text
}

/// What ustar has no room for.
fn records(member: &Member<'_>) -> Vec<u8> {
    /// Bytes of a name in ustar.
    const NAME: usize = 100;
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| records.extend(record(key, value));
    if member.map.is_some() {
        add(b"GNU.sparse.major", b"1");
        add(b"GNU.sparse.minor", b"0");
        add(b"GNU.sparse.name", member.name);
        add(b"GNU.sparse.realsize", member.size.to_string().as_bytes());
    }
    if member.name.len() > NAME {
        add(b"path", member.name);
    }
    if member.link.len() > NAME {
        add(b"linkpath", member.link);
    }
    if stored_size(member) > OCTAL_MAX {
        add(b"size", stored_size(member).to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], member.uid), (b"gid", member.gid)] {
        if id > ID_MAX {
            add(key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = member.modified;
    if nanoseconds > 0 || seconds < 0 {
        add(b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in member.attributes {
        add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// Seconds with a fraction; before 1970 both count backwards.
fn time(seconds: i64, nanoseconds: u32) -> String {
    const SECOND: u32 = 1_000_000_000;
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds, nanoseconds) if seconds < 0 => {
            format!("-{}.{:09}", (seconds + 1).unsigned_abs(), SECOND - nanoseconds)
        }
        (seconds, nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_count_themselves() {
        for (length, expected) in [(1, 6), (3, 8), (4, 9), (5, 11), (94, 101), (95, 102)] {
            let record = record(b"k", &vec![b'v'; length]);
            assert_eq!(record.len(), expected, "{length}");
            assert!(record.starts_with(format!("{} k=v", record.len()).as_bytes()));
        }
    }

    #[test]
    fn times() {
        let check = |seconds, nanoseconds, expected: &str| assert_eq!(time(seconds, nanoseconds), expected);
        check(5, 0, "5");
        check(5, 7, "5.000000007");
        check(-1, 500_000_000, "-0.500000000");
        check(-2, 0, "-2");
    }

    #[test]
    fn only_large_holes_make_a_file_sparse() {
        assert_eq!(sparse_map(&[(0, 4096)], 5000), None);
        assert_eq!(sparse_map(&[], 1 << 20), Some(vec![(1 << 20, 0)]));
        assert_eq!(sparse_map(&[(0, 10), (10, 10), (1 << 20, 5)], (1 << 20) + 5), Some(vec![(0, 20), (1 << 20, 5)]));
    }

    proptest! {
        #[test]
        fn every_record_says_its_length(value in prop::collection::vec(any::<u8>(), 0..1200)) {
            let record = record(b"key", &value);
            let digits = record.iter().position(|&byte| byte == b' ').unwrap();
            let said: usize = std::str::from_utf8(&record[..digits]).unwrap().parse().unwrap();
            prop_assert_eq!(said, record.len());
        }
    }
}
