//! `/api/v1/files`: read, write, delete, list. Everything streams: a file may be larger than the memory.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::Path,
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
use tokio::task::JoinHandle;

use crate::{
    agent::Agent,
    error::{ApiError, Params},
    limits::{DIRECTORY_ENTRIES_MAX, FILE_CHUNK, REFUSED_BODY_MAX},
    paths,
    upload::{Block, Upload},
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
    let upload = blocking(move || Upload::begin(path, owner)).await?.map_err(failed)?;
    let mut writer = Writer::Idle(upload, Block::new());
    let mut block = Block::new();
    while let Some(frame) = body.frame().await.transpose().map_err(broken_off)? {
        let Ok(mut bytes) = frame.into_data() else { continue };
        while !bytes.is_empty() {
            block.fill(&mut bytes);
            if block.is_full() {
                let (upload, empty) = writer.idle().await?.map_err(failed)?;
                writer = Writer::start(upload, std::mem::replace(&mut block, empty));
            }
        }
    }
    let (upload, _) = writer.idle().await?.map_err(failed)?;
    blocking(move || upload.finish(&block)).await?.map_err(failed)?;
    Ok(StatusCode::NO_CONTENT)
}

fn broken_off(error: axum::Error) -> ApiError {
    ApiError::invalid(format!("the body broke off: {error}; nothing changed"))
}

/// Writes one block while the next is received.
enum Writer {
    Idle(Upload, Block),
    Busy(JoinHandle<io::Result<(Upload, Block)>>),
}

impl Writer {
    fn start(mut upload: Upload, mut block: Block) -> Self {
        Self::Busy(tokio::task::spawn_blocking(move || {
            upload.write(&block)?;
            block.clear();
            Ok((upload, block))
        }))
    }

    /// Waits for the block that is being written; gives an empty one.
    async fn idle(self) -> Result<io::Result<(Upload, Block)>, ApiError> {
        match self {
            Self::Idle(upload, block) => Ok(Ok((upload, block))),
            Self::Busy(task) => task.await.map_err(|error| ApiError::internal(format!("file work: {error}"))),
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
