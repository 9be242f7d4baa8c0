//! QEMU's command line as a pure function of what is wanted.

use super::QemuConfig;
use crate::driver::{Accelerator, DiskLimits, NetworkSpec, VmSpec};
use crate::jail::plan::Entry;
use crate::limits::CONSOLE_BYTES;
use crate::processor::HiddenFeatures;
use crate::run_dir::{self, Card};
use crate::shape::Shape;
use crate::spawn::FIRST_FD;
use crate::spec;
use serde_json::{Value, json};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

/// Descriptors QEMU finds its listening sockets at, and the saved state to go on with.
const QMP_FD: i32 = FIRST_FD;
const LINK_FD: i32 = FIRST_FD + 1;
const DEVICES_FD: i32 = FIRST_FD + 2;

/// Descriptors of the VM that only tells how its memory is described: where it writes that, and its memory.
const STREAM_FD: i32 = FIRST_FD + 1;
const MEMORY_FD: i32 = FIRST_FD + 2;

/// Name of the console's ring buffer.
pub(super) const CONSOLE: &str = "console";

/// Name of the virtio-serial port the guest agent opens (`/sys/class/virtio-ports/*/name`).
pub const LINK_PORT: &str = "belljar.link";

/// Name of the disk's back end.
pub(super) const DISK: &str = "disk";

/// Name of what slows the disk down.
const DISK_LIMITS: &str = "disk-limits";

/// Name of the network card's back end.
pub(super) const NETWORK: &str = "net";

/// Name of the guest's memory; also in saved states.
const MEMORY: &str = "mem";

/// In software only: code that rewrites itself at boot is expensive to translate again, so one CPU keeps its `lock` prefixes.
const CMDLINE_TCG: &str = " noreplace-smp";

/// Everything that software can emulate but the fast string instructions: they are emulated byte by byte, and both the
/// kernel and the C library would choose them for every copy.
const EMULATED_CPU: &str = "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc";

/// The kernel's command line; QEMU appends the virtio devices to it.
fn command_line(accel: Accelerator, spec: &VmSpec, tsc_khz: Option<u64>) -> String {
    let mut line = format!("{} reboot=t", spec::CMDLINE);
    if accel == Accelerator::Tcg {
        line.push_str(CMDLINE_TCG);
        if let Some(khz) = tsc_khz {
            // See the module `tsc`. There is no better clock to check it against, hence `reliable`.
            line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
        }
    }
    spec::push_rest(&mut line, spec);
    line
}

/// A comma ends a value in QEMU's option syntax; two stand for one.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Where QEMU finds a descriptor it was given, as a path.
fn descriptor(number: i32) -> String {
    format!("/proc/self/fd/{number}")
}

/// Arguments of `migrate-incoming`.
pub(super) fn incoming() -> Value {
    json!({ "uri": format!("file:{}", descriptor(DEVICES_FD)) })
}

/// Arguments of `migrate` of the VM that only tells how its memory is described.
pub(super) fn outgoing() -> Value {
    json!({ "uri": format!("file:{}", descriptor(STREAM_FD)) })
}

/// Arguments of `migrate-set-capabilities`: shared memory is left out, and the end is told.
pub(super) fn capabilities() -> Value {
    let all = ["x-ignore-shared", "events"].map(|name| json!({ "capability": name, "state": true }));
    json!({ "capabilities": all })
}

/// A row of options.
struct Options(Vec<String>);

impl Options {
    fn add(&mut self, name: &str, value: String) {
        self.0.extend([format!("-{name}"), value]);
    }

    fn flag(&mut self, name: &str) {
        self.0.push(format!("-{name}"));
    }

