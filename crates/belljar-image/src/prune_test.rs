use std::{os::unix::fs::FileExt, path::Path};

use super::*;
use crate::store::tests::Fixture;

/// A file of one block, with what is above it.
fn put(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all_at(&[1; 4096], 0).unwrap();
}

/// What is found has to be this; a dry run changes nothing, and afterwards nothing is left to find.
#[track_caller]
fn check(it: &Fixture, expect: &[(&str, &str)]) {
    let words = |pruned: &Pruned| -> Vec<(String, String)> {
        let mut words: Vec<_> = pruned
            .removed
            .iter()
            .map(|it| (it.what.to_owned(), it.path.file_name().unwrap().to_string_lossy().into_owned()))
            .collect();
        words.sort();
        words
    };
    let planned = it.store.prune(true).unwrap();
    assert!(planned.removed.iter().all(|it| it.path.exists()));
    let pruned = it.store.prune(false).unwrap();
    assert_eq!(planned, pruned);
    let found = words(&pruned);
    let found: Vec<_> = found.iter().map(|(what, name)| (what.as_str(), name.as_str())).collect();
    assert_eq!(found, expect);
    assert!(pruned.removed.iter().all(|it| !it.path.exists()));
    assert_eq!(it.store.prune(false).unwrap().removed, []);
}

#[test]
fn what_a_name_stands_for_is_kept() {
    let it = Fixture::new();
    check(&it, &[]);
    it.build("a", 1);
    it.build("b", 2);
    check(&it, &[]);
    it.check(&["a", "b"], 2);
}

#[test]
fn left_overs_go_and_their_bytes_are_added_up() {
    let it = Fixture::new();
    let kept = it.build("a", 1);
    let lost = it.build("b", 2);
    let root = it.dir.path();
    // As a crash between two steps leaves it, and a hand that removes a directory.
    fs::remove_file(root.join("names/b.json")).unwrap();
    it.build_without_pruning("gone", 3);
    fs::remove_dir_all(root.join("images").join(digest::to_dir_name(&it.store.lookup("gone").unwrap().digest)))
        .unwrap();
    for left in ["names/x.json.new", "tmp/build/root/etc/passwd", "tmp/blobs/sha256-1.part", "tmp/making-x.json.lock"] {
        put(&root.join(left));
    }
    let bytes = it.store.prune(true).unwrap().bytes();
    assert!(bytes >= 5 * 4096, "{bytes}");
    let lost = digest::to_dir_name(&lost.digest);
    check(
        &it,
        &[
            ("claim of a name", "making-x.json.lock"),
            ("image without a name", &lost),
            ("layer of an import that broke off", "sha256-1.part"),
            ("name without an image", "gone.json"),
            ("record half written", "x.json.new"),
            ("record of a build", "key2.json"),
            ("record of a build", "key3.json"),
            ("unfinished build", "build"),
        ],
    );
    it.check(&["a"], 1);
    assert_eq!(it.store.reuse("a", "key1", true, || Ok(())).unwrap(), Some(kept));
}

#[test]
fn what_somebody_works_with_is_left_alone() {
    let it = Fixture::new();
    let claim = it.store.claim("x").unwrap();
    let (stage, lock) = it.store.stage().unwrap();
    put(&stage.join("root/file"));
    put(&it.store.blobs_dir().join("sha256-1"));
    let pruned = it.store.prune(false).unwrap();
    assert_eq!(pruned, Pruned { removed: Vec::new(), busy: true });
    drop(lock);
    check(&it, &[("layer of an import that broke off", "sha256-1"), ("unfinished build", "build")]);
    assert!(it.store.claim("x").is_err());
    drop(claim);
    check(&it, &[]);
}

#[test]
fn nothing_goes_while_a_name_cannot_be_read() {
    let it = Fixture::new();
    it.build("a", 1);
    fs::write(it.dir.path().join("names/b.json"), "{").unwrap();
    put(&it.dir.path().join("images/blake3-0/rootfs.ext4"));
    assert!(matches!(it.store.prune(false), Err(ImageError::BadRecord { .. })));
    it.check_images(2);
}
