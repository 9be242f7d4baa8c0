//! `belljar-guest`: see the library. As PID 1 it takes no arguments, as a service of systemd `--service`; `--hosted` is for tests.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use belljar_guest::{Config, SFTP_OPTION, run};

const USAGE: &str = "usage: belljar-guest --hosted --listen SOCKET --root DIRECTORY";

fn main() -> ExitCode {
    let is_init = std::process::id() == 1;
    let config = if is_init { Ok(Config::Init) } else { parse(std::env::args_os().skip(1)) };
    match config.and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("belljar-guest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the one place where a program that could not start says so")]
fn report(message: &str) {
    eprintln!("{message}");
}

fn parse(mut words: impl Iterator<Item = OsString>) -> anyhow::Result<Config> {
    let mut words = words.by_ref().peekable();
    if words.peek().is_some_and(|word| word == SFTP_OPTION) {
        return Ok(Config::Sftp);
    }
    if words.peek().is_some_and(|word| word == "--service") {
        return Ok(Config::Service);
    }
    let (mut is_hosted, mut listen, mut root) = (false, None, None);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--hosted") => is_hosted = true,
            Some("--listen") => listen = words.next().map(PathBuf::from),
            Some("--root") => root = words.next().map(PathBuf::from),
            _ => anyhow::bail!("`{}` is not an option; {USAGE}", word.display()),
        }
    }
    match (is_hosted, listen, root) {
        (true, Some(listen), Some(root)) => Ok(Config::Hosted { listen, root }),
        _ => anyhow::bail!("not PID 1, and not told to be hosted; {USAGE}"),
    }
}
