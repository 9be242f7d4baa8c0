use proptest::prelude::*;

use super::*;
use crate::oci::testing::Tar;

/// Names, sizes and contents of what is in an archive, or its error.
fn read(bytes: &[u8]) -> Result<Vec<(String, u64, Vec<u8>)>, String> {
    let mut archive = Archive::new(bytes);
    let mut found = Vec::new();
    while let Some(member) = archive.next().map_err(|error| error.to_string())? {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match archive.read_data(&mut buffer).map_err(|error| error.to_string())? {
                0 => break,
                count => content.extend(&buffer[..count]),
            }
        }
        found.push((printable(&member.name), member.size, content));
    }
    Ok(found)
}

#[track_caller]
fn check(bytes: &[u8], expect: Result<&[&str], &str>) {
    let got = read(bytes);
    match (&got, expect) {
        (Ok(found), Ok(names)) => {
            assert_eq!(found.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), names);
        }
        (Err(error), Err(words)) => assert!(error.contains(words), "expected {words:?}, got {error:?}"),
        _ => panic!("expected {expect:?}, got {got:?}"),
    }
}

#[test]
fn names_of_any_length() {
    let long = "d/".repeat(150) + "file";
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    check(&builder.into_inner().unwrap(), Ok(&[&long[..200]]));
    check(&Tar::new().pax(&[("path", b"new")]).file("old", "x").file("next", "").end(), Ok(&["new", "next"]));
    check(&[], Ok(&[]));
    check(&[0; 1024], Ok(&[]));
}

#[test]
fn what_is_no_archive() {
    let whole = Tar::new().file("a", "content").end();
    check(&whole[..600], Ok(&["a"]));
    check(&whole[..515], Err("it ends within a file"));
    check(&whole[..100], Err("it ends within a member"));
    check(&[b'x'; 1024], Err("no tar archive, or damaged"));
    let pax = Tar::new().pax(&[("path", b"new")]).end();
    check(&pax[..1024], Err("it ends within a member"));
    check(
        &Tar::new().raw(EntryType::XHeader, "x", "", 0, b"7 a=b\nx").file("a", "").end(),
        Err("PAX header is malformed"),
    );
    check(&Tar::new().pax(&[("uid", b"5000000000")]).file("a", "").end(), Err("the owner of \"a\" is no such number"));
    check(
        &Tar::new().pax(&[("SCHILY.xattr.user.a", &[b'x'; 5000])]).file("a", "").end(),
        Err("bytes of extended attributes"),
    );
}

/// A header that announces more than it has must not make us take the memory for it.
#[test]
fn long_names_are_bounded() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    check(header.as_bytes(), Err("what stands before a member has more than 4194304 bytes"));
}

#[test]
fn bad_maps_of_holes() {
    let sparse = |map: &str, size: &str| {
        Tar::new()
            .pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())])
            .file("a", "abc")
            .end()
    };
    check(&sparse("0,3", "3"), Ok(&["a"]));
    check(&sparse("0,3", "2"), Err("\"a\" has pieces out of order or beyond its end"));
    check(&sparse("0,2", "9"), Err("has 3 bytes of data and a map for 2"));
    check(&sparse("0,3,1", "9"), Err("bad map"));
    check(&sparse("x", "9"), Err("bad map"));
    check(&sparse("0,3", "9999999999999"), Err("is larger than"));
    let in_data = |data: &[u8]| {
        let version: (&str, &[u8]) = ("GNU.sparse.major", b"1");
        Tar::new().pax(&[version]).raw(EntryType::Regular, "a", "", 0, data).end()
    };
    check(&in_data(b"1\n"), Err("the map of a sparse file is cut off"));
    check(&in_data(&[b'9'; 512]), Err("bad map"));
    check(&in_data(&[&b"99999999\n"[..], &[0; 503]].concat()), Err("too many pieces"));
}

/// What GNU tar itself writes, in its old form.
#[test]
fn holes_as_gnu_tar_notes_them() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("a")).unwrap();
    file.set_len(64 << 20).unwrap();
    for piece in 0..40 {
        file.write_all_at(b"data", piece << 20).unwrap();
    }
    for format in ["gnu", "pax"] {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(dir.path()).args(["--sparse", "--format", format, "-cf", "-", "a"]);
        let packed = tar.output().unwrap();
        assert!(packed.status.success());
        let mut archive = Archive::new(packed.stdout.as_slice());
        let member = archive.next().unwrap().unwrap();
        assert_eq!((member.name.as_slice(), member.size), (&b"a"[..], 64 << 20), "{format}");
        assert!(member.segments.iter().filter(|segment| segment.length > 0).count() == 40, "{format}: {member:?}");
        assert!(archive.next().unwrap().is_none());
    }
}

proptest! {
    /// Bytes at random, and archives with bytes changed, are read or refused.
    #[test]
    fn no_bytes_do_harm(changes in prop::collection::vec((0usize..3072, any::<u8>()), 0..20)) {
        let mut bytes = Tar::new().pax(&[("path", b"new")]).file("old", "x").symlink("l", "new").end();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let _ = read(&bytes);
    }
}
