//! Paths in requests: which are refused, what relative ones are relative to, who owns what is made.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Component, Path, PathBuf},
};

use axum::http::StatusCode;
use belljar_api::error::code;

use crate::{error::ApiError, launch::Settings, limits::SYMLINKS_MAX};

/// Owner of new files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The path of a request, made absolute. `..` is refused rather than resolved: through a link it would lead elsewhere
/// than it says.
pub(crate) fn checked(settings: &Settings, path: &str) -> Result<PathBuf, ApiError> {
    if path.is_empty() || path.contains('\0') {
        return Err(ApiError::invalid("path: is empty or contains a NUL byte; name a file"));
    }
    if Path::new(path).components().any(|component| component == Component::ParentDir) {
        let message = format!("path: `{}` contains `..`; write it out", path.escape_debug());
        return Err(ApiError::new(StatusCode::FORBIDDEN, code::PATH_TRAVERSAL, message));
    }
    Ok(settings.default_directory().join(path))
}

/// Who owns what a request makes; `None` is the agent's own user.
pub(crate) fn default_owner(settings: &Settings) -> Option<Owner> {
    let identity = settings.identity(None).ok().flatten()?;
    Some(Owner { uid: identity.uid, gid: identity.gid })
}

/// Makes a directory and what is missing above it, mode 0755.
pub(crate) fn make_directories(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    let mut missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    while let Some(directory) = missing.pop() {
        match fs::DirBuilder::new().mode(0o755).create(directory) {
            Ok(()) => own(directory, owner)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives a new file to its owner.
pub(crate) fn own(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    match owner {
        Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

/// The file that a path with symbolic links as its last component means, whether it exists or not: a write through a
/// link writes what it points to, and must not replace the link.
pub(crate) fn follow_links(mut path: PathBuf) -> io::Result<PathBuf> {
    for _ in 0..SYMLINKS_MAX {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            // Not a link, or nothing there yet.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}
