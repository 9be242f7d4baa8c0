//! One suite for every driver: what a VM must do, whatever runs it. It says nothing of any driver.
//!
//! The guests are a few instructions, so that a VM is made in no time; what a real guest does is tested where there is one,
//! with the whole system.
//!
//! Which drivers: those of `BELLJAR_CONFORMANCE`, names separated by commas, which then must work here; else QEMU in
//! software, where it is installed.

mod hostile;
mod life;
pub(crate) mod saved;

use crate::HiddenFeatures;
use crate::cloud_hypervisor;
use crate::driver::{Accelerator, DiskLimits, Driver, DriverKind, NetworkSpec, VmSpec};
use crate::firecracker;
use crate::jail::{Jail, tests};
use crate::probe;
use crate::qemu::{QemuConfig, QemuDriver};
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// See the module.
const DRIVERS: &str = "BELLJAR_CONFORMANCE";
/// Where VM programs are looked for before `PATH`.
const PROGRAMS: &str = "BELLJAR_VMM_DIR";

fn program(name: &str) -> PathBuf {
    let beside = std::env::var_os(PROGRAMS).map(|dir| Path::new(&dir).join(name)).filter(|path| path.exists());
    beside.unwrap_or_else(|| PathBuf::from(name))
}

/// QEMU, if it is installed and new enough.
pub(crate) fn qemu(accel: Accelerator) -> Option<QemuDriver> {
    let program = probe::qemu(&program("qemu-system-x86_64")).ok()?;
    Some(QemuDriver::new(QemuConfig::new(program, accel)))
}

fn driver(name: &str) -> Box<dyn Driver> {
    let qemu = |accel| Box::new(qemu(accel).expect("QEMU is installed"));
    for accel in [Accelerator::Kvm, Accelerator::Tcg] {
        if name == (DriverKind::Qemu { accel }).to_string() {
            return qemu(accel);
        }
    }
    if name == DriverKind::Firecracker.to_string() {
        return firecracker::driver(probe::firecracker(&program(name)).expect("Firecracker is installed"));
    }
    assert_eq!(name, DriverKind::CloudHypervisor.to_string(), "{DRIVERS}");
    cloud_hypervisor::driver(probe::cloud_hypervisor(&program(name)).expect("Cloud Hypervisor is installed"))
}

fn drivers() -> Vec<Box<dyn Driver>> {
    match std::env::var(DRIVERS) {
        Ok(names) => names.split(',').map(driver).collect(),
        Err(_) => qemu(Accelerator::Tcg).map(|qemu| Box::new(qemu) as Box<dyn Driver>).into_iter().collect(),
    }
}

/// Does it with each driver, in a directory that is clean afterwards.
async fn with_each(work: impl AsyncFn(&dyn Driver, &World)) {
    for driver in drivers() {
        let in_software = driver.kind() == DriverKind::Qemu { accel: Accelerator::Tcg };
        let mut jails = vec![tests::jail()];
        // Without one, too, where that takes no time.
        if in_software && jails[0].is_some() {
            jails.push(None);
        }
        for jail in jails {
            println!("{}, jailed: {}", driver.kind(), jail.is_some());
            let world = World { jail, ..World::new() };
            work(&*driver, &world).await;
            world.assert_clean();
        }
    }
}

/// A directory with everything a launch needs.
pub(crate) struct World {
    dir: tempfile::TempDir,
    jail: Option<Jail>,
}

impl World {
    pub(crate) fn new() -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), jail: None };
        std::fs::create_dir(this.run_dir()).unwrap();
        std::fs::set_permissions(this.run_dir(), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(this.path("disk"), vec![0; 1 << 20]).unwrap();
        std::fs::write(this.path("initrd"), "an initrd").unwrap();
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Deeper than a socket's address is long.
    pub(crate) fn run_dir(&self) -> PathBuf {
        let deep = self.path(&"d".repeat(120));
        if !deep.exists() {
            std::fs::create_dir(&deep).unwrap();
        }
        deep.join("run")
    }

    /// An executable shell script.
    pub(crate) fn script(&self, text: &str) -> PathBuf {
        let path = self.path("script");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A VM whose kernel is the given machine code.
    pub(crate) fn spec(&self, code: &[u8]) -> VmSpec {
        std::fs::write(self.path("kernel"), kernel(code)).unwrap();
        VmSpec {
            id: "test".into(),
            run_dir: self.run_dir(),
            kernel: self.path("kernel"),
            initrd: Some(self.path("initrd")),
            disk: Some(self.path("disk")),
            cmdline_extra: String::new(),
            vcpus: 1,
            memory_mib: 64,
            memory: None,
            devices: None,
            changes: None,
            disk_limits: DiskLimits { bytes: NonZeroU64::new(1 << 30), requests: None },
            hidden_features: HiddenFeatures::default(),
            passed_through: Vec::new(),
            network: NetworkSpec::None,
            jail: self.jail.clone(),
        }
    }

    pub(crate) fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.run_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Nothing in the run directory, and no process that works in it.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.files(), Vec::<String>::new());
        let here = self.run_dir();
        let users: Vec<_> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == here))
            .collect();
        assert_eq!(users, Vec::<PathBuf>::new());
    }
}

/// An ELF file with a PVH entry (32-bit protected mode) at 1 MiB.
fn kernel(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 12 + 4 + 8;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    // Executable, x86-64, entry, one program header table.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [ADDRESS, 64, 0] {
        put(&word.to_le_bytes());
    }
    put(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    let length = code.len() as u64;
    for (kind, offset, address, size) in [(1_u32, HEADERS + NOTE, ADDRESS, length), (4, HEADERS, 0, NOTE)] {
        put(&kind.to_le_bytes());
        put(&7_u32.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            put(&word.to_le_bytes());
        }
    }
    // The note: name size, value size, XEN_ELFNOTE_PHYS32_ENTRY, "Xen", the entry.
    for word in [4_u32, 8, 18] {
        put(&word.to_le_bytes());
    }
    put(b"Xen\0");
    put(&ADDRESS.to_le_bytes());
    put(code);
    elf
}

/// `hlt` for ever.
pub(crate) const IDLE: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// Loads an empty interrupt table and traps: a triple fault, as the kernel's `reboot=t` does.
/// `mov esp, 0x80000; push 0; push 0; lidt [esp]; ud2`
pub(crate) const RESET: [u8; 15] = [0xbc, 0, 0, 8, 0, 0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];

/// Writes a text to the serial port and then runs `after`.
pub(crate) fn print(text: &str, after: &[u8]) -> Vec<u8> {
    // mov dx, 0x3f8
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        // mov al, byte; out dx, al
        code.extend([0xb0, byte, 0xee]);
    }
    code.extend(after);
    code
}

pub(crate) fn is_running(pid: u32) -> bool {
    crate::child::start_time(pid).is_some()
}
