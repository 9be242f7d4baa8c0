//! Cloud Hypervisor, on working KVM. Started and driven as [`crate::api`] says; here is what it does its own way:
//!
//! - Guest memory is one zone, a private view of its file, for a guest that boots as for a restored one.
//! - Its taps are open ones, passed over its socket.
//! - It would boot a guest that resets again. Its kernel is gone by then, and so is its memory file, so it ends.
//! - It has no use for [`VmSpec::changes`]: it brings memory and devices back in one go, and reads from memory how far each device's
//!   queues were used (`virtio-devices/src/transport/pci_device.rs`). Changes that come after that come too late.
//! - What it saves is its configuration and its state, in two files ([`state`]).

mod requests;
mod state;

use crate::api::{Api, ApiDriver};
use crate::child::Ended;
use crate::driver::{Capabilities, Driver, DriverKind, NetworkSpec, VmExit, VmSpec};
use crate::error::VmmError;
use crate::limits::{DEVICES_BYTES, MAX_MEMORY_MIB, MAX_VCPUS};
use crate::panic_words::panic_message;
use crate::probe::Program;
use crate::rest::{Rest, RestError};
use crate::run_dir::{CONFIG, INITRD, KERNEL, MEMORY, RANGES, RunDir, STATE};
use crate::saved::Saved;
use async_trait::async_trait;
use serde_json::Value;
use std::os::fd::AsFd;
use std::path::Path;

/// What it says when it cannot boot a guest again.
const RESET: &str = "Error rebooting VM";

