//! Random sequences of everything that can be done with a vault, compared with contents in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    vault_test::{Contents, Fixture, id, noise, scratch},
    *,
};

#[derive(Debug, Clone)]
enum Act {
    /// A snapshot that differs from an earlier one in some places; told so, or not.
    Write {
        base: usize,
        changes: Vec<(Part, usize, u64)>,
        length: usize,
        told: bool,
    },
    Delete(usize),
    Compact(bool),
    Collect,
    Reopen,
    Restore(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let part = prop_oneof![Just(Part::Disk), Just(Part::Memory)];
    let change = (part, 0..300_000_usize, 0..4_u64);
    let write = (any::<usize>(), prop::collection::vec(change, 0..6), 200_000..300_000_usize, any::<bool>())
        .prop_map(|(base, changes, length, told)| Act::Write { base, changes, length, told });
    let act = prop_oneof![
        6 => write,
        2 => any::<usize>().prop_map(Act::Delete),
        1 => any::<bool>().prop_map(Act::Compact),
        1 => Just(Act::Collect),
        1 => Just(Act::Reopen),
        2 => any::<usize>().prop_map(Act::Restore),
    ];
    prop::collection::vec(act, 1..40)
}

struct Model {
    fixture: Fixture,
    contents: BTreeMap<String, Contents>,
    next: usize,
}

/// Seven bytes at each place: a seed of 0 makes zeros.
fn change(contents: &mut Contents, changes: &[(Part, usize, u64)], length: usize) -> BTreeMap<Part, Vec<Range<u64>>> {
    let mut ranges: BTreeMap<Part, Vec<Range<u64>>> = BTreeMap::new();
    contents.get_mut(&Part::Disk).expect("disk").resize(length, 0);
    for (part, at, seed) in changes {
        let bytes = contents.get_mut(part).expect("part");
        // Aligned often enough that whole chunks become zeros.
        let (start, size) = if seed % 2 == 0 { (at / 65536 * 65536, 65536) } else { (*at, 7) };
        let end = (start + size).min(bytes.len());
        if start < end {
            let new = if *seed == 0 { vec![0; end - start] } else { noise(*seed, end - start) };
            bytes[start..end].copy_from_slice(&new);
            ranges.entry(*part).or_default().push(start as u64..end as u64);
        }
    }
    ranges
}

impl Model {
    fn pick(&self, number: usize) -> Option<String> {
        self.contents.keys().nth(number.checked_rem(self.contents.len())?).cloned()
    }

    fn write(&mut self, base: usize, changes: &[(Part, usize, u64)], length: usize, told: bool) {
        let vault = &self.fixture.vault;
        let base = self.pick(base);
        let mut contents = match &base {
            Some(base) => self.contents[base].clone(),
            None => Contents::from([(Part::Disk, noise(1, 250_000)), (Part::Memory, vec![1; 250_000])]),
        };
        let changed = change(&mut contents, changes, length);
        let maps: BTreeMap<Part, ChunkMap> = base
            .iter()
            .filter(|_| told)
            .flat_map(|base| {
                contents.keys().map(|part| (*part, vault.chunk_map(&id(base), *part).expect("map"))).collect::<Vec<_>>()
            })
            .collect();
        let flat: Vec<_> =
            contents.iter().map(|(part, bytes)| (*part, self.fixture.flat(part.name(), bytes))).collect();
        let parts: Vec<_> = flat
            .iter()
            .map(|(part, file)| {
                let changed = changed.get(part).map_or(&[][..], Vec::as_slice);
                PartSource { part: *part, file, base: maps.get(part).map(|map| Base { map, changed }) }
            })
            .collect();
        let name = self.next.to_string();
        self.next += 1;
        let (new, parent) = (id(&name), base.map(|base| id(&base)));
        let new = NewSnapshot { id: &new, parent: parent.as_deref(), metadata: b"m", parts: &parts };
        vault.write(&new).expect("write");
        self.contents.insert(name, contents);
    }

