//! A machine with working KVM inside this one: `cargo xtask nested -- COMMAND`.
//!
//! QEMU emulates a processor with SVM in software, so a Linux inside it has a real, if slow, `/dev/kvm`, and the real
//! Firecracker, Cloud Hypervisor and QEMU-on-KVM run there, also where the hardware, or the cloud, gives none.
//!
//! ```text
//! job folder (init.sh, command.sh) ─► QEMU: our kernel with KVM ─► this machine's / read-only, memory over it
//!                                        ─► the command ─► status in the job folder ─► off
//! ```
//! What the command writes goes away with the machine, except in `/.job`. It has no network but what it makes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{kernel, paths, run};

/// Seconds after which a machine is given up where nobody says otherwise.
pub(crate) const LIMIT: u32 = 1800;
/// Its memory, MiB; its disk is in there, too.
pub(crate) const MEMORY_MIB: u32 = 16_384;
/// With two, emulated at once, the kernel's memory went bad after minutes of starting and ending guests: an oops of its
/// own, guests with a triple fault. The tests inside run one at a time.
const PROCESSORS: u32 = 1;
/// A small one makes emulation crawl.
const TRANSLATION_CACHE_MIB: u32 = 1024;
/// What QEMU can emulate, with SVM; less the string instructions that it emulates byte by byte, and five-level paging.
const PROCESSOR: &str = "max,+svm,-la57,-erms,-fsrm,-fzrm,-fsrs,-fsrc";

/// The machine, as small as it can be.
const SMALL: &str = "microvm,acpi=on,pit=on,pic=off,rtc=on,isa-serial=on";
/// A PC. Its timer needs the old interrupt controller.
const PC: &str = "q35,vmport=off,sata=off,smbus=off,usb=off";
/// A device that does a little arithmetic, made for learning. Its registers: QEMU's `docs/specs/edu.rst`.
const DEVICE: &str = "edu";
/// Its vendor and its number.
const DEVICE_ID: &str = "1234:11e8";

/// Where VM programs are looked for before `PATH`, inside too.
const PROGRAMS: &str = "BELLJAR_VMM_DIR";

/// Where `belljar vmm install` puts VM programs, as root and else.
const INSTALLED: [&str; 2] = ["/var/lib/belljar/vmm", ".local/share/belljar/vmm"];

/// Where VM programs are looked for before `PATH`.
pub(crate) fn vm_programs() -> Option<PathBuf> {
    let named = env::var_os(PROGRAMS).map(PathBuf::from);
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    named.or_else(|| INSTALLED.map(|dir| home.join(dir)).into_iter().find(|dir| dir.is_dir()))
}

/// Where this machine has a program for VMs.
pub(crate) fn vm_program(name: &str) -> Option<PathBuf> {
    let beside = vm_programs().map(|dir| dir.join(name)).filter(|path| path.is_file());
    beside.or_else(|| run::find_program(name))
}

/// What kind of machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// Seconds after which it is given up.
    pub(crate) limit: u32,
    /// It has an IOMMU, and [something](DEVICE) to give away. It is slower then.
    pub(crate) device: bool,
    /// Its memory, and with that its disk, MiB.
    pub(crate) memory_mib: u32,
}

/// Runs a shell's command line in such a machine; its output, and its exit status.
pub(crate) fn run(words: &[String], kind: Machine) -> Result<ExitCode> {
    let kernel = kernel::outer()?;
    let job = paths::target().join("nested").join(std::process::id().to_string());
    fs::create_dir_all(&job).with_context(|| format!("cannot create {}", job.display()))?;
    let job = job.canonicalize().context("the job's folder")?;
    fs::write(job.join("init.sh"), include_str!("nested/init.sh")).context("cannot write the job")?;
    fs::write(job.join("command.sh"), script(words)).context("cannot write the job")?;
    let ran = run::interactive(&mut machine(&kernel, &job, kind)?)?;
    let status = fs::read_to_string(job.join("status")).ok();
    let status = status.and_then(|text| text.trim().parse::<u8>().ok());
    match (ran, status) {
        (true, Some(status)) => {
            fs::remove_dir_all(&job).with_context(|| format!("cannot remove {}", job.display()))?;
            Ok(ExitCode::from(status))
        }
        _ => bail!(
            "the nested machine did not come to its end within {} s, or not at all; see {}",
            kind.limit,
            job.display()
        ),
    }
}

