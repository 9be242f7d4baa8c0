//! One running Firecracker.

use super::{PROGRAM, requests};
use crate::VmmError;
use crate::child::{Ended, Process, known};
use crate::dirty::{self, Origin};
use crate::driver::{DirtyMemory, DriverKind, Vm, VmExit};
use crate::fifo_console::FifoConsole;
use crate::hybrid::Hybrid;
use crate::limits::DEVICES_BYTES;
use crate::log::Log;
use crate::memory::MemoryUse;
use crate::panic_words::panic_message;
use crate::rest::{Rest, RestError};
use crate::run_dir::{DEVICES, DISK, Guest, RunDir};
use crate::saved;
use crate::shape::Shape;
use async_trait::async_trait;
use serde_json::Value;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// What it logs when a processor of the guest has a triple fault.
const TRIPLE_FAULT: &str = "vcpu run: Shutdown";

/// What a VM consists of on the host.
pub(super) struct Parts {
    pub process: Process,
    /// Of the Firecracker that runs, which may be another one than would be started now.
    pub version: String,
    pub guest: Guest,
    pub rest: Rest,
    pub console: FifoConsole,
    pub link: Hybrid,
    pub log: Log,
    pub dir: Arc<RunDir>,
}

/// A VM and the task that finds out why it ends.
pub(super) struct FirecrackerVm {
    parts: Arc<Parts>,
    /// One at a time: the file that Firecracker writes has one name.
    saving: Mutex<()>,
    exit: watch::Receiver<Option<VmExit>>,
    observer: JoinHandle<()>,
}

impl Drop for FirecrackerVm {
    fn drop(&mut self) {
        self.observer.abort();
        // The observer may have it for a moment longer, and the next one is there already.
        self.parts.console.close();
    }
}

impl FirecrackerVm {
    pub(super) fn new(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        let (tell, exit) = watch::channel(None);
        let watched = Arc::clone(&parts);
        let observer = tokio::spawn(async move {
            let ended = watched.process.ended().await;
            tell.send_replace(Some(reason(ended, &watched.console.read(), &watched.log.message())));
        });
        Self { parts, saving: Mutex::default(), exit, observer }
    }

    fn failed(&self, source: RestError) -> VmmError {
        VmmError::Monitor { pid: self.pid(), source: source.into() }
    }

    async fn set_state(&self, running: bool) -> Result<(), VmmError> {
        let done = self.parts.rest.patch("/vm", &requests::state(running)).await;
        done.map(drop).map_err(|error| self.failed(error))
    }

    fn of_memory<T>(&self, look: impl FnOnce(u32, Origin, u64) -> std::io::Result<T>) -> Result<T, VmmError> {
        let (pid, guest) = (self.pid(), self.parts.guest);
        let origin = guest.memory_inode.map_or(Origin::Anonymous, Origin::File);
        let operation = "read the memory of";
        look(pid, origin, guest.memory_mib << 20).map_err(|source| VmmError::Process { operation, pid, source })
    }

    /// Has Firecracker write its devices, and takes that away from it.
    async fn fetch_devices(&self) -> Result<Vec<u8>, VmmError> {
        let _one_at_a_time = self.saving.lock().await;
        let dir = &self.parts.dir;
        dir.remove(DEVICES)?;
        let (path, body) = requests::save();
        let devices = match self.parts.rest.put(&path, &body).await {
            // It has written the devices, and cannot write memory.
            Err(RestError::Refused { message, .. }) if message.contains("memory backing file") => {
                let failed = |source| VmmError::RunDir { operation: "read", path: dir.file(DEVICES), source };
                dir.tail(DEVICES, DEVICES_BYTES).map_err(failed)
            }
            Err(error) => Err(self.failed(error)),
            Ok(_) => Err(self.failed(RestError::Refused {
                call: format!("PUT {path}"),
                message: format!("it wrote memory to {:?}", requests::NO_MEMORY),
            })),
        };
        dir.remove(DEVICES)?;
        devices
    }
}

