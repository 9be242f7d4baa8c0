//! What `configure` does to a machine: name, addresses, clock, randomness, identity files, size of the disk.
//!
//! All of it with system calls and files of our own: the image may have no programs at all.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    time::{Duration, Instant},
};

use belljar_api::guest::{Configure, GuestNetwork};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
    unistd::sethostname,
};

use crate::{grow, ioctl, launch::Settings, limits::CLOCK_DRIFT_MAX, random, sync::now_ns};

/// Why a machine cannot become the sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("network: `{0}` is not an IPv4 address")]
    Address(String),
    #[error("entropy: is not 64 hex digits")]
    Entropy,
    #[error("network: {step}: {source}")]
    Network { step: &'static str, source: io::Error },
}

/// Applies what differs from `before`. Blocking.
pub(crate) fn apply(before: Option<&Configure>, wanted: &Configure) -> Result<(), SetupError> {
    // First, so that everything after it has the right time and fresh randomness.
    set_clock(wanted.wall_clock_ns);
    let entropy = decode_hex(&wanted.entropy).ok_or(SetupError::Entropy)?;
    warn("kernel random generator", ioctl::reseed(&entropy));
    let started = Instant::now();
    match grow::grow_root() {
        Ok(Some(blocks)) => tracing::info!("root file system grown to {blocks} blocks in {:?}", started.elapsed()),
        Ok(None) => {}
        Err(error) => tracing::warn!("root file system cannot be grown: {error}"),
    }
    if before.is_none_or(|before| before.hostname != wanted.hostname) {
        set_hostname(&wanted.hostname);
    }
    if before.is_none_or(|before| before.sandbox_id != wanted.sandbox_id) {
        set_machine_id(before.is_some());
    }
    let addresses_before = before.and_then(|before| before.network.as_ref());
    if let Some(network) = &wanted.network
        && addresses_before != Some(network)
    {
        set_network(addresses_before, network)?;
    }
    Ok(())
}

/// A step whose failure leaves a usable sandbox.
fn warn(step: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{step}: {error}");
    }
}

fn set_clock(wanted_ns: u64) {
    if now_ns().abs_diff(wanted_ns) <= u64::try_from(CLOCK_DRIFT_MAX.as_nanos()).unwrap_or(u64::MAX) {
        return;
    }
    let time = TimeSpec::from_duration(Duration::from_nanos(wanted_ns));
    warn("wall clock", clock_settime(ClockId::CLOCK_REALTIME, time).map_err(io::Error::from));
}

fn set_hostname(name: &str) {
    warn("host name", sethostname(name).map_err(io::Error::from));
    warn("/etc/hostname", write_file("/etc/hostname", &format!("{name}\n")));
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    warn("/etc/hosts", write_file("/etc/hosts", &hosts_with(&hosts, name)));
}

/// `/etc/hosts` in which the machine's own name resolves, as Debian does it.
fn hosts_with(hosts: &str, name: &str) -> String {
    const OWN: &str = "127.0.1.1";
    let is_own = |line: &&str| line.split_whitespace().next() == Some(OWN);
    let mut text = String::new();
    if !hosts.lines().any(|line| line.split_whitespace().skip(1).any(|word| word == "localhost")) {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    for line in hosts.lines().filter(|line| !is_own(line)) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&format!("{OWN}\t{name}\n"));
    text
}

/// Gives a machine that has no id one, and a copy of a machine its own.
fn set_machine_id(is_copy: bool) {
    const FILE: &str = "/etc/machine-id";
    let current = fs::read_to_string(FILE).unwrap_or_default();
    let is_unset = matches!(current.trim(), "" | "uninitialized");
    if is_unset || is_copy {
        warn(FILE, write_file(FILE, &format!("{}\n", random::hex::<16>())));
    }
}

fn set_network(before: Option<&GuestNetwork>, network: &GuestNetwork) -> Result<(), SetupError> {
    let address = parse(&network.address)?;
    let gateway = parse(&network.gateway)?;
    let dns = parse(&network.dns)?;
    let old_gateway = before.map(|before| parse(&before.gateway)).transpose()?;
    ioctl::configure(address, network.prefix.min(32), gateway, old_gateway)
        .map_err(|(step, source)| SetupError::Network { step, source })?;
    warn("/etc/resolv.conf", write_file("/etc/resolv.conf", &format!("nameserver {dns}\n")));
    Ok(())
}

fn parse(address: &str) -> Result<Ipv4Addr, SetupError> {
    address.parse().map_err(|_| SetupError::Address(address.to_owned()))
}

/// Replaces a file, and a link by a file: `/etc/resolv.conf` often points into a `/run` that is not there.
fn write_file(path: &str, text: &str) -> io::Result<()> {
    if let Some(directory) = Path::new(path).parent() {
        fs::create_dir_all(directory)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        fs::remove_file(path)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// Makes the default working directory, as a container runtime does for WORKDIR.
pub(crate) fn make_directory(settings: &Settings) {
    let Ok(Some(identity)) = settings.identity(None) else { return };
    let directory = settings.directory(Some(&identity));
    if directory.is_dir() {
        return;
    }
    let made = fs::create_dir_all(&directory).and_then(|()| chown(&directory, Some(identity.uid), Some(identity.gid)));
    warn(&directory.to_string_lossy(), made);
}

/// 32 bytes from 64 hex digits.
fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    if text.len() == 64 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_in_hosts_once() {
        let first = hosts_with("", "one");
        assert_eq!(first, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tone\n");
        assert_eq!(hosts_with(&first, "two"), first.replace("one", "two"));
        assert_eq!(hosts_with("127.0.0.1 localhost\n1.2.3.4 x", "a"), "127.0.0.1 localhost\n1.2.3.4 x\n127.0.1.1\ta\n");
    }

    #[test]
    fn entropy_is_exactly_32_bytes() {
        assert_eq!(decode_hex(&"0f".repeat(32)), Some([15; 32]));
        for wrong in ["", "0f", &"0g".repeat(32), &"0f".repeat(33), &"é".repeat(32)] {
            assert_eq!(decode_hex(wrong), None, "{wrong}");
        }
    }
}
