//! The format: files of version 1 stay readable byte for byte, and what is not right is refused by name.

use std::{fs, path::Path};

use super::{
    codec::{Reader, put_varint},
    pack::{Pack, PackWriter},
    vault_test::{Contents, Fixture, id, noise},
    *,
};

/// Files of format version 1, made once and never again.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/vault/golden-v1");

fn golden_contents() -> Contents {
    let mut disk = vec![0; 300_000];
    disk[70_000..70_600].copy_from_slice(&noise(1, 600));
    disk[299_000..].fill(b'x');
    let memory = [vec![b'a'; 4096], vec![0; 4096], vec![b'a'; 4096], b"end".to_vec()].concat();
    Contents::from([(Part::Disk, disk), (Part::Memory, memory), (Part::Devices, b"registers".to_vec())])
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for entry in fs::read_dir(from).expect("list") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("name"));
        if path.is_dir() { copy(&path, &target) } else { fs::copy(&path, &target).map(drop).expect("copy") }
    }
}

fn open_golden() -> Fixture {
    let fixture = Fixture::new();
    copy(Path::new(GOLDEN), &fixture.dir.path().join("snapshots"));
    fixture.reopen()
}

#[test]
fn version_1_stays_readable() {
    let fixture = open_golden();
    let snapshot = fixture.vault.get(&id("golden")).expect("get");
    assert_eq!((snapshot.parent, snapshot.metadata), (Some(id("parent")), b"{}".to_vec()));
    assert_eq!(fixture.read("golden").expect("read"), golden_contents());
}

#[test]
fn version_1_is_still_written_that_way() {
    let fixture = Fixture::new();
    let contents = golden_contents();
    let flat: Vec<_> = contents.iter().map(|(part, bytes)| (*part, fixture.flat(part.name(), bytes))).collect();
    let parts: Vec<_> = flat.iter().map(|(part, file)| PartSource { part: *part, file, base: None }).collect();
    let (new, parent) = (id("golden"), id("parent"));
    fixture
        .vault
        .write(&NewSnapshot { id: &new, parent: Some(&parent), metadata: b"{}", parts: &parts })
        .expect("write");
    let path = format!("{new}/manifest");
    let (made, golden) = (fixture.dir.path().join("snapshots").join(&path), Path::new(GOLDEN).join(&path));
    if std::env::var_os("BELLJAR_WRITE_GOLDEN").is_some() {
        copy(&fixture.dir.path().join("snapshots"), Path::new(GOLDEN));
    }
    // The pack's id is in the manifest. Another release of zstd may compress differently: then the golden files stay,
    // and this comparison goes.
    assert_eq!(fs::read(made).expect("read"), fs::read(golden).expect("read"));
}

/// The manifest and the pack of a vault with one snapshot.
fn only_files(fixture: &Fixture) -> [PathBuf; 2] {
    let dir = fixture.dir.path().join("snapshots");
    let pack = fs::read_dir(dir.join("packs")).expect("list").next().expect("a pack").expect("entry").path();
    [dir.join(id("golden")).join("manifest"), pack]
}

fn check_refused(file: usize, change: impl FnOnce(&mut Vec<u8>), expected: &str) {
    let fixture = open_golden();
    let path = only_files(&fixture)[file].clone();
    let mut bytes = fs::read(&path).expect("read");
    change(&mut bytes);
    fs::write(&path, bytes).expect("write");
    let fixture = fixture.reopen();
    let error = fixture.read("golden").expect_err("damaged");
    let name = path.file_name().expect("name").to_string_lossy().into_owned();
    assert!(matches!(error, VaultError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(expected) && error.to_string().contains(&name), "{expected}: {error}");

    // The others go on, and it can be removed.
    let other = noise(9, 10_000);
    let contents = Contents::from([(Part::Memory, other)]);
    fixture.write("other", &contents).expect("write");
    assert_eq!(fixture.read("other").expect("read"), contents);
    assert!(fixture.vault.delete(&id("golden")).expect("delete"));
    fixture.vault.collect().expect("collect");
    assert_eq!(fixture.read("other").expect("read"), contents);
    assert_eq!(fixture.files().len(), 4, "{:?}", fixture.files());
}

#[test]
fn a_damaged_manifest_is_refused() {
    check_refused(0, |bytes| bytes[0] = b'X', "magic is missing");
    check_refused(0, |bytes| bytes[8] = 2, "format version 2, this release knows 1");
    check_refused(0, |bytes| bytes[30] ^= 1, "checksum is wrong");
    check_refused(0, |bytes| bytes.truncate(bytes.len() - 1), "checksum is wrong");
    check_refused(0, |bytes| bytes.truncate(20), "too early");
    check_refused(0, Vec::clear, "too early");
    check_refused(0, |bytes| bytes.push(0), "checksum is wrong");
}

#[test]
fn an_oversized_manifest_is_not_even_read() {
    let fixture = open_golden();
    let manifest = fs::File::options().write(true).open(&only_files(&fixture)[0]).expect("open");
    manifest.set_len(crate::limits::SNAPSHOT_MANIFEST_MAX as u64 + 1).expect("grow");
    let error = fixture.reopen().read("golden").expect_err("too large").to_string();
    assert!(error.contains("manifest is not usable: it is larger than"), "{error}");
}

#[test]
fn a_damaged_pack_is_refused() {
    check_refused(1, |bytes| bytes[0] = b'X', "magic is missing");
    check_refused(1, |bytes| bytes[8] = 9, "format version 9, this release knows 1");
    check_refused(1, |bytes| bytes[20] ^= 1, "the chunk at byte 16 ");
    check_refused(1, |bytes| bytes.truncate(bytes.len() - 1), "was cut off");
    check_refused(1, |bytes| bytes.truncate(40), "too short");
    let at_end = |bytes: &mut Vec<u8>, back: usize| {
        let at = bytes.len() - back;
        bytes[at] ^= 1;
    };
    check_refused(1, |bytes| at_end(bytes, 60), "checksum of its index is wrong");
    check_refused(1, |bytes| at_end(bytes, 56), "index does not fit");
}

#[test]
fn whatever_byte_is_damaged_nothing_wrong_is_handed_out() {
    let expected = golden_contents();
    for file in 0..2 {
        let fixture = open_golden();
        let path = only_files(&fixture)[file].clone();
        let good = fs::read(&path).expect("read");
        let mut fixture = fixture;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).expect("write");
            fixture = fixture.reopen();
            match fixture.read("golden") {
                Ok(contents) => assert_eq!(contents, expected, "byte {at} of {}", path.display()),
                Err(error) => assert!(matches!(error, VaultError::Damaged { .. }), "{error:?}"),
            }
        }
    }
}

