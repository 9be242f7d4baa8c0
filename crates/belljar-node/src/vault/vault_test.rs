//! Writing, reading, deleting: what goes in comes out, and what is shared is stored once.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use tempfile::TempDir;

use super::*;

/// The flat files of a snapshot, in memory.
pub(super) type Contents = BTreeMap<Part, Vec<u8>>;

/// A vault in a directory of its own, and a place for flat files.
pub(super) struct Fixture {
    pub(super) dir: TempDir,
    pub(super) vault: Vault,
}

/// An id that a reader can tell.
pub(super) fn id(name: &str) -> String {
    format!("{name:0>21}")
}

/// Bytes that do not compress, told by a number.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// In memory where there is such a directory: these tests sync all the time and lose nothing.
pub(super) fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir")
}

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = scratch();
        let vault = Vault::open(dir.path()).expect("open");
        Self { dir, vault }
    }

    /// As a restart of the node does.
    pub(super) fn reopen(self) -> Self {
        let Self { dir, vault } = self;
        drop(vault);
        let vault = Vault::open(dir.path()).expect("open again");
        Self { dir, vault }
    }

    pub(super) fn flat(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        let file = fs::File::create(&path).expect("create");
        file.set_len(content.len() as u64).expect("length");
        for (at, page) in (0..).step_by(4096).zip(content.chunks(4096)) {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, at).expect("write");
            }
        }
        path
    }

    pub(super) fn write(&self, name: &str, contents: &Contents) -> Result<Written, VaultError> {
        let flat: Vec<_> = contents.iter().map(|(part, bytes)| (*part, self.flat(part.name(), bytes))).collect();
        let parts: Vec<_> = flat.iter().map(|(part, file)| PartSource { part: *part, file, base: None }).collect();
        self.vault.write(&NewSnapshot { id: &id(name), parent: None, metadata: name.as_bytes(), parts: &parts })
    }

    pub(super) fn read(&self, name: &str) -> Result<Contents, VaultError> {
        let out = self.dir.path().join("unpacked");
        self.vault.unpack(&id(name), &out, &[])?;
        let files = fs::read_dir(&out).expect("list").map(|entry| entry.expect("entry").path());
        let contents = files.map(|path| {
            let part = Part::ALL.into_iter().find(|part| path.ends_with(part.name())).expect("a part");
            (part, fs::read(&path).expect("read"))
        });
        let contents = contents.collect();
        fs::remove_dir_all(out).expect("remove");
        Ok(contents)
    }

    /// Everything below the vault's directories.
    pub(super) fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut dirs = vec![self.dir.path().join("snapshots")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).expect("list") {
                let path = entry.expect("entry").path();
                names.push(path.strip_prefix(self.dir.path()).expect("below").display().to_string());
                if path.is_dir() {
                    dirs.push(path);
                }
            }
        }
        names.sort_unstable();
        names
    }
}

fn contents(seed: u64) -> Contents {
    let mut memory = vec![0; 3 << 20];
    memory[100_000..300_000].copy_from_slice(&noise(seed, 200_000));
    memory[2_000_000..2_500_000].fill(7);
    let mut disk = noise(seed + 1, 200_000);
    disk.resize(1_000_001, 0);
    BTreeMap::from([(Part::Disk, disk), (Part::Memory, memory), (Part::Devices, b"registers".to_vec())])
}

#[test]
fn a_snapshot_comes_back_bit_by_bit() {
    let fixture = Fixture::new();
    let contents = contents(1);
    let written = fixture.write("one", &contents).expect("write");
    let told = fixture.vault.get(&id("one")).expect("get");
    assert_eq!(told, written.snapshot);
    assert_eq!((told.metadata.as_slice(), told.packs), (&b"one"[..], 1));
    assert_eq!(told.parts, [(Part::Disk, 1_000_001), (Part::Memory, 3 << 20), (Part::Devices, 9)]);
    assert!((400_000..500_000).contains(&told.size_bytes), "{} bytes", told.size_bytes);
    assert_eq!(fixture.read("one").expect("read"), contents);

    let fixture = fixture.reopen();
    assert_eq!(fixture.vault.ids(), [id("one")]);
    assert_eq!(fixture.vault.get(&id("one")).expect("get"), written.snapshot);
    assert_eq!(fixture.read("one").expect("read"), contents);
    for (part, map) in written.maps {
        assert_eq!(fixture.vault.chunk_map(&id("one"), part).expect("map"), map);
        assert_eq!(ChunkMap::of_file(part, &fixture.flat("flat", &contents[&part])).expect("map"), map);
    }
}

#[test]
fn what_is_shared_is_stored_once_and_outlives_whom_it_is_shared_with() {
    let fixture = Fixture::new();
    let first = contents(1);
    let mut second = first.clone();
    second.get_mut(&Part::Memory).expect("memory")[2_600_000] = 1;
    fixture.write("one", &first).expect("write");
    let written = fixture.write("two", &second).expect("write");
    assert!(written.snapshot.size_bytes < 2000, "{} bytes", written.snapshot.size_bytes);
    assert_eq!(written.snapshot.packs, 2);
    let same = fixture.write("same", &first).expect("write");
    assert!(same.snapshot.size_bytes < 1000, "{} bytes", same.snapshot.size_bytes);

    assert!(fixture.vault.delete(&id("one")).expect("delete"));
    assert!(!fixture.vault.delete(&id("one")).expect("delete again"));
    assert_eq!(fixture.vault.collect().expect("collect").removed_files, 0);
    let fixture = fixture.reopen();
    assert_eq!(fixture.read("two").expect("read"), second);
    assert_eq!(fixture.read("same").expect("read"), first);
    assert!(matches!(fixture.read("one"), Err(VaultError::NotFound { .. })));

    for name in ["two", "same"] {
        assert!(fixture.vault.delete(&id(name)).expect("delete"));
    }
    let collected = fixture.vault.collect().expect("collect");
    assert_eq!(collected.removed_files, 2);
    assert!(collected.freed_bytes > 400_000);
    assert_eq!(fixture.files(), ["snapshots/packs"]);
}

#[test]
fn the_holes_stay_holes() {
    let fixture = Fixture::new();
    fixture.write("one", &contents(1)).expect("write");
    let out = fixture.dir.path().join("out");
    fixture.vault.unpack(&id("one"), &out, &[]).expect("unpack");
    let blocks = fs::metadata(out.join("memory")).expect("stat").blocks() * 512;
    assert!(blocks < 1 << 20, "{blocks} bytes of 3 MiB");
}

#[test]
fn a_bad_request_is_refused() {
    let fixture = Fixture::new();
    let flat = fixture.flat("flat", b"x");
    let part = PartSource { part: Part::Disk, file: &flat, base: None };
    let (good, large) = (id("one"), vec![0; crate::limits::SNAPSHOT_METADATA_MAX + 1]);
    let new = NewSnapshot { id: &good, parent: None, metadata: b"", parts: &[part] };
    for (bad, expected) in [
        (NewSnapshot { id: "../x", ..new }, "no id"),
        (NewSnapshot { parent: Some("x"), ..new }, "parent is no id"),
        (NewSnapshot { metadata: &large, ..new }, "larger than"),
        (NewSnapshot { parts: &[], ..new }, "needs parts"),
        (NewSnapshot { parts: &[part, part], ..new }, "needs parts"),
    ] {
        let error = fixture.vault.write(&bad).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    fixture.vault.write(&new).expect("write");
    assert!(matches!(fixture.vault.write(&new), Err(VaultError::Exists { .. })));
}
