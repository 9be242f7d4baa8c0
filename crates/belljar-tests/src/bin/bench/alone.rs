//! The floor where KVM works: a VM program alone, driven by hand, with the same kernel and a copy of the same disk. What
//! answers is a shell that echoes.
//!
//! Firecracker and Cloud Hypervisor here, over their sockets and with the guest's console as their own; QEMU in
//! [`crate::restore`]. Formats: Firecracker's `swagger/firecracker.yaml`, Cloud Hypervisor's `cloud-hypervisor.yaml`.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use belljar_tests::world::prepared;
use serde_json::{Value, json};

use crate::restore::{ANSWER, ASK, INIT, READY, copied_disk, wait_for};

/// Of every guest here.
pub(crate) const MEMORY_MIB: u64 = 1024;

/// A VM program with a guest that was frozen once.
pub(crate) trait Alone {
    /// Restores it; the time from the start of the program until its guest has answered.
    fn restore(&self) -> Duration;

    /// Freezes one that was restored, and restores it from that: the time until its memory and devices are in files, and the
    /// time as for [`Alone::restore`]. The second is longer where code is emulated: what lies in memory anew is translated anew.
    fn freeze_and_thaw(&self) -> [Duration; 2];
}

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Firecracker,
    CloudHypervisor,
}

/// See [`Alone`].
pub(crate) struct ByHand {
    program: Program,
    dir: tempfile::TempDir,
}

/// One that runs.
struct Vm {
    process: Child,
    api: PathBuf,
    to_guest: ChildStdin,
    from_guest: BufReader<ChildStdout>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl ByHand {
    /// Boots a guest once and freezes it.
    pub(crate) fn new(program: Program) -> Self {
        let by_hand = Self { program, dir: tempfile::tempdir().expect("a temporary directory") };
        copied_disk(&by_hand.dir.path().join("disk"));
        fs::create_dir(by_hand.dir.path().join("frozen")).expect("a directory");
        let mut vm = by_hand.start();
        by_hand.boot(&vm);
        wait_for(&mut vm.from_guest, READY);
        by_hand.save(&vm, "frozen");
        by_hand
    }

    fn start(&self) -> Vm {
        let api = self.dir.path().join("api.sock");
        let _ = fs::remove_file(&api);
        let (name, arguments): (_, &[&str]) = match self.program {
            Program::Firecracker => ("firecracker", &["--api-sock", "api.sock", "--level", "Error"]),
            Program::CloudHypervisor => ("cloud-hypervisor", &["--api-socket", "path=api.sock"]),
        };
        let beside = env::var_os("BELLJAR_VMM_DIR").map(|dir| Path::new(&dir).join(name));
        let path = beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into());
        let mut process = Command::new(path)
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the VM program starts");
        let to_guest = process.stdin.take().expect("its input");
        let from_guest = BufReader::new(process.stdout.take().expect("its output"));
        Vm { process, api, to_guest, from_guest }
    }

    fn boot(&self, vm: &Vm) {
        let kernel = prepared("BELLJAR_KERNEL");
        let line = |more: &str| {
            format!("console=ttyS0 quiet loglevel=3 reboot=k panic=-1 acpi=off {more} root=/dev/vda ro {INIT}")
        };
        match self.program {
            Program::Firecracker => {
                vm.call("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": MEMORY_MIB}));
                let source = json!({"kernel_image_path": kernel, "boot_args": line("pci=off")});
                vm.call("PUT", "/boot-source", &source);
                let drive =
                    json!({"drive_id": "disk", "path_on_host": "disk", "is_root_device": false, "is_read_only": true});
                vm.call("PUT", "/drives/disk", &drive);
                vm.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
            }
            Program::CloudHypervisor => {
                let config = json!({
                    "payload": {"kernel": kernel, "cmdline": line("")},
                    "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
                    "memory": {"size": MEMORY_MIB << 20},
                    "disks": [{"path": "disk", "readonly": true, "image_type": "Raw"}],
                    "serial": {"mode": "Tty"},
                    "console": {"mode": "Off"},
                });
                vm.call("PUT", "/api/v1/vm.create", &config);
                vm.call("PUT", "/api/v1/vm.boot", &Value::Null);
            }
        }
    }

    /// Stops it, and writes memory and devices to a directory.
    fn save(&self, vm: &Vm, dir: &str) {
        match self.program {
            Program::Firecracker => {
                vm.call("PATCH", "/vm", &json!({"state": "Paused"}));
                let files = json!({
                    "snapshot_type": "Full",
                    "snapshot_path": format!("{dir}/devices"),
                    "mem_file_path": format!("{dir}/memory"),
                });
                vm.call("PUT", "/snapshot/create", &files);
            }
            Program::CloudHypervisor => {
                vm.call("PUT", "/api/v1/vm.pause", &Value::Null);
                let to = json!({"destination_url": format!("file://{}", self.dir.path().join(dir).display())});
                vm.call("PUT", "/api/v1/vm.snapshot", &to);
            }
        }
    }

    /// Lets one go on from the files, each page of memory when it is first touched.
    fn restored(&self, dir: &str) -> Vm {
        let mut vm = self.start();
        match self.program {
            Program::Firecracker => {
                let load = json!({
                    "snapshot_path": format!("{dir}/devices"),
                    "mem_backend": {"backend_type": "File", "backend_path": format!("{dir}/memory")},
                    "resume_vm": true,
                });
                vm.call("PUT", "/snapshot/load", &load);
            }
            Program::CloudHypervisor => {
                let from = format!("file://{}", self.dir.path().join(dir).display());
                let load = json!({"source_url": from, "memory_restore_mode": "OnDemand", "resume": true});
                vm.call("PUT", "/api/v1/vm.restore", &load);
            }
        }
        vm.to_guest.write_all(ASK.as_bytes()).expect("the guest takes it");
        wait_for(&mut vm.from_guest, ANSWER);
        vm
    }

    fn timed(&self, dir: &str) -> Duration {
        let begun = Instant::now();
        let vm = self.restored(dir);
        let took = begun.elapsed();
        drop(vm);
        took
    }
}

impl Alone for ByHand {
    fn restore(&self) -> Duration {
        self.timed("frozen")
    }

    fn freeze_and_thaw(&self) -> [Duration; 2] {
        let vm = self.restored("frozen");
        let again = self.dir.path().join("again");
        fs::create_dir(&again).expect("a directory");
        let begun = Instant::now();
        self.save(&vm, "again");
        let frozen = begun.elapsed();
        drop(vm);
        let thawed = self.timed("again");
        fs::remove_dir_all(&again).expect("it is removed");
        [frozen, thawed]
    }
}

impl Vm {
    /// As `curl` would. A floor has nothing but the socket's appearance to wait for, so it looks as fast as it can.
    fn call(&self, method: &str, path: &str, body: &Value) {
        let mut stream = crate::restore::connect(&self.api);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: vm\r\nContent-Length: {}\r\n", body.len());
        write!(stream, "{head}Content-Type: application/json\r\n\r\n{body}").expect("the VM program takes it");
        let answer = answer(&mut BufReader::new(stream));
        assert!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
    }
}

/// Head and body of an answer.
fn answer(stream: &mut BufReader<UnixStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = stream.read_line(&mut head).expect("the VM program answers");
        assert!(read > 0, "the VM program ended: {head}");
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).expect("the VM program's answer");
    head + &String::from_utf8_lossy(&body)
}
