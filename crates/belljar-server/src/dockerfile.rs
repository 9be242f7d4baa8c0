//! A Dockerfile, as far as the server looks into it before anything is started: whether it is one, which images it builds
//! on, which stages it has. The builder reads it again, and it alone decides what it means.
//!
//! Pure. Called by [`crate::app::build`].

use std::collections::{BTreeMap, BTreeSet};

use parse_dockerfile::{Flag, Instruction, parse, parse_iter};

/// What a Dockerfile says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    /// Images of elsewhere.
    pub(crate) images: BTreeSet<Reference>,
    /// Names of its stages, in small letters.
    pub(crate) stages: Vec<Option<String>>,
}

/// An image that a Dockerfile refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    /// With the `ARG`s put in.
    pub(crate) image: String,
    /// As it is written, which is what `buildah` looks at.
    pub(crate) written: String,
}

/// Why there is no building it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DockerfileError {
    /// It is none.
    #[error("{path}:{line}:{column}: {words}")]
    Syntax {
        /// Where it lies in the context.
        path: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        words: String,
    },
    /// There is no such stage.
    #[error("target: {path} has no stage {target:?}; it has {stages}")]
    Target {
        /// Where it lies in the context.
        path: String,
        /// What was asked for.
        target: String,
        /// What there is.
        stages: String,
    },
}

/// Reads a Dockerfile that lies at `path`.
pub(crate) fn read(
    path: &str,
    text: &str,
    build_args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Result<Dockerfile, DockerfileError> {
    let parsed = parse(text).map_err(|error| {
        let (line, column) = place(text, &error);
        DockerfileError::Syntax { path: path.to_owned(), line, column, words: format!("{error:#}") }
    })?;
    let mut found = Dockerfile::default();
    let mut args: BTreeMap<String, String> = BTreeMap::new();
    for instruction in &parsed.instructions {
        match instruction {
            // Only those before the first stage count for `FROM`.
            Instruction::Arg(arg) if found.stages.is_empty() => declare(&mut args, &arg.arguments.value, build_args),
            Instruction::From(from) => {
                let image = expand(&from.image.value, &args);
                found.refers(&from.image.value, &image);
                let name = from.as_.as_ref().map(|(_, name)| name.value.to_lowercase());
                found.stages.push(name);
            }
            Instruction::Copy(copy) => found.flags(&copy.options),
            Instruction::Add(add) => found.flags(&add.options),
            Instruction::Run(run) => found.flags(&run.options),
            _ => {}
        }
    }
    match target {
        Some(target) if !found.has_stage(target) => {
            let named: Vec<&str> = found.stages.iter().flatten().map(String::as_str).collect();
            let stages = if named.is_empty() { "none with a name".to_owned() } else { named.join(", ") };
            Err(DockerfileError::Target { path: path.to_owned(), target: target.to_owned(), stages })
        }
        _ => Ok(found),
    }
}

impl Dockerfile {
    fn has_stage(&self, name: &str) -> bool {
        let is_number = name.parse::<usize>().is_ok_and(|number| number < self.stages.len());
        is_number || self.stages.iter().flatten().any(|stage| *stage == name.to_lowercase())
    }

    /// Notes an image, unless it is a stage before this one, or nothing at all.
    fn refers(&mut self, written: &str, image: &str) {
        if !image.is_empty() && image != "scratch" && !self.has_stage(image) {
            self.images.insert(Reference { image: image.to_owned(), written: written.to_owned() });
        }
    }

    /// `--from=IMAGE`, and `--mount=…,from=IMAGE,…`.
    fn flags(&mut self, flags: &[Flag<'_>]) {
        for flag in flags {
            let value = flag.value.as_ref().map(|value| &*value.value).unwrap_or_default();
            match &*flag.name.value {
                "from" => self.refers(value, value),
                "mount" => {
                    let from = value.split(',').find_map(|part| part.trim().strip_prefix("from="));
                    let from = from.unwrap_or_default();
                    self.refers(from, from);
                }
                _ => {}
            }
        }
    }
}

/// Line and column of an error. The parser's column is right in a first line only, so the rest is parsed from there; where
/// that goes another way (a continued instruction), it is where the line begins.
fn place(text: &str, error: &parse_dockerfile::Error) -> (usize, usize) {
    let line = error.line().max(1);
    let rest = text.split_inclusive('\n').skip(line - 1).collect::<String>();
    let again = match parse_iter(&rest) {
        Ok(instructions) => instructions.into_iter().find_map(Result::err),
        Err(error) => Some(error),
    };
    let same = again.filter(|again| again.line() == 1 && format!("{again:#}") == format!("{error:#}"));
    let begin = || rest.bytes().take_while(u8::is_ascii_whitespace).count() + 1;
    (line, same.map_or_else(begin, |again| again.column()))
}

/// `NAME`, `NAME=VALUE`, or several of them. A value of the request wins.
fn declare(args: &mut BTreeMap<String, String>, words: &str, build_args: &BTreeMap<String, String>) {
    for word in words.split_whitespace() {
        let (name, default) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let value = build_args.get(name).cloned().or_else(|| {
            let unquoted = default?.trim_matches(|c| c == '"' || c == '\'');
            Some(expand(unquoted, args))
        });
        if let Some(value) = value {
            args.insert(name.to_owned(), value);
        }
    }
}

/// Puts in `$NAME`, `${NAME}`, `${NAME:-DEFAULT}` and `${NAME:+OTHER}`.
fn expand(text: &str, args: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let value = |name: &str| args.get(name).map(String::as_str).unwrap_or_default();
        if let Some((inner, after)) = after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            if let Some((name, default)) = inner.split_once(":-") {
                let found = value(name);
                out.push_str(if found.is_empty() { default } else { found });
            } else if let Some((name, other)) = inner.split_once(":+") {
                out.push_str(if value(name).is_empty() { "" } else { other });
            } else {
                out.push_str(value(inner));
            }
            rest = after;
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            if name.is_empty() {
                out.push('$')
            } else {
                out.push_str(value(name))
            }
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "dockerfile_test.rs"]
mod tests;
