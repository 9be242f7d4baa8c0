//! Sandboxes as the public API shows them, and the rules that a request obeys.
//!
//! ```text
//! pending -> running -> (snapshotting) -> running
//!               |  \-> suspending -> suspended -> resuming -> running
//!               \----------------------------> terminated (from any state; final; with a reason)
//! ```
//! A sandbox that resumes is shown as `suspended` until it runs, since the published clients know no other word.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::{id::check_name, limits, secret};

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxStatus {
    /// Waiting for a place, or booting.
    Pending,
    /// Its agent answers.
    Running,
    /// Being put to sleep.
    Suspending,
    /// Asleep with its state kept, or waking.
    Suspended,
    /// Ended for good.
    Terminated,
}

/// Why a sandbox is still pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PendingReason {
    /// Not placed yet.
    Scheduling,
    /// Placed; its VM boots.
    WaitingForContainer,
    /// No node is connected.
    NoExecutorsAvailable,
    /// No node has the memory free now.
    NoResourcesAvailable,
    /// The node that has its snapshot is not connected.
    NoExecutorForSnapshotLocation,
}

/// Why a sandbox ended. The spellings are those that the published clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum TerminationReason {
    /// DELETE.
    #[serde(rename = "user")]
    User,
    /// Idle longer than `timeout_secs`.
    #[serde(rename = "timeout")]
    Timeout,
    /// No such image on the node.
    ImageNotFound,
    /// It can never be placed: no node is large enough.
    #[serde(rename = "no_capacity")]
    NoCapacity,
    /// Not placed within `max_pending_secs`.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// The kernel, the image or the VMM did not start, or the agent never answered.
    StartupFailedInternalError,
    /// The request asks what this node cannot do.
    ConfigurationError,
    /// The guest powered itself off, rebooted or panicked.
    #[serde(rename = "guest_shutdown")]
    GuestShutdown,
    /// The VM process ended by itself or was killed.
    #[serde(rename = "vmm_exited")]
    VmmExited,
    /// The VM process used more memory than its guest's and what it needs itself, and the host ended it.
    #[serde(rename = "out_of_memory")]
    OutOfMemory,
    /// The agent broke the link's protocol or stopped answering.
    #[serde(rename = "guest_unresponsive")]
    GuestUnresponsive,
    /// The node lost the sandbox, its disk, or itself.
    #[serde(rename = "node_lost")]
    NodeLost,
    /// No space left on the host's disk.
    #[serde(rename = "no_space")]
    NoSpace,
}

impl TerminationReason {
    /// The `outcome` text of the wire format.
    pub fn outcome(self) -> &'static str {
        match self {
            Self::User => "Success(UserTerminated)",
            Self::Timeout => "Success(Timeout)",
            Self::ImageNotFound | Self::StartupFailedInternalError | Self::NoSpace => "Failure(ContainerStartupFailed)",
            Self::NoCapacity | Self::Cancelled | Self::ConfigurationError => "Failure(ConstraintUnsatisfiable)",
            Self::GuestShutdown => "Failure(ContainerTerminated(guest_shutdown))",
            Self::VmmExited => "Failure(ContainerTerminated(vmm_exited))",
            Self::OutOfMemory => "Failure(OutOfMemory)",
            Self::GuestUnresponsive => "Failure(InternalError)",
            Self::NodeLost => "Failure(ExecutorRemoved)",
        }
    }
}

/// What a sandbox asks for; absent fields take the defaults of [`limits`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourcesRequest {
    /// Virtual cpus; fractions allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Disk, MiB, sparse.
    #[serde(default, alias = "ephemeral_disk_mb", skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
    /// GPUs of its own, each model once. Such a sandbox cannot sleep, be copied or give a memory snapshot: what is in a GPU
    /// cannot be saved.
    #[serde(default, alias = "gpu_configs", skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Vec<Gpus>>,
}

/// GPUs of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gpus {
    /// How many.
    pub count: u32,
    /// Model, as the node that has it calls it, such as `H100`: 1 to 64 letters, digits, `-`, `_` and `.`.
    pub model: String,
}

impl Gpus {
    /// Whether all of `wanted` is there: in `all`, less what is `used` of it.
    pub fn are_there(wanted: &[Self], all: &[Self], used: &[Self]) -> bool {
        wanted.iter().all(|Self { count, model }| {
            *count <= Self::of_model(all, model).saturating_sub(Self::of_model(used, model))
        })
    }

