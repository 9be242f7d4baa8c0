//! The heads of saved states (see `stream`): how QEMU describes the memory of a VM, by the VM's shape.
//!
//! A head is told by a QEMU that is started for it, never runs a guest and is ended at once; that takes some 50 ms, so heads
//! are kept.

use super::QemuConfig;
use super::arguments;
use super::qmp::{Qmp, QmpError};
use super::stream;
use crate::child::Process;
use crate::error::VmmError;
use crate::guard::Started;
use crate::limits::{DEVICES_BYTES, HEADS};
use crate::log::Log;
use crate::shape::Shape;
use crate::spawn::{Start, spawn};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Starts a program that is ended with its parent; in Debian's `util-linux`, which every Debian has.
const SETPRIV: &str = "setpriv";

/// Goes on only if the process that started it is still there: it may have ended before the signal for that was asked for.
const UNLESS_ORPHANED: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// The heads that were asked for.
#[derive(Debug)]
pub(super) struct Heads {
    config: QemuConfig,
    known: Mutex<VecDeque<(Shape, Arc<[u8]>)>>,
}

impl Heads {
    pub(super) fn new(config: QemuConfig) -> Self {
        Self { config, known: Mutex::default() }
    }

    /// The head of saved states of VMs of a shape. Whoever asks at the same time waits, so that one QEMU tells all.
    pub(super) async fn of(&self, shape: Shape) -> Result<Arc<[u8]>, VmmError> {
        // Processors, what was told of them and disk do not show in it. (A card does: it takes a number that the memory would have had.)
        let shape = Shape { vcpus: 1, disk: false, processor: None, ..shape };
        let mut known = self.known.lock().await;
        if let Some((_, head)) = known.iter().find(|(other, _)| *other == shape) {
            return Ok(Arc::clone(head));
        }
        let head: Arc<[u8]> = ask(&self.config, &shape).await?.into();
        if known.len() == HEADS {
            known.pop_front();
        }
        known.push_back((shape, Arc::clone(&head)));
        Ok(head)
    }
}

/// Starts a QEMU to have it told.
async fn ask(config: &QemuConfig, shape: &Shape) -> Result<Vec<u8>, VmmError> {
    let program = &config.program.path;
    let failed = |source| VmmError::Spawn { program: program.clone(), source };
    let prepare = || {
        let memory = memfd_create("belljar-vmm-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, shape.memory_mib << 20)?;
        let stream = File::from(memfd_create("belljar-vmm-stream", MemfdFlags::CLOEXEC)?);
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok::<_, io::Error>((memory, stream, tokio::net::UnixStream::from_std(ours)?, theirs, Log::create()?))
    };
    let (memory, mut stream, ours, theirs, log) = prepare().map_err(failed)?;
    // Nobody could find it again: it has no run directory, so it is to end with us, whatever ends us.
    let args = ["--pdeathsig", "KILL", "--", "sh", "-c", UNLESS_ORPHANED].map(str::to_owned).into_iter();
    let args = args.chain([std::process::id().to_string(), program.to_string_lossy().into_owned()]);
    let args: Vec<String> = args.chain(arguments::teller(config, shape)).collect();
    let pid = spawn(&Start {
        program: Path::new(SETPRIV),
        args: &args,
        cwd: Path::new("/"),
        stdout: log.as_fd(),
        stderr: log.as_fd(),
        fds: &[theirs.as_fd(), stream.as_fd(), memory.as_fd()],
    })
    .map_err(failed)?;
    // Its end of the connection must be its alone, so that its end ends the connection.
    drop(theirs);
    let started = Started::of(Process::watch(pid).map_err(failed)?);
    let limit = config.launch_limit;
    let told = tokio::time::timeout(limit, tell(ours)).await;
    started.process.kill().await?;
    match told {
        Ok(Ok(())) => {}
        Ok(Err(QmpError::Closed | QmpError::Io(_))) => {
            let ended = "it closed its control connection".to_owned();
            return Err(VmmError::EndedEarly { program: program.clone(), ended, log: log.message() });
        }
        Ok(Err(source)) => return Err(VmmError::Monitor { pid: pid.unsigned_abs(), source: source.into() }),
        Err(_) => return Err(VmmError::NotReady { program: program.clone(), limit, log: log.message() }),
    }
    read(&mut stream).map_err(failed)
}

async fn tell(stream: tokio::net::UnixStream) -> Result<(), QmpError> {
    let qmp = Qmp::start(stream).await?;
    qmp.command("migrate-set-capabilities", arguments::capabilities()).await?;
    qmp.command("migrate", arguments::outgoing()).await?;
    qmp.migrated().await
}

fn read(stream: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.rewind()?;
    stream.take(DEVICES_BYTES).read_to_end(&mut bytes)?;
    let head = stream::head(&bytes).map_err(io::Error::other)?;
    bytes.truncate(head.bytes.end);
    Ok(bytes)
}
