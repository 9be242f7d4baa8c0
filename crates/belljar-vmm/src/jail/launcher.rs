//! The launcher: a process of its own, with one thread, that makes a jail, forks the VM process into it and ends. Runs as root.
//!
//! In namespaces of its own, it opens what it needs of the host; then it leaves the host's root; then it forks. The VM process
//! waits until it was noted, so that it is found should everybody else die, and until its user owns what is its.

use super::inmate::Prepared;
use super::plan::{Entry, Network, Plan};
use super::root::{self, find, make_root, needs_interpreter};
use super::{FIRST_USER, Inmate, ROOM, cgroup};
use crate::child;
use crate::run_dir::INMATE;
use crate::spawn::FIRST_FD;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, unlinkat};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, mount_remount, unmount};
use rustix::thread::UnshareFlags;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// Where a launcher finds its report's end, its plan, and the first of the VM process's descriptors.
const REPORT_FD: RawFd = FIRST_FD;
const PLAN_FD: RawFd = FIRST_FD + 1;
pub(super) const FIRST_PASSED: RawFd = FIRST_FD + 2;

/// Exit status of a launcher that nobody started as one.
pub const NOBODYS: u8 = 2;

/// A step that failed.
pub(super) struct Failure(String, io::Error);

pub(super) type Done<T = ()> = Result<T, Failure>;

/// Names a step in its error.
pub(super) trait Step<T> {
    fn step(self, name: impl fmt::Display) -> Done<T>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, name: impl fmt::Display) -> Done<T> {
        self.map_err(|error| Failure(name.to_string(), error.into()))
    }
}

/// What a launcher does: `belljar jail`. For the process that [`super::start`] starts, and nobody else.
/// Answers the exit status: 0, 1, or [`NOBODYS`].
#[must_use]
pub fn enter() -> u8 {
    let Some([mut report, plan]) = take_fds() else {
        return NOBODYS;
    };
    match read_plan(plan).and_then(|plan| launch(&plan, &mut report)) {
        Ok(()) => 0,
        Err(Failure(step, error)) => {
            // Nobody reads it only if nobody is there any more.
            drop(writeln!(report, "error its jail: cannot {step}: {error}"));
            1
        }
    }
}

#[expect(unsafe_code, reason = "descriptors that a process was started with can be taken over in no other way")]
fn take_fds() -> Option<[File; 2]> {
    let is_open = |fd: RawFd| Path::new(&format!("/proc/self/fd/{fd}")).exists();
    if !is_open(REPORT_FD) || !is_open(PLAN_FD) {
        return None;
    }
    // SAFETY: they are open, and nothing else of this process, which has just begun, has them.
    let fds = [REPORT_FD, PLAN_FD].map(|fd| unsafe { File::from_raw_fd(fd) });
    for fd in &fds {
        rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    }
    Some(fds)
}

fn read_plan(mut file: File) -> Done<Plan> {
    let mut text = Vec::new();
    file.read_to_end(&mut text).step("read its plan")?;
    serde_json::from_slice(&text).step("read its plan")
}

/// What is held of the host when its root is left behind.
pub(super) struct Held {
    run_dir: OwnedFd,
    proc: OwnedFd,
    pub files: Vec<OwnedFd>,
    /// What the kernel tells of the devices that it gives its guest.
    pub devices: Vec<OwnedFd>,
    groups: Vec<OwnedFd>,
    pub program: PathBuf,
    /// Whether the program needs the system's libraries.
    pub is_dynamic: bool,
}

fn launch(plan: &Plan, report: &mut File) -> Done {
    let root = std::env::current_dir().step("find its run directory")?;
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWPID;
    if plan.network == Network::Empty {
        namespaces |= UnshareFlags::NEWNET;
    }
    unshare(namespaces).step("make namespaces")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step("keep its mounts to itself")?;
    // Only now: what is mounted elsewhere must be of this namespace.
    let held = hold(plan)?;
    make_root(plan, &held, &root)?;
    rustix::process::chdir(&root).step("enter its root")?;
    rustix::process::pivot_root(".", ".").step("change its root")?;
    unmount(".", UnmountFlags::DETACH).step("let go of the host's root")?;
    rustix::process::chdir("/").step("enter its root")?;
    let inmate = Prepared::new(plan, &held.program)?;
    let (waiting, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe")?;
    let pid = fork().step("fork")?;
    if pid == 0 {
        drop(go);
        inmate.enter(&waiting, report);
    }
    drop(waiting);
    // Where one of these fails, `go` closes, and the process ends.
    hand_over(plan, &held, pid)?;
    writeln!(report, "pid {pid}").step("report")?;
    let user = FIRST_USER + pid.unsigned_abs();
    File::from(go).write_all(&user.to_ne_bytes()).step("let the process go")
}

fn hold(plan: &Plan) -> Done<Held> {
    let path = |path: &Path, flags: OFlags| {
        openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())
            .step(format_args!("open {}", path.display()))
    };
    let program = find(&plan.program).step(format_args!("find {}", plan.program.display()))?;
    Ok(Held {
        run_dir: path(Path::new("."), OFlags::DIRECTORY)?,
        proc: path(Path::new("/proc"), OFlags::DIRECTORY)?,
        files: plan.files.iter().map(|file| path(&file.from, OFlags::empty())).collect::<Done<_>>()?,
        devices: plan.passed_through.iter().map(|it| path(&it.path(), OFlags::DIRECTORY)).collect::<Done<_>>()?,
        groups: plan.groups.iter().map(|group| path(&group.parent, OFlags::DIRECTORY)).collect::<Done<_>>()?,
        is_dynamic: needs_interpreter(&program).step(format_args!("read {}", program.display()))?,
        program,
    })
}

