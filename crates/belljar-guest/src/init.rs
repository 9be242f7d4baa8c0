//! Init mode: from a bare kernel to the agent, as PID 1.
//!
//! ```text
//! initramfs: /dev /proc /sys ─► root device ─► mount ─► move over, chroot
//! root fs:   /dev/pts /dev/shm /run cgroups ─► loopback, limits ─► link ─► agent, for ever
//!                                            └► systemd ([`crate::systemd`]) ─► limits ─► link ─► agent
//! ```
//!
//! Every step either works or the machine ends: [`crate::run`] prints the reason on the console and reboots, which the
//! VMM takes as the end.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use belljar_api::{
    guest::{BOOT_SYSTEMD, LINK_PORT_NAME},
    image::Init,
};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        prctl::set_child_subreaper,
        reboot::set_cad_enabled,
        resource::{Resource, setrlimit},
    },
    unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::{
    agent::Agent,
    cgroup::Cgroups,
    grow, ioctl,
    launch::Place,
    limits::{DEVICE_PATIENCE, OPEN_FILES_HARD, OPEN_FILES_SOFT},
    port::Port,
    serve::Service,
    systemd, uevent, vsock,
};

const NEW_ROOT: &str = "/newroot";

/// What a sandbox's programs may expect of a machine of their own. A kernel without one of them is no reason to stop.
const SYSCTLS: [(&str, &str); 9] = [
    // Without it `ping` needs root.
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    // Who knows this machine by its old hardware address learns the new one.
    ("net/ipv4/conf/all/arp_notify", "1"),
    // File watchers of editors and bundlers.
    ("fs/inotify/max_user_watches", "524288"),
    ("fs/inotify/max_user_instances", "1024"),
    // Databases and search engines map many files.
    ("vm/max_map_count", "1048576"),
    ("kernel/pid_max", "4194304"),
    // An idle guest is to sleep: these two were half of its timer interrupts. Memory is compacted when somebody needs it so, and
    // what each processor counted for itself is added up less often.
    ("vm/compaction_proactiveness", "0"),
    ("vm/stat_interval", "10"),
];

/// What the kernel command line says to us.
#[derive(Debug, PartialEq, Eq)]
struct CommandLine {
    root: String,
    link: Link,
    init: Init,
}

#[derive(Debug, PartialEq, Eq)]
enum Link {
    Virtio,
    Vsock { port: u32 },
}

/// Makes the machine. Must run before there are threads.
pub(crate) fn set_up() -> anyhow::Result<Machine> {
    mount_on("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    use_console();
    mount_on("proc", "/proc", "proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")?;
    mount_on("sysfs", "/sys", "sysfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")?;
    let line = parse(&fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?)?;
    enter_root(&line)?;
    mount_rest(line.init)?;
    for (name, value) in SYSCTLS {
        warn(name, fs::write(Path::new("/proc/sys").join(name), value));
    }
    if line.init == Init::Systemd {
        match systemd::hand_over()? {}
    }
    warn("loopback", ioctl::loopback_up());
    set_limits();
    // Ctrl-Alt-Del becomes a signal, and PID 1 has no handler for it: nothing happens.
    warn("ctrl-alt-del", set_cad_enabled(false).map_err(io::Error::from));
    Ok(Machine { link: line.link, init: line.init })
}

/// The same for a service of systemd, which has made the machine.
pub(crate) fn join() -> anyhow::Result<Machine> {
    let line = parse(&fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?)?;
    // Those whose parent dies would become systemd's children, and nobody would tell us of their end.
    set_child_subreaper(true).context("cannot adopt orphans")?;
    set_limits();
    Ok(Machine { link: line.link, init: Init::Systemd })
}

fn set_limits() {
    warn("oom_score_adj", fs::write("/proc/self/oom_score_adj", "-1000"));
    warn("open files", setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_SOFT, OPEN_FILES_HARD).map_err(io::Error::from));
}

/// A machine that is ready for the agent.
pub(crate) struct Machine {
    link: Link,
    init: Init,
}

impl Machine {
    /// Serves the link; returns only when that cannot go on.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let agent = Agent::new(Place::Machine { init: self.init }, Cgroups::set_up(self.init))?;
        let service = Service::new(&agent);
        tokio::spawn(async {
            if let Err(error) = uevent::watch_disks(grow::grow_root_or_warn).await {
                tracing::warn!("a disk that grows will not be seen: {error}");
            }
        });
        match self.link {
            Link::Virtio => {
                let device = uevent::wait_for(LINK_PORT_NAME, DEVICE_PATIENCE, link_device)?;
                let port = Port::open(&device).with_context(|| device.display().to_string())?;
                service.serve_link(port).await;
            }
            Link::Vsock { port } => vsock::serve(port, service).await.with_context(|| format!("vsock port {port}"))?,
        }
        bail!("the link device is gone")
    }
}

fn warn(step: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{step}: {error}");
    }
}

