//! The floor where KVM works: a VM program alone, driven by hand, with the guest that sandboxes have: kernel, initramfs, a copy
//! of the disk. Its agent answers over vsock; nobody makes it a sandbox. There is no jail, no network and no server.
//!
//! Firecracker and Cloud Hypervisor here, over their sockets; QEMU in [`crate::restore`]. Formats: Firecracker's
//! `swagger/firecracker.yaml` and `docs/vsock.md`, Cloud Hypervisor's `cloud-hypervisor.yaml`.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use belljar_api::{
    guest::{Configure, SYSTEM_PORT},
    image::RuntimeConfig,
    limits::AGENT_PORT,
};
use belljar_link::ConnectOptions;
use belljar_tests::world::prepared;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::restore::copied_disk;

/// Of every guest here.
pub(crate) const MEMORY_MIB: u64 = 1024;
/// The agent's.
const LINK_PORT: u32 = 1024;
/// For one that was reached.
const PATIENCE: Duration = Duration::from_secs(60);

/// A VM program with a guest that was frozen once.
pub(crate) trait Alone {
    /// Restores it; the time from the start of the program until its guest has answered.
    fn restore(&self) -> Duration;

    /// The same by somebody at a shell, with `curl` for its API. `None`: its API is not one for that.
    fn restore_with_curl(&self) -> Option<Duration> {
        None
    }

    /// Freezes one that was restored, and restores it from that: the time until its memory and devices are in files, and the
    /// time as for [`Alone::restore`].
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

/// Who talks to its API.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    /// This program, which costs next to nothing.
    Here,
    Curl,
}

/// When memory comes out of its file; Firecracker knows one way only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    WhenTouched,
    All,
}

/// One that runs.
struct Vm {
    process: Child,
    api: PathBuf,
    vsock: PathBuf,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl ByHand {
    /// Boots a guest once and freezes it, as settled and rehearsed as a golden snapshot is.
    pub(crate) fn new(program: Program) -> Self {
        let by_hand = Self { program, dir: tempfile::tempdir().expect("a temporary directory") };
        copied_disk(&by_hand.dir.path().join("disk"));
        fs::create_dir(by_hand.dir.path().join("frozen")).expect("a directory");
        let vm = by_hand.start();
        by_hand.boot(&vm);
        let rehearsal = serde_json::to_value(rehearsal()).expect("JSON");
        for (what, body) in [("POST /v1/settle", json!({})), ("POST /v1/configure", rehearsal)] {
            let answer = vm.ask(SYSTEM_PORT, what, &body);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{what}: {answer}");
        }
        by_hand.save(&vm, "frozen");
        by_hand
    }

    fn start(&self) -> Vm {
        let api = self.dir.path().join("api.sock");
        let vsock = self.dir.path().join("vsock.sock");
        for left in [&api, &vsock] {
            let _ = fs::remove_file(left);
        }
        let (name, arguments): (_, &[&str]) = match self.program {
            Program::Firecracker => ("firecracker", &["--api-sock", "api.sock", "--level", "Error"]),
            Program::CloudHypervisor => ("cloud-hypervisor", &["--api-socket", "path=api.sock"]),
        };
        let beside = env::var_os("BELLJAR_VMM_DIR").map(|dir| Path::new(&dir).join(name));
        let path = beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into());
        let process = Command::new(path)
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the VM program starts");
        Vm { process, api, vsock }
    }

