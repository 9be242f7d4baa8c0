use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::oci::testing::{Tar, describe, is_root};

/// A directory with something to guard beside a tree.
struct Fixture {
    dir: tempfile::TempDir,
    caps: Caps,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("outside"), "precious").unwrap();
        Self { dir, caps: Caps { reserve_bytes: 0, ..Caps::default() } }
    }

    /// Unpacks layers; gives the tree, or the error.
    fn unpack(&self, layers: &[Vec<u8>]) -> Result<PathBuf, String> {
        let path = self.dir.path().join("root");
        let mut tree = Tree::new(&path, &self.caps).unwrap();
        for layer in layers {
            tree.apply("sha256:0a", layer.as_slice()).map_err(|error| match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })?;
        }
        Ok(path)
    }

    /// Nothing beside the tree is new, gone or changed.
    fn is_unharmed(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
        assert_eq!(std::fs::read_to_string(self.dir.path().join("outside")).unwrap(), "precious");
        assert_eq!(std::fs::metadata(self.dir.path().join("outside")).unwrap().nlink(), 1);
    }
}

/// The layers give these names, or an error with these words; nothing outside is touched.
#[track_caller]
fn check(layers: Vec<Tar>, expect: Result<&[&str], &str>) {
    let it = Fixture::new();
    let layers: Vec<Vec<u8>> = layers.into_iter().map(Tar::end).collect();
    let got = it.unpack(&layers);
    match (&got, expect) {
        (Ok(path), Ok(names)) => {
            let found = describe(path);
            let found: Vec<&str> = found.keys().map(String::as_str).filter(|name| !name.is_empty()).collect();
            assert_eq!(found, names);
        }
        (Err(error), Err(words)) => assert!(error.contains(words), "expected {words:?}, got {error:?}"),
        _ => panic!("expected {expect:?}, got {got:?}"),
    }
    it.is_unharmed();
}

fn tar() -> Tar {
    Tar::new()
}

#[test]
fn later_layers_replace_and_remove() {
    if !is_root("later_layers_replace_and_remove") {
        return;
    }
    check(
        vec![tar().file("a", "1").file("d/b", "1"), tar().file(".wh.a", "").file("d/c", "")],
        Ok(&["d", "d/b", "d/c"]),
    );
    check(vec![tar().file("d/b", "1"), tar().file("d", "now a file")], Ok(&["d"]));
    check(vec![tar().file("d", "1"), tar().dir("d").file("d/b", "")], Ok(&["d", "d/b"]));
    check(vec![tar().symlink("d", "e"), tar().dir("d")], Ok(&["d"]));
    check(vec![tar().dir("d").dir("d/e").file("d/e/f", ""), tar().file(".wh.d", "")], Ok(&[]));
    check(vec![tar().file(".wh.absent", "").file("x/.wh.y", "").file("x/.wh..wh..opq", "")], Ok(&[]));
    check(vec![tar().file(".wh..wh.plnk", "").file("a", "")], Ok(&["a"]));
    check(vec![tar().file(".wh..", "")], Err("\".wh..\" leads out of the image"));
    check(vec![tar().file("d/.wh...", "")], Err("leads out of the image"));
    check(vec![tar().file("d/.wh.", "")], Err("leads out of the image"));
}

#[test]
fn opaque_directories_hide_lower_layers_only() {
    if !is_root("opaque_directories_hide_lower_layers_only") {
        return;
    }
    let below = || tar().file("d/a", "1").file("d/e/b", "1").file("other", "");
    check(vec![below(), tar().dir("d").file("d/.wh..wh..opq", "").file("d/c", "")], Ok(&["d", "d/c", "other"]));
    // The mark comes last, and what the layer brings is there already.
    let late = tar().file("d/c", "").file("d/e/f", "").file("d/.wh..wh..opq", "");
    check(vec![below(), late], Ok(&["d", "d/c", "d/e", "d/e/f", "other"]));
    check(vec![below(), tar().file("d/e/f", "").file(".wh.d", "")], Ok(&["d", "d/e", "d/e/f", "other"]));
    check(vec![below(), tar().file(".wh..wh..opq", "")], Ok(&[]));
}