    /// What every VM has that shall understand the saved state of another: processor, memory, sandbox.
    fn machine(config: &QemuConfig, name: &str, shape: &Shape, hidden: HiddenFeatures, memory: Option<&str>) -> Self {
        let mut all = Self(Vec::new());
        all.flag("nodefaults");
        all.flag("no-user-config");
        let (accel, cpu) = match config.accel {
            Accelerator::Kvm => ("kvm".to_owned(), "host"),
            Accelerator::Tcg => (format!("tcg,thread=multi,tb-size={}", config.translation_cache_mib), EMULATED_CPU),
        };
        all.add("name", format!("{name},process=belljar-vm"));
        // ACPI off and PIT on: with them the other way round this machine boots unreliably or not at all in software.
        let mut machine = "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on".to_owned();
        if let Some(memory) = memory {
            all.add("object", format!("memory-backend-file,id={MEMORY},size={}M,{memory}", shape.memory_mib));
            machine.push_str(&format!(",memory-backend={MEMORY}"));
        }
        all.add("machine", machine);
        all.add("accel", accel);
        all.add("cpu", hidden.names().fold(cpu.to_owned(), |cpu, name| format!("{cpu},-{name}")));
        all.add("smp", shape.vcpus.to_string());
        all.add("m", format!("{}M", shape.memory_mib));
        all.add("display", "none".to_owned());
        all.add("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
        all
    }

    fn card(&mut self, backend: &str) {
        self.add("netdev", format!("{backend},id={NETWORK}"));
        self.add("device", format!("virtio-net-device,netdev={NETWORK}"));
    }

    fn user_card(&mut self, restrict: bool) {
        self.card(&format!("user,restrict={},ipv6=off", if restrict { "on" } else { "off" }));
    }
}

/// The files of a VM whose process is jailed.
pub(super) fn entries(spec: &VmSpec) -> Vec<Entry> {
    let entry = |name: &'static str, write: bool| move |path: &PathBuf| Entry::new(name, path, write);
    let mut all: Vec<_> = spec.disk.iter().map(entry(run_dir::DISK, true)).collect();
    all.extend(spec.memory.iter().map(entry(run_dir::MEMORY, false)));
    if spec.devices.is_none() {
        all.push(Entry::new(run_dir::KERNEL, &spec.kernel, false));
        all.extend(spec.initrd.iter().map(entry(run_dir::INITRD, false)));
    }
    all
}

/// The specification as that process sees it.
pub(super) fn inside(spec: &VmSpec) -> VmSpec {
    let place = |path: &Option<PathBuf>, name: &str| path.as_ref().map(|_| Entry::inside(name));
    VmSpec {
        kernel: Entry::inside(run_dir::KERNEL),
        initrd: place(&spec.initrd, run_dir::INITRD),
        disk: place(&spec.disk, run_dir::DISK),
        memory: place(&spec.memory, run_dir::MEMORY),
        ..spec.clone()
    }
}

/// The disk's back end. What the guest trims or zeroes frees space on the host. QEMU's lock on the file stays on: it keeps a
/// second VM, started by mistake, from damaging the file system. Before a restored guest goes on, QEMU would write the file
/// out and drop it from the page cache, lest it be stale after a move to this host; it never is.
fn back_end(disk: &Path, limited: bool) -> String {
    let raw = |prefix: &str| {
        format!(
            "{prefix}discard=unmap,{prefix}detect-zeroes=unmap,{prefix}file.driver=file,{prefix}file.aio=threads,\
             {prefix}file.drop-cache=off,{prefix}file.filename={}",
            escaped(disk)
        )
    };
    if limited {
        let group = format!("throttle-group={DISK_LIMITS},discard=unmap");
        return format!("driver=throttle,node-name={DISK},{group},file.driver=raw,{}", raw("file."));
    }
    format!("driver=raw,node-name={DISK},{}", raw(""))
}

/// What slows the disk down, if anything does.
fn throttle_group(limits: DiskLimits) -> Option<String> {
    let total = |what: &str, limit: Option<NonZeroU64>| limit.map(|limit| format!(",x-{what}-total={limit}"));
    let all: String = [total("bps", limits.bytes), total("iops", limits.requests)].into_iter().flatten().collect();
    (!all.is_empty()).then(|| format!("throttle-group,id={DISK_LIMITS}{all}"))
}

/// The arguments after the program's name, for a valid specification. `tsc_khz`: the rate of the host's time stamp counter.
pub(super) fn arguments(config: &QemuConfig, spec: &VmSpec, tsc_khz: Option<u64>) -> Vec<String> {
    // Private and read-only: what the guest writes stays its own, whatever this process does.
    let private = |path: &PathBuf| format!("mem-path={},share=off,readonly=on,rom=off", escaped(path));
    let memory = spec.memory.as_ref().map(private);
    let mut all = Options::machine(config, &spec.id, &Shape::of(spec, None), spec.hidden_features, memory.as_deref());
    let mut option = |name: &str, value: String| all.add(name, value);
    // A guest that resets leaves a stopped machine: the reason and the console can still be asked for.
    option("action", "reboot=shutdown,shutdown=pause".to_owned());
    option("chardev", format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"));
    option("mon", "chardev=qmp,mode=control".to_owned());
    option("chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_BYTES}"));
    option("serial", format!("chardev:{CONSOLE}"));
    option("device", "virtio-serial-device,max_ports=2".to_owned());
    option("chardev", format!("socket,id=link,fd={LINK_FD},server=on,wait=off"));
    option("device", format!("virtserialport,chardev=link,name={LINK_PORT}"));
    option("device", "virtio-rng-device".to_owned());
    if let Some(disk) = &spec.disk {
        if let Some(group) = throttle_group(spec.disk_limits) {
            option("object", group);
        }
        option("blockdev", back_end(disk, spec.disk_limits != DiskLimits::default()));
        option("device", format!("virtio-blk-device,drive={DISK}"));
    }
    match spec.network {
        NetworkSpec::None => {}
        NetworkSpec::User { restrict } => all.user_card(restrict),
        // Behind the saved state, if there is one.
        NetworkSpec::NamedTap { .. } => {}
        NetworkSpec::Tap(_) => all.card(&format!("tap,fd={}", DEVICES_FD + i32::from(spec.devices.is_some()))),
    }
    if spec.devices.is_some() {
        // Kernel and command line are in memory already.
        all.flag("S");
        all.add("incoming", "defer".to_owned());
        return all.0;
    }
    all.add("kernel", spec.kernel.to_string_lossy().into_owned());
    if let Some(initrd) = &spec.initrd {
        all.add("initrd", initrd.to_string_lossy().into_owned());
    }
    all.add("append", command_line(config.accel, spec, tsc_khz));
    all.0
}

/// The arguments for a VM that never runs and only tells how the memory of VMs of this shape is described. Its memory is
/// shared, so that it is left out of what it tells.
pub(super) fn teller(config: &QemuConfig, shape: &Shape) -> Vec<String> {
    let memory = format!("mem-path={},share=on", descriptor(MEMORY_FD));
    let mut all = Options::machine(config, "shape", shape, HiddenFeatures::default(), Some(&memory));
    all.add("chardev", format!("socket,id=qmp,fd={QMP_FD}"));
    all.add("mon", "chardev=qmp,mode=control".to_owned());
    if shape.card != Card::None {
        all.user_card(true);
    }
    all.flag("S");
    all.0
}

#[cfg(test)]
#[path = "arguments_test.rs"]
mod tests;
