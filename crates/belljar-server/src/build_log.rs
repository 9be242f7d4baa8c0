//! What the builder of a Dockerfile says, and why it failed, in words for whoever wrote the Dockerfile.
//!
//! Pure. Fed line by line by [`crate::app::build`].

use std::collections::VecDeque;

use crate::limits::BUILDER_PIDS_MAX;

/// Lines kept of the end of the output.
const TAIL: usize = 20;
/// Characters kept of a line.
const KEPT: usize = 1000;
/// Characters of a step, or of a line, in a message.
const SHOWN: usize = 400;

/// How large the builder was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// MiB of memory.
    pub(crate) memory_mb: u64,
    /// MiB of its disk.
    pub(crate) disk_mb: u64,
}

/// What the builder says when a program in it was killed for want of memory.
const OUT_OF_MEMORY: &str = "out of memory: the kernel has killed";

/// What is kept of the output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BuildLog {
    step: Option<Step>,
    tail: VecDeque<String>,
}

/// A step that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// `4/9`, with the stage in front where there are several.
    number: String,
    /// The instruction.
    instruction: String,
}

impl BuildLog {
    /// Takes a line.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(step) = step(line) {
            self.step = Some(step);
        }
        self.tail.push_back(line.chars().take(KEPT).collect());
        if self.tail.len() > TAIL {
            self.tail.pop_front();
        }
    }

    /// Why it failed, with this exit code unless a signal ended it.
    pub(crate) fn failure(&self, exit_code: Option<i32>, size: Size) -> String {
        let why = self.why(exit_code, size);
        match &self.step {
            Some(Step { number, instruction }) => format!("step {number} {}: {why}", shown(instruction)),
            None => format!("the build did not begin: {why}"),
        }
    }

    fn why(&self, exit_code: Option<i32>, size: Size) -> String {
        // What is the cause has priority over what follows from it.
        if self.says("no space left on device") || self.says("disk quota exceeded") {
            return format!("disk full, {} MiB builder; use --disk", size.disk_mb);
        }
        if self.says(OUT_OF_MEMORY) {
            return format!("out of memory, {} MiB builder; use --memory", size.memory_mb);
        }
        if self.tail.iter().any(|line| cannot_fork(&line.to_lowercase())) {
            return format!("too many processes, at most {BUILDER_PIDS_MAX} may run in a builder");
        }
        let error = self.tail.iter().rev().find_map(|line| line.strip_prefix("Error: "));
        match error {
            // The instruction stands in front of it already.
            Some(error) if error.starts_with("building at STEP ") => {
                let why = error.rsplit_once("\": ").map_or(error, |(_, why)| why);
                self.with_last_words(why.strip_prefix("while running runtime: ").unwrap_or(why))
            }
            Some(error) => hinted(error),
            None => match exit_code {
                Some(code) => self.with_last_words(&format!("the builder ended with exit code {code}")),
                None => "the builder was killed".to_owned(),
            },
        }
    }

    fn says(&self, words: &str) -> bool {
        self.tail.iter().any(|line| line.to_lowercase().contains(words))
    }

    /// What the step itself wrote last.
    fn with_last_words(&self, why: &str) -> String {
        let is_ours = |line: &&String| line.starts_with("Error: ") || line.is_empty() || step(line).is_some();
        match self.tail.iter().rev().find(|line| !is_ours(line)) {
            Some(last) if !last.starts_with("--> ") => format!("{why}; it wrote last: {}", shown(last)),
            _ => why.to_owned(),
        }
    }
}

/// Whether a program says that it could not start another one: with the same words others speak of something else.
fn cannot_fork(line: &str) -> bool {
    line.contains("fork") && line.contains("resource temporarily unavailable")
}

/// An error of a base image, with what to do about it.
fn hinted(error: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
    let hint = if has(&["no such host", "server misbehaving"]) {
        "; no image of this server has that name, and the registry's own name cannot be resolved: check both"
    } else if has(&["connection refused", "i/o timeout", "no route to host", "network is unreachable", "EOF"]) {
        "; the registry does not answer: try again, or import the image and build on that"
    } else if has(&["manifest unknown", "not found", "name unknown"]) {
        "; there is no such image: check name and tag"
    } else if has(&["unauthorized", "denied", "authentication required"]) {
        "; the registry refuses: check the name, or give credentials for it"
    } else {
        ""
    };
    format!("{}{hint}", shown(error))
}

