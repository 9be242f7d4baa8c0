//! Harness of the end-to-end tests: a real server, real VMs, driven by the real CLI and over HTTP.
//!
//! It is not a second client: what it sends is what a stranger would type. Every [`World`] has its own data directory
//! and ports, and when it ends it checks that no process, mount or file of it is left.

pub mod http;
pub mod internet;
mod leftovers;
pub mod python;
pub mod sandbox;
pub mod terminal;
pub mod world;

use std::time::Duration;

pub use self::{sandbox::Sandbox, world::World};

/// Waits while something that nobody tells of is so. Looking all the time would take the processor from what is waited for.
pub fn wait_while(mut is_so: impl FnMut() -> bool) {
    while is_so() {
        std::thread::sleep(Duration::from_millis(10));
    }
}
