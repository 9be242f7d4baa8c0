//! What this machine can run VMs with. Probed, not guessed: [`kvm`] executes kernel-mode code and times it; [`firecracker`],
//! [`cloud_hypervisor`] and [`qemu`] ask the programs. [`choose`] turns the answers into a decision and into the words for
//! `belljar doctor`.

mod kvm;
mod program;

use crate::driver::{Accelerator, DriverKind};
use crate::limits::USABLE_NS_PER_INSTRUCTION;
pub use kvm::kvm;
pub use program::{Program, ProgramProblem, cloud_hypervisor, firecracker, qemu};
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

/// What was found of the programs.
#[derive(Debug, Clone, PartialEq)]
pub struct Programs {
    /// See [`firecracker`].
    pub firecracker: Result<Program, ProgramProblem>,
    /// See [`cloud_hypervisor`].
    pub cloud_hypervisor: Result<Program, ProgramProblem>,
    /// See [`qemu`].
    pub qemu: Result<Program, ProgramProblem>,
}

/// Decides from the probes' answers. `taps`: whether VMs can have taps, which all but QEMU need for a network; why not, if so.
#[must_use]
pub fn choose(kvm: &Kvm, programs: &Programs, taps: &Result<(), String>) -> DriverChoice {
    if !matches!(kvm, Kvm::Usable { .. }) {
        return choose_qemu(kvm, &programs.qemu, None);
    }
    let Programs { firecracker, cloud_hypervisor, qemu } = programs;
    let (driver, name, program, problem) = match (firecracker, cloud_hypervisor) {
        (Ok(program), _) => (DriverKind::Firecracker, "Firecracker", program, None),
        (Err(problem), Ok(program)) => (DriverKind::CloudHypervisor, "Cloud Hypervisor", program, Some(problem)),
        (Err(problem), Err(_)) => {
            let skipped = (problem.to_string(), Some(problem.remedy().to_owned()));
            return choose_qemu(kvm, qemu, Some(skipped));
        }
    };
    if let Err(why) = taps {
        return choose_qemu(kvm, qemu, Some((format!("{name} needs taps, and {why}"), None)));
    }
    let words = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
    let reason = format!("{name} {} runs guests in hardware: {kvm}{words}", program.version);
    DriverChoice { driver: Some(driver), reason, better: problem.map(|problem| problem.remedy().to_owned()) }
}

/// `skipped`: why none of the others is used though KVM works, and the remedy.
fn choose_qemu(
    kvm: &Kvm,
    qemu: &Result<Program, ProgramProblem>,
    skipped: Option<(String, Option<String>)>,
) -> DriverChoice {
    let program = match qemu {
        Ok(program) => program,
        Err(problem) => {
            let reason = skipped.map_or_else(|| problem.to_string(), |(why, _)| format!("{why}; {problem}"));
            return DriverChoice { driver: None, reason, better: Some(problem.remedy().to_owned()) };
        }
    };
    let (accel, way) = match kvm {
        Kvm::Usable { .. } => (Accelerator::Kvm, "in hardware"),
        Kvm::Absent | Kvm::NotPermitted | Kvm::Broken { .. } | Kvm::Interpreted { .. } => {
            (Accelerator::Tcg, "in software, 6 to 8 times slower")
        }
    };
    let (why, better) = skipped.map_or((None, kvm.remedy().map(str::to_owned)), |(why, better)| (Some(why), better));
    let why = why.map(|why| format!("; {why}")).unwrap_or_default();
    DriverChoice {
        driver: Some(DriverKind::Qemu { accel }),
        reason: format!("QEMU {} runs guests {way}: {kvm}{why}", program.version),
        better,
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
        const FIRECRACKER: Option<DriverKind> = Some(DriverKind::Firecracker);
        const CLOUD: Option<DriverKind> = Some(DriverKind::CloudHypervisor);
        let found = |version: &str| Ok(Program { path: PathBuf::from("/usr/bin/x"), version: version.into() });
        let none = |remedy| Err(ProgramProblem::NotFound { program: "x".into(), remedy });
        let old = Err(ProgramProblem::TooOld {
            program: "q".into(),
            version: "7.2.1".into(),
            oldest: (9, 0),
            remedy: "update",
        });
        let broken = || Kvm::Broken { step: "create a VM", reason: "no".into() };
        let programs = |firecracker, cloud_hypervisor, qemu| Programs { firecracker, cloud_hypervisor, qemu };
        let qemu = programs(none("get it"), none("or it"), found("10.0.2"));
        let both = programs(found("1.14.0"), found("52.0"), found("10.0.2"));
        let fire = programs(found("1.14.0"), none("or it"), none("apt install"));
        let cloud = programs(none("get it"), found("52.0"), none("apt install"));
        let (taps, no_taps) = (Ok(()), Err("this user may not make them".to_owned()));
        let check = |kvm: Kvm, programs: &Programs, taps, driver, reason: &str, better: Option<&str>| {
            let choice = choose(&kvm, programs, taps);
            assert_eq!(choice.driver, driver, "{kvm:?} {programs:?}");
            assert!(choice.reason.contains(reason), "{choice:?}");
            assert_eq!(choice.better.is_some(), better.is_some(), "{choice:?}");
            assert!(choice.better.unwrap_or_default().contains(better.unwrap_or_default()), "{kvm:?}");
        };
        check(Kvm::measured(0.3), &both, &taps, FIRECRACKER, "Firecracker 1.14.0 runs guests in hardware", None);
        check(Kvm::measured(0.3), &fire, &taps, FIRECRACKER, "0.30 ns", None);
        let cloud_and_qemu = programs(none("get it"), found("52.0"), found("10.0.2"));
        check(Kvm::measured(0.3), &cloud_and_qemu, &taps, CLOUD, "Cloud Hypervisor 52.0 runs guests", Some("get it"));
        check(Kvm::measured(0.3), &cloud_and_qemu, &no_taps, KVM, "Cloud Hypervisor needs taps", None);
        check(Kvm::measured(0.3), &both, &no_taps, KVM, "Firecracker needs taps, and this user", None);
        check(Kvm::measured(20.0), &qemu, &taps, KVM, "in hardware", Some("get it"));
        check(Kvm::measured(560.0), &both, &taps, TCG, "interprets kernel-mode code (560 ns", Some("nested"));
        check(Kvm::Absent, &qemu, &taps, TCG, "does not exist", Some("firmware"));
        check(Kvm::NotPermitted, &both, &taps, TCG, "may not be opened", Some("group `kvm`"));
        check(broken(), &both, &taps, TCG, "create a VM: no", Some("nested"));
        for kvm in [Kvm::measured(560.0), Kvm::Absent, Kvm::NotPermitted, broken()] {
            check(kvm.clone(), &fire, &taps, None, "not found", Some("apt install"));
            let old = programs(none("get it"), none("or it"), old.clone());
            check(kvm, &old, &taps, None, "7.2.1", Some("update"));
        }
        check(Kvm::measured(0.3), &fire, &no_taps, None, "needs taps", Some("apt install"));
        check(Kvm::measured(0.3), &cloud, &taps, CLOUD, "in hardware", Some("get it"));
        check(Kvm::measured(560.0), &cloud, &taps, None, "not found", Some("apt install"));
    }
}
