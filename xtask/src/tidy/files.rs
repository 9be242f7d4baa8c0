//! What is in the files of the repository.

use std::path::Path;

use super::Repository;

/// Lines that a source file may have. Most have less than 500.
const MAX_LINES: usize = 700;
/// Bytes of any file. A larger one is made by a program, and belongs in a cache.
const MAX_BYTES: u64 = 1 << 20;
/// Sources that are longer, with the reason why they cannot be divided. May only shrink.
const LONG: [(&str, &str); 0] = [];
/// Files that may name paths of a machine. May only shrink.
const WITH_MACHINE_PATHS: [(&str, &str); 0] = [];

/// Source files are short enough to be read.
pub(super) fn lengths(repository: &Repository) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in repository.sources() {
        let lines = text.lines().count();
        let excepted = LONG.iter().any(|(name, _)| Path::new(name) == path);
        if lines > MAX_LINES && !excepted {
            complaints.push(format!("{} has {lines} lines, more than {MAX_LINES}; divide it", path.display()));
        }
        if lines <= MAX_LINES && excepted {
            complaints.push(format!("{} is short now: remove it from the list of long files", path.display()));
        }
    }
    gone(repository, &LONG, &mut complaints);
    complaints
}

/// Every module begins with a sentence on what it is; tests beside a module need none.
pub(super) fn module_docs(repository: &Repository) -> Vec<String> {
    let module = |path: &Path| {
        let test = path.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("_test"));
        !test && path.components().any(|part| part.as_os_str() == "src")
    };
    let undocumented = repository.sources().filter(|(path, text)| module(path) && !text.starts_with("//! "));
    undocumented.map(|(path, _)| format!("{} does not begin with `//! `", path.display())).collect()
}

/// No marks of work put off. Each is spelled in two parts, so that this file does not complain of itself.
pub(super) fn unfinished(repository: &Repository) -> Vec<String> {
    let macros = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut complaints = find(repository, &macros, true);
    complaints.extend(find(repository, &marks, false));
    complaints
}

/// A test that does not run is no test; slow ones are chosen by tier.
pub(super) fn ignored_tests(repository: &Repository) -> Vec<String> {
    find(repository, &[concat!("#[ign", "ore"), concat!("@pytest.mark.sk", "ip")], false)
}

/// Nothing depends on where somebody works.
pub(super) fn machine_paths(repository: &Repository) -> Vec<String> {
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/."), concat!("/home/", "user")];
    let excepted = |complaint: &str| WITH_MACHINE_PATHS.iter().any(|(name, _)| complaint.starts_with(name));
    let mut complaints = find(repository, &paths, false);
    let needed: Vec<_> =
        WITH_MACHINE_PATHS.iter().filter(|(name, _)| complaints.iter().any(|it| it.starts_with(name))).collect();
    let stale: Vec<String> = WITH_MACHINE_PATHS
        .iter()
        .filter(|entry| !needed.contains(entry))
        .map(|(name, _)| format!("{name} names no machine's path now: remove it from the list"))
        .collect();
    complaints.retain(|complaint| !excepted(complaint));
    complaints.extend(stale);
    complaints
}

/// What is under version control stays small.
pub(super) fn large(repository: &Repository) -> Vec<String> {
    let large = repository.sizes.iter().filter(|(_, size)| **size > MAX_BYTES);
    large.map(|(path, size)| format!("{} has {size} bytes, more than {MAX_BYTES}", path.display())).collect()
}

/// What a newcomer and CI run.
pub(super) fn readme(repository: &Repository) -> Vec<String> {
    let text = repository.texts.get(Path::new("README.md")).map_or("", String::as_str);
    let commands = ["cargo xtask quickstart", "cargo xtask test"];
    let absent = commands.iter().filter(|command| !text.contains(*command));
    absent.map(|command| format!("README.md does not show `{command}`")).collect()
}

/// Complaints about each line that has one of `patterns`; in Rust sources only, or in all texts.
fn find(repository: &Repository, patterns: &[&str], rust_only: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in &repository.texts {
        let rust = path.extension().is_some_and(|extension| extension == "rs");
        if rust_only && !rust || path.file_name().is_some_and(|name| name == "Cargo.lock") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            if let Some(pattern) = patterns.iter().find(|pattern| line.contains(**pattern)) {
                complaints.push(format!("{}:{}: `{pattern}`", path.display(), index + 1));
            }
        }
    }
    complaints
}

/// Exceptions for files that do not exist any more.
fn gone(repository: &Repository, exceptions: &[(&str, &str)], complaints: &mut Vec<String>) {
    for (name, _) in exceptions.iter().filter(|(name, _)| !repository.texts.contains_key(Path::new(name))) {
        complaints.push(format!("{name} is in a list of exceptions and does not exist"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Rule, tests::of_texts};

    fn check(rule: Rule, path: &str, text: &str, expect: &[&str]) {
        assert_eq!(rule(&of_texts(&[(path, text)])), expect, "{path}: {text}");
    }

    #[test]
    fn each_rule_finds_its_fault() {
        check(lengths, "a.rs", &"x\n".repeat(700), &[]);
        check(lengths, "a.rs", &"x\n".repeat(701), &["a.rs has 701 lines, more than 700; divide it"]);
        check(module_docs, "crates/a/src/lib.rs", "//! Says.\n", &[]);
        check(module_docs, "crates/a/src/lib_test.rs", "use super::*;", &[]);
        check(module_docs, "crates/a/src/lib.rs", "use x;", &["crates/a/src/lib.rs does not begin with `//! `"]);
        let todo = concat!("x;\ntodo", "!();");
        check(unfinished, "a.rs", todo, &[concat!("a.rs:2: `todo", "!(`")]);
        check(unfinished, "a.md", concat!("TO", "DO: more"), &[concat!("a.md:1: `TO", "DO`")]);
        check(ignored_tests, "a.rs", concat!("#[ign", "ore = \"slow\"]"), &[concat!("a.rs:1: `#[ign", "ore`")]);
        check(machine_paths, "a.sh", concat!("cd /wo", "rk/main"), &[concat!("a.sh:1: `/wo", "rk/`")]);
        check(machine_paths, "a.sh", "cd /workspace", &[]);
        check(large, "a.bin", &"x".repeat(1 << 20), &[]);
        check(large, "a.bin", &"x".repeat((1 << 20) + 1), &["a.bin has 1048577 bytes, more than 1048576"]);
        check(readme, "README.md", "cargo xtask test\ncargo xtask quickstart", &[]);
        check(readme, "README.md", "cargo xtask test", &["README.md does not show `cargo xtask quickstart`"]);
    }
}
