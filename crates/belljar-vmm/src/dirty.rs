//! What a guest wrote to its memory, read from outside of a VM process that stands still.
//!
//! Guest memory is a private mapping of a file. A page that was never written is the file's page, or none yet; the first write
//! replaces it by a page without a file. The kernel tells which is which in `/proc/PID/pagemap`.
//!
//! Or it is memory without a file ([`Origin::Anonymous`]): then every page that is there counts as written.
//!
//! What a guest gave back ([`Capabilities::takes_back_memory`](crate::Capabilities::takes_back_memory)) may have become memory
//! without a file in the middle of the mapping, so where that was at first is remembered ([`Origin::At`]). Of a page that was given
//! back and not used again the file's content stays: the guest knows nothing of it and writes before it reads.

use crate::driver::DirtyMemory;
use crate::limits::{COPIERS, COPY_ALONE_BYTES, IOVECS, PIECE_BYTES};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of a page, in both of the types needed here.
const PAGE: u64 = 4096;
const PAGE_SIZE: usize = 4096;

/// Entries of `/proc/PID/pagemap` read at once.
const ENTRIES: usize = 64 * 1024;

/// Regions asked of the kernel at once.
const REGIONS: usize = 1024;

/// A piece of guest memory in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Addresses in the process.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Offset in guest memory.
    pub(crate) offset: u64,
}

/// What guest memory began as, by which it is found in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The file with this number.
    File(u64),
    /// Zeroes.
    Anonymous,
    /// A file that was mapped there.
    At(Places),
}

/// Where in the process guest memory is: of each piece its address, its offset in guest memory, and its length, which is 0 of none.
/// There are two where there is more than fits below the hole that is left for devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places([(u64, u64, u64); 2]);

impl Places {
    /// Where the file with this number is mapped in process `pid`, whose guest has `bytes`, and has had nothing to give back yet.
    pub(crate) fn find(pid: u32, inode: u64, bytes: u64) -> io::Result<Self> {
        let mut pieces: Vec<(u64, u64, u64)> = Vec::new();
        for Mapping { start, end, offset } in mappings(&std::fs::read_to_string(format!("/proc/{pid}/maps"))?, inode) {
            match pieces.last_mut() {
                Some((address, place, length)) if (*address + *length, *place + *length) == (start, offset) => {
                    *length += end - start;
                }
                _ => pieces.push((start, offset, end - start)),
            }
        }
        let mut places = Self::default();
        if pieces.iter().map(|(_, _, length)| length).sum::<u64>() != bytes || pieces.len() > places.0.len() {
            return Err(io::Error::other("its guest's memory is not mapped as expected"));
        }
        places.0.iter_mut().zip(pieces).for_each(|(place, piece)| *place = piece);
        Ok(places)
    }

    fn mappings(self) -> Vec<Mapping> {
        let mapping = |(start, offset, length)| Mapping { start, end: start + length, offset };
        self.0.into_iter().filter(|(_, _, length)| *length > 0).map(mapping).collect()
    }
}

/// Memory for [`copy`], taken and touched ahead: while the VM stands still, only what was written since has to be found room for.
pub(crate) fn room(pid: u32, origin: Origin, bytes: u64) -> io::Result<Vec<u8>> {
    let (runs, _) = written(pid, origin, bytes)?;
    let total: u64 = runs.iter().map(|(_, length)| length).sum();
    let mut room = empty(usize::try_from(total + total / 8).map_err(io::Error::other)?);
    // Writing is what makes the pages ours.
    room.resize(room.capacity(), 0);
    room.clear();
    Ok(room)
}

/// Copies the written pages of process `pid`'s guest memory, which has `bytes`, into `room`, which grows where it is too small.
#[expect(unsafe_code, reason = "what was filled by the kernel was not by us")]
pub(crate) fn copy(pid: u32, origin: Origin, bytes: u64, room: Vec<u8>) -> io::Result<DirtyMemory> {
    let (runs, addresses) = written(pid, origin, bytes)?;
    let total = wide(addresses.iter().map(|(_, length)| length).sum())?;
    let mut data = if room.capacity() < total { empty(total) } else { room };
    data.clear();
    let share = total.div_ceil(COPIERS).next_multiple_of(PAGE_SIZE).max(COPY_ALONE_BYTES);
    let rooms = data.spare_capacity_mut()[..total].chunks_mut(share);
    std::thread::scope(|scope| {
        let parts = shares(&addresses, share as u64).into_iter().zip(rooms);
        let copiers: Vec<_> = parts.map(|(part, room)| scope.spawn(move || fill(pid, &part, room))).collect();
        copiers.into_iter().try_for_each(|copier| copier.join().map_err(|_| io::Error::other("a copier panicked"))?)
    })?;
    // SAFETY: all of it was filled.
    unsafe { data.set_len(total) };
    Ok(DirtyMemory { runs, data })
}

