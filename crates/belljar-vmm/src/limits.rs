//! Every bound of this crate, with its unit and its reason.

use std::time::Duration;

/// Bytes of console output kept per VM. A boot with a panic fits; a guest that floods its console costs no more.
/// A power of two, because QEMU's ring buffer asks for one.
pub const CONSOLE_BYTES: usize = 64 * 1024;

/// Bytes kept of what a VM process writes to its standard error; it can write no more. A few lines are usual.
pub const LOG_BYTES: u64 = 64 * 1024;

/// Bytes of that which go into an error message.
pub const LOG_TAIL_BYTES: u64 = 4 * 1024;

/// Bytes read of a `vm.json`; ours have about 200.
pub const RECORD_BYTES: u64 = 4 * 1024;

/// Bytes of one QMP message. The largest is a full console in base64 (88 KiB).
pub const QMP_LINE_BYTES: usize = 256 * 1024;

/// How long QEMU may take to answer one QMP command. It answers from its main loop in about a millisecond; the rest is
/// for a host that is overloaded.
pub const QMP_REPLY: Duration = Duration::from_secs(10);

/// Bytes of one answer over a VM process's HTTP interface; the largest are a few KiB.
pub const REST_BODY_BYTES: usize = 256 * 1024;

/// Characters of a refusal over it that go into an error message.
pub const REST_WORDS: usize = 1000;

/// How long one call of it may take. Most take a millisecond; loading or saving a state waits for the disk.
pub const REST_REPLY: Duration = Duration::from_secs(30);

/// Bytes of a hybrid vsock's answer to `CONNECT`, its line end included; `OK 4294967295` is the longest.
pub const VSOCK_ANSWER_BYTES: u64 = 32;

/// How long that answer may take. It comes from the VM process if nobody listens, else from the guest's kernel.
pub const VSOCK_ANSWER: Duration = Duration::from_secs(5);

/// How long after a guest rang, or did not, its link is tried again: it rings once, and we may have been away.
pub const RING_PATIENCE: Duration = Duration::from_secs(1);

/// How long a started VM process may take until it is ready to be driven. 50 ms are usual.
pub const LAUNCH: Duration = Duration::from_secs(30);

/// How much longer for each GiB of a guest that has a device of the host: all of its memory is made and kept in place first. It takes
/// a fraction of a second on hardware, and half a minute where all of that is emulated.
pub const PINNING_PER_GIB: Duration = Duration::from_secs(60);

/// Most of that.
pub const PINNING: Duration = Duration::from_mins(10);

/// How long a jail's launcher may be silent. It takes some 10 ms.
pub const JAIL: Duration = Duration::from_secs(30);

/// Bytes of what it says.
pub const JAIL_REPORT_BYTES: usize = 4096;

/// Open files of a VM process: some twenty are its own, and each connection over a hybrid vsock is one more.
pub const JAIL_FILES: u64 = 1024;

/// Processes and threads of a VM process, besides one for each virtual CPU.
pub const JAIL_THREADS: u64 = 128;

/// Bytes of memory that a VM process may have the kernel keep in place; what the kernel gives to everybody. With a device of the
/// host it is all of its memory.
pub const JAIL_LOCKED_BYTES: u64 = 8 << 20;

/// Bytes that a VM process may write to its room: its saved devices, twice.
pub const JAIL_ROOM_BYTES: u64 = 2 * DEVICES_BYTES;

/// Files in it, those that were put there included.
pub const JAIL_ROOM_FILES: u64 = 64;

/// How often a control group is tried to be removed whose process is ending, each time twice as long after the last: 4 s in all.
pub const GROUP_PATIENCE: u32 = 12;

/// Bytes of a `jail.json`; ours have about 300.
pub const INMATE_BYTES: u64 = 4 * 1024;

/// Memory of a VM process beyond its guest's that its control group allows, MiB: its own 10 to 60, the kernel's page tables and
/// buffers for it, and what is cached of its files.
pub const JAIL_MEMORY_MIB: u64 = 256;

