//! Images that are made of snapshots, and images that go while sandboxes of them live.

use belljar_api::{node::NewImage, snapshot::SnapshotType};
use belljar_image::{Store, Which};
use tokio::time::sleep;

use super::*;
use crate::{
    blocking,
    images::{NewImageError, publish},
};

const SECOND: Duration = Duration::from_secs(1);

/// With a disk that is quickly hashed.
fn small() -> SandboxSpec {
    let mut spec = named(0);
    spec.resources.disk_mb = 4;
    spec
}

impl Fixture {
    pub(super) fn store(&self) -> Store {
        Store::open(&self.dir.path().join("store")).expect("a store")
    }

    fn image_names(&self) -> Vec<String> {
        self.store().list().expect("images").into_iter().map(|it| it.name).collect()
    }

    async fn publish(&self, name: &str, snapshot_id: &str) -> Result<belljar_api::image::ImageInfo, NewImageError> {
        let new = NewImage { name: name.into(), snapshot_id: snapshot_id.into(), public: false };
        publish(&self.ctx, new).await
    }

    async fn delete_image(&self, name: &'static str) -> Vec<String> {
        let ctx = self.ctx.clone();
        blocking(move || ctx.images.delete(Which::Name(name), &ctx.storage)).await.expect("it is deleted")
    }

    /// Nothing that an image was made of is left, neither in the store nor here.
    pub(super) fn no_leftovers(&self) {
        assert_eq!(self.store().prune(true).expect("a look").removed, []);
        assert_eq!(names(&self.dir.path().join("store/tmp")), Vec::<String>::new());
        let of_store: Vec<_> = self.store().list().expect("images");
        for copy in names(&self.ctx.storage.images()) {
            assert!(of_store.iter().any(|it| it.image.digest.replace(':', "-") == copy), "{copy} stands for nothing");
        }
    }

