//! The context of a build: a directory as a tar archive, without what its `.dockerignore` names.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::ignore::Ignore;
use crate::{commands::pack, report::Failure};

/// Where a Dockerfile goes that lies outside of the context.
const ELSEWHERE: &str = ".belljar/Dockerfile";

/// A context, packed.
pub(super) struct Packed {
    pub(super) archive: NamedTempFile,
    pub(super) bytes: u64,
    /// SHA-256, in hexadecimal digits.
    pub(super) digest: String,
    /// Path of the Dockerfile in it.
    pub(super) dockerfile: String,
    /// What cannot be in it.
    pub(super) skipped: Vec<PathBuf>,
}

/// Packs a directory, and the Dockerfile with it.
pub(super) fn pack(root: &Path, file: Option<&Path>) -> anyhow::Result<Packed> {
    let root = root.canonicalize().with_context(|| format!("cannot find the context {}", root.display()))?;
    if !root.is_dir() {
        let failure = Failure::new(format!("the context {} is no directory", root.display()));
        return Err(failure.hint("give the directory with the files, and the Dockerfile with -f").into());
    }
    let file = file.map_or_else(|| root.join("Dockerfile"), Path::to_owned);
    let text = fs::read(&file).with_context(|| format!("cannot read the Dockerfile {}", file.display()))?;
    let file = file.canonicalize().with_context(|| format!("cannot find the Dockerfile {}", file.display()))?;
    let inside = file.strip_prefix(&root).ok().map(Path::to_owned);
    let ignore = ignore(&root, inside.as_deref())?;
    let archive = NamedTempFile::new().context("cannot make a temporary file for the context")?;
    let failed = "cannot pack the context";
    let file = archive.reopen().context(failed)?;
    let mut builder = tar::Builder::new(Hashed { to: BufWriter::new(file), hash: Sha256::new(), bytes: 0 });
    let mut wanted = |name: &Path, is_directory: bool| {
        let is_needed = inside.as_deref() == Some(name) || name == Path::new(".dockerignore");
        is_needed || !ignore.excludes(name, is_directory)
    };
    let skipped = pack::directory_where(&mut builder, &root, &mut wanted).context(failed)?;
    let dockerfile = match inside {
        // It may lie in a directory that is not sent; then it is sent alone.
        Some(inside) if !ignore.hides(&inside) => inside.to_string_lossy().into_owned(),
        _ => {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, ELSEWHERE, &*text).context(failed)?;
            ELSEWHERE.to_owned()
        }
    };
    let mut hashed = builder.into_inner().context(failed)?;
    hashed.flush().context(failed)?;
    let Hashed { hash, bytes, .. } = hashed;
    let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Packed { archive, bytes, digest, dockerfile, skipped })
}

/// `NAME.dockerignore` beside the Dockerfile wins over the context's own.
fn ignore(root: &Path, dockerfile: Option<&Path>) -> anyhow::Result<Ignore> {
    let own = dockerfile.map(|path| root.join(format!("{}.dockerignore", path.display())));
    for path in own.into_iter().chain([root.join(".dockerignore")]) {
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(Ignore::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(Ignore::default())
}

/// Hashes what it writes.
struct Hashed<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
