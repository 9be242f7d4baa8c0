//! What `belljar up` says once it is ready. `up --detach` gets it as one line of JSON over a pipe, and says the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::printer::{GOOD, NOTE, OutputError, Printer, WARN};

/// How it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Process id of server and node.
    pub pid: u32,
    /// Where the API is.
    pub api_url: String,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Where it listens for SSH, and the fingerprint of its host key.
    #[serde(default)]
    pub ssh: Option<(String, String)>,
    /// What runs the sandboxes.
    pub driver: String,
    /// Why that.
    pub reason: String,
    /// How to get a better one.
    pub better: Option<String>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where it logs, when not to stderr.
    pub log: Option<PathBuf>,
    /// Lines for a shell that point an SDK here; none when the first key is not known any more.
    pub exports: Vec<String>,
}

impl Summary {
    /// Words to stderr, lines for a shell to stdout.
    pub fn print(&self, printer: Printer) -> Result<(), OutputError> {
        if printer.is_json() {
            return printer.json(self);
        }
        let listen = self.listen.join(", ");
        printer.note(format!("{GOOD}belljar is up{GOOD:#} on {listen} (pid {})", self.pid));
        printer.note(format!("  driver  {}: {}", self.driver, self.reason));
        if let Some((address, fingerprint)) = &self.ssh {
            printer.note(format!("  ssh     {address}, host key {fingerprint}"));
        }
        if let Some(better) = &self.better {
            printer.note(format!("  {WARN}faster{WARN:#}  {better}"));
        }
        printer.note(format!("  data    {}", self.data_dir.display()));
        if let Some(log) = &self.log {
            printer.note(format!("  log     {}", log.display()));
        }
        if self.exports.is_empty() {
            printer.warn("the first API key is gone from the data directory; use one that you made");
        } else {
            printer.note(format!("{NOTE}A Tensorlake SDK finds it with:{NOTE:#}"));
        }
        self.exports.iter().try_for_each(|line| printer.line(line))
    }
}

/// The two lines that point an SDK at a server, safe to be evaluated by a shell.
pub fn exports(url: &str, key: &str) -> [String; 2] {
    [("TENSORLAKE_API_URL", url), ("TENSORLAKE_API_KEY", key)]
        .map(|(name, value)| format!("export {name}={}", quote(value)))
}

fn quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_safe_to_evaluate() {
        let lines = exports("http://127.0.0.1:8900", "a'b $(c)");
        assert_eq!(lines[0], "export TENSORLAKE_API_URL=http://127.0.0.1:8900");
        assert_eq!(lines[1], r"export TENSORLAKE_API_KEY='a'\''b $(c)'");
    }
}
