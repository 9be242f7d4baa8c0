//! Released VM programs, for `belljar vmm`: pinned with their SHA-256, fetched or taken from a directory, checked, and put
//! where `up` and `doctor` look first.
//!
//! Which program runs sandboxes is not decided here, but by `belljar_node::driver`. [`fetch`] gets the bytes.
//!
//! ```text
//! url ──► DIR/<sha256>.part ──► SHA-256 as pinned ──► unpacked to DIR/<name>.new ──► its --version as pinned ──► DIR/<name>
//! file ────────────────────────────┘ else refused                                        else refused
//! ```
//!
//! The last step is a rename: a program that runs goes on, and what was there stays until the new one is whole.

mod fetch;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use belljar_vmm::probe::{self, Program, ProgramProblem};
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};

pub use fetch::FetchError;

/// The releases that this version takes.
const MANIFEST: &str = include_str!("manifest.toml");
/// Below the data directory.
pub const DIR: &str = "vmm";
/// Most bytes of a program, unpacked. The largest of today has 8 MiB.
const PROGRAM_MAX: u64 = 128 << 20;
/// Who runs a VM process may read and run its program.
const PROGRAM_MODE: u32 = 0o755;

/// A program of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// As it is called once it is installed: `firecracker` or `cloud-hypervisor`.
    pub name: String,
    /// As in `std::env::consts::ARCH`.
    pub arch: String,
    /// As it names itself, without `v`.
    pub version: String,
    /// Of its archive (gzipped tar), or of the program itself.
    pub url: String,
    /// Of what is at `url`, hexadecimal.
    pub sha256: String,
    /// Path of the program within the archive; without one `url` is the program.
    pub member: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    program: Vec<Release>,
}

/// Why a program was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The manifest has nothing for this kind of machine.
    #[error("no release of a VM program for {} is known to this version", std::env::consts::ARCH)]
    NoneHere,
    /// There is no such program in the manifest.
    #[error("no release of {name} is known to this version; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is, separated by commas.
        known: String,
    },
    /// The directory that was named does not have the file.
    #[error("{} does not exist; {name} {version} is that file of {url}", path.display())]
    NotThere {
        /// Where it was looked for.
        path: PathBuf,
        /// Which program.
        name: String,
        /// Which version.
        version: String,
        /// Where it can be had.
        url: String,
    },
    /// See there.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The archive is as pinned and lacks the program: the manifest is wrong.
    #[error("there is no {member} in {}", archive.display())]
    NoMember {
        /// The archive.
        archive: PathBuf,
        /// What is missing.
        member: String,
    },
    /// The program is as pinned and does not run here, or is of another version: the manifest is wrong.
    #[error("{name} of {url} does not work here: {problem}")]
    Useless {
        /// Which program.
        name: String,
        /// Where it is from.
        url: String,
        /// What it does.
        problem: String,
    },
    /// A file failed.
    #[error("cannot {operation} {}", path.display())]
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

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { operation, path, source }
}

/// The programs of the manifest for this machine.
#[must_use]
pub fn releases() -> Vec<Release> {
    let manifest: Manifest = toml::from_str(MANIFEST).expect("the manifest is part of the program, and tested");
    manifest.program.into_iter().filter(|release| release.arch == std::env::consts::ARCH).collect()
}

/// Those with the given names; all of them without any.
pub fn named(names: &[String]) -> Result<Vec<Release>, InstallError> {
    let all = releases();
    if all.is_empty() {
        return Err(InstallError::NoneHere);
    }
    if names.is_empty() {
        return Ok(all);
    }
    let known = || all.iter().map(|release| release.name.as_str()).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let found = all.iter().find(|release| release.name == *name);
        found.cloned().ok_or_else(|| InstallError::Unknown { name: name.clone(), known: known() })
    };
    names.iter().map(find).collect()
}

impl Release {
    /// What is installed of it in a directory; `None` where nothing is.
    pub fn installed(&self, dir: &Path) -> Option<Result<Program, ProgramProblem>> {
        let path = dir.join(&self.name);
        path.is_file().then(|| self.probe(&path))
    }

    fn probe(&self, path: &Path) -> Result<Program, ProgramProblem> {
        match self.name.as_str() {
            "firecracker" => probe::firecracker(path),
            _ => probe::cloud_hypervisor(path),
        }
    }

    /// Name of the file at its address.
    fn file_name(&self) -> &str {
        self.url.rsplit_once('/').map_or(self.url.as_str(), |(_, name)| name)
    }

    /// Fetches it, or takes it from the directory `from`, and puts it into `dir`, which is made. Says where it is. Blocking.
    /// `progress` is told how many bytes there are, and of how many, where that is known.
    pub fn install(
        &self,
        dir: &Path,
        from: Option<&Path>,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<PathBuf, InstallError> {
        // The data directory above is for its owner alone, and so is one that is made here.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir).map_err(failed("make", dir))?;
        let Some(from) = from else {
            let part = dir.join(format!("{}.part", self.sha256));
            let _only_one = fetch::fetch(&self.url, &self.sha256, &part, progress)?;
            let installed = self.unpack(&part, dir)?;
            fs::remove_file(&part).map_err(failed("remove", &part))?;
            return Ok(installed);
        };
        let path = from.join(self.file_name());
        let mut file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => InstallError::NotThere {
                path: path.clone(),
                name: self.name.clone(),
                version: self.version.clone(),
                url: self.url.clone(),
            },
            _ => failed("open", &path)(error),
        })?;
        fetch::verify(&mut file, &path, &self.sha256)?;
        self.unpack(&path, dir)
    }

    fn unpack(&self, source: &Path, dir: &Path) -> Result<PathBuf, InstallError> {
        let new = dir.join(format!("{}.new", self.name));
        let done = self.write(source, &new).and_then(|()| {
            let useless = |problem| InstallError::Useless { name: self.name.clone(), url: self.url.clone(), problem };
            let program = self.probe(&new).map_err(|problem| useless(problem.to_string()))?;
            if program.version != self.version {
                return Err(useless(format!("it is version {}, not {}", program.version, self.version)));
            }
            let path = dir.join(&self.name);
            fs::rename(&new, &path).map_err(failed("rename to", &path))?;
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))?;
            Ok(path)
        });
        if done.is_err() {
            // The error that is reported is the one before.
            let _ = fs::remove_file(&new);
        }
        done
    }

    /// The program within `source` as the file `new`.
    fn write(&self, source: &Path, new: &Path) -> Result<(), InstallError> {
        let reading = || failed("read", source);
        let file = File::open(source).map_err(reading())?;
        let Some(member) = &self.member else { return write(file, new) };
        let mut archive = tar::Archive::new(GzDecoder::new(file));
        for entry in archive.entries().map_err(reading())? {
            let entry = entry.map_err(reading())?;
            if entry.path().map_err(reading())? == Path::new(member) && entry.header().entry_type().is_file() {
                return write(entry, new);
            }
        }
        Err(InstallError::NoMember { archive: source.to_owned(), member: member.clone() })
    }
}

fn write(from: impl Read, path: &Path) -> Result<(), InstallError> {
    let copy = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(PROGRAM_MODE).open(path)?;
        io::copy(&mut from.take(PROGRAM_MAX), &mut file)?;
        file.flush()?;
        file.sync_all()
    };
    copy().map_err(failed("write", path))
}

#[cfg(test)]
#[path = "releases_test.rs"]
mod tests;
