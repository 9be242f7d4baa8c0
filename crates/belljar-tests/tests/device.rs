//! A device of the host that is a sandbox's own, on a machine that has one which is vfio-pci's. That of `cargo xtask nested --device`
//! has QEMU's `edu`, which is no GPU; but all that this platform knows of a GPU is that it is a PCI device.

use std::fs;

use belljar_tests::{Sandbox, World, wait_while};
use serde_json::json;

/// Asks the device for its identity, the inverse of a number and a factorial. Registers: QEMU's `docs/specs/edu.rst`.
const PROGRAM: &str = r"
import glob, mmap, struct, time
found = [d for d in glob.glob('/sys/bus/pci/devices/*') if open(d + '/vendor').read() == '0x1234\n']
[device] = found
with open(device + '/enable', 'w') as enable: enable.write('1')
with open(device + '/resource0', 'r+b') as file: registers = mmap.mmap(file.fileno(), 4096)
def get(at): return struct.unpack('<I', registers[at:at + 4])[0]
def put(at, value): registers[at:at + 4] = struct.pack('<I', value)
put(4, 0x12345678)
inverse = get(4)
put(8, 10)
while get(0x20) & 1: time.sleep(0.01)
print(hex(get(0) & 0xff), hex(inverse), get(8))
";

/// What is given away on this machine.
fn address() -> String {
    let devices = fs::read_dir("/sys/bus/pci/drivers/vfio-pci").expect("a kernel with vfio-pci");
    let names = devices.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.into_iter().find(|name| name.contains(':')).expect("a device that is vfio-pci's")
}

#[track_caller]
fn works(sandbox: &Sandbox<'_>) {
    let ran = sandbox.run_request(&json!({"command": "python3", "args": ["-c", PROGRAM], "user": "root"}));
    assert_eq!(ran.stdout, "0xed 0xedcba987 3628800", "{ran:?}");
}

#[test]
fn a_device_is_one_sandboxs_alone_and_then_the_next_ones() {
    let world = World::start_with(&[("BELLJAR_GPU", format!("edu@{}", address()))]);
    let gpu = json!({"resources": {"gpus": [{"model": "edu", "count": 1}]}, "name": "box", "timeout_secs": 0});
    let sandbox = world.create(&gpu);
    let info = world.info("box").json;
    assert_eq!(info["resources"]["gpu_configs"], json!([{"model": "edu", "count": 1}]));
    assert_eq!(info["runtime"], "cloud-hypervisor");
    works(&sandbox);

    // What is in it cannot be saved.
    for path in ["suspend", "copy"] {
        let refused = world.order("box", path);
        assert!(refused.status == 400 && refused.json.to_string().contains("has GPUs"), "{path}: {refused:?}");
    }

    // There is one: others wait for it, or never get it.
    let second = world.http().post("/sandboxes", &json!({"resources": gpu["resources"], "wait": false}));
    let id = second.json["sandbox_id"].as_str().unwrap();
    assert_eq!(world.info(id).json["pending_reason"], "no_resources_available");
    let two = world.http().post("/sandboxes", &json!({"resources": {"gpus": [{"model": "edu", "count": 2}]}}));
    assert!(two.json.to_string().contains("no node has 2 edu for it; nodes have 1 edu"), "{two:?}");
    let without = world.create(&json!({}));
    assert_eq!(without.sh("grep -l 0x1234 /sys/bus/pci/devices/*/vendor || echo none"), "none");
    without.delete();

    // A new node process knows who has it.
    world.kill_server();
    world.up();
    works(&sandbox);
    assert_eq!(world.info(id).json["status"], "pending");
    sandbox.delete();
    wait_while(|| world.info(id).json["status"] == "pending");
    let second = world.sandbox(id);
    works(&second);
    second.delete();
    world.wait_until_clean();
}
