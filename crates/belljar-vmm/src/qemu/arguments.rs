//! QEMU's command line as a pure function of what is wanted.

use super::QemuConfig;
use crate::driver::{Accelerator, NetworkSpec, VmSpec};
use crate::error::VmmError;
use crate::limits::{CMDLINE_EXTRA_BYTES, CONSOLE_BYTES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use crate::spawn::FIRST_FD;
use std::path::Path;

/// Descriptors QEMU finds its listening sockets at.
const QMP_FD: i32 = FIRST_FD;
const LINK_FD: i32 = FIRST_FD + 1;

/// Name of the console's ring buffer.
pub(super) const CONSOLE: &str = "console";

/// Name of the virtio-serial port the guest agent opens (`/sys/class/virtio-ports/*/name`).
pub const LINK_PORT: &str = "belljar.link";

/// Name of the network card's back end.
pub(super) const NETWORK: &str = "net";

/// What every guest kernel gets. Console output costs an exit per byte, hence `quiet` and errors only; without ACPI a
/// guest ends itself by rebooting through a triple fault, also after a panic.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on";

/// In software only: code that rewrites itself at boot is expensive to translate again, so one CPU keeps its `lock` prefixes.
const CMDLINE_TCG: &str = " noreplace-smp";

/// Everything that software can emulate but the fast string instructions: they are emulated byte by byte, and both the
/// kernel and the C library would choose them for every copy.
const EMULATED_CPU: &str = "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc";

/// Refuses what QEMU would misread or the machine cannot have.
pub(super) fn validate(spec: &VmSpec) -> Result<(), VmmError> {
    let bad = |field, reason: String| Err(VmmError::BadSpec { id: spec.id.clone(), field, reason });
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if spec.id.is_empty() || spec.id.len() > 64 || !spec.id.chars().all(plain) {
        return bad("id", "must be 1 to 64 letters, digits, `-` or `_`".to_owned());
    }
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        return bad("vcpus", format!("is {}, must be 1 to {MAX_VCPUS}", spec.vcpus));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&spec.memory_mib) {
        return bad("memory_mib", format!("is {}, must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}", spec.memory_mib));
    }
    if spec.cmdline_extra.len() > CMDLINE_EXTRA_BYTES || spec.cmdline_extra.chars().any(char::is_control) {
        return bad("cmdline_extra", format!("must be one line of at most {CMDLINE_EXTRA_BYTES} bytes"));
    }
    let files = [("kernel", Some(&spec.kernel)), ("initrd", spec.initrd.as_ref()), ("disk", spec.disk.as_ref())];
    for (field, path) in files {
        // QEMU takes text, runs in another directory, and reads `name:` at the start of a disk's path as a protocol.
        if let Some(path) = path.filter(|path| !path.is_absolute() || path.to_str().is_none()) {
            return bad(field, format!("`{}` must be an absolute path in UTF-8", path.display()));
        }
    }
    Ok(())
}

/// The kernel's command line; QEMU appends the virtio devices to it.
fn command_line(accel: Accelerator, spec: &VmSpec, tsc_khz: Option<u64>) -> String {
    let mut line = CMDLINE.to_owned();
    if accel == Accelerator::Tcg {
        line.push_str(CMDLINE_TCG);
        if let Some(khz) = tsc_khz {
            // See the module `tsc`. There is no better clock to check it against, hence `reliable`.
            line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
        }
    }
    if spec.disk.is_some() {
        line.push_str(" belljar.root=/dev/vda");
    }
    if !spec.cmdline_extra.is_empty() {
        line.push(' ');
        line.push_str(&spec.cmdline_extra);
    }
    line
}

/// A comma ends a value in QEMU's option syntax; two stand for one.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The arguments after the program's name, for a valid specification. `tsc_khz`: the rate of the host's time stamp counter.
pub(super) fn arguments(config: &QemuConfig, spec: &VmSpec, tsc_khz: Option<u64>) -> Vec<String> {
    let mut all = ["-nodefaults", "-no-user-config"].map(str::to_owned).to_vec();
    let mut option = |name: &str, value: String| all.extend([format!("-{name}"), value]);
    let (accel, cpu) = match config.accel {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        Accelerator::Tcg => (format!("tcg,thread=multi,tb-size={}", config.translation_cache_mib), EMULATED_CPU),
    };
    option("name", format!("{},process=belljar-vm", spec.id));
    // ACPI off and PIT on: with them the other way round this machine boots unreliably or not at all in software.
    option("machine", "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on".to_owned());
    option("accel", accel);
    option("cpu", cpu.to_owned());
    option("smp", spec.vcpus.to_string());
    option("m", format!("{}M", spec.memory_mib));
    option("display", "none".to_owned());
    option("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
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
        // What the guest trims or zeroes frees space on the host. QEMU's lock on the file stays on: it keeps a second VM,
        // started by mistake, from damaging the file system.
        option(
            "blockdev",
            format!(
                "driver=raw,node-name=disk,discard=unmap,detect-zeroes=unmap,file.driver=file,file.aio=threads,\
                 file.filename={}",
                escaped(disk)
            ),
        );
        option("device", "virtio-blk-device,drive=disk".to_owned());
    }
    if let NetworkSpec::User { restrict } = spec.network {
        let restrict = if restrict { "on" } else { "off" };
        option("netdev", format!("user,id={NETWORK},restrict={restrict},ipv6=off"));
        option("device", format!("virtio-net-device,netdev={NETWORK}"));
    }
    option("kernel", spec.kernel.to_string_lossy().into_owned());
    if let Some(initrd) = &spec.initrd {
        option("initrd", initrd.to_string_lossy().into_owned());
    }
    option("append", command_line(config.accel, spec, tsc_khz));
    all
}

#[cfg(test)]
#[path = "arguments_test.rs"]
mod tests;