    fn boot(&self, vm: &Vm) {
        let (kernel, initrd) = (prepared("BELLJAR_KERNEL"), prepared("BELLJAR_INITRD"));
        let line = |more: &str| {
            let quiet = "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on reboot=k acpi=off";
            format!("{quiet} {more} belljar.link=vsock:{LINK_PORT} belljar.root=/dev/vda")
        };
        match self.program {
            Program::Firecracker => {
                vm.call("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": MEMORY_MIB}));
                let source = json!({"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": line("pci=off")});
                vm.call("PUT", "/boot-source", &source);
                let drive =
                    json!({"drive_id": "disk", "path_on_host": "disk", "is_root_device": false, "is_read_only": false});
                vm.call("PUT", "/drives/disk", &drive);
                vm.call("PUT", "/vsock", &json!({"guest_cid": 3, "uds_path": "vsock.sock"}));
                vm.call("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
            }
            Program::CloudHypervisor => {
                let config = json!({
                    "payload": {"kernel": kernel, "initramfs": initrd, "cmdline": line("")},
                    "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
                    "memory": {"size": MEMORY_MIB << 20},
                    "disks": [{"path": "disk", "image_type": "Raw"}],
                    "vsock": {"cid": 3, "socket": "vsock.sock"},
                    "serial": {"mode": "Null"},
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

    /// Lets one go on from the files.
    fn restored(&self, dir: &str, pages: Pages, client: Client) -> Vm {
        let vm = self.start();
        match self.program {
            Program::Firecracker => {
                let load = json!({
                    "snapshot_path": format!("{dir}/devices"),
                    "mem_backend": {"backend_type": "File", "backend_path": format!("{dir}/memory")},
                    "resume_vm": true,
                });
                vm.call_by(client, "PUT", "/snapshot/load", &load);
            }
            Program::CloudHypervisor => {
                let from = format!("file://{}", self.dir.path().join(dir).display());
                let mode = if pages == Pages::WhenTouched { "OnDemand" } else { "Copy" };
                let load = json!({"source_url": from, "memory_restore_mode": mode, "resume": true});
                vm.call_by(client, "PUT", "/api/v1/vm.restore", &load);
            }
        }
        // That it is nobody's sandbox yet is an answer too.
        let answer = vm.ask(AGENT_PORT, "GET /api/v1/health", &Value::Null);
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        vm
    }

    fn timed(&self, dir: &str, client: Client) -> Duration {
        let begun = Instant::now();
        let vm = self.restored(dir, Pages::WhenTouched, client);
        let took = begun.elapsed();
        drop(vm);
        took
    }
}

impl Alone for ByHand {
    fn restore(&self) -> Duration {
        self.timed("frozen", Client::Here)
    }

    fn restore_with_curl(&self) -> Option<Duration> {
        Some(self.timed("frozen", Client::Curl))
    }

    fn freeze_and_thaw(&self) -> [Duration; 2] {
        // Cloud Hypervisor does not save a guest whose pages are still to come.
        let vm = self.restored("frozen", Pages::All, Client::Here);
        let again = self.dir.path().join("again");
        fs::create_dir(&again).expect("a directory");
        let begun = Instant::now();
        self.save(&vm, "again");
        let frozen = begun.elapsed();
        drop(vm);
        let thawed = self.timed("again", Client::Here);
        fs::remove_dir_all(&again).expect("it is removed");
        [frozen, thawed]
    }
}

/// Practice for a sandbox that never is.
fn rehearsal() -> Configure {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time");
    Configure {
        sandbox_id: "alone".to_owned(),
        life: 1,
        hostname: "alone".to_owned(),
        identity_token: String::new(),
        mac: None,
        runtime: RuntimeConfig::default(),
        trust: None,
        entrypoint: None,
        network: None,
        wall_clock_ns: u64::try_from(now.as_nanos()).expect("a time"),
        entropy: "00".repeat(32),
        rehearsal: true,
    }
}

impl Vm {
    /// Asks the guest's agent over a link of its own, and waits for the whole answer.
    fn ask(&self, port: u16, what: &str, body: &Value) -> String {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{what} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (link, session) = self.link().await;
            let session = tokio::spawn(session);
            let mut stream = link.open(port).await.expect("the agent takes a stream");
            stream.write_all(request.as_bytes()).await.expect("the agent takes a request");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("the agent answers");
            session.abort();
            answer
        })
    }

    /// Links up with the agent. A floor looks as fast as it can whether it listens.
    async fn link(&self) -> (belljar_link::Connector, belljar_link::Session) {
        loop {
            if let Ok(mut stream) = tokio::net::UnixStream::connect(&self.vsock).await
                && stream.write_all(format!("CONNECT {LINK_PORT}\n").as_bytes()).await.is_ok()
            {
                let mut line = Vec::new();
                while let Ok(byte @ 32..) = stream.read_u8().await {
                    line.push(byte);
                }
                if line.starts_with(b"OK ") {
                    let linked = belljar_link::connect(stream, ConnectOptions { timeout: PATIENCE }).await;
                    return linked.expect("the agent shakes hands");
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn call_by(&self, client: Client, method: &str, path: &str, body: &Value) {
        match client {
            Client::Here => self.call(method, path, body),
            Client::Curl => self.call_with_curl(method, path, body),
        }
    }

    fn call_with_curl(&self, method: &str, path: &str, body: &Value) {
        drop(crate::restore::connect(&self.api));
        let arguments = ["--silent", "--show-error", "--fail-with-body", "--header", "Content-Type: application/json"];
        let output = Command::new("curl")
            .args(arguments)
            .args(["--request", method, "--data", &body.to_string(), "--unix-socket"])
            .arg(&self.api)
            .arg(format!("http://vm{path}"))
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "{method} {path}: {output:?}");
    }

    /// A floor has nothing but the socket's appearance to wait for, so it looks as fast as it can.
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