#[test]
fn links_are_followed_inside_only() {
    if !is_root("links_are_followed_inside_only") {
        return;
    }
    check(
        vec![tar().dir("usr/bin").symlink("bin", "usr/bin").file("bin/x", "")],
        Ok(&["bin", "usr", "usr/bin", "usr/bin/x"]),
    );
    check(vec![tar().dir("lib").symlink("abs", "/lib").file("abs/x", "")], Ok(&["abs", "lib", "lib/x"]));
    // These lead out of the tree, and so back to its root.
    check(vec![tar().symlink("up", "../../..").file("up/outside", "x")], Ok(&["outside", "up"]));
    check(vec![tar().symlink("up", "..").file("up/.wh.outside", "")], Ok(&["up"]));
    check(vec![tar().symlink("up", "..").file("up/.wh..wh..opq", "")], Ok(&["up"]));
    check(vec![tar().symlink("up", "..").hard_link("mine", "up/outside")], Err("\"up/outside\", which is not there"));
    check(vec![tar().symlink("out", "../outside").file("out", "x")], Ok(&["out"]));
    check(vec![tar().symlink("out", "../outside").hard_link("mine", "out").file("mine", "x")], Ok(&["mine", "out"]));
    check(vec![tar().symlink("p", "/proc/self/cwd").file("p/x", "")], Err("lies below a link that leads nowhere"));
    check(vec![tar().symlink("a", "b").symlink("b", "a").file("a/x", "")], Err("lead in a circle"));
    check(vec![tar().file("../x", "")], Err("\"../x\" leads out of the image"));
    check(vec![tar().file("a/../../x", "")], Err("leads out of the image"));
    check(vec![tar().hard_link("x", "../outside")], Err("\"../outside\", which leads out of the image"));
    check(vec![tar().file("/abs/x", "")], Ok(&["abs", "abs/x"]));
    check(vec![tar().file("f", "").file("f/x", "")], Err("lies below something that is no directory"));
    check(vec![tar().file("/", "")], Ok(&[]));
    check(vec![tar().file("/", "x")], Err("stands where the root directory belongs"));
}

#[test]
fn bounds_hold() {
    if !is_root("bounds_hold") {
        return;
    }
    let deep = "a/".repeat(300);
    let deep = [("path", deep.as_bytes())];
    check(vec![tar().pax(&deep).dir("x")], Err("lies deeper than 256 directories"));
    // In three steps, of which each is allowed.
    let (one, link) = ("b/".repeat(200), "b/".repeat(199) + "b");
    let step = format!("link/{one}");
    let deeper =
        tar().pax(&[("path", one.as_bytes())]).dir("x").pax(&[("linkpath", link.as_bytes())]).symlink("link", "x");
    check(vec![deeper.pax(&[("path", step.as_bytes())]).dir("x")], Err("lies too deep"));
    let long = "x".repeat(256);
    check(vec![tar().pax(&[("path", long.as_bytes())]).file("x", "")], Err("a part that is longer than 255 bytes"));
    let endless = "x/".repeat(3000);
    check(vec![tar().pax(&[("path", endless.as_bytes())]).file("x", "")], Err("is longer than 4095 bytes"));
    check(vec![tar().hard_link("x", "y")], Err("\"y\", which is not there"));
    check(vec![tar().dir("d").hard_link("x", "d")], Err("which is a directory"));
    check(vec![tar().raw(EntryType::new(b'M'), "x", "", 0o644, b"")], Err("of an unknown kind"));
    check(vec![tar().symlink("x", "")], Err("is a link to nothing"));
    let mut it = Fixture::new();
    it.caps.entries = 2;
    let error = it.unpack(&[tar().file("a", "").file("b", "").file("c", "").end()]).unwrap_err();
    assert!(error.contains("the number of files up to layer sha256:0a is larger than 2"), "{error}");
    let mut it = Fixture::new();
    it.caps.unpacked_bytes = 8192;
    let error = it.unpack(&[tar().file("a", "x").file("b", "x").file("c", "x").end()]).unwrap_err();
    assert!(error.contains("what the layers unpack to is larger than 8192"), "{error}");
    let mut it = Fixture::new();
    it.caps.reserve_bytes = u64::MAX;
    let error = it.unpack(&[tar().end()]).unwrap_err();
    assert!(error.contains("have to stay free; make room"), "{error}");
}

