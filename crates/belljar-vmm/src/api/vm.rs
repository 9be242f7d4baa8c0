//! One running VM of such a program.

use super::Api;
use crate::VmmError;
use crate::child::{Process, known};
use crate::dirty::{self, Origin};
use crate::driver::{DirtyMemory, Vm, VmExit};
use crate::fifo_console::FifoConsole;
use crate::hybrid::Hybrid;
use crate::log::Log;
use crate::memory::MemoryUse;
use crate::rest::{Rest, RestError};
use crate::run_dir::{DISK, Guest, RunDir};
use crate::saved::{self, Note};
use crate::shape::Shape;
use crate::spec::DiskLock;
use async_trait::async_trait;
use std::fs::OpenOptions;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// What a VM consists of on the host.
pub(super) struct Parts {
    pub process: Process,
    /// Of the program that runs, which may be another one than would be started now.
    pub version: String,
    pub guest: Guest,
    pub rest: Rest,
    pub console: FifoConsole,
    pub link: Hybrid,
    pub log: Log,
    pub dir: Arc<RunDir>,
    pub lock: DiskLock,
}

/// A VM and the task that finds out why it ends.
pub(super) struct ApiVm<A> {
    parts: Arc<Parts>,
    api: PhantomData<A>,
    /// One at a time: the files that are written have one name each.
    saving: Mutex<()>,
    exit: watch::Receiver<Option<VmExit>>,
    observer: JoinHandle<()>,
}

impl<A> Drop for ApiVm<A> {
    fn drop(&mut self) {
        self.observer.abort();
        // The observer may have them for a moment longer, and the next one is there already.
        self.parts.console.close();
        self.parts.lock.release();
    }
}

impl<A: Api> ApiVm<A> {
    pub(super) fn new(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        let (tell, exit) = watch::channel(None);
        let watched = Arc::clone(&parts);
        let observer = tokio::spawn(async move {
            let ended = watched.process.ended().await;
            watched.lock.release();
            let reason = match watched.dir.inmate() {
                Some(inmate) if inmate.was_out_of_memory(ended) => VmExit::OutOfMemory,
                _ => A::reason(ended, &watched.console.read(), &watched.log.message()),
            };
            tell.send_replace(Some(reason));
        });
        Self { parts, api: PhantomData, saving: Mutex::default(), exit, observer }
    }

    fn failed(&self, source: RestError) -> VmmError {
        VmmError::Monitor { pid: self.pid(), source: source.into() }
    }

    fn of_memory<T>(&self, look: impl FnOnce(u32, Origin, u64) -> std::io::Result<T>) -> Result<T, VmmError> {
        let (pid, guest) = (self.pid(), self.parts.guest);
        let origin = match (guest.memory_at, guest.memory_inode) {
            (Some(places), _) => Origin::At(places),
            (None, Some(inode)) => Origin::File(inode),
            (None, None) => Origin::Anonymous,
        };
        let operation = "read the memory of";
        look(pid, origin, guest.memory_mib << 20).map_err(|source| VmmError::Process { operation, pid, source })
    }
}

#[async_trait]
impl<A: Api> Vm for ApiVm<A> {
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
        self.parts.lock.release();
        self.parts.dir.clear()
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        Ok(self.parts.console.read())
    }

    async fn set_network(&self, _connected: bool) -> Result<(), VmmError> {
        Err(VmmError::NoNetworkControl { driver: A::KIND })
    }

    async fn pause(&self) -> Result<(), VmmError> {
        A::set_running(&self.parts.rest, false).await.map_err(|error| self.failed(error))
    }

    async fn resume(&self) -> Result<(), VmmError> {
        A::set_running(&self.parts.rest, true).await.map_err(|error| self.failed(error))
    }

    async fn is_paused(&self) -> Result<bool, VmmError> {
        A::is_paused(&self.parts.rest).await.map_err(|error| self.failed(error))
    }

    async fn save_devices(&self, to: &Path) -> Result<(), VmmError> {
        let pid = self.pid();
        if !self.is_paused().await? {
            return Err(VmmError::NotPaused { pid });
        }
        let _one_at_a_time = self.saving.lock().await;
        let devices = A::save(pid, &self.parts.rest, &self.parts.dir).await?;
        let parts = &*self.parts;
        let link = if A::capabilities().saving_ends_link { None } else { parts.link.port() };
        let note = Note::new(A::KIND, &parts.version, Shape::of_guest(parts.guest), link);
        saved::write(to, note, &devices).map_err(|source| VmmError::Save { pid, path: to.to_owned(), source })
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
        dir.allow_files_of(pid, bytes).map_err(failed)?;
        A::look_at_disk(&self.parts.rest, bytes).await.map_err(|error| self.failed(error))
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        MemoryUse::of(self.pid(), self.parts.guest.memory_mib)
    }
}