    fn act(mut self, act: Act) -> Self {
        match act {
            Act::Write { base, changes, length, told } => self.write(base, &changes, length, told),
            Act::Delete(number) => {
                let Some(name) = self.pick(number) else { return self };
                assert!(self.fixture.vault.delete(&id(&name)).expect("delete"));
                self.contents.remove(&name);
            }
            Act::Compact(full) => {
                let how = if full { Compaction::Full } else { Compaction::Bounded };
                self.fixture.vault.compact(how).expect("compact");
                for name in self.contents.keys() {
                    let packs = self.fixture.vault.get(&id(name)).expect("get").packs;
                    assert!(packs <= crate::limits::SNAPSHOT_PACKS_MAX, "{packs} packs");
                }
                if full {
                    assert_eq!(self.fixture.vault.usage().expect("usage").garbage_bytes, 0);
                }
            }
            Act::Collect => drop(self.fixture.vault.collect().expect("collect")),
            Act::Reopen => self.fixture = self.fixture.reopen(),
            Act::Restore(number) => {
                let Some(name) = self.pick(number) else { return self };
                let unpacked = self.fixture.vault.unpacked(&id(&name), &[]).expect("unpack");
                for (part, bytes) in &self.contents[&name] {
                    assert_eq!(&std::fs::read(unpacked.part(*part)).expect("read"), bytes);
                }
            }
        }
        self
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_vault_holds_what_was_put_in(acts in acts()) {
        let mut model = Model { fixture: Fixture::new(), contents: BTreeMap::new(), next: 0 };
        for act in acts {
            model = model.act(act);
        }
        model.fixture = model.fixture.reopen();
        prop_assert_eq!(model.fixture.vault.ids().len(), model.contents.len());
        for (name, contents) in &model.contents {
            prop_assert_eq!(&model.fixture.read(name).expect("read"), contents);
        }
        for name in model.contents.keys() {
            model.fixture.vault.delete(&id(name)).expect("delete");
        }
        model.fixture.vault.collect().expect("collect");
        prop_assert_eq!(model.fixture.files(), ["snapshots/packs"]);
    }
}

#[test]
fn a_long_line_of_snapshots_is_compacted() {
    let mut model = Model { fixture: Fixture::new(), contents: BTreeMap::new(), next: 0 };
    for number in 0..30_usize {
        model.write(number.saturating_sub(1), &[(Part::Memory, number * 8192, 1)], 250_000, true);
        model.fixture.vault.compact(Compaction::Bounded).expect("compact");
    }
    let packs = model.fixture.vault.get(&id("29")).expect("get").packs;
    assert!(packs <= crate::limits::SNAPSHOT_PACKS_MAX, "{packs}");
    for (name, contents) in &model.contents {
        assert_eq!(&model.fixture.read(name).expect("read"), contents);
    }
}

#[test]
fn the_cache_evicts_what_was_used_longest_ago_and_nothing_in_use() {
    let dir = scratch();
    let vault = Vault::open_with(dir.path(), files::Files::default(), 250_000).expect("open");
    let fixture = Fixture { dir, vault };
    let contents = |n| Contents::from([(Part::Disk, noise(n, 100_000))]);
    for n in 1..=3_u64 {
        fixture.write(&n.to_string(), &contents(n)).expect("write");
    }
    let (cached, vault) = (|n: &str| fixture.dir.path().join("cache").join(id(n)).exists(), &fixture.vault);
    let first = vault.unpacked(&id("1"), &[]).expect("unpack");
    drop(vault.unpacked(&id("2"), &[]).expect("unpack"));
    drop(vault.unpacked(&id("3"), &[]).expect("unpack"));
    assert!(cached("1") && !cached("2") && cached("3"));
    assert_eq!(std::fs::read(first.part(Part::Disk)).expect("read"), contents(1)[&Part::Disk]);
    // Deleted in use: it goes with the last user.
    vault.delete(&id("1")).expect("delete");
    assert!(cached("1"));
    drop(first);
    assert!(!cached("1"));
    assert!(matches!(vault.unpacked(&id("1"), &[]), Err(VaultError::NotFound { .. })));

    let captured = fixture.flat("captured", b"frozen");
    let adopted = vault.adopt(&id("2"), &[(Part::Memory, &captured)]).expect("adopt");
    assert_eq!(std::fs::read(adopted.part(Part::Memory)).expect("read"), b"frozen");
    assert!(vault.usage().expect("usage").cache_bytes >= 100_000);
    drop(adopted);
    let fixture = fixture.reopen();
    assert!(fixture.vault.cache.bytes() >= 100_000, "the cache outlives a restart of the node");
}

#[test]
fn many_threads_do_not_harm_each_other() {
    const WRITERS: u64 = 3;
    let fixture = Fixture::new();
    let common = noise(1, 60_000);
    let write_and_read = |writer: u64, round: u64| {
        let name = id(&format!("{writer}x{round}"));
        // Shared by all, shared by the rounds of a writer, and its own.
        let content = [common.clone(), noise(writer + 10, 40_000), noise(writer * 1000 + round, 20_000)].concat();
        let flat = fixture.flat(&format!("flat-{writer}"), &content);
        let part = PartSource { part: Part::Memory, file: &flat, base: None };
        let new = NewSnapshot { id: &name, parent: None, metadata: b"", parts: &[part] };
        fixture.vault.write(&new).expect("write");
        let unpacked = fixture.vault.unpacked(&name, &[]).expect("unpack");
        assert_eq!(std::fs::read(unpacked.part(Part::Memory)).expect("read"), content);
        // The last one stays.
        if round < 24 {
            assert!(fixture.vault.delete(&name).expect("delete"));
        }
        content
    };
    let last: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let write_and_read = &write_and_read;
                scope.spawn(move || (0..25).fold(Vec::new(), |_, round| write_and_read(writer, round)))
            })
            .collect();
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            fixture.vault.compact(Compaction::Full).expect("compact");
            fixture.vault.collect().expect("collect");
            fixture.vault.usage().expect("usage");
        }
        writers.into_iter().map(|writer| writer.join().expect("writer")).collect()
    });
    let fixture = fixture.reopen();
    for (writer, content) in last.into_iter().enumerate() {
        let name = format!("{writer}x24");
        assert_eq!(fixture.read(&name).expect("read"), Contents::from([(Part::Memory, content)]));
        fixture.vault.delete(&id(&name)).expect("delete");
    }
    fixture.vault.collect().expect("collect");
    assert_eq!(fixture.files(), ["snapshots/packs"]);
}

