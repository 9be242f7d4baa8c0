//! Images: from a Debian suite or an OCI image to an immutable ext4 root file system, and the store that keeps them by name.
//!
//! [`build`] makes one: apt's solver names the packages, mmdebstrap installs them into a directory, mkfs.ext4 packs it.
//! [`import`] takes the layers of an image of a registry, a directory or a file for that directory. [`Store::export`] is the way back.
//! The same package versions, and the same layers, give the same bytes, so an image's name is only a pointer to a content address. [`Store`]
//! is a directory that the CLI writes and the node reads; there is no server in between.
//!
//! This crate knows nothing of VMs, sandboxes or the server: it hands out paths and numbers. The node converts
//! [`RuntimeConfig`] into the wire type of the same shape. Everything here blocks; an async caller uses a thread.

mod build;
mod date;
mod digest;
mod draft;
mod error;
mod export;
mod ext4;
mod import;
pub mod limits;
mod name;
mod oci;
mod packages;
mod prune;
mod recipe;
mod record;
mod sources;
mod stop;
mod store;
mod tool;
mod tree;

pub use build::{BuildRequest, BuiltImage, Progress, build};
pub use draft::{About, Draft, Sealed};
pub use error::ImageError;
pub use export::{ExportError, Exported, Packing};
pub use name::{BUILDER_IMAGE, DEFAULT_IMAGE, SYSTEMD_IMAGE, canonical, is_managed};
pub use oci::{
    DockerAuths, ImportProgress, ImportRequest, LayerProgress, Login, OciError, check_reference, import, reimport,
};
pub use prune::{Pruned, Removed};
pub use recipe::Purpose;
pub use record::{HistoryEntry, INIT_LABEL, INIT_SYSTEMD, Image, RuntimeConfig};
pub use sources::SUITES;
pub use stop::Stop;
pub use store::{Named, Store, Which};
