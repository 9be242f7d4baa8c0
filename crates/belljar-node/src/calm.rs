//! Who may work when: a sandbox that somebody waits for has the machine first, what is made ahead for the next one comes after.
//!
//! ```text
//! starting ──(last one started or failed)──> calm: networks and VMs are made ahead
//!    └──(CALM_PATIENCE)─────────────────────> the same, since there may always be somebody
//! ```
//! Called by whoever starts a sandbox, and by the makers of networks and spares.

use tokio::{sync::watch, time::timeout};

use crate::limits::CALM_PATIENCE;

/// How many sandboxes are being started.
#[derive(Debug)]
pub(crate) struct Calm(watch::Sender<usize>);

/// One that is being started, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Starting<'a>(&'a Calm);

impl Default for Calm {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Calm {
    /// Somebody waits for a sandbox from here on.
    pub(crate) fn disturb(&self) -> Starting<'_> {
        self.0.send_modify(|count| *count += 1);
        Starting(self)
    }

    /// Waits until nobody does, but not for ever.
    pub(crate) async fn wait(&self) {
        // The sender lives as long as this.
        let _ = timeout(CALM_PATIENCE, self.0.subscribe().wait_for(|count| *count == 0)).await;
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_made_ahead_waits_for_starts_but_not_for_ever() {
        let second = Duration::from_secs(1);
        let calm = Calm::default();
        let waited = async |calm: &Calm| {
            let begun = Instant::now();
            calm.wait().await;
            begun.elapsed()
        };
        assert_eq!(waited(&calm).await, Duration::ZERO);
        let (first, second_one) = (calm.disturb(), calm.disturb());
        let leave = async {
            drop(first);
            sleep(second).await;
            drop(second_one);
        };
        let (took, ()) = tokio::join!(waited(&calm), leave);
        assert_eq!(took, second);
        let _always = calm.disturb();
        assert_eq!(waited(&calm).await, CALM_PATIENCE);
    }
}
