//! The launcher: a process of its own, with one thread, that makes a jail, forks the VM process into it and ends. Runs as root.
//!
//! In namespaces of its own, it opens what it needs of the host; then it leaves the host's root; then it forks. The VM process waits until it
//! was noted, so that it is found should everybody else die, and until its user owns what is its.

use super::plan::{Entry, Network, Plan};
use super::{FIRST_USER, Inmate, ROOM};
use super::{cgroup, filter};
use crate::child;
use crate::run_dir::INMATE;
use crate::spawn::FIRST_FD;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;
use seccompiler::BpfProgram;
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a launcher finds its report's end, its plan, and the first of the VM process's descriptors.
const REPORT_FD: RawFd = FIRST_FD;
const PLAN_FD: RawFd = FIRST_FD + 1;
const FIRST_PASSED: RawFd = FIRST_FD + 2;

/// Exit status of a launcher that nobody started as one.
pub const NOBODYS: u8 = 2;

/// A step that failed.
struct Failure(String, io::Error);

type Done<T = ()> = Result<T, Failure>;

/// Names a step in its error.
trait Step<T> {
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
struct Held {
    run_dir: OwnedFd,
    proc: OwnedFd,
    files: Vec<OwnedFd>,
    groups: Vec<OwnedFd>,
    program: PathBuf,
    /// Whether the program needs the system's libraries.
    is_dynamic: bool,
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
        groups: plan.groups.iter().map(|group| path(&group.parent, OFlags::DIRECTORY)).collect::<Done<_>>()?,
        is_dynamic: needs_interpreter(&program).step(format_args!("read {}", program.display()))?,
        program,
    })
}

/// Where a program is, as the shell finds it.
fn find(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.ok_or(io::ErrorKind::NotFound)?.canonicalize()
}

/// Whether an ELF file has a program header `PT_INTERP`. Format: `elf(5)`.
fn needs_interpreter(program: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut start = Vec::new();
    File::open(program)?.take(4096).read_to_end(&mut start)?;
    let number = |at: usize, bytes: usize| {
        let field = start.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0_usize, |number, byte| (number << 8) | usize::from(*byte)))
    };
    if !start.starts_with(b"\x7fELF\x02\x01") {
        // A script, which needs more than that.
        return Ok(true);
    }
    let table = (number(32, 8).unwrap_or(0), number(54, 2).unwrap_or(0), number(56, 2).unwrap_or(0));
    let (at, size, count) = table;
    Ok((0..count.min(64)).any(|index| number(at + index * size, 4) == Some(PT_INTERP as usize)))
}

const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

fn in_memory(target: &Path, flags: MountFlags, options: &str) -> Done {
    let options = CString::new(options).step("name options")?;
    mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str())).step(format_args!("mount {}", target.display()))
}

/// Makes what will be the root, at the run directory's place.
fn make_root(plan: &Plan, held: &Held, root: &Path) -> Done {
    in_memory(root, MountFlags::NOSUID, "mode=0755,size=1m,nr_inodes=4096")?;
    let room = root.join(&ROOM[1..]);
    for dir in [room.clone(), root.join("dev/net"), root.join("proc")] {
        std::fs::create_dir_all(&dir).step(format_args!("create {}", dir.display()))?;
    }
    let limits = &plan.limits;
    in_memory(&room, NOTHING, &format!("mode=0700,size={},nr_inodes={}", limits.room_bytes, limits.room_files))?;
    for (file, from) in plan.files.iter().zip(&held.files) {
        let flags = if file.write { NOTHING } else { NOTHING | MountFlags::RDONLY };
        if !file.write {
            make_readable(from).step(format_args!("make {} readable", file.from.display()))?;
        }
        bind(from, &room.join(&file.name), flags)?;
    }
    if held.is_dynamic {
        bind_libraries(root)?;
    }
    if !(held.is_dynamic && held.program.starts_with("/usr")) {
        let program =
            openat(CWD, &held.program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("open the program")?;
        let target = root.join(held.program.strip_prefix("/").unwrap_or(&held.program));
        bind(&program, &target, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV)?;
    }
    make_devices(plan, root)
}

/// Lets everybody read a file that many VMs may share: only its own name in the jail leads there.
fn make_readable(file: &OwnedFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let metadata = std::fs::metadata(&path)?;
    let mut permissions = metadata.permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&permissions);
    if mode & 0o004 == 0 {
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, mode | 0o444);
        std::fs::set_permissions(&path, permissions)?;
    }
    Ok(())
}

/// Gives a file a second place.
fn bind(file: &impl AsFd, target: &Path, flags: MountFlags) -> Done {
    let make = || {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        File::create_new(target).map(drop)
    };
    make().step(format_args!("create {}", target.display()))?;
    rebind(Path::new(&format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())), target, flags)
}

