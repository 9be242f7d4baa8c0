//! One running QEMU.

use super::arguments::{CONSOLE, NETWORK};
use super::qmp::Qmp;
use crate::VmmError;
use crate::child::{Process, known};
use crate::driver::{Vm, VmExit};
use crate::limits::{CONSOLE_BYTES, PANIC_CHARS};
use crate::log::Log;
use crate::memory::MemoryUse;
use crate::run_dir::{self, LINK, RunDir};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// A VM and the task that finds out why it ends.
pub(super) struct QemuVm {
    dir: Arc<RunDir>,
    process: Process,
    console: Arc<Console>,
    memory_mib: u64,
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
    /// Takes over a running QEMU. `stopped` is why its guest has stopped, if it has already.
    pub(super) fn new(
        dir: Arc<RunDir>,
        process: Process,
        qmp: Qmp,
        log: Log,
        memory_mib: u64,
        stopped: Option<VmExit>,
    ) -> Self {
        let console = Arc::new(Console { qmp, dir: Arc::clone(&dir), fetching: Mutex::new(()) });
        let (tell, exit) = watch::channel(None);
        let observer = tokio::spawn(observe(process.clone(), Arc::clone(&console), log, stopped, tell));
        Self { dir, process, console, memory_mib, exit, observer }
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
            ended.into()
        }
    };
    exit.send_replace(Some(reason));
}

/// The guest kernel's last words, if the console shows them. The console is the guest's: it can pretend.
fn panic_message(console: &[u8]) -> Option<String> {
    const MARK: &str = "Kernel panic - not syncing: ";
    let text = String::from_utf8_lossy(console);
    let (_, message) = text.rsplit_once(MARK)?;
    let line = message.lines().next().unwrap_or_default();
    Some(line.chars().filter(|c| !c.is_control()).take(PANIC_CHARS).collect())
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
        self.process.pid()
    }

    async fn connect_link(&self) -> Result<UnixStream, VmmError> {
        self.dir.connect(LINK).await.map_err(|source| VmmError::Link { path: self.dir.file(LINK), source })
    }

    async fn wait(&self) -> VmExit {
        known(&self.exit).await
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.process.kill().await?;
        // Not while somebody writes the console's history there.
        let _no_reader = self.console.fetching.lock().await;
        self.dir.clear()
    }

    async fn console(&self) -> Result<Vec<u8>, VmmError> {
        self.console.read().await
    }

    async fn set_network(&self, connected: bool) -> Result<(), VmmError> {
        let arguments = json!({ "name": NETWORK, "up": connected });
        let done = self.console.qmp.command("set_link", arguments).await;
        done.map(drop).map_err(|source| VmmError::Monitor { pid: self.process.pid(), source })
    }

    fn memory(&self) -> Result<MemoryUse, VmmError> {
        MemoryUse::of(self.process.pid(), self.memory_mib)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_message_is_found_cut_and_cleaned() {
        let check = |console: &[u8], expected: Option<&str>| {
            assert_eq!(panic_message(console).as_deref(), expected, "{}", String::from_utf8_lossy(console));
        };
        check(b"", None);
        check(b"reboot: Restarting system\r\n", None);
        check(
            b"x\r\n[    0.1] Kernel panic - not syncing: Attempted to kill init!\r\nCPU: 0\r\n",
            Some("Attempted to kill init!"),
        );
        check(b"\xff\xfeKernel panic - not syncing: a\x1b[2Jb", Some("a[2Jb"));
        let long = format!("Kernel panic - not syncing: {}", "x".repeat(1000));
        check(long.as_bytes(), Some("x".repeat(PANIC_CHARS).as_str()));
    }
}
