//! Built files that every clone shares: each lies under a hash of what it was made from, and `current.json` names the
//! ones that `belljar up` takes when it is told no others.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{paths, run};

/// Hexadecimal digits of a directory's name: enough to tell a machine's builds apart.
const KEY_DIGITS: usize = 16;

/// Directory name for what is made from `parts`.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..KEY_DIGITS].to_owned()
}

/// Moves the finished directory `made` to `<shelf>/<key>`.
pub(crate) fn publish(made: &Path, shelf: &Path, key: &str) -> Result<()> {
    let place = shelf.join(key);
    remove_dir(&place)?;
    fs::rename(made, &place).with_context(|| format!("cannot rename a directory to {}", place.display()))
}

/// Writes into `current.json` that `path` is the `kernel`, `initrd` or `image_store` to take.
pub(crate) fn make_current(kind: &str, path: &Path) -> Result<()> {
    let cache = paths::cache()?;
    let _lock = run::lock(&cache.join("current.lock"))?;
    let (file, new) = (cache.join("current.json"), cache.join("current.json.new"));
    // A file that cannot be read is one that is written anew.
    let old = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut current: BTreeMap<String, PathBuf> = old.unwrap_or_default();
    current.insert(kind.to_owned(), path.to_owned());
    fs::write(&new, serde_json::to_string_pretty(&current)?)
        .and_then(|()| fs::rename(&new, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Removes a directory that may not be there.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Removes all but the `keep` newest directories of a shelf.
pub(crate) fn prune(shelf: &Path, keep: usize) -> Result<()> {
    let mut dirs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(shelf).with_context(|| format!("cannot list {}", shelf.display()))? {
        let path = entry?.path();
        let found = fs::metadata(&path)?;
        if found.is_dir() {
            dirs.push((found.modified()?, path));
        }
    }
    dirs.sort();
    dirs.reverse();
    for (_, dir) in dirs.iter().skip(keep) {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// Everything that a node needs to run VMs.
pub(crate) struct Artifacts {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) image_store: PathBuf,
    pub(crate) belljar: PathBuf,
}

impl Artifacts {
    /// Tells a program where they are.
    pub(crate) fn pass_to<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        Ok(command
            .env("BELLJAR_CACHE", paths::cache()?)
            .env("BELLJAR_KERNEL", &self.kernel)
            .env("BELLJAR_INITRD", &self.initrd)
            .env("BELLJAR_IMAGE_STORE", &self.image_store)
            .env("BELLJAR_BIN", &self.belljar))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_and_pruning() {
        let dir = tempfile::tempdir().unwrap();
        for key in ["a", "b", "c"] {
            let made = dir.path().join(".new");
            fs::create_dir(&made).unwrap();
            fs::write(made.join("file"), key).unwrap();
            publish(&made, dir.path(), key).unwrap();
            let age = std::time::Duration::from_secs(u64::from(b'z' - key.as_bytes()[0]));
            fs::File::open(dir.path().join(key)).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
        prune(dir.path(), 2).unwrap();
        let left = |key: &str| dir.path().join(key).join("file").exists();
        assert_eq!((left("a"), left("b"), left("c")), (false, true, true));
    }

    #[test]
    fn keys_tell_parts_apart() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"a"]).len(), KEY_DIGITS);
    }
}