fn rebind(from: &Path, target: &Path, flags: MountFlags) -> Done {
    mount_bind(from, target).step(format_args!("mount {}", target.display()))?;
    mount_remount(target, MountFlags::BIND | flags, "").step(format_args!("protect {}", target.display()))
}

/// The system's programs and libraries, as they are.
fn bind_libraries(root: &Path) -> Done {
    for name in ["usr", "lib", "lib32", "lib64", "bin"] {
        let (host, inside) = (Path::new("/").join(name), root.join(name));
        match std::fs::read_link(&host) {
            Ok(to) => symlinkat(&to, CWD, &inside).step(format_args!("link {}", inside.display()))?,
            Err(_) if host.is_dir() => {
                std::fs::create_dir(&inside).step(format_args!("create {}", inside.display()))?;
                rebind(&host, &inside, MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV)?;
            }
            Err(_) => {}
        }
    }
    Ok(())
}

fn make_devices(plan: &Plan, root: &Path) -> Done {
    let everybody = Mode::from_bits_truncate(0o666);
    let make = |name: &str, mode: Mode, number| {
        let path = root.join("dev").join(name);
        let made = mknodat(CWD, &path, FileType::CharacterDevice, mode, number);
        made.and_then(|()| rustix::fs::chmod(&path, mode)).step(format_args!("make /dev/{name}"))
    };
    for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
        make(name, everybody, makedev(1, minor))?;
    }
    let own = [(plan.kvm, "kvm"), (matches!(plan.network, Network::Tap(_)), "net/tun")];
    for (_, name) in own.into_iter().filter(|(wanted, _)| *wanted) {
        let host =
            statat(CWD, Path::new("/dev").join(name), AtFlags::empty()).step(format_args!("find /dev/{name}"))?;
        make(name, Mode::RUSR | Mode::WUSR, host.st_rdev)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "it may be used wrongly only where descriptors are unshared, which they are not")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
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
    if let Network::Tap(name) = &plan.network {
        own.push(PathBuf::from("/dev/net/tun"));
        own_tap(name, user).step(format_args!("give away the tap {name}"))?;
    }
    for path in own {
        chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(format_args!("give away {}", path.display()))?;
    }
    mount_remount("/", MountFlags::RDONLY | MountFlags::NOSUID, "").step("protect its root")?;
    let groups = plan.groups.iter().zip(&held.groups);
    let groups: Vec<_> = groups
        .map(|(group, parent)| {
            let name = cgroup::name(pid.unsigned_abs());
            join_group(parent, &name, &group.settings, pid).map(|()| group.parent.join(name))
        })
        .collect::<Done<_>>()?;
    note(held, pid, groups)
}

/// Makes a control group and moves the process there.
fn join_group(parent: &OwnedFd, name: &str, settings: &[(String, String)], pid: i32) -> Done {
    let named = |file: &str| format!("set {file} of its control group");
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        // Of an earlier process with this number.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error).step("make its control group"),
    }
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

/// All that the VM process needs, made before it is forked.
struct Prepared {
    program: CString,
    argv: Vec<CString>,
    environment: CString,
    fds: RawFd,
    limits: [(Resource, u64); 4],
    filters: [BpfProgram; 2],
}

