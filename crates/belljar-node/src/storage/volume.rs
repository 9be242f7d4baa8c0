//! One XFS file system in a sparse file, loop-mounted: reflinks on a host whose file system has none.
//!
//! ```text
//! (absent) -> made (mkfs.xfs) -> mounted -> closed (unmounted; the file stays)
//! ```
//! Needs root, `mkfs.xfs` and a loop device. It stays mounted when the node dies, because VMs go on using it; the next
//! node finds it mounted.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{StorageError, StorageOptions, clone::free_bytes};
use crate::program::{self, ProgramError};

/// Share of the free space that the volume may grow to: the rest stays for the host.
const SHARE_PERCENT: u64 = 80;
/// XFS refuses less than 300 MB; a volume that holds no image is of no use.
const SIZE_MIN: u64 = 2 << 30;

/// A mounted volume.
#[derive(Debug)]
pub(super) struct Volume {
    mount_point: PathBuf,
}

impl Volume {
    /// Mounts the volume of `data`, making it first where there is none. One that exists keeps its size.
    pub(super) fn open(data: &Path, options: &StorageOptions) -> Result<Self, StorageError> {
        let file = options.volume_path.clone().unwrap_or_else(|| data.join("volume.xfs"));
        let file = std::path::absolute(&file).map_err(StorageError::io("resolve", &file))?;
        let mount_point = data.join("volume");
        fs::create_dir_all(&mount_point).map_err(StorageError::io("create", &mount_point))?;
        if is_mount_point(&mount_point)? {
            return Ok(Self { mount_point });
        }
        if !file.exists() {
            make(&file, options.volume_size)?;
        }
        run("mount", &["-t", "xfs", "-o", "loop,noatime,discard"], &[&file, &mount_point])?;
        // Without it every page of a disk would be cached twice. Not every host file system can.
        if let Err(error) = direct_io(&file) {
            tracing::warn!(%error, "the volume's loop device uses no direct I/O");
        }
        Ok(Self { mount_point })
    }

    pub(super) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    pub(super) fn close(&self) -> Result<(), StorageError> {
        run("umount", &[], &[&self.mount_point]).map(drop)
    }
}

fn make(file: &Path, size: Option<u64>) -> Result<(), StorageError> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    let free = free_bytes(dir).map_err(StorageError::io("ask the free space of", dir))?;
    let size = size.unwrap_or(free / 100 * SHARE_PERCENT).max(SIZE_MIN);
    let new = file.with_added_extension("new");
    // It may lie outside of the data directory, which nobody else can enter: all disks and memory are in it.
    let mut private = OpenOptions::new();
    private.write(true).create(true).truncate(true).mode(0o600);
    let made = private
        .open(&new)
        .and_then(|file| file.set_len(size))
        .map_err(StorageError::io("create", &new))
        .and_then(|()| run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"], &[&new]));
    let result = made.and_then(|_| fs::rename(&new, file).map_err(StorageError::io("rename the new volume to", file)));
    if result.is_err() {
        let _ = fs::remove_file(&new);
    }
    result
}

fn direct_io(file: &Path) -> Result<(), StorageError> {
    let listed = run("losetup", &["--noheadings", "--output", "NAME", "--associated"], &[file])?;
    let Some(device) = listed.lines().next().map(str::trim).filter(|name| name.starts_with("/dev/loop")) else {
        let output = format!("no loop device for {}", file.display());
        return Err(ProgramError::Failed { program: "losetup", output }.into());
    };
    run("losetup", &["--direct-io=on"], &[Path::new(device)]).map(drop)
}

fn is_mount_point(path: &Path) -> Result<bool, StorageError> {
    let path = fs::canonicalize(path).map_err(StorageError::io("resolve", path))?;
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(StorageError::io("read", table))?;
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| Path::new(point) == path))
}

fn run(program: &'static str, options: &[&str], paths: &[&Path]) -> Result<String, StorageError> {
    let options = options.iter().map(OsStr::new);
    let written = program::run(program, options.chain(paths.iter().map(|path| path.as_os_str())), "")?;
    Ok(String::from_utf8_lossy(&written).into_owned())
}
