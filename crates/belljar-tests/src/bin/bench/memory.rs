//! What processes occupy.

use std::{collections::BTreeMap, ffi::OsString, fs};

use belljar_tests::{Sandbox, World};
use belljar_vmm::MemoryUse;

use crate::table::Table;

/// A number from `/proc/{pid}/status`, as the kernel writes it.
fn status(path: &str, field: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or_default()
}

/// Resident memory, MiB.
pub(crate) fn resident_mib(pid: i32) -> f64 {
    status(&format!("/proc/{pid}/status"), "VmRSS:") / 1024.0
}

/// How often each thread of a process has gone to sleep by itself so far, by thread id.
pub(crate) fn wake_ups(pid: i32) -> BTreeMap<OsString, f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process's threads").flatten();
    let switches =
        |task: &fs::DirEntry| status(&format!("{}/status", task.path().display()), "voluntary_ctxt_switches:");
    tasks.map(|task| (task.file_name(), switches(&task))).collect()
}

/// Wake-ups of a process since `before`; a thread that has ended meanwhile does not count.
pub(crate) fn wake_ups_since(pid: i32, before: &BTreeMap<OsString, f64>) -> f64 {
    wake_ups(pid).iter().map(|(thread, count)| count - before.get(thread).copied().unwrap_or_default()).sum()
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
