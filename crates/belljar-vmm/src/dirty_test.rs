//! The process that is looked at is this one.

use super::*;
use proptest::prelude::*;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

/// Enough for more runs than one system call takes.
const PAGES: usize = 2 * IOVECS + 10;

/// What the file has in every byte of a page.
fn content_of(page: usize) -> u8 {
    page.to_le_bytes()[0]
}

/// A private mapping of a file.
struct Mapped {
    file: File,
    start: *mut u8,
}

#[expect(unsafe_code, reason = "mapping memory")]
impl Mapped {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..PAGES).flat_map(|page| [content_of(page); PAGE_SIZE]).collect();
        file.write_all_at(&content, 0).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever there is room.
        let start = unsafe { mmap(std::ptr::null_mut(), PAGES * PAGE_SIZE, both, MapFlags::PRIVATE, &file, 0) };
        Self { file, start: start.unwrap().cast() }
    }

    fn write(&self, page: usize, byte: u8) {
        assert!(page < PAGES);
        // SAFETY: inside of the mapping, of which there is no reference.
        unsafe { self.start.add(page * PAGE_SIZE + 7).write_volatile(byte) };
    }

    fn look_at(&self, page: usize) -> u8 {
        assert!(page < PAGES);
        // SAFETY: as above.
        unsafe { self.start.add(page * PAGE_SIZE).read_volatile() }
    }

    fn copy(&self) -> io::Result<DirtyMemory> {
        let (pid, origin, bytes) = self.place();
        copy(pid, origin, bytes, Vec::new())
    }

    fn each(&self, show: &mut (dyn FnMut(u64, &[u8]) -> bool + Send)) -> io::Result<Runs> {
        let (pid, origin, bytes) = self.place();
        each(pid, origin, bytes, show)
    }

    fn place(&self) -> (u32, Origin, u64) {
        (std::process::id(), Origin::File(self.file.metadata().unwrap().ino()), (PAGES * PAGE_SIZE) as u64)
    }
}

#[expect(unsafe_code, reason = "as above")]
impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nobody uses it any more.
        unsafe { munmap(self.start.cast(), PAGES * PAGE_SIZE) }.unwrap();
    }
}

/// What `copy` must find.
fn expected(written: &BTreeSet<usize>, byte: u8) -> DirtyMemory {
    let mut expected = DirtyMemory::default();
    for page in written {
        add(&mut expected.runs, (page * PAGE_SIZE) as u64, PAGE);
        let mut content = vec![content_of(*page); PAGE_SIZE];
        content[7] = byte;
        expected.data.extend(content);
    }
    expected
}

fn check(written: &BTreeSet<usize>) {
    let memory = Mapped::new();
    for page in 0..PAGES {
        assert_eq!(memory.look_at(page), content_of(page));
    }
    assert_eq!(memory.copy().unwrap(), DirtyMemory::default());
    for page in written {
        memory.write(*page, 0);
    }
    let (found, expected) = (memory.copy().unwrap(), expected(written, 0));
    assert_eq!(found.runs, expected.runs);
    assert!(found.data == expected.data, "content");

    // Piece by piece it is the same.
    let mut pieces = DirtyMemory::default();
    let runs = memory.each(&mut |offset, bytes| {
        add(&mut pieces.runs, offset, bytes.len() as u64);
        pieces.data.extend_from_slice(bytes);
        assert!(bytes.len() <= PIECE_BYTES);
        true
    });
    assert_eq!((&runs.unwrap(), &pieces.runs), (&expected.runs, &expected.runs));
    assert!(pieces.data == expected.data, "content of the pieces");
    let mut seen = 0;
    memory
        .each(&mut |_, _| {
            seen += 1;
            false
        })
        .unwrap();
    assert_eq!(seen, usize::from(!written.is_empty()));

    // Both ways of asking the kernel say the same; the first one needs Linux 6.7.
    let mapping = mappings(&std::fs::read_to_string("/proc/self/maps").unwrap(), memory.file.metadata().unwrap().ino());
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let entries = read_entries(&pagemap, mapping[0]).unwrap();
    if let Ok(scanned) = scan(&pagemap, mapping[0]) {
        assert_eq!(scanned, entries);
    }
    assert_eq!(entries.len(), expected.runs.len());
}

