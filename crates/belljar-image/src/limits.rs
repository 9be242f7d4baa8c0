//! Every limit of this crate, with its unit and its reason.

/// Characters of an image name with its tag: what the public API allows, and short enough for a file name once escaped.
pub const MAX_NAME_CHARS: usize = 128;

/// MiB of a root file system as built. Holds the default packages four times over; the guest grows it at first boot.
pub const DEFAULT_SIZE_MIB: u64 = 2048;

/// MiB below which ext4 with a journal of [`JOURNAL_MIB`] and a Debian base does not fit.
pub const MIN_SIZE_MIB: u64 = 512;

/// MiB that an image may have before it is grown: the same bound as growth, see [`MAX_GROWN_GIB`].
pub const MAX_SIZE_MIB: u64 = MAX_GROWN_GIB * 1024;

/// GiB that a mounted root file system can grow to: descriptor blocks are kept free for so many block groups.
pub const MAX_GROWN_GIB: u64 = 100;

/// MiB of the ext4 journal. A quarter of the default for this size: recovery after a killed VM reads all of it.
pub const JOURNAL_MIB: u64 = 16;

/// Packages that a request may add; each is an argument of `apt-get`.
pub const MAX_EXTRA_PACKAGES: usize = 500;

/// Lines of a failed program's error output that the error message shows.
pub const ERROR_TAIL_LINES: usize = 12;

/// Bytes of one line of a program's error output that are kept; the rest of the line is dropped.
pub const MAX_LINE_BYTES: usize = 1000;

/// Bytes of a program's output that are read: a package list is some hundred kilobytes.
pub const MAX_OUTPUT_BYTES: u64 = 16 << 20;

/// Bytes of `image.json` and of a name file: a package list again.
pub const MAX_RECORD_BYTES: u64 = 4 << 20;

/// Bytes of one of the host's package source files or certificates.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

const _: () = assert!(MIN_SIZE_MIB <= DEFAULT_SIZE_MIB && DEFAULT_SIZE_MIB <= MAX_SIZE_MIB);
const _: () = assert!(JOURNAL_MIB * 8 <= MIN_SIZE_MIB);
