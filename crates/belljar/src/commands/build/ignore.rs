//! `.dockerignore`: which files of a context are not sent.
//!
//! Rules as Docker has them: one pattern a line, relative to the context; `*`, `?`, `[…]` within a name, `**` for any number
//! of directories; what matches a directory matches all below; `!` takes back; the last rule that matches decides. The
//! builder applies the file once more, so a file that is sent for nothing does no harm, and one that is missing does.

use std::path::Path;

/// The rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    takes_back: bool,
    parts: Vec<String>,
}

impl Ignore {
    pub(super) fn parse(text: &str) -> Self {
        let rule = |line: &str| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (takes_back, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let parts = pattern.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned);
            let parts: Vec<String> = parts.collect();
            (!parts.is_empty() && !parts.iter().any(|part| part == "..")).then_some(Rule { takes_back, parts })
        };
        Self { rules: text.trim_start_matches('\u{feff}').lines().filter_map(rule).collect() }
    }

    /// Whether a path need not be sent. A directory is looked into where something below it may have been taken back.
    pub(super) fn excludes(&self, path: &Path, is_directory: bool) -> bool {
        self.hides(path) && !(is_directory && self.rules.iter().any(|rule| rule.takes_back))
    }

    /// Whether the rules are against a path.
    pub(super) fn hides(&self, path: &Path) -> bool {
        let names: Vec<String> =
            path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        let matches = |rule: &&Rule| (1..=names.len()).any(|count| is_match(&rule.parts, &names[..count]));
        self.rules.iter().rev().find(matches).is_some_and(|rule| !rule.takes_back)
    }
}

/// Whether a pattern is a path, part by part.
fn is_match(pattern: &[String], names: &[String]) -> bool {
    match (pattern.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            is_match(rest, names) || names.split_first().is_some_and(|(_, below)| is_match(pattern, below))
        }
        (Some((first, rest)), Some((name, below))) => {
            is_name(&first.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>()) && is_match(rest, below)
        }
        _ => false,
    }
}

/// Whether a part of a pattern is a name.
fn is_name(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (['*', rest @ ..], _) => {
            is_name(rest, name) || name.split_first().is_some_and(|(_, tail)| is_name(pattern, tail))
        }
        (['?', rest @ ..], [_, tail @ ..]) => is_name(rest, tail),
        (['[', rest @ ..], [first, tail @ ..]) => match rest.iter().position(|c| *c == ']') {
            Some(end) => is_in(&rest[..end], *first) && is_name(&rest[end + 1..], tail),
            None => false,
        },
        (['\\', escaped, rest @ ..], [first, tail @ ..]) => escaped == first && is_name(rest, tail),
        ([own, rest @ ..], [first, tail @ ..]) => own == first && is_name(rest, tail),
        _ => false,
    }
}

/// Whether a class has a character: `a-z_`, or `^a-z` for all others.
fn is_in(class: &[char], c: char) -> bool {
    let (negated, class) = match class {
        ['^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let (mut found, mut rest) = (false, class);
    loop {
        rest = match rest {
            [from, '-', to, tail @ ..] => {
                found |= (*from..=*to).contains(&c);
                tail
            }
            [one, tail @ ..] => {
                found |= *one == c;
                tail
            }
            [] => return found != negated,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Which of these paths, separated by blanks, are sent.
    #[track_caller]
    fn check(rules: &str, paths: &str, sent: &str) {
        let ignore = Ignore::parse(rules);
        let kept: Vec<&str> = paths.split(' ').filter(|path| !ignore.hides(Path::new(path))).collect();
        assert_eq!(kept.join(" "), sent, "{rules:?}");
    }

    #[test]
    fn rules_are_dockers() {
        check("# all\n\n", "a b/c", "a b/c");
        check("a\n/b/\n./c", "a a/x b b/x c d/a", "d/a");
        check("*.md\n!README.md", "a.md README.md x/a.md", "README.md x/a.md");
        check("**/*.o\n*/tmp*", "a.o x/y/a.o x/tmp1 x/y/tmp1 tmp", "x/y/tmp1 tmp");
        check("**\n!src\n!a?[0-9x]", "x src src/a/b ab1 abx aby", "src src/a/b ab1 abx");
        check("node_modules\n.git", "node_modules/a/b .git/config src/node_modules", "src/node_modules");
        check("a\\*\n[^a-c]", "a* ab d b", "ab b");
    }

    #[test]
    fn a_directory_is_looked_into_where_something_may_be_taken_back() {
        assert!(Ignore::parse("a").excludes(Path::new("a"), true));
        assert!(!Ignore::parse("a\n!a/b").excludes(Path::new("a"), true));
        assert!(Ignore::parse("a\n!a/b").excludes(Path::new("a/c"), false));
    }

    proptest! {
        #[test]
        fn any_rules_are_read(rules in "([*]{1,2}|[?]|\\[|\\]|\\^|-|\\\\|!|/|\\.|a|ü|\n){0,24}", path in "(a|ü|/){0,12}") {
            let _ = Ignore::parse(&rules).excludes(Path::new(&path), false);
        }
    }
}