/// Shows the same to `each`, piece by piece, until it says false.
pub(crate) fn each(
    pid: u32,
    origin: Origin,
    bytes: u64,
    each: &mut (dyn FnMut(u64, &[u8]) -> bool + Send),
) -> io::Result<Runs> {
    let (runs, addresses) = written(pid, origin, bytes)?;
    let mut room = Vec::with_capacity(PIECE_BYTES);
    let cut = |pieces: &Runs| shares(pieces, PIECE_BYTES as u64);
    for (places, addresses) in cut(&runs).into_iter().zip(cut(&addresses)) {
        let mut data = refill(pid, &addresses, &mut room)?;
        for (place, length) in places {
            let piece;
            (piece, data) = data.split_at(wide(length)?);
            if !each(place, piece) {
                return Ok(runs);
            }
        }
    }
    Ok(runs)
}

/// Copies pieces into a buffer that has room for them.
#[expect(unsafe_code, reason = "as above")]
fn refill<'a>(pid: u32, pieces: &[(u64, u64)], room: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    room.clear();
    let total = wide(pieces.iter().map(|(_, length)| length).sum())?;
    fill(pid, pieces, &mut room.spare_capacity_mut()[..total])?;
    // SAFETY: all of it was filled.
    unsafe { room.set_len(total) };
    Ok(room)
}

/// Runs of offset and length.
pub(crate) type Runs = Vec<(u64, u64)>;

/// Where guest memory, which has `bytes`, is in process `pid`.
pub(crate) fn places(pid: u32, origin: Origin, bytes: u64) -> io::Result<Vec<Mapping>> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let mappings = match origin {
        Origin::File(inode) => mappings(&read("maps")?, inode),
        Origin::At(places) => places.mappings(),
        Origin::Anonymous => anonymous(&read("smaps")?, bytes, |address| shows_low_memory(pid, address)),
    };
    if mappings.iter().map(|mapping| mapping.end - mapping.start).sum::<u64>() != bytes {
        return Err(io::Error::other("its guest's memory is not mapped as it was at its start"));
    }
    Ok(mappings)
}

/// What was written: by its place in guest memory, and by its place in the process.
fn written(pid: u32, origin: Origin, bytes: u64) -> io::Result<(Runs, Runs)> {
    written_in(pid, places(pid, origin, bytes)?)
}

pub(crate) fn written_in(pid: u32, mappings: Vec<Mapping>) -> io::Result<(Runs, Runs)> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut addresses = Vec::new();
    let mut runs = Vec::new();
    for mapping in mappings {
        let found = match scan(&pagemap, mapping) {
            Ok(found) => found,
            // Linux before 6.7.
            Err(_) => read_entries(&pagemap, mapping)?,
        };
        runs.extend(found.iter().map(|(start, length)| (start - mapping.start + mapping.offset, *length)));
        addresses.extend(found);
    }
    Ok((runs, addresses))
}

/// A buffer of large pages: clearing and mapping small ones would take longer than the copying.
#[expect(unsafe_code, reason = "no safe wrapper gives advice on memory that is not initialized")]
fn empty(capacity: usize) -> Vec<u8> {
    let mut data: Vec<u8> = Vec::with_capacity(capacity);
    // SAFETY: advice on memory that is ours changes no content; an address that does not fit is refused. Only a hint.
    unsafe {
        let start = data.as_mut_ptr().map_addr(|address| address.next_multiple_of(PAGE_SIZE));
        libc::madvise(start.cast(), capacity.saturating_sub(2 * PAGE_SIZE), libc::MADV_HUGEPAGE);
    }
    data
}

