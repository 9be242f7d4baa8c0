//! Every limit of this crate, with its unit and its reason.

use std::time::Duration;

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

/// Steps of an image's history that are kept. Docker makes at most 127 layers, and some steps make none.
pub const MAX_HISTORY: usize = 500;

/// Bytes of the words of a history that are kept: they may take six times as much in a record, see [`MAX_RECORD_BYTES`].
pub const MAX_HISTORY_BYTES: usize = 256 << 10;

/// Bytes of one of the host's package source files or certificates.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Bytes of a manifest, an index or a configuration of an OCI image: registries take no larger ones.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Bytes of a registry's answer that is a token or an error message.
pub const MAX_ANSWER_BYTES: u64 = 256 << 10;

/// Layers of an image. Docker makes at most 127.
pub const MAX_LAYERS: usize = 500;

/// Indexes that may lie in one another before there is a manifest. Two are seen in practice.
pub const MAX_INDEX_DEPTH: usize = 3;

/// Members of a `docker-archive:` file: a few for each layer.
pub const MAX_ARCHIVE_MEMBERS: usize = 10_000;

/// Bytes of one layer as it is transferred.
pub const MAX_BLOB_BYTES: u64 = 64 << 30;

/// Bytes that all layers of an image may unpack to: what fits into the largest file system, see [`MAX_SIZE_MIB`].
pub const MAX_UNPACKED_BYTES: u64 = (MAX_SIZE_MIB << 20) / 5 * 4;

/// Files, directories and links that all layers of an image may have together. A desktop has 300 000.
pub const MAX_ENTRIES: u64 = 4_000_000;

/// Bytes that one compressed byte of a layer may become, beyond [`RATIO_FREE_BYTES`]. Programs and texts reach 20.
pub const MAX_RATIO: u64 = 200;

/// Bytes of a layer that are unpacked whatever their ratio: a file of zeros is no attack.
pub const RATIO_FREE_BYTES: u64 = 256 << 20;

/// Power of two of the bytes that a zstd layer may make us remember; what zstd itself takes without being told.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;

/// Bytes of a path in a layer, and of what a symbolic link says (the kernel's `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4095;

/// Bytes of one part of a path: what ext4 can hold.
pub const MAX_PART_BYTES: usize = 255;

/// Directories above a file in an image. Deeper ones could be made that nobody can remove again.
pub const MAX_DEPTH: usize = 256;

/// Bytes of what stands before one file of a layer: its long names, extended attributes and the map of its holes.
pub const MAX_EXTENSION_BYTES: u64 = 4 << 20;

/// Bytes of the names and values of one file's extended attributes: what ext4 keeps in one block.
pub const MAX_ATTRIBUTE_BYTES: usize = 4000;

/// Stretches of data in one sparse file.
pub const MAX_SEGMENTS: usize = 100_000;

/// Bytes of one file, holes included. A sparse file may be larger than the file system it lies in.
pub const MAX_FILE_BYTES: u64 = 1 << 40;

/// Bytes that stay free where the store lies, whatever an image needs: sandboxes write there too.
pub const RESERVE_BYTES: u64 = 1 << 30;

/// Bytes that are written between two looks at what is free.
pub const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// Until a registry has accepted a connection, and until it has begun to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Without a byte from a registry.
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// For a manifest, a configuration or a token, from the question to the last byte.
pub const DOCUMENT_LIMIT: Duration = Duration::from_mins(2);

/// Time in which at least [`MIN_WINDOW_BYTES`] of a layer have to arrive.
pub const RATE_WINDOW: Duration = Duration::from_mins(1);

/// See [`RATE_WINDOW`]. A modem is faster.
pub const MIN_WINDOW_BYTES: u64 = 64 << 10;

/// Attempts in a row that bring not a byte of a layer.
pub const ATTEMPTS: u32 = 4;

/// Pause before the second of them; it doubles.
pub const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// For a program that knows a registry's credentials. It may ask a person.
pub const HELPER_LIMIT: Duration = Duration::from_mins(1);

/// How long layers of an import that failed are kept, so that the next attempt goes on from them.
pub const KEEP_BLOBS: Duration = Duration::from_hours(7 * 24);

const _: () = assert!(MIN_SIZE_MIB <= DEFAULT_SIZE_MIB && DEFAULT_SIZE_MIB <= MAX_SIZE_MIB);
const _: () = assert!(JOURNAL_MIB * 8 <= MIN_SIZE_MIB);
const _: () = assert!(MAX_HISTORY_BYTES as u64 * 6 <= MAX_RECORD_BYTES / 2);