#[test]
fn a_manifest_under_another_name_is_refused() {
    let fixture = open_golden();
    let dir = fixture.dir.path().join("snapshots");
    fs::rename(dir.join(id("golden")), dir.join(id("other"))).expect("rename");
    let error = fixture.reopen().read("other").expect_err("foreign").to_string();
    assert!(error.contains("manifest of snapshot"), "{error}");
}

#[test]
fn what_a_manifest_that_cannot_be_read_may_need_is_not_collected() {
    let fixture = open_golden();
    let [manifest, pack] = only_files(&fixture);
    let mut bytes = fs::read(&manifest).expect("read");
    bytes[8] = 2;
    fs::write(&manifest, bytes).expect("write");
    let fixture = fixture.reopen();
    let error = fixture.vault.collect().expect_err("refused").to_string();
    assert!(error.contains("nothing is collected") && error.contains(&id("golden")), "{error}");
    assert!(pack.exists());
    assert_eq!(fixture.vault.ids(), [id("golden")]);
}

#[test]
fn a_damaged_chunk_is_stored_anew() {
    let fixture = open_golden();
    let path = &only_files(&fixture)[1];
    let mut bytes = fs::read(path).expect("read");
    bytes[20] ^= 1;
    fs::write(path, bytes).expect("write");
    fixture.read("golden").expect_err("damaged");
    fixture.write("again", &golden_contents()).expect("write");
    assert_eq!(fixture.read("again").expect("read"), golden_contents());
}

#[test]
fn a_pack_tells_its_chunks_without_a_manifest() {
    let fixture = Fixture::new();
    let files = files::Files::default();
    let mut writer = PackWriter::create(&files, fixture.dir.path(), "x").expect("create");
    let chunks: Vec<_> = (1..5_u8).map(|n| vec![n; usize::from(n) * 1000]).collect();
    for (slot, chunk) in (0..).zip(&chunks) {
        let length = u32::try_from(chunk.len()).expect("small");
        assert_eq!(writer.push(*blake3::hash(chunk).as_bytes(), length, chunk).expect("push"), slot);
    }
    let pack = writer.seal().expect("seal");
    writer.place(&pack).expect("place");
    let loaded = Pack::load(&files, &pack.path).expect("load");
    assert_eq!((loaded.id, &loaded.entries), (pack.id, &pack.entries));
    assert_eq!(loaded.file_length, fs::metadata(&pack.path).expect("stat").len());
}

#[test]
fn a_sidecar_comes_back_and_a_damaged_one_does_not() {
    let fixture = Fixture::new();
    let flat = fixture.flat("flat", &golden_contents()[&Part::Disk]);
    let map = ChunkMap::of_file(Part::Disk, &flat).expect("map");
    assert_eq!(map.chunks.iter().map(|chunk| chunk.0).collect::<Vec<_>>(), [1, 4]);
    let path = fixture.dir.path().join("flat.map");
    map.save(&path).expect("save");
    assert_eq!(ChunkMap::load(&path).expect("load"), map);
    let good = fs::read(&path).expect("read");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, bad).expect("write");
        ChunkMap::load(&path).expect_err("damaged");
        fs::write(&path, &good[..at]).expect("write");
        ChunkMap::load(&path).expect_err("cut");
    }
}

proptest::proptest! {
    #[test]
    fn numbers_come_back(value: u64) {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        let mut reader = Reader::new(Path::new("x"), &bytes);
        proptest::prop_assert_eq!(reader.varint().expect("read"), value);
        reader.end().expect("end");
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes: Vec<u8>) {
        // With the right checksum, so that the fields are reached.
        let mut whole = b"BJ-SNAP\n\x01\0\0\0".to_vec();
        whole.extend_from_slice(&bytes);
        let checksum = blake3::hash(&whole);
        whole.extend_from_slice(checksum.as_bytes());
        let _ = manifest::Manifest::decode(Path::new("x"), &whole);
    }
}