/// What is told to the shell inside: the variables that say where things lie, and the command.
fn script(words: &[String]) -> String {
    let ours = env::vars().filter(|(name, _)| name.starts_with("BELLJAR_") || name.starts_with("RUST_"));
    let programs = vm_programs().map(|dir| (PROGRAMS.to_owned(), dir.display().to_string()));
    let all = ours.chain(programs);
    let mut text: String = all.map(|(name, value)| format!("export {name}={}\n", quoted(&value))).collect();
    text.push_str(&words.join(" "));
    text.push('\n');
    text
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn machine(kernel: &Path, job: &Path, kind: Machine) -> Result<Command> {
    let init = job.join("init.sh");
    // There is nothing to calibrate against inside, and the emulated counter is the host's.
    let line = format!(
        "console=ttyS0 console=hvc0 quiet root=root rootfstype=9p rootflags=trans=virtio,version=9p2000.L,msize=500000,cache=loose ro \
         init=/bin/bash mitigations=off no_timer_check bdev_allow_write_mounted=on audit=0 reboot=t panic=-1 tsc_early_khz={} tsc=reliable vfio-pci.ids={DEVICE_ID} -- {}",
        khz()?,
        init.display()
    );
    let share = |id: &str, path: &Path, options: &str| {
        format!("local,id={id},path={},security_model=none,multidevs=remap{options}", path.display())
    };
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &kind.limit.to_string(), "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
    command.args(["-no-reboot", "-display", "none", "-chardev", "stdio,id=out,mux=on,signal=off"]);
    // Only a whole PC can have an IOMMU.
    let (machine, bus) = if kind.device { (PC, "pci") } else { (SMALL, "device") };
    command.args(["-M", machine, "-cpu", PROCESSOR]);
    if kind.device {
        command.args(["-device", "intel-iommu,intremap=on", "-device", DEVICE]);
    }
    // Without an old interrupt controller the serial port is the kernel's alone; programs have another one.
    let serial = format!("virtio-serial-{bus}");
    command.args(["-serial", "chardev:out", "-device", &serial, "-device", "virtconsole,chardev=out"]);
    command.args(["-accel", &format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}")]);
    command.args(["-smp", &PROCESSORS.to_string(), "-m", &format!("{}M", kind.memory_mib)]);
    command.arg("-kernel").arg(kernel).args(["-append", &line]);
    command.args(["-fsdev", &share("root", Path::new("/"), ",readonly=on")]);
    command.args(["-device", &format!("virtio-9p-{bus},fsdev=root,mount_tag=root")]);
    command.args(["-fsdev", &share("job", job, "")]);
    command.args(["-device", &format!("virtio-9p-{bus},fsdev=job,mount_tag=job")]);
    command.args(["-object", "rng-random,id=rng,filename=/dev/urandom"]);
    command.args(["-device", &format!("virtio-rng-{bus},rng=rng")]);
    command.stdin(std::process::Stdio::null());
    Ok(command)
}

/// Rate of this machine's time stamp counter.
fn khz() -> Result<u64> {
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"));
    let mhz = line.and_then(|line| line.split_once(": ")?.1.trim().parse::<f64>().ok());
    let mhz = mhz.context("/proc/cpuinfo does not say the processor's rate")?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate, in kHz")]
    let khz = (mhz * 1000.0) as u64;
    Ok(khz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_reach_the_shell_inside_as_they_are() {
        assert_eq!(quoted("a b'c$d"), r"'a b'\''c$d'");
    }
}
