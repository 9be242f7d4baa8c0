//! What differs between two files that once were clones of each other, without reading them.
//!
//! Where both have the same bytes on the same blocks of the disk, they are equal; the file system tells the blocks
//! (`FS_IOC_FIEMAP`). Where it cannot, everything that is data in one of them counts as different.

use std::{fs::File, io, ops::Range, os::fd::AsRawFd, path::Path};

use super::{StorageError, clone::data_ranges};

/// Extents per question to the kernel.
const BATCH: usize = 256;
/// Extents that are looked at in one file; one in more pieces is compared by content.
const EXTENTS_MAX: usize = 1 << 20;

/// The kernel is to write out the file first: what is only in memory has no place yet.
const FLAG_SYNC: u32 = 1;
const EXTENT_LAST: u32 = 1;
const EXTENT_UNWRITTEN: u32 = 0x800;
/// Unknown place, delayed allocation, encoded, encrypted, not aligned, inline or in a tail: the place tells nothing.
const EXTENT_VAGUE: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

/// `struct fiemap_extent` of the kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_2: [u32; 3],
}

/// `struct fiemap` of the kernel, with room for the answer.
#[repr(C)]
struct RawMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

// The kernel's layout; the request's number holds the size of the structure without the extents.
const HEADER: usize = 32;
const _: () = assert!(size_of::<RawExtent>() == 56 && size_of::<RawMap>() == HEADER + 56 * BATCH);

mod ioctl {
    // Reads and writes a `struct fiemap` and as many extents after it as it says there is room for.
    nix::ioctl_readwrite_bad!(fiemap, nix::request_code_readwrite!(b'f', 11, super::HEADER), super::RawMap);
}

/// A piece of a file and where it lies; `None` when that cannot be told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    range: Range<u64>,
    place: Option<(u64, bool)>,
}

/// The ranges in which `file` may differ from `base`, in order. Both must not change meanwhile. What is past the end of
/// one of them is told only as far as the other has data there.
pub fn changed_extents(base: &Path, file: &Path) -> Result<Vec<Range<u64>>, StorageError> {
    let open = |path: &Path| File::open(path).map_err(StorageError::io("open", path));
    let (base_file, new_file) = (open(base)?, open(file)?);
    let length =
        |file: &File, path: &Path| file.metadata().map(|meta| meta.len()).map_err(StorageError::io("open", path));
    let length = length(&base_file, base)?.max(length(&new_file, file)?);
    let mut changed = match (extents(&base_file), extents(&new_file)) {
        (Ok(old), Ok(new)) => differing(&old, &new),
        // Not every file system tells.
        _ => {
            let data = |file: &File, path: &Path| {
                let ranges = data_ranges(file).map_err(StorageError::io("look for data in", path))?;
                Ok::<Vec<_>, StorageError>(ranges.into_iter().map(|range| Extent { range, place: None }).collect())
            };
            differing(&data(&base_file, base)?, &data(&new_file, file)?)
        }
    };
    // File systems reserve room past the end.
    changed.retain(|range| range.start < length);
    if let Some(last) = changed.last_mut() {
        last.end = last.end.min(length);
    }
    Ok(changed)
}

#[expect(unsafe_code, reason = "neither rustix nor nix asks for a file's extents")]
fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut start = 0;
    loop {
        let mut map = Box::new(RawMap {
            start,
            length: u64::MAX - start,
            flags: FLAG_SYNC,
            mapped_extents: 0,
            extent_count: u32::try_from(BATCH).map_err(io::Error::other)?,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        });
        // SAFETY: `map` has room for `extent_count` extents and outlives the call.
        unsafe { ioctl::fiemap(file.as_raw_fd(), &raw mut *map) }?;
        let answer = map.extents.get(..map.mapped_extents as usize).unwrap_or_default();
        for raw in answer {
            let end = raw.logical.saturating_add(raw.length);
            if end <= start {
                return Err(io::Error::other("the file system told extents out of order"));
            }
            start = end;
            let place = (raw.flags & EXTENT_VAGUE == 0).then_some((raw.physical, raw.flags & EXTENT_UNWRITTEN != 0));
            extents.push(Extent { range: raw.logical..end, place });
        }
        if answer.last().is_none_or(|raw| raw.flags & EXTENT_LAST != 0) {
            return Ok(extents);
        }
        if extents.len() > EXTENTS_MAX {
            return Err(io::Error::other("the file is in too many pieces"));
        }
    }
}

