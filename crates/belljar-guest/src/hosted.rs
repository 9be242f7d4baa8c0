//! Hosted mode: the agent as a plain process on a host, for the `process` driver. It isolates nothing.
//!
//! It leaves the host as it is: no mounts, no cgroups, no names or addresses. It ends on SIGTERM, after everything
//! that it started, in whatever session, has ended too.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use nix::{
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, kill},
    },
    unistd::{Pid, geteuid},
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{agent::Agent, cgroup::Cgroups, launch::Place, reaper::Reaper, serve::Service};

/// Serves one link at a time on the socket `listen`; a new one takes over. Returns after SIGTERM or SIGINT.
pub(crate) async fn run(listen: &Path, root: &Path) -> anyhow::Result<()> {
    // Those whose parent dies become our children, and so can be found at the end.
    set_child_subreaper(true).context("cannot adopt orphans")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let home = fs::canonicalize(root).with_context(|| format!("--root {}", root.display()))?;
    let place = Place::Hosted { home, may_switch_user: geteuid().is_root() };
    let agent = Agent::new(place, Cgroups::disabled())?;
    let listener = bind(listen).with_context(|| format!("--listen {}", listen.display()))?;
    let socket = SocketFile(listen.to_owned());
    // Whoever started us may wait for this line; somebody who does not read it is fine.
    let _ = io::stdout().write_all(b"ready\n").and_then(|()| io::stdout().flush());
    tokio::select! {
        result = serve(&listener, Service::new(&agent)) => result?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(socket);
    kill_descendants(&agent.table.reaper).await?;
    Ok(())
}

async fn serve(listener: &UnixListener, service: Service) -> io::Result<()> {
    let mut current: Option<AbortOnDropHandle<()>> = None;
    loop {
        let (connection, _) = listener.accept().await?;
        let service = service.clone();
        // The node has come back: what is left of its former connection goes.
        drop(current.take());
        current = Some(AbortOnDropHandle::new(tokio::spawn(async move { service.serve_link(connection).await })));
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Removes the socket when the agent ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!("{}: {error}", self.0.display());
        }
    }
}

/// Kills until nothing is left: what is killed may have started something just before.
async fn kill_descendants(reaper: &Arc<Reaper>) -> io::Result<()> {
    let mut collections = reaper.collections();
    loop {
        collections.mark_unchanged();
        let living = descendants(std::process::id())?;
        if living.is_empty() {
            return Ok(());
        }
        for pid in living {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if collections.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Living processes below `root` in the tree of processes.
fn descendants(root: u32) -> io::Result<Vec<i32>> {
    let mut children: Vec<(i32, i32, bool)> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some((parent, is_living)) = parse_stat(&stat) {
            children.push((pid, parent, is_living));
        }
    }
    let mut found = Vec::new();
    let mut pending = vec![i32::try_from(root).map_err(io::Error::other)?];
    while let Some(parent) = pending.pop() {
        for (pid, _, is_living) in children.iter().filter(|(_, of, _)| *of == parent) {
            pending.push(*pid);
            if *is_living {
                found.push(*pid);
            }
        }
    }
    Ok(found)
}

/// Parent and whether it lives, of a line of `/proc/PID/stat`: the name in it may contain anything.
fn parse_stat(stat: &str) -> Option<(i32, bool)> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    let state = fields.next()?;
    Some((fields.next()?.parse().ok()?, !matches!(state, "Z" | "X")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_name_does_not_confuse() {
        assert_eq!(parse_stat("42 (a b) S 7 42 42 0"), Some((7, true)));
        assert_eq!(parse_stat("42 (x) Z 1 (y) Z 9 42 42 0"), Some((9, false)));
        assert_eq!(parse_stat("42"), None);
    }
}
