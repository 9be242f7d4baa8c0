//! Makes a booted machine that is nobody's yet as small and quiet as it gets, for a golden snapshot: `POST /v1/settle`.
//!
//! The disk first, because that fills caches: its file system grows to it, or every sandbox would have to do that; then the
//! caches go; and last the memory that is free is zeroed, so that the snapshot need not keep what was in it. What every
//! sandbox needs first comes back with a rehearsal ([`Configure::rehearsal`](belljar_api::guest::Configure::rehearsal)).

use std::{
    fs,
    fs::File,
    io,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use belljar_api::{guest::Settled, image::RuntimeConfig};
use nix::{
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap},
    unistd::syncfs,
};
use tokio::time::timeout;

use crate::{
    agent::Agent,
    grow, ioctl,
    launch::{Launch, Request, Settings},
    limits::{SETTLE_MARGIN, SETTLE_STEP, SETTLE_ZERO_MAX, WARM_UP_MAX},
    logs::Logs,
    process::{Plan, Table},
    setup::warn,
};

/// The program that is run once, with everything that starting a program loads.
const WARM_UP: &str = "/bin/true";

/// Does all of it. What cannot be done makes the snapshot larger, not wrong, so that is only logged. Blocking.
pub(crate) fn settle() -> Settled {
    Settled { trimmed_bytes: tidy_disk(), zeroed_bytes: zero_free_memory() }
}

fn tidy_disk() -> u64 {
    grow::grow_root_or_warn();
    let trim = || {
        let root = File::open("/")?;
        syncfs(&root)?;
        ioctl::trim(&root)
    };
    let trimmed = trim().unwrap_or_else(|error: io::Error| {
        tracing::info!("the disk's unused blocks: {error}");
        0
    });
    warn("caches", fs::write("/proc/sys/vm/drop_caches", "3"));
    trimmed
}

/// As a client's first `run` would.
pub(crate) async fn warm_up(agent: &Agent) {
    let request = Request { command: WARM_UP.to_owned(), ..Request::default() };
    if let Err(error) = run_once(agent, request, WARM_UP_MAX).await {
        tracing::info!("not warmed up: {error}");
    }
}

/// Runs a program to its end, however that is, in a table of its own: it leaves no record, and the sandbox's handles begin
/// at 1.
pub(crate) async fn run_once(agent: &Agent, request: Request, limit: Duration) -> Result<(), String> {
    let settings = Settings { place: agent.place.clone(), runtime: RuntimeConfig::default() };
    let table = Arc::new(Table::new(Arc::clone(&agent.reaper), Arc::clone(&agent.cgroups), Arc::new(Logs::default())));
    let launch = Launch::prepare(&settings, request).map_err(|error| error.to_string())?;
    let plan = Plan { timeout: Some(limit), ..Plan::new(launch) };
    let process = table.start(&plan, table.new_output(), None).map_err(|error| error.to_string())?;
    timeout(limit + WARM_UP_MAX, process.ended()).await.map(drop).map_err(|late| late.to_string())
}

/// Takes what is free and gives it back: the kernel hands out zeros.
fn zero_free_memory() -> u64 {
    let deadline = Instant::now() + SETTLE_ZERO_MAX;
    let mut taken = Vec::new();
    // In steps, with a look at what is left between them: nobody is ever short of memory because of this.
    while step_fits(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) && Instant::now() < deadline {
        match Zeros::take() {
            Ok(zeros) => taken.push(zeros),
            Err(error) => {
                tracing::info!("memory to be zeroed: {error}");
                break;
            }
        }
    }
    taken.len() as u64 * SETTLE_STEP as u64
}

/// Whether another step leaves enough. What is free counts, not what could be made so: caches are to stay.
fn step_fits(meminfo: &str) -> bool {
    let kilobytes = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let free = kilobytes("MemFree:").zip(kilobytes("MemAvailable:")).map_or(0, |(free, available)| free.min(available));
    free * 1024 >= SETTLE_STEP as u64 + SETTLE_MARGIN
}

/// Memory that the kernel has filled with zeros.
struct Zeros {
    start: std::ptr::NonNull<std::ffi::c_void>,
}

#[expect(unsafe_code, reason = "the allocator would not give whole fresh pages, nor give them back for certain")]
impl Zeros {
    fn take() -> io::Result<Self> {
        const LENGTH: NonZeroUsize = NonZeroUsize::new(SETTLE_STEP).expect("not empty");
        // SAFETY: a new private mapping at an address that the kernel chooses touches nothing that is there.
        let start = unsafe {
            mmap_anonymous(None, LENGTH, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        let zeros = Self { start };
        // In large pages where the kernel has them, and in one call rather than a fault for each.
        // SAFETY: the range is ours, and neither advice changes what is read from it.
        unsafe {
            let _ = madvise(start, SETTLE_STEP, MmapAdvise::MADV_HUGEPAGE);
            madvise(start, SETTLE_STEP, MmapAdvise::MADV_POPULATE_WRITE)?;
        }
        Ok(zeros)
    }
}

#[expect(unsafe_code, reason = "as above")]
impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it.
        let given_back = unsafe { munmap(self.start, SETTLE_STEP) };
        warn("memory to be given back", given_back.map_err(io::Error::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(free_kb: u64, available_kb: u64, fits: bool) {
        let meminfo =
            format!("MemTotal:  1000000 kB\nMemFree:  {free_kb} kB\nMemAvailable:  {available_kb} kB\nBuffers: 1 kB\n");
        assert_eq!(step_fits(&meminfo), fits);
    }

    #[test]
    fn memory_is_taken_only_while_plenty_is_left() {
        let least = (SETTLE_STEP as u64 + SETTLE_MARGIN) / 1024;
        check(least, least, true);
        check(least - 1, least, false);
        check(least, least - 1, false);
        assert!(!step_fits(""));
        assert!(!step_fits("MemFree: many kB\nMemAvailable: 99999999 kB\n"));
    }

    #[test]
    fn zeros_are_taken_and_given_back() {
        drop(Zeros::take().expect("sixteen megabytes"));
    }
}
