//! The wire types of Belljar's three HTTP APIs, and the rules their values obey.
//!
//! - **public** ([`sandbox`], [`snapshot`], [`pool`], [`image`], [`build`], [`key`], [`ssh_key`], [`secret`], [`log`], [`network`], [`error`]): what clients speak to the server;
//! - **guest** ([`process`], [`exec`], [`file`], [`pty`], [`guest`]): what the agent inside a VM answers, reached through the
//!   server's proxy, plus the node-only system API;
//! - **node** ([`node`]): what server and node say to each other.
//!
//! It is not a client or a server: nothing here does I/O. Server and node meet only in this crate.
//! The public and guest formats follow the published wire protocol of Tensorlake Sandboxes, so that its clients work
//! unmodified; clients ignore unknown fields and so do we.

pub mod build;
pub mod error;
pub mod exec;
pub mod file;
pub mod guest;
pub mod id;
pub mod image;
pub mod key;
pub mod limits;
pub mod log;
pub mod network;
pub mod node;
pub mod pool;
pub mod process;
pub mod pty;
pub mod sandbox;
pub mod secret;
pub mod snapshot;
pub mod ssh_key;
pub mod time;
pub mod tunnel;
