//! `belljar cp`: files and directories, one way or the other, streamed: memory use does not depend on their size.
//!
//! ```text
//!            to the sandbox                          from the sandbox
//! file       PUT files (executable: as archive)      GET files -> temporary file -> rename
//! directory  tar in a thread -> PUT archive          GET archive -> unpack in a thread (`unpack`)
//! ```

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use belljar_api::error::code;
use belljar_client::{Download, Sandbox};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use indicatif::ProgressBar;
use tokio::{io::AsyncWriteExt, sync::mpsc};
use tokio_util::io::{InspectReader, SyncIoBridge};

use super::{
    Context,
    interrupt::Interrupts,
    pack::{self, Skipped},
    unpack::unpack,
};
use crate::{
    cli::CpArgs,
    exit::ExitStatus,
    remote::{Place, file_name, join},
    report::Failure,
};

/// Bytes of an archive that travel together.
const CHUNK: usize = 256 * 1024;
/// Chunks that wait to be sent.
const QUEUE: usize = 2;
/// What a new file may be used for, before the umask takes its part away.
const FILE_MODE: u32 = 0o666;

pub(super) async fn cp(ctx: &Context, args: CpArgs) -> anyhow::Result<ExitStatus> {
    let client = ctx.client()?;
    let mut interrupts = Interrupts::listen()?;
    let copy = async {
        match (args.src, args.dest) {
            (Place::Local(src), Place::Sandbox { sandbox, path }) => {
                upload(ctx, &client.sandbox(&sandbox), &src, &path).await
            }
            (Place::Sandbox { sandbox, path }, Place::Local(dest)) => {
                download(ctx, &client.sandbox(&sandbox), &path, &dest).await
            }
            (Place::Local(_), Place::Local(_)) => {
                Err(Failure::new("neither path is in a sandbox").hint("write one of them as SANDBOX:/path").into())
            }
            (Place::Sandbox { .. }, Place::Sandbox { .. }) => Err(Failure::new("both paths are in sandboxes")
                .hint("copy to this machine first, then to the other sandbox")
                .into()),
        }
    };
    tokio::select! {
        done = copy => done.map(|()| ExitStatus::Success),
        // Dropping the copy removes its temporary file.
        signal = interrupts.next() => Ok(ExitStatus::of_program(None, Some(signal))),
    }
}

async fn upload(ctx: &Context, sandbox: &Sandbox, src: &Path, dest: &str) -> anyhow::Result<()> {
    let metadata = fs::metadata(src).with_context(|| format!("cannot read {}", src.display()))?;
    let there = remote_kind(sandbox, dest).await?;
    let into = there == Some(Kind::Directory) || dest.ends_with('/');
    if metadata.is_dir() {
        if there == Some(Kind::File) {
            return Err(Failure::new(format!("{dest} is a file, and {} is a directory", src.display())).into());
        }
        let target = if into { join(dest, &local_name(src)?) } else { dest.to_owned() };
        let bar = ctx.printer.transfer(format!("{}", src.display()), None);
        let src = src.to_owned();
        for skipped in send_archive(sandbox, &target, bar, move |archive| pack::directory(archive, &src)).await? {
            ctx.printer.warn(format!("{} was not copied: it is a pipe, a socket or a device", skipped.display()));
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return Err(Failure::new(format!("{} is neither a file nor a directory", src.display())).into());
    }
    let target = if into { join(dest, &local_name(src)?) } else { dest.to_owned() };
    let bar = ctx.printer.transfer(format!("{}", src.display()), Some(metadata.len()));
    // A file's permissions travel only in an archive; most have none worth keeping.
    if let (true, Some(name)) = (metadata.permissions().mode() & 0o111 != 0, file_name(&target)) {
        let parent = target.trim_end_matches('/').strip_suffix(name).unwrap_or("/").to_owned();
        // A link to a file is copied as the file.
        let (src, name) = (fs::canonicalize(src)?, PathBuf::from(name));
        let pack = move |archive: &mut Archive| pack::entry(archive, &src, &name).map(|_| Skipped::new());
        return send_archive(sandbox, &parent, bar, pack).await.map(|_| ());
    }
    let file = tokio::fs::File::open(src).await.with_context(|| format!("cannot read {}", src.display()))?;
    let content = InspectReader::new(file, move |bytes: &[u8]| bar.inc(bytes.len() as u64));
    Ok(sandbox.write_file(&target, content, Some(metadata.len())).await?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

async fn remote_kind(sandbox: &Sandbox, path: &str) -> anyhow::Result<Option<Kind>> {
    match sandbox.list_files(path).await {
        Ok(_) => Ok(Some(Kind::Directory)),
        Err(error) => match error.code() {
            Some(code::NOT_A_DIRECTORY) => Ok(Some(Kind::File)),
            Some(code::NOT_FOUND) => Ok(None),
            // A path that got here is well-formed: the list is refused only for being too long.
            Some(code::INVALID_ARGUMENT) => Ok(Some(Kind::Directory)),
            _ => Err(error.into()),
        },
    }
}

/// The name under which a local path is copied into a directory; `.` and `..` have the name of where they lead.
fn local_name(path: &Path) -> anyhow::Result<String> {
    let real = match path.file_name() {
        Some(_) => path.to_owned(),
        None => fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let name = real.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| Failure::new(format!("{} has no name that can be copied", path.display())).into())
}

type Archive = tar::Builder<ChunkWriter>;

/// Packs in a thread and sends as it goes. A failure of either side ends the other.
async fn send_archive(
    sandbox: &Sandbox,
    target: &str,
    bar: ProgressBar,
    pack: impl FnOnce(&mut Archive) -> io::Result<Skipped> + Send + 'static,
) -> anyhow::Result<Skipped> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let packing = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(ChunkWriter { chunk: Vec::new(), sender: sender.clone(), bar });
        let packed = pack(&mut archive).and_then(|skipped| {
            archive.into_inner()?.flush()?;
            Ok(skipped)
        });
        if let Err(error) = &packed {
            // The body must break off: one that merely ends would look whole.
            let _ = sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
        }
        packed
    });
    let sent = sandbox.write_archive(target, chunks(receiver)).await;
    match packing.await.context("packing panicked")? {
        // Broken pipe: the server refused, which `sent` tells better.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot read what is to be copied")
        }
        packed => {
            sent?;
            Ok(packed?)
        }
    }
}

