//! Gives the host its memory back when it is short: sleeping sandboxes that still hold some let go of it.
//!
//! The kernel says when, through a pressure stall trigger; nothing is polled. Where it has none, what there is left is looked
//! at whenever a sandbox is about to take some ([`make_room`]).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::OwnedFd,
    sync::Arc,
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{Context, limits::MEMORY_RESERVE_MB};

const PRESSURE: &str = "/proc/pressure/memory";
/// Tell when something waited for memory for 200 ms within two seconds. Who lacks CAP_SYS_RESOURCE, as root in a container
/// may, is refused every window but multiples of two seconds.
const TRIGGER: &[u8] = b"some 200000 2000000\0";
/// A test says itself when memory is short: what else its machine does must not put sandboxes of it to sleep.
const LOOKS_AT_THE_HOST: bool = !cfg!(test);

/// Runs for as long as the node does.
pub(crate) async fn run(ctx: Arc<Context>) {
    if !LOOKS_AT_THE_HOST {
        return;
    }
    let watched = match trigger() {
        Ok(file) => file,
        Err(error) => return tracing::info!(%error, "the kernel tells no memory pressure"),
    };
    loop {
        match watched.ready(Interest::PRIORITY).await {
            Ok(mut guard) => {
                guard.clear_ready();
                tracing::info!("memory is short: sleeping sandboxes give theirs back");
                ctx.registry.release();
            }
            Err(error) => return tracing::warn!(%error, "memory pressure is no longer watched"),
        }
    }
}

fn trigger() -> io::Result<AsyncFd<OwnedFd>> {
    let mut file = OpenOptions::new().read(true).write(true).open(PRESSURE)?;
    file.write_all(TRIGGER)?;
    register(file.into())
}

#[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor of another kind than its own")]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always names the same open descriptor, and closes it only when dropped.
    unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }.map_err(Into::into)
}

/// Before `memory_mb` are taken: lets sleeping sandboxes go where the host would be left with too little.
pub(crate) fn make_room(ctx: &Context, memory_mb: u64) {
    if LOOKS_AT_THE_HOST && available_mb().is_some_and(|available| available < memory_mb + MEMORY_RESERVE_MB) {
        ctx.registry.release();
    }
}

fn available_mb() -> Option<u64> {
    let mut text = String::new();
    io::Read::read_to_string(&mut File::open("/proc/meminfo").ok()?, &mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}
