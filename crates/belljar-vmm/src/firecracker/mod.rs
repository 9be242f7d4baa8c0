//! Firecracker, on working KVM. Started and driven as [`crate::api`] says; here is what it does its own way:
//!
//! - Guest memory of a guest that boots is the process's own, without a file: it begins with zeroes, as a sparse file does. A
//!   restored one maps its file, copy-on-write.
//! - It opens its tap by name: it is started in the namespace where that is.

mod requests;

use crate::api::{Api, ApiDriver};
use crate::child::Ended;
use crate::driver::{Capabilities, Driver, DriverKind, NetworkSpec, VmExit, VmSpec};
use crate::error::VmmError;
use crate::limits::{DEVICES_BYTES, MAX_FIRECRACKER_VCPUS, MAX_MEMORY_MIB};
use crate::panic_words::panic_message;
use crate::probe::Program;
use crate::rest::{Rest, RestError};
use crate::run_dir::{DEVICES, INITRD, KERNEL, MEMORY, RunDir};
use crate::saved::Saved;
use async_trait::async_trait;
use serde_json::Value;
use std::path::Path;

/// What it logs when a processor of the guest has a triple fault.
const TRIPLE_FAULT: &str = "vcpu run: Shutdown";

/// Runs VMs with this Firecracker, which [`probe::firecracker`](crate::probe::firecracker) found.
#[must_use]
pub fn driver(program: Program) -> Box<dyn Driver> {
    Box::new(ApiDriver::<Firecracker>::new(program))
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Firecracker;

async fn put(rest: &Rest, (path, body): requests::Put) -> Result<(), RestError> {
    rest.put(&path, &body).await.map(drop)
}

#[async_trait]
impl Api for Firecracker {
    const KIND: DriverKind = DriverKind::Firecracker;
    const BOOTS_FROM_MEMORY_FILE: bool = false;

    fn capabilities() -> Capabilities {
        Capabilities {
            isolates: true,
            hardware: true,
            user_network: false,
            tap_network: true,
            named_tap: true,
            snapshots: true,
            saving_ends_link: true,
            restricts_network: false,
            hides_features: true,
            passes_through: false,
            prepares: true,
            takes_changes: true,
            takes_back_memory: true,
            limits_resources: true,
            max_vcpus: MAX_FIRECRACKER_VCPUS,
            max_memory_mib: MAX_MEMORY_MIB,
        }
    }

    fn arguments(id: &str) -> Vec<String> {
        requests::arguments(id)
    }

    fn network_obstacle(network: &NetworkSpec) -> Option<&'static str> {
        match network {
            NetworkSpec::None | NetworkSpec::NamedTap { .. } => None,
            NetworkSpec::User { .. } => {
                Some("is one of the VM process itself, which Firecracker does not have: give it a tap")
            }
            NetworkSpec::Tap(_) => Some("is an open tap, and Firecracker opens its own: give it the tap's name"),
        }
    }

    fn files(spec: &VmSpec, is_saved: bool) -> Vec<(&'static str, &Path)> {
        if is_saved {
            return spec.memory.iter().map(|memory| (MEMORY, memory.as_path())).collect();
        }
        let initrd = spec.initrd.iter().map(|initrd| (INITRD, initrd.as_path()));
        [(KERNEL, spec.kernel.as_path())].into_iter().chain(initrd).collect()
    }

    fn unpack(_spec: &VmSpec, saved: &Saved, dir: &RunDir) -> Result<(), VmmError> {
        dir.put(DEVICES, &saved.devices)
    }

    async fn prepare(rest: &Rest) -> Result<(), RestError> {
        put(rest, requests::console()).await
    }

    async fn begin(spec: &VmSpec, rest: &Rest) -> Result<(), RestError> {
        if spec.devices.is_some() {
            put(rest, requests::load(spec)).await?;
            return match requests::limit_disk(spec) {
                Some((path, body)) => rest.patch(&path, &body).await.map(drop),
                None => Ok(()),
            };
        }
        for request in requests::boot(spec) {
            put(rest, request).await?;
        }
        Ok(())
    }

    async fn set_running(rest: &Rest, running: bool) -> Result<(), RestError> {
        rest.patch("/vm", &requests::state(running)).await.map(drop)
    }

    async fn is_paused(rest: &Rest) -> Result<bool, RestError> {
        let info = rest.get("/").await?;
        Ok(info.get("state").and_then(Value::as_str) == Some("Paused"))
    }

    async fn save(pid: u32, rest: &Rest, dir: &RunDir) -> Result<Vec<u8>, VmmError> {
        dir.remove(DEVICES)?;
        let failed = |error: RestError| VmmError::Monitor { pid, source: error.into() };
        let (path, body) = requests::save();
        let devices = match rest.put(&path, &body).await {
            // It has written the devices, and cannot write memory.
            Err(RestError::Refused { message, .. }) if message.contains("memory backing file") => {
                let failed = |source| VmmError::RunDir { operation: "read", path: dir.file(DEVICES), source };
                dir.tail(DEVICES, DEVICES_BYTES).map_err(failed)
            }
            Err(error) => Err(failed(error)),
            Ok(_) => Err(failed(RestError::Refused {
                call: format!("PUT {path}"),
                message: format!("it wrote memory to {:?}", requests::NO_MEMORY),
            })),
        };
        dir.remove(DEVICES)?;
        devices
    }

    async fn look_at_disk(rest: &Rest, _bytes: u64) -> Result<(), RestError> {
        let (path, body) = requests::look_at_disk();
        rest.patch(&path, &body).await.map(drop)
    }

    /// It ends with 0 after a reset, with an error after a triple fault, which is a reset, too. Of one that is not our child
    /// nobody is told with what it ended.
    fn reason(ended: Ended, console: &[u8], log: &str) -> VmExit {
        let fault = log.contains(TRIPLE_FAULT);
        let is_guest = match ended {
            Ended { signal: Some(_), .. } => false,
            Ended { code: Some(code), .. } => code == 0 || fault,
            Ended { code: None, .. } => fault || panic_message(console).is_some(),
        };
        match panic_message(console) {
            _ if !is_guest => ended.into(),
            Some(message) => VmExit::GuestPanic { message },
            None => VmExit::GuestReset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_ended() {
        const PANIC: &[u8] = b"Kernel panic - not syncing: no init\n";
        let check = |code: Option<i32>, signal: Option<i32>, console: &[u8], log: &str, expected: &str| {
            assert_eq!(Firecracker::reason(Ended { code, signal }, console, log).to_string(), expected);
        };
        let fault = "Unexpected exit reason on vcpu run: Shutdown";
        check(Some(0), None, b"bye", "", "the guest rebooted");
        check(Some(0), None, PANIC, "", "the guest kernel panicked: no init");
        check(Some(1), None, b"", fault, "the guest rebooted");
        check(Some(1), None, PANIC, fault, "the guest kernel panicked: no init");
        check(Some(1), None, PANIC, "something else", "the VM process ended with exit code 1");
        check(None, Some(9), PANIC, fault, "the VM process was ended by signal 9");
        // Adopted.
        check(None, None, b"bye", "", "the VM process ended");
        check(None, None, PANIC, "", "the guest kernel panicked: no init");
    }
}
