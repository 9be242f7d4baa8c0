//! Imports for builds over the API. What imports is a double that goes as far as the image's reference says; the importer
//! itself is tried in its own crate, and here only where it refuses.

use std::sync::{Condvar, Mutex};

use belljar_api::{
    build::BuildPhase,
    image::ImageInfo,
    node::{ImportImage, ImportReport, ImportSource, StoppedImport},
};
use belljar_image::{BuiltImage, ImageError, ImportProgress, ImportRequest, Store};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::images::{ImportError, begin};

/// Whether doubles that wait may go on. Each test is a process of its own.
static OPEN: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

fn set_open(open: bool) {
    *OPEN.0.lock().expect("gate") = open;
    OPEN.1.notify_all();
}

/// Imports the file that the reference names by its last part: `wait` first waits, `bad` is no image.
fn double(
    store: &Store,
    request: &ImportRequest,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<BuiltImage, ImageError> {
    let name = request.name.clone().expect("a name");
    // The real one's order: name, turn, layers, file system, name.
    let draft = store.draft(&name)?;
    progress(ImportProgress::Resolve);
    if request.source.ends_with("/wait") {
        drop(OPEN.1.wait_while(OPEN.0.lock().expect("gate"), |open| !*open));
    }
    progress(ImportProgress::Pack);
    let file = fs::File::create(draft.rootfs()).expect("a file");
    file.set_len(2 << 20).expect("a size");
    let magic: &[u8] = if request.source.ends_with("/bad") { &[0, 0] } else { &[0x53, 0xEF] };
    std::os::unix::fs::FileExt::write_all_at(&file, magic, 1080).expect("a magic");
    std::os::unix::fs::FileExt::write_all_at(&file, request.source.as_bytes(), 4096).expect("content");
    progress(ImportProgress::Address);
    let about = belljar_image::About { public: !request.private, ..Default::default() };
    let sealed = draft.seal(about)?;
    request.stop.pass()?;
    Ok(BuiltImage { name, image: sealed.commit()?, cached: false })
}

fn new(build_id: &str, name: &str, image_ref: &str) -> ImportImage {
    ImportImage {
        build_id: build_id.into(),
        name: name.into(),
        public: true,
        source: ImportSource::Registry { image_ref: image_ref.into(), registry_credentials_json: None },
    }
}

impl Fixture {
    async fn for_imports() -> Self {
        let it = Self::new().await;
        *it.ctx.imports.double.lock().expect("double") = Some(double);
        it
    }

    fn begin(&self, build_id: &str, name: &str, image_ref: &str) -> Receiver<ImportReport> {
        begin(&self.ctx, new(build_id, name, image_ref)).expect("it begins")
    }

    /// Everything that is told of an import.
    async fn import(&self, name: &str, image_ref: &str) -> Vec<ImportReport> {
        all(self.begin("build_1", name, image_ref)).await
    }

    fn has(&self, name: &str) -> bool {
        self.store().lookup(name).is_ok()
    }

    /// Waits until no import is under way, not even one that was given up.
    async fn quiet(&self) {
        let turn = self.ctx.imports.turns.clone().acquire_owned().await.expect("a turn");
        drop(turn);
        while self.ctx.imports.count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn all(mut reports: Receiver<ImportReport>) -> Vec<ImportReport> {
    let mut all = Vec::new();
    while let Some(report) = reports.recv().await {
        all.push(report);
    }
    all
}

fn step(phase: BuildPhase) -> ImportReport {
    ImportReport::Step { phase }
}

#[track_caller]
fn image(reports: &[ImportReport]) -> ImageInfo {
    match reports.last() {
        Some(ImportReport::Done { image }) => image.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_import_tells_how_far_it_is_and_what_came_of_it() {
    let it = Fixture::for_imports().await;
    let reports = it.import("team/tool:v2", "registry.example/tool:v2").await;
    let steps = [BuildPhase::Executing, BuildPhase::Snapshotting, BuildPhase::Publishing].map(step);
    assert_eq!(reports[..3], steps);
    let info = image(&reports);
    assert_eq!((reports.len(), info.name.as_str(), info.global), (4, "team/tool:v2", true));
    assert_eq!(it.store().lookup("team/tool:v2").expect("an image").id(), info.id);
    let (_, state) = it.create(SandboxSpec { image: "team/tool:v2".into(), ..named(0) }).await;
    assert_eq!(state, NodeState::Running);
    // A later one takes the name, and the node's copy of the first goes.
    it.import("team/tool:v2", "registry.example/tool:v3").await;
    assert_ne!(it.store().lookup("team/tool:v2").expect("an image").id(), info.id);
    it.quiet().await;
    it.no_leftovers();
    it.finish().await;
}

#[tokio::test]
async fn what_the_api_must_not_import_is_refused_in_words() {
    let it = Fixture::for_imports().await;
    for (name, image_ref, words) in [
        ("mine", "oci:/etc", "is a place on the node's own disk"),
        ("mine", "docker-archive:/etc/shadow", "or use `belljar image import` on the node"),
        ("mine", "Alpine", "is no image of a registry"),
        ("a b", "alpine", "a name looks like"),
        ("belljar/debian", "alpine", "is one of those"),
        ("tensorlake/ubuntu-minimal", "alpine", "is one of those"),
        ("mine", "registry.example/bad", "its disk cannot be booted"),
    ] {
        let reports = it.import(name, image_ref).await;
        match reports.last() {
            Some(ImportReport::Failed { error }) => assert!(error.contains(words), "{name}: {error}"),
            other => panic!("{name} of {image_ref}: {other:?}"),
        }
    }
    it.quiet().await;
    it.no_leftovers();
    // The importer's own words, causes included.
    *it.ctx.imports.double.lock().expect("double") = None;
    let reports = it.import("mine", "127.0.0.1:1/tool").await;
    let Some(ImportReport::Failed { error }) = reports.last() else { panic!("{reports:?}") };
    assert!(error.contains("cannot reach the registry 127.0.0.1:1") || error.contains("needs root"), "{error}");
    it.quiet().await;
    assert!(!it.has("mine"));
    it.finish().await;
}

#[tokio::test]
async fn one_at_a_time_and_the_others_wait() {
    let it = Fixture::for_imports().await;
    let mut first = it.begin("build_1", "one", "registry.example/wait");
    assert_eq!(first.recv().await, Some(step(BuildPhase::Executing)));
    let mut second = it.begin("build_2", "two", "registry.example/two");
    tokio::task::yield_now().await;
    assert!(second.try_recv().is_err(), "it waits");
    assert_eq!(
        begin(&it.ctx, new("build_2", "three", "alpine")).expect_err("refused"),
        ImportError::Twice("build_2".into())
    );
    let many: Vec<_> = (3..=crate::limits::IMPORTS_MAX).map(|n| it.begin(&format!("b{n}"), "x", "alpine")).collect();
    assert_eq!(begin(&it.ctx, new("more", "x", "alpine")).expect_err("refused"), ImportError::TooMany);
    drop(many);
    set_open(true);
    assert_eq!(image(&all(first).await).name, "one");
    assert_eq!(image(&all(second).await).name, "two");
    it.quiet().await;
    it.no_leftovers();
    it.finish().await;
}

/// How an import is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The server says so.
    Stop,
    /// The server, or its connection, goes.
    Drop,
}

#[tokio::test]
async fn an_import_is_given_up_while_it_waits_and_while_it_works() {
    let it = Fixture::for_imports().await;
    for way in [Way::Stop, Way::Drop] {
        set_open(false);
        let mut working = it.begin("build_1", "one", "registry.example/wait");
        assert_eq!(working.recv().await, Some(step(BuildPhase::Executing)));
        let waiting = it.begin("build_2", "two", "registry.example/two");
        let after = it.begin("build_3", "three", "registry.example/three");
        for (id, reports) in [("build_2", waiting), ("build_1", working)] {
            match way {
                Way::Stop => {
                    assert_eq!(it.ctx.imports.stop(id), Some(StoppedImport { stopped: true }));
                    let told = tokio::time::timeout(PATIENCE, async {
                        let mut reports = reports;
                        while let Some(report) = reports.recv().await {
                            if report == ImportReport::Stopped {
                                return true;
                            }
                        }
                        false
                    });
                    assert_eq!(told.await, Ok(true), "it is told at once, whatever its thread does");
                }
                Way::Drop => drop(reports),
            }
        }
        set_open(true);
        assert_eq!(image(&all(after).await).name, "three", "those behind it have their turn");
        it.quiet().await;
        assert!(!it.has("one") && !it.has("two"), "{way:?}");
        assert_eq!(it.ctx.imports.stop("build_1"), None);
        it.no_leftovers();
    }
    // Its name is nobody's.
    assert_eq!(image(&it.import("one", "registry.example/one").await).name, "one");
    it.finish().await;
}

#[tokio::test]
async fn what_is_named_is_not_stopped_any_more() {
    let it = Fixture::for_imports().await;
    let mut reports = it.begin("build_1", "one", "registry.example/one");
    let mut last = None;
    while let Some(report) = reports.recv().await {
        last = Some(report);
        if let Some(ImportReport::Done { .. }) = last {
            break;
        }
    }
    assert!(last.is_some());
    drop(reports);
    it.quiet().await;
    assert!(it.has("one"), "a late end of the request takes nothing back");
    assert_eq!(it.ctx.imports.stop("build_1"), None);
    it.finish().await;
}

#[tokio::test]
async fn an_import_ends_with_its_node() {
    let it = Fixture::for_imports().await;
    let mut reports = it.begin("build_1", "one", "registry.example/wait");
    assert_eq!(reports.recv().await, Some(step(BuildPhase::Executing)));
    let waiting = it.begin("build_2", "two", "registry.example/two");
    let ctx = it.ctx.clone();
    // What was stopped notices when something comes.
    tokio::spawn(async move {
        ctx.leaving.cancelled().await;
        set_open(true);
    });
    let it = it.restart().await;
    // The server sees both end without a last word, and says that the node went.
    assert_eq!(all(waiting).await, []);
    assert!(!all(reports).await.contains(&ImportReport::Stopped));
    assert!(!it.has("one") && !it.has("two"));
    it.no_leftovers();
    it.finish().await;
}

#[tokio::test]
async fn an_import_that_fails_anywhere_leaves_nothing() {
    let it = Fixture::for_imports().await;
    for transient in [true, false] {
        for at in 1.. {
            let before = it.store().list().expect("images");
            it.ctx.faults.arm(Some(at), transient);
            let reports = it.import("mine", &format!("registry.example/{transient}{at}")).await;
            let reached = it.ctx.faults.passed().len() >= at;
            it.ctx.faults.arm(None, false);
            it.quiet().await;
            it.no_leftovers();
            if !reached {
                image(&reports);
                assert!(at > 2, "there are few steps");
                break;
            }
            let Some(ImportReport::Failed { error }) = reports.last() else { panic!("{reports:?}") };
            assert!(error.starts_with("cannot import: "), "{error}");
            assert_eq!(it.store().list().expect("images"), before, "it failed at {at}");
            image(&it.import("mine", "registry.example/again").await);
        }
    }
    it.finish().await;
}
