//! Harness of the end-to-end tests: a real server, real VMs, driven by the real CLI and over HTTP.
//!
//! It is not a second client: what it sends is what a stranger would type. Every [`World`] has its own data directory
//! and ports, and when it ends it checks that no process, mount or file of it is left.

pub mod http;
pub mod internet;
mod leftovers;
pub mod sandbox;
pub mod terminal;
pub mod world;

pub use self::{sandbox::Sandbox, world::World};
