use std::{collections::BTreeMap, os::unix::fs::FileExt};

use super::*;
use crate::record::{RECORD, ROOTFS, RuntimeConfig};

/// A store in a temporary directory, and images of a few kilobytes in it.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    pub(crate) fn build(&self, name: &str, content: u8) -> Image {
        self.build_as(name, content, &format!("key{content}"), |_| {})
    }

    /// The same under another key of the cache, with something else in the record.
    fn build_as(&self, name: &str, content: u8, key: &str, change: impl FnOnce(&mut Image)) -> Image {
        let (out, mut image, _lock) = self.stage(content);
        change(&mut image);
        image.write(&out).unwrap();
        let image = self.store.commit(&out, &image, name, Some(key), true).unwrap();
        fs::remove_dir_all(self.store.build_dir()).unwrap();
        image
    }

    /// As [`Self::build`], but what the store has besides stays as it is.
    pub(crate) fn build_without_pruning(&self, name: &str, content: u8) {
        let (out, image, _lock) = self.stage(content);
        fs::rename(out, self.store.image_dir(&image.digest)).unwrap();
        NameRecord::new(name, &image.digest, true, None).write(&self.store.name_path(name)).unwrap();
        let key = format!("key{content}");
        NameRecord::new(&key, &image.digest, true, None).write(&self.store.build_path(&key)).unwrap();
    }

    fn stage(&self, content: u8) -> (PathBuf, Image, Lock) {
        let (stage, lock) = self.store.stage().unwrap();
        let out = stage.join("image");
        fs::create_dir(&out).unwrap();
        let rootfs = out.join(ROOTFS);
        let file = File::create(&rootfs).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[0x53, 0xEF], 1080).unwrap();
        file.write_all_at(&[content], 5000).unwrap();
        let image = Image {
            digest: digest::of_file(&rootfs).unwrap(),
            rootfs,
            size_bytes: 1 << 20,
            disk_bytes: 8192,
            created_at: "2025-09-06T09:51:06Z".into(),
            suite: "bookworm".into(),
            origin: None,
            packages: BTreeMap::from([("bash".into(), "5.2".into())]),
            config: RuntimeConfig::default(),
            history: Vec::new(),
            is_variant: false,
        };
        image.write(&out).unwrap();
        (out, image, lock)
    }

    pub(crate) fn check(&self, names: &[&str], images: usize) {
        let listed: Vec<String> = self.store.list().unwrap().into_iter().map(|it| it.name).collect();
        assert_eq!(listed, names);
        self.check_images(images);
    }

    pub(crate) fn check_images(&self, images: usize) {
        assert_eq!(entries(&self.dir.path().join("images")).unwrap().len(), images);
    }
}

#[test]
fn names_come_and_go_and_files_with_the_last_one() {
    let it = Fixture::new();
    it.check(&[], 0);
    let one = it.build("belljar/debian", 1);
    it.build("team/tool:v2", 2);
    it.check(&["belljar/debian", "team/tool:v2"], 2);
    assert_eq!(it.store.lookup("tensorlake/ubuntu-minimal").unwrap(), one);
    assert_eq!(it.store.reuse("again", "key1", true, || Ok(())).unwrap(), Some(one.clone()));
    it.store.remove("again").unwrap();

    it.store.tag("belljar/debian", "other").unwrap();
    it.store.remove("belljar/debian").unwrap();
    it.check(&["other", "team/tool:v2"], 2);
    it.store.remove("other").unwrap();
    it.check(&["team/tool:v2"], 1);
    assert_eq!(it.store.reuse("again", "key1", true, || Ok(())).unwrap(), None);

    // A name that moves on lets go of its old image.
    it.build("team/tool:v2", 3);
    it.check(&["team/tool:v2"], 1);
    // The same content again is the same image.
    it.build("again", 3);
    it.check(&["again", "team/tool:v2"], 1);
}

#[test]
fn a_second_name_stands_for_the_same_files() {
    let it = Fixture::new();
    let one = it.build("belljar/debian", 1);
    it.build("other", 2);
    let tagged = it.store.tag("tensorlake/debian-minimal", "mine:v1").unwrap();
    assert_eq!((tagged.name.as_str(), &tagged.image), ("mine:v1", &one));
    it.check(&["belljar/debian", "mine:v1", "other"], 2);
    assert_eq!(it.store.names_of(&one).unwrap(), ["belljar/debian", "mine:v1"]);
    // It moves on, and what only it stood for goes.
    it.store.tag("mine:v1", "other").unwrap();
    it.check(&["belljar/debian", "mine:v1", "other"], 1);
    // To itself is no change.
    it.store.tag("other", "other").unwrap();
    it.store.remove("belljar/debian").unwrap();
    assert_eq!(it.store.lookup("other").unwrap(), one);
    let error = |name: &str, new: &str| it.store.tag(name, new).unwrap_err().to_string();
    assert!(error("nope", "x").contains("image \"nope\" not found; there are: mine:v1, other"));
    assert!(error("other", "Nope").contains("a name looks like"));
    it.check(&["mine:v1", "other"], 1);
}

