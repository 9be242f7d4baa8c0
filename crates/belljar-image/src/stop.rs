//! How one thread stops what another one makes, and learns whether it came in time.
//!
//! ```text
//! under way ──stop──► stopped: there will be no image
//!     └──────pass───► named:   whoever stops it now is too late
//! ```
//! Whoever comes first decides, once and for all: nobody is told that an image will not be there which then is. What is
//! stopped ends a little later, at the next bytes that come or go; a silent registry and `mkfs.ext4` are waited for first.
//! Made by the caller of an import, who keeps a copy; looked at by `oci`.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::error::ImageError;

const UNDER_WAY: u8 = 0;
const STOPPED: u8 = 1;
const NAMED: u8 = 2;

/// See the module. Copies are of one and the same.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicU8>);

impl Stop {
    /// Stops it, unless it is too late; whether there will be no image. An image that is being named just now may still
    /// fail to be.
    pub fn stop(&self) -> bool {
        let before = self.0.compare_exchange(UNDER_WAY, STOPPED, Ordering::AcqRel, Ordering::Acquire);
        !matches!(before, Err(NAMED))
    }

    /// Fails once it was stopped.
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        if self.0.load(Ordering::Acquire) == STOPPED { Err(ImageError::Stopped) } else { Ok(()) }
    }

    /// The last moment at which it can be stopped: whoever names an image asks right before.
    ///
    /// # Errors
    /// [`ImageError::Stopped`] when it was.
    pub fn pass(&self) -> Result<(), ImageError> {
        match self.0.compare_exchange(UNDER_WAY, NAMED, Ordering::AcqRel, Ordering::Acquire) {
            Err(STOPPED) => Err(ImageError::Stopped),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn whoever_comes_first_decides() {
        let stop = Stop::default();
        assert!(stop.check().is_ok());
        assert!(stop.clone().stop() && stop.stop());
        assert!(stop.check().is_err() && stop.pass().is_err());
        let stop = Stop::default();
        assert!(stop.pass().is_ok() && stop.pass().is_ok());
        assert!(!stop.stop() && stop.check().is_ok());
    }

    #[test]
    fn both_at_once_agree() {
        for _ in 0..1000 {
            let stop = Stop::default();
            let other = stop.clone();
            let passes = thread::spawn(move || other.pass().is_ok());
            let stopped = stop.stop();
            assert_ne!(stopped, passes.join().unwrap());
        }
    }
}