/// It ends with its guest: with 0 after a reset, with an error after a triple fault, which is a reset, too. Of one that is not
/// our child nobody is told with what it ended.
fn reason(ended: Ended, console: &[u8], log: &str) -> VmExit {
    let fault = log.contains(TRIPLE_FAULT);
    let is_guest = match ended {
        Ended { signal: Some(_), .. } => false,
        Ended { code: Some(code), .. } => code == 0 || fault,
        Ended { code: None, .. } => fault || panic_message(console).is_some(),
    };
    match panic_message(console) {
        _ if !is_guest => ended.into(),
        Some(message) => VmExit::GuestPanic { message },
        None => VmExit::GuestReset,
    }
}

#[async_trait]
impl Vm for FirecrackerVm {
    fn pid(&self) -> u32 {
        self.parts.process.pid()
    }

    async fn connect_link(&self) -> Result<UnixStream, VmmError> {
        self.parts.link.connect().await
    }

    async fn wait(&self) -> VmExit {
        known(&self.exit).await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.parts.process.kill().await?;
        self.parts.dir.clear()
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        Ok(self.parts.console.read())
    }

    async fn set_network(&self, _connected: bool) -> Result<(), VmmError> {
        Err(VmmError::NoNetworkControl { driver: DriverKind::Firecracker })
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.set_state(false).await
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.set_state(true).await
    }

    async fn is_paused(&self) -> Result<bool, VmmError> {
        let info = self.parts.rest.get("/").await.map_err(|error| self.failed(error))?;
        Ok(info.get("state").and_then(Value::as_str) == Some("Paused"))
    }

    async fn save_devices(&self, to: &Path) -> Result<(), VmmError> {
        let pid = self.pid();
        if !self.is_paused().await? {
            return Err(VmmError::NotPaused { pid });
        }
        let devices = self.fetch_devices().await?;
        let written = saved::write(to, PROGRAM, &self.parts.version, Shape::of_guest(self.parts.guest), &devices);
        written.map_err(|source| VmmError::Save { pid, path: to.to_owned(), source })
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
        let (pid, dir) = (self.pid(), &self.parts.dir);
        let file = dir.open_file(DISK, OpenOptions::new().write(true))?;
        let failed = |source| VmmError::RunDir { operation: "grow", path: dir.file(DISK), source };
        let current = file.metadata().map_err(failed)?.len();
        if bytes < current {
            return Err(VmmError::SmallerDisk { pid, current, wanted: bytes });
        }
        file.set_len(bytes).map_err(failed)?;
        let (path, body) = requests::look_at_disk();
        self.parts.rest.patch(&path, &body).await.map(drop).map_err(|error| self.failed(error))
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        MemoryUse::of(self.pid(), self.parts.guest.memory_mib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_ended() {
        const PANIC: &[u8] = b"Kernel panic - not syncing: no init\n";
        let check = |code: Option<i32>, signal: Option<i32>, console: &[u8], log: &str, expected: &str| {
            assert_eq!(reason(Ended { code, signal }, console, log).to_string(), expected);
        };
        let fault = "Unexpected exit reason on vcpu run: Shutdown";
        check(Some(0), None, b"bye", "", "the guest rebooted");
        check(Some(0), None, PANIC, "", "the guest kernel panicked: no init");
        check(Some(1), None, b"", fault, "the guest rebooted");
        check(Some(1), None, PANIC, fault, "the guest kernel panicked: no init");
        check(Some(1), None, PANIC, "something else", "the VM process ended with exit code 1");
        check(None, Some(9), PANIC, fault, "the VM process was ended by signal 9");
        // Adopted.
        check(None, None, b"bye", "", "the VM process ended");
        check(None, None, PANIC, "", "the guest kernel panicked: no init");
    }
}
