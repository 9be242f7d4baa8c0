//! PCI devices of the host that a guest may have for itself, through VFIO: what the kernel says of them.
//!
//! It reads `/sys` and changes nothing: which devices leave their driver is the operator's decision. The kernel gives away whole
//! IOMMU groups, because devices of one group can reach each other's memory; so a device stands for its group.
//!
//! Source: the kernel's `Documentation/driver-api/vfio.rst` and `Documentation/ABI/testing/sysfs-bus-pci`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the kernel tells of a device.
const DEVICES: &str = "bus/pci/devices";
/// Class of bridges, which belong to a group and are nobody's.
const BRIDGE: &str = "0x06";

/// Address of a device: domain, bus, device and function, such as `0000:01:00.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress(String);

/// Text that is no [`PciAddress`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no PCI address; write DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, such as 0000:01:00.0")]
pub struct BadPciAddress(String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        let shape = "hhhh:hh:hh.h";
        let is_right = |(c, shape): (char, char)| if shape == 'h' { c.is_ascii_hexdigit() } else { c == shape };
        if text.len() == shape.len() && text.chars().zip(shape.chars()).all(is_right) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(BadPciAddress(text.to_owned()))
        }
    }
}

impl TryFrom<String> for PciAddress {
    type Error = BadPciAddress;

    fn try_from(text: String) -> Result<Self, BadPciAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.0
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device that VFIO can give away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Number of its IOMMU group.
    pub group: u32,
}

impl PciDevice {
    /// Where the kernel tells of it.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/sys").join(DEVICES).join(&self.address.0)
    }
}

/// Why a device cannot be given away.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    #[error("there is no PCI device {0}; `ls /sys/bus/pci/devices` lists those that there are")]
    NotFound(PciAddress),
    #[error(
        "the PCI device {0} is in no IOMMU group; switch the IOMMU on in the firmware, and in the kernel with \
         intel_iommu=on where it is Intel's"
    )]
    NoGroup(PciAddress),
    #[error(
        "the PCI device {address} is {driver}'s, not vfio-pci's; as root, write vfio-pci to \
         /sys/bus/pci/devices/{address}/driver_override, its address to .../driver/unbind if it has a driver, and then its \
         address to /sys/bus/pci/drivers_probe"
    )]
    OtherDriver { address: PciAddress, driver: String },
    #[error("cannot read {path} of a PCI device")]
    Io { path: PathBuf, source: io::Error },
}

/// A device, and behind it the others of its IOMMU group, all of which go where it goes. They must be vfio-pci's.
pub fn group_of(address: &PciAddress) -> Result<Vec<PciDevice>, PciError> {
    group_in(Path::new("/sys"), address)
}

fn group_in(sys: &Path, address: &PciAddress) -> Result<Vec<PciDevice>, PciError> {
    let device = sys.join(DEVICES).join(&address.0);
    if !device.is_dir() {
        return Err(PciError::NotFound(address.clone()));
    }
    let group = name_of_link(&device.join("iommu_group")).and_then(|name| name.parse().ok());
    let group: u32 = group.ok_or_else(|| PciError::NoGroup(address.clone()))?;
    let members = device.join("iommu_group/devices");
    let failed = |source| PciError::Io { path: members.clone(), source };
    let mut addresses = vec![address.clone()];
    for entry in fs::read_dir(&members).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // What is in a group and on no PCI bus has no address.
        let other = name.to_str().and_then(|name| name.parse().ok());
        addresses.extend(other.filter(|other| other != address));
    }
    addresses[1..].sort();
    let mut devices = Vec::new();
    for address in addresses {
        let device = sys.join(DEVICES).join(&address.0);
        if is_bridge(&device)? {
            continue;
        }
        match name_of_link(&device.join("driver")) {
            Some(driver) if driver == "vfio-pci" => devices.push(PciDevice { address, group }),
            driver => {
                return Err(PciError::OtherDriver { address, driver: driver.unwrap_or_else(|| "nobody".to_owned()) });
            }
        }
    }
    Ok(devices)
}

fn is_bridge(device: &Path) -> Result<bool, PciError> {
    let path = device.join("class");
    match fs::read_to_string(&path) {
        Ok(class) => Ok(class.starts_with(BRIDGE)),
        Err(source) => Err(PciError::Io { path, source }),
    }
}

fn name_of_link(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A device as `/sys` shows it: address, class, driver, group.
    type Shown<'a> = (&'a str, &'a str, Option<&'a str>, Option<u32>);

    fn sys(devices: &[Shown<'_>]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (address, class, driver, group) in devices {
            let device = dir.path().join(DEVICES).join(address);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../../bus/pci/drivers/{driver}"), device.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let members = dir.path().join(format!("kernel/iommu_groups/{group}/devices"));
                fs::create_dir_all(&members).unwrap();
                symlink(members.parent().unwrap(), device.join("iommu_group")).unwrap();
                symlink(&device, members.join(address)).unwrap();
            }
        }
        dir
    }

    #[track_caller]
    fn check(devices: &[Shown<'_>], expected: Result<&[&str], &str>) {
        let sys = sys(devices);
        let got = group_in(sys.path(), &"0000:01:00.0".parse().unwrap());
        match (got, expected) {
            (Ok(got), Ok(expected)) => {
                assert_eq!(got.iter().map(|it| it.address.0.as_str()).collect::<Vec<_>>(), expected);
                assert!(got.iter().all(|it| it.group == 7));
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (got, expected) => panic!("{got:?}, and not {expected:?}"),
        }
    }

    #[test]
    fn a_device_goes_with_its_group_or_not_at_all() {
        let gpu = ("0000:01:00.0", "0x030200", Some("vfio-pci"), Some(7));
        let audio = |driver| ("0000:01:00.1", "0x040300", driver, Some(7));
        let bridge = ("0000:00:01.0", "0x060400", Some("pcieport"), Some(7));
        check(&[gpu], Ok(&["0000:01:00.0"]));
        check(&[bridge, audio(Some("vfio-pci")), gpu], Ok(&["0000:01:00.0", "0000:01:00.1"]));
        check(&[gpu, ("0000:02:00.0", "0x030200", Some("nvidia"), Some(8))], Ok(&["0000:01:00.0"]));
        check(&[gpu, audio(Some("snd_hda_intel"))], Err("0000:01:00.1 is snd_hda_intel's, not vfio-pci's"));
        check(&[gpu, audio(None)], Err("0000:01:00.1 is nobody's"));
        check(&[("0000:01:00.0", "0x030200", Some("nvidia"), Some(7))], Err("0000:01:00.0 is nvidia's"));
        check(&[("0000:01:00.0", "0x030200", Some("vfio-pci"), None)], Err("in no IOMMU group"));
        check(&[("0000:02:00.0", "0x030200", Some("vfio-pci"), Some(7))], Err("there is no PCI device 0000:01:00.0"));
    }

    #[test]
    fn addresses_are_whole_and_nothing_else() {
        assert_eq!("0000:AF:00.0".parse::<PciAddress>().unwrap().to_string(), "0000:af:00.0");
        for text in ["", "01:00.0", "0000:01:00.0/..", "0000:01:00:0", "../0:01:00.0", "0000:01:00.g"] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
