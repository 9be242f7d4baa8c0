//! `/api/v1/archive`: whole directories as one tar stream; an addition of ours, for `belljar cp`.
//!
//! The tar code is synchronous, so each archive has a thread, and a short queue of chunks between it and the
//! connection. When either side goes away the other sees a closed queue and ends.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::lchown,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    agent::Agent,
    error::{ApiError, Params},
    files::{PathQuery, blocking},
    limits::{ARCHIVE_QUEUE, ARCHIVES_MAX, FILE_CHUNK},
    paths::{self, Owner},
};

/// The routes.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/api/v1/archive", get(pack).put(unpack))
}

fn permit(agent: &Agent) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(&agent.archives)
        .try_acquire_owned()
        .map_err(|_| ApiError::too_many(format!("{ARCHIVES_MAX} archives are under way already; wait for one")))
}

async fn pack(State(agent): State<Arc<Agent>>, Params(query): Params<PathQuery>) -> Result<Response, ApiError> {
    let path = paths::checked(&*agent.settings()?, &query.path)?;
    let permit = permit(&agent)?;
    let root = path.clone();
    // What is wrong from the start is an answer; later it can only be a broken stream.
    let metadata = blocking(move || fs::metadata(&root)).await?;
    let metadata = metadata.map_err(|error| ApiError::from_path(&query.path, &error))?;
    let (sender, receiver) = mpsc::channel(ARCHIVE_QUEUE);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut archive = tar::Builder::new(ChunkWriter { chunk: Vec::new(), sender: sender.clone() });
        let packed = match metadata.is_dir() {
            true => pack_directory(&mut archive, &path),
            false => pack_entry(&mut archive, &path, Path::new(path.file_name().unwrap_or_default())),
        };
        if let Err(error) = packed.and_then(|()| archive.into_inner()).and_then(|mut writer| writer.flush()) {
            // Nobody to tell when the client has gone.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

type Chunk = Result<Bytes, io::Error>;

/// Turns small writes into chunks for the connection.
struct ChunkWriter {
    chunk: Vec<u8>,
    sender: mpsc::Sender<Chunk>,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= FILE_CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.chunk));
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

fn pack_directory(archive: &mut tar::Builder<ChunkWriter>, root: &Path) -> io::Result<()> {
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let name = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(name.clone());
            }
            pack_entry(archive, &entry.path(), &name)?;
        }
    }
    Ok(())
}

/// Adds one file, directory or link. Pipes, sockets and devices are not content; what has just gone is skipped.
fn pack_entry(archive: &mut tar::Builder<ChunkWriter>, path: &Path, name: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    if metadata.is_dir() {
        return archive.append_data(&mut header, name, io::empty());
    }
    if metadata.is_symlink() {
        header.set_size(0);
        return archive.append_link(&mut header, name, fs::read_link(path)?);
    }
    if !metadata.is_file() {
        return Ok(());
    }
    // The size is in the header before the content is read: a file that changes meanwhile is cut or filled up.
    let size = metadata.len();
    let content = File::open(path)?.take(size).chain(io::repeat(0)).take(size);
    archive.append_data(&mut header, name, content)
}

async fn unpack(
    State(agent): State<Arc<Agent>>,
    Params(query): Params<PathQuery>,
    mut body: Body,
) -> Result<StatusCode, ApiError> {
    let settings = agent.settings()?;
    let path = paths::checked(&settings, &query.path)?;
    let owner = paths::default_owner(&settings);
    let permit = permit(&agent)?;
    let (sender, receiver) = mpsc::channel::<Chunk>(ARCHIVE_QUEUE);
    let unpacking = blocking(move || {
        let _permit = permit;
        unpack_into(&path, ChunkReader { chunk: Bytes::new(), receiver }, owner)
    });
    let feed = async move {
        while let Some(frame) = body.frame().await {
            let chunk = match frame {
                Ok(frame) => frame.into_data().map_err(|_| io::Error::from(io::ErrorKind::InvalidData)),
                Err(error) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)),
            };
            // Closed: the archive has ended, or was refused.
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let (unpacked, ()) = tokio::join!(unpacking, feed);
    match unpacked? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(UnpackError::Escapes(name)) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            belljar_api::error::code::PATH_TRAVERSAL,
            format!("the archive's entry `{}` leads out of the directory", name.escape_debug()),
        )),
        Err(UnpackError::Kind(name)) => Err(ApiError::invalid(format!(
            "the archive's entry `{}` is neither a file, a directory nor a link",
            name.escape_debug()
        ))),
        // What tar says of a broken archive has these kinds, what the file system says has others.
        Err(UnpackError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::Other
            ) =>
        {
            Err(ApiError::invalid(format!("not a whole tar archive: {error}; what came before was unpacked")))
        }
        Err(UnpackError::Io(error)) => Err(ApiError::from_path(&query.path, &error)),
    }
}

enum UnpackError {
    Escapes(String),
    Kind(String),
    Io(io::Error),
}

impl From<io::Error> for UnpackError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads what the connection gave.
struct ChunkReader {
    chunk: Bytes,
    receiver: mpsc::Receiver<Chunk>,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

fn unpack_into(directory: &Path, reader: ChunkReader, owner: Option<Owner>) -> Result<(), UnpackError> {
    paths::make_directories(directory, owner)?;
    let root = fs::canonicalize(directory)?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        unpack_entry(&root, entry?, owner)?;
    }
    // A tar ends with empty blocks that nothing reads: take them, so that the client can send them.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

fn unpack_entry(root: &Path, mut entry: tar::Entry<'_, ChunkReader>, owner: Option<Owner>) -> Result<(), UnpackError> {
    use tar::EntryType::{Continuous, Directory, GNUSparse, Link, Regular, Symlink};
    let kind = entry.header().entry_type();
    let name = entry.path()?.into_owned();
    let shown = || name.to_string_lossy().into_owned();
    let is_inside = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
    let target = root.join(&name);
    if !name.components().all(is_inside) || !parent_is_inside(root, &target) {
        return Err(UnpackError::Escapes(shown()));
    }
    if !matches!(kind, Regular | Continuous | Directory | GNUSparse | Link | Symlink) {
        return Err(UnpackError::Kind(shown()));
    }
    // A directory that is there keeps its mode and owner: an archive unpacked into /usr must not take /usr over.
    if kind == Directory && target.is_dir() {
        return Ok(());
    }
    paths::make_directories(target.parent().unwrap_or(root), owner)?;
    entry.set_preserve_permissions(true);
    entry.set_preserve_mtime(true);
    if !entry.unpack_in(root)? {
        return Err(UnpackError::Escapes(shown()));
    }
    if let Some(owner) = owner {
        lchown(&target, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// Whether a path's directory, as far as it exists, is really below the root and not behind a link that leads out.
fn parent_is_inside(root: &Path, target: &Path) -> bool {
    target
        .ancestors()
        .skip(1)
        .find_map(|parent| fs::canonicalize(parent).ok())
        .is_some_and(|real| real.starts_with(root))
        || target == root
}
