//! Where things lie: in the repository, and in the cache that all clones of it share.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Directory of the build's output.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// What each step printed.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask-logs")
}

/// Kernels, initramfs and images: `BELLJAR_CACHE`, else `~/.cache/belljar`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("BELLJAR_CACHE") {
        return Ok(PathBuf::from(dir));
    }
    let home = env::var_os("HOME").context("neither BELLJAR_CACHE nor HOME is set; set one of them")?;
    Ok(PathBuf::from(home).join(".cache/belljar"))
}

/// The image store: `BELLJAR_IMAGE_STORE`, else in the cache.
pub(crate) fn image_store() -> Result<PathBuf> {
    env::var_os("BELLJAR_IMAGE_STORE").map_or_else(|| Ok(cache()?.join("store")), |dir| Ok(PathBuf::from(dir)))
}
