use super::*;
use crate::store::{entries, tests::Fixture};

fn about() -> About {
    let step = HistoryEntry { created_by: "commit".into(), ..HistoryEntry::default() };
    About { origin: Some("a snapshot".into()), history: vec![step], ..About::default() }
}

impl Fixture {
    /// A draft with a file that passes for ext4.
    fn draft(&self, name: &str, content: u8) -> Draft {
        let draft = self.store.draft(name).unwrap();
        let file = fs::File::create(draft.rootfs()).unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x53, 0xEF], 1080).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[content], 5000).unwrap();
        draft
    }

    fn nothing_is_left(&self) {
        assert_eq!(entries(&self.dir.path().join("tmp")).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(self.store.prune(true).unwrap().removed, []);
    }
}

#[test]
fn a_draft_becomes_an_image_or_nothing() {
    let it = Fixture::new();
    let image = it.draft("mine", 1).seal(about()).unwrap().commit().unwrap();
    image.verify_content().unwrap();
    let named = it.store.find("mine").unwrap();
    assert_eq!((named.public, &named.image), (false, &image));
    assert_eq!(image.history[0].created.as_ref(), Some(&image.created_at));
    // Dropped before its end, in each of its phases.
    drop(it.store.draft("other").unwrap());
    drop(it.draft("other", 2));
    drop(it.draft("other", 2).seal(about()).unwrap());
    it.check(&["mine"], 1);
    it.nothing_is_left();
    // The same bytes are there once; a name that moves on takes its image along.
    assert_eq!(it.draft("second", 1).seal(about()).unwrap().commit().unwrap().rootfs, image.rootfs);
    it.check(&["mine", "second"], 1);
    it.draft("mine", 3).seal(about()).unwrap().commit().unwrap();
    it.draft("second", 3).seal(about()).unwrap().commit().unwrap();
    it.check(&["mine", "second"], 1);
    it.nothing_is_left();
}

#[test]
fn what_cannot_be_an_image_is_refused() {
    let it = Fixture::new();
    let refused = |name: &str| it.store.draft(name).unwrap_err().to_string();
    assert!(refused("Nope").contains("a name looks like"));
    assert!(refused("belljar/x").contains("is one of those"));
    assert!(refused("tensorlake/ubuntu-minimal").contains("\"belljar/debian\" is one of those"));
    let draft = it.draft("x", 1);
    assert!(refused("x").contains("is being made"));
    draft.check_space(0).unwrap();
    assert!(draft.check_space(u64::MAX).unwrap_err().to_string().contains("free"));
    drop(draft);
    let empty = it.store.draft("x").unwrap();
    fs::write(empty.rootfs(), vec![0; 4096]).unwrap();
    let error = empty.seal(about()).unwrap_err().to_string();
    assert!(error.contains("its disk cannot be booted: rootfs.ext4 is not an ext4 file system"), "{error}");
    assert!(it.store.draft("x").unwrap().seal(about()).is_err(), "there is no file");
    it.nothing_is_left();
}

#[test]
fn a_commit_that_fails_leaves_the_store_as_it_was() {
    let it = Fixture::new();
    let before = it.draft("a", 1).seal(about()).unwrap().commit().unwrap();
    // No record can take the place of a directory.
    let in_the_way = it.dir.path().join("names/b.json");
    fs::create_dir(&in_the_way).unwrap();
    assert!(it.draft("b", 2).seal(about()).unwrap().commit().is_err());
    // One that was there already stays.
    assert!(it.draft("b", 1).seal(about()).unwrap().commit().is_err());
    fs::remove_dir(in_the_way).unwrap();
    assert_eq!(it.store.lookup("a").unwrap(), before);
    it.check(&["a"], 1);
    it.nothing_is_left();
}

#[test]
fn what_a_crash_left_of_a_draft_goes() {
    let it = Fixture::new();
    let (dir, claim) = {
        let draft = it.draft("x", 1);
        let kept = (draft.dir.clone(), draft.dir.with_extension("lock"));
        std::mem::forget(draft);
        kept
    };
    assert_eq!(it.store.prune(false).unwrap().removed, [], "its maker lives");
    // Another process's lock would have gone with it; this one's file is as good as that.
    fs::remove_file(claim).unwrap();
    let removed = it.store.prune(false).unwrap().removed;
    assert_eq!(removed.iter().map(|it| (it.what, &it.path)).collect::<Vec<_>>(), [("image half made", &dir)]);
    it.nothing_is_left();
    // The next draft of the name would have removed it, too.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("left"), "").unwrap();
    it.draft("x", 1).seal(about()).unwrap().commit().unwrap();
    it.nothing_is_left();
}
