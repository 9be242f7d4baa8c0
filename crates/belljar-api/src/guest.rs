//! The guest agent's own answers (`/api/v1/health`, `/info`) and the *system* API that only the node reaches.
//!
//! Over the link a stream is opened to a port: [`SYSTEM_PORT`] is the system API, [`crate::limits::AGENT_PORT`] the
//! public guest API, any other a TCP port on 127.0.0.1 of the guest. Both APIs are plain HTTP/1.1.
//!
//! System API:
//!
//! | request | body -> answer |
//! |---|---|
//! | `POST /v1/configure` | [`Configure`] -> [`Configured`]: before any user process runs, and after every restore; lets frozen processes go on |
//! | `POST /v1/freeze` | [`Freeze`] or nothing -> `{}` once no user process runs any more and what they wrote is on the disk; until the next configure |
//! | `POST /v1/settle` | -> [`Settled`] once the machine is as small and quiet as it gets: for a golden snapshot, before it is anybody's |
//! | `GET /v1/logs?after=N` | -> [`LogEvent`]s as JSON lines for as long as it is read |

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{image::RuntimeConfig, process::OutputStream};

/// Link port of the system API. Not a TCP port: nothing else can have it.
pub const SYSTEM_PORT: u16 = 0;
/// Name of the virtio-serial port that carries the link.
pub const LINK_PORT_NAME: &str = "belljar.link";
/// Word of the kernel's command line that tells a machine of [`Init::Systemd`](crate::image::Init).
pub const BOOT_SYSTEMD: &str = "belljar.init=systemd";
/// Version of the system API; the agent answers it in [`Configured`].
pub const PROTOCOL: u32 = 2;

/// Answer of `GET /api/v1/health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always true: it answered.
    pub healthy: bool,
}

/// Answer of `GET /api/v1/info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentInfo {
    /// Version of the agent.
    pub version: String,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// Processes that run.
    pub running_processes: usize,
    /// Processes started so far.
    pub total_processes: usize,
}

/// Body of `POST /v1/configure` on the system port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configure {
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Number of this life of the guest's memory: another one than before means that it was restored, so connections
    /// to the world outside are dead and are ended.
    pub life: u64,
    /// Host name to take: the sandbox's name, or its id.
    pub hostname: String,
    /// What this sandbox proves itself with: written to `/run/belljar/identity-token`. New for every sandbox.
    pub identity_token: String,
    /// Hardware address of the first network device, `02:..`; `None` leaves it.
    pub mac: Option<String>,
    /// ENV, WORKDIR, USER of the image.
    pub runtime: RuntimeConfig,
    /// Certificate that programs are to trust, PEM; `None` leaves what they trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// Program that starts with the sandbox; wins over the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Address of the guest's first network device; `None` leaves only loopback.
    pub network: Option<GuestNetwork>,
    /// The host's wall clock, nanoseconds since the epoch, read when the connection that carries this was opened: the
    /// agent adds the time that has passed since it accepted that.
    pub wall_clock_ns: u64,
    /// 32 random bytes for the kernel's generator, as hex.
    pub entropy: String,
    /// Only for practice, in a guest that is nobody's yet: everything is applied, what a first request needs is done once,
    /// and the guest still waits for its first real configuration.
    #[serde(default)]
    pub rehearsal: bool,
}

/// Static addresses: there is no DHCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// Own address, IPv4.
    pub address: String,
    /// Length of its prefix.
    pub prefix: u8,
    /// Default route.
    pub gateway: String,
    /// Resolver.
    pub dns: String,
    /// Longest packet, bytes, that leaves the host in one piece.
    #[serde(default = "ethernet")]
    pub mtu: u16,
}

/// What a device has that was told nothing.
fn ethernet() -> u16 {
    1500
}

/// Answer of `POST /v1/configure`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// [`PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Version of the agent.
    pub version: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// Body of `POST /v1/freeze`; may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Freeze {
    /// Write everything to the disk. A snapshot that keeps the memory too does not need it.
    pub sync: bool,
}

impl Default for Freeze {
    fn default() -> Self {
        Self { sync: true }
    }
}

/// Answer of `POST /v1/settle`: what it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settled {
    /// Unused bytes of the disk that the device was told of.
    pub trimmed_bytes: u64,
    /// Unused bytes of memory that are zeros now.
    pub zeroed_bytes: u64,
}

/// A line of `GET /v1/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEvent {
    /// Counts up from 1; gaps are lines that were dropped because nobody read in time.
    pub seq: u64,
    /// Nanoseconds since the epoch, guest clock.
    pub timestamp_ns: u64,
    /// Handle of the process.
    pub handle: i64,
    /// Its pid.
    pub pid: i64,
    /// Program and arguments, cut at 256 characters.
    pub command: String,
    /// Id of its supervisor, or empty.
    #[serde(default)]
    pub managed_id: String,
    /// Name of its supervisor, or empty.
    #[serde(default)]
    pub managed_name: String,
    /// Which pipe.
    pub stream: OutputStream,
    /// The line, cut at 16 KiB.
    pub line: String,
}
