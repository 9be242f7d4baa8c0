//! What the operating system and its programs say.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::statvfs::statvfs;

use super::Check;
use crate::{settings::UpSettings, table::bytes, up::together::jail_options};

/// Memory below which not even two small sandboxes fit, bytes.
const MEMORY_WISH: u64 = 2 * 1024 * 1024 * 1024;
/// Free disk below which sandboxes soon run into its end, bytes.
const DISK_WISH: u64 = 10 * 1024 * 1024 * 1024;

pub(super) fn checks(data_dir: &Path, up: &UpSettings) -> Vec<Check> {
    vec![tun(), nftables(), network(up), jail(up), clones(data_dir), memory(), disk(data_dir), user()]
}

fn tun() -> Check {
    let path = "/dev/net/tun";
    let remedy = "sandboxes' networks need it: modprobe tun, as root";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok("tun", format!("{path} opens")),
        Err(error) => Check::warn("tun", format!("{path}: {error}"), remedy),
    }
}

fn nftables() -> Check {
    let remedy = "sandboxes' networks need it: apt install nftables, as root";
    match run("nft", &["list", "tables"]) {
        Ok(_) => {
            let version = run("nft", &["--version"]).unwrap_or_default();
            Check::ok("nftables", version.lines().next().unwrap_or_default().to_owned())
        }
        Err(error) => Check::warn("nftables", error, remedy),
    }
}

fn network(up: &UpSettings) -> Check {
    match belljar_node::probe_network() {
        Ok(()) => Check::ok(
            "network",
            format!(
                "a namespace, a tap and rules for each sandbox; egress rules are enforced; each may have {}",
                up.network.limits
            ),
        ),
        Err(error) => Check::warn(
            "network",
            format!(
                "QEMU's user-mode network: sandboxes reach the internet, egress rules are not enforced, since {:#}",
                anyhow::Error::new(error)
            ),
            "run `belljar up` as root with nftables and iproute2; until then rules are refused and never ignored, and \
             `--no-network` cuts a sandbox off",
        ),
    }
}

fn jail(up: &UpSettings) -> Check {
    let off = "a guest that breaks out of its VM has all rights of the user who runs `belljar up`";
    match belljar_node::open_jail(&jail_options(up.jail), &std::env::temp_dir()) {
        Ok(Some(jail)) if jail.controllers.is_complete() => {
            let words = "each VM process has a user, namespaces, a root directory and limits of its own";
            Check::ok("jail", format!("{words}; {}", jail.controllers))
        }
        Ok(Some(jail)) => {
            let words = "each VM process has a user, namespaces and a root directory of its own";
            let remedy = "mount control groups on /sys/fs/cgroup with cpu, memory and pids; until then VMs are not limited by the host";
            Check::warn("jail", format!("{words}; {}", jail.controllers), remedy)
        }
        Ok(None) => Check::warn("jail", format!("none: {off}"), "run `belljar up` as root, without --jail off"),
        Err(error) => Check::missing("jail", error.to_string(), format!("run `belljar up --jail off`, and then {off}")),
    }
}

/// How disks of new sandboxes are made: at once by reflink, or by the two fallbacks.
fn clones(data_dir: &Path) -> Check {
    let place = existing(data_dir);
    match reflink(place) {
        Ok(()) => return Check::ok("disk clones", format!("{} makes them at once (reflink)", place.display())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Check::missing(
                "disk clones",
                format!("{} cannot be written to", place.display()),
                "choose another --data-dir, or run as root",
            );
        }
        Err(_) => {}
    }
    let lacking: Vec<&str> =
        ["mkfs.xfs", "losetup", "mount"].into_iter().filter(|program| !installed(program)).collect();
    let root = nix::unistd::geteuid().is_root();
    let (detail, remedy) = match (root, lacking.as_slice()) {
        (true, []) => {
            let detail = format!("{} cannot reflink; an XFS volume in a file will be used", place.display());
            return Check::ok("disk clones", detail);
        }
        (true, lacking) => (
            format!("{} cannot reflink, and {} is missing: disks are copied", place.display(), lacking.join(", ")),
            "apt install xfsprogs mount",
        ),
        (false, _) => (
            format!("{} cannot reflink: disks are copied", place.display()),
            "put --data-dir on XFS or btrfs, or run as root, which can mount an XFS volume",
        ),
    };
    Check::warn("disk clones", detail, remedy)
}

/// Clones an unnamed file, which is gone when it is closed.
fn reflink(dir: &Path) -> io::Result<()> {
    use io::Write;
    let mut from = tempfile::tempfile_in(dir)?;
    from.write_all(&[1; 4096])?;
    from.sync_all()?;
    let to = tempfile::tempfile_in(dir)?;
    rustix::fs::ioctl_ficlone(&to, &from).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))
}

fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    match (of("MemAvailable"), of("MemTotal")) {
        (Some(free), Some(total)) => {
            let detail = format!("{} of {} free", bytes(free), bytes(total));
            match free < MEMORY_WISH {
                true => Check::warn(
                    "memory",
                    detail,
                    "a sandbox has 1 GiB or more: end other programs, or use a larger machine",
                ),
                false => Check::ok("memory", detail),
            }
        }
        _ => Check::warn("memory", "/proc/meminfo cannot be read", "mount /proc"),
    }
}

fn disk(data_dir: &Path) -> Check {
    let place = existing(data_dir);
    match statvfs(place) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let detail = format!("{} free in {}", bytes(free), place.display());
            match free < DISK_WISH {
                true => Check::warn("disk", detail, "make room, or choose another --data-dir"),
                false => Check::ok("disk", detail),
            }
        }
        Err(error) => Check::warn("disk", format!("{}: {error}", place.display()), "choose another --data-dir"),
    }
}

fn user() -> Check {
    if nix::unistd::geteuid().is_root() {
        return Check::ok("user", "root");
    }
    let remedy = "sandboxes run; building images, and an XFS volume for disk clones, need root";
    Check::warn("user", "not root", remedy)
}

/// The nearest directory above a path that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn installed(program: &str) -> bool {
    run(program, &["--version"]).is_ok() || run(program, &["-V"]).is_ok()
}

/// What a program prints; in words why it does not.
fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program}: {}", words.lines().next().unwrap_or("it fails")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{program} is not installed")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}
