//! What processes occupy, and what they do while nobody asks anything of them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    time::{Duration, Instant},
};

use belljar_tests::{Sandbox, World};
use belljar_vmm::MemoryUse;

use crate::table::Table;

/// A number from `/proc/{pid}/status`, as the kernel writes it.
fn status(path: &str, field: &str) -> f64 {
    number(&fs::read_to_string(path).unwrap_or_default(), field).unwrap_or_default()
}

fn number(text: &str, field: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

/// Proportional-set size of a process, MiB: what is shared counts by its share.
pub(crate) fn proportional_mib(pid: i32) -> f64 {
    status(&format!("/proc/{pid}/smaps_rollup"), "Pss:") / 1024.0
}

/// Resident memory, MiB.
pub(crate) fn resident_mib(pid: i32) -> f64 {
    status(&format!("/proc/{pid}/status"), "VmRSS:") / 1024.0
}

/// A thread: its number, which may be used again, and when it began.
type Thread = (OsString, String);

/// Pause between two looks at a process's threads: one that lives longer than this is seen.
const LOOK: Duration = Duration::from_millis(100);

/// How often a process's threads went to sleep by themselves within a time, which is how often something woke them:
/// that they were made to wait for a processor does not count. Those that begin or end meanwhile count too.
pub(crate) fn wake_ups(pid: i32, during: Duration) -> f64 {
    let begun = Instant::now();
    let first = sleeps(pid);
    let mut last = first.clone();
    while begun.elapsed() < during {
        // There is no event to wait for, and looking wakes nobody.
        std::thread::sleep(LOOK);
        last.extend(sleeps(pid));
    }
    last.iter().map(|(thread, count)| count - first.get(thread).copied().unwrap_or_default()).sum()
}

fn sleeps(pid: i32) -> BTreeMap<Thread, f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process's threads").flatten();
    let of = |task: fs::DirEntry| {
        // One that has ended between two reads counts as it was.
        let stat = fs::read_to_string(task.path().join("stat")).ok()?;
        let begun = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.to_owned();
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        Some(((task.file_name(), begun), number(&status, "voluntary_ctxt_switches:")?))
    };
    tasks.filter_map(of).collect()
}

/// Processor time that processes take within a time, as a part of one processor, percent.
pub(crate) fn processor_percent(pids: &[i32], during: Duration) -> f64 {
    let taken = || pids.iter().map(|pid| processor_ticks(*pid)).sum::<f64>();
    let before = taken();
    std::thread::sleep(during);
    (taken() - before) / TICKS_PER_SECOND / during.as_secs_f64() * 100.0
}

/// `USER_HZ`, in which the kernel tells processor time on every machine that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

fn processor_ticks(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    // User and system, fields 14 and 15; the guest's is in the first.
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
}

/// Resident memory of the processes on a request's way, before it.
pub(crate) struct Watch {
    server: f64,
    vmm: f64,
    agent: f64,
}

fn agent_peak(sandbox: &Sandbox<'_>) -> f64 {
    sandbox.sh("awk '/VmHWM/ {print $2}' /proc/1/status").parse::<f64>().unwrap_or_default() / 1024.0
}

/// The memory of the first VM, which has the default size.
fn vmm(world: &World) -> MemoryUse {
    let pid = u32::try_from(world.vm_pids()[0]).expect("a pid");
    MemoryUse::of(pid, 1024).expect("the VMM's memory")
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// MiB of the VMM process without the guest's memory.
fn vmm_own(world: &World) -> f64 {
    mib(vmm(world).overhead())
}

impl Watch {
    pub(crate) fn start(world: &World, sandbox: &Sandbox<'_>) -> Self {
        // Writing 5 resets the peak to what is resident now.
        fs::write(format!("/proc/{}/clear_refs", world.server_pid()), "5").expect("the peak is reset");
        Self { server: resident_mib(world.server_pid()), vmm: vmm_own(world), agent: agent_peak(sandbox) }
    }

    /// Name and MiB for each: server and agent by their peak, the VMM by what it holds after.
    pub(crate) fn grown(&self, world: &World, sandbox: &Sandbox<'_>) -> [(&'static str, f64); 3] {
        let peak = status(&format!("/proc/{}/status", world.server_pid()), "VmHWM:") / 1024.0;
        [
            ("the server", peak - self.server),
            ("the VMM beyond guest memory", vmm_own(world) - self.vmm),
            ("the guest's agent", agent_peak(sandbox) - self.agent),
        ]
    }
}

/// What a VMM process consists of.
pub(crate) fn report(world: &World, table: &mut Table) {
    let memory = vmm(world);
    for (part, bytes) in [
        ("beyond guest memory, in all", memory.overhead()),
        ("translated guest code", memory.translation_cache),
        ("heap and stacks", memory.heap),
        ("program and libraries", memory.files),
        ("its share of those", memory.files_share),
        ("guest memory touched", memory.guest),
    ] {
        table.value(&format!("VMM process: {part}"), mib(bytes), "MiB", "reported");
    }
}
