//! Every limit that a wire value obeys, with its unit and its reason.

/// Longest sandbox name, in characters: one DNS label.
pub const NAME_MAX_LEN: usize = 63;
/// Length of a sandbox or snapshot id, in characters of `[0-9a-z]` (about 108 bits).
pub const ID_LEN: usize = 21;

/// Fewest cpus of a sandbox. Fractions are shares of one virtual cpu.
pub const CPUS_MIN: f64 = 0.25;
/// Cpus of a sandbox that names none.
pub const CPUS_DEFAULT: f64 = 1.0;
/// Least memory of a sandbox, MiB.
pub const MEMORY_MIN_MB: u64 = 1024;
/// Memory of a sandbox that names none, MiB.
pub const MEMORY_DEFAULT_MB: u64 = 1024;
/// Most memory per cpu, MiB; a sandbox with less than one cpu counts as having one.
pub const MEMORY_MAX_PER_CPU_MB: u64 = 8 * 1024;
/// Smallest disk, MiB.
pub const DISK_MIN_MB: u64 = 10 * 1024;
/// Disk of a sandbox that names none, MiB; sparse.
pub const DISK_DEFAULT_MB: u64 = 10 * 1024;
/// Largest disk, MiB.
pub const DISK_MAX_MB: u64 = 100 * 1024;

/// Idle seconds after which a sandbox that names no timeout ends.
pub const TIMEOUT_DEFAULT_SECS: u64 = 600;
/// Longest idle timeout: one year. Longer is a mistake; 0 means none.
pub const TIMEOUT_MAX_SECS: u64 = 366 * 24 * 3600;

/// Most ports that a sandbox exposes.
pub const EXPOSED_PORTS_MAX: usize = 64;
/// The guest agent's port in every sandbox: reserved, never exposed.
pub const AGENT_PORT: u16 = 9501;

/// Most entries of each list of a network policy: what a packet and a swap of rules cost stays small.
pub const NETWORK_RULES_MAX: usize = 1000;
/// Longest host name in a network policy, in bytes, as in DNS.
pub const HOST_NAME_MAX: usize = 253;
/// Longest label of a host name, in bytes, as in DNS.
pub const LABEL_MAX: usize = 63;
/// Characters of a bad entry that an error quotes.
pub const ENTRY_QUOTE: usize = 100;

/// Longest name of a secret or of one of its headers, in bytes.
pub const SECRET_NAME_MAX: usize = 128;
/// Longest value of a secret, in bytes: HTTP servers take headers of 8 to 32 KiB in all.
pub const SECRET_VALUE_MAX: usize = 16 * 1024;
/// Most hosts to which a secret is bound.
pub const SECRET_HOSTS_MAX: usize = 64;
/// Most headers in which a secret may stand.
pub const SECRET_HEADERS_MAX: usize = 8;
/// Most secrets that one sandbox uses.
pub const SECRETS_PER_SANDBOX_MAX: usize = 64;
/// Most secrets in all: every node holds them in memory.
pub const SECRETS_MAX: usize = 1000;

/// Most bytes of a JSON request body on any plane; files and stdin are streamed and not bound by it.
pub const JSON_BODY_MAX: usize = 1024 * 1024;
/// Most GPUs of one model that a sandbox may have.
pub const GPUS_MAX: u32 = 16;
/// Longest name of a GPU model.
pub const GPU_MODEL_MAX: usize = 64;

/// Most arguments, environment variables or entrypoint words in one request.
pub const WORDS_MAX: usize = 4096;

/// Terminal sessions that live at once in a sandbox.
pub const PTY_SESSIONS_MAX: usize = 64;
/// Bytes of terminal output kept for reattaching clients.
pub const PTY_REPLAY_BYTES: usize = 1024 * 1024;
/// Largest WebSocket message of a terminal or tunnel.
pub const WS_MESSAGE_MAX: usize = 64 * 1024;
/// Largest first message of an attached program: the longest word that Linux lets a program have, 128 KiB, in JSON.
pub const EXEC_START_MAX: usize = 512 * 1024;
/// Largest terminal, rows and columns; a request for 0 gets the smallest.
pub const PTY_ROWS_MAX: u16 = 500;
/// See [`PTY_ROWS_MAX`].
pub const PTY_COLS_MAX: u16 = 1000;

const _: () = assert!(MEMORY_DEFAULT_MB >= MEMORY_MIN_MB && DISK_DEFAULT_MB >= DISK_MIN_MB);
