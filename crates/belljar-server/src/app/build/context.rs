//! The context of a build of a Dockerfile, on its way from the client into the builder.
//!
//! ```text
//! empty ──PUT──► whole ──seal (its digest)──► sealed: the build goes on
//!   ▲              │
//!   └──── PUT ─────┘   the last one counts
//! ```
//! It is a file beside the database, and goes with the build. Who has the URL may upload, since the published clients send
//! no key with it: it holds a token of 122 random bits, and is of use to nobody once the context is sealed.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use belljar_api::{build::ContextUpload, error::code};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    error::ApiError,
    limits::{CONTEXT_BYTES_MAX, CONTEXT_STALL, CONTEXTS_BYTES_MAX},
};

/// Below the database's directory.
const DIRECTORY: &str = "contexts";

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    token: String,
    file: PathBuf,
    state: Mutex<State>,
    sealed: CancellationToken,
    /// Bytes of the file, and of all contexts together.
    bytes: AtomicU64,
    of_all: Arc<AtomicU64>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Empty,
    Busy,
    /// SHA-256, in hexadecimal digits.
    Whole(String),
    Sealed,
}

/// Where contexts lie; what a crash left there is removed.
pub(crate) fn directory(database: &Path) -> io::Result<PathBuf> {
    let directory = database.with_file_name(DIRECTORY);
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&directory)?;
    Ok(directory)
}

impl Context {
    pub(super) fn new(directory: &Path, build_id: &str, of_all: Arc<AtomicU64>) -> Self {
        Self {
            token: uuid::Uuid::new_v4().simple().to_string(),
            file: directory.join(build_id),
            state: Mutex::new(State::Empty),
            sealed: CancellationToken::new(),
            bytes: AtomicU64::new(0),
            of_all,
        }
    }

    /// Where it is to be put.
    pub(super) fn upload(&self, base: &str, build_id: &str) -> Option<ContextUpload> {
        let open = *self.state() != State::Sealed;
        let url = format!("{base}/images/v4/builds/{build_id}/context?token={}", self.token);
        open.then_some(ContextUpload { url, max_bytes: CONTEXT_BYTES_MAX })
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Resolves once it is sealed.
    pub(super) async fn sealed(&self) {
        self.sealed.cancelled().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that it is complete.
    pub(super) fn seal(&self, digest: &str) -> Result<(), ApiError> {
        let mut state = self.state();
        match &*state {
            State::Sealed => return Ok(()),
            State::Whole(found) if *found == digest.to_ascii_lowercase() => {}
            State::Whole(found) => {
                let words = format!("digest: the context that was uploaded has {found}; upload it again");
                return Err(ApiError::invalid(words));
            }
            State::Empty | State::Busy => {
                let words = "no whole context was uploaded; PUT it to context_upload.url first";
                return Err(ApiError::new(StatusCode::CONFLICT, code::CONFLICT, words));
            }
        }
        *state = State::Sealed;
        self.sealed.cancel();
        Ok(())
    }

    /// The file is empty, or gone.
    fn forget_bytes(&self) {
        self.of_all.fetch_sub(self.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    async fn receive(&self, mut body: Incoming) -> Result<(), ApiError> {
        let mut to = tokio::fs::File::create(&self.file).await.map_err(disk)?;
        self.forget_bytes();
        let (mut hash, mut left) = (Sha256::new(), CONTEXT_BYTES_MAX);
        loop {
            let frame = tokio::time::timeout(CONTEXT_STALL, body.frame()).await;
            let Some(frame) = frame.map_err(|_| ApiError::invalid("the upload of the context stands still"))? else {
                break;
            };
            let frame = frame.map_err(|error| ApiError::invalid(format!("the upload broke off: {error}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                let words = format!(
                    "the context has more than {} MiB; leave out what is not needed with .dockerignore",
                    CONTEXT_BYTES_MAX >> 20
                );
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code::PAYLOAD_TOO_LARGE, words)
            })?;
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if self.of_all.fetch_add(bytes.len() as u64, Ordering::Relaxed) > CONTEXTS_BYTES_MAX {
                let words =
                    "the contexts of the builds under way take all the room that there is for them; try again later";
                return Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, code::NO_SPACE, words));
            }
            hash.update(&bytes);
            to.write_all(&bytes).await.map_err(disk)?;
        }
        to.flush().await.map_err(disk)?;
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        *self.state() = State::Whole(digest);
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.forget_bytes();
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start removes it.
                tracing::warn!(%error, file = %self.file.display(), "the context of a build stays behind");
            }
            _ => {}
        }
    }
}

fn disk(error: io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::StorageFull {
        let words = "the server has no room for the context; free some and try again";
        return ApiError::new(StatusCode::INSUFFICIENT_STORAGE, code::NO_SPACE, words);
    }
    ApiError::internal(format!("a build's context: {error}"))
}

/// The build whose context a path is.
pub(crate) fn of_path(path: &str) -> Option<&str> {
    path.strip_prefix("/images/v4/builds/")?.strip_suffix("/context").filter(|id| !id.contains('/'))
}

/// Takes a context. It is no call of the router: its body is large, and who has the build's token needs no key.
pub(crate) async fn receive(app: &App, build_id: &str, request: Request<Incoming>) -> Result<StatusCode, ApiError> {
    let query = crate::http::Query::parse(request.uri().query().unwrap_or_default());
    let given = query.get("token").unwrap_or_default();
    let context: Option<Arc<Context>> = app.live.builds.context(build_id);
    let is_meant = context.as_ref().is_some_and(|it| it.token.as_bytes().ct_eq(given.as_bytes()).into());
    if !is_meant {
        app.live.keys.check(request.headers())?;
    }
    let context = context.ok_or_else(|| {
        let words = "no build waits for a context here: the URL is wrong, or its build is over";
        ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, words)
    })?;
    {
        let mut state = context.state();
        if matches!(*state, State::Busy | State::Sealed) {
            let words = "this context is being uploaded, or sealed";
            return Err(ApiError::new(StatusCode::CONFLICT, code::CONFLICT, words));
        }
        *state = State::Busy;
    }
    let received = Busy(&context);
    context.receive(request.into_body()).await?;
    drop(received);
    Ok(StatusCode::OK)
}

/// An upload that breaks off, however it does, leaves the context empty.
struct Busy<'a>(&'a Context);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if *state == State::Busy {
            *state = State::Empty;
        }
    }
}
