//! A few threads that work through batches, with the results taken in order.

use std::{sync::mpsc, thread};

use super::VaultError;
use crate::limits::SNAPSHOT_THREADS;

/// Results that one worker may be ahead of whoever takes them: bounds memory.
const AHEAD: usize = 2;

/// Calls a worker (each thread makes its own) for every batch, and `take` with the results in the order of the batches.
/// Stops at the first error.
pub(super) fn in_order<B: Sync, T: Send, W: FnMut(&B) -> Result<T, VaultError>>(
    batches: &[B],
    worker: impl Fn() -> W + Sync,
    mut take: impl FnMut(T) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let threads = SNAPSHOT_THREADS.min(thread::available_parallelism().map_or(1, usize::from));
    if threads < 2 || batches.len() < 2 {
        let mut work = worker();
        return batches.iter().try_for_each(|batch| take(work(batch)?));
    }
    thread::scope(|scope| {
        let results: Vec<_> = (0..threads)
            .map(|number| {
                let (sender, receiver) = mpsc::sync_channel(AHEAD);
                let worker = &worker;
                scope.spawn(move || {
                    let mut work = worker();
                    for batch in batches.iter().skip(number).step_by(threads) {
                        let result = work(batch);
                        let failed = result.is_err();
                        // Nobody listens any more: another batch failed.
                        if sender.send(result).is_err() || failed {
                            return;
                        }
                    }
                });
                receiver
            })
            .collect();
        for number in 0..batches.len() {
            match results[number % threads].recv() {
                Ok(result) => take(result?)?,
                // The thread panicked; the scope passes that on.
                Err(mpsc::RecvError) => break,
            }
        }
        Ok(())
    })
}