/// The private writable mappings of a file, in the order of the file, from `/proc/PID/maps`:
/// `7f26-7f27 rw-p 00000000 fe:00 10051770 /path`. The device number is not looked at: with some file systems it is not the file's.
fn mappings(maps: &str, inode: u64) -> Vec<Mapping> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let private = words.next()?.starts_with("rw-p");
        let offset = hex(words.next()?)?;
        let number: u64 = words.nth(1)?.parse().ok()?;
        let mapping = Mapping { start: hex(start)?, end: hex(end)?, offset };
        (private && number == inode && mapping.start < mapping.end).then_some(mapping)
    };
    let mut found: Vec<Mapping> = maps.lines().filter_map(parse).collect();
    found.sort_by_key(|mapping| mapping.offset);
    found
}

/// Bytes of guest memory below the hole that is left for devices, where memory is larger than that.
const LOW_MEMORY: u64 = 3 << 30;

/// What VM programs align guest memory to.
const ALIGNMENT: u64 = 2 << 20;

/// The mappings of guest memory without a file, from `/proc/PID/smaps`: what is private, writable and not accounted for
/// (`nr`). Memory above the hole is a mapping of its own, anywhere. `is_low` looks into one.
fn anonymous(smaps: &str, bytes: u64, is_low: impl Fn(u64) -> bool) -> Vec<Mapping> {
    let areas = areas(smaps);
    let mapping = |start: u64, length: u64, offset| Mapping { start, end: start + length, offset };
    let lower = |size| find(&areas, size, |_| true).or_else(|| find(&areas, size, &is_low));
    if let Some(whole) = lower(bytes) {
        return vec![mapping(whole, bytes, 0)];
    }
    let Some(rest) = bytes.checked_sub(LOW_MEMORY) else { return Vec::new() };
    let Some(low) = lower(LOW_MEMORY) else { return Vec::new() };
    let elsewhere = |start: u64| start + rest <= low || low + LOW_MEMORY <= start;
    let high = find(&areas, rest, elsewhere);
    high.map(|high| vec![mapping(low, LOW_MEMORY, 0), mapping(high, rest, LOW_MEMORY)]).unwrap_or_default()
}

/// Where the only piece of this size is that may be guest memory. A neighbour of the same kind becomes one with it: then it
/// is at an end of that, aligned.
fn find(areas: &Runs, size: u64, may_be: impl Fn(u64) -> bool) -> Option<u64> {
    let only = |places: Vec<u64>| if let [place] = places[..] { Some(place) } else { None };
    let exact = areas.iter().filter(|(start, length)| *length == size && may_be(*start));
    only(exact.map(|(start, _)| *start).collect()).or_else(|| {
        let larger = areas.iter().filter(|(_, length)| *length > size);
        let ends = larger.flat_map(|(start, length)| [*start, start + length - size]);
        only(ends.filter(|place| place % ALIGNMENT == 0 && may_be(*place)).collect())
    })
}

/// Start and length of areas that may be guest memory. Advice on parts of one splits it; they are put together again.
fn areas(smaps: &str) -> Runs {
    let mut areas = Runs::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "VmFlags:" {
            if let (Some((start, end)), true) = (current.take(), words.any(|flag| flag == "nr")) {
                add(&mut areas, start, end - start);
            }
        } else if !first.ends_with(':') {
            // `7f26-7f27 rw-p 00000000 00:00 0`, and a name if it has one.
            let is_plain = words.next() == Some("rw-p") && words.nth(2) == Some("0") && words.next().is_none();
            let range = first.split_once('-').and_then(|(start, end)| Some((hex(start)?, hex(end)?)));
            current = range.filter(|_| is_plain);
        }
    }
    areas
}

