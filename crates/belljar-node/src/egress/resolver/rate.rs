//! A token bucket: so many queries per second over a longer time, so many at once.

use std::time::Instant;

pub(super) struct Rate {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), burst: burst.into(), tokens: burst.into(), at: now }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = now;
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= 1.0;
        }
        some
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(10, 5, start);
        let mut passed = |after_ms: u64, tries: usize| {
            (0..tries).filter(|_| rate.take(start + Duration::from_millis(after_ms))).count()
        };
        assert_eq!(passed(0, 100), 5);
        assert_eq!(passed(1000, 100), 5);
        assert_eq!(passed(1250, 100), 2);
        assert_eq!(passed(100_000, 100), 5);
    }
}
