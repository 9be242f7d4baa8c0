use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use rustix::fs::{FileType, Mode, XattrFlags};

use super::*;
use crate::{ImportRequest, RuntimeConfig, draft::About, import, oci::is_root, record::HistoryEntry};

/// A tree with all that a file can be.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("etc/deep/again")).unwrap();
    symlink("passwd", root.join("etc/short")).unwrap();
    symlink(format!("/{}", "long/".repeat(40)), root.join("etc/long")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(&[7; 5000], 1 << 20).unwrap();
    sparse.write_all_at(b"end", 40 << 20).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let noise: Vec<u8> = (0..3_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    fs::write(root.join("large"), noise).unwrap();
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..3000 {
        fs::write(many.join(format!("a-file-with-a-name-that-is-not-short-{number}")), number.to_string()).unwrap();
    }
    let long = root.join("n".repeat(200)).join("m".repeat(250));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("o".repeat(255)), "deep").unwrap();
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("disk", FileType::BlockDevice, rustix::fs::makedev(259, 300_000));
    node("pipe", FileType::Fifo, 0);
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("empty", "user.note", b"a\nb\0c");
    set("large", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("large", "user.large", &[b'x'; 600]);
    set("etc", "trusted.one", b"");
    std::os::unix::fs::lchown(root.join("etc/short"), Some(3_000_000), Some(70_000)).unwrap();
    rustix::fs::chmod(root.join("large"), Mode::from_raw_mode(0o4755)).unwrap();
    rustix::fs::chmod(root, Mode::from_raw_mode(0o711)).unwrap();
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    packing: Packing,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store, packing: Packing::Gzip }
    }

    /// An image of a tree, as `mke2fs` makes it.
    fn image(&self) -> PathBuf {
        let (root, rootfs) = (self.dir.path().join("root"), self.dir.path().join("rootfs"));
        fs::create_dir(&root).unwrap();
        make_tree(&root);
        crate::ext4::pack(&root, &rootfs, 512, 1_700_000_000).unwrap();
        rootfs
    }

    fn take(&self, rootfs: &Path) {
        let draft = self.store.draft("mine").unwrap();
        fs::copy(rootfs, draft.rootfs()).unwrap();
        let config = RuntimeConfig {
            env: [("A".to_owned(), "b=c".to_owned())].into(),
            workdir: Some("/etc".to_owned()),
            user: Some("1:2".to_owned()),
            entrypoint: vec!["/init".to_owned()],
            exposed_ports: vec!["80/tcp".to_owned()],
            ..RuntimeConfig::default()
        };
        let history = vec![HistoryEntry { created_by: "commit".into(), ..HistoryEntry::default() }];
        draft.seal(About { config, history, ..About::default() }).unwrap().commit().unwrap();
    }

    /// The archive, unpacked.
    fn export(&self) -> Result<PathBuf, ImageError> {
        let (archive, layout) = (self.dir.path().join("archive"), self.dir.path().join("layout"));
        self.store.export("mine", self.packing, &mut File::create(&archive).unwrap(), &mut |_| {})?;
        fs::create_dir_all(&layout).unwrap();
        let status = Command::new("tar").arg("xf").arg(&archive).arg("-C").arg(&layout).status().unwrap();
        assert!(status.success());
        Ok(layout)
    }
}

/// What a tree is, but for times and what a host would not let a test see: each path with all that it has.
fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    let mut numbers: Vec<(u64, String)> = Vec::new();
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if name == "lost+found" {
            continue;
        }
        let link = fs::read_link(&path).unwrap_or_default();
        let content =
            if meta.is_file() { blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string() } else { String::new() };
        let first = numbers.iter().find(|(number, _)| *number == meta.ino()).map(|(_, name)| name.clone());
        numbers.push((meta.ino(), name.clone()));
        found.push(format!(
            "{name} {:o} {}:{} {} dev {} {} link {} {content} as {first:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if meta.is_dir() { 0 } else { meta.len() },
            meta.rdev(),
            meta.mtime(),
            link.display(),
        ));
        if meta.is_dir() {
            let mut children: Vec<_> = fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()).collect();
            children.sort();
            waiting.extend(children);
        }
    }
    found
}

