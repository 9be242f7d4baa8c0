//! Random numbers, always from the kernel.
//!
//! A generator in our own memory would be copied with the VM: every fork of a snapshot would give out the same tokens.
//! The kernel's is stirred by [`crate::system`] before a restored guest goes on.

use std::{fs::File, io::Read};

/// `N` random bytes as lower-case hex.
pub(crate) fn hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    if let Err(error) = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)) {
        // Without randomness a token would be a constant: better to have no agent.
        panic!("/dev/urandom: {error}");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
