//! Diffs of ext4 disks that `mkfs.ext4` and `debugfs` made, sound ones and others.

use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    process::Command,
    time::Duration,
};

use belljar_api::snapshot::Difference::{Added, Changed, Removed};

use super::{
    vault_test::{Contents, Fixture, id, noise},
    *,
};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A disk with a few files; `features` as `mkfs.ext4 -O` takes them.
fn disk(fixture: &Fixture, features: &str) -> PathBuf {
    disk_with(fixture, features, 300)
}

/// The same with `many` files in one directory.
fn disk_with(fixture: &Fixture, features: &str, many: usize) -> PathBuf {
    let tree = fixture.dir.path().join("tree");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(tree.join("etc/deep/er")).expect("mkdir");
    fs::create_dir_all(tree.join("srv/gone")).expect("mkdir");
    for (name, content) in [
        ("etc/hostname", b"first".to_vec()),
        ("etc/same", b"same".to_vec()),
        ("etc/deep/er/file", noise(1, 300_000)),
        ("srv/gone/one", b"1".to_vec()),
        ("srv/gone/two", Vec::new()),
        ("srv/mode", b"mode".to_vec()),
    ] {
        fs::write(tree.join(name), content).expect("write");
    }
    for n in 0..many {
        fs::write(tree.join(format!("srv/many-{n:03}")), n.to_string()).expect("write");
    }
    symlink("etc/same", tree.join("link")).expect("symlink");
    let disk = fixture.dir.path().join("disk.ext4");
    let (tree, path) = (tree.to_str().expect("path"), disk.to_str().expect("path"));
    run("mkfs.ext4", &["-q", "-F", "-O", features, "-d", tree, path, "16M"]);
    disk
}

fn edit(disk: &Path, commands: &[String]) {
    for command in commands {
        run("debugfs", &["-w", "-R", command, disk.to_str().expect("path")]);
    }
}

fn store(fixture: &Fixture, name: &str, disk: &Path) {
    let part = PartSource { part: Part::Disk, file: disk, base: None };
    fixture.vault.write(&NewSnapshot { id: &id(name), parent: None, metadata: b"", parts: &[part] }).expect("write");
}

fn diff(fixture: &Fixture) -> Vec<(String, belljar_api::snapshot::Difference, u64)> {
    let diff = fixture.vault.diff(&id("old"), &id("new")).expect("diff");
    assert!(!diff.truncated);
    diff.entries.into_iter().map(|entry| (entry.path, entry.difference, entry.size_bytes)).collect()
}

#[test]
fn every_kind_of_difference_is_found() {
    let fixture = Fixture::new();
    let path = disk(&fixture, "64bit");
    store(&fixture, "old", &path);
    let content = fixture.flat("content", b"other");
    edit(
        &path,
        &[
            "rm /etc/hostname".into(),
            format!("write {} /etc/hostname", content.display()),
            "rm /srv/gone/one".into(),
            "rm /srv/gone/two".into(),
            "rmdir /srv/gone".into(),
            "set_inode_field /srv/mode mode 0100600".into(),
            "rm /link".into(),
            "symlink /link etc/elsewhere".into(),
            "mkdir /new".into(),
            format!("write {} /new/file", content.display()),
        ],
    );
    store(&fixture, "new", &path);
    let expected = [
        ("/etc/hostname", Changed, 5),
        ("/link", Changed, 13),
        ("/new", Added, 0),
        ("/new/file", Added, 5),
        ("/srv/gone", Removed, 0),
        ("/srv/gone/one", Removed, 1),
        ("/srv/gone/two", Removed, 0),
        ("/srv/mode", Changed, 4),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(path, how, size)| (path.to_owned(), how, size)).collect();
    assert_eq!(diff(&fixture), expected);
    let same = fixture.vault.diff(&id("new"), &id("new")).expect("diff");
    assert!(same.entries.is_empty() && !same.truncated);
}

#[test]
fn a_change_of_content_alone_is_found() {
    let fixture = Fixture::new();
    let path = disk(&fixture, "64bit");
    store(&fixture, "old", &path);
    // In place, as within one tick of the clock: no size and no time changes.
    let bytes = fs::read(&path).expect("read");
    let content = &noise(1, 300_000)[200_000..200_064];
    let at = bytes.windows(64).position(|window| window == content).expect("the file's content");
    fs::File::options().write(true).open(&path).expect("open").write_all_at(b"!", at as u64).expect("write");
    store(&fixture, "new", &path);
    assert_eq!(diff(&fixture), [("/etc/deep/er/file".to_owned(), Changed, 300_000)]);
}

#[test]
fn a_tree_that_was_made_anew_differs_in_nothing() {
    let fixture = Fixture::new();
    let path = disk(&fixture, "64bit");
    edit(&path, &["set_inode_field /srv/mode mode 0100640".into()]);
    store(&fixture, "old", &path);
    fs::remove_file(&path).expect("remove");
    store(&fixture, "new", &disk(&fixture, "^metadata_csum,^dir_index"));
    assert_eq!(diff(&fixture), [("/srv/mode".to_owned(), Changed, 4)]);
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let fixture = Fixture::new();
    let path = disk(&fixture, "64bit");
    store(&fixture, "old", &path);
    fixture.write("memory", &Contents::from([(Part::Memory, vec![1; 9])])).expect("write");
    fixture.write("noise", &Contents::from([(Part::Disk, noise(1, 1 << 20))])).expect("write");
    let check = |other: &str, expected: &str| {
        let error = fixture.vault.diff(&id("old"), &id(other)).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("absent", "has no snapshot");
    check("memory", "holds no disk");
    check("noise", "there is no ext4 file system");
    store(&fixture, "new", &disk(&fixture, "^metadata_csum"));
    let error = fixture.vault.diff_within(&id("old"), &id("new"), Duration::ZERO).expect_err("no time").to_string();
    assert!(error.contains("the time is up"), "{error}");

    // A file system that claims to be 16 TiB large: the reader would make room for that.
    let bytes = [0xff; 4];
    fs::File::options().write(true).open(&path).expect("open").write_all_at(&bytes, 1028).expect("write");
    store(&fixture, "large", &path);
    check("large", "claims to be larger than the disk");
}

#[test]
fn a_hostile_file_system_ends_in_an_answer() {
    let fixture = Fixture::new();
    // Without checksums, as a hostile guest makes them right.
    let path = disk_with(&fixture, "^metadata_csum,^has_journal", 20);
    store(&fixture, "old", &path);
    let good = fs::read(&path).expect("read");
    // Superblock, descriptors, bitmaps, inodes and directories, not the many bytes of content.
    let data: Vec<usize> = (1024..good.len()).filter(|at| good[*at] != 0).take(60_000).collect();
    for round in 0..60_u64 {
        let mut bad = good.clone();
        for flip in noise(round, 64).as_chunks::<8>().0 {
            let random = usize::from_le_bytes(*flip);
            bad[data[random % data.len()]] ^= 1 << (random >> 61);
        }
        fs::write(&path, bad).expect("write");
        store(&fixture, "new", &path);
        // An answer or an error; and in time.
        match fixture.vault.diff_within(&id("old"), &id("new"), Duration::from_secs(20)) {
            Ok(_) | Err(VaultError::Diff { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(fixture.vault.delete(&id("new")).expect("delete"));
    }
}
