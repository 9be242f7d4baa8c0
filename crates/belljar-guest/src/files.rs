//! `/api/v1/files`: read, write, delete, list. Everything streams: a file may be larger than the memory.
//!
//! A write goes to a temporary file beside its target and takes its name only when it is whole and on disk, so that
//! readers see the old file or the new one, and a write that breaks off leaves nothing.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use belljar_api::{
    error::code,
    file::{DirectoryEntry, DirectoryList},
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use serde::Deserialize;

use crate::{
    agent::Agent,
    error::{ApiError, Params},
    limits::{DIRECTORY_ENTRIES_MAX, FILE_CHUNK, REFUSED_BODY_MAX},
    paths::{self, Owner},
    random,
};

/// The routes.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/api/v1/files", get(read).put(write).delete(delete)).route("/api/v1/files/list", get(list))
}

/// Query of every route here.
#[derive(Deserialize)]
pub(crate) struct PathQuery {
    #[serde(default)]
    pub(crate) path: String,
}

/// Runs file work off the event loop.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(format!("file work: {error}")))
}

fn is_directory(path: &str) -> ApiError {
    let message = format!("{path}: is a directory; name a file");
    ApiError::new(StatusCode::BAD_REQUEST, code::IS_DIRECTORY, message)
}

async fn read(State(agent): State<Arc<Agent>>, Params(query): Params<PathQuery>) -> Result<Response, ApiError> {
    let path = paths::checked(&*agent.settings()?, &query.path)?;
    let asked = query.path.clone();
    let (file, metadata) = blocking(move || open(&path)).await?.map_err(|error| ApiError::from_path(&asked, &error))?;
    if metadata.is_dir() {
        return Err(is_directory(&query.path));
    }
    // What the kernel makes up on reading (/proc) says it has no size; only the end tells how long it is.
    let length = (metadata.is_file() && metadata.len() > 0).then_some(metadata.len());
    let state = ReadState { file: Some(file), left: length.unwrap_or(u64::MAX), exact: length.is_some() };
    let chunks = stream::unfold(state, |mut state| async move {
        let file = state.file.take()?;
        let chunk = state.next(file).await.transpose()?;
        Some((chunk, state))
    });
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// Opens without waiting for the other side of a fifo.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let metadata = fs::metadata(path)?;
    if metadata.file_type().is_fifo() || metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is a pipe or a socket; name a file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

struct ReadState {
    file: Option<File>,
    /// Bytes that were promised, or without limit.
    left: u64,
    exact: bool,
}

impl ReadState {
    async fn next(&mut self, mut file: File) -> io::Result<Option<Bytes>> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(FILE_CHUNK);
        if most == 0 {
            return Ok(None);
        }
        let (file, chunk) = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; most];
            let read = read_full(&mut file, &mut chunk);
            (file, read.map(|count| Bytes::from(chunk).slice(..count)))
        })
        .await
        .map_err(io::Error::other)?;
        let chunk = chunk?;
        self.left -= chunk.len() as u64;
        match (chunk.is_empty(), self.exact) {
            // The length is in the header already: breaking off is the only way left to say it was not kept.
            (true, true) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter")),
            (true, false) => Ok(None),
            (false, _) => {
                self.file = Some(file);
                Ok(Some(chunk))
            }
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

async fn write(
    State(agent): State<Arc<Agent>>,
    Params(query): Params<PathQuery>,
    mut body: Body,
) -> Result<StatusCode, ApiError> {
    let result = upload(&agent, &query, &mut body).await;
    if result.is_err() {
        // A client that is still sending would see a broken connection instead of the answer.
        let mut left = REFUSED_BODY_MAX;
        while let Some(Ok(frame)) = body.frame().await
            && left > 0
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
    }
    result
}

async fn upload(agent: &Agent, query: &PathQuery, body: &mut Body) -> Result<StatusCode, ApiError> {
    let settings = agent.settings()?;
    let path = paths::checked(&settings, &query.path)?;
    if query.path.ends_with('/') {
        return Err(is_directory(&query.path));
    }
    let owner = paths::default_owner(&settings);
    let failed = |error: io::Error| ApiError::from_path(&query.path, &error);
    let mut upload = blocking(move || Upload::begin(path, owner)).await?.map_err(failed)?;
    let mut batch = Vec::new();
    let mut batched = 0;
    loop {
        let frame = body.frame().await.transpose();
        let frame =
            frame.map_err(|error| ApiError::invalid(format!("the body broke off: {error}; nothing changed")))?;
        let is_last = frame.is_none();
        if let Some(bytes) = frame.and_then(|frame| frame.into_data().ok()) {
            batched += bytes.len();
            batch.push(bytes);
        }
        if batched < FILE_CHUNK && !is_last {
            continue;
        }
        let chunks = std::mem::take(&mut batch);
        batched = 0;
        upload = blocking(move || upload.write(&chunks)).await?.map_err(failed)?;
        if is_last {
            blocking(move || upload.finish()).await?.map_err(failed)?;
            return Ok(StatusCode::NO_CONTENT);
        }
    }
}

/// A file that is being written. Dropped before [`Upload::finish`] it leaves nothing.
struct Upload {
    file: File,
    /// The temporary file and its target; `None` for a device, which is written directly.
    rename: Option<(PathBuf, PathBuf)>,
}

impl Upload {
    fn begin(path: PathBuf, owner: Option<Owner>) -> io::Result<Self> {
        let target = paths::follow_links(path)?;
        let existing = match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => return Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Ok(metadata) if !metadata.is_file() => return Self::device(&target),
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let directory = target.parent().unwrap_or(Path::new("/"));
        paths::make_directories(directory, owner)?;
        let temporary = directory.join(format!(".belljar-{}.tmp", random::hex::<8>()));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let upload = Self { file, rename: Some((temporary, target)) };
        let (mode, owner) = match existing {
            Some(existing) => (existing.mode() & 0o7777, Some(Owner { uid: existing.uid(), gid: existing.gid() })),
            None => (0o644, owner),
        };
        if let Some(owner) = owner {
            // Not root (hosted mode): then the file is ours, as it was.
            let _ = fchown(&upload.file, Some(owner.uid), Some(owner.gid));
        }
        upload.file.set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(upload)
    }

    fn device(target: &Path) -> io::Result<Self> {
        let file = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(target)?;
        Ok(Self { file, rename: None })
    }

    fn write(mut self, chunks: &[Bytes]) -> io::Result<Self> {
        for chunk in chunks {
            self.file.write_all(chunk)?;
        }
        Ok(self)
    }

    fn finish(mut self) -> io::Result<()> {
        let Some((temporary, target)) = &self.rename else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(temporary, target)?;
        self.rename = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.rename
            && let Err(error) = fs::remove_file(temporary)
        {
            tracing::warn!("{}: {error}", temporary.display());
        }
    }
}

async fn delete(State(agent): State<Arc<Agent>>, Params(query): Params<PathQuery>) -> Result<StatusCode, ApiError> {
    let path = paths::checked(&*agent.settings()?, &query.path)?;
    let removed = blocking(move || {
        if fs::symlink_metadata(&path)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        fs::remove_file(&path)
    });
    match removed.await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(ApiError::from_path(&query.path, &error)),
    }
}

