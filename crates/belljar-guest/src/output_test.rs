use proptest::prelude::*;

use super::*;

fn split(chunks: &[&[u8]]) -> Vec<String> {
    let mut splitter = LineSplitter::default();
    let mut lines = Vec::new();
    for chunk in chunks {
        splitter.feed(chunk, |line| lines.push(line.to_string()));
    }
    splitter.finish(|line| lines.push(line.to_string()));
    lines
}

#[track_caller]
fn check(chunks: &[&str], expected: &[&str]) {
    let chunks: Vec<_> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
    assert_eq!(split(&chunks), expected);
}

#[test]
fn lines_are_cut_at_newlines_only() {
    check(&["a\nb\n"], &["a", "b"]);
    check(&["a\nb"], &["a", "b"]);
    check(&["a", "b\n", "\n", "c"], &["ab", "", "c"]);
    check(&["a\r\nb\rc\n"], &["a\r", "b\rc"]);
    check(&[""], &[]);
    assert_eq!(split(&[b"\xff\xfe\n"]), ["\u{fffd}\u{fffd}"]);
}

#[test]
fn a_line_that_is_too_long_is_split() {
    let long = "x".repeat(LINE_BYTES_MAX + 3);
    let lines = split(&[long.as_bytes(), b"\nend\n"]);
    assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, 3, 3]);
    let full = "x".repeat(LINE_BYTES_MAX);
    assert_eq!(split(&[full.as_bytes(), b"\nend\n"]).len(), 2);
    assert_eq!(split(&[full.as_bytes(), b"\n\n"]).len(), 2);
}

proptest! {
    #[test]
    fn chunks_do_not_change_the_lines(text in "[a\n]{0,64}", cuts in proptest::collection::vec(0usize..64, 0..8)) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.sort_unstable();
        let mut chunks = Vec::new();
        let mut from = 0;
        for cut in cuts {
            chunks.push(&text.as_bytes()[from..cut]);
            from = cut;
        }
        chunks.push(&text.as_bytes()[from..]);
        prop_assert_eq!(split(&chunks), text.lines().map(str::to_owned).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_slow_follower_misses_lines_and_memory_stays_bounded() {
    let budget = Arc::new(Budget::default());
    let output = Arc::new(Output::new(Arc::clone(&budget)));
    let line: Arc<str> = Arc::from("y".repeat(1024));
    let mut follower = output.follow(None, 0);
    for _ in 0..20_000 {
        output.push(OutputStream::Stdout, Arc::clone(&line));
    }
    output.set_finished(true);
    assert!(budget.0.load(Ordering::Relaxed) <= OUTPUT_BYTES_MAX);
    let (kept, dropped) = output.snapshot(None);
    assert_eq!(kept.len() as u64 + dropped, 20_000);
    let mut seen = Vec::new();
    while let Some(lines) = follower.next(100_000).await {
        seen.extend(lines.into_iter().map(|line| line.offset));
    }
    assert_eq!(seen, (dropped..20_000).collect::<Vec<_>>());
    drop((follower, output));
    assert_eq!(budget.0.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_follower_of_one_pipe_ends_although_the_other_had_the_last_line() {
    let output = Arc::new(Output::new(Arc::default()));
    output.push(OutputStream::Stdout, Arc::from("out"));
    output.push(OutputStream::Stderr, Arc::from("err"));
    output.set_finished(true);
    let mut follower = output.follow(Some(OutputStream::Stdout), 0);
    assert_eq!(follower.next(1000).await.map(|lines| lines.len()), Some(1));
    assert!(follower.next(1000).await.is_none());
    assert!(output.follow(None, 99).next(1000).await.is_none());
}
