//! Does `/dev/kvm` really run kernel-mode code?
//!
//! That the device opens says little: inside some clouds' VMs user-mode guest code runs at full speed while every
//! kernel-mode instruction is interpreted, and several are not implemented at all. So one virtual CPU, in 64-bit mode at privilege
//! level 0, runs a loop that is timed.
//!
//! The virtual CPU has a thread of its own. Should it never come back, it is interrupted by a signal that the thread
//! blocks except while it is in the guest (`KVM_SET_SIGNAL_MASK`): no handler is needed, and none of the program's is disturbed.

use super::Kvm;
use crate::limits::{PROBE, PROBE_INSTRUCTIONS, PROBE_RUNS};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/kvm";

/// Interrupts a stuck virtual CPU. By default it is ignored, should it ever be delivered.
const INTERRUPT: libc::c_int = libc::SIGURG;

const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PAGE_DIRECTORY: usize = 0x3000;
const CODE: usize = 0x4000;
const MEMORY: usize = 0x5000;

/// Instructions of one round of the loop (`dec`, `jnz`).
const LOOP: u32 = 2;

/// `start: mov ecx, esi; again: dec ecx; jnz again; out 0x80, al; jmp start`
const PROGRAM: [u8; 10] = [0x89, 0xf1, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x80, 0xeb, 0xf6];

#[repr(C, align(4096))]
struct Memory([u8; MEMORY]);

/// Tries it. Takes a few milliseconds, at worst [`PROBE`]; blocks.
#[must_use]
pub fn kvm() -> Kvm {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Kvm::Absent,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Kvm::NotPermitted,
        Err(error) => return Kvm::Broken { step: "open it", reason: error.to_string() },
    }
    let (tell, result) = mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        // The receiver has gone when this took too long.
        let _ = tell.send(measure());
    });
    let answer = result.recv_timeout(PROBE);
    if answer.is_err() {
        interrupt(&thread);
    }
    let stuck = || Kvm::Broken { step: "run a guest", reason: format!("no end after {} s", PROBE.as_secs()) };
    match (thread.join(), answer) {
        (Ok(()), Ok(Ok(per_instruction))) => Kvm::measured(per_instruction),
        (Ok(()), Ok(Err((step, reason)))) => Kvm::Broken { step, reason },
        (_, _) => stuck(),
    }
}

#[expect(unsafe_code, reason = "std has no way to signal a thread")]
fn interrupt<T>(thread: &std::thread::JoinHandle<T>) {
    // SAFETY: the thread was not joined, so its id is valid, even if it has ended.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), INTERRUPT) };
}