impl Prepared {
    fn new(plan: &Plan, program: &Path) -> Done<Self> {
        let program = CString::new(program.as_os_str().as_bytes()).step("name the program")?;
        let mut argv = vec![program.clone()];
        for arg in &plan.args {
            argv.push(CString::new(arg.as_bytes()).step("pass on an argument")?);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let environment = CString::new([b"PATH=", path.as_bytes()].concat()).step("pass on PATH")?;
        let limits = &plan.limits;
        let limits = [
            (Resource::Nofile, limits.files),
            (Resource::Fsize, limits.file_bytes),
            (Resource::Nproc, limits.threads),
            (Resource::Core, 0),
        ];
        let fds = RawFd::try_from(plan.fds).map_err(io::Error::other).step("pass on descriptors")?;
        let filters = filter::programs().map_err(io::Error::other).step("make its filters")?;
        Ok(Self { program, argv, environment, fds, limits, filters })
    }

    /// The rest of the life of the new process before it is the VM program. It allocates nothing, as after any fork.
    fn enter(&self, waiting: &OwnedFd, report: &File) -> ! {
        let mut user = [0; 4];
        let Ok(4) = rustix::io::read(waiting, &mut user) else { exit() };
        // Where it is, the first descriptor of the VM program will be.
        let Ok(report) = rustix::io::fcntl_dupfd_cloexec(report, FIRST_PASSED + self.fds) else { exit() };
        let (step, error) = match self.become_inmate(u32::from_ne_bytes(user)) {
            Err(failed) => failed,
            Ok(()) => ("run the VM program", self.exec()),
        };
        // No formatting, which may allocate.
        let mut out = File::from(report);
        for part in ["error its jail: cannot ", step, ": "] {
            drop(out.write_all(part.as_bytes()));
        }
        let mut digits = [0; 12];
        drop(out.write_all(decimal(error.raw_os_error().unsigned_abs(), &mut digits)));
        drop(out.write_all(b" (errno)\n"));
        exit()
    }

    fn become_inmate(&self, user: u32) -> Result<(), (&'static str, Errno)> {
        let step = |name: &'static str| move |error: Errno| (name, error);
        // It is the head of no group yet, so this cannot fail.
        let _ = rustix::process::setsid();
        let proc: &CStr = c"subset=pid,hidepid=ptraceable";
        mount("proc", "/proc", "proc", NOTHING, Some(proc)).map_err(step("mount /proc"))?;
        unshare(UnshareFlags::NEWCGROUP).map_err(step("make namespaces"))?;
        rustix::process::chdir(ROOM).map_err(step("enter its room"))?;
        self.pass_fds().map_err(step("pass on descriptors"))?;
        for (resource, limit) in self.limits {
            let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
            rustix::process::setrlimit(resource, limit).map_err(step("limit it"))?;
        }
        drop_privileges(user)?;
        rustix::process::umask(Mode::from_bits_truncate(0o077));
        default_signals();
        let errno = || Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
        let filter =
            |program: &BpfProgram| seccompiler::apply_filter(program).map_err(|_| ("filter system calls", errno()));
        self.filters.iter().try_for_each(filter)
    }

    /// Its descriptors are where they would be without a launcher; all others go when it becomes the VM program.
    #[expect(unsafe_code, reason = "numbers are what matters here, not ownership")]
    fn pass_fds(&self) -> rustix::io::Result<()> {
        let errno = || Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
        // SAFETY: what is overwritten is not used again.
        unsafe {
            for index in 0..self.fds {
                if libc::dup2(FIRST_PASSED + index, FIRST_FD + index) < 0 {
                    return Err(errno());
                }
            }
            let first = libc::c_uint::try_from(FIRST_FD + self.fds).unwrap_or(libc::c_uint::MAX);
            if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                return Err(errno());
            }
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "the standard library's exec allocates")]
    fn exec(&self) -> Errno {
        const ARGUMENTS: usize = 256;
        let mut argv = [std::ptr::null(); ARGUMENTS];
        for (to, from) in argv.iter_mut().take(ARGUMENTS - 1).zip(&self.argv) {
            *to = from.as_ptr();
        }
        let environment = [self.environment.as_ptr(), std::ptr::null()];
        // SAFETY: both lists end with a null pointer, and their strings live.
        unsafe { libc::execve(self.program.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
        Errno::from_raw_os_error(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Becomes a user without any capability, for good.
fn drop_privileges(user: u32) -> Result<(), (&'static str, Errno)> {
    use rustix::thread;
    let step = |name: &'static str| move |error: Errno| (name, error);
    drop_bounding_set().map_err(step("drop capabilities"))?;
    thread::clear_ambient_capability_set().map_err(step("drop capabilities"))?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    thread::set_thread_groups(&[]).map_err(step("leave its groups"))?;
    thread::set_thread_res_gid(gid, gid, gid).map_err(step("become its group"))?;
    thread::set_thread_res_uid(uid, uid, uid).map_err(step("become its user"))?;
    thread::set_no_new_privs(true).map_err(step("renounce privileges"))
}

/// Every capability that the kernel has, also those newer than this program.
#[expect(unsafe_code, reason = "the safe wrapper knows capabilities by name only")]
fn drop_bounding_set() -> rustix::io::Result<()> {
    for capability in 0..64 as libc::c_ulong {
        // SAFETY: it takes a number.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return match io::Error::last_os_error().raw_os_error() {
                // There is no such capability, and none above it.
                Some(libc::EINVAL) => Ok(()),
                error => Err(Errno::from_raw_os_error(error.unwrap_or(libc::EIO))),
            };
        }
    }
    Ok(())
}

/// A Rust program ignores SIGPIPE, and what is ignored stays so.
#[expect(unsafe_code, reason = "no safe wrapper sets signals to their defaults")]
fn default_signals() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[expect(unsafe_code, reason = "nothing of what ends a process in an orderly way is this copy's to do")]
fn exit() -> ! {
    // SAFETY: it ends the process at once.
    unsafe { libc::_exit(127) }
}

fn decimal(mut number: u32, digits: &mut [u8; 12]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 || at == 0 {
            return &digits[at..];
        }
    }
}
