//! What `configure` does to a machine, in this order: clock, randomness, disk, identity, network, dead connections.
//!
//! All of it with system calls and files of our own: the image may have no programs at all. It is done before a process
//! of the sandbox runs, or runs again. What must not be repeated by a second machine from the same memory (time,
//! randomness, token, machine id) fails the whole when it fails: then the processes go on standing still.
//!
//! The kernel's generator is stirred, and with it what programs ask it for (`getrandom`, also the one in the vDSO). A
//! program that keeps a generator in its own memory repeats its numbers in every copy, as after any `fork`: nobody can
//! reach it from here.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::chown,
    time::{Duration, Instant},
};

use belljar_api::{
    guest::{Configure, GuestNetwork},
    image::Init,
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

use crate::{
    grow, identity, ioctl,
    launch::{Place, Settings},
    limits::{CLOCK_DRIFT_MAX, CLOCK_DRIFT_STOPPED_MAX},
    paths::default_owner,
    sockets,
    sync::now_ns,
    trust,
};

/// Why a machine cannot become the sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("network: `{0}` is not an IPv4 address")]
    Address(String),
    #[error("mac: `{0}` is not the hardware address of one device; write `02:..` with six bytes")]
    Mac(String),
    #[error("entropy: is not 64 hex digits")]
    Entropy,
    #[error("{step}: {source}")]
    Step { step: &'static str, source: io::Error },
}

impl SetupError {
    fn step(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Step { step, source }
    }
}

/// A configuration, and what it meets.
pub(crate) struct Change<'a> {
    /// What the machine was configured as, if it was.
    pub(crate) before: Option<&'a Configure>,
    pub(crate) wanted: &'a Configure,
    pub(crate) settings: &'a Settings,
    /// Whether the sandbox's processes stand still.
    pub(crate) is_frozen: bool,
    /// When the connection came that carried it.
    pub(crate) arrived: Instant,
}

impl Change<'_> {
    fn is_restored(&self) -> bool {
        self.before.is_some_and(|before| before.life != self.wanted.life)
    }

    /// Whether there were programs before: those of a sandbox, or of systemd. A rehearsal has none.
    fn had_programs(&self) -> bool {
        let has_services = matches!(self.settings.place, Place::Machine { init: Init::Systemd });
        self.before.is_some_and(|before| has_services || !before.rehearsal)
    }

    /// Whether a value is another than before, or is the first.
    fn is_new<T: PartialEq>(&self, of: impl Fn(&Configure) -> &T) -> bool {
        self.before.is_none_or(|before| of(before) != of(self.wanted))
    }

    /// Applies what differs; time and randomness always. Looking alone is dear where code is emulated. Blocking.
    pub(crate) fn apply(&self) -> Result<(), SetupError> {
        let entropy = decode_hex(&self.wanted.entropy).ok_or(SetupError::Entropy)?;
        let mac = self.wanted.mac.as_deref().map(decode_mac).transpose()?;
        self.set_clock().map_err(SetupError::step("wall clock"))?;
        ioctl::reseed(&entropy).map_err(SetupError::step("kernel random generator"))?;
        // A sandbox that merely slept has the disk it had, and it looks at it all the same when it is told of another size.
        if self.is_new(|of| &of.sandbox_id) {
            grow::grow_root_or_warn();
        }
        self.set_identity()?;
        if let Some(certificate) = self.wanted.trust.as_ref().filter(|_| self.is_new(|of| &of.trust)) {
            warn("authority to trust", trust::install(certificate));
        }
        self.set_network(mac)?;
        if self.is_restored() && self.had_programs() {
            match sockets::end_connections() {
                Ok(0) => {}
                Ok(count) => tracing::info!("{count} connections of the former life ended"),
                Err(error) => tracing::warn!("connections of the former life: {error}"),
            }
        }
        if self.is_new(|of| &of.runtime) {
            make_directory(self.settings);
        }
        Ok(())
    }

    fn set_clock(&self) -> io::Result<()> {
        // While nobody looks at it a step harms nobody; a running program's clock is left alone if it is nearly right.
        let is_unseen = self.before.is_none() || self.is_restored() || self.is_frozen;
        let allowed = if is_unseen { CLOCK_DRIFT_STOPPED_MAX } else { CLOCK_DRIFT_MAX };
        let now = Duration::from_nanos(self.wanted.wall_clock_ns).saturating_add(self.arrived.elapsed());
        if Duration::from_nanos(now_ns()).abs_diff(now) > allowed {
            clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(now))?;
        }
        Ok(())
    }

    fn set_identity(&self) -> Result<(), SetupError> {
        if self.is_new(|of| &of.hostname) {
            identity::set_hostname(&self.wanted.hostname);
        }
        if self.is_new(|of| &of.sandbox_id) {
            identity::renew_machine_id().map_err(SetupError::step("/etc/machine-id"))?;
        }
        if self.is_new(|of| &of.identity_token) {
            let owner = default_owner(self.settings);
            identity::write_token(&self.wanted.identity_token, owner).map_err(SetupError::step("identity token"))?;
        }
        Ok(())
    }

    fn set_network(&self, mac: Option<[u8; 6]>) -> Result<(), SetupError> {
        let was_down = match mac {
            Some(mac) => ioctl::set_hardware_address(mac).map_err(SetupError::step("hardware address of eth0"))?,
            None => false,
        };
        let before = self.before.and_then(|before| before.network.as_ref());
        match &self.wanted.network {
            // A device that was down has lost its routes.
            Some(network) if before != Some(network) || was_down => set_addresses(before, network),
            _ => Ok(()),
        }
    }
}

