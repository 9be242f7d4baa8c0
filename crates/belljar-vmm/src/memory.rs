//! What a VM process's memory consists of, read from `/proc/PID/smaps`.

use crate::VmmError;

/// Resident memory of one VM process, in bytes, by what it is for. Everything but `guest` is the price of running the
/// guest in a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Guest memory the guest has touched. Of a VM that began with a memory file, what it only read is in there as well,
    /// though it shares that with all others that began with the file.
    pub guest: u64,
    /// Translated guest code (software emulation only).
    pub translation_cache: u64,
    /// Heap, stacks and other private memory without a file.
    pub heap: u64,
    /// Program, libraries and other mapped files, as if nobody else had them mapped.
    pub files: u64,
    /// This process's share of `files`: each page divided by the number of processes that map it.
    pub files_share: u64,
}

impl MemoryUse {
    /// All resident memory of the process.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.guest + self.overhead()
    }

    /// Resident memory beyond the guest's own.
    #[must_use]
    pub fn overhead(&self) -> u64 {
        self.translation_cache + self.heap + self.files
    }

    /// Of process `pid`, whose guest was given `memory_mib`.
    pub fn of(pid: u32, memory_mib: u64) -> Result<Self, VmmError> {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).map_err(|source| VmmError::Process {
            operation: "read the memory map of",
            pid,
            source,
        })?;
        Ok(parse(&smaps, memory_mib * 1024))
    }
}

/// One mapping; sizes in KiB.
#[derive(Default)]
struct Mapping<'a> {
    /// First and last address, as text.
    range: &'a str,
    permissions: &'a str,
    path: &'a str,
    size: u64,
    rss: u64,
    pss: u64,
}

impl Mapping<'_> {
    fn is_private_data(&self) -> bool {
        self.permissions.starts_with("rw-")
    }

    fn touches(&self, next: &Self) -> bool {
        matches!((self.range.split_once('-'), next.range.split_once('-')), (Some((_, end)), Some((start, _))) if end == start)
    }
}

impl MemoryUse {
    fn add(&mut self, mapping: &Mapping<'_>, is_guest: bool) {
        let anonymous = !mapping.path.starts_with('/');
        let rss = mapping.rss * 1024;
        // Translated code is the only memory that is writable and executable.
        if is_guest {
            self.guest += rss;
        } else if anonymous && mapping.permissions.starts_with("rwx") {
            self.translation_cache += rss;
        } else if anonymous {
            self.heap += rss;
        } else {
            self.files += rss;
            self.files_share += mapping.pss * 1024;
        }
    }
}

/// Guest memory is one mapping, or a row of mappings that touch where the guest gave some back ([`crate::dirty`]). Nothing else
/// that a VM process has is that large, with a file or without; a neighbour of the same kind may have become a part of it.
fn parse(smaps: &str, guest_kib: u64) -> MemoryUse {
    let mappings = mappings(smaps);
    let rows = mappings.chunk_by(|one, next| one.is_private_data() && next.is_private_data() && one.touches(next));
    let mut sum = MemoryUse::default();
    for row in rows {
        let is_whole = row.iter().any(|mapping| mapping.is_private_data() && mapping.size == guest_kib);
        let is_row = row.len() > 1 && !is_whole && row.iter().map(|mapping| mapping.size).sum::<u64>() >= guest_kib;
        for mapping in row {
            sum.add(mapping, is_row || mapping.is_private_data() && mapping.size == guest_kib);
        }
    }
    sum
}

fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut all: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        let Ok(kib) = second.parse::<u64>() else {
            // `5581-5582 rw-p 00000000 00:00 0   [heap]`
            if !first.ends_with(':') {
                let path = words.nth(3).unwrap_or("");
                all.push(Mapping { range: first, permissions: second, path, ..Mapping::default() });
            }
            continue;
        };
        let Some(mapping) = all.last_mut() else { continue };
        match first {
            "Size:" => mapping.size = kib,
            "Rss:" => mapping.rss = kib,
            "Pss:" => mapping.pss = kib,
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let map = |header: &str, size: u64, rss: u64, pss: u64| {
            format!(
                "{header}\nSize: {size} kB\nKernelPageSize: 4 kB\nRss: {rss} kB\nPss: {pss} kB\nVmFlags: rd wr mr\n"
            )
        };
        let smaps = [
            map("55d0-55d1 r-xp 00001000 fe:00 77    /usr/bin/qemu-system-x86_64", 8000, 5000, 500),
            map("55d2-55d3 rw-p 00000000 00:00 0     [heap]", 900, 800, 800),
            map("7f00-7f01 rwxp 00000000 00:00 0 ", 200_000, 3000, 3000),
            map("7f02-7f03 rw-p 00000000 00:00 0 ", 512 * 1024, 60_000, 60_000),
            map("7f04-7f05 ---p 00000000 00:00 0 ", 4, 0, 0),
            map("7f06-7f07 rw-s 00000000 00:01 9     /memfd:log (deleted)", 64, 4, 4),
        ]
        .concat();
        let use_ = parse(&smaps, 512 * 1024);
        let expected = MemoryUse { guest: 60_000, translation_cache: 3000, heap: 800, files: 5004, files_share: 504 };
        let kib = |bytes: u64| bytes / 1024;
        assert_eq!(
            [use_.guest, use_.translation_cache, use_.heap, use_.files, use_.files_share].map(kib),
            [expected.guest, expected.translation_cache, expected.heap, expected.files, expected.files_share]
        );
        assert_eq!(kib(use_.total()), 60_000 + 3000 + 800 + 5004);
        assert_eq!(parse("", 1), MemoryUse::default());

        let file = map("7f02-7f03 rw-p 00000000 fe:00 78    /data/memory", 512 * 1024, 60_000, 40_000);
        let guest = |kib: u64| MemoryUse { guest: kib * 1024, ..MemoryUse::default() };
        assert_eq!(parse(&file, 512 * 1024), guest(60_000));
        let given_back = [
            map("7f02-7f03 rw-p 00000000 fe:00 78    /data/memory", 256 * 1024, 30_000, 20_000),
            map("7f03-7f04 rw-p 00000000 00:00 0 ", 128 * 1024, 500, 500),
            map("7f04-7f05 rw-p 18000000 fe:00 78    /data/memory", 128 * 1024, 10_000, 10_000),
            map("7f06-7f07 rw-p 00000000 00:00 0 ", 900, 800, 800),
        ]
        .concat();
        assert_eq!(parse(&given_back, 512 * 1024), MemoryUse { heap: 800 * 1024, ..guest(40_500) });
    }

    #[test]
    fn own_process_has_some() {
        let use_ = MemoryUse::of(std::process::id(), 1 << 40).unwrap();
        assert!(use_.guest == 0 && use_.heap > 0 && use_.files >= use_.files_share);
    }
}
