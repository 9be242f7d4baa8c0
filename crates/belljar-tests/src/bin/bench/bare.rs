//! The floor of a cold create: QEMU alone, the same kernel, a copy of the same disk, to its first process.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use belljar_tests::world::prepared;

use crate::restore::copied_disk;

/// What the first process prints.
const MARK: &str = "first-process-runs";

/// A disk and a kernel to boot.
pub(crate) struct Bare {
    _dir: tempfile::TempDir,
    disk: PathBuf,
}

impl Bare {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = dir.path().join("disk.ext4");
        copied_disk(&disk);
        Self { _dir: dir, disk }
    }

    /// Boots once; answers the time from the start of QEMU until the first process has written a line.
    pub(crate) fn boot(&self) -> Duration {
        let disk = format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", self.disk.display());
        // A word that the kernel does not know goes to init as an argument. QEMU appends its devices, so no `--`.
        let append = format!("console=ttyS0 quiet loglevel=3 reboot=t panic=-1 root=/dev/vda rw init=/bin/echo {MARK}");
        let begun = Instant::now();
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on"])
            .args([
                "-accel",
                "tcg,thread=multi,tb-size=256",
                "-cpu",
                "max,-erms,-fsrm,-fzrm,-fsrs,-fsrc",
                "-smp",
                "1",
                "-m",
                "1024M",
            ])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-blockdev", &disk, "-device", "virtio-blk-device,drive=disk"])
            .arg("-kernel")
            .arg(prepared("BELLJAR_KERNEL"))
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu starts");
        let lines = BufReader::new(qemu.stdout.take().expect("its output")).lines();
        let mark = lines.map_while(Result::ok).find(|line| line.contains(MARK));
        let took = begun.elapsed();
        // It may have ended by itself: init returned, so the kernel panicked and rebooted.
        let _ = qemu.kill();
        qemu.wait().expect("qemu ends");
        assert!(mark.is_some(), "the bare VM did not boot");
        took
    }
}
