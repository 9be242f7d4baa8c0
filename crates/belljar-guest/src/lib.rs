//! The guest agent: PID 1 of a VM, or a service of its systemd, and the only thing in it that the node talks to.
//!
//! ```text
//! node ══ link (virtio-serial, vsock, Unix socket) ══► serve ─┬─ port 0     system: configure, freeze, settle, logs
//!                                                            ├─ port 9501  agent: processes, files, terminals, …
//!                                                            └─ others     connect: 127.0.0.1 of the guest
//! ```
//!
//! It comes in two modes (`Config`): *init*, from the kernel to a running machine, and *hosted*, a plain process for
//! tests. Both serve the same APIs; what differs is in `launch::Place`, and stays out of the handlers. Where the image has systemd,
//! *init* ends with that as process 1, and goes on as a *service* of it.
//!
//! It knows nothing of tenants, TLS or network policy: whoever reaches the link may do everything here, and reaching it
//! is the node's to guard. It protects nothing from the sandbox's own root, and it trusts the node.
//!
//! Modules, from the outside in: `init`, `systemd` and `hosted` make the place, `port`, `vsock` and `serve` the
//! connection; `system`, `process_api`, `pty_api`, `exec`, `files`, `archive` and `reverse` answer;
//! `process`, `managed` and `pty` hold what runs; `launch`, `spawn`, `reaper` and `cgroup` start and end it;
//! `sftp` is a program of its own in the same file;
//! `setup` with `identity` and `sockets` makes the machine a sandbox, `freeze` and `settle` ready it for a snapshot.

mod agent;
mod archive;
mod cgroup;
mod connect;
mod error;
mod exec;
mod files;
mod freeze;
mod grow;
mod health;
mod hosted;
mod identity;
mod init;
mod ioctl;
mod launch;
mod limits;
mod logs;
mod managed;
mod output;
mod paths;
mod pipes;
mod port;
mod process;
mod process_api;
mod pty;
mod pty_api;
mod random;
mod reaper;
mod reverse;
mod serve;
mod settle;
mod setup;
mod sftp;
mod sockets;
mod spawn;
mod sse;
mod sync;
mod system;
mod systemd;
mod trust;
mod uevent;
mod upload;
mod user;
mod vsock;

use std::{convert::Infallible, path::PathBuf};

use anyhow::Context;
use nix::sys::reboot::{RebootMode, reboot};
use tracing::Level;

pub use self::sftp::OPTION as SFTP_OPTION;

/// How to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Config {
    /// As PID 1 of a VM; everything else stands on the kernel command line: `belljar.root=DEVICE`
    /// (`/dev/vda`), `belljar.link=virtio|vsock:PORT` (`virtio`).
    Init,
    /// As a service of the VM's systemd, with the same command line.
    Service,
    /// As a plain process on a host.
    Hosted {
        /// Unix socket on which links are accepted, one at a time; a new one takes over.
        listen: PathBuf,
        /// Directory that processes start in and that is their HOME. It must exist.
        root: PathBuf,
    },
    /// As the SFTP server of one client, on stdin and stdout; the agent starts itself so, as the user it is for.
    Sftp,
}

/// Runs the agent. In init mode it does not return: when the machine cannot go on it reboots, which ends the VM.
///
/// # Errors
/// Hosted mode: the directory or the socket cannot be used.
pub fn run(config: Config) -> anyhow::Result<()> {
    match config {
        Config::Init => {
            let Err(error) = run_init();
            tracing::error!("cannot go on: {error:#}");
            // Nothing that the guest wrote is lost with it.
            nix::unistd::sync();
            reboot(RebootMode::RB_AUTOBOOT).context("reboot")?;
            Ok(())
        }
        Config::Service => {
            log_to_stderr();
            let machine = init::join()?;
            runtime()?.block_on(machine.run())
        }
        Config::Hosted { listen, root } => {
            log_to_stderr();
            runtime()?.block_on(hosted::run(&listen, &root))
        }
        Config::Sftp => sftp::serve(&mut std::io::stdin().lock(), &mut std::io::stdout().lock()).context("sftp"),
    }
}

fn run_init() -> anyhow::Result<Infallible> {
    log_to_stderr();
    let machine = init::set_up()?;
    runtime()?.block_on(machine.run())?;
    anyhow::bail!("the agent has ended")
}

/// One thread: a guest has one processor most of the time, and everything that takes long is a thread of its own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(limits::BLOCKING_THREADS_MAX)
        .thread_stack_size(limits::THREAD_STACK)
        .build()
        .context("tokio")
}

fn log_to_stderr() {
    tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
}
