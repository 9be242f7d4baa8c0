//! What this machine can run VMs with. Probed, not guessed: [`kvm`] executes kernel-mode code and times it, [`qemu`]
//! asks the program. [`choose`] turns the answers into a decision and into the words for `belljar doctor`.

mod kvm;
mod qemu;

use crate::driver::{Accelerator, DriverKind};
use crate::limits::USABLE_NS_PER_INSTRUCTION;
pub use kvm::kvm;
pub use qemu::{QemuProblem, QemuProgram, qemu};
use std::fmt;

/// What became of trying to execute kernel-mode code with `/dev/kvm`.
#[derive(Debug, Clone, PartialEq)]
pub enum Kvm {
    /// There is no `/dev/kvm`.
    Absent,
    /// It is there and we may not open it.
    NotPermitted,
    /// It opens and something else fails: the step and the reason.
    Broken { step: &'static str, reason: String },
    /// It executes kernel-mode code far too slowly: in software, one instruction at a time.
    Interpreted { ns_per_instruction: f64 },
    /// It works.
    Usable { ns_per_instruction: f64 },
}

impl Kvm {
    /// Judges a measured speed.
    fn measured(ns_per_instruction: f64) -> Self {
        if ns_per_instruction > USABLE_NS_PER_INSTRUCTION {
            Self::Interpreted { ns_per_instruction }
        } else {
            Self::Usable { ns_per_instruction }
        }
    }

    /// What to do to get a usable one; `None` when it is.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Absent => Some(
                "use a machine with VT-x/AMD-V, switch it on in the firmware or (in a VM) allow nested virtualization, and \
                 load kvm_intel or kvm_amd",
            ),
            Self::NotPermitted => Some("add this user to the group `kvm` and log in again, or run as root"),
            Self::Broken { .. } | Self::Interpreted { .. } => {
                Some("this machine is itself a VM without nested virtualization: allow that, or use bare metal")
            }
            Self::Usable { .. } => None,
        }
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("/dev/kvm does not exist"),
            Self::NotPermitted => f.write_str("/dev/kvm may not be opened by this user"),
            Self::Broken { step, reason } => write!(f, "/dev/kvm opens and cannot run a guest: {step}: {reason}"),
            Self::Interpreted { ns_per_instruction } => write!(
                f,
                "/dev/kvm interprets kernel-mode code ({ns_per_instruction:.0} ns per instruction; hardware needs less \
                 than 1)"
            ),
            Self::Usable { ns_per_instruction } => {
                write!(f, "/dev/kvm works ({ns_per_instruction:.2} ns per kernel-mode instruction)")
            }
        }
    }
}

/// Which driver to use, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct DriverChoice {
    /// `None` when no VM can run here.
    pub driver: Option<DriverKind>,
    /// One sentence.
    pub reason: String,
    /// How to get a better one; `None` when this is the best.
    pub better: Option<String>,
}

/// Decides from the probes' answers.
#[must_use]
pub fn choose(kvm: &Kvm, qemu: &Result<QemuProgram, QemuProblem>) -> DriverChoice {
    let program = match qemu {
        Ok(program) => program,
        Err(problem) => {
            return DriverChoice {
                driver: None,
                reason: problem.to_string(),
                better: Some(problem.remedy().to_owned()),
            };
        }
    };
    let accel = match kvm {
        Kvm::Usable { .. } => Accelerator::Kvm,
        Kvm::Absent | Kvm::NotPermitted | Kvm::Broken { .. } | Kvm::Interpreted { .. } => Accelerator::Tcg,
    };
    let way = match accel {
        Accelerator::Kvm => "in hardware",
        Accelerator::Tcg => "in software, 6 to 8 times slower",
    };
    DriverChoice {
        driver: Some(DriverKind::Qemu { accel }),
        reason: format!("QEMU {} runs guests {way}: {kvm}", program.version),
        better: kvm.remedy().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn choices() {
        const TCG: Option<DriverKind> = Some(DriverKind::Qemu { accel: Accelerator::Tcg });
        const KVM: Option<DriverKind> = Some(DriverKind::Qemu { accel: Accelerator::Kvm });
        let found = || Ok(QemuProgram { path: PathBuf::from("/usr/bin/q"), version: "10.0.2".into() });
        let old = || Err(QemuProblem::TooOld { program: "q".into(), version: "7.2.1".into() });
        let none = || Err(QemuProblem::NotFound { program: "q".into() });
        let broken = || Kvm::Broken { step: "create a VM", reason: "no".into() };
        let check = |kvm: Kvm, qemu: Result<QemuProgram, QemuProblem>, driver, reason: &str, better: Option<&str>| {
            let choice = choose(&kvm, &qemu);
            assert_eq!(choice.driver, driver, "{kvm:?} {qemu:?}");
            assert!(choice.reason.contains(reason), "{choice:?}");
            assert_eq!(choice.better.is_some(), better.is_some(), "{choice:?}");
            assert!(choice.better.unwrap_or_default().contains(better.unwrap_or_default()), "{kvm:?}");
        };
        check(Kvm::measured(0.3), found(), KVM, "in hardware", None);
        check(Kvm::measured(20.0), found(), KVM, "in hardware", None);
        check(Kvm::measured(560.0), found(), TCG, "interprets kernel-mode code (560 ns", Some("nested"));
        check(Kvm::Absent, found(), TCG, "does not exist", Some("firmware"));
        check(Kvm::NotPermitted, found(), TCG, "may not be opened", Some("group `kvm`"));
        check(broken(), found(), TCG, "create a VM: no", Some("nested"));
        for kvm in [Kvm::measured(0.3), Kvm::measured(560.0), Kvm::Absent, Kvm::NotPermitted, broken()] {
            check(kvm.clone(), old(), None, "7.2.1", Some("bookworm-backports"));
            check(kvm, none(), None, "not found", Some("apt install"));
        }
    }
}
