//! Runs one of the host's programs to its end, with a clean environment and the end of its error output in the error.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Seek},
    process::{Command, Stdio},
};

use crate::{
    error::ImageError,
    limits::{ERROR_TAIL_LINES, MAX_LINE_BYTES, MAX_OUTPUT_BYTES},
};

/// Variables of the caller that reach the programs: how to reach the network, nothing that changes what is built.
const PASSED_ON: [&str; 6] = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// Programs this crate runs and the Debian packages that have them.
const PACKAGES: [(&str, &str); 9] = [
    ("apt-get", "apt"),
    ("apt-config", "apt"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("dumpe2fs", "e2fsprogs"),
    ("dpkg-query", "dpkg"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// A command with nothing of the caller's environment but [`PASSED_ON`].
///
/// It ends when the thread that started it does: a build that was given up leaves nothing running.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", program]).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs([
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
        ("HOME", "/nonexistent"),
        ("DEBIAN_FRONTEND", "noninteractive"),
    ]);
    command.envs(PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
    command
}

/// Runs it and gives its output. Each line of its error output goes to `on_line` as it comes.
pub(crate) fn run(command: &mut Command, on_line: &mut dyn FnMut(&str)) -> Result<String, ImageError> {
    let program = program_of(command);
    let io = |operation| ImageError::io(operation, &program);
    // A file takes the output, so that only one pipe has to be drained.
    let mut output = tempfile::tempfile().map_err(io("make a temporary file for"))?;
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(output.try_clone().map_err(io("make a temporary file for"))?);
    let mut child = command.spawn().map_err(|source| spawn_error(&program, source))?;
    let mut tail = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        let mut reader = BufReader::new(stderr);
        while let Some(line) = read_line(&mut reader).map_err(io("read the messages of"))? {
            on_line(&line);
            if tail.len() == ERROR_TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
    }
    let status = child.wait().map_err(io("wait for"))?;
    if !status.success() {
        return Err(failure(program, status, Vec::from(tail).join("\n")));
    }
    let mut text = Vec::new();
    output.rewind().map_err(io("read the output of"))?;
    output.take(MAX_OUTPUT_BYTES).read_to_end(&mut text).map_err(io("read the output of"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The program that `setpriv`, and maybe `unshare`, stand before: what follows the last `--`.
fn program_of(command: &Command) -> String {
    let args: Vec<_> = command.get_args().collect();
    let program = args.iter().rposition(|arg| *arg == "--").and_then(|at| args.get(at + 1).copied());
    program.unwrap_or(command.get_program()).to_string_lossy().into_owned()
}

fn spawn_error(program: &str, source: std::io::Error) -> ImageError {
    if source.kind() == std::io::ErrorKind::NotFound {
        ImageError::MissingProgram { program: "setpriv".into(), package: "util-linux" }
    } else {
        ImageError::io("start", program)(source)
    }
}

fn failure(program: String, status: std::process::ExitStatus, tail: String) -> ImageError {
    /// What `setpriv` and `unshare` end with when there is no such program.
    const NO_SUCH_PROGRAM: i32 = 127;
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map(|(_, package)| *package);
    match package {
        Some(package) if status.code() == Some(NO_SUCH_PROGRAM) => ImageError::MissingProgram { program, package },
        _ => ImageError::Tool { program, status: status.to_string(), tail },
    }
}

/// One line, without its end and cut at [`MAX_LINE_BYTES`]; carriage returns (progress bars) end a line too.
fn read_line(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()));
        }
        let end = buffer.iter().position(|&b| b == b'\n' || b == b'\r');
        let upto = end.unwrap_or(buffer.len());
        let room = MAX_LINE_BYTES.saturating_sub(line.len());
        line.extend_from_slice(&buffer[..upto.min(room)]);
        reader.consume(end.map_or(upto, |end| end + 1));
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(script: &str, expect: &str) {
        let mut lines = Vec::new();
        let got = run(command("sh").args(["-c", script]), &mut |line| lines.push(line.to_owned()));
        let got = match got {
            Ok(output) => format!("out {output:?} err {lines:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    }

    #[test]
    fn output_lines_and_failures() {
        check("echo a; echo b >&2; printf c >&2", r#"out "a\n" err ["b", "c"]"#);
        check("echo no space left >&2; exit 3", "`sh` failed (exit status: 3):\nno space left");
        check("seq 30 >&2; false", &format!("`sh` failed (exit status: 1):\n{}", lines(19..=30)));
        check("echo $SECRET", r#"out "\n" err []"#);
        check("head -c 5000 /dev/zero | tr '\\0' x >&2; echo >&2; echo y >&2; exit 1", &{
            format!("`sh` failed (exit status: 1):\n{}\ny", "x".repeat(MAX_LINE_BYTES))
        });
    }

    fn lines(range: std::ops::RangeInclusive<u32>) -> String {
        range.map(|n| n.to_string()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let mut absent = command("mmdebstrap");
        absent.env("PATH", "/nonexistent");
        let error = run(&mut absent, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("is not installed; install the Debian package"), "{error}");
    }
}
