//! What a node is started with.

use std::{path::PathBuf, time::Duration};

use belljar_vmm::{DiskLimits, HiddenFeatures};
use tokio::{io::DuplexStream, sync::mpsc};

use crate::{
    driver::DriverSetting, gpus::GpuSetting, jails::JailOptions, network::NetworkOptions, storage::StorageOptions,
};

/// Everything a node needs to know; see the fields.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Directory that the node owns.
    pub data_dir: PathBuf,
    /// The server to dial.
    pub server: ServerSetting,
    /// Token that the server knows this node by.
    pub node_token: String,
    /// Kernel and initramfs of every VM.
    pub artifacts: Artifacts,
    /// The image store, see [`belljar_image`].
    pub image_store: PathBuf,
    /// What runs the sandboxes.
    pub driver: DriverSetting,
    /// Directory where VM programs are looked for before `PATH`.
    pub vmm_dir: Option<PathBuf>,
    /// Whether VM processes are jailed.
    pub jail: JailOptions,
    /// Whether sandboxes begin from golden snapshots; without them each one boots.
    pub templates: bool,
    /// VMs that are kept ready for each golden snapshot.
    pub spares: usize,
    /// How long the memory of a sleeping sandbox is held for a quick wake.
    pub resident: Duration,
    /// Memory for sandboxes, MiB; `None` leaves the host a gigabyte.
    pub memory_mb: Option<u64>,
    /// What the cards of VMs are connected to.
    pub network: NetworkOptions,
    /// How much of their disks' speed sandboxes may have, each.
    pub disk_limits: DiskLimits,
    /// Features of the processor that guests are not told of, so that what they have is there on every host of a pool.
    pub hidden_features: HiddenFeatures,
    /// GPUs that sandboxes can have.
    pub gpus: Vec<GpuSetting>,
    /// The volume of a data directory that cannot reflink.
    pub storage: StorageOptions,
}

impl NodeConfig {
    /// What [`Self::resident`] is unless somebody wants something else.
    pub const RESIDENT: Duration = crate::limits::RESIDENT;
    /// What [`Self::spares`] is unless somebody wants something else.
    pub const SPARES: usize = crate::limits::SPARES_PER_TEMPLATE;
}

/// Where the server is.
#[derive(Debug, Clone)]
pub enum ServerSetting {
    /// At this `host:port`.
    Address(String),
    /// In this process: a connection is a pipe in memory, whose other end is sent here. It spares each byte two passages
    /// through the kernel, and is the same connection in all else.
    Here(mpsc::Sender<DuplexStream>),
}

/// Files that every VM boots from.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// ELF `vmlinux`.
    pub kernel: PathBuf,
    /// cpio archive that holds the guest agent.
    pub initrd: PathBuf,
}
