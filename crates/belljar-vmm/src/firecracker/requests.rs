//! What Firecracker is asked for, as a pure function of what is wanted. Format: Firecracker's `swagger/firecracker.yaml`.
//!
//! Every path is a name in its run directory, in which it works: what it saves holds no path of the host.

use crate::api::{GUEST_CID, rate_limiter};
use crate::driver::{NetworkSpec, VmSpec};
use crate::hybrid::LINK_PORT;
use crate::processor::Register;
use crate::run_dir::{API, CONSOLE_FIFO, DEVICES, DISK, INITRD, KERNEL, MEMORY, VSOCK};
use crate::spec;
use serde_json::{Value, json};

/// Ids of the devices, in saved states too.
const DISK_ID: &str = "disk";
const CARD_ID: &str = "net";

/// What Firecracker cannot save memory to: it says no when it has saved the devices.
pub(super) const NO_MEMORY: &str = ".";

/// One request that must be met before the next: path below the API's root, and body.
pub(super) type Put = (String, Value);

/// The command line's arguments after the program's name.
pub(super) fn arguments(id: &str) -> Vec<String> {
    // Its own log goes to its standard output, which is ours; warnings are rare.
    ["--api-sock", API, "--id", id, "--level", "Warning"].map(str::to_owned).to_vec()
}

/// Where the console goes. It is no part of a saved state.
pub(super) fn console() -> Put {
    ("/serial".to_owned(), json!({ "serial_out_path": CONSOLE_FIFO }))
}