    /// How many of a model there are.
    fn of_model(all: &[Self], model: &str) -> u32 {
        all.iter().filter(|gpus| gpus.model == model).map(|gpus| gpus.count).sum()
    }

    /// In words: `2 H100, 1 A10`.
    pub fn describe(all: &[Self]) -> String {
        let words: Vec<_> = all.iter().map(|gpus| format!("{} {}", gpus.count, gpus.model)).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    }
}

/// Refuses what no GPU model can be called, with the words for people.
pub fn check_gpu_model(model: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=limits::GPU_MODEL_MAX).contains(&model.len()) && model.chars().all(plain) {
        return Ok(());
    }
    let form = format!("1 to {} letters, digits, `-`, `_` and `.`", limits::GPU_MODEL_MAX);
    Err(format!("{model:?} is no model; write {form}, such as H100"))
}

/// What a sandbox has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Virtual cpus.
    pub cpus: f64,
    /// Memory, MiB.
    pub memory_mb: u64,
    /// Disk, MiB.
    pub disk_mb: u64,
    /// The same number under its old name.
    pub ephemeral_disk_mb: u64,
    /// GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_configs: Vec<Gpus>,
}

/// Network policy: what may leave. What an entry of the two lists means is said in [`crate::network`].
///
/// With an empty `allow_out` everything public is allowed that `deny_out` does not name; with a filled one nothing but
/// what it names. Private networks, the host and the metadata services of clouds stay closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkConfig {
    /// False with an empty `allow_out`: nothing leaves, DNS included.
    #[serde(default = "yes")]
    pub allow_internet_access: bool,
    /// IP, CIDR, host name or `*.suffix`; at most 1000. If there are any, everything else is denied.
    #[serde(default)]
    pub allow_out: Vec<String>,
    /// IP, CIDR, host name or `*.suffix`; at most 1000. Wins over `allow_out`.
    #[serde(default)]
    pub deny_out: Vec<String>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { allow_internet_access: true, allow_out: Vec::new(), deny_out: Vec::new() }
    }
}

impl NetworkConfig {
    /// Whether it says more than on or off.
    pub fn has_rules(&self) -> bool {
        !self.allow_out.is_empty() || !self.deny_out.is_empty()
    }
}

fn yes() -> bool {
    true
}

/// Body of `POST /sandboxes`; every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateSandbox {
    /// Image name; the server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Cpus, memory, disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesRequest>,
    /// Idle seconds until it ends; 0 is never; default 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Program that starts with the sandbox, with its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Network policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// Snapshot to begin as, instead of an image; what else is left out is as its source had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// A name makes the sandbox suspendable and addressable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Mounts: refused by this release.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub file_systems: Vec<serde_json::Value>,
    /// Whether exposed ports answer without a key.
    #[serde(alias = "allow_unauthenticated_proxy_access", skip_serializing_if = "Option::is_none")]
    pub allow_unauthenticated_access: Option<bool>,
    /// Guest ports routed from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<Vec<u16>>,
    /// Whether a proxied request wakes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// `false`: answer at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
    /// Give up when not running after this many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_secs: Option<u64>,
    /// Secrets that it uses; see [`crate::secret`]. A snapshot brings those of its source unless the field is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_names: Option<Vec<String>>,
    /// What is to run it, one of [`RUNTIMES`]; what its node has when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// What can run a sandbox. `qemu` is either of QEMU's: `qemu-kvm` in hardware, `qemu-tcg` in software.
pub const RUNTIMES: [&str; 5] = ["firecracker", "cloud-hypervisor", "qemu", "qemu-kvm", "qemu-tcg"];

/// Whether a node with this driver is what was asked for.
pub fn is_runtime(wanted: &str, driver: &str) -> bool {
    wanted == driver || (wanted == "qemu" && driver.starts_with("qemu-"))
}

/// Body of `PATCH /sandboxes/{ref}`: what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PatchSandbox {
    /// New name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New idle timeout, seconds; 0 is none. An addition of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// See [`CreateSandbox::allow_unauthenticated_access`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_unauthenticated_access: Option<bool>,
    /// Replaces the list; `[]` clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<Vec<u16>>,
    /// See [`CreateSandbox::auto_resume`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Absent keeps, `null` clears, an object replaces.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<NetworkConfig>)]
    pub network: Option<Option<NetworkConfig>>,
    /// Live resize: refused by this release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesRequest>,
}

