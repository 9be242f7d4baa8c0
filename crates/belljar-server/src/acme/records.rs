//! The TXT records of DNS-01, added and removed by the operator's program.
//!
//! ```text
//! noted in a file --program add--> seen by the ACME server --program remove--> file removed
//!        \-- the server stops in between --> the next one removes the record
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Mutex, PoisonError},
};

use tokio::process::Command;

use super::{AcmeError, issuer::make_dir};
use crate::{
    limits::{ACME_HOOK_TIMEOUT, ACME_HOOK_WORDS_MAX},
    secret_file,
};

/// A record that the program has been told to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) name: String,
    /// In base64url, so that it can be a file's name.
    pub(super) value: String,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Records {
    program: PathBuf,
    dir: PathBuf,
    /// Those of an earlier server.
    left: Mutex<Vec<Record>>,
}

impl Records {
    /// Reads what an earlier server left in `dir`, which is made when it is not there.
    pub(super) fn open(program: PathBuf, dir: PathBuf) -> Result<Self, AcmeError> {
        make_dir(&dir)?;
        let left = read(&dir).map_err(|source| AcmeError::File { operation: "read", path: dir.clone(), source })?;
        Ok(Self { program, dir, left: Mutex::new(left) })
    }

    pub(super) async fn add(&self, record: &Record) -> Result<(), AcmeError> {
        let path = self.dir.join(&record.value);
        let noted = secret_file::write(&path, record.name.as_bytes());
        noted.map_err(|source| AcmeError::File { operation: "write", path: path.clone(), source })?;
        let added = run_hook(&self.program, "add", record).await;
        if added.is_err() {
            self.forget(record);
        }
        added
    }

    /// It is of no use to anybody any more, so that a failure is only told.
    pub(super) async fn remove(&self, record: &Record) {
        match run_hook(&self.program, "remove", record).await {
            Ok(()) => self.forget(record),
            Err(error) => tracing::warn!(%error, "a DNS record of ACME stays; the next start tries again"),
        }
    }

    /// Removes what an earlier server had no time for.
    pub(super) async fn remove_left(&self) {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        for record in left {
            self.remove(&record).await;
        }
    }

    fn forget(&self, record: &Record) {
        let path = self.dir.join(&record.value);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "the note of a DNS record stays");
        }
    }
}

fn read(dir: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // What was being written has a dot first.
        let value = entry.file_name().into_string().ok().filter(|value| !value.starts_with('.'));
        if let Some(value) = value {
            records.push(Record { name: fs::read_to_string(entry.path())?, value });
        }
    }
    Ok(records)
}

/// `PROGRAM add|remove NAME VALUE`
async fn run_hook(program: &Path, verb: &'static str, Record { name, value }: &Record) -> Result<(), AcmeError> {
    let failed = |why: String| AcmeError::HookFailed { path: program.to_owned(), verb, record: name.clone(), why };
    let mut command = Command::new(program);
    command.args([verb, name, value]).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ACME_HOOK_TIMEOUT, command.output()).await {
        Err(_) => Err(failed(format!("it did not end within {} s", ACME_HOOK_TIMEOUT.as_secs()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(failed(last_words(&output))),
    }
}

/// How a program ended, and the end of what it wrote.
fn last_words(output: &Output) -> String {
    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(ACME_HOOK_WORDS_MAX)..]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { output.status.to_string() } else { format!("{}: {text}", output.status) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Runs a hook with this text and gives its complaint.
    async fn check(text: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("hook");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        let record = Record { name: "_acme-challenge.sb.test".into(), value: "v_-1".into() };
        run_hook(&path, "add", &record).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_hook_is_told_what_to_do_and_its_last_words_are_kept() {
        check(r#"[ "$*" = "add _acme-challenge.sb.test v_-1" ]"#).await.expect("told");
        for (text, words) in [
            ("echo the provider >&2; echo says no >&2; exit 3", "exit status: 3: the provider says no"),
            ("echo on stdout; exit 1", "exit status: 1: on stdout"),
            ("kill -9 $$", "signal: 9"),
            ("head -c 100000 /dev/zero | tr '\\0' x; exit 1", "xxx"),
        ] {
            let complaint = check(text).await.expect_err(words);
            assert!(
                complaint.contains(words) && complaint.contains("TXT record _acme-challenge.sb.test"),
                "{complaint}"
            );
            assert!(complaint.len() < 2000, "{}", complaint.len());
        }
    }
}