#[test]
fn what_goes_out_comes_in_again() {
    if !is_root("what_goes_out_comes_in_again") {
        return;
    }
    let it = Fixture::new();
    it.take(&it.image());
    let layout = it.export().unwrap();
    // Read by the importer, which knows nothing of ext4, it is the same file system byte for byte; packed or not.
    let other = Fixture { packing: Packing::None, ..Fixture::new() };
    let source = format!("oci:{}:mine", layout.display());
    let request = ImportRequest { source, name: Some("back".into()), size_mib: Some(512), ..ImportRequest::default() };
    let first = import(&other.store, &request, &mut |_| {}).unwrap().image;
    other.store.tag("back", "mine").unwrap();
    let again = other.export().unwrap();
    let third = Fixture::new();
    let request = ImportRequest { source: format!("oci:{}:mine", again.display()), ..request };
    let second = import(&third.store, &request, &mut |_| {}).unwrap().image;
    assert_eq!(first.digest, second.digest);
    let said = it.store.lookup("mine").unwrap();
    assert_eq!((&first.config, first.history.len()), (&said.config, 2));
    // And what another program reads of the layer is the tree that it was made of.
    let unpacked = it.dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let layer = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xzpf"]).arg(layer).arg("-C").arg(&unpacked);
    assert!(tar.status().unwrap().success());
    assert_eq!(listing(&unpacked), listing(&it.dir.path().join("root")));
    assert!(fs::metadata(unpacked.join("sparse")).unwrap().blocks() < 1024, "the holes are there");
    let attribute = |name: &str, key: &str| {
        let mut value = vec![0; 1000];
        let length = rustix::fs::lgetxattr(unpacked.join(name), key, value.as_mut_slice()).unwrap();
        value.truncate(length);
        value
    };
    assert_eq!(attribute("empty", "user.note"), b"a\nb\0c");
    assert_eq!(attribute("large", "user.large"), [b'x'; 600]);
    assert_eq!(attribute("large", "security.capability").len(), 20);
}

#[test]
fn names_that_mean_something_else_in_a_layer_are_refused() {
    let it = Fixture::new();
    let (root, rootfs) = (it.dir.path().join("root"), it.dir.path().join("rootfs"));
    fs::create_dir_all(root.join("srv")).unwrap();
    fs::write(root.join("srv/.wh.data"), "").unwrap();
    crate::ext4::pack(&root, &rootfs, 512, 1_700_000_000).unwrap();
    it.take(&rootfs);
    let error = it.export().unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("/srv/.wh.data cannot be in an OCI image"), "{cause}");
    // Nothing is left where the layer was being made.
    assert_eq!(fs::read_dir(it.dir.path().join("store/tmp")).unwrap().count(), 0);
}

/// A small file system, to be damaged.
fn small() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/file"), vec![b'x'; 20_000]).unwrap();
    symlink("../file", root.join("a/b/link")).unwrap();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    assert!(mkfs.args(["-q", "-b", "1024", "-d"]).arg(&root).arg(&image).arg("2048").status().unwrap().success());
    fs::read(image).unwrap()
}

fn walk_all(bytes: &[u8]) -> Result<u64, ExportError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    let filesystem = Filesystem::open(file.path())?;
    let (walked, _) = walk::walk(&filesystem, bytes.len() as u64, false, std::io::sink(), &mut |_| {})?;
    Ok(walked.entries)
}

#[test]
fn a_small_file_system_is_read() {
    assert_eq!(walk_all(&small()).unwrap(), 5);
    assert!(walk_all(&[0; 4096]).unwrap_err().to_string().contains("superblock makes no sense"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_damaged_file_system_does_no_harm(
        changes in prop::collection::vec((0usize..300_000, any::<u8>()), 1..40),
        recover in any::<bool>(),
    ) {
        static SMALL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = SMALL.get_or_init(small).clone();
        for (at, value) in changes {
            // Tables come first: most changes hit what is read as numbers.
            bytes[at] = value;
        }
        bytes[1024 + 0x38..1024 + 0x3A].copy_from_slice(&0xEF53_u16.to_le_bytes());
        if recover {
            bytes[1024 + 0x60] |= 4;
        }
        let _ = walk_all(&bytes);
    }
}
