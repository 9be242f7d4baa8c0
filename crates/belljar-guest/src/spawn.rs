//! Starts a program in a child that borrows the agent's memory until it executes (as `vfork` does).
//!
//! `fork` copies page tables and then makes both sides fault on every page they touch; in an emulated guest that is most
//! of the time that `run` of a small program takes. `posix_spawn` would do, but cannot join a cgroup or take a terminal.
//!
//! The price is the rule for [`child`]: it runs on a stack of its own but in *our* memory, while our thread waits. So it
//! allocates nothing, takes no lock, and makes plain system calls on what was prepared ([`Orders`]). It does not call
//! the C library's `setuid` and its kin: those would signal our other threads.

use std::{
    ffi::{CString, c_int, c_void},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    path::Path,
    ptr,
};

use crate::limits::CHILD_STACK;

/// What is to run, and as what.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    /// Name first.
    pub(crate) words: Vec<String>,
    /// `NAME=value`.
    pub(crate) environment: Vec<String>,
    pub(crate) directory: &'a Path,
    /// Stdin, stdout, stderr.
    pub(crate) streams: [OwnedFd; 3],
    /// Stdin is a terminal and becomes the controlling one.
    pub(crate) terminal: bool,
    /// A cgroup's `cgroup.procs`.
    pub(crate) cgroup: Option<OwnedFd>,
    /// User, group, supplementary groups; `None` stays who we are.
    pub(crate) identity: Option<(u32, u32, Vec<u32>)>,
}

/// Signals whose handling here must not be the program's: those that tokio and std catch, and SIGPIPE, which std
/// ignores. The others are as the kernel made them.
const RESET_SIGNALS: [c_int; 6] =
    [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];

/// Null-terminated words and the array of pointers to them that `execve` takes.
struct Words {
    pointers: Vec<*const libc::c_char>,
    _words: Vec<CString>,
}

impl Words {
    fn new(words: Vec<CString>) -> Self {
        let pointers = words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _words: words }
    }
}

/// All that the child reads, and the one thing that it writes.
struct Orders {
    path: CString,
    words: Words,
    /// How a script without `#!` runs.
    as_script: Words,
    environment: Words,
    directory: CString,
    streams: [RawFd; 3],
    terminal: bool,
    cgroup: Option<RawFd>,
    identity: Option<(u32, u32, Vec<u32>)>,
    /// Why it could not execute; 0 while it could.
    error: c_int,
}

impl Program<'_> {
    /// Starts it as the leader of a new session; gives its pid. The caller collects its status, and must keep others
    /// from collecting while this runs.
    pub(crate) fn spawn(self) -> io::Result<i32> {
        let path = c_string(self.path.to_path_buf().into_os_string().into_vec())?;
        let words: Vec<CString> = self.words.into_iter().map(c_string).collect::<io::Result<_>>()?;
        let script = [c"/bin/sh".to_owned(), path.clone()].into_iter().chain(words.iter().skip(1).cloned()).collect();
        let mut orders = Orders {
            path,
            words: Words::new(words),
            as_script: Words::new(script),
            environment: Words::new(self.environment.into_iter().map(c_string).collect::<io::Result<_>>()?),
            directory: c_string(self.directory.to_path_buf().into_os_string().into_vec())?,
            streams: self.streams.each_ref().map(AsRawFd::as_raw_fd),
            terminal: self.terminal,
            cgroup: self.cgroup.as_ref().map(AsRawFd::as_raw_fd),
            identity: self.identity,
            error: 0,
        };
        borrow_memory(&mut orders)
    }
}

fn c_string(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[expect(unsafe_code, reason = "neither std nor nix starts a child that shares memory and then prepares itself")]
fn borrow_memory(orders: &mut Orders) -> io::Result<i32> {
    let mut stack: Vec<u128> = Vec::with_capacity(CHILD_STACK / size_of::<u128>());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the sets are plain data that `sigfillset` and `pthread_sigmask` fill. No handler of ours can run in the
    // child, for everything is blocked until it has put the handlers back. The stack's top is aligned and within its
    // allocation, which outlives the child's use of it: CLONE_VFORK holds us until the child has executed or ended, so
    // `orders` is not used by both at once either. See the module for what `child` may do.
    let pid = unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top = stack.as_mut_ptr().add(stack.capacity());
        let pid = libc::clone(child, top.cast(), flags, (&raw mut *orders).cast::<c_void>());
        let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        result
    }?;
    // Through a pointer: the child wrote it where the compiler did not see.
    // SAFETY: `orders` is alive and nobody else has it now.
    match unsafe { ptr::read_volatile(&raw const orders.error) } {
        0 => Ok(pid),
        error => {
            // It has ended already; its status is nobody's.
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            Err(io::Error::from_raw_os_error(error))
        }
    }
}

/// The child, on its own stack and in our memory.
#[expect(unsafe_code, reason = "system calls on prepared memory, without the library around them")]
extern "C" fn child(orders: *mut c_void) -> c_int {
    // SAFETY: the parent passed a valid pointer and waits until we have gone.
    let orders = unsafe { &mut *orders.cast::<Orders>() };
    // SAFETY: every pointer in `orders` points to null-terminated memory that the parent holds; all calls are
    // async-signal-safe. `_exit` and not `exit`: the memory's destructors are the parent's.
    unsafe {
        if prepare(orders) == 0 {
            let environment = orders.environment.pointers.as_ptr();
            libc::execve(orders.path.as_ptr(), orders.words.pointers.as_ptr(), environment);
            if *libc::__errno_location() == libc::ENOEXEC {
                libc::execve(c"/bin/sh".as_ptr(), orders.as_script.pointers.as_ptr(), environment);
            }
        }
        ptr::write_volatile(&raw mut orders.error, *libc::__errno_location());
        libc::_exit(127)
    }
}

/// Everything between birth and execution; not 0 with `errno` set where a step failed.
///
/// # Safety
/// Only for [`child`].
#[expect(unsafe_code, reason = "as in `child`")]
unsafe fn prepare(orders: &Orders) -> c_int {
    // SAFETY: see `child`.
    unsafe {
        for signal in RESET_SIGNALS {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        if let Some(file) = orders.cgroup
            && libc::write(file, c"0".as_ptr().cast(), 1) < 0
        {
            return -1;
        }
        for (target, &source) in (0..).zip(&orders.streams) {
            // The sources are above 2: std keeps 0, 1 and 2 open.
            if libc::dup2(source, target) < 0 {
                return -1;
            }
        }
        if libc::setsid() < 0 || (orders.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0) {
            return -1;
        }
        reset_oom_score();
        // Before the user changes: one may be put into a directory that one could not enter.
        if libc::chdir(orders.directory.as_ptr()) < 0 {
            return -1;
        }
        if let Some((uid, gid, groups)) = &orders.identity
            && (libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) < 0
                || libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) < 0)
        {
            return -1;
        }
        0
    }
}

/// The agent is never to be killed for want of memory; what it starts may be. Where it may not be written nothing was
/// lowered either.
///
/// # Safety
/// Only for [`child`].
#[expect(unsafe_code, reason = "as in `child`")]
unsafe fn reset_oom_score() {
    // SAFETY: paths and data are constants.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
}
