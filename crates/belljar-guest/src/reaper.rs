//! Collects the exit status of every child, its own and adopted.
//!
//! The agent is PID 1 (or a subreaper): orphans of all kinds become its children and must be waited for, so one task
//! waits for *any* child and hands the statuses of those it knows to their owners. Nothing else in the crate waits:
//! that is why `tokio::process` is not used.
//!
//! A lock is held over fork and registration, and over wait and hand-out. So a status cannot be collected before its
//! owner is registered, and a signal cannot hit a pid that was collected and given to someone else. The same lock guards
//! the word that nothing may be started ([`Reaper::hold`]): who holds knows that no start is under way.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    signal::unix::{SignalKind, signal as listen},
    sync::{oneshot, watch},
};

use crate::{spawn::Program, sync::lock};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A started child.
pub(crate) struct Child {
    /// Its process id, which is also its process group and session.
    pub(crate) pid: i32,
    /// Comes once, when it ended.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// The children that someone waits for.
pub(crate) struct Reaper {
    children: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    collected: watch::Sender<()>,
    /// Whether starts are refused. Only changed under the lock of `children`.
    held: watch::Sender<bool>,
}

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("nothing is started now")]
    Held,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl Reaper {
    /// Starts to collect, in a task of its own that lives as long as the runtime.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let mut ended = listen(SignalKind::child())?;
        let reaper = Arc::new(Self {
            children: Mutex::default(),
            collected: watch::Sender::new(()),
            held: watch::Sender::new(false),
        });
        let collector = Arc::clone(&reaper);
        tokio::spawn(async move {
            loop {
                collector.collect();
                if ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a child, which leads its own session.
    pub(crate) fn spawn(&self, program: Program<'_>) -> Result<Child, SpawnError> {
        let mut children = lock(&self.children);
        if self.is_held() {
            return Err(SpawnError::Held);
        }
        let pid = program.spawn()?;
        let (sender, exit) = oneshot::channel();
        children.insert(pid, sender);
        Ok(Child { pid, exit })
    }

    /// Refuses starts from now on; when it returns none is under way.
    pub(crate) fn hold(&self) {
        let _none_starts = lock(&self.children);
        self.held.send_replace(true);
    }

    /// Allows starts again.
    pub(crate) fn release(&self) {
        let _none_starts = lock(&self.children);
        self.held.send_replace(false);
    }

    pub(crate) fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Waits until starts are allowed.
    pub(crate) async fn released(&self) {
        // We hold the sender: there is no error.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }

    /// Signals the process group of a child of ours that was not collected yet; false when it was.
    pub(crate) fn signal_group(&self, pid: i32, number: i32) -> io::Result<bool> {
        let children = lock(&self.children);
        if !children.contains_key(&pid) {
            return Ok(false);
        }
        kill_group(pid, number)?;
        Ok(true)
    }

    /// Changes whenever children were collected, own or adopted.
    pub(crate) fn collections(&self) -> watch::Receiver<()> {
        self.collected.subscribe()
    }

    fn collect(&self) {
        let mut children = lock(&self.children);
        while let Some((pid, exit)) = wait_any() {
            // No owner: an orphan. One whose receiver is gone: nobody wants to know.
            if let Some(owner) = children.remove(&pid) {
                let _ = owner.send(exit);
            }
        }
        self.collected.send_replace(());
    }
}

/// Takes the status of one ended child, whoever it is, without waiting.
#[expect(unsafe_code, reason = "nix's waitpid loses the status of a child that a real-time signal ended")]
fn wait_any() -> Option<(i32, Exit)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid, exclusive pointer for the whole call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid > 0 && libc::WIFEXITED(status) {
            return Some((pid, Exit::Code(libc::WEXITSTATUS(status))));
        }
        if pid > 0 {
            return Some((pid, Exit::Signal(libc::WTERMSIG(status))));
        }
        if pid == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Signals a process group by number; 0 only asks whether it exists.
#[expect(unsafe_code, reason = "nix's killpg has no real-time signals")]
pub(crate) fn kill_group(group: i32, number: i32) -> io::Result<()> {
    // 0 is our own group and 1 would be everyone: neither is ever meant.
    if group <= 1 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: killpg takes two integers and touches no memory of ours.
    match unsafe { libc::killpg(group, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