async fn list(
    State(agent): State<Arc<Agent>>,
    Params(query): Params<PathQuery>,
) -> Result<Json<DirectoryList>, ApiError> {
    let path = paths::checked(&*agent.settings()?, &query.path)?;
    let entries = blocking(move || entries(&path)).await?.map_err(|error| ApiError::from_path(&query.path, &error))?;
    Ok(Json(DirectoryList { path: query.path, entries }))
}

fn entries(path: &Path) -> io::Result<Vec<DirectoryEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entries.len() == DIRECTORY_ENTRIES_MAX {
            let message = format!("has more than {DIRECTORY_ENTRIES_MAX} entries; list it with a program");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // A link that points nowhere is shown as itself; what has just gone is not shown.
        let Ok(metadata) = fs::metadata(entry.path()).or_else(|_| entry.metadata()) else { continue };
        let since_epoch = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        entries.push(DirectoryEntry {
            name: entry.file_name().to_string_lossy().into_owned(),
            is_dir: metadata.is_dir(),
            size: (!metadata.is_dir()).then_some(metadata.len()),
            modified_at: since_epoch.and_then(|time| i64::try_from(time.as_millis()).ok()),
        });
    }
    entries.sort_by(|a, b| b.is_dir.cmp(&a.is_dir).then_with(|| a.name.cmp(&b.name)));
    Ok(entries)
}