/// Tells `null` from absent.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// More words on why a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetails {
    /// For people.
    pub message: String,
}

/// A sandbox (`GET`, `PATCH`, lists). Only `id` is sent, never a second spelling: clients refuse both together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxInfo {
    /// 21 characters of `[0-9a-z]`.
    pub id: String,
    /// Namespace.
    pub namespace: String,
    /// Where it stands.
    pub status: SandboxStatus,
    /// Image name as asked for.
    pub image: String,
    /// Driver that runs it: `firecracker`, `cloud-hypervisor`, `qemu-kvm`, `qemu-tcg`, `process`.
    pub runtime: Option<String>,
    /// What it has.
    pub resources: Resources,
    /// Idle timeout, seconds; 0 is none.
    pub timeout_secs: u64,
    /// Program that starts with it.
    pub entrypoint: Option<Vec<String>>,
    /// Name, when it has one.
    pub name: Option<String>,
    /// Network policy, under its current key.
    pub network_policy: Option<NetworkConfig>,
    /// The same under its old key.
    pub network: Option<NetworkConfig>,
    /// Pool it was claimed from.
    pub pool_id: Option<String>,
    /// `Success(...)` or `Failure(...)` once terminated.
    pub outcome: Option<String>,
    /// Why it ended.
    pub termination_reason: Option<TerminationReason>,
    /// More words on that.
    pub error_details: Option<ErrorDetails>,
    /// Why it is still pending.
    pub pending_reason: Option<PendingReason>,
    /// Milliseconds since the epoch.
    pub created_at: i64,
    /// Milliseconds since the epoch, once terminated.
    pub terminated_at: Option<i64>,
    /// Milliseconds since the epoch; only in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<i64>,
    /// Whether exposed ports answer without a key.
    pub allow_unauthenticated_access: bool,
    /// Guest ports routed from outside.
    pub exposed_ports: Vec<u16>,
    /// Base of user-port URLs.
    pub ingress_endpoint: Option<String>,
    /// Base of the sandbox's own API; absent once terminated.
    pub sandbox_url: Option<String>,
    /// Mounts.
    pub file_systems: Vec<serde_json::Value>,
    /// Whether a proxied request wakes it.
    pub auto_resume: bool,
    /// Node that runs it.
    pub executor_id: Option<String>,
    /// Secrets that it uses.
    #[serde(default)]
    pub secret_names: Vec<String>,
}

/// Answer of `POST /sandboxes` (200, 201, 422 `failed`, 504 `timeout`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreatedSandbox {
    /// The new id.
    pub sandbox_id: String,
    /// `pending`, `running`, `failed`, `timeout` or `terminated`.
    pub status: String,
    /// Name, when it has one.
    pub name: Option<String>,
    /// Why it is still pending.
    pub pending_reason: Option<PendingReason>,
    /// Why it failed, for people.
    pub reason: Option<String>,
    /// Why it failed, for programs.
    pub termination_reason: Option<TerminationReason>,
    /// More words on that.
    pub error_details: Option<ErrorDetails>,
    /// Base of user-port URLs.
    pub ingress_endpoint: Option<String>,
    /// Base of the sandbox's own API.
    pub sandbox_url: Option<String>,
}

/// Answer to `wait:false` (202).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AcceptedSandbox {
    /// The new id.
    pub sandbox_id: String,
    /// Name, when it has one.
    pub name: Option<String>,
    /// `pending`. (Clients read `state` or `status`, and refuse both.)
    pub state: String,
    /// Why it is pending.
    pub pending_reason: Option<PendingReason>,
}

/// Answer of `GET /sandboxes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxList {
    /// Newest last.
    pub sandboxes: Vec<SandboxInfo>,
    /// Next page, when `limit` cut the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answer of `GET /archived-sandboxes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ArchivedList {
    /// Newest first.
    pub sandboxes: Vec<SandboxInfo>,
    /// Page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_cursor: Option<String>,
    /// Next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A field with a wrong value: names the field, the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// The field, as in the JSON body.
    pub field: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

