//! An OCI image into a file system: `belljar image import` beside `umoci unpack` and `mkfs.ext4 -d`, of the same layers.
//!
//! Everything lies on a volume of its own, of which what is used shows at once. It needs root and no VM. The layers are made
//! of files of this machine, so that only what is on the same line of the table can be compared.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use belljar_tests::world;

use crate::{
    memory::resident_mib,
    progress,
    table::{Samples, Table},
};

/// How often each is done, in turn; the first of each fills caches.
const RUNS: usize = 3;
/// Pause between two looks at what a program uses.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes that the volume may come to use; sparse.
const VOLUME_BYTES: u64 = 24 << 30;
/// What the two layers are made of, as far as it is there.
const LAYERS: [&[&str]; 2] = [&["/usr/bin"], &["/usr/share/doc", "/usr/lib/python3", "/usr/include"]];

pub(crate) fn run(table: &mut Table) {
    let volume = Volume::make();
    let packed = volume.mounted.join("packed");
    let image = format!("{}:it", packed.display());
    make_layers(&volume.mounted, &packed, &image);
    let size = |path: &Path| volume_bytes(path) as f64 / f64::from(1 << 20);
    table.value("the image's layers, packed", size(&packed.join("blobs")), "MiB", "-");

    let (theirs, ours) = (volume.mounted.join("theirs"), volume.mounted.join("ours"));
    let (bundle, file) = (theirs.join("bundle"), theirs.join("rootfs.ext4"));
    let mut figures = [Figures::default(), Figures::default()];
    for n in 0..=RUNS {
        progress(&format!("umoci and mkfs.ext4, and import: {n} of {RUNS}"));
        fs::create_dir_all(&theirs).expect("a directory");
        let script =
            "umoci unpack --image \"$1\" \"$2\" && truncate -s 2048M \"$3\" && mkfs.ext4 -q -F -d \"$2/rootfs\" \"$3\"";
        let mut floor = Command::new("sh");
        floor.args(["-c", script, "sh", &image]).args([&bundle, &file]);
        let floor = measure(&volume, floor);
        fs::remove_dir_all(&theirs).expect("to remove it");
        let mut import = Command::new(world::binary());
        import.args(["--quiet", "image", "import", &format!("oci:{image}"), "--image-store"]).arg(&ours);
        let import = measure(&volume, import);
        fs::remove_dir_all(&ours).expect("to remove it");
        if n > 0 {
            figures[0].add(&floor);
            figures[1].add(&import);
        }
    }
    let [floor, import] = &figures;
    let ratio = import.took.p50() / floor.took.p50();
    table.samples("umoci unpack, then mkfs.ext4 -d", &floor.took, "floor");
    table.samples("belljar image import of the same layers", &import.took, &format!("{ratio:.2} x floor, <= 1.5"));
    table.value("umoci and mkfs.ext4: memory (peak)", floor.memory_mib, "MiB", "floor");
    table.value("import: memory (peak)", import.memory_mib, "MiB", "< floor");
    table.value("umoci and mkfs.ext4: disk (peak)", floor.disk_mib, "MiB", "floor");
    table.value("import: disk (peak)", import.disk_mib, "MiB", "< floor");
}

/// What one run used.
struct Used {
    took: Duration,
    memory_mib: f64,
    disk_mib: f64,
}

/// The times of all runs, and the most that any used.
#[derive(Default)]
struct Figures {
    took: Samples,
    memory_mib: f64,
    disk_mib: f64,
}

impl Figures {
    fn add(&mut self, used: &Used) {
        self.took.add(used.took);
        self.memory_mib = self.memory_mib.max(used.memory_mib);
        self.disk_mib = self.disk_mib.max(used.disk_mib);
    }
}

/// An ext4 file system in a sparse file, mounted as long as this is there.
struct Volume {
    mounted: PathBuf,
    _dir: tempfile::TempDir,
}

impl Volume {
    fn make() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (file, mounted) = (dir.path().join("volume"), dir.path().join("mounted"));
        File::create(&file).and_then(|file| file.set_len(VOLUME_BYTES)).expect("a file");
        fs::create_dir(&mounted).expect("a directory");
        done(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "nodiscard"]).arg(&file));
        done(Command::new("mount").args(["-o", "loop"]).args([&file, &mounted]));
        Self { mounted, _dir: dir }
    }

    fn used(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.mounted).expect("the volume");
        (found.blocks() - found.blocks_free()) * found.fragment_size()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        done(Command::new("umount").arg(&self.mounted));
    }
}

fn make_layers(dir: &Path, packed: &Path, image: &str) {
    progress("making an image of files of this machine");
    let bundle = dir.join("bundle");
    let umoci = |verb: &[&str], last: &[&Path]| done(Command::new("umoci").args(verb).args(last));
    umoci(&["init", "--layout"], &[packed]);
    umoci(&["new", "--image", image], &[]);
    umoci(&["unpack", "--image", image], &[&bundle]);
    for sources in LAYERS {
        for source in sources.iter().filter(|source| Path::new(source).is_dir()) {
            let to = bundle.join("rootfs").join(source.trim_start_matches('/'));
            fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
            done(Command::new("cp").args(["-a", source]).arg(to));
        }
        umoci(&["repack", "--refresh-bundle", "--image", image], &[&bundle]);
    }
    fs::remove_dir_all(bundle).expect("to remove it");
}

/// Runs a program and looks at it and at the disk all the time.
fn measure(volume: &Volume, mut command: Command) -> Used {
    done(&mut Command::new("sync"));
    let before = volume.used();
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().expect("the program");
    let (mut memory, mut disk) = (0.0_f64, 0);
    let status = loop {
        memory = memory.max(all_resident_mib(child.id().cast_signed()));
        disk = disk.max(volume.used().saturating_sub(before));
        if let Some(status) = child.try_wait().expect("the program") {
            break status;
        }
        thread::sleep(LOOK);
    };
    assert!(status.success(), "{command:?}: {status}");
    Used { took: begun.elapsed(), memory_mib: memory, disk_mib: disk as f64 / f64::from(1 << 20) }
}

/// Of a process and all that it began.
fn all_resident_mib(pid: i32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let all: Vec<i32> =
        children.flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect();
    resident_mib(pid) + all.into_iter().map(all_resident_mib).sum::<f64>()
}

/// Bytes of all files in a directory and below.
fn volume_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => volume_bytes(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
