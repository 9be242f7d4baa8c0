//! A build of a Dockerfile, from its context to an image.
//!
//! ```text
//! context sealed ─► Dockerfile read ─► builder sandbox ─► context and base images into it ─► tl-image-builder
//!                     (syntax)        (image or cache)                                          │ (its output is the log)
//!      retired: cached, ended ◄── image named ◄── node imports it, or knows it already ◄────────┘
//! ```
//! Nothing of it runs on a host: the builder is a sandbox like any other, with its limits, and `buildah` in it is what reads
//! the Dockerfile for good. Whatever happens on the way, the sandbox is ended. Called by [`super`].

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use belljar_api::{
    build::{BuildPhase, StartBuild},
    node::{ImportImage, ImportSource, SandboxFile},
    sandbox::ResourcesRequest,
};
use http::StatusCode;

use super::{
    STOPPED, Spoken, bounded, builder,
    cache::{self, Fate},
    context::Context,
    guest::Guest,
    import,
};
use crate::{
    app::App,
    build::Event,
    clock::now_ms,
    dockerfile::{self, Dockerfile, Reference},
    error::ApiError,
    life::SandboxRow,
    limits::{
        BUILD_ARGS_MAX, BUILD_TIME_MAX, BUILD_VALUE_MAX, BUILDER_CPUS, BUILDER_DISK_MB, BUILDER_MEMORY_MB,
        CONTEXT_WAIT, DOCKERFILE_BYTES_MAX,
    },
    node_link::{ImageRef, NodeError, NodeLink},
    visible,
};

/// What is to be built.
pub(super) struct Job {
    pub(super) start: StartBuild,
    public: bool,
    pub(super) context: Arc<Context>,
    pub(super) resources: ResourcesRequest,
    /// Milliseconds since the epoch.
    pub(super) deadline: i64,
}

/// Why there is no image.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was asked for.
    Cancelled,
    /// For whoever wanted it.
    Words(String),
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Words(error.to_string())
    }
}

/// An image of the server that the Dockerfile builds on.
pub(super) struct Base {
    /// As the Dockerfile calls it.
    pub(super) written: String,
    pub(super) id: String,
    pub(super) name: String,
}

/// What was built, in the builder.
struct Built {
    config_digest: String,
    /// Whether a base image was unpacked in it.
    has_new_base: bool,
}

