//! Calls cargo, the same one that runs this program.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Result;

use crate::{paths, run};

/// `cargo <arguments>` in the repository.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(paths::repository()).args(arguments);
    // Set by the outer `cargo run`; crates with build scripts would be built again because of them.
    for variable in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        command.env_remove(variable);
    }
    command
}

/// Whether `cargo nextest` is there; without it, tests run with `cargo test`.
pub(crate) fn has_nextest() -> bool {
    let mut probe = cargo(&["nextest", "--version"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Builds the `belljar` binary and gives its path.
pub(crate) fn build_belljar(release: bool) -> Result<PathBuf> {
    let (profile, dir) = if release { (&["--release"][..], "release") } else { (&[][..], "debug") };
    let name = format!("build belljar ({dir})");
    run::step(&name, cargo(&["build", "--package", "belljar"]).args(profile))?;
    Ok(paths::target().join(dir).join("belljar"))
}
