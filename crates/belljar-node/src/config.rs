//! What a node is started with.

use std::path::PathBuf;

/// Everything a node needs to know; see the fields.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Directory that the node owns.
    pub data_dir: PathBuf,
    /// `host:port` of the server to dial.
    pub server_address: String,
    /// Token that the server knows this node by.
    pub node_token: String,
    /// Kernel and initramfs of every VM.
    pub artifacts: Artifacts,
    /// The image store, see [`belljar_image`].
    pub image_store: PathBuf,
    /// What runs the sandboxes.
    pub driver: DriverSetting,
    /// Memory for sandboxes, MiB; `None` leaves the host a gigabyte.
    pub memory_mb: Option<u64>,
}

/// Files that every VM boots from.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// ELF `vmlinux`.
    pub kernel: PathBuf,
    /// cpio archive that holds the guest agent.
    pub initrd: PathBuf,
}

/// What runs the sandboxes.
#[derive(Debug, Clone, Default)]
pub enum DriverSetting {
    /// The best that this machine can do.
    #[default]
    Auto,
    /// The guest agent as a plain child: isolates nothing. For tests.
    #[cfg(feature = "process-driver")]
    Process {
        /// The agent's binary.
        agent: PathBuf,
    },
}
