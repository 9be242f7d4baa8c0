//! Which QEMU is installed.

use crate::limits::MIN_QEMU_MAJOR;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A QEMU that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProgram {
    /// Absolute path, or a name to be looked up in `PATH`.
    pub path: PathBuf,
    /// As it names itself, e.g. `10.0.2`.
    pub version: String,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QemuProblem {
    /// No such program.
    #[error("{} was not found", program.display())]
    NotFound { program: PathBuf },
    /// Older than what we need.
    #[error("{} is version {version}; {MIN_QEMU_MAJOR}.0 or newer is needed", program.display())]
    TooOld { program: PathBuf, version: String },
    /// It does not run, or does not tell its version.
    #[error("{} cannot be used: {reason}", program.display())]
    Broken { program: PathBuf, reason: String },
}

impl QemuProblem {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => {
                "apt install qemu-system-x86 (Debian 12: apt install -t bookworm-backports qemu-system-x86)"
            }
            Self::TooOld { .. } => {
                "Debian 12: add the suite bookworm-backports, then apt install -t bookworm-backports qemu-system-x86; \
                 Debian 13 has a new enough one"
            }
            Self::Broken { .. } => "apt install --reinstall qemu-system-x86",
        }
    }
}

/// Asks `program` (usually `qemu-system-x86_64`) for its version. Takes some 20 ms; blocks.
pub fn qemu(program: &Path) -> Result<QemuProgram, QemuProblem> {
    let broken = |reason: String| QemuProblem::Broken { program: program.to_owned(), reason };
    let output = Command::new(program).arg("--version").env_clear().envs(path_only()).output().map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => QemuProblem::NotFound { program: program.to_owned() },
            _ => broken(error.to_string()),
        }
    })?;
    if !output.status.success() {
        return Err(broken(format!("`--version`: {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let version = parse_version(&text).ok_or_else(|| broken("`--version` shows no version".to_owned()))?;
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= MIN_QEMU_MAJOR => Ok(QemuProgram { path: program.to_owned(), version }),
        _ => Err(QemuProblem::TooOld { program: program.to_owned(), version }),
    }
}

fn path_only() -> Option<(&'static str, std::ffi::OsString)> {
    std::env::var_os("PATH").map(|path| ("PATH", path))
}

/// From `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let version = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(parse_version(text).as_deref(), expected, "{text}");
        check("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)\nCopyright", Some("10.0.2"));
        check("QEMU emulator version 7.2.1", Some("7.2.1"));
        check("QEMU emulator version 9.0.50-rc1", Some("9.0.50"));
        check("QEMU emulator version x", None);
        check("qemu 10", None);
        check("", None);
    }

    #[test]
    fn programs() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let say = |version: &str| format!("echo QEMU emulator version {version}");
        assert_eq!(qemu(&script("new", &say("9.2.0"))).unwrap().version, "9.2.0");
        assert!(
            matches!(qemu(&script("old", &say("7.2.11"))), Err(QemuProblem::TooOld { version, .. }) if version == "7.2.11")
        );
        assert!(matches!(qemu(&script("odd", "echo hello")), Err(QemuProblem::Broken { .. })));
        assert!(matches!(qemu(&script("bad", "exit 3")), Err(QemuProblem::Broken { .. })));
        assert!(matches!(qemu(&dir.path().join("none")), Err(QemuProblem::NotFound { .. })));
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(matches!(qemu(&plain), Err(QemuProblem::Broken { .. })));
    }
}
