//! Starts a process that is a session of its own and inherits exactly the descriptors it is given.
//!
//! `std::process::Command` can do neither without `pre_exec`, which makes it fork: a copy of our page tables per VM.
//! glibc's `posix_spawn` does both in the child it makes with `vfork` semantics, and reports a failing `exec` to us.

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Number of the first descriptor that [`Start::fds`] are given as.
pub(crate) const FIRST_FD: i32 = 3;

/// What to start.
pub(crate) struct Start<'a> {
    pub program: &'a Path,
    /// Without the program's name.
    pub args: &'a [String],
    pub cwd: &'a Path,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// Become descriptors [`FIRST_FD`] and up, in this order.
    pub fds: &'a [BorrowedFd<'a>],
}

/// Starts it and returns its process id; the caller must reap it. Its environment is `PATH` alone, so that nothing
/// secret of ours can be read from `/proc/PID/environ`.
pub(crate) fn spawn(start: &Start<'_>) -> io::Result<i32> {
    let program = c_string(start.program.as_os_str())?;
    let mut argv = vec![program.clone()];
    for arg in start.args {
        argv.push(c_string(OsStr::new(arg))?);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut variable = b"PATH=".to_vec();
    variable.extend_from_slice(path.as_bytes());
    let env = [CString::new(variable)?];

    // Lifted above every target number, so that no dup2 below overwrites a source it still needs.
    let null = std::fs::OpenOptions::new().read(true).open("/dev/null")?;
    let floor = FIRST_FD + i32::try_from(start.fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut sources = vec![lift(null.as_fd(), floor)?, lift(start.stdout, floor)?, lift(start.stderr, floor)?];
    for fd in start.fds {
        sources.push(lift(*fd, floor)?);
    }

    let mut actions = Actions::new()?;
    for (target, source) in (0..).zip(&sources) {
        actions.dup2(source.as_raw_fd(), target)?;
    }
    actions.close_from(floor)?;
    actions.change_dir(&c_string(start.cwd.as_os_str())?)?;
    let attributes = Attributes::new_session()?;
    run(&program, &actions, &attributes, &argv, &env)
}

fn lift(fd: BorrowedFd<'_>, floor: i32) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, floor)?)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    Ok(CString::new(text.as_bytes())?)
}

/// The `posix_spawn` family returns its error instead of setting `errno`.
fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|s| s.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

#[expect(unsafe_code, reason = "no safe wrapper of posix_spawn offers sessions, directories and close-from")]
fn run(
    program: &CString,
    actions: &Actions,
    attributes: &Attributes,
    argv: &[CString],
    env: &[CString],
) -> io::Result<i32> {
    let mut pid = 0;
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: all pointers are to live, initialized values; both lists end with a null pointer and their strings live
    // until the end of this function; posix_spawnp does not write to them.
    check(unsafe {
        libc::posix_spawnp(
            &raw mut pid,
            program.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok(pid)
}

/// What the child does before it becomes the program.
struct Actions(libc::posix_spawn_file_actions_t);

#[expect(unsafe_code, reason = "see `run`")]
impl Actions {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: `raw` is valid for writes; it is only taken as initialized after success.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialized by the call above.
        Ok(Self(unsafe { raw.assume_init() }))
    }

    fn dup2(&mut self, source: i32, target: i32) -> io::Result<()> {
        // SAFETY: `self.0` is initialized.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, source, target) })
    }

    fn close_from(&mut self, first: i32) -> io::Result<()> {
        // SAFETY: `self.0` is initialized.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut self.0, first) })
    }

    fn change_dir(&mut self, dir: &CString) -> io::Result<()> {
        // SAFETY: `self.0` is initialized and copies the string.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, dir.as_ptr()) })
    }
}

#[expect(unsafe_code, reason = "see `run`")]
impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: `self.0` is initialized and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

#[expect(unsafe_code, reason = "see `run`")]
impl Attributes {
    /// A new session, no signal blocked, every signal at its default: a Rust program ignores SIGPIPE, and a thread
    /// of ours may have blocked others.
    fn new_session() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: `raw` is valid for writes; it is only taken as initialized after success.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialized by the call above.
        let mut this = Self(unsafe { raw.assume_init() });
        let mut none = MaybeUninit::uninit();
        let mut all = MaybeUninit::uninit();
        // SAFETY: both calls initialize the set they are given, and cannot fail with a valid pointer.
        let (none, all) = unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            (none.assume_init(), all.assume_init())
        };
        // SAFETY: `this.0` is initialized; the sets are copied.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut this.0, &raw const none) })?;
        // SAFETY: as above.
        check(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut this.0, &raw const all) })?;
        let flags = i32::from(libc::POSIX_SPAWN_SETSID) | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `this.0` is initialized.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut this.0, flags) })?;
        Ok(this)
    }
}

#[expect(unsafe_code, reason = "see `run`")]
impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: `self.0` is initialized and not used again.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}
