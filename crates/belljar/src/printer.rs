//! The only place that writes to the terminal: data to stdout, everything else to stderr.
//!
//! Colours appear where the stream is a terminal that has them, progress where stderr is one, and neither carries a
//! meaning that the words do not.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::builder::styling::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::table::Table;

/// Pause between two pictures of a progress display.
const REDRAW: Duration = Duration::from_millis(100);

/// Bold and green: it is well.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Bold and yellow: look at this.
pub const WARN: Style = AnsiColor::Yellow.on_default().bold();
/// Bold and red: it failed.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Bold and cyan: words for a person.
pub const NOTE: Style = AnsiColor::Cyan.on_default().bold();

/// Stdout cannot be written to. A closed pipe ends the program quietly.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to stdout or stderr")]
pub struct OutputError(#[from] pub io::Error);

/// How the program speaks.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    json: bool,
    quiet: bool,
}

/// Where bytes of a program in a sandbox go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Stdout.
    Out,
    /// Stderr.
    Err,
}

impl Printer {
    /// A printer for `--json` and `--quiet`.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether data is printed as JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Data: a line on stdout.
    pub fn line(self, text: impl AsRef<str>) -> Result<(), OutputError> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{}", text.as_ref())?;
        Ok(())
    }

    /// Data: JSON on stdout, indented for people where stdout is a terminal.
    pub fn json<T: Serialize>(self, value: &T) -> Result<(), OutputError> {
        let out = io::stdout();
        let text = if out.is_terminal() { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        let mut out = out.lock();
        writeln!(out, "{}", text.map_err(io::Error::from)?)?;
        Ok(())
    }

    /// Data: a table on stdout.
    pub fn table(self, table: &Table) -> Result<(), OutputError> {
        let mut out = anstream::stdout().lock();
        write!(out, "{table}")?;
        Ok(())
    }

    /// Bytes of a program in a sandbox, untouched.
    pub fn bytes(self, sink: Sink, bytes: &[u8]) -> Result<(), OutputError> {
        match sink {
            Sink::Out => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()?;
            }
            Sink::Err => io::stderr().lock().write_all(bytes)?,
        }
        Ok(())
    }

    /// A line of what is going on, as it is, on stderr; not with `--quiet`.
    pub fn progress(self, line: &str) -> Result<(), OutputError> {
        if self.quiet { Ok(()) } else { self.bytes(Sink::Err, format!("{line}\n").as_bytes()) }
    }

    /// Words for a person, on stderr.
    pub fn note(self, text: impl AsRef<str>) {
        if !self.quiet {
            say(&format!("{}\n", text.as_ref()));
        }
    }

    /// A warning, on stderr.
    pub fn warn(self, text: impl AsRef<str>) {
        say(&format!("{WARN}warning:{WARN:#} {}\n", text.as_ref()));
    }

    /// An error with its causes and hints, on stderr.
    pub fn error(self, message: &str, causes: &[String], hints: &[String]) {
        let mut text = if self.json {
            let causes: Vec<&str> = causes.iter().map(String::as_str).collect();
            format!("{}\n", serde_json::json!({"error": message, "causes": causes, "hints": hints}))
        } else {
            format!("{BAD}error:{BAD:#} {message}\n")
        };
        if !self.json {
            for cause in causes {
                let cause = cause.trim_end().replace('\n', "\n    ");
                text.push_str(&format!("  {BAD}caused by:{BAD:#} {cause}\n"));
            }
            for (n, hint) in hints.iter().enumerate() {
                let gap = if n == 0 { "\n" } else { "" };
                text.push_str(&format!("{gap}{NOTE}hint:{NOTE:#} {hint}\n"));
            }
        }
        say(&text);
    }

    /// A spinner with words, on stderr, while something takes its time.
    pub fn spinner(self, text: impl Into<String>) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.set_message(text.into());
        if !bar.is_hidden() {
            bar.enable_steady_tick(REDRAW);
        }
        bar
    }

    /// A bar of bytes, on stderr; without a length it only counts.
    pub fn transfer(self, text: impl Into<String>, length: Option<u64>) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(length, self.target());
        let template = match length {
            Some(_) => "{msg} {bar:30.cyan} {bytes}/{total_bytes} {bytes_per_sec}",
            None => "{msg} {bytes} {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(text.into());
        bar
    }

    fn target(self) -> ProgressDrawTarget {
        // Where stderr is no terminal, indicatif shows nothing by itself.
        if self.quiet || self.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
    }
}

/// Nobody can be told that stderr does not work.
fn say(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}
