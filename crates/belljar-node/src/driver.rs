//! Which driver runs the sandboxes.

use std::path::Path;

use belljar_vmm::{
    Driver, DriverKind,
    probe::{self, QemuProblem},
    qemu::{QemuConfig, QemuDriver},
};

use crate::DriverSetting;

/// Looked up in `PATH`.
const QEMU: &str = "qemu-system-x86_64";

/// No driver can be used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Nothing on this machine can run a VM.
    #[error("this machine can run no VM: {reason}{}", .remedy.as_ref().map(|it| format!("; {it}")).unwrap_or_default())]
    None {
        /// Why not.
        reason: String,
        /// How to change that.
        remedy: Option<String>,
    },
    /// QEMU is missing or too old.
    #[error("QEMU cannot be used: {0}")]
    Qemu(#[from] QemuProblem),
}

/// The driver of the setting; probes the machine where it says `Auto`.
pub(crate) fn open(setting: &DriverSetting) -> Result<Box<dyn Driver>, DriverError> {
    match setting {
        #[cfg(feature = "process-driver")]
        DriverSetting::Process { agent } => Ok(Box::new(belljar_vmm::process::ProcessDriver::new(agent.clone()))),
        DriverSetting::Auto => {
            let qemu = probe::qemu(Path::new(QEMU));
            let choice = probe::choose(&probe::kvm(), &qemu);
            tracing::info!(driver = ?choice.driver, reason = choice.reason, "driver chosen");
            match choice.driver {
                Some(DriverKind::Qemu { accel }) => Ok(Box::new(QemuDriver::new(QemuConfig::new(qemu?, accel)))),
                Some(DriverKind::Process) | None => {
                    Err(DriverError::None { reason: choice.reason, remedy: choice.better })
                }
            }
        }
    }
}
