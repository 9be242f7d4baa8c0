//! What Cloud Hypervisor saves, as one piece: its configuration and its state, less the memory that it did not write.
//!
//! Formats: `vmm/src/vm_config.rs` (`VmConfig`); `vm-migration/src/lib.rs` (`Snapshot`, whose parts hold JSON as text) and
//! `vmm/src/memory_manager.rs` (`MemoryManagerSnapshotData`). What is not named here is kept as it is.

use super::requests;
use crate::driver::DiskLimits;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where the state of memory is in the whole.
const MEMORY_STATE: &str = "/snapshots/memory-manager/snapshot_data/state";

/// Both files.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Both {
    config: Value,
    state: Value,
}

/// Why they are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("it is not the JSON that Cloud Hypervisor writes")]
    Json(#[from] serde_json::Error),
    #[error("Cloud Hypervisor's state has no {0}")]
    Missing(&'static str),
}

/// Makes one of the files.
pub(super) fn pack(config: &[u8], state: &[u8]) -> Result<Vec<u8>, StateError> {
    let mut both = Both { config: serde_json::from_slice(config)?, state: serde_json::from_slice(state)? };
    requests::to_go_on(&mut both.config);
    let memory = both.state.pointer_mut(MEMORY_STATE).ok_or(StateError::Missing("memory"))?;
    let mut inner: Value = serde_json::from_str(memory.as_str().ok_or(StateError::Missing("memory as text"))?)?;
    let ranges = inner.get_mut("memory_ranges").ok_or(StateError::Missing("memory ranges"))?;
    // Nothing is to be read from a file of its own: the memory file has it.
    *ranges = json!({ "data": [] });
    *memory = Value::String(inner.to_string());
    Ok(serde_json::to_vec(&both)?)
}

/// Makes the files again: configuration and state.
pub(super) fn unpack(devices: &[u8], limits: DiskLimits) -> Result<(Vec<u8>, Vec<u8>), StateError> {
    let mut both: Both = serde_json::from_slice(devices)?;
    requests::limit_disk(&mut both.config, limits);
    Ok((serde_json::to_vec(&both.config)?, serde_json::to_vec(&both.state)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    #[test]
    fn memory_is_in_its_file_and_the_rest_as_it_was() {
        let config = json!({ "memory": { "size": 0, "zones": [{ "id": "memory", "size": 5 }] }, "cpus": { "n": 1 },
            "payload": { "kernel": "kernel", "initramfs": "initrd" }, "disks": [{ "path": "disk" }] });
        let inner = json!({ "memory_ranges": { "data": [{ "gpa": 0, "length": 5 }] }, "boot_ram": u64::MAX });
        let state = |inner: &Value| {
            let memory = json!({ "snapshots": {}, "snapshot_data": { "state": inner.to_string() } });
            json!({ "snapshots": { "memory-manager": memory, "cpu-manager": { "x": -1 } }, "snapshot_data": null })
        };
        let bytes = |value: &Value| serde_json::to_vec(value).unwrap();
        let limits = DiskLimits { bytes: None, requests: NonZeroU64::new(7) };
        let packed = pack(&bytes(&config), &bytes(&state(&inner))).unwrap();
        let (new_config, new_state) = unpack(&packed, limits).unwrap();
        let mut expected = config.clone();
        expected["memory"]["zones"][0]["file"] = json!("memory");
        expected["payload"] = json!({ "kernel": "kernel" });
        let requests = json!({ "size": 7, "refill_time": 1000 });
        expected["disks"][0]["rate_limiter_config"] =
            json!({ "bandwidth": { "size": 0, "refill_time": 0 }, "ops": requests });
        assert_eq!(serde_json::from_slice::<Value>(&new_config).unwrap(), expected);
        let expected = state(&json!({ "memory_ranges": { "data": [] }, "boot_ram": u64::MAX }));
        assert_eq!(serde_json::from_slice::<Value>(&new_state).unwrap(), expected);

        for broken in [json!({}), state(&json!({ "boot_ram": 1 })), state(&json!([])), json!([])] {
            assert!(pack(&bytes(&config), &bytes(&broken)).is_err(), "{broken}");
        }
        assert!(
            pack(b"{", &bytes(&state(&inner))).is_err()
                && unpack(b"{}", limits).is_err()
                && unpack(b"x", limits).is_err()
        );
    }
}