#[test]
fn everything_about_a_file_is_kept() {
    if !is_root("everything_about_a_file_is_kept") {
        return;
    }
    // CAP_DAC_OVERRIDE and CAP_FOWNER: the bits make a line feed.
    let capability = [1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = tar()
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("mtime", b"12.000000005"), ("uid", b"3000000")])
        .raw(EntryType::Regular, "program", "", 0o4755, b"#!")
        .hard_link("same", "program")
        .hard_link("same", "same")
        .pax(&[("SCHILY.xattr.user.note", b"a\n\nb")])
        .dir("d")
        .file("d/x", "")
        .symlink("link", "to")
        .raw(EntryType::Char, "null", "", 0o666, b"")
        .raw(EntryType::Block, "disk", "", 0o660, b"")
        .raw(EntryType::Fifo, "pipe", "", 0o600, b"");
    let it = Fixture::new();
    // A directory that comes again takes on what is said last.
    let again = tar().dir("d").pax(&[("mtime", b"-1.5")]).file("old", "");
    let found = describe(&it.unpack(&[layer.end(), again.end()]).unwrap());
    let check = |name: &str, expect: &str| {
        let got = &found[name];
        assert!(got.contains(expect), "{name}: expected {expect:?}, got {got:?}");
    };
    check("program", "RegularFile 4755 3000000:8 (12, 5) 2 bytes");
    check("program", "security.capability=[01, 00, 00, 02, 0a, 00");
    check("program", "= [\"program\", \"same\"]");
    check("d", "Directory 750 7:8 (1000, 0)  ");
    assert!(!found["d"].contains("user.note"));
    check("link", "Symlink 777 7:8 (1000, 0) \"to\"");
    check("null", "CharacterDevice 666 7:8 (1000, 0) 1:3");
    check("disk", "BlockDevice 660 7:8 (1000, 0) 1:3");
    check("pipe", "Fifo 600 7:8 (1000, 0)");
    check("old", "(-2, 500000000)");
}

#[test]
fn holes_stay_holes() {
    if !is_root("holes_stay_holes") {
        return;
    }
    const SIZE: usize = 8 << 20;
    // Zeros that were written out, and each of the three ways in which GNU tar notes holes in PAX headers.
    let mut map = b"1\n4194304\n3\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abc");
    let size = SIZE.to_string();
    let layer = tar()
        .raw(EntryType::Regular, "zeros", "", 0o644, &vec![0; SIZE])
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"new"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .raw(EntryType::Regular, "GNUSparseFile.1/new", "", 0o644, &map)
        .pax(&[("GNU.sparse.map", b"4194304,3"), ("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.name", b"middle")])
        .file("GNUSparseFile.1/middle", "abc")
        .pax(&[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.offset", b"4194304"),
            ("GNU.sparse.numbytes", b"3"),
        ])
        .file("old", "abc")
        .file("behind", "it goes on");
    let it = Fixture::new();
    let root = it.unpack(&[layer.end()]).unwrap();
    for name in ["zeros", "new", "middle", "old"] {
        let content = std::fs::read(root.join(name)).unwrap();
        assert_eq!(content.len(), SIZE, "{name}");
        let data: Vec<(usize, u8)> = content.iter().copied().enumerate().filter(|(_, byte)| *byte != 0).collect();
        let expect: &[(usize, u8)] =
            if name == "zeros" { &[] } else { &[(4_194_304, b'a'), (4_194_305, b'b'), (4_194_306, b'c')] };
        assert_eq!(data, expect, "{name}");
        assert!(std::fs::metadata(root.join(name)).unwrap().blocks() * 512 <= 128 << 10, "{name} takes space");
    }
    assert_eq!(std::fs::read_to_string(root.join("behind")).unwrap(), "it goes on");
}

/// One entry of a hostile layer.
fn entry() -> impl Strategy<Value = (u8, String, String)> {
    let part =
        prop::sample::select(vec!["..", ".", "", "a", "b", "outside", "root", ".wh.a", ".wh..wh..opq", ".wh..", "c"]);
    let path = prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    (0u8..6, path.clone(), path)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever names and links a layer has, nothing outside of the tree is touched.
    #[test]
    fn nothing_outside_is_touched(layers in prop::collection::vec(prop::collection::vec(entry(), 1..12), 1..3)) {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let it = Fixture::new();
        let path = it.dir.path().join("root");
        let mut tree = Tree::new(&path, &it.caps).unwrap();
        for layer in layers {
            // Each entry alone, so that one that is refused does not end the layer.
            for (kind, name, link) in layer {
                let tar = match kind {
                    0 | 1 => tar().file(&name, "x"),
                    2 => tar().dir(&name),
                    3 | 4 => tar().symlink(&name, &link),
                    _ => tar().hard_link(&name, &link),
                };
                let _ = tree.apply("sha256:0a", tar.end().as_slice());
            }
        }
        it.is_unharmed();
    }
}