/// Where one has something and the other has not the very same. Both are in order and do not overlap.
fn differing(old: &[Extent], new: &[Extent]) -> Vec<Range<u64>> {
    let mut cuts: Vec<u64> = old.iter().chain(new).flat_map(|extent| [extent.range.start, extent.range.end]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut changed: Vec<Range<u64>> = Vec::new();
    for (start, end) in cuts.iter().zip(cuts.iter().skip(1)) {
        let (was, is) = (covering(&mut old, *start), covering(&mut new, *start));
        let same = match (was, is) {
            (None, None) => true,
            (Some(was), Some(is)) => was.is_some() && was == is,
            _ => false,
        };
        match changed.last_mut() {
            _ if same => {}
            Some(last) if last.end == *start => last.end = *end,
            _ => changed.push(*start..*end),
        }
    }
    changed
}

/// Whether an extent holds the byte `at`, and then where that lies. Asked with ever larger `at`.
fn covering<'a>(
    extents: &mut std::iter::Peekable<impl Iterator<Item = &'a Extent>>,
    at: u64,
) -> Option<Option<(u64, bool)>> {
    while extents.next_if(|extent| extent.range.end <= at).is_some() {}
    let extent = extents.peek().filter(|extent| extent.range.start <= at)?;
    Some(extent.place.map(|(place, unwritten)| (place + (at - extent.range.start), unwritten)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use super::*;
    use crate::storage::clone_file;

    /// The ranges as pairs.
    fn check(old: &[Extent], new: &[Extent], expected: &[(u64, u64)]) {
        let changed: Vec<_> = differing(old, new).into_iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(changed, expected, "{old:?} {new:?}");
    }

    fn extent(range: Range<u64>, place: u64) -> Extent {
        Extent { range, place: Some((place, false)) }
    }

    #[test]
    fn the_same_blocks_are_equal_and_nothing_else_is() {
        let base = [extent(0..100, 1000), extent(200..300, 5000)];
        check(&base, &base, &[]);
        check(&base, &[], &[(0, 100), (200, 300)]);
        check(&[], &base, &[(0, 100), (200, 300)]);
        // Written anew in the middle; the rest is as it was, in other pieces.
        let file = [extent(0..40, 1000), extent(40..60, 9000), extent(60..100, 1060), extent(200..300, 5000)];
        check(&base, &file, &[(40, 60)]);
        // The same blocks at another place.
        check(&[extent(0..100, 1000)], &[extent(50..150, 1000)], &[(0, 150)]);
        // A place that cannot be told is never the same.
        let vague = [Extent { range: 0..100, place: None }];
        check(&vague, &vague, &[(0, 100)]);
        // Reserved and not written is not the same as written.
        let unwritten = [Extent { range: 0..100, place: Some((1000, true)) }];
        check(&unwritten, &[extent(0..100, 1000)], &[(0, 100)]);
    }

    #[test]
    fn what_was_written_to_a_clone_is_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (base, file) = (dir.path().join("base"), dir.path().join("file"));
        fs::write(&base, vec![1; 4 << 20]).expect("write");
        let clone = clone_file(&base, &file).expect("clone");
        let same = changed_extents(&base, &file).expect("compare");
        let shares_blocks = crate::storage::clone::can_reflink(dir.path());
        assert_eq!(same.is_empty(), shares_blocks, "{same:?}");
        clone.write_all_at(&[2; 4096], 1 << 20).expect("write");
        clone.write_all_at(&[3; 10], (4 << 20) + 5).expect("append");
        let changed = changed_extents(&base, &file).expect("compare");
        for at in [1 << 20, (1 << 20) + 4095, (4 << 20) + 14] {
            assert!(changed.iter().any(|range| range.contains(&at)), "{at}: {changed:?}");
        }
        let bytes: u64 = changed.iter().map(|range| range.end - range.start).sum();
        assert!(!shares_blocks || bytes <= 1 << 20, "{changed:?}");
        changed_extents(&base, &dir.path().join("absent")).expect_err("absent");
    }
}
