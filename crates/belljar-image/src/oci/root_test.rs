use proptest::prelude::*;

use super::*;

fn check(path: &str, expect: Result<&str, &str>) {
    let got = Place::parse(path.as_bytes()).map(|place| {
        let parts: Vec<_> = place.above.iter().chain(&place.name).map(|part| String::from_utf8_lossy(part)).collect();
        parts.join("/")
    });
    match (&got, expect) {
        (Ok(got), Ok(expect)) => assert_eq!(got, expect, "{path}"),
        (Err(got), Err(expect)) => assert!(got.contains(expect), "{path}: {got}"),
        _ => panic!("{path}: {got:?}, not {expect:?}"),
    }
}

#[test]
fn places() {
    check("a/b", Ok("a/b"));
    check("./a//b/", Ok("a/b"));
    check("/a/./b", Ok("a/b"));
    check("/", Ok(""));
    check("..", Err("leads out"));
    check("a/../b", Err("leads out"));
    check("a/..b", Ok("a/..b"));
    check("a\0b", Err("is no name"));
}

#[test]
fn directories_are_made_where_links_lead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root");
    std::fs::create_dir_all(path.join("real")).unwrap();
    std::os::unix::fs::symlink("/real", path.join("link")).unwrap();
    std::os::unix::fs::symlink("../..", path.join("up")).unwrap();
    let root = Root::open(&path).unwrap();
    root.make_directory(&[b"link", b"a", b"b"]).unwrap();
    root.make_directory(&[b"up", b"c"]).unwrap();
    assert!(path.join("real/a/b").is_dir() && path.join("c").is_dir());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

proptest! {
    /// What is parsed has no part that leads anywhere but into a directory.
    #[test]
    fn parts_are_plain(path in prop::collection::vec(prop::sample::select(vec!["..", ".", "/", "a", "\0", "//"]), 0..9)) {
        let path = path.concat();
        if let Ok(place) = Place::parse(path.as_bytes()) {
            for part in place.above.iter().chain(&place.name) {
                prop_assert!(check_name(part).is_ok() && !part.contains(&b'/'));
            }
        }
    }
}
