//! Runs the programs that a task needs: one line per step with its time, the output in a log file, its end on failure.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::paths;

/// Lines of a failed step's log that are shown.
const TAIL_LINES: usize = 80;
/// Bytes of a log that the tail is looked for in.
const TAIL_BYTES: u64 = 64 << 10;
/// How often a terminal shows the elapsed time of a step, and how often a log file of this run does.
const TICK_TERMINAL: Duration = Duration::from_secs(1);
const TICK_PLAIN: Duration = Duration::from_secs(60);

/// A step that came to its end, well or not.
pub(crate) struct Finished {
    pub(crate) ok: bool,
    pub(crate) log: PathBuf,
}

/// A line for the person watching. A closed terminal is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line of the task's result.
pub(crate) fn answer(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Runs one step; on failure shows the end of what it printed and fails.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    let finished = try_step(name, command)?;
    if finished.ok {
        return Ok(());
    }
    show_tail(&finished.log);
    bail!("{name} failed; all of its output is in {}", finished.log.display());
}

/// Runs one step to its end and shows how it went.
pub(crate) fn try_step(name: &str, command: &mut Command) -> Result<Finished> {
    let log = log_path(name)?;
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let again = file.try_clone().context("cannot share a log file")?;
    command.stdin(Stdio::null()).stdout(file).stderr(again);
    let ok = timed(name, || {
        let program = command.get_program().to_string_lossy().into_owned();
        command.status().with_context(|| format!("cannot start `{program}`")).map(|status| status.success())
    })?;
    Ok(Finished { ok, log })
}

/// Does a piece of work under the eyes of the user: its name at once, its time in the end.
pub(crate) fn timed(name: &str, work: impl FnOnce() -> Result<bool>) -> Result<bool> {
    let started = Instant::now();
    let terminal = io::stderr().is_terminal();
    if !terminal {
        say(&format!("  {name} ..."));
    }
    let (done, waiting) = mpsc::channel::<()>();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            let tick = if terminal { TICK_TERMINAL } else { TICK_PLAIN };
            while waiting.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                show_elapsed(name, started, terminal);
            }
        });
        let result = work();
        drop(done);
        result
    });
    let verdict = if matches!(result, Ok(true)) { "ok" } else { "FAILED" };
    let start = if terminal { "\r\x1b[K" } else { "" };
    say(&format!("{start}  {name}: {verdict} ({:.1} s)", started.elapsed().as_secs_f64()));
    result
}

fn show_elapsed(name: &str, started: Instant, terminal: bool) {
    let seconds = started.elapsed().as_secs();
    let mut stderr = io::stderr();
    let _ = if terminal {
        write!(stderr, "\r\x1b[K  {name} ... {seconds} s").and_then(|()| stderr.flush())
    } else {
        writeln!(stderr, "  {name} ... {seconds} s")
    };
}

/// Output of a short program; its error output is in the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{program}`"))?;
    if !output.status.success() {
        bail!("`{program}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that talks to the user itself.
pub(crate) fn interactive(command: &mut Command) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    Ok(command.status().with_context(|| format!("cannot start `{program}`"))?.success())
}

/// The full path of a program, looked for where root's programs are too.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Holds `path` locked; says so when another run has it.
pub(crate) fn lock(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        say(&format!("  waiting for another run that holds {}", path.display()));
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Shows the last lines of a log, indented.
pub(crate) fn show_tail(log: &Path) {
    for line in tail(log).unwrap_or_default() {
        say(&format!("    | {line}"));
    }
}

fn tail(log: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec())
}

fn log_path(name: &str) -> Result<PathBuf> {
    let dir = paths::logs();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Ok(dir.join(format!("{}.log", plain.trim_matches('-').to_lowercase())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let all: Vec<String> = (0..30_000).map(|n| format!("line {n}")).collect();
        fs::write(file.path(), all.join("\n")).unwrap();
        assert_eq!(tail(file.path()).unwrap(), all[all.len() - TAIL_LINES..]);
    }

    #[test]
    fn a_failed_step_names_its_log() {
        let error = step("xtask self test", Command::new("sh").args(["-c", "echo reason; exit 4"])).unwrap_err();
        let log = log_path("xtask self test").unwrap();
        assert_eq!(error.to_string(), format!("xtask self test failed; all of its output is in {}", log.display()));
        assert_eq!(tail(&log).unwrap(), ["reason"]);
        fs::remove_file(log).unwrap();
    }
}