#[test]
fn clients_remove_what_is_theirs() {
    let it = Fixture::new();
    let ours = it.build("belljar/debian", 1);
    let theirs = it.build("a", 2);
    it.store.tag("a", "b").unwrap();
    it.store.tag("belljar/debian", "mine").unwrap();
    let error = |which: Which<'_>| it.store.delete(which).unwrap_err().to_string();
    for name in ["belljar/debian", "belljar/debian:latest", "tensorlake/ubuntu-minimal"] {
        assert!(error(Which::Name(name)).contains("\"belljar/debian\" is one of those"), "{name}");
    }
    assert!(error(Which::Id(&ours.id())).contains("\"belljar/debian\" is one of those"));
    assert!(error(Which::Id("image_0")).contains("image \"image_0\" not found; there are: a, b"));
    assert!(error(Which::Name("c")).contains("not found"));
    it.check(&["a", "b", "belljar/debian", "mine"], 2);
    assert_eq!(it.store.delete(Which::Name("mine")).unwrap(), ["mine"]);
    assert_eq!(it.store.get(Which::Id(&theirs.id())).unwrap().name, "a");
    assert_eq!(it.store.delete(Which::Id(&theirs.id())).unwrap(), ["a", "b"]);
    it.check(&["belljar/debian"], 1);
}

#[test]
fn images_that_differ_in_their_configuration_alone_share_their_bytes() {
    let it = Fixture::new();
    let one = it.build("one", 1);
    let server = |image: &mut Image| image.config.cmd = vec!["serve".to_owned()];
    let other = it.build_as("other", 1, "server", server);
    it.check(&["one", "other"], 1);
    assert_eq!((other.digest.as_str(), other.config.cmd.len()), (one.digest.as_str(), 1));
    assert_ne!(other.id(), one.id());
    assert_eq!((it.store.lookup("one").unwrap(), it.store.lookup("other").unwrap()), (one.clone(), other.clone()));
    // A second name says what the first one said, and so does what is not made again.
    it.store.tag("other", "tagged").unwrap();
    assert_eq!(it.store.reuse("reused", "server", true, || Ok(())).unwrap().as_ref(), Some(&other));
    assert_eq!(it.store.names_of(&other).unwrap(), ["other", "reused", "tagged"]);
    assert_eq!(it.store.names_of(&one).unwrap(), ["one"]);
    assert_eq!(it.store.get(Which::Id(&other.id())).unwrap().image, other);
    // The bytes stay for as long as one of them is there.
    it.store.delete(Which::Id(&one.id())).unwrap();
    it.check(&["other", "reused", "tagged"], 1);
    assert_eq!(it.store.lookup("tagged").unwrap(), other);
    // Made with the first configuration again, it is the first image.
    assert_eq!(it.build("one", 1), one);
    it.store.delete(Which::Id(&other.id())).unwrap();
    it.check(&["one"], 1);
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let it = Fixture::new();
    let error = |name: &str| it.store.lookup(name).unwrap_err().to_string();
    assert_eq!(
        error("belljar/debian"),
        "image \"belljar/debian\" not found; there is none yet: `belljar image build` makes the default one"
    );
    it.build("belljar/debian", 1);
    assert_eq!(error("tensorlake/ubuntu-vnc"), "image \"tensorlake/ubuntu-vnc\" not found; there are: belljar/debian");
    assert!(it.store.remove("nope").unwrap_err().to_string().contains("image \"nope\" not found"));
    assert!(error("../names").contains("does not start with"));
}

#[test]
fn damage_is_found() {
    let it = Fixture::new();
    let image = it.build("a", 1);
    image.verify_content().unwrap();
    fs::set_permissions(&image.rootfs, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let check = |expect: &str| {
        let error = image.verify_content().unwrap_err().to_string();
        assert!(error.contains(expect) && error.contains("build it again"), "{error}");
    };
    let file = File::options().write(true).open(&image.rootfs).unwrap();
    file.write_all_at(b"!", 9000).unwrap();
    check("the content of rootfs.ext4 has the address blake3:");
    image.verify().unwrap();
    file.write_all_at(b"!", 1080).unwrap();
    check("is not an ext4 file system");
    file.set_len(5).unwrap();
    check("has 5 bytes instead of 1048576");
    fs::remove_file(&image.rootfs).unwrap();
    check("No such file");
    assert_eq!(it.store.reuse("again", "key1", true, || Ok(())).unwrap(), None);
    // Building it again mends it.
    it.build("a", 1).verify_content().unwrap();
}

#[test]
fn bad_records_are_refused() {
    let it = Fixture::new();
    let image = it.build("a", 1);
    let record = image.rootfs.with_file_name(RECORD);
    let good = fs::read_to_string(&record).unwrap();
    for (bad, expect) in [
        (good.replace("\"format\": 1", "\"format\": 9"), "has format 9, this version of belljar reads format 1"),
        (good.replace("blake3:", "blake3:0"), "describes another image"),
        ("{".into(), "EOF while parsing"),
        (" ".repeat(5 << 20), "more than"),
    ] {
        fs::write(&record, bad).unwrap();
        let error = it.store.lookup("a").unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn a_build_finds_an_empty_stage() {
    let it = Fixture::new();
    let (stage, lock) = it.store.stage().unwrap();
    fs::write(stage.join("left-over"), "").unwrap();
    drop(lock);
    let (stage, _lock) = it.store.stage().unwrap();
    assert!(entries(&stage).unwrap().is_empty());
}