/// Whether guest memory begins here: VM programs put ACPI's root pointer at its place below 1 MiB.
fn shows_low_memory(pid: u32, address: u64) -> bool {
    const PLACE: u64 = 0xe_0000;
    const SIGNATURE: &[u8] = b"RSD PTR ";
    let mut room = Vec::with_capacity(SIGNATURE.len());
    refill(pid, &[(address + PLACE, SIGNATURE.len() as u64)], &mut room).is_ok_and(|found| found == SIGNATURE)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Adds pages to the last run, or begins one.
fn add(runs: &mut Vec<(u64, u64)>, start: u64, length: u64) {
    match runs.last_mut() {
        Some((last, size)) if *last + *size == start => *size += length,
        _ => runs.push((start, length)),
    }
}

/// The written pages of a mapping, one by one.
fn read_entries(pagemap: &File, mapping: Mapping) -> io::Result<Vec<(u64, u64)>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    let mut runs = Vec::new();
    let mut buffer = vec![0; ENTRIES * 8];
    let mut page = mapping.start / PAGE;
    while page < mapping.end / PAGE {
        let count = usize::try_from(mapping.end / PAGE - page).unwrap_or(ENTRIES).min(ENTRIES);
        let entries = &mut buffer[..count * 8];
        pagemap.read_exact_at(entries, page * 8)?;
        for entry in entries.as_chunks::<8>().0 {
            let entry = u64::from_ne_bytes(*entry);
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                add(&mut runs, page * PAGE, PAGE);
            }
            page += 1;
        }
    }
    Ok(runs)
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    returned: u64,
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::Ioctl = (3 << 30) | ((size_of::<ScanArguments>() as libc::Ioctl) << 16) | (0x66 << 8) | 16;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// The written pages of a mapping, as runs that the kernel (6.7 or newer) makes.
#[expect(unsafe_code, reason = "no safe wrapper has this ioctl")]
fn scan(pagemap: &File, mapping: Mapping) -> io::Result<Vec<(u64, u64)>> {
    let mut regions = vec![Region { start: 0, end: 0, categories: 0 }; REGIONS];
    let mut runs = Vec::new();
    let mut start = mapping.start;
    while start < mapping.end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            flags: 0,
            start,
            end: mapping.end,
            walk_end: 0,
            regions: regions.as_mut_ptr().expose_provenance() as u64,
            region_count: REGIONS as u64,
            max_pages: 0,
            inverted: PAGE_IS_FILE,
            all_of: PAGE_IS_FILE,
            any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            returned: PAGE_IS_FILE,
        };
        // SAFETY: the argument is laid out as the kernel defines it and says its size; `regions` has room for as many as
        // it says, and lives until the call returns.
        let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let found = usize::try_from(found).map_err(|_| io::Error::last_os_error())?;
        for region in regions.iter().take(found) {
            add(&mut runs, region.start, region.end - region.start);
        }
        // Not from `walk_end`: when the kernel gets to the end in several steps of its own, that is the last but one.
        match regions.get(found.wrapping_sub(1)) {
            Some(last) if found == REGIONS => start = last.end,
            _ => break,
        }
    }
    Ok(runs)
}

/// Cuts pieces into shares of `bytes` each; the last one may be smaller.
fn shares(pieces: &[(u64, u64)], bytes: u64) -> Vec<Vec<(u64, u64)>> {
    let (mut shares, mut room) = (Vec::<Vec<_>>::new(), 0);
    for &(mut start, mut length) in pieces {
        while length > 0 {
            if room == 0 {
                shares.push(Vec::new());
                room = bytes;
            }
            let part = length.min(room);
            shares.last_mut().expect("just pushed").push((start, part));
            (start, length, room) = (start + part, length - part, room - part);
        }
    }
    shares
}

/// Copies pieces of another process's memory, one after the other, into `room`, which is filled.
#[expect(unsafe_code, reason = "no safe wrapper reads many pieces of another process into memory that was not cleared")]
fn fill(pid: u32, pieces: &[(u64, u64)], mut room: &mut [MaybeUninit<u8>]) -> io::Result<()> {
    // What is still to be copied: the first piece's rest, and the other pieces.
    let (mut next, mut skip) = (0, 0);
    while let Some(rest) = pieces.get(next..).filter(|rest| !rest.is_empty()) {
        let mut remote = Vec::with_capacity(rest.len().min(IOVECS));
        for (start, length) in rest.iter().take(IOVECS) {
            let iov_base = std::ptr::with_exposed_provenance_mut(wide(*start)?);
            remote.push(libc::iovec { iov_base, iov_len: wide(*length)? });
        }
        if let Some(first) = remote.first_mut() {
            first.iov_base = first.iov_base.map_addr(|address| address + skip);
            first.iov_len -= skip;
        }
        let local = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let count = remote.len() as libc::c_ulong;
        // SAFETY: `local` is ours to write to; the remote addresses are checked by the kernel.
        let copied =
            unsafe { libc::process_vm_readv(pid.cast_signed(), &raw const local, 1, remote.as_ptr(), count, 0) };
        let copied = usize::try_from(copied).map_err(|_| io::Error::last_os_error())?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        room = &mut room[copied..];
        skip += copied;
        while let Some((_, length)) = pieces.get(next).filter(|(_, length)| *length <= skip as u64) {
            skip -= wide(*length)?;
            next += 1;
        }
    }
    if room.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn wide(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "dirty_test.rs"]
mod tests;
