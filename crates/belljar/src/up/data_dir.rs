//! The data directory of `belljar up`: made, locked, and of a format that this version understands.
//!
//! ```text
//! data/  lock                  held by the running `up`; never removed, so that there is one lock and not two
//!        format                `belljar-data <version>`
//!        belljar.pid           who runs
//!        api-key               the first API key, for the CLI of this machine
//!        ssh-host-ed25519-key  what `ssh` knows this server by
//!        acme/                 account and certificates of the ACME server
//!        server.db             the server's store
//!        secrets.key           what its secrets are sealed with
//!        log/belljar.log       what `up --detach` says
//!        vmm/                  what `belljar vmm install` installed, also before the first `up`
//!        ...                   the node's own, see `belljar_node::storage`
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::instance::Instance;
use crate::{releases, settings::API_KEY_FILE};

/// Format of the directory that this version writes. A newer one is refused, an older one would be brought up to date.
const FORMAT: u32 = 1;
/// Before the number in the format file.
const FORMAT_WORD: &str = "belljar-data";
/// Only for its owner: there are keys, and what guests wrote.
const DIR_MODE: u32 = 0o700;
/// Only for its owner.
const SECRET_MODE: u32 = 0o600;
/// How often, and after how long, the lock of a process that has ended is looked at again.
const FREED_LOOKS: u32 = 200;
/// See [`FREED_LOOKS`].
const FREED_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
/// What may be in a directory that has no format yet.
const BEFORE_FORMAT: [&str; 3] = ["lock", "lost+found", releases::DIR];

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Somebody else uses it.
    #[error("{path} is in use by another `belljar up`{}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who.
        pid: Option<i32>,
    },
    /// A newer version wrote it.
    #[error("{path} has format {found}, which is newer than what this version reads ({FORMAT})")]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is something else.
    #[error("{path} is not empty, and not a data directory of Belljar ({why})")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What speaks against it.
        why: String,
    },
    /// A file failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { operation, path, source }
}

/// A locked data directory. The lock goes with it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Says whether [`DataDir::open`] would refuse, and makes nothing. What is not there is fine.
    pub fn check(path: &Path) -> Result<(), DataDirError> {
        if path.join("lock").exists() {
            drop(lock(path)?);
        }
        read_format(path).map(|_| ())
    }

    /// Makes the directory where it is not there, and locks it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(DIR_MODE).create(path).map_err(failed("make", path))?;
        let existing = read_format(path)?;
        let lock = lock(path)?;
        let dir = Self { path: path.to_owned(), _lock: lock };
        if existing.is_none() {
            dir.write("format", 0o644, format!("{FORMAT_WORD} {FORMAT}\n").as_bytes())?;
        }
        Ok(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the first API key for the CLI of this machine.
    pub fn write_key(&self, key: &str) -> Result<(), DataDirError> {
        self.write(API_KEY_FILE, SECRET_MODE, format!("{key}\n").as_bytes())
    }

    /// The first API key, when it is still there.
    pub fn key(&self) -> Option<String> {
        fs::read_to_string(self.path.join(API_KEY_FILE)).ok().map(|text| text.trim().to_owned())
    }

    /// Writes a small file whole or not at all.
    pub(super) fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<(), DataDirError> {
        let (target, new) = (self.path.join(name), self.path.join(format!(".{name}.new")));
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&new)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &target))
            .map_err(failed("write", &target))
    }
}

fn lock(path: &Path) -> Result<Flock<File>, DataDirError> {
    let file = path.join("lock");
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(SECRET_MODE).open(&file);
    let mut opened = opened.map_err(failed("open", &file))?;
    let mut left = FREED_LOOKS;
    loop {
        match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) => {
                let owner = Instance::read(path);
                if left == 0 || owner.is_none_or(Instance::runs) {
                    return Err(DataDirError::Locked { path: path.to_owned(), pid: owner.map(|owner| owner.pid) });
                }
                // It was killed while it started another program, which has its files until that runs: milliseconds. Nothing
                // tells when, but a lock that would wait for ever.
                (opened, left) = (again, left - 1);
                std::thread::sleep(FREED_PAUSE);
            }
            Err((_, errno)) => return Err(failed("lock", &file)(errno.into())),
        }
    }
}

/// The format; `None` where there is nothing yet.
fn read_format(path: &Path) -> Result<Option<u32>, DataDirError> {
    let foreign = |why: String| DataDirError::Foreign { path: path.to_owned(), why };
    let file = path.join("format");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let entries = match fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(failed("read", path)(source)),
            };
            for entry in entries {
                let name = entry.map_err(failed("read", path))?.file_name();
                // `.format.new` is left by a start that was cut short.
                if !BEFORE_FORMAT.iter().any(|known| name == *known) && name != ".format.new" {
                    return Err(foreign(format!("it has {}, and no file `format`", name.display())));
                }
            }
            return Ok(None);
        }
        Err(source) => return Err(failed("read", &file)(source)),
    };
    let number = text.trim().strip_prefix(FORMAT_WORD).and_then(|rest| rest.trim().parse().ok());
    match number {
        Some(found) if found > FORMAT => Err(DataDirError::Newer { path: path.to_owned(), found }),
        Some(found) => Ok(Some(found)),
        None => Err(foreign("its file `format` says something else".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_is_made_once_and_locked() {
        let world = tempfile::tempdir().expect("directory");
        let path = world.path().join("a/b");
        DataDir::check(&path).expect("nothing there");
        assert!(!path.exists(), "a check makes nothing");
        let dir = DataDir::open(&path).expect("open");
        assert!(matches!(DataDir::check(&path), Err(DataDirError::Locked { pid: None, .. })));
        let instance = Instance::claim(&dir).expect("claim");
        let error = DataDir::open(&path).expect_err("locked").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(instance);
        dir.write_key("belljar_x").expect("key");
        let mode = fs::metadata(path.join(API_KEY_FILE)).expect("key").permissions().mode();
        assert_eq!((mode & 0o777, dir.key().as_deref()), (0o600, Some("belljar_x")));
        drop(dir);
        DataDir::open(&path).expect("again");
    }

    #[track_caller]
    fn check(name: &str, content: &str, expected: Option<&str>) {
        let world = tempfile::tempdir().expect("directory");
        fs::write(world.path().join(name), content).expect("file");
        let before = fs::read_dir(world.path()).expect("list").count();
        match (DataDir::open(world.path()), expected) {
            (Ok(_), None) => {}
            (Err(error), Some(part)) => {
                assert!(error.to_string().contains(part), "{error}");
                assert_eq!(fs::read_dir(world.path()).expect("list").count(), before, "nothing is left behind");
            }
            (got, _) => panic!("{name} {content}: {got:?}"),
        }
    }

    #[test]
    fn other_formats_are_refused() {
        check("format", "belljar-data 1\n", None);
        check("format", "belljar-data 999\n", Some("newer"));
        check("format", "something\n", Some("says something else"));
        check("letters", "", Some("it has letters"));
        check("lock", "", None);
        check("vmm", "installed before", None);
    }
}
