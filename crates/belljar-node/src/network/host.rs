//! What the host itself needs for its networks: forwarding, rules, and two programs.
//!
//! The rules are the same for every node on a host, so the first and the last to want them make and remove the same.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
};

use ipnet::IpNet;
use nix::sys::socket::{getsockopt, sockopt};

use super::NetworkError;
use crate::{limits::NETWORKS_MAX, program};

/// How the host's devices are called, before their number.
pub(super) const DEVICES: &str = "bjnet";
/// First address of those that lead from the host to its networks; two for each.
pub(super) const RANGE: Ipv4Addr = Ipv4Addr::new(10, 190, 0, 0);
pub(super) const RANGE_PREFIX: u8 = 16;
const _: () = assert!(NETWORKS_MAX as u64 * 2 <= 1 << (32 - RANGE_PREFIX));

/// The shortest packet that every host takes in one piece, and what is longest on an Ethernet, bytes.
const MTU: (u16, u16) = (576, 1500);

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

/// Longest packet, bytes, that leaves the host in one piece, as far as it knows; never more than a guest's card has anyway.
///
/// It may be less where the host itself is in a tunnel or a VPN, and another one than a moment ago.
pub(crate) fn mtu() -> u16 {
    // Connecting a datagram socket sends nothing; this address goes the default way.
    let to = SocketAddrV4::new(Ipv4Addr::new(1, 1, 1, 1), 9);
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(to)?;
        Ok(getsockopt(&socket, sockopt::IpMtu)?)
    });
    // Without a way out it does not matter.
    let (least, most) = MTU;
    found.ok().and_then(|mtu| u16::try_from(mtu).ok()).map_or(most, |mtu| mtu.clamp(least, most))
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
pub(super) fn nft_list(arguments: &[&str]) -> Result<String, NetworkError> {
    Ok(String::from_utf8_lossy(&program::run("nft", arguments, "")?).into_owned())
}

/// Runs a batch of `ip` commands in the network of the calling thread.
pub(super) fn ip(batch: &str) -> Result<(), NetworkError> {
    program::run("ip", ["-batch", "-"], batch)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mtu_is_that_of_the_way_out() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        let mtu_with = |batch: &str| {
            let lookup = || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
                ip(batch).expect("devices");
                mtu()
            };
            std::thread::scope(|scope| scope.spawn(lookup).join().expect("the thread"))
        };
        let device = |mtu: u32| {
            format!(
                "link add way type veth peer name there\naddress add 192.0.2.1/24 dev way\nlink set way mtu {mtu} up\n"
            )
        };
        let route = "route add default via 192.0.2.2";
        assert_eq!(mtu_with(""), 1500, "no way out");
        assert_eq!(mtu_with(&format!("{}{route}\n", device(1420))), 1420, "a tunnel");
        assert_eq!(mtu_with(&format!("{}{route} mtu 1400\n", device(1420))), 1400, "a route of its own");
        assert_eq!(mtu_with(&format!("{}{route}\n", device(9000))), 1500, "longer than a guest's");
        assert_eq!(mtu_with(&format!("{}{route}\n", device(100))), 576, "shorter than any");
    }
}
