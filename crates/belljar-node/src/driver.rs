//! Which driver runs the sandboxes: the setting, or the best that this machine can do.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use belljar_vmm::{
    Accelerator, Driver, DriverKind, cloud_hypervisor, firecracker,
    probe::{self, DriverChoice, Kvm, Program, ProgramProblem, Programs},
    qemu::{QemuConfig, QemuDriver},
};

use serde::Deserialize;

use crate::config::NodeConfig;
use crate::network::{self, NetworkSetting};

const QEMU: &str = "qemu-system-x86_64";
const FIRECRACKER: &str = "firecracker";
const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";

/// What runs the sandboxes; as text `auto`, or the name of a driver as [`DriverKind`] has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DriverSetting {
    /// The best that this machine can do.
    #[default]
    Auto,
    /// This one, or the node does not start.
    Only(DriverKind),
    /// The guest agent as a plain child: isolates nothing. For tests.
    #[cfg(feature = "process-driver")]
    Process {
        /// The agent's binary.
        agent: PathBuf,
    },
}

/// Drivers that can be asked for by name.
const KINDS: [DriverKind; 4] = [
    DriverKind::Firecracker,
    DriverKind::CloudHypervisor,
    DriverKind::Qemu { accel: Accelerator::Kvm },
    DriverKind::Qemu { accel: Accelerator::Tcg },
];

impl DriverSetting {
    /// Whether sandboxes are virtual machines, which need a kernel.
    #[must_use]
    pub fn is_vm(&self) -> bool {
        match self {
            Self::Auto | Self::Only(_) => true,
            #[cfg(feature = "process-driver")]
            Self::Process { .. } => false,
        }
    }
}

impl FromStr for DriverSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        #[cfg(feature = "process-driver")]
        if let Some(agent) = text.strip_prefix("process:") {
            return Ok(Self::Process { agent: agent.into() });
        }
        let found = KINDS.into_iter().find(|kind| kind.to_string() == text);
        found.map(Self::Only).ok_or_else(|| {
            let names = KINDS.map(|kind| kind.to_string()).join(", ");
            format!("there is no driver {text:?}; write auto, {names}")
        })
    }
}

impl TryFrom<String> for DriverSetting {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for DriverSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(kind) => kind.fmt(f),
            #[cfg(feature = "process-driver")]
            Self::Process { agent } => write!(f, "process:{}", agent.display()),
        }
    }
}

/// What this machine has to run VMs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// See [`probe::kvm`].
    pub kvm: Kvm,
    /// The VM programs.
    pub programs: Programs,
    /// Whether VMs can have taps, or why not. Asked only where it matters.
    pub taps: Result<(), String>,
}

impl Machine {
    /// Probes it. `dir` is where VM programs are looked for before `PATH`. Blocking, some tens of milliseconds.
    #[must_use]
    pub fn probe(dir: Option<&Path>, network: NetworkSetting) -> Self {
        let kvm = probe::kvm();
        let named = |name: &str| {
            let beside = dir.map(|dir| dir.join(name)).filter(|path| path.is_file());
            beside.unwrap_or_else(|| PathBuf::from(name))
        };
        let programs = Programs {
            firecracker: probe::firecracker(&named(FIRECRACKER)),
            cloud_hypervisor: probe::cloud_hypervisor(&named(CLOUD_HYPERVISOR)),
            qemu: probe::qemu(&named(QEMU)),
        };
        let matters =
            matches!(kvm, Kvm::Usable { .. }) && (programs.firecracker.is_ok() || programs.cloud_hypervisor.is_ok());
        let taps = match network {
            NetworkSetting::User => Err("the setting is QEMU's user-mode network".to_owned()),
            NetworkSetting::Auto | NetworkSetting::Namespaces if matters => {
                network::probe().map_err(|error| crate::chain(&error))
            }
            NetworkSetting::Auto | NetworkSetting::Namespaces => Ok(()),
        };
        Self { kvm, programs, taps }
    }