fn invalid<T>(field: &'static str, message: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field, message: message.into() })
}

impl ResourcesRequest {
    /// Fills in the defaults and checks the ranges.
    pub fn resolve(&self) -> Result<Resources, Invalid> {
        let cpus = self.cpus.unwrap_or(limits::CPUS_DEFAULT);
        if !(limits::CPUS_MIN..=1024.0).contains(&cpus) {
            return invalid(
                "resources.cpus",
                format!("{cpus} is out of range; use {} to the host's size", limits::CPUS_MIN),
            );
        }
        let memory_mb = self.memory_mb.unwrap_or(limits::MEMORY_DEFAULT_MB);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "cpus is checked to be in 0.25..=1024"
        )]
        let memory_max = limits::MEMORY_MAX_PER_CPU_MB * (cpus.ceil() as u64);
        if !(limits::MEMORY_MIN_MB..=memory_max).contains(&memory_mb) {
            let range = format!("use {} to {memory_max} MiB with {cpus} cpus", limits::MEMORY_MIN_MB);
            return invalid("resources.memory_mb", format!("{memory_mb} is out of range; {range}"));
        }
        let disk_mb = self.disk_mb.unwrap_or(limits::DISK_DEFAULT_MB);
        if !(limits::DISK_MIN_MB..=limits::DISK_MAX_MB).contains(&disk_mb) {
            let range = format!("use {} to {} MiB", limits::DISK_MIN_MB, limits::DISK_MAX_MB);
            return invalid("resources.disk_mb", format!("{disk_mb} is out of range; {range}"));
        }
        let gpu_configs = self.gpus.clone().unwrap_or_default();
        check_gpus(&gpu_configs)?;
        Ok(Resources { cpus, memory_mb, disk_mb, ephemeral_disk_mb: disk_mb, gpu_configs })
    }
}

fn check_gpus(gpus: &[Gpus]) -> Result<(), Invalid> {
    for (at, Gpus { count, model }) in gpus.iter().enumerate() {
        check_gpu_model(model).or_else(|words| invalid("resources.gpus", words))?;
        if !(1..=limits::GPUS_MAX).contains(count) {
            return invalid("resources.gpus", format!("{count} {model}; ask for 1 to {}", limits::GPUS_MAX));
        }
        if gpus[..at].iter().any(|before| before.model == *model) {
            return invalid("resources.gpus", format!("{model} stands there twice; add the counts"));
        }
    }
    Ok(())
}

fn check_timeout(timeout_secs: Option<u64>) -> Result<(), Invalid> {
    match timeout_secs {
        Some(secs) if secs > limits::TIMEOUT_MAX_SECS => {
            invalid("timeout_secs", format!("{secs} is over {}; use 0 for no timeout", limits::TIMEOUT_MAX_SECS))
        }
        _ => Ok(()),
    }
}

fn check_ports(ports: Option<&Vec<u16>>) -> Result<(), Invalid> {
    let Some(ports) = ports else { return Ok(()) };
    if ports.len() > limits::EXPOSED_PORTS_MAX {
        return invalid("exposed_ports", format!("{} ports; at most {}", ports.len(), limits::EXPOSED_PORTS_MAX));
    }
    if ports.contains(&0) {
        return invalid("exposed_ports", "0 is not a port; use 1 to 65535");
    }
    if ports.contains(&limits::AGENT_PORT) {
        return invalid("exposed_ports", format!("{} is reserved for the sandbox's own API", limits::AGENT_PORT));
    }
    Ok(())
}

fn check_sandbox_name(name: Option<&String>) -> Result<(), Invalid> {
    match name.map(|name| check_name(name)) {
        Some(Err(error)) => invalid("name", error.to_string()),
        _ => Ok(()),
    }
}

impl CreateSandbox {
    /// Checks everything that needs no look at the world, and resolves the resources.
    pub fn check(&self) -> Result<Resources, Invalid> {
        self.check_fields()?;
        self.resources.clone().unwrap_or_default().resolve()
    }