/// How a guest is made that boots; the last request starts it.
pub(super) fn boot(spec: &VmSpec) -> Vec<Put> {
    let mut all: Vec<Put> = Vec::new();
    let mut put = |path: &str, body: Value| all.push((path.to_owned(), body));
    put("/machine-config", json!({ "vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib, "smt": false }));
    let mut source = json!({ "kernel_image_path": KERNEL, "boot_args": command_line(spec) });
    if spec.initrd.is_some() {
        source["initrd_path"] = json!(INITRD);
    }
    put("/boot-source", source);
    if let Some(config) = processor(spec.hidden_features.of_host()) {
        put("/cpu-config", config);
    }
    if spec.disk.is_some() {
        let drive = json!({
            "drive_id": DISK_ID, "path_on_host": DISK, "is_root_device": false, "is_read_only": false,
            "cache_type": "Writeback", "rate_limiter": rate_limiter(spec.disk_limits),
        });
        put(&format!("/drives/{DISK_ID}"), drive);
    }
    if let NetworkSpec::NamedTap { name, .. } = &spec.network {
        let card = json!({ "iface_id": CARD_ID, "host_dev_name": name });
        put(&format!("/network-interfaces/{CARD_ID}"), card);
    }
    put("/vsock", json!({ "guest_cid": GUEST_CID, "uds_path": VSOCK }));
    put("/entropy", json!({}));
    // It never takes memory from the guest; it is told what the guest has free. Restored, too.
    put("/balloon", json!({ "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true }));
    put("/actions", json!({ "action_type": "InstanceStart" }));
    all
}

/// Clears bits of what the guest is told of its processor: leaf, subleaf, register, and the bits. `None` where there are none.
fn processor(hidden: impl Iterator<Item = (u32, u32, Register, u32)>) -> Option<Value> {
    let modifier = |(leaf, subleaf, register, bits): (u32, u32, Register, u32)| {
        let bitmap: String = (0..32).rev().map(|bit| if bits & 1 << bit != 0 { '0' } else { 'x' }).collect();
        json!({
            "leaf": format!("{leaf:#x}"), "subleaf": format!("{subleaf:#x}"),
            // Leaves that have subleaves are looked for with them.
            "flags": u8::from(matches!(leaf, 7 | 0xd)),
            "modifiers": [{ "register": format!("{register:?}").to_lowercase(), "bitmap": format!("0b{bitmap}") }],
        })
    };
    let modifiers: Vec<_> = hidden.map(modifier).collect();
    (!modifiers.is_empty()).then(|| json!({ "cpuid_modifiers": modifiers }))
}

/// How a guest goes on with the devices in [`DEVICES`] and the memory in [`MEMORY`].
pub(super) fn load(spec: &VmSpec) -> Put {
    let mut load = json!({
        "snapshot_path": DEVICES,
        "mem_backend": { "backend_type": "File", "backend_path": MEMORY },
        "resume_vm": false,
    });
    if let NetworkSpec::NamedTap { name, .. } = &spec.network {
        load["network_overrides"] = json!([{ "iface_id": CARD_ID, "host_dev_name": name }]);
    }
    ("/snapshot/load".to_owned(), load)
}

/// How the devices are written to [`DEVICES`].
pub(super) fn save() -> Put {
    let body = json!({ "snapshot_type": "Full", "snapshot_path": DEVICES, "mem_file_path": NO_MEMORY });
    ("/snapshot/create".to_owned(), body)
}

/// Whether the guest runs, for `PATCH /vm`.
pub(super) fn state(running: bool) -> Value {
    json!({ "state": if running { "Resumed" } else { "Paused" } })
}

/// How fast the disk of a guest that goes on may be, whatever is in its saved state.
pub(super) fn limit_disk(spec: &VmSpec) -> Option<Put> {
    let body = json!({ "drive_id": DISK_ID, "rate_limiter": rate_limiter(spec.disk_limits) });
    spec.disk.is_some().then(|| (format!("/drives/{DISK_ID}"), body))
}

/// Has the disk looked at again: its size is told to the guest.
pub(super) fn look_at_disk() -> Put {
    (format!("/drives/{DISK_ID}"), json!({ "drive_id": DISK_ID, "path_on_host": DISK }))
}

/// The kernel's command line.
fn command_line(spec: &VmSpec) -> String {
    // As with QEMU, devices are told on the command line and processors in the MP table: with ACPI, which our kernel has no
    // plug and play for, the serial port has no interrupt, and what programs write to the console never gets out. The keyboard
    // controller's reset is one that Firecracker takes for an orderly end.
    let mut line = format!("{} reboot=k pci=off acpi=off belljar.link=vsock:{LINK_PORT}", spec::CMDLINE);
    spec::push_rest(&mut line, spec);
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::DiskLimits;
    use crate::spec::tests::spec;
    use std::num::NonZeroU64;

    fn with_tap() -> VmSpec {
        VmSpec {
            network: NetworkSpec::NamedTap { namespace: "/run/belljar/netns/0".into(), name: "tap0".into() },
            ..spec()
        }
    }

    #[test]
    fn a_boot_asks_for_every_device_and_starts_last() {
        let all = boot(&with_tap());
        let paths: Vec<_> = all.iter().map(|(path, _)| path.as_str()).collect();
        let expected = [
            "/machine-config",
            "/boot-source",
            "/drives/disk",
            "/network-interfaces/net",
            "/vsock",
            "/entropy",
            "/balloon",
            "/actions",
        ];
        assert_eq!(paths, expected);
        let line = all[1].1["boot_args"].as_str().unwrap();
        assert!(line.ends_with("belljar.link=vsock:1024 belljar.root=/dev/vda more"), "{line}");
        let bare = boot(&VmSpec { disk: None, initrd: None, network: NetworkSpec::None, ..spec() });
        assert!(bare.iter().all(|(path, _)| !path.starts_with("/drives") && !path.starts_with("/network")));
        assert!(bare[1].1.get("initrd_path").is_none() && !bare[1].1["boot_args"].as_str().unwrap().contains("root"));
    }

    /// What it remembers must not name a place on the host.
    #[test]
    fn nothing_is_a_path_of_the_host() {
        for (path, body) in boot(&with_tap()) {
            assert!(!body.to_string().contains("/data") && !body.to_string().contains("/cache"), "{path}: {body}");
        }
    }

    #[test]
    fn hidden_bits_are_cleared_and_no_others() {
        assert_eq!(processor([].into_iter()), None);
        let hidden = [(7, 0, Register::Ebx, 1 << 31 | 1 << 5), (0x8000_0001, 0, Register::Ecx, 1)];
        let config = processor(hidden.into_iter()).unwrap();
        let expected = json!({ "cpuid_modifiers": [
            { "leaf": "0x7", "subleaf": "0x0", "flags": 1,
              "modifiers": [{ "register": "ebx", "bitmap": "0b0xxxxxxxxxxxxxxxxxxxxxxxxx0xxxxx" }] },
            { "leaf": "0x80000001", "subleaf": "0x0", "flags": 0,
              "modifiers": [{ "register": "ecx", "bitmap": "0bxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0" }] },
        ] });
        assert_eq!(config, expected);
    }

    #[test]
    fn a_disk_is_as_fast_as_is_said_now() {
        let disk_limits = DiskLimits { bytes: NonZeroU64::new(5), requests: None };
        let expected =
            json!({ "bandwidth": { "size": 5, "refill_time": 1000 }, "ops": { "size": 0, "refill_time": 0 } });
        let limited = VmSpec { disk_limits, ..spec() };
        assert_eq!(boot(&limited)[2].1["rate_limiter"], expected);
        assert_eq!(limit_disk(&limited).unwrap().1["rate_limiter"], expected);
        assert_eq!(limit_disk(&spec()).unwrap().1["rate_limiter"]["bandwidth"]["size"], 0);
        assert_eq!(limit_disk(&VmSpec { disk: None, ..limited }), None);
    }

    #[test]
    fn a_restored_guest_gets_its_own_tap() {
        let (_, body) = load(&with_tap());
        assert_eq!(body["network_overrides"][0]["host_dev_name"], "tap0");
        let (_, body) = load(&VmSpec { network: NetworkSpec::None, ..spec() });
        assert!(body.get("network_overrides").is_none());
    }
}