    /// What it is to run sandboxes with.
    #[must_use]
    pub fn choose(&self, setting: &DriverSetting) -> DriverChoice {
        match setting {
            DriverSetting::Auto => probe::choose(&self.kvm, &self.programs, &self.taps),
            DriverSetting::Only(kind) => self.only(*kind),
            #[cfg(feature = "process-driver")]
            DriverSetting::Process { .. } => DriverChoice {
                driver: Some(DriverKind::Process),
                reason: "a plain child process, which isolates nothing; for tests only".to_owned(),
                better: None,
            },
        }
    }

    fn only(&self, kind: DriverKind) -> DriverChoice {
        let obstacle = match kind {
            DriverKind::Firecracker => self.tap_obstacle(&self.programs.firecracker),
            DriverKind::CloudHypervisor => self.tap_obstacle(&self.programs.cloud_hypervisor),
            DriverKind::Qemu { accel: Accelerator::Kvm } => {
                self.kvm_obstacle().or_else(|| obstacle(&self.programs.qemu))
            }
            DriverKind::Qemu { accel: Accelerator::Tcg } => obstacle(&self.programs.qemu),
            DriverKind::Process => Some(("it is for tests only".to_owned(), None)),
        };
        match obstacle {
            None => DriverChoice { driver: Some(kind), reason: "the setting".to_owned(), better: None },
            Some((why, better)) => {
                DriverChoice { driver: None, reason: format!("the setting is {kind}, and {why}"), better }
            }
        }
    }

    /// Of a program that needs KVM and taps.
    fn tap_obstacle(&self, program: &Result<Program, ProgramProblem>) -> Option<Obstacle> {
        let taps = || self.taps.as_ref().err().map(|why| (format!("it needs taps: {why}"), None));
        self.kvm_obstacle().or_else(|| obstacle(program)).or_else(taps)
    }

    fn kvm_obstacle(&self) -> Option<Obstacle> {
        self.kvm.remedy().map(|remedy| (self.kvm.to_string(), Some(remedy.to_owned())))
    }
}

/// Why not, and the remedy.
type Obstacle = (String, Option<String>);

fn obstacle(program: &Result<Program, ProgramProblem>) -> Option<Obstacle> {
    let problem = program.as_ref().err()?;
    Some((problem.to_string(), Some(problem.remedy().to_owned())))
}

/// No driver can be used.
#[derive(Debug, thiserror::Error)]
#[error("this machine can run no VM: {reason}{}", .remedy.as_ref().map(|it| format!("; {it}")).unwrap_or_default())]
pub struct DriverError {
    /// Why not.
    reason: String,
    /// How to change that.
    remedy: Option<String>,
}

/// The driver of the setting; probes the machine.
pub(crate) fn open(config: &NodeConfig) -> Result<Box<dyn Driver>, DriverError> {
    let driver = probed(config)?;
    if config.hidden_features.is_empty() || driver.capabilities().hides_features {
        return Ok(driver);
    }
    let names = config.hidden_features.names().collect::<Vec<_>>().join(", ");
    let reason = format!("{names} are not to be told to guests, and {} tells them all there is", driver.kind());
    Err(DriverError { reason, remedy: Some("choose another driver, or hide nothing".to_owned()) })
}

