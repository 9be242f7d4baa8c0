//! Files that a VM process is given when it is in its jail already: those of a guest that it was not started for.
//!
//! They are opened here, and put into its room by a thread of ours that enters its mount namespace for that. Called by the
//! drivers, before the process has a guest: until then it does what its program says.

use super::plan::Entry;
use super::root::{NOTHING, make_readable};
use super::{FIRST_USER, ROOM};
use crate::child::Process;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid, fchown, openat};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A file, and the same as a mount that is nowhere yet.
struct Held<'a> {
    entry: &'a Entry,
    mount: OwnedFd,
}

/// Gives it these files, by their names in its room. Blocking, a millisecond or two.
pub(crate) fn admit(process: &Process, files: &[Entry]) -> io::Result<()> {
    let user = FIRST_USER + process.pid();
    let held = files.iter().map(|entry| hold(entry, user)).collect::<io::Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("jail".into()).spawn_scoped(scope, || {
            // Its root and its working directory are its own from here on, so that it can leave ours.
            super::launcher::unshare(UnshareFlags::FS)?;
            move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)?;
            held.iter().try_for_each(put)
        });
        thread?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn hold(entry: &Entry, user: u32) -> io::Result<Held<'_>> {
    let named = |error: rustix::io::Errno| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("{}: {error}", entry.from.display()))
    };
    let file = openat(CWD, &entry.from, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(named)?;
    if entry.write {
        let open = openat(CWD, &entry.from, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(named)?;
        fchown(&open, Some(Uid::from_raw(user)), Some(Gid::from_raw(user))).map_err(named)?;
    } else {
        make_readable(&file)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(Held { entry, mount: open_tree(&file, "", flags).map_err(named)? })
}

/// In its namespace. What is there already is not written over. Where this fails, the process is to be ended.
fn put(held: &Held<'_>) -> io::Result<()> {
    let target = Path::new(ROOM).join(&held.entry.name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    drop(File::from(openat(CWD, &target, flags, Mode::empty())?));
    move_mount(&held.mount, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let own = if held.entry.write { MountFlags::empty() } else { MountFlags::RDONLY };
    Ok(mount_remount(&target, MountFlags::BIND | NOTHING | own, "")?)
}
