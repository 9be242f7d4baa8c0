//! Points at which tests make a multi-step operation fail. In a program that is not a test it does nothing and costs
//! nothing.

use crate::storage::StorageError;

/// Fails at a chosen point; see the tests.
#[derive(Default)]
pub(crate) struct Faults {
    #[cfg(test)]
    plan: std::sync::Mutex<Plan>,
    #[cfg(test)]
    watcher: std::sync::Mutex<Option<Watcher>>,
}

/// Is told the number of every point that is passed, before it has an effect.
#[cfg(test)]
pub(crate) type Watcher = Box<dyn FnMut(usize, &'static str) + Send>;

#[cfg(test)]
#[derive(Debug, Default)]
struct Plan {
    /// Points passed so far.
    passed: Vec<&'static str>,
    /// Fail at the point with this number from now on…
    at: Option<usize>,
    /// …only once, or for good.
    transient: bool,
}

impl Faults {
    /// Passes a point, or fails there.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the test build uses it")]
    pub(crate) fn point(&self, _name: &'static str) -> Result<(), StorageError> {
        Ok(())
    }

    /// Passes a point, or fails there.
    #[cfg(test)]
    pub(crate) fn point(&self, name: &'static str) -> Result<(), StorageError> {
        let (number, fails) = {
            let mut plan = self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            plan.passed.push(name);
            let number = plan.passed.len();
            (number, plan.at.is_some_and(|at| number == at || (number > at && !plan.transient)))
        };
        if let Some(watcher) = &mut *self.watcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            watcher(number, name);
        }
        if fails {
            let source = std::io::Error::other("a test made it fail");
            return Err(StorageError::Io { operation: name, path: "/test".into(), source });
        }
        Ok(())
    }

    /// Has somebody look on.
    #[cfg(test)]
    pub(crate) fn watch(&self, watcher: Option<Watcher>) {
        *self.watcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = watcher;
    }

    /// Counts from here, and fails at point `at` (from 1): once, or from then on.
    #[cfg(test)]
    pub(crate) fn arm(&self, at: Option<usize>, transient: bool) {
        let mut plan = self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *plan = Plan { passed: Vec::new(), at, transient };
    }

    /// The points passed since [`Self::arm`].
    #[cfg(test)]
    pub(crate) fn passed(&self) -> Vec<&'static str> {
        self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner).passed.clone()
    }
}