impl Job {
    /// Checks what was asked for.
    pub(super) fn new(start: StartBuild, public: bool, context: Context) -> Result<Self, ApiError> {
        let path = start.dockerfile_path.as_deref().unwrap_or("Dockerfile");
        if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.len() > BUILD_VALUE_MAX {
            return Err(ApiError::invalid("dockerfile_path: give a path within the context"));
        }
        for (what, count) in [("build_args", start.build_args.len()), ("secrets", start.secrets.len())] {
            if count > BUILD_ARGS_MAX {
                return Err(ApiError::invalid(format!("{what}: {count} are too many; {BUILD_ARGS_MAX} are the most")));
            }
        }
        for (name, value) in &start.build_args {
            bounded("build_args: a name", name, BUILD_VALUE_MAX)?;
            if name.contains('=') || value.len() > BUILD_VALUE_MAX || value.contains('\0') {
                return Err(ApiError::invalid(format!("build_args: {name:?} has a value that cannot be passed on")));
            }
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(name) = start
            .secrets
            .keys()
            .find(|name| name.is_empty() || name.starts_with('.') || name.len() > 100 || !name.chars().all(is_plain))
        {
            return Err(ApiError::invalid(format!("secrets: {name:?} is no id; use letters, digits, . _ and -")));
        }
        let wanted = start.builder_resources.clone().unwrap_or_default();
        let resources = ResourcesRequest {
            cpus: Some(wanted.cpus.unwrap_or(BUILDER_CPUS)),
            memory_mb: Some(wanted.memory_mb.unwrap_or(BUILDER_MEMORY_MB)),
            disk_mb: Some(wanted.disk_mb.unwrap_or(BUILDER_DISK_MB)),
            gpus: None,
        };
        resources.resolve().map_err(|error| ApiError::invalid(format!("builder_resources: {error}")))?;
        let most = i64::try_from((CONTEXT_WAIT + BUILD_TIME_MAX).as_millis()).unwrap_or(i64::MAX);
        let deadline = now_ms().saturating_add(most);
        Ok(Self { start, public, context: Arc::new(context), resources, deadline })
    }

    pub(super) fn dockerfile_path(&self) -> &str {
        let path = self.start.dockerfile_path.as_deref().unwrap_or("Dockerfile");
        path.strip_prefix("./").unwrap_or(path)
    }
}

/// Builds, has the image named, and gives the end of it.
pub(super) async fn follow(spoken: &Spoken, link: &NodeLink, job: Job) -> Event {
    let app = &spoken.app;
    let mut builder = None;
    let made = tokio::select! {
        made = make(spoken, link, &job, &mut builder) => made,
        () = spoken.cancel.cancelled() => Err(Failure::Cancelled),
        () = app.stopping.cancelled() => Err(Failure::Words(STOPPED.to_owned())),
    };
    let (event, is_new) = match (&builder, made) {
        (Some(row), Ok(built)) => tokio::select! {
            ended = publish(spoken, link, &job, row, built) => ended,
            () = app.stopping.cancelled() => (Event::Failed(STOPPED.to_owned()), false),
        },
        (None, Ok(_)) => (Event::Failed("its builder is lost; start the build again".to_owned()), false),
        (_, Err(Failure::Cancelled)) => (Event::Stopped, false),
        (row, Err(Failure::Words(words))) => (Event::Failed(told(app, row.as_deref(), words).await), false),
    };
    if let Some(row) = builder {
        let fate = match &event {
            Event::Stopped => Fate::Ended,
            Event::Done(_) if is_new => Fate::Kept,
            _ => Fate::Lingers,
        };
        cache::retire(app, link, row, fate).await;
    }
    event
}

/// Why a build failed; that its builder has ended by itself explains all else.
async fn told(app: &App, builder: Option<&SandboxRow>, words: String) -> String {
    let Some(row) = builder else { return words };
    let now = app.store.sandbox(&row.id).await.ok().flatten();
    match now.as_ref().and_then(|row| row.ending()).filter(|_| row.is_up()) {
        Some(ending) => format!("its builder ended ({}): {}", visible::wire_word(ending.reason), ending.detail),
        None => words,
    }
}

/// Everything up to an image in the builder.
async fn make(
    spoken: &Spoken,
    link: &NodeLink,
    job: &Job,
    builder: &mut Option<Arc<SandboxRow>>,
) -> Result<Built, Failure> {
    let late = format!("no context was sealed in {} minutes; start the build again", CONTEXT_WAIT.as_secs() / 60);
    tokio::time::timeout(CONTEXT_WAIT, job.context.sealed()).await.map_err(|_| late)?;
    let dockerfile = read_dockerfile(job).await?;
    let bases = bases(link, job, &dockerfile).await?;
    step(spoken, BuildPhase::StartingBuilder).await;
    let long = format!("it is not over after {} minutes", BUILD_TIME_MAX.as_secs() / 60);
    let work = async {
        let row = builder::start(spoken, link, &job.resources, builder).await?;
        *builder = Some(Arc::clone(&row));
        let guest = Guest::new(&spoken.app, &row.id);
        let has_new_base = builder::prepare(&guest, link, job, &bases, &row.id).await?;
        let pid = builder::begin(&guest, job, &bases, &row).await?;
        step(spoken, BuildPhase::Executing).await;
        let config_digest = builder::finish(&guest, pid, &row).await?;
        Ok(Built { config_digest, has_new_base })
    };
    tokio::time::timeout(BUILD_TIME_MAX, work).await.map_err(|_| long)?
}

/// Only told on the way: the next one says more, and the end is what counts.
async fn step(spoken: &Spoken, phase: BuildPhase) {
    if let Err(error) = spoken.app.store.change_build(&spoken.id, Event::Step(phase), now_ms()).await {
        tracing::warn!(build = spoken.id, %error, "cannot note how far an image build is");
    }
}

/// Looks for the Dockerfile in the context, and reads it.
async fn read_dockerfile(job: &Job) -> Result<Dockerfile, Failure> {
    let (file, path) = (job.context.file().to_owned(), job.dockerfile_path().to_owned());
    let text = tokio::task::spawn_blocking(move || find_in_tar(&file, &path)).await??;
    Ok(dockerfile::read(job.dockerfile_path(), &text, &job.start.build_args, job.start.target.as_deref())?)
}

fn find_in_tar(file: &Path, wanted: &str) -> Result<String, String> {
    let broken = |error: io::Error| format!("the context is no tar archive: {error}; it must not be packed");
    let mut archive = tar::Archive::new(io::BufReader::new(std::fs::File::open(file).map_err(broken)?));
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let is_it = entry.path().map_err(broken)?.strip_prefix("./").map_or_else(
            |_| entry.path().is_ok_and(|path| path == Path::new(wanted)),
            |path| path == Path::new(wanted),
        );
        if !is_it || !entry.header().entry_type().is_file() {
            continue;
        }
        if entry.size() > DOCKERFILE_BYTES_MAX {
            return Err(format!("{wanted}: it has more than {} KiB", DOCKERFILE_BYTES_MAX >> 10));
        }
        let mut text = String::new();
        entry.read_to_string(&mut text).map_err(|error| format!("{wanted}: it cannot be read: {error}"))?;
        return Ok(text);
    }
    Err(format!("the context has no file {wanted:?}; name the Dockerfile with -f, and see that .dockerignore keeps it"))
}