    fn of_image(&self, image: &str) -> SandboxSpec {
        SandboxSpec { image: image.into(), ..small() }
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_of_a_snapshot_is_its_disk_and_its_configuration() {
    let it = Fixture::new().await;
    let rootfs = it.store().lookup(belljar_image::DEFAULT_IMAGE).expect("an image").rootfs;
    let config = belljar_image::RuntimeConfig {
        env: [("A".to_owned(), "1".to_owned())].into(),
        labels: [("maker".to_owned(), "me".to_owned())].into(),
        ..Default::default()
    };
    // Not the same bytes, or it would be the image that there is.
    let other = it.dir.path().join("other");
    fs::copy(rootfs, &other).expect("a copy");
    fs::File::options().write(true).open(&other).and_then(|file| file.set_len(2 << 20)).expect("a size");
    it.store().import("base", &other, config.clone()).expect("an image");
    let source = it.run(it.of_image("base")).await;
    it.machine(&source).write(7, 77);
    let before = it.contents(&source).1;
    let snapshot = it.snapped(&source, SnapshotType::Filesystem).await;
    let info = it.publish("mine:v1", &snapshot).await.expect("an image");
    assert_eq!((info.name.as_str(), info.global, info.logical_size_bytes), ("mine:v1", false, 4 << 20));
    let image = it.store().lookup("mine:v1").expect("it is named");
    image.verify_content().expect("it is whole");
    assert_eq!((&image.config, image.id()), (&config, info.id));
    assert_eq!(image.history.last().expect("a step").created_by, format!("commit of sandbox {source}"));
    it.no_leftovers();

    // It needs neither the snapshot nor the sandbox nor the image that it came from.
    it.send(&snapshot, 1, Op::DeleteSnapshot).await;
    it.forget(&source).await;
    it.delete_image("base").await;
    sleep(SECOND).await;
    let made = it.run(it.of_image("mine:v1")).await;
    assert_eq!(it.contents(&made).1, before);
    assert_eq!(it.machine(&made).last_configured().runtime.env["A"], "1");
    // And one that comes from it can be made into another.
    it.machine(&made).write(8, 88);
    let snapshot = it.snapped(&made, SnapshotType::Filesystem).await;
    it.publish("mine:v1", &snapshot).await.expect("an image");
    assert_eq!(it.store().lookup("mine:v1").expect("it is named").history.len(), 2);
    it.no_leftovers();
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_become_an_image_is_refused_in_words() {
    let it = Fixture::new().await;
    let source = it.run(small()).await;
    let memory = it.snapped(&source, SnapshotType::Memory).await;
    let files = it.snapped(&source, SnapshotType::Filesystem).await;
    let unknown = new_id();
    for (name, snapshot, words) in [
        ("mine", &memory, "take a filesystem snapshot"),
        ("mine", &unknown, "no snapshot"),
        ("Mine", &files, "a name looks like"),
        ("belljar/debian", &files, "is one of those"),
        ("tensorlake/ubuntu-minimal", &files, "is one of those"),
    ] {
        let error = it.publish(name, snapshot).await.expect_err("refused").to_string();
        assert!(error.contains(words), "{name} of {snapshot}: {error}");
    }
    let draft = it.store().draft("mine").expect("a draft");
    assert!(it.publish("mine", &files).await.expect_err("refused").to_string().contains("is being made"));
    drop(draft);
    assert_eq!(it.image_names(), [belljar_image::DEFAULT_IMAGE]);
    it.no_leftovers();
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_fails_anywhere_leaves_nothing() {
    let it = Fixture::new().await;
    let source = it.run(small()).await;
    let mut number = 0;
    for transient in [true, false] {
        for at in 1.. {
            number += 1;
            it.machine(&source).write(number, number);
            let snapshot = it.snapped(&source, SnapshotType::Filesystem).await;
            let before = it.store().list().expect("images");
            it.ctx.faults.arm(Some(at), transient);
            let made = it.publish("mine", &snapshot).await;
            let reached = it.ctx.faults.passed().len() >= at;
            it.ctx.faults.arm(None, false);
            it.no_leftovers();
            if !reached {
                made.expect("an image");
                assert!(at > 3, "there are few steps");
                break;
            }
            assert!(made.expect_err("it fails").to_string().starts_with("cannot image: "));
            assert_eq!(it.store().list().expect("images"), before, "it failed at {at}");
            it.publish("mine", &snapshot).await.expect("an image");
        }
    }
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn sandboxes_outlive_their_image() {
    let it = Fixture::with(Options { resident: Duration::ZERO, ..Options::default() }).await;
    let source = it.run(small()).await;
    it.machine(&source).write(7, 77);
    let snapshot = it.snapped(&source, SnapshotType::Filesystem).await;
    it.publish("mine", &snapshot).await.expect("an image");
    let (awake, asleep) = (it.run(it.of_image("mine")).await, it.run(it.of_image("mine")).await);
    it.machine(&asleep).write(9, 99);
    let contents = (it.contents(&awake), it.contents(&asleep));
    it.suspend(&asleep).await;
    let kept = it.snapped(&awake, SnapshotType::Filesystem).await;
    assert_eq!(it.delete_image("mine").await, ["mine"]);
    assert_eq!(names(&it.ctx.storage.images()).len(), 1, "the copy of the default image is there");
    it.no_leftovers();

    let it = it.restart().await;
    it.wait(&awake, |state| *state == NodeState::Running).await;
    it.resume(&asleep).await;
    assert_eq!((it.contents(&awake), it.contents(&asleep)), contents);
    it.suspend(&awake).await;
    it.resume(&awake).await;
    let (restored, state) = it.restore(&kept, SnapshotType::Filesystem).await;
    assert_eq!(state, NodeState::Running);
    assert_eq!(it.contents(&restored).1, contents.0.1);
    // Of what was made of it, an image can be made again.
    it.publish("again", &kept).await.expect("an image");
    let (_, state) = it.create(it.of_image("mine")).await;
    let NodeState::Terminated { reason, detail, .. } = state else { panic!("{state:?}") };
    assert_eq!(reason, TerminationReason::ImageNotFound);
    assert!(detail.contains("\"mine\" not found; there are: again, belljar/debian"), "{detail}");
    it.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_about_to_be_cloned_stays() {
    let it = Fixture::new().await;
    let source = it.run(small()).await;
    let snapshot = it.snapped(&source, SnapshotType::Filesystem).await;
    it.publish("mine", &snapshot).await.expect("an image");
    let held = it.ctx.images.ensure("mine", &it.ctx.storage).await.expect("an image");
    let again = it.ctx.images.ensure("mine", &it.ctx.storage).await.expect("an image");
    it.delete_image("mine").await;
    let sweep = || {
        let ctx = it.ctx.clone();
        blocking(move || ctx.images.sweep(&ctx.storage).expect("a sweep"))
    };
    for (holder, left) in [(Some(held), true), (Some(again), true), (None, false)] {
        sweep().await;
        assert_eq!(names(&it.ctx.storage.images()).len(), 1 + usize::from(left));
        drop(holder);
    }
    it.no_leftovers();
    it.finish().await;
}