/// The kernel gives PID 1 a console only if the initramfs has the node.
fn use_console() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    let console = console.as_fd();
    // Where it fails nobody could be told.
    let _ = dup2_stdin(console).and_then(|()| dup2_stdout(console)).and_then(|()| dup2_stderr(console));
}

fn parse(line: &str) -> anyhow::Result<CommandLine> {
    let value = |key: &str| line.split_whitespace().filter_map(|word| word.strip_prefix(key)).next_back();
    let link = match value("belljar.link=") {
        None | Some("virtio") => Link::Virtio,
        Some(other) => match other.strip_prefix("vsock:").and_then(|port| port.parse().ok()) {
            Some(port) => Link::Vsock { port },
            None => bail!("kernel command line: belljar.link={other}: write `virtio` or `vsock:PORT`"),
        },
    };
    let init = if line.split_whitespace().any(|word| word == BOOT_SYSTEMD) { Init::Systemd } else { Init::Agent };
    Ok(CommandLine { root: value("belljar.root=").unwrap_or("/dev/vda").to_owned(), link, init })
}

fn mount_on(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| target.to_owned())?;
    match mount(Some(source), target, Some(kind), flags, Some(data)) {
        // The kernel may have mounted /dev by itself.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {kind} on {target}")),
    }
}

/// Else the kernel fills tables of inodes that nobody uses with zeros while the guest is at rest, in every sandbox anew. Read from
/// a new disk they are zeros already.
const ROOT_OPTIONS: &str = "noinit_itable";

/// Mounts the root file system and makes it `/`. What is left of the initramfs is this program, which lies under the
/// new root where nobody sees it.
fn enter_root(line: &CommandLine) -> anyhow::Result<()> {
    let device = line.root.as_str();
    uevent::wait_for(device, DEVICE_PATIENCE, || Path::new(device).exists().then_some(()))?;
    fs::create_dir_all(NEW_ROOT).context(NEW_ROOT)?;
    mount(Some(device), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, Some(ROOT_OPTIONS))
        .with_context(|| format!("mount the root file system {device}"))?;
    for moved in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{moved}");
        fs::create_dir_all(&target).with_context(|| target.clone())?;
        mount(Some(moved), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("move {moved} to {target}"))?;
    }
    if line.init == Init::Agent {
        // Gives its memory back as far as it is not the running program.
        warn("/init", fs::remove_file("/init"));
    }
    chdir(NEW_ROOT).context(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the root")?;
    chroot(".").context("chroot")?;
    chdir("/").context("chdir")
}

fn mount_rest(init: Init) -> anyhow::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let strict = plain | MsFlags::MS_NOEXEC;
    let no_devices = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_on("devpts", "/dev/pts", "devpts", no_devices, "gid=5,mode=620,ptmxmode=666")?;
    mount_on("tmpfs", "/dev/shm", "tmpfs", plain, "mode=1777")?;
    mount_on("tmpfs", "/run", "tmpfs", plain, "mode=755")?;
    // Every process that we start moves into its cgroup. Unless told that this happens often, the kernel waits each time
    // for all processors to have come by: 25 ms and more of the 40 that a small program takes.
    let options = match init {
        Init::Agent => "favordynmods",
        // Those that systemd would mount it with.
        Init::Systemd => "favordynmods,nsdelegate,memory_recursiveprot",
    };
    mount_on("cgroup2", "/sys/fs/cgroup", "cgroup2", strict, options)
        .or_else(|_| mount_on("cgroup2", "/sys/fs/cgroup", "cgroup2", strict, ""))?;
    if let Err(error) = mount_on("mqueue", "/dev/mqueue", "mqueue", strict, "") {
        tracing::warn!("{error:#}");
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        match symlink(target, Path::new("/dev").join(link)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => tracing::warn!("/dev/{link}: {error}"),
            _ => {}
        }
    }
    Ok(())
}

/// The device of the port that the host named for us.
fn link_device() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let is_ours = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == LINK_PORT_NAME)
    };
    let device = Path::new("/dev").join(ports.flatten().find(is_ours)?.file_name());
    device.exists().then_some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, root: &str, link: Link, init: Init) {
        assert_eq!(parse(line).expect(line), CommandLine { root: root.to_owned(), link, init });
    }

    #[test]
    fn the_command_line_has_defaults_and_the_last_word_counts() {
        check("console=ttyS0 quiet", "/dev/vda", Link::Virtio, Init::Agent);
        check("belljar.init=systemd quiet", "/dev/vda", Link::Virtio, Init::Systemd);
        check("belljar.link=virtio belljar.root=/dev/vdb", "/dev/vdb", Link::Virtio, Init::Agent);
        check("belljar.link=virtio belljar.link=vsock:52\n", "/dev/vda", Link::Vsock { port: 52 }, Init::Agent);
        assert!(parse("belljar.link=carrier-pigeon").is_err());
        assert!(parse("belljar.link=vsock:x").is_err());
    }
}