/// Which of the images that a Dockerfile builds on are the server's own. All others are the registries'.
async fn bases(link: &NodeLink, job: &Job, dockerfile: &Dockerfile) -> Result<Vec<Base>, Failure> {
    let mut bases = Vec::new();
    for Reference { image: reference, written } in &dockerfile.images {
        let which = if reference.starts_with("image_") { ImageRef::Id(reference) } else { ImageRef::Name(reference) };
        let found = match link.image(which).await {
            Ok(found) => found,
            Err(NodeError::Answer { status: StatusCode::NOT_FOUND, .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let pinned = job.start.parents.iter().find(|parent| parent.reference == *reference);
        if let Some(id) = pinned.and_then(|parent| parent.public_id.as_ref()).filter(|id| **id != found.id) {
            let words = format!(
                "parents: {reference:?} was {id} when the build was begun, and is {} now; start the build again",
                found.id
            );
            return Err(Failure::Words(words));
        }
        bases.push(Base { written: written.clone(), id: found.id, name: found.name });
    }
    Ok(bases)
}

/// Has the node name what was built: at once where it knows it, else out of the builder. Says, too, whether the builder has
/// something that the next build could use.
async fn publish(spoken: &Spoken, link: &NodeLink, job: &Job, row: &SandboxRow, built: Built) -> (Event, bool) {
    step(spoken, BuildPhase::Snapshotting).await;
    let wanted = |archive| ImportImage {
        build_id: spoken.id.clone(),
        name: job.start.name.to_lowercase(),
        public: job.public,
        source: ImportSource::Sandbox { config_digest: built.config_digest.clone(), archive },
    };
    if let Some(event) = import::follow(spoken, link, wanted(None)).await {
        return (event, built.has_new_base);
    }
    let guest = Guest::new(&spoken.app, &row.id);
    let packed = tokio::select! {
        packed = builder::pack(&guest, &built.config_digest) => packed,
        () = spoken.cancel.cancelled() => Err(Failure::Cancelled),
    };
    let archive = match packed {
        Ok(path) => SandboxFile { sandbox_id: row.id.clone(), path },
        Err(Failure::Cancelled) => return (Event::Stopped, false),
        Err(Failure::Words(words)) => return (Event::Failed(words), false),
    };
    let event = import::follow(spoken, link, wanted(Some(archive))).await;
    (event.unwrap_or_else(import::absent), true)
}
