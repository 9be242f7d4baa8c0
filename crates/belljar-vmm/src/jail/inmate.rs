//! What becomes of the process that a launcher forks: the last steps before it is the VM program.

use super::launcher::{Done, FIRST_PASSED, Step, unshare};
use super::plan::Plan;
use super::root::NOTHING;
use super::{ROOM, filter};
use crate::spawn::FIRST_FD;
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::mount;
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;
use seccompiler::BpfProgram;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Most arguments of a VM program, its name included.
const ARGUMENTS: usize = 255;

/// All that the VM process needs, made before it is forked.
pub(super) struct Prepared {
    program: CString,
    argv: Vec<CString>,
    environment: CString,
    fds: RawFd,
    limits: [(Resource, u64); 5],
    filters: [BpfProgram; 2],
}

impl Prepared {
    pub(super) fn new(plan: &Plan, program: &Path) -> Done<Self> {
        let program = CString::new(program.as_os_str().as_bytes()).step("name the program")?;
        let mut argv = vec![program.clone()];
        for arg in &plan.args {
            argv.push(CString::new(arg.as_bytes()).step("pass on an argument")?);
        }
        if argv.len() > ARGUMENTS {
            return Err(io::ErrorKind::ArgumentListTooLong).step("pass on its arguments");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let environment = CString::new([b"PATH=", path.as_bytes()].concat()).step("pass on PATH")?;
        let limits = &plan.limits;
        let limits = [
            (Resource::Nofile, limits.files),
            (Resource::Fsize, limits.file_bytes),
            (Resource::Nproc, limits.threads),
            (Resource::Memlock, limits.locked_bytes),
            (Resource::Core, 0),
        ];
        let fds = RawFd::try_from(plan.fds).map_err(io::Error::other).step("pass on descriptors")?;
        let filters = filter::programs().map_err(io::Error::other).step("make its filters")?;
        Ok(Self { program, argv, environment, fds, limits, filters })
    }

    /// The rest of the life of the new process before it is the VM program. It allocates nothing, as after any fork.
    pub(super) fn enter(&self, waiting: &OwnedFd, report: &File) -> ! {
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
        let mut argv = [std::ptr::null(); ARGUMENTS + 1];
        for (to, from) in argv.iter_mut().take(ARGUMENTS).zip(&self.argv) {
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
