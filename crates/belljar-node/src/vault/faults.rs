//! Faults for tests: the n-th step fails, once or from then on, or the program "stops" there.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::files::Step;

/// What goes wrong, from the step with the given number on (counted from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// That step alone.
    Once(usize),
    /// The disk is full: no later step that takes space works, removing does.
    Full(usize),
    /// Nothing works any more.
    Broken(usize),
}

#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    fault: Option<Fault>,
    steps: usize,
    hit: bool,
    /// Written, not synced: a crash could lose it.
    unsynced: HashSet<PathBuf>,
}

impl Faults {
    /// Counts anew, and fails as told.
    pub(super) fn set(&self, fault: Option<Fault>) {
        *self.0.lock().expect("faults") = Inner { fault, ..Inner::default() };
    }

    /// Whether the fault came to pass.
    pub(super) fn hit(&self) -> bool {
        self.0.lock().expect("faults").hit
    }

    pub(super) fn step(&self, step: Step) -> io::Result<()> {
        let mut inner = self.0.lock().expect("faults");
        inner.steps += 1;
        let fails = match inner.fault {
            None => false,
            Some(Fault::Once(n)) => inner.steps == n,
            Some(Fault::Full(n)) => inner.steps >= n && step == Step::Write,
            Some(Fault::Broken(n)) => inner.steps >= n,
        };
        if fails {
            inner.hit = true;
            return Err(match inner.fault {
                Some(Fault::Full(_)) => io::ErrorKind::StorageFull.into(),
                _ => io::Error::other("injected"),
            });
        }
        Ok(())
    }

    pub(super) fn written(&self, path: &Path) {
        self.0.lock().expect("faults").unsynced.insert(path.to_owned());
    }

    pub(super) fn synced(&self, path: &Path) {
        self.0.lock().expect("faults").unsynced.remove(path);
    }

    /// A file must be on the disk before it gets its name.
    pub(super) fn renamed(&self, from: &Path) {
        let unsynced = self.0.lock().expect("faults").unsynced.contains(from);
        assert!(!unsynced, "{} was renamed before it was synced", from.display());
    }

    /// How much of a write that is about to fail gets to the disk all the same.
    pub(super) fn torn(&self, length: usize) -> Option<usize> {
        let inner = self.0.lock().expect("faults");
        match inner.fault {
            Some(Fault::Once(n) | Fault::Broken(n) | Fault::Full(n)) if inner.steps + 1 == n => Some(length / 2),
            _ => None,
        }
    }
}