    /// Checks everything but the resources: a snapshot brings defaults of its own for those.
    pub fn check_fields(&self) -> Result<(), Invalid> {
        check_sandbox_name(self.name.as_ref())?;
        check_timeout(self.timeout_secs)?;
        check_ports(self.exposed_ports.as_ref())?;
        if let Some(network) = &self.network {
            network.check()?;
        }
        if self.snapshot_id.is_some() && self.image.is_some() {
            return invalid("image", "a snapshot brings its own image; leave out image or snapshot_id");
        }
        if !self.file_systems.is_empty() {
            return invalid("file_systems", "this release has no mounts; leave the field out");
        }
        secret::check_names(self.secret_names.as_deref().unwrap_or_default())?;
        if let Some(runtime) = self.runtime.as_deref().filter(|runtime| !RUNTIMES.contains(runtime)) {
            let known = RUNTIMES.join(", ");
            return invalid(
                "runtime",
                format!("there is no {runtime:?}; there are {known}; without the field, what is best"),
            );
        }
        if self.auto_resume == Some(false) && self.name.is_none() {
            return invalid("auto_resume", "false needs a name: only named sandboxes are suspended");
        }
        if let Some(words) = &self.entrypoint
            && (words.len() > limits::WORDS_MAX || words.first().is_some_and(String::is_empty))
        {
            return invalid("entrypoint", "give a program and its arguments, at most 4096 words");
        }
        Ok(())
    }
}

impl PatchSandbox {
    /// Checks everything that needs no look at the world.
    pub fn check(&self) -> Result<(), Invalid> {
        check_sandbox_name(self.name.as_ref())?;
        check_timeout(self.timeout_secs)?;
        check_ports(self.exposed_ports.as_ref())?;
        if let Some(Some(network)) = &self.network {
            network.check()?;
        }
        if self.resources.is_some() {
            return invalid("resources", "this release cannot resize a running sandbox; create a new one");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, expected: Result<(), &str>) {
        let request: CreateSandbox = serde_json::from_str(body).expect(body);
        let got = request.check().map(|_| ()).map_err(|e| e.field);
        assert_eq!(got, expected, "{body}");
    }

    #[test]
    fn creates_are_checked_field_by_field() {
        check("{}", Ok(()));
        check(r#"{"resources":{"cpus":2,"memory_mb":2048,"disk_mb":20480},"unknown":1}"#, Ok(()));
        check(r#"{"resources":{"cpus":0.1}}"#, Err("resources.cpus"));
        check(r#"{"resources":{"cpus":0.5,"memory_mb":9000}}"#, Err("resources.memory_mb"));
        check(r#"{"resources":{"memory_mb":512}}"#, Err("resources.memory_mb"));
        check(r#"{"resources":{"disk_mb":1}}"#, Err("resources.disk_mb"));
        check(r#"{"resources":{"gpus":[{"count":1,"model":"H100"},{"count":2,"model":"A10"}]}}"#, Ok(()));
        check(r#"{"resources":{"gpus":[{"count":0,"model":"H100"}]}}"#, Err("resources.gpus"));
        check(r#"{"resources":{"gpus":[{"count":1,"model":"H 100"}]}}"#, Err("resources.gpus"));
        check(r#"{"resources":{"gpus":[{"count":1,"model":"A"},{"count":1,"model":"A"}]}}"#, Err("resources.gpus"));
        check(r#"{"name":"Box"}"#, Err("name"));
        check(r#"{"exposed_ports":[9501]}"#, Err("exposed_ports"));
        check(r#"{"network":{"allow_out":["1.2.3.4"]}}"#, Ok(()));
        check(r#"{"network":{"allow_out":["1.2.3.4/33"]}}"#, Err("network.allow_out"));
        check(r#"{"network":{"allow_internet_access":false}}"#, Ok(()));
        check(r#"{"auto_resume":false}"#, Err("auto_resume"));
        check(r#"{"snapshot_id":"x"}"#, Ok(()));
        check(r#"{"snapshot_id":"x","image":"y"}"#, Err("image"));
    }

    #[test]
    fn a_patch_tells_null_from_absent() {
        let absent: PatchSandbox = serde_json::from_str("{}").expect("json");
        let null: PatchSandbox = serde_json::from_str(r#"{"network":null}"#).expect("json");
        let set: PatchSandbox = serde_json::from_str(r#"{"network":{}}"#).expect("json");
        assert_eq!((absent.network, null.network), (None, Some(None)));
        assert_eq!(set.network, Some(Some(NetworkConfig::default())));
    }
}
