//! What is there at one moment: the directory and the machines, for a node that is started on it as after a crash.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    driver::World,
    machine::{Machine, State},
};
use crate::storage::clone_file;

/// A world that stopped.
pub(super) struct Aside {
    pub(super) dir: Arc<tempfile::TempDir>,
    pub(super) world: Arc<World>,
}

impl Aside {
    /// Takes it all aside while it goes on: once more where something was moved or made meanwhile.
    pub(super) fn take(dir: &Path, world: &World) -> Self {
        for _ in 0..50 {
            let aside = Self::try_take(dir, world);
            let found = tokens(aside.dir.path());
            let alive = aside.world.alive();
            let once = |token: &u64| found.iter().filter(|found| *found == token).count() == 1;
            if alive.iter().all(|machine| once(&machine.token)) {
                return aside;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Self::try_take(dir, world)
    }

    fn try_take(dir: &Path, world: &World) -> Self {
        let aside = Arc::new(super::directory());
        let mut files = HashMap::new();
        copy(dir, aside.path(), &mut files);
        let other = World::new();
        other.entropy.lock().expect("entropy").extend(world.entropy.lock().expect("entropy").iter().cloned());
        for machine in world.alive() {
            take_machine(&machine, &other, aside.path(), &files);
        }
        Self { dir: aside, world: other }
    }
}

/// The machines that can be found in a directory.
fn tokens(dir: &Path) -> Vec<u64> {
    let mut tokens = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tokens.extend(tokens_in(&path));
        }
    }
    tokens
}

fn tokens_in(dir: &Path) -> Vec<u64> {
    let own = fs::read_to_string(dir.join(super::driver::TOKEN)).ok().and_then(|token| token.parse().ok());
    own.into_iter().chain(tokens(dir)).collect()
}

/// Files by their number: a machine has its files open, whatever they are called by now, or are not called any more.
type Files = HashMap<u64, PathBuf>;

/// What goes away meanwhile was not there.
fn copy(from: &Path, to: &Path, files: &mut Files) {
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries {
        let Ok(entry) = entry else { continue };
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            fs::create_dir(&target).expect("a directory");
            copy(&path, &target, files);
        } else if let Some(first) = files.get(&meta.ino()) {
            fs::hard_link(first, &target).expect("a link");
        } else if clone_file(&path, &target).is_ok() {
            files.insert(meta.ino(), target);
        }
    }
}

fn take_machine(machine: &Machine, world: &Arc<World>, dir: &Path, files: &Files) {
    let state = machine.state();
    let find = |file: &File| -> io::Result<PathBuf> {
        let number = file.metadata()?.ino();
        match files.get(&number) {
            Some(path) => Ok(path.clone()),
            None => {
                let path = dir.join(format!("nameless-{number}-{}", machine.token));
                clone_file(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), &path)?;
                Ok(path)
            }
        }
    };
    let open = |path: PathBuf, write| fs::OpenOptions::new().read(true).write(write).open(path).expect("a file");
    let (base, disk) = (find(&state.base).expect("memory"), find(&state.disk).expect("a disk"));
    let copied = State {
        base: open(base, false),
        pages: state.pages.clone(),
        disk: open(disk, true),
        disk_bytes: state.disk_bytes,
        guest: state.guest.clone(),
        network: state.network,
        restored: state.restored,
        configured: state.configured.clone(),
    };
    let other = world.add(machine.token, machine.memory_mib, copied, !machine.is_paused());
    if let Some(exit) = machine.exit.borrow().clone() {
        other.end(exit);
    }
}
