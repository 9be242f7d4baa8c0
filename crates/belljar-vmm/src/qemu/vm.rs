//! One running QEMU.

use super::arguments::{CONSOLE, DISK, NETWORK};
use super::heads::Heads;
use super::qmp::Qmp;
use super::state;
use crate::VmmError;
use crate::child::{Process, known};
use crate::dirty::{self, Origin};
use crate::driver::{DirtyMemory, Vm, VmExit};
use crate::limits::{CONSOLE_BYTES, DEVICES_BYTES};
use crate::log::Log;
use crate::memory::MemoryUse;
use crate::panic_words::panic_message;
use crate::run_dir::{self, DEVICES, Guest, LINK, RunDir};
use crate::shape::Shape;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// What a VM consists of on the host.
pub(super) struct Parts {
    pub dir: Arc<RunDir>,
    pub process: Process,
    /// Of the QEMU that runs, which may be another one than would be started now.
    pub version: String,
    pub guest: Guest,
    pub heads: Arc<Heads>,
    /// It was, or may have been, restored and has not gone on yet.
    pub restored: bool,
}

/// A VM and the task that finds out why it ends.
pub(super) struct QemuVm {
    parts: Parts,
    console: Arc<Console>,
    /// The link may stand still since the VM was restored: see [`QemuVm::restart_link`].
    link_stands: AtomicBool,
    /// One at a time: the file that QEMU writes has one name.
    saving: Mutex<()>,
    exit: watch::Receiver<Option<VmExit>>,
    observer: JoinHandle<()>,
}

impl Drop for QemuVm {
    /// Lets go of the control connection, so that the VM can be adopted again.
    fn drop(&mut self) {
        self.observer.abort();
    }
}

impl QemuVm {
    /// Looks at the process's mapping of the memory file: pid, the file, its bytes.
    fn of_memory<T>(&self, look: impl FnOnce(u32, Origin, u64) -> std::io::Result<T>) -> Result<T, VmmError> {
        let (pid, guest) = (self.parts.process.pid(), self.parts.guest);
        let inode = guest.memory_inode.ok_or(VmmError::NoMemoryFile { pid })?;
        let operation = "read the memory of";
        look(pid, Origin::File(inode), guest.memory_mib << 20).map_err(|source| VmmError::Process {
            operation,
            pid,
            source,
        })
    }

    /// Takes over a running QEMU. `stopped` is why its guest has stopped, if it has already.
    pub(super) fn new(parts: Parts, qmp: Qmp, log: Log, stopped: Option<VmExit>) -> Self {
        let console = Arc::new(Console { qmp, dir: Arc::clone(&parts.dir), fetching: Mutex::new(()) });
        let (tell, exit) = watch::channel(None);
        let observer = tokio::spawn(observe(parts.process.clone(), Arc::clone(&console), log, stopped, tell));
        let link_stands = AtomicBool::new(parts.restored);
        Self { parts, console, link_stands, saving: Mutex::default(), exit, observer }
    }

    async fn command(&self, command: &'static str, arguments: Value) -> Result<Value, VmmError> {
        let done = self.console.qmp.command(command, arguments).await;
        done.map_err(|source| VmmError::Monitor { pid: self.pid(), source: source.into() })
    }

    /// When a VM is restored that was saved in the middle of what its guest was saying, QEMU tries to say the rest to a link that
    /// nobody has opened yet, and waits for ever. It gives up when a link is closed while the guest runs.
    async fn restart_link(&self) {
        if self.link_stands.swap(false, Ordering::Relaxed) {
            // Where it cannot be opened, whoever wants it open will be told.
            drop(self.parts.dir.connect(LINK).await);
        }
    }

    /// Has QEMU write its devices, and takes that away from it.
    async fn fetch_devices(&self) -> Result<Vec<u8>, VmmError> {
        let _one_at_a_time = self.saving.lock().await;
        let dir = &self.parts.dir;
        // QEMU works in the run directory, whatever that is called by now. `live` would also let go of the disk.
        let saved = self.command("xen-save-devices-state", json!({ "filename": DEVICES, "live": false })).await;
        let devices = saved.and_then(|_| {
            let failed = |source| VmmError::RunDir { operation: "read", path: dir.file(DEVICES), source };
            dir.tail(DEVICES, DEVICES_BYTES).map_err(failed)
        });
        dir.remove(DEVICES)?;
        devices
    }
}

/// Waits for whatever ends the VM first.
async fn observe(
    process: Process,
    console: Arc<Console>,
    log: Log,
    stopped: Option<VmExit>,
    exit: watch::Sender<Option<VmExit>>,
) {
    let guest = async {
        let reason = match stopped {
            Some(reason) => reason,
            None => match console.qmp.shutdown().await.as_str() {
                "guest-shutdown" => VmExit::GuestShutdown,
                "guest-reset" => VmExit::GuestReset,
                // Somebody on the host ends QEMU: its process will tell.
                _ => std::future::pending().await,
            },
        };
        // A panicking kernel resets, too.
        match panic_message(&console.read().await.unwrap_or_default()) {
            Some(message) if reason == VmExit::GuestReset => VmExit::GuestPanic { message },
            _ => reason,
        }
    };
    let reason = tokio::select! {
        biased;
        reason = guest => reason,
        ended = process.ended() => {
            // The process of a killed VM has nothing to say that matters.
            if ended.signal != Some(libc::SIGKILL) {
                tracing::warn!(pid = process.pid(), ?ended, log = log.message(), "QEMU ended by itself");
            }
            match console.dir.inmate() {
                Some(inmate) if inmate.was_out_of_memory(ended) => VmExit::OutOfMemory,
                _ => ended.into(),
            }
        }
    };
    exit.send_replace(Some(reason));
}

