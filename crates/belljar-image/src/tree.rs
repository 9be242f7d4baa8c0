//! From what mmdebstrap leaves to the file tree of an image: our files in, traces of the build out, times made the same.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    time::SystemTime,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::{
    error::ImageError,
    recipe::{USER, USER_ID},
};

/// Files and directories of a fresh tree that tell when and where it was built. `*` stands for any end of a name.
const TRACES: [&str; 16] = [
    "etc/.pwd.lock",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/*-old",
    "var/log/*",
    "run/*",
    "tmp/*",
];

/// Completes the tree at `root`, with these files beside those of every image. Gives the time of its newest package file,
/// seconds since 1970: later ones are from this build, and now have that time.
pub(crate) fn finish(
    root: &Path,
    sources: &str,
    files: &[(&str, &str)],
    started: SystemTime,
) -> Result<i64, ImageError> {
    for trace in TRACES {
        remove_trace(root, trace)?;
    }
    add_files(root, sources)?;
    for (path, text) in files {
        put(&root.join(path), text, 0o644)?;
    }
    let started = started
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .ok_or_else(|| ImageError::BadRequest("this machine's clock is before 1970".into()))?;
    let mut newest = 0;
    walk(root, &mut |path| {
        let modified = lstat(path)?.mtime();
        if modified < started {
            newest = newest.max(modified);
        }
        Ok(())
    })?;
    walk(root, &mut |path| {
        let modified = lstat(path)?.mtime();
        set_time(path, if modified < started { modified } else { newest })
    })?;
    Ok(newest)
}

fn add_files(root: &Path, sources: &str) -> Result<(), ImageError> {
    let hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
    let sudo = format!("{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n");
    for (path, text, mode) in [
        ("etc/apt/sources.list.d/debian.sources", sources, 0o644),
        ("etc/default/locale", "LANG=C.UTF-8\n", 0o644),
        // The guest agent writes these four anew in every sandbox.
        ("etc/hostname", "sandbox\n", 0o644),
        ("etc/hosts", hosts, 0o644),
        ("etc/machine-id", "", 0o444),
        ("etc/resolv.conf", "", 0o644),
        (&format!("etc/sudoers.d/{USER}"), &sudo, 0o440),
    ] {
        put(&root.join(path), text, mode)?;
    }
    for list in entries(&root.join("etc/apt/sources.list.d"))? {
        if !list.ends_with("debian.sources") {
            fs::remove_file(&list).map_err(ImageError::io("remove", list))?;
        }
    }
    remove(&root.join("etc/apt/sources.list"))?;
    for (path, owner, mode) in
        [("workspace", USER_ID, 0o755), ("tmp", 0, 0o1777), ("var/tmp", 0, 0o1777), ("var/log/apt", 0, 0o755)]
    {
        let dir = root.join(path);
        fs::create_dir_all(&dir).map_err(ImageError::io("create", &dir))?;
        chown(&dir, Some(owner), Some(owner)).map_err(ImageError::io("change the owner of", &dir))?;
        fs::set_permissions(&dir, Permissions::from_mode(mode)).map_err(ImageError::io("change the mode of", &dir))?;
    }
    // Debian keeps these three private copies and empty directories that `TRACES` took away.
    for dir in ["var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "run/lock"] {
        let dir = root.join(dir);
        fs::create_dir_all(&dir).map_err(ImageError::io("create", dir))?;
    }
    let mtab = root.join("etc/mtab");
    remove(&mtab)?;
    symlink("../proc/self/mounts", &mtab).map_err(ImageError::io("create", mtab))
}

/// A plain file in place of whatever is there, never through a link that leads out of the tree.
fn put(path: &Path, text: &str, mode: u32) -> Result<(), ImageError> {
    remove(path)?;
    fs::write(path, text).map_err(ImageError::io("write", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(ImageError::io("change the mode of", path))
}

fn remove_trace(root: &Path, trace: &str) -> Result<(), ImageError> {
    let Some((dir, end)) = trace.split_once('*') else {
        return remove(&root.join(trace));
    };
    let dir = root.join(dir);
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in entries(&dir)? {
        if entry.to_string_lossy().ends_with(end) {
            remove(&entry)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), ImageError> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.map_err(ImageError::io("remove", path))
}

fn lstat(path: &Path) -> Result<fs::Metadata, ImageError> {
    fs::symlink_metadata(path).map_err(ImageError::io("read", path))
}

fn entries(dir: &Path) -> Result<Vec<std::path::PathBuf>, ImageError> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(ImageError::io("list", dir))
}

/// Visits everything below and with `root`, a directory after what is in it. Follows no link.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path) -> Result<(), ImageError>) -> Result<(), ImageError> {
    if lstat(root)?.is_dir() {
        for entry in entries(root)? {
            walk(&entry, visit)?;
        }
    }
    visit(root)
}

fn set_time(path: &Path, seconds: i64) -> Result<(), ImageError> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| ImageError::io("set the time of", path)(error.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A tree with a package's file of 1000 s, one made by the build, and a link out of the tree.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for part in ["etc/apt/sources.list.d", "etc/sudoers.d", "etc/default", "var/log/apt", "var/lib/dpkg", "usr"] {
            fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        for file in ["usr/packaged", "usr/built", "var/log/apt/term.log", "var/lib/dpkg/status-old", "etc/passwd-"] {
            fs::write(dir.path().join(file), "x").unwrap();
        }
        set_time(&dir.path().join("usr/packaged"), 1000).unwrap();
        symlink("/nonexistent/outside", dir.path().join("etc/resolv.conf")).unwrap();
        dir
    }

    #[test]
    fn links_are_replaced_and_never_followed() {
        let dir = tree();
        put(&dir.path().join("etc/resolv.conf"), "y", 0o600).unwrap();
        let found = lstat(&dir.path().join("etc/resolv.conf")).unwrap();
        assert!(found.is_file() && found.mode() & 0o777 == 0o600);
    }

    #[test]
    fn traces_go_and_the_rest_stays() {
        let dir = tree();
        for trace in TRACES {
            remove_trace(dir.path(), trace).unwrap();
        }
        let exists = |path: &str| dir.path().join(path).exists();
        assert!(!exists("var/log/apt") && !exists("var/lib/dpkg/status-old") && !exists("etc/passwd-"));
        assert!(exists("var/log") && exists("var/lib/dpkg") && exists("usr/packaged"));
    }

    /// Changing owners needs root, so the whole of `finish` is tried only there.
    #[test]
    fn times_are_those_of_packages() {
        let dir = tree();
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let started = SystemTime::now() - Duration::from_secs(3600);
        let newest = finish(dir.path(), "Types: deb\n", &[], started).unwrap();
        assert_eq!(newest, 1000);
        walk(dir.path(), &mut |path| {
            assert_eq!(lstat(path)?.mtime(), 1000, "{}", path.display());
            Ok(())
        })
        .unwrap();
        assert_eq!(lstat(&dir.path().join("workspace")).unwrap().uid(), USER_ID);
        assert_eq!(lstat(&dir.path().join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    }
}
