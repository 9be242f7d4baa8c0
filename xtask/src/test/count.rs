//! Reads how many tests passed and failed from what test runners print. Pure.

/// Tests of a tier, and what to look at when some failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Names of failed tests, and where their output is.
    pub(crate) reasons: Vec<String>,
}

impl Count {
    /// One failure that is not a test's.
    pub(crate) fn failed(reason: String) -> Self {
        Self { passed: 0, failed: 1, reasons: vec![reason] }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.reasons.extend(other.reasons);
    }
}

/// Characters of what a failed test said in the summary; its log has the rest.
const SAID_CHARS: usize = 300;

/// Sums up a log of `cargo nextest run` or `cargo test`.
pub(crate) fn of_log(log: &str) -> Count {
    // What nextest shows of a failed test is the output of libtest, which has its own count of it.
    let by_nextest = log.lines().any(|line| nextest(line.trim()).is_some());
    let mut count = Count::default();
    let mut reasons = Vec::new();
    for line in log.lines().map(str::trim) {
        if let Some((ran, passed)) = nextest(line) {
            count.passed += passed;
            count.failed += ran.saturating_sub(passed);
        } else if let Some((passed, failed)) = libtest(line).filter(|_| !by_nextest) {
            count.passed += passed;
            count.failed += failed;
        } else if let Some(name) = by_nextest.then(|| failed_name(line)).flatten() {
            reasons.push(format!("failed: {name}"));
        }
    }
    if !by_nextest && count.failed > 0 {
        reasons.extend(libtest_failures(log).map(|name| format!("failed: {name}")));
        reasons.extend(panics(log));
    }
    for reason in reasons {
        // Runners name a failed test again at the end.
        if !count.reasons.contains(&reason) {
            count.reasons.push(reason);
        }
    }
    count
}

/// `Summary [   1.063s] 29 tests run: 27 passed (1 slow), 2 failed, 0 skipped`; `5/29 tests run` when it was stopped.
fn nextest(line: &str) -> Option<(usize, usize)> {
    let (_, rest) = line.strip_prefix("Summary [")?.split_once("] ")?;
    let (ran, rest) = rest.split_once(' ')?;
    let ran = ran.split('/').next()?.parse().ok()?;
    let (_, results) = rest.split_once("run: ")?;
    let number = results.split(", ").find(|part| part.contains(" passed"))?.split(' ').next()?;
    Some((ran, number.parse().ok()?))
}

/// `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`
fn libtest(line: &str) -> Option<(usize, usize)> {
    let (_, results) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| results.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some((number("passed")?, number("failed")?))
}

/// `FAIL [   0.005s] ( 1/29) crate module::test`
fn failed_name(line: &str) -> Option<&str> {
    for verdict in ["FAIL [", "TIMEOUT [", "SIGABRT [", "SIGSEGV ["] {
        if let Some(rest) = line.strip_prefix(verdict) {
            let (_, name) = rest.split_once(']')?;
            return Some(name.rsplit_once(") ").map_or(name, |(_, name)| name).trim());
        }
    }
    None
}

/// The indented names below `failures:`. A line of its own for each test says nothing, where what tests print stands in it.
fn libtest_failures(log: &str) -> impl Iterator<Item = &str> {
    let lists = log.split("\nfailures:\n").skip(1);
    let names = lists.flat_map(|list| list.lines().take_while(|line| line.starts_with("    ")));
    names.map(str::trim)
}

/// `thread 'module::test' (73) panicked at file.rs:109:9:` and what it said, which is the next line.
fn panics(log: &str) -> impl Iterator<Item = String> {
    let lines = log.lines().zip(log.lines().skip(1));
    lines.filter_map(|(line, said)| {
        let (_, place) = line.strip_prefix("thread '")?.split_once("panicked at ")?;
        Some(format!("{place} {}", said.chars().take(SAID_CHARS).collect::<String>()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(log: &str, passed: usize, failed: usize, reasons: &[&str]) {
        let reasons = reasons.iter().map(|&reason| reason.to_owned()).collect();
        assert_eq!(of_log(log), Count { passed, failed, reasons }, "{log}");
    }

    #[test]
    fn nextest_logs() {
        check("     Summary [   1.063s] 29 tests run: 29 passed, 0 skipped", 29, 0, &[]);
        check("Summary [   0.1s] 1 test run: 1 passed (1 slow), 3 skipped", 1, 0, &[]);
        check("Summary [ 9s] 29 tests run: 25 passed (1 slow, 1 leaky), 2 failed, 2 timed out, 0 skipped", 25, 4, &[]);
        check("Summary [ 9s] 5/29 tests run: 4 passed, 1 failed, 0 skipped", 4, 1, &[]);
        check(
            "  FAIL [   0.005s] ( 1/29) belljar-image a::b\n TIMEOUT [ 60.0s] belljar-vm c\nSummary [ 1s] 2 tests run: 0 passed, 1 failed, 1 timed out, 0 skipped\n  FAIL [   0.005s] ( 1/29) belljar-image a::b",
            0,
            2,
            &["failed: belljar-image a::b", "failed: belljar-vm c"],
        );
        check(
            "  FAIL [   0.005s] (1/2) belljar-image a::b\n    test a::b ... FAILED\n    test result: FAILED. 0 passed; 1 failed; 0 ignored\nSummary [ 1s] 2 tests run: 1 passed, 1 failed, 0 skipped",
            1,
            1,
            &["failed: belljar-image a::b"],
        );
    }

    #[test]
    fn libtest_logs() {
        check(
            "test a::b ... it prints\nFAILED\ntest c ... ok\n\nthread 'a::b' (7) panicked at b.rs:1:2:\nno\nstack\n\nfailures:\n\nfailures:\n    a::b\n\ntest result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\ntest result: ok. 2 passed; 0 failed; 0 ignored",
            5,
            1,
            &["failed: a::b", "b.rs:1:2: no"],
        );
        check("error: could not compile", 0, 0, &[]);
    }
}
