//! Rules of this repository that neither the compiler nor clippy knows. `cargo xtask tidy`, and a test of this crate.
//!
//! Each rule is a function from the repository to complaints. A list of exceptions may only shrink: an entry that is not
//! needed any more is a complaint itself.

mod edges;
mod files;

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::{paths, run};

/// What the rules look at.
pub(crate) struct Repository {
    metadata: Metadata,
    /// Sizes of all files that are, or are about to be, under version control.
    sizes: BTreeMap<PathBuf, u64>,
    /// Those of them that are text.
    texts: BTreeMap<PathBuf, String>,
}

/// Sources that are not ours.
const THIRD_PARTY: &str = "third_party/russh/";

impl Repository {
    fn read() -> Result<Self> {
        let root = paths::repository();
        let metadata =
            MetadataCommand::new().current_dir(root).no_deps().exec().context("cannot run cargo metadata")?;
        let mut list = Command::new("git");
        list.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let mut repository = Self { metadata, sizes: BTreeMap::new(), texts: BTreeMap::new() };
        let listed = run::output(&mut list)?;
        // What others wrote has the form that they gave it.
        for name in listed.split('\0').filter(|name| !name.is_empty() && !name.starts_with(THIRD_PARTY)) {
            // A file that was deleted and not yet committed is still listed.
            let Ok(bytes) = fs::read(root.join(name)) else { continue };
            repository.sizes.insert(name.into(), bytes.len() as u64);
            if let Ok(text) = String::from_utf8(bytes) {
                repository.texts.insert(name.into(), text);
            }
        }
        Ok(repository)
    }

    /// Rust sources with their names.
    fn sources(&self) -> impl Iterator<Item = (&PathBuf, &String)> {
        self.texts.iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"))
    }
}

type Rule = fn(&Repository) -> Vec<String>;

const RULES: [(&str, Rule); 10] = [
    ("crates use only the crates that ARCHITECTURE.md lets them", edges::internal),
    ("crates know nothing that is not theirs to know", edges::external),
    ("crates take lints and licence from the workspace", edges::manifests),
    ("files are short", files::lengths),
    ("modules say what they are", files::module_docs),
    ("nothing is left to do", files::unfinished),
    ("no test is switched off", files::ignored_tests),
    ("no path of somebody's machine", files::machine_paths),
    ("no large files", files::large),
    ("the README shows both commands", files::readme),
];

/// Applies every rule and shows all complaints.
pub(crate) fn run() -> Result<()> {
    let repository = Repository::read()?;
    let mut count = 0;
    for (rule, complaints) in RULES.map(|(rule, apply)| (rule, apply(&repository))) {
        run::say(&format!("  {rule}: {}", if complaints.is_empty() { "ok" } else { "FAILED" }));
        for complaint in &complaints {
            run::say(&format!("    {complaint}"));
        }
        count += complaints.len();
    }
    if count > 0 {
        bail!("{count} complaints");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of just these texts.
    pub(super) fn of_texts(texts: &[(&str, &str)]) -> Repository {
        let mut repository = Repository::read().unwrap();
        repository.texts = texts.iter().map(|(path, text)| (path.into(), (*text).to_owned())).collect();
        repository.sizes = texts.iter().map(|(path, text)| (path.into(), text.len() as u64)).collect();
        repository
    }

    #[test]
    fn the_repository_is_tidy() {
        let repository = Repository::read().unwrap();
        let complaints: Vec<String> = RULES.iter().flat_map(|(_, rule)| rule(&repository)).collect();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}
