//! The floor of a create from a golden snapshot: QEMU alone, restored copy-on-write, until its guest answers on a port. In
//! software, and on KVM for [`crate::driver`].
//!
//! The same kernel and a copy of the same disk; what answers is a shell that echoes. See QEMU's documentation of
//! `x-ignore-shared` and `migrate-incoming`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use belljar_tests::world::prepared;
use serde_json::{Value, json};

use crate::alone::Alone;

/// What the guest says when it is ready to echo.
const READY: &str = "ready-to-echo";
/// The guest's first process, on the kernel's command line.
const INIT: &str = "init=/bin/sh -c \"stty -echo; echo ready-to-echo; exec sh\"";
/// What the guest is asked, and what shows that it answered.
const ASK: &str = "echo pong-$((6*7))\n";
const ANSWER: &str = "pong-42";
/// How code is executed: accelerator and processor.
const SOFTWARE: [&str; 4] = ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc"];
const HARDWARE: [&str; 4] = ["-accel", "kvm", "-cpu", "host"];

/// A frozen VM: its memory file, its device state, its disk.
pub(crate) struct Frozen {
    dir: tempfile::TempDir,
    processor: [&'static str; 4],
}

/// A running QEMU with its two connections.
struct Vm {
    process: Child,
    qmp: BufReader<UnixStream>,
    port: BufReader<UnixStream>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Frozen {
    /// Boots once and freezes, in software.
    pub(crate) fn new() -> Self {
        Self::with(SOFTWARE)
    }

    /// The same on KVM.
    pub(crate) fn on_kvm() -> Self {
        Self::with(HARDWARE)
    }

    fn with(processor: [&'static str; 4]) -> Self {
        let frozen = Self { dir: tempfile::tempdir().expect("a temporary directory"), processor };
        copied_disk(&frozen.path("disk"));
        let mut vm = frozen.start("on", &[]);
        wait_for(&mut vm.port, READY);
        vm.command("stop", &json!({}));
        vm.migrate("migrate", &frozen.path("devices"));
        frozen
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn restored(&self) -> Vm {
        let mut vm = self.start("off", &["-incoming", "defer"]);
        vm.migrate("migrate-incoming", &self.path("devices"));
        vm.command("cont", &json!({}));
        vm.port.get_mut().write_all(ASK.as_bytes()).expect("the port takes it");
        wait_for(&mut vm.port, ANSWER);
        vm
    }

    fn start(&self, share: &str, more: &[&str]) -> Vm {
        let (qmp, port) = (self.path("qmp.sock"), self.path("port.sock"));
        for socket in [&qmp, &port] {
            let _ = fs::remove_file(socket);
        }
        let memory = self.path("memory");
        let object = format!("memory-backend-file,id=mem,size=1024M,share={share},mem-path={}", memory.display());
        let disk = format!(
            "driver=raw,node-name=disk,file.driver=file,file.locking=off,file.filename={}",
            self.path("disk").display()
        );
        let append = format!("console=ttyS0 quiet loglevel=3 reboot=t panic=-1 root=/dev/vda ro {INIT}");
        let process = Command::new("qemu-system-x86_64")
            .args(["-machine", "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,memory-backend=mem"])
            .args(self.processor)
            .args(["-smp", "1", "-m", "1024M", "-object", &object])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-blockdev", &disk, "-device", "virtio-blk-device,drive=disk"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .args(["-serial", &format!("unix:{},server=on,wait=off", port.display())])
            .arg("-kernel")
            .arg(prepared("BELLJAR_KERNEL"))
            .args(["-append", &append])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu starts");
        let port = BufReader::new(connect(&port));
        let mut vm = Vm { process, qmp: BufReader::new(connect(&qmp)), port };
        vm.answer();
        vm.command("qmp_capabilities", &json!({}));
        vm
    }
}

impl Alone for Frozen {
    fn restore(&self) -> Duration {
        let begun = Instant::now();
        let vm = self.restored();
        let took = begun.elapsed();
        drop(vm);
        took
    }

    /// What QEMU writes by itself has the memory in the middle, where it cannot be mapped: it thaws from the first file.
    fn freeze_and_thaw(&self) -> [Duration; 2] {
        let mut vm = self.restored();
        let again = self.path("again");
        let begun = Instant::now();
        vm.command("stop", &json!({}));
        // A private mapping is not left out: all of memory goes along.
        vm.migrate("migrate", &again);
        let took = begun.elapsed();
        drop(vm);
        fs::remove_file(&again).expect("it is removed");
        [took, self.restore()]
    }
}

/// A copy of the default image's file system.
pub(crate) fn copied_disk(to: &Path) {
    let images = fs::read_dir(prepared("BELLJAR_IMAGE_STORE").join("images")).expect("images");
    let rootfs = images.map(|entry| entry.expect("an image").path().join("rootfs.ext4")).next().expect("an image");
    let copied = Command::new("cp").arg("--sparse=always").arg(rootfs).arg(to).status().expect("cp");
    assert!(copied.success());
}

/// A floor has nothing but the socket's appearance to wait for, so it looks as fast as it can.
pub(crate) fn connect(path: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn wait_for(port: &mut impl BufRead, word: &str) {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = port.read_until(b'\n', &mut line).expect("the port");
        assert!(read > 0, "the VM ended before it said {word}");
        if String::from_utf8_lossy(&line).contains(word) {
            return;
        }
    }
}

impl Vm {
    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("QMP answers");
        serde_json::from_str(&line).expect("JSON")
    }

    fn command(&mut self, name: &str, arguments: &Value) -> Value {
        let line = format!("{}\n", json!({"execute": name, "arguments": arguments}));
        self.qmp.get_mut().write_all(line.as_bytes()).expect("QMP takes it");
        loop {
            let answer = self.answer();
            assert!(answer.get("error").is_none(), "{name}: {answer}");
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
        }
    }

    /// Saves or loads everything but memory, which is the file.
    fn migrate(&mut self, command: &str, state: &Path) {
        let on = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
        self.command("migrate-set-capabilities", &on);
        self.command(command, &json!({"uri": format!("file:{}", state.display())}));
        loop {
            let status = self.command("query-migrate", &json!({}));
            match status["status"].as_str() {
                Some("completed") => return,
                Some("failed") => panic!("{command}: {status}"),
                _ => std::thread::yield_now(),
            }
        }
    }
}
