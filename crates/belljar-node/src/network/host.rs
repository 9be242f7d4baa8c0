//! What the host itself needs for its networks: forwarding, rules, and two programs.
//!
//! The rules are the same for every node on a host, so the first and the last to want them make and remove the same.

use std::{fs, net::Ipv4Addr};

use ipnet::IpNet;

use super::NetworkError;
use crate::{limits::NETWORKS_MAX, program};

/// How the host's devices are called, before their number.
pub(super) const DEVICES: &str = "bjnet";
/// First address of those that lead from the host to its networks; two for each.
pub(super) const RANGE: Ipv4Addr = Ipv4Addr::new(10, 190, 0, 0);
pub(super) const RANGE_PREFIX: u8 = 16;
const _: () = assert!(NETWORKS_MAX as u64 * 2 <= 1 << (32 - RANGE_PREFIX));

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Lets networks out. Nothing from outside gets in, and none reaches another one, or the host but where it is `opened`.
///
/// What a sandbox may reach is decided in its own namespace; this is what holds where that fails. So what one node of the
/// host has opened stays so for all.
pub(super) fn prepare(opened: &[IpNet]) -> Result<(), NetworkError> {
    // Other programs (Docker, libvirt) do the same; it stays on, since who else relies on it by then is not known.
    if fs::read_to_string(FORWARD).is_ok_and(|value| value.trim() == "0") {
        fs::write(FORWARD, "1").map_err(NetworkError::io(format!("write 1 to {FORWARD}")))?;
    }
    let opened: String = opened
        .iter()
        .filter(|net| matches!(net, IpNet::V4(_)))
        .map(|net| format!("add element inet belljar_host opened {{ {net} }}\n"))
        .collect();
    nft(&format!(
        "add table inet belljar_host
add set inet belljar_host opened {{ type ipv4_addr; flags interval; auto-merge; }}
add chain inet belljar_host input {{ type filter hook input priority -10; policy accept; }}
add chain inet belljar_host forward {{ type filter hook forward priority -10; policy accept; }}
add chain inet belljar_host postrouting {{ type nat hook postrouting priority 100; policy accept; }}
flush table inet belljar_host
add rule inet belljar_host input iifname \"{DEVICES}*\" ip daddr != @opened drop
add rule inet belljar_host input iifname \"{DEVICES}*\" meta nfproto ipv6 drop
add rule inet belljar_host forward iifname \"{DEVICES}*\" oifname \"{DEVICES}*\" drop
add rule inet belljar_host forward oifname \"{DEVICES}*\" ct state != {{ established, related }} drop
add rule inet belljar_host postrouting ip saddr {RANGE}/{RANGE_PREFIX} oifname != \"{DEVICES}*\" masquerade
{opened}"
    ))
}

/// Removes the rules if no network is left on the host.
pub(super) fn tidy() -> Result<(), NetworkError> {
    let left = fs::read_dir(super::slot::CLAIMS).is_ok_and(|mut entries| entries.next().is_some());
    if left { Ok(()) } else { nft("table inet belljar_host\ndelete table inet belljar_host\n") }
}

/// Applies a whole script, or none of it, in the network of the calling thread.
pub(super) fn nft(script: &str) -> Result<(), NetworkError> {
    program::run("nft", ["-f", "-"], script)?;
    Ok(())
}

/// What `nft` with these arguments writes, in the network of the calling thread.
pub(super) fn nft_list(arguments: &[&str]) -> Result<Vec<u8>, NetworkError> {
    Ok(program::run("nft", arguments, "")?)
}

/// Runs a batch of `ip` commands in the network of the calling thread.
pub(super) fn ip(batch: &str) -> Result<(), NetworkError> {
    program::run("ip", ["-batch", "-"], batch)?;
    Ok(())
}