/// Runs VMs with this Cloud Hypervisor, which [`probe::cloud_hypervisor`](crate::probe::cloud_hypervisor) found.
#[must_use]
pub fn driver(program: Program) -> Box<dyn Driver> {
    Box::new(ApiDriver::<CloudHypervisor>::new(program))
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct CloudHypervisor;

async fn put(rest: &Rest, (path, body): requests::Put) -> Result<(), RestError> {
    rest.put(path, &body).await.map(drop)
}

/// What it answers of a guest: `Created`, `Running`, `Paused`, ...
async fn state_of(rest: &Rest) -> Result<Option<String>, RestError> {
    let info = rest.get(requests::INFO).await?;
    Ok(info.get("state").and_then(Value::as_str).map(str::to_owned))
}

#[async_trait]
impl Api for CloudHypervisor {
    const KIND: DriverKind = DriverKind::CloudHypervisor;
    const BOOTS_FROM_MEMORY_FILE: bool = true;

    fn capabilities() -> Capabilities {
        Capabilities {
            isolates: true,
            hardware: true,
            user_network: false,
            tap_network: true,
            named_tap: false,
            snapshots: true,
            saving_ends_link: false,
            restricts_network: false,
            hides_features: false,
            passes_through: true,
            prepares: true,
            takes_changes: false,
            takes_back_memory: false,
            limits_resources: true,
            max_vcpus: MAX_VCPUS,
            max_memory_mib: MAX_MEMORY_MIB,
        }
    }

    fn arguments(_id: &str) -> Vec<String> {
        requests::arguments()
    }

    fn network_obstacle(network: &NetworkSpec) -> Option<&'static str> {
        match network {
            NetworkSpec::None | NetworkSpec::Tap(_) => None,
            NetworkSpec::User { .. } => {
                Some("is one of the VM process itself, which Cloud Hypervisor does not have: give it a tap")
            }
            NetworkSpec::NamedTap { .. } => Some("is a tap by name, and Cloud Hypervisor is given an open one"),
        }
    }

    fn files(spec: &VmSpec, is_saved: bool) -> Vec<(&'static str, &Path)> {
        let mut files: Vec<_> = spec.memory.iter().map(|memory| (MEMORY, memory.as_path())).collect();
        if !is_saved {
            files.push((KERNEL, spec.kernel.as_path()));
            files.extend(spec.initrd.iter().map(|initrd| (INITRD, initrd.as_path())));
        }
        files
    }

    fn unpack(spec: &VmSpec, saved: &Saved, dir: &RunDir) -> Result<(), VmmError> {
        let (config, state) = state::unpack(&saved.devices, spec.disk_limits).map_err(|error| {
            let path = spec.devices.clone().unwrap_or_default();
            VmmError::Restore { id: spec.id.clone(), path, reason: error.to_string() }
        })?;
        dir.put(CONFIG, &config)?;
        dir.put(STATE, &state)
    }

    async fn prepare(_rest: &Rest) -> Result<(), RestError> {
        Ok(())
    }

    async fn begin(spec: &VmSpec, rest: &Rest) -> Result<(), RestError> {
        let tap = match &spec.network {
            NetworkSpec::Tap(tap) => Some(tap.as_fd()),
            _ => None,
        };
        if spec.devices.is_some() {
            let (path, body) = requests::restore(tap.is_some());
            return match tap {
                Some(tap) => rest.put_with(path, &body, tap).await.map(drop),
                None => rest.put(path, &body).await.map(drop),
            };
        }
        put(rest, requests::create(spec)).await?;
        if let Some(tap) = tap {
            let (path, body) = requests::add_card();
            rest.put_with(path, &body, tap).await?;
        }
        put(rest, requests::boot()).await
    }

    async fn set_running(rest: &Rest, running: bool) -> Result<(), RestError> {
        // It refuses what is so already.
        if Self::is_paused(rest).await? == running { put(rest, requests::state(running)).await } else { Ok(()) }
    }

    async fn is_paused(rest: &Rest) -> Result<bool, RestError> {
        Ok(state_of(rest).await?.as_deref() == Some("Paused"))
    }

    async fn save(pid: u32, rest: &Rest, dir: &RunDir) -> Result<Vec<u8>, VmmError> {
        let files = [CONFIG, STATE, RANGES];
        let failed = |error: RestError| VmmError::Monitor { pid, source: error.into() };
        files.iter().try_for_each(|name| dir.remove(name))?;
        // What is there already is not written to.
        dir.put(RANGES, b"")?;
        let (path, body) = requests::save();
        let saved = match rest.put(path, &body).await {
            // It has written the other two, and cannot write memory.
            Err(RestError::Refused { message, .. }) if message.contains("memory snapshot file") => {
                let read = |name| {
                    let failed = |source| VmmError::RunDir { operation: "read", path: dir.file(name), source };
                    dir.tail(name, DEVICES_BYTES).map_err(failed)
                };
                let refused = |error: state::StateError| {
                    failed(RestError::Refused { call: format!("PUT {path}"), message: error.to_string() })
                };
                read(CONFIG).and_then(|config| state::pack(&config, &read(STATE)?).map_err(refused))
            }
            Err(error) => Err(failed(error)),
            Ok(_) => Err(failed(RestError::Refused {
                call: format!("PUT {path}"),
                message: "it wrote memory to a file that was there".to_owned(),
            })),
        };
        files.iter().try_for_each(|name| dir.remove(name))?;
        saved
    }

    async fn look_at_disk(rest: &Rest, bytes: u64) -> Result<(), RestError> {
        put(rest, requests::look_at_disk(bytes)).await
    }

    /// It ends with 0 when the guest is off, with an error when it cannot boot it again. Of one that is not our child nobody is
    /// told with what it ended.
    fn reason(ended: Ended, console: &[u8], log: &str) -> VmExit {
        let reset = log.contains(RESET);
        match (ended, panic_message(console)) {
            (Ended { signal: Some(_), .. }, _) => ended.into(),
            (Ended { code: Some(0), .. }, _) => VmExit::GuestShutdown,
            (_, Some(message)) if reset => VmExit::GuestPanic { message },
            _ if reset => VmExit::GuestReset,
            _ => ended.into(),
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
            assert_eq!(CloudHypervisor::reason(Ended { code, signal }, console, log).to_string(), expected);
        };
        let reset = "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: Error rebooting VM";
        check(Some(0), None, b"bye", "", "the guest powered off");
        check(Some(1), None, b"bye", reset, "the guest rebooted");
        check(Some(1), None, PANIC, reset, "the guest kernel panicked: no init");
        check(Some(1), None, PANIC, "something else", "the VM process ended with exit code 1");
        check(None, Some(9), PANIC, reset, "the VM process was ended by signal 9");
        // Adopted.
        check(None, None, b"bye", reset, "the guest rebooted");
        check(None, None, b"bye", "", "the VM process ended");
    }
}
