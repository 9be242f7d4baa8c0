//! Ends a process's descendants, which may be forking while we look.
//!
//! Everything found is stopped first, until a look finds nothing new: a stopped process forks no more. Only then is
//! everything killed.

use crate::child::start_time;
use crate::error::VmmError;
use crate::limits::KILL_ROUNDS;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

/// A row of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    pid: u32,
    parent: u32,
    session: u32,
}

/// Stopped processes. Dropping them kills them.
#[derive(Default)]
pub(super) struct Stopped(HashMap<u32, OwnedFd>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for fd in self.0.values() {
            // One that has ended meanwhile is what we want.
            let _ = pidfd_send_signal(fd, Signal::KILL);
        }
    }
}

/// Stops `root`, which is a session leader, all its descendants and all of its session.
pub(super) fn stop(root: u32) -> Result<Stopped, VmmError> {
    let mut stopped = Stopped::default();
    for _ in 0..KILL_ROUNDS {
        let table = table().map_err(|source| VmmError::Process { operation: "find those below", pid: root, source })?;
        let mut found = false;
        for pid in family(root, &table) {
            if !stopped.0.contains_key(&pid)
                && let Some(fd) = stop_one(pid)
            {
                found = true;
                stopped.0.insert(pid, fd);
            }
        }
        if !found {
            return Ok(stopped);
        }
    }
    Err(VmmError::Unstoppable { pid: root })
}

/// `None` when it is gone, or its number belongs to another process by now.
fn stop_one(pid: u32) -> Option<OwnedFd> {
    let started = start_time(pid)?;
    let fd = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::empty()).ok()?;
    if start_time(pid) != Some(started) {
        return None;
    }
    pidfd_send_signal(&fd, Signal::STOP).ok()?;
    Some(fd)
}

/// `root`, its descendants, its session.
fn family(root: u32, table: &[Row]) -> HashSet<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for row in table {
        children.entry(row.parent).or_default().push(row.pid);
    }
    let mut open: Vec<u32> = table.iter().filter(|row| row.session == root).map(|row| row.pid).chain([root]).collect();
    let mut family = HashSet::new();
    while let Some(pid) = open.pop() {
        if family.insert(pid) {
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    family
}

fn table() -> std::io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Ended since the directory was read.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        rows.extend(parse(pid, &stat));
    }
    Ok(rows)
}

/// Fields 4 and 6 of `/proc/PID/stat`.
fn parse(pid: u32, stat: &str) -> Option<Row> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let parent = fields.nth(1)?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Row { pid, parent, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_is_descendants_and_session() {
        let row = |pid, parent, session| Row { pid, parent, session };
        let table = [
            row(1, 0, 1),
            row(10, 1, 10),
            row(11, 10, 10),
            row(12, 11, 12),
            row(13, 1, 10),
            row(14, 13, 14),
            row(20, 1, 20),
        ];
        let check = |root, expected: &[u32]| assert_eq!(family(root, &table), expected.iter().copied().collect());
        check(10, &[10, 11, 12, 13, 14]);
        check(20, &[20]);
        check(99, &[99]);
        assert_eq!(parse(7, "7 (a) b) S 3 4 5 6"), Some(row(7, 3, 5)));
        assert_eq!(parse(7, "7"), None);
    }
}