/// The console's history. QEMU forgets what it has handed out, so that is kept in a file, also for a later process.
struct Console {
    qmp: Qmp,
    dir: Arc<RunDir>,
    fetching: Mutex<()>,
}

impl Console {
    async fn read(&self) -> Result<Vec<u8>, VmmError> {
        let _one_at_a_time = self.fetching.lock().await;
        let mut text = self.dir.tail(run_dir::CONSOLE, CONSOLE_BYTES as u64).unwrap_or_default();
        let arguments = json!({ "device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64" });
        // A QEMU that has ended has nothing new.
        let Ok(Value::String(new)) = self.qmp.command("ringbuf-read", arguments).await else { return Ok(text) };
        let new = STANDARD.decode(new).unwrap_or_default();
        if !new.is_empty() {
            text.extend_from_slice(&new);
            text.drain(..text.len().saturating_sub(CONSOLE_BYTES));
            self.dir.write(run_dir::CONSOLE, &text)?;
        }
        Ok(text)
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn pid(&self) -> u32 {
        self.parts.process.pid()
    }

    async fn connect_link(&self) -> Result<UnixStream, VmmError> {
        self.parts.dir.connect(LINK).await.map_err(|source| VmmError::Link { path: self.parts.dir.file(LINK), source })
    }

    async fn wait(&self) -> VmExit {
        known(&self.exit).await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.parts.process.kill().await?;
        // Not while somebody writes the console's history there.
        let _no_reader = self.console.fetching.lock().await;
        self.parts.dir.clear()
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        self.console.read().await
    }

    async fn set_network(&self, connected: bool) -> Result<(), VmmError> {
        let arguments = json!({ "name": NETWORK, "up": connected });
        self.command("set_link", arguments).await.map(drop)
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.command("stop", json!({})).await.map(drop)
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.command("cont", json!({})).await?;
        self.restart_link().await;
        Ok(())
    }

    async fn is_paused(&self) -> Result<bool, VmmError> {
        let status = self.command("query-status", json!({})).await?;
        // A guest whose disk could not be written to stands still, too, and tries again when it goes on.
        Ok(matches!(status.get("status").and_then(Value::as_str), Some("paused" | "io-error")))
    }

    async fn save_devices(&self, to: &Path) -> Result<(), VmmError> {
        let pid = self.pid();
        if self.parts.guest.memory_inode.is_none() {
            return Err(VmmError::NoMemoryFile { pid });
        }
        if !self.is_paused().await? {
            return Err(VmmError::NotPaused { pid });
        }
        let shape = Shape::of_guest(self.parts.guest);
        let head = self.parts.heads.of(shape).await?;
        let devices = self.fetch_devices().await?;
        state::write(to, &self.parts.version, shape, &head, &devices).map_err(|source| VmmError::Save {
            pid,
            path: to.to_owned(),
            source,
        })
    }

    fn room_for_dirty(&self) -> Result<Vec<u8>, VmmError> {
        self.of_memory(dirty::room)
    }

    fn copy_dirty(&self, room: Vec<u8>) -> Result<DirtyMemory, VmmError> {
        self.of_memory(|pid, origin, bytes| dirty::copy(pid, origin, bytes, room))
    }

    fn each_dirty(&self, each: &mut (dyn FnMut(u64, &[u8]) -> bool + Send)) -> Result<Vec<(u64, u64)>, VmmError> {
        self.of_memory(|pid, origin, bytes| dirty::each(pid, origin, bytes, each))
    }

    async fn grow_disk(&self, bytes: u64) -> Result<(), VmmError> {
        let nodes = self.command("query-named-block-nodes", json!({ "flat": true })).await?;
        let named = |node: &&Value| node.get("node-name").and_then(Value::as_str) == Some(DISK);
        let node = nodes.as_array().and_then(|nodes| nodes.iter().find(named));
        let size = node.and_then(|node| node.get("image")?.get("virtual-size")?.as_u64());
        match size {
            Some(current) if bytes < current => Err(VmmError::SmallerDisk { pid: self.pid(), current, wanted: bytes }),
            _ => {
                let (pid, operation) = (self.pid(), "let larger files be written by");
                let allowed = self.parts.dir.allow_files_of(pid, bytes);
                allowed.map_err(|source| VmmError::Process { operation, pid, source })?;
                self.command("block_resize", json!({ "node-name": DISK, "size": bytes })).await.map(drop)
            }
        }
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        MemoryUse::of(self.parts.process.pid(), self.parts.guest.memory_mib)
    }
}
