//! Programs of the host: run to their end, with an error that tells what they said.
//!
//! Called by whoever makes networks and volumes, in a thread that may wait.

use std::{
    ffi::OsStr,
    io::{self, Write},
    process::{Command, Stdio},
};

use crate::limits::PROGRAM_OUTPUT;

/// Where programs are looked for: whoever starts the node may have a shorter path, or another program of the name.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be run.
    #[error("cannot run `{program}`; install it with: apt install {}", package(.program))]
    Run {
        /// Which.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It says no.
    #[error("`{program}` failed: {output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The beginning of what it wrote.
        output: String,
    },
}

/// A program that is to be started with nothing of the node's environment.
pub(crate) fn command(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs([("PATH", PATH), ("LC_ALL", "C")]);
    command
}

/// Runs a program with `input` on its stdin; what it wrote on stdout. It inherits nothing but the calling thread's
/// namespaces.
pub(crate) fn run(
    program: &'static str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &str,
) -> Result<Vec<u8>, ProgramError> {
    let failed = |source| ProgramError::Run { program, source };
    let mut child = command(program, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // It reads all of it before it says much.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map(|()| output.stdout).map_err(failed);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(ProgramError::Failed { program, output: text.trim().chars().take(PROGRAM_OUTPUT).collect() })
}

fn package(program: &str) -> &'static str {
    match program {
        "ip" => "iproute2",
        "nft" => "nftables",
        "mkfs.xfs" => "xfsprogs",
        // mount, umount and losetup.
        _ => "mount",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(program: &'static str, script: &str, input: &str, expected: Result<&str, &str>) {
        let result = run(program, ["-c", script], input).map_err(|error| error.to_string());
        let result = result.map(|bytes| String::from_utf8(bytes).expect("text"));
        assert_eq!(result, expected.map(str::to_owned).map_err(str::to_owned), "{script}");
    }

    #[test]
    fn what_it_says_is_told() {
        check("sh", "cat; env | grep -c BELLJAR || true", "in\n", Ok("in\n0\n"));
        check("sh", "echo no such thing >&2; exit 1", "", Err("`sh` failed: no such thing"));
        let long = format!("`sh` failed: {}", "x".repeat(PROGRAM_OUTPUT));
        check("sh", "head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", "", Err(&long));
        check("nft-of-nobody", "", "", Err("cannot run `nft-of-nobody`; install it with: apt install mount"));
    }
}