#[test]
fn written_pages_are_found() {
    check(&BTreeSet::new());
    check(&BTreeSet::from([0, PAGES - 1]));
    check(&(0..PAGES).collect());
    // As many runs as one system call takes, and more.
    const _: () = assert!(REGIONS == IOVECS);
    for count in [IOVECS - 1, IOVECS, IOVECS + 1] {
        check(&(0..count).map(|page| page * 2).collect());
    }
}

/// As Firecracker does with what a guest says is free.
#[test]
#[expect(unsafe_code, reason = "mapping memory over what is ours")]
fn memory_that_was_given_back_is_found_once_it_is_used_again() {
    let memory = Mapped::new();
    let (pid, origin, bytes) = memory.place();
    let Origin::File(inode) = origin else { unreachable!("it is a file's") };
    let places = Places::find(pid, inode, bytes).unwrap();
    assert_eq!(places.mappings().len(), 1);
    assert!(Places::find(pid, inode, bytes + PAGE).is_err());
    for page in [0, 5, 9] {
        memory.write(page, 1);
    }
    let both = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: over pages of the mapping, of which there is no reference.
    let hole = unsafe {
        let start = memory.start.add(4 * PAGE_SIZE).cast();
        mmap_anonymous(start, 4 * PAGE_SIZE, both, MapFlags::PRIVATE | MapFlags::FIXED)
    };
    hole.unwrap();
    memory.write(6, 1);
    assert!(memory.copy().is_err(), "the file is not mapped whole any more");
    let found = copy(pid, Origin::At(places), bytes, Vec::new()).unwrap();
    assert_eq!(found.runs, [0, 6, 9].map(|page| (page * PAGE, PAGE)));
    let mut used_again = vec![0; PAGE_SIZE];
    used_again[7] = 1;
    assert!(found.data[PAGE_SIZE..2 * PAGE_SIZE] == used_again, "content");
}

/// Enough for more than one copier and more than one piece.
#[test]
fn many_pages_are_copied_in_shares() {
    let pieces = [(0, 3 * PAGE), (10 * PAGE, PAGE), (20 * PAGE, 5 * PAGE)];
    let in_twos = shares(&pieces, 2 * PAGE);
    assert_eq!(in_twos.concat().iter().map(|(_, length)| length).sum::<u64>(), 9 * PAGE);
    assert_eq!(in_twos[1], [(2 * PAGE, PAGE), (10 * PAGE, PAGE)]);
    assert_eq!(in_twos[4], [(24 * PAGE, PAGE)]);
    assert_eq!(shares(&pieces, 100 * PAGE), [pieces.to_vec()]);
    assert_eq!(shares(&[], PAGE), Vec::<Runs>::new());
    const { assert!(PAGES * PAGE_SIZE > 2 * COPY_ALONE_BYTES) };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_written_pages_are_found(written in proptest::collection::btree_set(0..PAGES, 0..300)) {
        check(&written);
    }
}

#[test]
fn another_size_or_file_is_refused() {
    let memory = Mapped::new();
    let inode = memory.file.metadata().unwrap().ino();
    for (inode, bytes) in [(inode, PAGE), (u64::MAX, (PAGES * PAGE_SIZE) as u64)] {
        assert!(
            copy(std::process::id(), Origin::File(inode), bytes, Vec::new())
                .unwrap_err()
                .to_string()
                .contains("not mapped")
        );
    }
    assert!(copy(u32::MAX >> 1, Origin::File(inode), PAGE, Vec::new()).is_err());
    assert!(copy(std::process::id(), Origin::Anonymous, PAGE * 0x1234_5678, Vec::new()).is_err());
}

#[test]
fn maps_are_read() {
    let maps = "5600-5700 r--p 00000000 fe:00 7 /usr/bin/qemu\n\
                7f10-7f18 rw-p 00000008 fe:00 9 /data/a b (deleted)\n\
                7f00-7f08 rw-p 00000000 fe:00 9 /data/a b\n\
                7f20-7f28 rw-s 00000000 fe:00 9 /data/a b\n\
                7f30-7f38 rw-p 00000000 00:00 0 \n\
                nonsense\n";
    let mapping = |start, end, offset| Mapping { start, end, offset };
    assert_eq!(mappings(maps, 9), [mapping(0x7f00, 0x7f08, 0), mapping(0x7f10, 0x7f18, 8)]);
    assert_eq!(mappings("", 9), []);
}