#[expect(unsafe_code, reason = "it may be used wrongly only where descriptors are unshared, which they are not")]
pub(super) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the table of descriptors stays as it is.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Forks a process whose parent is ours.
#[expect(unsafe_code, reason = "no safe wrapper makes a sibling")]
fn fork() -> io::Result<i32> {
    // SAFETY: without CLONE_VM it is a fork; this process has one thread, so nothing is half done in the copy.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
    i32::try_from(pid).ok().filter(|pid| *pid >= 0).ok_or_else(io::Error::last_os_error)
}

/// Makes what belongs to the new process its own, and notes it.
fn hand_over(plan: &Plan, held: &Held, pid: i32) -> Done {
    let user = FIRST_USER + pid.unsigned_abs();
    let (uid, gid) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    let mut own = vec![PathBuf::from(ROOM)];
    own.extend(plan.files.iter().filter(|file| file.write).map(|file| Entry::inside(&file.name)));
    own.extend(plan.kvm.then(|| PathBuf::from("/dev/kvm")));
    own.extend(root::vfio_files(plan).into_iter().map(|name| Path::new("/dev").join(name)));
    if let Network::Tap(name) = &plan.network {
        own.push(PathBuf::from("/dev/net/tun"));
        own_tap(name, user).step(format_args!("give away the tap {name}"))?;
    }
    for path in own {
        chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(format_args!("give away {}", path.display()))?;
    }
    mount_remount("/", MountFlags::RDONLY | MountFlags::NOSUID, "").step("protect its root")?;
    // Before there are groups: whoever finds the note removes them.
    let name = cgroup::name(pid.unsigned_abs());
    note(held, pid, plan.groups.iter().map(|group| group.parent.join(&name)).collect())?;
    let mut groups = plan.groups.iter().zip(&held.groups);
    groups.try_for_each(|(group, parent)| join_group(parent, &name, &group.settings, pid))
}

/// Makes a control group and moves the process there.
fn join_group(parent: &OwnedFd, name: &str, settings: &[(String, String)], pid: i32) -> Done {
    let named = |file: &str| format!("set {file} of its control group");
    let make = || mkdirat(parent, name, Mode::from_bits_truncate(0o755));
    let made = match make() {
        // Of an earlier process with this number, and with what was counted for that.
        Err(Errno::EXIST) => unlinkat(parent, name, AtFlags::REMOVEDIR).and_then(|()| make()),
        made => made,
    };
    made.step("make its control group")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group = openat(parent, name, flags, Mode::empty()).step("open its control group")?;
    let pid = pid.to_string();
    for (file, value) in settings.iter().map(|(file, value)| (file.as_str(), value)).chain([("cgroup.procs", &pid)]) {
        let open = openat(&group, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let written = open.map_err(io::Error::from).and_then(|open| File::from(open).write_all(value.as_bytes()));
        written.step(named(file))?;
    }
    Ok(())
}

/// Makes a tap that stays also that of a user, who may then open it.
#[expect(unsafe_code, reason = "no safe wrapper has these ioctls")]
fn own_tap(name: &str, user: u32) -> io::Result<()> {
    // `_IOW('T', 202, int)` and 204, of `linux/if_tun.h`.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const TUNSETOWNER: libc::Ioctl = 0x4004_54cc;
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all bytes zero are a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the request is what the first wants, alive and initialized; the second takes a number.
    let done = unsafe {
        match libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) {
            0 => libc::ioctl(tun.as_raw_fd(), TUNSETOWNER, libc::c_ulong::from(user)),
            failed => failed,
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Notes the process in the run directory.
fn note(held: &Held, pid: i32, groups: Vec<PathBuf>) -> Done {
    let read = |name: &str| {
        let mut text = String::new();
        let file = openat(&held.proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(file).read_to_string(&mut text)?;
        io::Result::Ok(text)
    };
    let start_time =
        read(&format!("{pid}/stat")).map(|stat| child::parse_start_time(&stat)).step("look at the process")?;
    let boot_id = read("sys/kernel/random/boot_id").step("read the boot id")?.trim().to_owned();
    let start_time = start_time.ok_or(io::ErrorKind::NotFound).step("look at the process")?;
    let note = serde_json::to_vec(&Inmate { pid: pid.unsigned_abs(), start_time, boot_id, groups }).step("note it")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&held.run_dir, INMATE, flags, Mode::RUSR | Mode::WUSR).step("note the process")?;
    File::from(file).write_all(&note).step("note the process")
}
