//! Which VM programs are installed, in which version.

use crate::limits::{MIN_CLOUD_HYPERVISOR, MIN_FIRECRACKER, MIN_QEMU};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A VM program that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Absolute path, or a name to be looked up in `PATH`.
    pub path: PathBuf,
    /// As it names itself, e.g. `10.0.2`.
    pub version: String,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramProblem {
    /// No such program.
    #[error("{} was not found", program.display())]
    NotFound { program: PathBuf, remedy: &'static str },
    /// Older than what we need.
    #[error("{} is version {version}; {}.{} or newer is needed", program.display(), oldest.0, oldest.1)]
    TooOld { program: PathBuf, version: String, oldest: (u32, u32), remedy: &'static str },
    /// It does not run, or does not tell its version.
    #[error("{} cannot be used: {reason}", program.display())]
    Broken { program: PathBuf, reason: String, remedy: &'static str },
}

impl ProgramProblem {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotFound { remedy, .. } | Self::TooOld { remedy, .. } | Self::Broken { remedy, .. } => remedy,
        }
    }
}

/// What is known of a program.
struct Known {
    /// What stands before its version.
    prefix: &'static str,
    /// Major and minor version.
    oldest: (u32, u32),
    /// Where it is not, is too old, or does not work.
    remedies: [&'static str; 3],
}

const QEMU: Known = Known {
    prefix: "QEMU emulator version ",
    oldest: MIN_QEMU,
    remedies: [
        "apt install qemu-system-x86 (Debian 12: apt install -t bookworm-backports qemu-system-x86)",
        "Debian 12: add the suite bookworm-backports, then apt install -t bookworm-backports qemu-system-x86; Debian 13 has a \
         new enough one",
        "apt install --reinstall qemu-system-x86",
    ],
};

const FIRECRACKER: Known = Known {
    prefix: "Firecracker v",
    oldest: MIN_FIRECRACKER,
    remedies: ["belljar vmm install firecracker (or put it into PATH, or name its directory with --vmm-dir)"; 3],
};

const CLOUD_HYPERVISOR: Known = Known {
    prefix: "cloud-hypervisor v",
    oldest: MIN_CLOUD_HYPERVISOR,
    remedies: ["belljar vmm install cloud-hypervisor (or put it into PATH, or name its directory with --vmm-dir)"; 3],
};

/// Asks `program` (usually `qemu-system-x86_64`) for its version. Takes some 20 ms; blocks.
pub fn qemu(program: &Path) -> Result<Program, ProgramProblem> {
    find(program, &QEMU)
}

/// Asks `program` (usually `firecracker`) for its version. Takes some milliseconds; blocks.
pub fn firecracker(program: &Path) -> Result<Program, ProgramProblem> {
    find(program, &FIRECRACKER)
}

/// Asks `program` (usually `cloud-hypervisor`) for its version. Takes some milliseconds; blocks.
pub fn cloud_hypervisor(program: &Path) -> Result<Program, ProgramProblem> {
    find(program, &CLOUD_HYPERVISOR)
}

fn find(path: &Path, known: &Known) -> Result<Program, ProgramProblem> {
    let [install, update, repair] = known.remedies;
    let program = || path.to_owned();
    let broken = |reason: String| ProgramProblem::Broken { program: program(), reason, remedy: repair };
    let asked = Command::new(path).arg("--version").env_clear().envs(path_only()).output();
    let output = asked.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProgramProblem::NotFound { program: program(), remedy: install },
        _ => broken(error.to_string()),
    })?;
    if !output.status.success() {
        return Err(broken(format!("`--version`: {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let version =
        parse_version(&text, known.prefix).ok_or_else(|| broken("`--version` shows no version".to_owned()))?;
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < known.oldest {
        return Err(ProgramProblem::TooOld { program: program(), version, oldest: known.oldest, remedy: update });
    }
    Ok(Program { path: program(), version })
}

fn path_only() -> Option<(&'static str, std::ffi::OsString)> {
    std::env::var_os("PATH").map(|path| ("PATH", path))
}

/// From `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`, `Firecracker v1.14.0`, or `cloud-hypervisor v52.0`.
fn parse_version(text: &str, prefix: &str) -> Option<String> {
    let rest = text.lines().next()?.strip_prefix(prefix)?;
    let version = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions() {
        let check = |text: &str, known: &Known, expected: Option<&str>| {
            assert_eq!(parse_version(text, known.prefix).as_deref(), expected, "{text}");
        };
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)\nCopyright";
        check(text, &QEMU, Some("10.0.2"));
        check(text, &FIRECRACKER, None);
        check("QEMU emulator version 7.2.1", &QEMU, Some("7.2.1"));
        check("QEMU emulator version 9.0.50-rc1", &QEMU, Some("9.0.50"));
        check("QEMU emulator version x", &QEMU, None);
        check("qemu 10", &QEMU, None);
        check("", &QEMU, None);
        check("Firecracker v1.17.0-dev\n\nSupported snapshot data format versions: 1", &FIRECRACKER, Some("1.17.0"));
        check("cloud-hypervisor v53.0-246-gae44c2971\nMigration", &CLOUD_HYPERVISOR, Some("53.0"));
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
        let old = qemu(&script("old", &say("7.2.11"))).unwrap_err();
        assert!(matches!(&old, ProgramProblem::TooOld { version, .. } if version == "7.2.11"), "{old}");
        assert!(old.to_string().contains("9.0 or newer") && old.remedy().contains("bookworm-backports"), "{old}");
        assert!(matches!(qemu(&script("odd", "echo hello")), Err(ProgramProblem::Broken { .. })));
        assert!(matches!(qemu(&script("bad", "exit 3")), Err(ProgramProblem::Broken { .. })));
        assert!(matches!(qemu(&dir.path().join("none")), Err(ProgramProblem::NotFound { .. })));
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert!(matches!(qemu(&plain), Err(ProgramProblem::Broken { .. })));

        let fire = |version: &str| firecracker(&script("fire", &format!("echo Firecracker v{version}")));
        assert_eq!(fire("1.14.1").unwrap().version, "1.14.1");
        assert_eq!(fire("2.0.0").unwrap().version, "2.0.0");
        assert!(matches!(fire("1.9.9"), Err(ProgramProblem::TooOld { .. })));
        let cloud = |version: &str| cloud_hypervisor(&script("cloud", &format!("echo cloud-hypervisor v{version}")));
        assert_eq!(cloud("52.0").unwrap().version, "52.0");
        assert!(matches!(cloud("51.1"), Err(ProgramProblem::TooOld { .. })));
    }
}