fn probed(config: &NodeConfig) -> Result<Box<dyn Driver>, DriverError> {
    #[cfg(feature = "process-driver")]
    if let DriverSetting::Process { agent } = &config.driver {
        return Ok(Box::new(belljar_vmm::process::ProcessDriver::new(agent.clone())));
    }
    let machine = Machine::probe(config.vmm_dir.as_deref(), config.network.kind);
    let choice = machine.choose(&config.driver);
    tracing::info!(driver = ?choice.driver, reason = choice.reason, "driver chosen");
    let none = DriverError { reason: choice.reason, remedy: choice.better };
    let Programs { firecracker, cloud_hypervisor, qemu } = machine.programs;
    let driver = match choice.driver {
        Some(DriverKind::Firecracker) => firecracker.ok().map(firecracker::driver),
        Some(DriverKind::CloudHypervisor) => cloud_hypervisor.ok().map(cloud_hypervisor::driver),
        Some(DriverKind::Qemu { accel }) => {
            qemu.ok().map(|program| -> Box<dyn Driver> { Box::new(QemuDriver::new(QemuConfig::new(program, accel))) })
        }
        Some(DriverKind::Process) | None => None,
    };
    driver.ok_or(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_named_as_it_names_itself() {
        for text in ["auto", "firecracker", "cloud-hypervisor", "qemu-kvm", "qemu-tcg"] {
            assert_eq!(text.parse::<DriverSetting>().expect(text).to_string(), text);
        }
        let error = "xen".parse::<DriverSetting>().expect_err("none");
        assert_eq!(error, "there is no driver \"xen\"; write auto, firecracker, cloud-hypervisor, qemu-kvm, qemu-tcg");
        assert!("process".parse::<DriverSetting>().is_err());
    }

    #[test]
    fn what_was_asked_for_is_taken_or_refused_with_the_reason() {
        let good = Machine {
            kvm: Kvm::Usable { ns_per_instruction: 0.3 },
            programs: Programs {
                firecracker: Ok(Program { path: "f".into(), version: "1.14.0".into() }),
                cloud_hypervisor: Ok(Program { path: "c".into(), version: "52.0".into() }),
                qemu: Ok(Program { path: "q".into(), version: "10.0.2".into() }),
            },
            taps: Ok(()),
        };
        let none = |remedy| Err(ProgramProblem::NotFound { program: "x".into(), remedy });
        let no_kvm = Machine { kvm: Kvm::Absent, ..good.clone() };
        let no_firecracker = Programs { firecracker: none("get it"), ..good.programs.clone() };
        let no_firecracker = Machine { programs: no_firecracker, ..good.clone() };
        let no_cloud_hypervisor = Programs { cloud_hypervisor: none("get it"), ..good.programs.clone() };
        let no_cloud_hypervisor = Machine { programs: no_cloud_hypervisor, ..good.clone() };
        let no_qemu = Machine { programs: Programs { qemu: none("apt"), ..good.programs.clone() }, ..good.clone() };
        let no_taps = Machine { taps: Err("not root".to_owned()), ..good.clone() };
        let check = |machine: &Machine, name: &str, expected: Result<(), &str>| {
            let choice = machine.choose(&name.parse().expect(name));
            match expected {
                Ok(()) => assert_eq!(choice.driver.map(|kind| kind.to_string()).as_deref(), Some(name), "{choice:?}"),
                Err(words) => assert!(choice.driver.is_none() && choice.reason.contains(words), "{choice:?}"),
            }
        };
        for name in ["firecracker", "cloud-hypervisor", "qemu-kvm", "qemu-tcg"] {
            check(&good, name, Ok(()));
        }
        check(&no_kvm, "firecracker", Err("the setting is firecracker, and /dev/kvm does not exist"));
        check(&no_kvm, "qemu-kvm", Err("/dev/kvm does not exist"));
        check(&no_kvm, "qemu-tcg", Ok(()));
        check(&no_firecracker, "firecracker", Err("x was not found"));
        check(&no_firecracker, "cloud-hypervisor", Ok(()));
        check(&no_cloud_hypervisor, "cloud-hypervisor", Err("x was not found"));
        check(&no_qemu, "qemu-tcg", Err("x was not found"));
        check(&no_qemu, "firecracker", Ok(()));
        check(&no_taps, "firecracker", Err("needs taps: not root"));
        check(&no_taps, "cloud-hypervisor", Err("needs taps: not root"));
        check(&no_taps, "qemu-kvm", Ok(()));
    }
}