#[test]
fn a_near_relative_gives_the_same_files() {
    // On the disk, which may be able to reflink.
    let dir = tempfile::tempdir().expect("tempdir");
    let vault = Vault::open(dir.path()).expect("open");
    let fixture = Fixture { dir, vault };
    let mut memory = noise(1, 400_000);
    memory[100_000..200_000].fill(0);
    let relative = fixture.flat("relative", &memory);
    let map = ChunkMap::of_file(Part::Memory, &relative).expect("map");
    for (number, length) in [(0_usize, 400_000), (1, 300_001), (2, 500_000)] {
        let mut content = memory.clone();
        content.resize(length, 7);
        content[5000..5010].copy_from_slice(&[1; 10]);
        content[150_000..150_005].copy_from_slice(&[2; 5]);
        content[40_960..81_920].fill(0);
        let name = number.to_string();
        fixture.write(&name, &Contents::from([(Part::Memory, content.clone())])).expect("write");
        let out = fixture.dir.path().join("out");
        let relatives = [Relative { part: Part::Memory, file: &relative, map: &map }];
        fixture.vault.unpack(&id(&name), &out, &relatives).expect("unpack");
        assert_eq!(std::fs::read(out.join("memory")).expect("read"), content, "{length}");
        std::fs::remove_dir_all(out).expect("remove");
    }
    assert_eq!(std::fs::read(&relative).expect("read"), memory, "the relative was changed");
}