/// `[ 1.2 s] [2/3] STEP 4/9: RUN make`
fn step(line: &str) -> Option<Step> {
    let line = line.strip_prefix('[').and_then(|rest| rest.split_once(" s] ")).map_or(line, |(_, rest)| rest);
    let (stage, rest) = match line.strip_prefix('[').and_then(|rest| rest.split_once("] STEP ")) {
        Some((stage, rest)) => (Some(stage), rest),
        None => (None, line.strip_prefix("STEP ")?),
    };
    let (number, instruction) = rest.split_once(": ")?;
    let number = stage.map_or_else(|| number.to_owned(), |stage| format!("{number} of stage {stage}"));
    Some(Step { number, instruction: instruction.to_owned() })
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: Size = Size { memory_mb: 4096, disk_mb: 20480 };

    #[track_caller]
    fn check(log: &str, exit_code: Option<i32>, expect: &str) {
        let mut kept = BuildLog::default();
        log.lines().for_each(|line| kept.line(line));
        assert_eq!(kept.failure(exit_code, SIZE), expect);
    }

    #[test]
    fn a_failure_names_its_step_and_its_reason() {
        let failed = "[   0.1 s] STEP 1/3: FROM x\n[   3.0 s] STEP 2/3: RUN make \"a: b\"\ncc: no\n\
                      Error: building at STEP \"RUN make \"a: b\"\": while running runtime: exit status 2";
        check(failed, Some(2), "step 2/3 RUN make \"a: b\": exit status 2; it wrote last: cc: no");
        let killed = "[   0.1 s] [2/3] STEP 4/9: RUN big\nKilled\n\
                      Error: building at STEP \"RUN big\": while running runtime: exit status 137";
        let killed = format!("{killed}\n[  99.5 s] out of memory: the kernel has killed a program");
        check(&killed, Some(137), "step 4/9 of stage 2/3 RUN big: out of memory, 4096 MiB builder; use --memory");
        let full = "STEP 2/2: RUN fill\ndd: error writing '/x': No space left on device\nError: building at STEP …";
        check(full, Some(1), "step 2/2 RUN fill: disk full, 20480 MiB builder; use --disk");
        let forks = "too many processes, at most 2048 may run in a builder";
        for last in
            ["sh: can't fork: Resource temporarily unavailable", "fork/exec /x: resource temporarily unavailable"]
        {
            check(
                &format!("STEP 2/2: RUN bomb\n{last}\nError: building"),
                Some(1),
                &format!("step 2/2 RUN bomb: {forks}"),
            );
        }
        check(
            "STEP 1/1: FROM r.invalid/x\nError: creating build container: dial tcp: lookup r.invalid: no such host",
            Some(125),
            "step 1/1 FROM r.invalid/x: creating build container: dial tcp: lookup r.invalid: no such host; no image of \
             this server has that name, and the registry's own name cannot be resolved: check both",
        );
        check("", Some(1), "the build did not begin: the builder ended with exit code 1");
        check("", None, "the build did not begin: the builder was killed");
        check(
            "STEP 1/2: RUN false\nError: building at STEP \"RUN false\": while running runtime: exit status 1",
            Some(1),
            "step 1/2 RUN false: exit status 1",
        );
    }

    proptest! {
        #[test]
        fn any_output_is_explained_within_bounds(lines in prop::collection::vec("(Error: |STEP |\\[1/2\\] |: |\"|x|ü| s\\] |\\[){0,200}", 0..40)) {
            let mut log = BuildLog::default();
            lines.iter().for_each(|line| log.line(line));
            prop_assert!(log.failure(Some(1), SIZE).chars().count() < 2600);
            prop_assert!(log.tail.len() <= TAIL);
        }
    }
}