fn chunks(receiver: mpsc::Receiver<io::Result<Bytes>>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

/// Turns the small writes of an archive into chunks.
struct ChunkWriter {
    chunk: Vec<u8>,
    sender: mpsc::Sender<io::Result<Bytes>>,
    bar: ProgressBar,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.bar.inc(self.chunk.len() as u64);
        let chunk = Bytes::from(std::mem::take(&mut self.chunk));
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

async fn download(ctx: &Context, sandbox: &Sandbox, src: &str, dest: &Path) -> anyhow::Result<()> {
    let into = dest.is_dir() || dest.as_os_str().as_encoded_bytes().ends_with(b"/");
    let target = match (into, file_name(src)) {
        (true, Some(name)) => dest.join(name),
        (true, None) => {
            return Err(Failure::new("the root directory has no name")
                .hint("name a directory that does not exist yet")
                .into());
        }
        (false, _) => dest.to_owned(),
    };
    match sandbox.read_file(src).await {
        Ok(content) => {
            let bar = ctx.printer.transfer(src, content.length());
            receive_file(content, &target, &bar).await
        }
        Err(error) if error.code() == Some(code::IS_DIRECTORY) => {
            let bar = ctx.printer.transfer(src, None);
            receive_directory(sandbox.read_archive(src).await?, target, bar).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn receive_file(content: Download, target: &Path, bar: &ProgressBar) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", target.display());
    let mut content = content.into_stream();
    // A link is followed, and what is no plain file (/dev/null, a pipe) is written to: neither is ever replaced.
    if fs::symlink_metadata(target).is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = tokio::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(target)
            .await
            .with_context(failed)?;
        return receive(&mut content, &mut file, bar).await.with_context(failed);
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".belljar-")
        .permissions(fs::Permissions::from_mode(FILE_MODE))
        .tempfile_in(parent)
        .with_context(failed)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().with_context(failed)?);
    receive(&mut content, &mut file, bar).await.with_context(failed)?;
    temporary.persist(target).with_context(failed)?;
    Ok(())
}

async fn receive(
    content: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin),
    file: &mut tokio::fs::File,
    bar: &ProgressBar,
) -> io::Result<()> {
    while let Some(chunk) = content.next().await {
        let chunk = chunk?;
        file.write_all(&chunk).await?;
        bar.inc(chunk.len() as u64);
    }
    file.flush().await
}

async fn receive_directory(archive: Download, target: PathBuf, bar: ProgressBar) -> anyhow::Result<()> {
    let reader = InspectReader::new(archive.into_reader(), move |bytes: &[u8]| bar.inc(bytes.len() as u64));
    let reader = SyncIoBridge::new(reader);
    tokio::task::spawn_blocking(move || unpack(reader, &target)).await.context("unpacking panicked")??;
    Ok(())
}
