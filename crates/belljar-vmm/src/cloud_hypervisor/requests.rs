//! What Cloud Hypervisor is asked for, as a pure function of what is wanted. Format: its
//! `vmm/src/api/openapi/cloud-hypervisor.yaml`.
//!
//! Every path is a name in its run directory, in which it works: what it saves holds no path of the host.

use crate::api::{GUEST_CID, rate_limiter};
use crate::driver::{DiskLimits, VmSpec};
use crate::hybrid::LINK_PORT;
use crate::run_dir::{API, CONSOLE_FIFO, DISK, INITRD, KERNEL, MEMORY, VSOCK};
use crate::spec;
use serde_json::{Value, json};

/// Ids of the devices, in saved states too.
const DISK_ID: &str = "disk";
const CARD_ID: &str = "net";
const ZONE_ID: &str = "memory";

/// Its run directory, as it wants directories told.
const HERE: &str = "file://.";

/// What is known of the guest.
pub(super) const INFO: &str = "/api/v1/vm.info";

/// One request that must be met before the next: path and body.
pub(super) type Put = (&'static str, Value);

/// The command line's arguments after the program's name.
pub(super) fn arguments() -> Vec<String> {
    vec!["--api-socket".to_owned(), format!("path={API}")]
}

/// How a guest is made that boots.
pub(super) fn create(spec: &VmSpec) -> Put {
    let mut payload = json!({ "kernel": KERNEL, "cmdline": command_line(spec) });
    if spec.initrd.is_some() {
        payload["initramfs"] = json!(INITRD);
    }
    let mut zone = json!({ "id": ZONE_ID, "size": spec.memory_mib << 20 });
    if spec.memory.is_some() {
        zone["file"] = json!(MEMORY);
    }
    let mut config = json!({
        "payload": payload,
        "cpus": { "boot_vcpus": spec.vcpus, "max_vcpus": spec.vcpus, "nested": false },
        "memory": { "size": 0, "zones": [zone] },
        "rng": { "src": "/dev/urandom" },
        "vsock": { "cid": GUEST_CID, "socket": VSOCK },
        "serial": { "mode": "File", "file": CONSOLE_FIFO },
        "console": { "mode": "Off" },
    });
    if spec.disk.is_some() {
        let limiter = rate_limiter(spec.disk_limits);
        config["disks"] = json!([{ "id": DISK_ID, "path": DISK, "image_type": "Raw", "rate_limiter_config": limiter }]);
    }
    if !spec.passed_through.is_empty() {
        let numbered = spec.passed_through.iter().enumerate();
        config["devices"] =
            numbered.map(|(number, it)| json!({ "id": format!("pci{number}"), "path": it.path() })).collect();
    }
    ("/api/v1/vm.create", config)
}

/// How it gets a card; the tap goes along.
pub(super) fn add_card() -> Put {
    ("/api/v1/vm.add-net", json!({ "id": CARD_ID, "num_queues": 2 }))
}

/// How it starts.
pub(super) fn boot() -> Put {
    ("/api/v1/vm.boot", Value::Null)
}

/// How a guest goes on with the files in the run directory; the tap goes along if it has one.
pub(super) fn restore(tap: bool) -> Put {
    let mut body = json!({ "source_url": HERE, "resume": false });
    if tap {
        body["net_fds"] = json!([{ "id": CARD_ID, "num_fds": 1 }]);
    }
    ("/api/v1/vm.restore", body)
}

/// How all but memory is written to the run directory.
pub(super) fn save() -> Put {
    ("/api/v1/vm.snapshot", json!({ "destination_url": HERE }))
}

/// Whether the guest runs.
pub(super) fn state(running: bool) -> Put {
    (if running { "/api/v1/vm.resume" } else { "/api/v1/vm.pause" }, Value::Null)
}

/// Tells the guest the size of its disk.
pub(super) fn look_at_disk(bytes: u64) -> Put {
    ("/api/v1/vm.resize-disk", json!({ "id": DISK_ID, "desired_size": bytes }))
}

/// Makes the disk of a saved configuration as fast as is said now.
pub(super) fn limit_disk(config: &mut Value, limits: DiskLimits) {
    if let Some(disk) = config.pointer_mut("/disks/0") {
        disk["rate_limiter_config"] = rate_limiter(limits);
    }
}

/// Makes a configuration one to go on with: memory is the file of the run directory, whatever it was, and what was loaded at
/// the boot is in there. An initrd would be looked for.
pub(super) fn to_go_on(config: &mut Value) {
    if let Some(payload) = config.get_mut("payload").and_then(Value::as_object_mut) {
        payload.remove("initramfs");
    }
    if let Some(zone) = config.pointer_mut("/memory/zones/0") {
        zone["file"] = json!(MEMORY);
    }
}

/// The kernel's command line.
fn command_line(spec: &VmSpec) -> String {
    // As with Firecracker; devices are found on the PCI bus.
    let mut line = format!("{} reboot=k acpi=off belljar.link=vsock:{LINK_PORT}", spec::CMDLINE);
    spec::push_rest(&mut line, spec);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::PciDevice;
    use crate::spec::tests::spec;

    #[test]
    fn a_guest_has_what_was_asked_for() {
        let (_, config) = create(&spec());
        assert_eq!(config["cpus"]["boot_vcpus"], 2);
        assert_eq!(config["memory"]["zones"], json!([{ "id": "memory", "size": 512 << 20, "file": "memory" }]));
        let line = config["payload"]["cmdline"].as_str().unwrap();
        assert!(line.ends_with("belljar.link=vsock:1024 belljar.root=/dev/vda more"), "{line}");
        let (_, bare) = create(&VmSpec { disk: None, initrd: None, memory: None, ..spec() });
        assert!(bare.get("disks").is_none() && bare["payload"].get("initramfs").is_none());
        assert!(bare["memory"]["zones"][0].get("file").is_none());
    }

    /// What it remembers must not name a place on the host.
    #[test]
    fn nothing_is_a_path_of_the_host() {
        let (_, config) = create(&spec());
        assert!(!config.to_string().contains("/data") && !config.to_string().contains("/cache"), "{config}");
    }

    #[test]
    fn a_device_is_the_guests_own_when_it_was_given() {
        assert!(create(&spec()).1.get("devices").is_none());
        let gpu = PciDevice { address: "0000:01:00.0".parse().unwrap(), group: 7 };
        let (_, config) = create(&VmSpec { passed_through: vec![gpu], ..spec() });
        assert_eq!(config["devices"], json!([{ "id": "pci0", "path": "/sys/bus/pci/devices/0000:01:00.0" }]));
    }

    #[test]
    fn a_restored_guest_gets_its_own_tap() {
        assert_eq!(restore(true).1["net_fds"], json!([{ "id": "net", "num_fds": 1 }]));
        assert!(restore(false).1.get("net_fds").is_none());
    }
}
