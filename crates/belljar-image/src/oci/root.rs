//! A directory out of which no path leads, whatever links lie in it: where layers are unpacked.
//!
//! Paths are resolved by the kernel (`openat2` with `RESOLVE_IN_ROOT`), which takes `/` and `..` in links for what they
//! are inside. Everything else is done on a directory that is open and a plain name in it. Called by `unpack`.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use crate::limits::{MAX_DEPTH, MAX_PART_BYTES};

/// Mode of directories that no layer mentions and that lie above what one does.
const IMPLIED: u32 = 0o755;

/// Begins the name of a file that removes another one.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Attempts of the kernel to resolve a path while something moves. Nothing does.
const RESOLVE_ATTEMPTS: usize = 8;

/// Where a name leads in the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// Parts of the way to the directory it lies in.
    pub(super) above: Vec<&'a [u8]>,
    /// Its name there; `None` is the root itself.
    pub(super) name: Option<&'a [u8]>,
}

impl<'a> Place<'a> {
    /// Of a name as a layer writes it: `./a/b`, `/a/b` and `a//b/` are all `a/b`.
    pub(super) fn parse(path: &'a [u8]) -> Result<Self, String> {
        let mut above = Vec::new();
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            // A file with the longest name can be removed, too.
            check_name(part.strip_prefix(WHITEOUT).filter(|rest| !rest.is_empty()).unwrap_or(part))?;
            above.push(part);
        }
        if above.len() > MAX_DEPTH {
            return Err(format!("lies deeper than {MAX_DEPTH} directories"));
        }
        let name = above.pop();
        Ok(Self { above, name })
    }
}

/// Whether this is the name of something in a directory.
pub(super) fn check_name(part: &[u8]) -> Result<(), String> {
    match part {
        b".." | b"." | b"" => Err("leads out of the image".to_owned()),
        _ if part.len() > MAX_PART_BYTES => Err(format!("has a part that is longer than {MAX_PART_BYTES} bytes")),
        _ if part.iter().any(|&byte| byte == b'/' || byte == 0) => Err("is no name".to_owned()),
        _ => Ok(()),
    }
}

/// The root.
#[derive(Debug)]
pub(super) struct Root {
    dir: OwnedFd,
    /// Parts of its own path on this machine.
    depth: usize,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = fs::open(path, flags, Mode::empty())?;
        let depth = depth_of(&dir)?;
        Ok(Self { dir, depth })
    }

    /// Opens a directory; links on the way and at the end are followed inside the root.
    pub(super) fn directory(&self, parts: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        match self.resolve(&path, ResolveFlags::NO_SYMLINKS) {
            // Behind links a path can be deeper than it looks.
            Err(Errno::LOOP) => {
                let dir = self.resolve(&path, ResolveFlags::empty())?;
                if depth_of(&dir)? > self.depth + MAX_DEPTH { Err(Errno::NAMETOOLONG) } else { Ok(dir) }
            }
            other => other,
        }
    }

    /// The same, and makes the directories that are missing.
    pub(super) fn make_directory(&self, parts: &[&[u8]]) -> Result<OwnedFd, Errno> {
        match self.directory(parts) {
            Err(Errno::NOENT) => {
                let (last, above) = parts.split_last().ok_or(Errno::NOENT)?;
                let parent = self.make_directory(above)?;
                let kept = fs::fstat(&parent)?;
                match fs::mkdirat(&parent, OsStr::from_bytes(last), Mode::from_raw_mode(IMPLIED)) {
                    Ok(()) => {
                        let dir = self.directory(parts)?;
                        // No layer says when, and the clock would give each import other bytes.
                        fs::futimens(&dir, &times((0, 0)))?;
                        restore_times(&parent, &kept)?;
                        Ok(dir)
                    }
                    // A link that leads nowhere.
                    Err(Errno::EXIST) => Err(Errno::NOENT),
                    Err(error) => Err(error),
                }
            }
            other => other,
        }
    }

    fn resolve(&self, path: &[u8], also: ResolveFlags) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV | also;
        let mut last = Errno::AGAIN;
        for _ in 0..RESOLVE_ATTEMPTS {
            match fs::openat2(&self.dir, OsStr::from_bytes(path), flags, Mode::empty(), how) {
                Err(Errno::AGAIN) => last = Errno::AGAIN,
                other => return other,
            }
        }
        Err(last)
    }
}

/// Both times of a file.
pub(super) fn times((seconds, nanos): (i64, u32)) -> fs::Timestamps {
    let time = fs::Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    fs::Timestamps { last_access: time, last_modification: time }
}

/// Gives a directory back the time that it had before something in it was made or removed.
pub(super) fn restore_times(dir: &OwnedFd, had: &Stat) -> Result<(), Errno> {
    let nanos = u32::try_from(had.st_mtime_nsec).unwrap_or(0);
    fs::futimens(dir, &times((had.st_mtime, nanos)))
}

/// What lies at a name; links are not followed.
pub(super) fn look(dir: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_directory(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

/// A directory by its plain name in another.
pub(super) fn enter(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}

/// The names in a directory.
pub(super) fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes what lies at a name, with all that is in it, as far as `goes` says so of a directory's number and a name in it.
/// Gives whether nothing is left.
pub(super) fn remove(dir: &OwnedFd, name: &[u8], goes: &dyn Fn(u64, &[u8]) -> bool) -> Result<bool, Errno> {
    let Some(found) = look(dir, name)? else { return Ok(true) };
    let this_goes = goes(fs::fstat(dir)?.st_ino, name);
    if !is_directory(&found) {
        if this_goes {
            fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::empty())?;
        }
        return Ok(this_goes);
    }
    let all_gone = remove_content(&enter(dir, name)?, goes)?;
    if this_goes && all_gone {
        fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::REMOVEDIR)?;
    }
    Ok(this_goes && all_gone)
}

/// The same for everything in a directory, which keeps its time.
pub(super) fn remove_content(dir: &OwnedFd, goes: &dyn Fn(u64, &[u8]) -> bool) -> Result<bool, Errno> {
    let kept = fs::fstat(dir)?;
    let mut all_gone = true;
    for name in names(dir)? {
        all_gone &= remove(dir, &name, goes)?;
    }
    restore_times(dir, &kept)?;
    Ok(all_gone)
}

/// Path of a name in an open directory, for the calls that know no other way.
pub(super) fn path_in(dir: &OwnedFd, name: &[u8]) -> PathBuf {
    handle(dir).join(OsStr::from_bytes(name))
}

fn handle(dir: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

fn depth_of(dir: &OwnedFd) -> Result<usize, Errno> {
    let path = fs::readlink(handle(dir), Vec::new())?;
    Ok(path.to_bytes().split(|&byte| byte == b'/').filter(|part| !part.is_empty()).count())
}

#[cfg(test)]
#[path = "root_test.rs"]
mod tests;
