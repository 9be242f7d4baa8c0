//! One thread that owns a connection and does jobs from a bounded queue.
//!
//! The writer takes every job that is queued into one transaction, so that they share its fsync; each job has its own
//! savepoint, so that one that fails takes nothing with it. Nobody gets an answer before the commit, and nobody gets
//! a good one when the commit failed.

use std::{collections::VecDeque, thread::JoinHandle};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::super::{Committed, Observer, StoreError};
use crate::limits::{STORE_BATCH, STORE_QUEUE};

/// Sends the answer, once it is known whether the transaction holds.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Does the work inside the transaction; without one it passes the error on.
type Job = Box<dyn FnOnce(Result<(&Connection, &mut Vec<Committed>), StoreError>) -> Finish + Send>;

/// What a worker's jobs may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Change the database.
    Write,
    /// Only look.
    Read,
}

/// Handle of the thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    mode: Mode,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(mode: Mode, connection: Connection, observer: Observer) -> std::io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(STORE_QUEUE);
        let name = match mode {
            Mode::Write => "store-write",
            Mode::Read => "store-read",
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(first) = queue.blocking_recv() {
                let mut batch = VecDeque::from([first]);
                while batch.len() < STORE_BATCH
                    && let Ok(job) = queue.try_recv()
                {
                    batch.push_back(job);
                }
                while !batch.is_empty() {
                    match mode {
                        Mode::Write => write(&connection, &mut batch, &observer),
                        Mode::Read => read(&connection, &mut batch),
                    }
                }
            }
        })?;
        Ok(Self { mode, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does one job and returns its answer.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &mut Vec<Committed>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mode = self.mode;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |place| {
            let result = place.and_then(|(connection, changes)| match mode {
                Mode::Write => in_savepoint(connection, changes, work),
                Mode::Read => work(connection, changes),
            });
            Box::new(move |committed| {
                let answered = result.and_then(|value| committed.map(|()| value));
                // The caller may have gone away; the work is done all the same.
                let _ = answer.send(answered);
            })
        });
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Worker {
    /// Waits for the thread: when a store is gone, its file is closed.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Does one job so that its failure undoes it and nothing else.
fn in_savepoint<T>(
    connection: &Connection,
    changes: &mut Vec<Committed>,
    work: impl FnOnce(&Connection, &mut Vec<Committed>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mark = changes.len();
    connection.execute_batch("SAVEPOINT job")?;
    let result = work(connection, changes);
    let closed = match &result {
        Ok(_) => connection.execute_batch("RELEASE job"),
        Err(_) => connection.execute_batch("ROLLBACK TO job; RELEASE job"),
    };
    let result = result.and_then(|value| closed.map(|()| value).map_err(StoreError::from));
    if result.is_err() {
        changes.truncate(mark);
    }
    result
}

/// Does the queued jobs in one transaction; leaves those in the queue that came after a failure that undid it.
fn write(connection: &Connection, batch: &mut VecDeque<Job>, observer: &Observer) {
    let mut changes = Vec::new();
    let mut finishes = Vec::new();
    let mut outcome = connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from);
    while let Some(job) = batch.pop_front() {
        if let Err(error) = &outcome {
            finishes.push(job(Err(error.clone())));
            continue;
        }
        finishes.push(job(Ok((connection, &mut changes))));
        // A full disk or an I/O error can undo the whole transaction, and with it the jobs before this one.
        if connection.is_autocommit() {
            outcome = Err(StoreError::Failed("the transaction was rolled back by a failure in the same batch".into()));
            break;
        }
    }
    if outcome.is_ok() {
        outcome = connection.execute_batch("COMMIT").map_err(StoreError::from);
    }
    match &outcome {
        Ok(()) => changes.into_iter().for_each(|change| observer(change)),
        Err(_) if !connection.is_autocommit() => {
            if let Err(error) = connection.execute_batch("ROLLBACK") {
                tracing::error!(%error, "cannot roll back a transaction");
            }
        }
        Err(_) => {}
    }
    for finish in finishes {
        finish(outcome.clone());
    }
}

/// Does the queued jobs, each for itself.
fn read(connection: &Connection, batch: &mut VecDeque<Job>) {
    while let Some(job) = batch.pop_front() {
        job(Ok((connection, &mut Vec::new())))(Ok(()));
    }
}