/// Memory as a VM process has it that maps no file: not accounted for, aligned, and with ACPI's root pointer.
#[expect(unsafe_code, reason = "mapping memory")]
#[test]
fn memory_without_a_file_is_found() {
    const LENGTH: usize = 4321 * PAGE_SIZE;
    const ALIGNED: usize = 2 << 20;
    let (both, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping, wherever there is room.
    let all = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), LENGTH + ALIGNED, both, flags) }.unwrap();
    let start = all.map_addr(|address| address.next_multiple_of(ALIGNED)).cast::<u8>();
    let head = start.addr() - all.addr();
    // SAFETY: what was mapped, before and behind what is used.
    unsafe {
        munmap(all, head).ok();
        munmap(start.add(LENGTH).cast(), ALIGNED - head).unwrap();
    }
    for (place, bytes) in
        [(0, &b"\x01"[..]), (17 * PAGE_SIZE, b"\x02"), (18 * PAGE_SIZE, b"\x03"), (0xe_0000, b"RSD PTR ")]
    {
        // SAFETY: inside of the mapping, of which there is no reference.
        unsafe { std::ptr::copy(bytes.as_ptr(), start.add(place), bytes.len()) };
    }
    let found = copy(std::process::id(), Origin::Anonymous, LENGTH as u64, Vec::new()).unwrap();
    let page = |number: u64, count: u64| (number * PAGE, count * PAGE);
    assert_eq!(found.runs, [page(0, 1), page(17, 2), page(0xe0, 1)]);
    let first: Vec<_> = found.data.chunks(PAGE_SIZE).map(|page| page[0]).collect();
    assert_eq!(first, [1, 2, 3, b'R']);
    // SAFETY: what was mapped, and nobody uses it any more.
    unsafe { munmap(start.cast(), LENGTH) }.unwrap();
}

#[test]
fn areas_of_memory_are_told_apart() {
    const GIB: u64 = 1 << 30;
    let area = |start: u64, length: u64, rest: &str, flags: &str| {
        format!("{start:x}-{:x} {rest}\nSize: 4 kB\nRss: 0 kB\nVmFlags: rd wr mr {flags}\n", start + length)
    };
    let plain = "rw-p 00000000 00:00 0 ";
    let check = |smaps: &str, bytes: u64, expected: &[(u64, u64, u64)]| {
        let found: Vec<_> = anonymous(smaps, bytes, |start| start == 0x7000_0000_0000)
            .iter()
            .map(|mapping| (mapping.start, mapping.end - mapping.start, mapping.offset))
            .collect();
        assert_eq!(found, expected, "{smaps}");
    };
    let others = [
        area(0x1000, GIB, "rw-p 00000000 00:00 0    [heap]", "nr"),
        area(0x2000_0000_0000, GIB, "rw-p 00000000 fe:00 9 /data/memory", "nr"),
        area(0x3000_0000_0000, GIB, "---p 00000000 00:00 0 ", "nr"),
        area(0x4000_0000_0000, GIB, plain, "ac"),
    ]
    .concat();
    check(&others, GIB, &[]);
    check(&(others.clone() + &area(0x7000_0000_0000, GIB, plain, "nr hg")), GIB, &[(0x7000_0000_0000, GIB, 0)]);
    // Split by advice.
    let halves = area(0x7000_0000_0000, GIB / 2, plain, "nr hg") + &area(0x7000_2000_0000, GIB / 2, plain, "nr");
    check(&(others.clone() + &halves), GIB, &[(0x7000_0000_0000, GIB, 0)]);
    // Around the hole; where both are of one size, what is in them tells.
    let low = area(0x7000_0000_0000, LOW_MEMORY, plain, "nr");
    for high in [GIB, LOW_MEMORY, 5 * GIB] {
        let both = area(0x6000_0000_0000, high, plain, "nr") + &low;
        let expected = [(0x7000_0000_0000, LOW_MEMORY, 0), (0x6000_0000_0000, high, LOW_MEMORY)];
        check(&(others.clone() + &both), LOW_MEMORY + high, &expected);
    }
    check(&low, LOW_MEMORY + GIB, &[]);
    // One with what lies behind it, or before.
    for start in [0x7000_0000_0000, 0x6fff_fffe_f000] {
        let merged = area(start, GIB + (0x7000_0000_0000 - start).max(0x1_1000), plain, "nr");
        check(&(others.clone() + &merged), GIB, &[(0x7000_0000_0000, GIB, 0)]);
    }
    // Two that may be it.
    let two = area(0x6000_0000_0000, GIB + 0x1000, plain, "nr") + &area(0x6100_0000_0000, GIB + 0x1000, plain, "nr");
    check(&two, GIB, &[]);
}
