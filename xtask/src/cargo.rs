//! Calls cargo, the same one that runs this program.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

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

/// Builds the tests of a crate's library and gives the path of their program.
pub(crate) fn test_program(package: &str, which: &[&str]) -> Result<PathBuf> {
    let build = [&["test", "--no-run", "--message-format=json", "--package", package], which].concat();
    run::step(&format!("build the tests of {package}"), &mut cargo(&build))?;
    let messages = run::output(&mut cargo(&build))?;
    let program = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = program.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))).next_back();
    program.with_context(|| format!("cargo does not say where the tests of {package} are"))
}

/// Builds the `belljar` binary and gives its path.
pub(crate) fn build_belljar(release: bool) -> Result<PathBuf> {
    let (profile, dir) = if release { (&["--release"][..], "release") } else { (&[][..], "debug") };
    let name = format!("build belljar ({dir})");
    run::step(&name, cargo(&["build", "--package", "belljar"]).args(profile))?;
    Ok(paths::target().join(dir).join("belljar"))
}
