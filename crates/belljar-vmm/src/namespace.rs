//! Doing something in another network namespace.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// On a thread of its own, which is in the namespace of that file: what it starts stays there. `None`: here. Blocking.
pub(crate) fn enter<T: Send>(namespace: Option<&Path>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let Some(namespace) = namespace else { return work() };
    let file = File::open(namespace)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