/// Characters of a guest's last words that become part of an exit reason. They are the guest's, hence untrusted.
pub const PANIC_CHARS: usize = 200;

/// Bytes of kernel command line a caller may add. The kernel takes 2048 in all; ours and QEMU's device list need the rest.
pub const CMDLINE_EXTRA_BYTES: usize = 1024;

/// Virtual CPUs of one VM. The guest kernel is built for 64.
pub const MAX_VCPUS: u32 = 64;

/// The same with Firecracker, which has no more.
pub const MAX_FIRECRACKER_VCPUS: u32 = 32;

/// Smallest guest memory, MiB: kernel, agent and one shell fit.
pub const MIN_MEMORY_MIB: u64 = 64;

/// Largest guest memory, MiB (1 TiB): the machine's address map ends far above; nothing larger was ever tried.
pub const MAX_MEMORY_MIB: u64 = 1024 * 1024;

/// Size of QEMU's translation cache, MiB. It bounds what emulated code can make the VM process use; smaller ones are
/// flushed again and again by interpreters such as Python or Node.
pub const TRANSLATION_CACHE_MIB: u32 = 256;

/// Bytes of a saved device state: 50 KiB with one virtual CPU, some 12 KiB for each more.
pub const DEVICES_BYTES: u64 = 16 * 1024 * 1024;

/// Shapes of VMs (memory size, card or not) whose part of a saved state is remembered; each has 30 KiB and takes 50 ms to find out.
pub const HEADS: usize = 64;

/// Pages of what a guest has changed that a restore writes to as well: the clock's, the number of a generation, and some to spare.
pub const RESTORE_WRITES_PAGES: usize = 16;

/// What a restore writes comes in units of so many bytes, aligned: a generation is one, the wall clock of KVM is in one.
pub const RESTORE_WRITES_UNIT: usize = 16;

/// Bytes of guest memory that are read at once where they are passed on piece by piece: they stay in the processor's cache.
pub const PIECE_BYTES: usize = 512 * 1024;

/// Threads that copy the memory of a VM that stands still: its own processors have nothing to do meanwhile, and the copying
/// waits for memory more than for anything else.
pub const COPIERS: usize = 2;

/// Bytes below which one thread copies alone.
pub const COPY_ALONE_BYTES: usize = 4 * 1024 * 1024;

/// Pieces of memory copied by one system call: the kernel takes no more (`UIO_MAXIOV`).
pub const IOVECS: usize = 1024;

/// Rounds of "stop every descendant" before giving up on a process that forks faster than it can be stopped.
pub const KILL_ROUNDS: usize = 64;

/// Instructions in the KVM probe's loop: long enough that entering and leaving the guest adds less than a nanosecond to
/// each, short enough (3 ms) where they are interpreted.
pub const PROBE_INSTRUCTIONS: u32 = 5_000;

/// How often the loop is timed; the best counts, as a busy host interrupts some.
pub const PROBE_RUNS: u32 = 3;

/// How long the KVM probe may take before it is interrupted.
pub const PROBE: Duration = Duration::from_secs(2);

/// Nanoseconds per ring-0 instruction above which KVM is called unusable. Hardware needs below 1, a processor that is itself
/// emulated 20 to 50, most of it for coming and going; interpretation hundreds, and it lacks instructions that a kernel needs.
pub const USABLE_NS_PER_INSTRUCTION: f64 = 200.0;

/// Oldest QEMU (major and minor version) that has what we use.
pub const MIN_QEMU: (u32, u32) = (9, 0);

/// Oldest Firecracker that has what we use; the last of it is `/serial`.
pub const MIN_FIRECRACKER: (u32, u32) = (1, 14);

/// Oldest Cloud Hypervisor that has what we use; the last of it is an image type in its API.
pub const MIN_CLOUD_HYPERVISOR: (u32, u32) = (52, 0);

const _: () = assert!(CONSOLE_BYTES.is_power_of_two());
const _: () = assert!(QMP_LINE_BYTES > CONSOLE_BYTES / 3 * 4 + 1024);
const _: () = assert!(CMDLINE_EXTRA_BYTES <= 1024);