/// A step whose failure leaves a usable sandbox.
pub(crate) fn warn(step: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!("{step}: {error}");
    }
}

fn set_addresses(before: Option<&GuestNetwork>, network: &GuestNetwork) -> Result<(), SetupError> {
    let address = parse(&network.address)?;
    let gateway = parse(&network.gateway)?;
    let dns = parse(&network.dns)?;
    let old_gateway = before.map(|before| parse(&before.gateway)).transpose()?;
    ioctl::configure(address, network.prefix.min(32), gateway, old_gateway)
        .map_err(|(step, source)| SetupError::Step { step, source })?;
    // With a longer one than the way out takes, only large transfers would hang, and only where errors get lost.
    warn("MTU of eth0", ioctl::set_mtu(network.mtu));
    warn("/etc/resolv.conf", identity::write_file("/etc/resolv.conf", &format!("nameserver {dns}\n")));
    Ok(())
}

fn parse(address: &str) -> Result<Ipv4Addr, SetupError> {
    address.parse().map_err(|_| SetupError::Address(address.to_owned()))
}

/// Makes the default working directory, as a container runtime does for WORKDIR.
fn make_directory(settings: &Settings) {
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

/// The address of one device: not of a group of them, and not of none.
fn decode_mac(text: &str) -> Result<[u8; 6], SetupError> {
    let byte = |digits: &str| {
        (digits.len() == 2 && !digits.starts_with('+')).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).ok_or_else(|| SetupError::Mac(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entropy_is_exactly_32_bytes() {
        assert_eq!(decode_hex(&"0f".repeat(32)), Some([15; 32]));
        for wrong in ["", "0f", &"0g".repeat(32), &"0f".repeat(33), &"é".repeat(32)] {
            assert_eq!(decode_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_hardware_address_is_six_bytes_and_one_devices() {
        assert_eq!(decode_mac("02:00:5e:10:00:fF").ok(), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        for wrong in [
            "",
            "02",
            "02:0:0:0:0:1",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00:01:02",
            "+2:00:00:00:00:01",
        ] {
            assert!(decode_mac(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn every_address_of_a_device_is_read_back(mut mac in any::<[u8; 6]>()) {
            mac[0] = mac[0] & !1 | 2;
            let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(decode_mac(&text.join(":")).ok(), Some(mac));
        }
    }
}
