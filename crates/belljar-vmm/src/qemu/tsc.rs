//! How fast the processor's time stamp counter runs.
//!
//! Under software emulation the guest reads the host's counter, but cannot find out its rate: measuring it against the emulated
//! timer chip fails, and there is nothing else to measure against. A kernel left alone then counts timer interrupts:
//! its clock has steps of 10 ms and, on a busy host, loses one tenth of the time. So it is told.

use std::time::{Duration, Instant};

/// Time between the two looks at the counter. With a look precise to 0.1 us the rate is right to a millionth, which is
/// better than the host's own oscillator.
const BASELINE: Duration = Duration::from_millis(100);

/// How often a look is repeated; the one that was interrupted least counts.
const TRIES: usize = 8;

/// The first look. The rate is known at the second one, when it is needed: nobody waits at start.
#[derive(Debug)]
pub(super) struct Tsc(Option<(Instant, u64)>);

impl Tsc {
    /// Looks at the counter; it is of no use on a processor where its rate changes.
    pub(super) fn new() -> Self {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self(is_steady(&flags).then(look))
    }

    /// Counts per millisecond; `None` where it is of no use.
    pub(super) async fn khz(&self) -> Option<u64> {
        let (begin, first) = self.0?;
        tokio::time::sleep_until((begin + BASELINE).into()).await;
        let (end, last) = look();
        rate(last.checked_sub(first)?, end - begin)
    }
}

fn rate(counts: u64, time: Duration) -> Option<u64> {
    let khz = u128::from(counts) * 1_000_000 / time.as_nanos().max(1);
    // Outside of this it is no processor's, and nothing a kernel should be told.
    u64::try_from(khz).ok().filter(|khz| (100_000..=20_000_000).contains(khz))
}

fn is_steady(cpuinfo: &str) -> bool {
    let Some(flags) = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")) else { return false };
    ["constant_tsc", "nonstop_tsc"].iter().all(|wanted| flags.split_ascii_whitespace().any(|flag| flag == *wanted))
}

fn look() -> (Instant, u64) {
    let mut best: Option<(Duration, (Instant, u64))> = None;
    for _ in 0..TRIES {
        let before = Instant::now();
        let counter = read();
        let took = before.elapsed();
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, (before + took / 2, counter)));
        }
    }
    best.map_or_else(|| (Instant::now(), read()), |(_, look)| look)
}

#[expect(unsafe_code, reason = "reading the counter is a CPU instruction")]
fn read() -> u64 {
    // SAFETY: every x86-64 processor has it, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_steady_counter_is_used() {
        assert!(is_steady("processor : 0\nflags\t\t: fpu constant_tsc nonstop_tsc avx\n"));
        for other in ["", "flags : fpu constant_tsc", "flags : nonstop_tsc", "bugs : constant_tsc nonstop_tsc"] {
            assert!(!is_steady(other), "{other}");
        }
    }

    #[test]
    fn rates() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(2_445_424_000, second), Some(2_445_424));
        assert_eq!(rate(244_542_400, second / 10), Some(2_445_424));
        assert_eq!(rate(0, second), None);
        assert_eq!(rate(u64::MAX, Duration::ZERO), None);
    }

    #[tokio::test]
    async fn two_measurements_agree() {
        let (Some(a), Some(b)) = (Tsc::new().khz().await, Tsc::new().khz().await) else { return };
        assert!(a.abs_diff(b) < a / 1000, "{a} {b}");
    }
}
