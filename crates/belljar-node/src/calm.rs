//! Who may work when: a sandbox that somebody waits for has the machine first, what is made ahead for the next one comes after.
//!
//! ```text
//! starting ──(last one started or failed)──> busy ──(CALM_AFTER)──> calm: networks and VMs are made ahead
//!    └──(CALM_PATIENCE)────────────────────────────────────────────> the same, since there may always be somebody
//! ```
//! Whoever waited for a sandbox uses it at once, so the machine is theirs a little longer.
//!
//! Called by whoever starts a sandbox, and by the makers of networks and spares.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::limits::{CALM_AFTER, CALM_PATIENCE};

/// How many sandboxes are being started, and when the last start came to its end.
#[derive(Debug, Default)]
pub(crate) struct Calm(watch::Sender<(usize, Option<Instant>)>);

/// One that is being started, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Starting<'a>(&'a Calm);

impl Calm {
    /// Somebody waits for a sandbox from here on.
    pub(crate) fn disturb(&self) -> Starting<'_> {
        self.0.send_modify(|(count, _)| *count += 1);
        Starting(self)
    }

    /// Waits until nobody has for a while, but not for ever.
    pub(crate) async fn wait(&self) {
        let _ = timeout(CALM_PATIENCE, self.come()).await;
    }

    async fn come(&self) {
        let mut starts = self.0.subscribe();
        loop {
            // Without an end there was no start. The sender lives as long as this.
            let Ok(Some(ended)) = starts.wait_for(|(count, _)| *count == 0).await.map(|it| it.1) else { return };
            tokio::select! {
                () = sleep_until(ended + CALM_AFTER) => return,
                _ = starts.changed() => {}
            }
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|(count, ended)| (*count, *ended) = (*count - 1, Some(Instant::now())));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Duration, sleep};

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
        assert_eq!(took, second + CALM_AFTER);
        assert_eq!(waited(&calm).await, Duration::ZERO);
        // One that starts while the last one is used begins it anew.
        drop(calm.disturb());
        let another = async {
            sleep(CALM_AFTER / 2).await;
            drop(calm.disturb());
        };
        let (took, ()) = tokio::join!(waited(&calm), another);
        assert_eq!(took, CALM_AFTER / 2 + CALM_AFTER);
        let _always = calm.disturb();
        assert_eq!(waited(&calm).await, CALM_PATIENCE);
    }
}