/// The step that failed, and why.
type Failure = (&'static str, String);

fn failed<E: ToString>(step: &'static str) -> impl Fn(E) -> Failure {
    move |error| (step, error.to_string())
}

/// Nanoseconds per instruction.
fn measure() -> Result<f64, Failure> {
    let mut memory = Box::new(Memory([0; MEMORY]));
    fill(&mut memory);
    let kvm = kvm_ioctls::Kvm::new().map_err(failed("open it"))?;
    let vm = kvm.create_vm().map_err(failed("create a VM"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: std::ptr::from_mut(memory.as_mut()) as u64,
        flags: 0,
    };
    map(&vm, region).map_err(failed("give it memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a virtual CPU"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("ask for CPU features"))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("set CPU features"))?;
    enter_long_mode(&vcpu).map_err(failed("enter 64-bit mode"))?;
    allow_interrupt(&vcpu).map_err(failed("make it interruptible"))?;

    // The first round pays for faulting in the guest's pages; the others are timed.
    run(&mut vcpu, 1, Some(CODE as u64))?;
    let rounds = PROBE_INSTRUCTIONS / LOOP;
    let mut time = run(&mut vcpu, rounds, None)?;
    for _ in 1..PROBE_RUNS {
        time = time.min(run(&mut vcpu, rounds, None)?);
    }
    // Gone before the memory it uses.
    drop((vcpu, vm));
    drop(memory);
    Ok(time.as_secs_f64() * 1e9 / f64::from(rounds * LOOP))
}

/// Identity-maps the first 2 MiB and places the program.
fn fill(memory: &mut Memory) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE_PAGE: u64 = 1 << 7;
    let entries = [
        (PML4, PDPT as u64 | PRESENT_WRITABLE),
        (PDPT, PAGE_DIRECTORY as u64 | PRESENT_WRITABLE),
        (PAGE_DIRECTORY, LARGE_PAGE | PRESENT_WRITABLE),
    ];
    for (at, entry) in entries {
        memory.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
    memory.0[CODE..CODE + PROGRAM.len()].copy_from_slice(&PROGRAM);
}

#[expect(unsafe_code, reason = "KVM is given memory by address")]
fn map(vm: &kvm_ioctls::VmFd, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the caller's buffer is page-aligned, as long as the region says, and outlives VM and virtual CPU.
    unsafe { vm.set_user_memory_region(region) }
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const CR0_PROTECTION_NUMERIC_PAGING: u64 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LONG_MODE_ENABLED_ACTIVE: u64 = 1 << 8 | 1 << 10;
    let mut registers = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    registers.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    for segment in [&mut registers.ds, &mut registers.es, &mut registers.fs, &mut registers.gs, &mut registers.ss] {
        *segment = data;
    }
    registers.cr0 = CR0_PROTECTION_NUMERIC_PAGING;
    registers.cr3 = PML4 as u64;
    registers.cr4 = CR4_PAE;
    registers.efer = EFER_LONG_MODE_ENABLED_ACTIVE;
    vcpu.set_sregs(&registers)
}

/// Blocks the interrupting signal in this thread, and unblocks it while in the guest.
#[expect(unsafe_code, reason = "kvm-ioctls does not wrap KVM_SET_SIGNAL_MASK")]
fn allow_interrupt(vcpu: &VcpuFd) -> io::Result<()> {
    /// `_IOW(0xAE, 0x8b, struct kvm_signal_mask)`, whose size excludes the set.
    const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;
    /// The kernel's own signal set, smaller than the C library's.
    #[repr(C, packed)]
    struct Mask {
        length: u32,
        set: u64,
    }
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialized by the first call; the others get valid pointers.
    let result = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), INTERRUPT);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let mask = Mask { length: 8, set: 0 };
    // SAFETY: the descriptor is a virtual CPU's; `mask` has the layout the call reads.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs the loop `rounds` times and returns how long that took. `start` sets the program counter; without it the program
/// goes on where it left off.
fn run(vcpu: &mut VcpuFd, rounds: u32, start: Option<u64>) -> Result<Duration, Failure> {
    const RESERVED_FLAG: u64 = 2;
    let current = vcpu.get_regs().map_err(failed("read registers"))?;
    let registers = kvm_regs {
        rsi: rounds.into(),
        rip: start.unwrap_or(current.rip),
        rflags: RESERVED_FLAG,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).map_err(failed("set registers"))?;
    let begin = Instant::now();
    let exit = vcpu.run().map_err(failed("run a guest"))?;
    let time = begin.elapsed();
    match exit {
        VcpuExit::IoOut(0x80, _) => Ok(time),
        other => Err(("run a guest", format!("unexpected exit {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_ends_and_its_answer_is_plausible() {
        let begin = Instant::now();
        let answer = kvm();
        assert!(begin.elapsed() < PROBE * 2, "{answer:?}");
        if let Kvm::Usable { ns_per_instruction } | Kvm::Interpreted { ns_per_instruction } = answer {
            assert!((0.01..100_000.0).contains(&ns_per_instruction), "{answer:?}");
        }
        assert!(!answer.to_string().is_empty());
    }

    /// A program that loops for ever (`jmp $`) must be interrupted; where KVM works at all, that is.
    #[test]
    fn stuck_guest_is_interrupted() {
        if matches!(kvm(), Kvm::Absent | Kvm::NotPermitted | Kvm::Broken { .. }) {
            return;
        }
        let (tell, result) = mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let mut memory = Box::new(Memory([0; MEMORY]));
            fill(&mut memory);
            memory.0[CODE..CODE + 2].copy_from_slice(&[0xeb, 0xfe]);
            let kvm = kvm_ioctls::Kvm::new().unwrap();
            let vm = kvm.create_vm().unwrap();
            let userspace_addr = std::ptr::from_mut(memory.as_mut()) as u64;
            let region =
                kvm_userspace_memory_region { memory_size: MEMORY as u64, userspace_addr, ..Default::default() };
            map(&vm, region).unwrap();
            let mut vcpu = vm.create_vcpu(0).unwrap();
            vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
            enter_long_mode(&vcpu).unwrap();
            allow_interrupt(&vcpu).unwrap();
            tell.send(()).unwrap();
            run(&mut vcpu, 1, Some(CODE as u64)).map(|_| ())
        });
        result.recv().unwrap();
        // Before or after it enters the guest: the signal stays pending until it does.
        interrupt(&thread);
        assert!(thread.join().unwrap().is_err());
    }
}
