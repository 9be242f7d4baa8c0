//! One network of the host, by its number.
//!
//! A number is claimed by making `/run/belljar/networks/N`, which says what node has it, and is free again when that file is
//! gone; it goes last. All of it is in memory: a reboot leaves nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use belljar_api::sandbox::NetworkConfig;
use belljar_vmm::NetworkSpec;
use ipnet::IpNet;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use serde::{Deserialize, Serialize};

use super::{GATEWAY, NetworkError, NetworkLimits, PREFIX, PROXY, RESOLVER, TAP, UPLINK, device, host, nft::Nft};
use crate::limits::NETWORKS_MAX;

/// Hardware address of the tap, in every namespace: a guest that goes on in another one still knows the old one as the gateway's
/// and the resolver's, and would send there for many seconds.
const TAP_MAC: &str = "02:00:0a:00:02:02";
pub(super) const CLAIMS: &str = "/run/belljar/networks";
/// Not `/run/netns`: the first `ip netns add` on a machine mounts that over itself, and what was mounted in it before can be
/// neither seen nor removed from then on.
const NAMESPACES: &str = "/run/belljar/netns";

/// The node that has a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) node_id: String,
    /// The file that holds this id for as long as there is such a node, which may not be running.
    pub(crate) node_id_file: PathBuf,
}

impl Owner {
    /// Whoever wants a network for a moment: it is gone when this process is.
    pub(super) fn this_process() -> Self {
        let node_id_file = PathBuf::from(format!("/proc/{}/comm", std::process::id()));
        let node_id = fs::read_to_string(&node_id_file).unwrap_or_default().trim().to_owned();
        Self { node_id, node_id_file }
    }

    /// Whether that node was removed: nobody will ever ask for its networks.
    fn is_gone(&self) -> bool {
        match fs::read_to_string(&self.node_id_file) {
            Ok(id) => id.trim() != self.node_id,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// How VM processes come by a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taps {
    /// They are given it open.
    Open,
    /// They open it, by its name.
    Named,
}

/// A network that no VM has yet.
pub(super) struct Slot {
    number: u32,
    /// `None`: it is to be opened by its name.
    tap: Option<OwnedFd>,
    nft: Nft,
}

impl Slot {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Claims a number and makes what belongs to it; on error nothing is left. Blocking, some 30 ms.
    pub(super) fn make(owner: &Owner, taps: Taps) -> Result<Self, NetworkError> {
        let number = claim(owner)?;
        match make(number, taps) {
            Ok((tap, nft)) => Ok(Self { number, tap, nft }),
            Err(error) => {
                if let Err(error) = remove(number) {
                    tracing::warn!(%error, number, "a network that could not be made stays behind");
                }
                Err(error)
            }
        }
    }

    pub(super) fn discard(self) -> Result<(), NetworkError> {
        drop((self.tap, self.nft));
        remove(self.number)
    }

    /// Notes the number in `file`: from here on it belongs to the VM that has that. Gives what its card is connected to, and
    /// what its rules are changed through.
    pub(super) fn plug(self, file: &Path) -> Result<(NetworkSpec, Nft), NetworkError> {
        match (Note { number: self.number, rules: None, guest: None }).write(file) {
            Ok(()) => {
                let named = || NetworkSpec::NamedTap { namespace: namespace(self.number), name: TAP.to_owned() };
                let spec = self.tap.map_or_else(named, |tap| NetworkSpec::Tap(Arc::new(tap)));
                Ok((spec, self.nft))
            }
            Err(error) => {
                self.discard()?;
                Err(error)
            }
        }
    }
}

/// What a VM's file says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) number: u32,
    /// Whose rules the kernel has; `None`: nothing passes.
    pub(super) rules: Option<Rules>,
    /// For which hardware address; `None`: nobody's yet, and nothing passes.
    #[serde(default)]
    pub(super) guest: Option<[u8; 6]>,
}

/// What rules were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rules {
    pub(super) wanted: NetworkConfig,
    pub(super) allow_private: Vec<IpNet>,
    pub(super) limits: NetworkLimits,
    /// Of this host, but for those of the ways out of networks, which come and go.
    #[serde(default)]
    pub(super) own: Vec<IpNet>,
}

impl Note {
    /// Replaces a VM's note; it is never half written.
    pub(super) fn write(&self, file: &Path) -> Result<(), NetworkError> {
        let new = file.with_extension("new");
        let written = serde_json::to_vec(self).map_err(io::Error::from).and_then(|text| fs::write(&new, text));
        written.and_then(|()| fs::rename(&new, file)).map_err(NetworkError::io(format!("write {}", file.display())))
    }
}

/// A VM's note, if it has a network.
pub(super) fn read(file: &Path) -> Result<Option<Note>, NetworkError> {
    let failed = || NetworkError::io(format!("read {}", file.display()));
    match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed()(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed()(error)),
    }
}

/// The numbers that a node has, and those of nodes that were removed.
pub(super) fn owned_by_or_abandoned(owner: &Owner) -> Result<(Vec<u32>, Vec<u32>), NetworkError> {
    let failed = || NetworkError::io(format!("list {CLAIMS}"));
    let entries = match fs::read_dir(CLAIMS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        entries => entries.map_err(failed())?,
    };
    let (mut owned, mut abandoned) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(failed())?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let found = fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice::<Owner>(&text).ok());
        match (number, found) {
            (Some(number), Some(found)) if found == *owner => owned.push(number),
            (Some(number), Some(found)) if found.is_gone() => abandoned.push(number),
            _ => {}
        }
    }
    Ok((owned, abandoned))
}

fn claim_file(number: u32) -> PathBuf {
    Path::new(CLAIMS).join(number.to_string())
}

fn claim(owner: &Owner) -> Result<u32, NetworkError> {
    let text =
        serde_json::to_vec(owner).map_err(|error| NetworkError::io("name the owner of a network")(error.into()))?;
    fs::create_dir_all(CLAIMS).map_err(NetworkError::io(format!("create {CLAIMS}")))?;
    for number in 0..NETWORKS_MAX {
        match OpenOptions::new().write(true).create_new(true).open(claim_file(number)) {
            Ok(mut file) => {
                let written = file.write_all(&text);
                written.map_err(NetworkError::io(format!("write {}", claim_file(number).display())))?;
                return Ok(number);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(NetworkError::io(format!("create {}", claim_file(number).display()))(error)),
        }
    }
    Err(NetworkError::Exhausted(NETWORKS_MAX))
}

/// Name of the device on the host that leads into the namespace.
fn outer(number: u32) -> String {
    format!("{}{number}", host::DEVICES)
}

fn namespace(number: u32) -> PathBuf {
    Path::new(NAMESPACES).join(number.to_string())
}

/// The two ends of the way out: the host's, and the namespace's.
pub(super) fn addresses(number: u32) -> (Ipv4Addr, Ipv4Addr) {
    let first = host::RANGE.to_bits() + number * 2;
    (first.into(), (first + 1).into())
}

fn make(number: u32, taps: Taps) -> Result<(Option<OwnedFd>, Nft), NetworkError> {
    let path = namespace(number);
    fs::create_dir_all(NAMESPACES).map_err(NetworkError::io(format!("create {NAMESPACES}")))?;
    File::create(&path).map_err(NetworkError::io(format!("create {}", path.display())))?;
    let outer = outer(number);
    let (near, far) = addresses(number);
    // A thread of its own: it never comes back from there.
    let made = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetworkError::io("make a network namespace")(error.into()))?;
        mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| NetworkError::io(format!("mount {}", path.display()))(error.into()))?;
        let tap = device::open_tap()?;
        if taps == Taps::Named {
            device::keep_tap(&tap)?;
        }
        let nft = Nft::start(number)?;
        for (name, value) in [("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")] {
            // A kernel without IPv6 has no switch for it.
            let _ = fs::write(format!("/proc/sys/net/{name}"), value);
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(NetworkError::io("let the namespace forward"))?;
        nft.run(LOCKED)?;
        host::ip(&format!(
            "link set lo up\n\
             address add {GATEWAY}/{PREFIX} dev {TAP}\n\
             address add {RESOLVER}/{PREFIX} dev {TAP}\n\
             address add {PROXY}/{PREFIX} dev {TAP}\n\
             link set {TAP} address {TAP_MAC} up\n\
             link add {UPLINK} type veth peer name {outer} netns {}\n\
             address add {far}/31 dev {UPLINK}\n\
             link set {UPLINK} up\n\
             route add default via {near}\n",
            std::process::id()
        ))?;
        Ok(((taps == Taps::Open).then_some(tap), nft))
    })?;
    // As inside: there is no IPv6.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{outer}/disable_ipv6"), "1");
    host::ip(&format!("address add {near}/31 dev {outer}\nlink set {outer} up\n"))?;
    Ok(made)
}

/// The rules of a namespace whose guest nobody has spoken for.
const LOCKED: &str = "add table inet belljar
add chain inet belljar input { type filter hook input priority 0; policy drop; }
add chain inet belljar forward { type filter hook forward priority 0; policy drop; }
";

/// Removes what belongs to a number, as far as it is there, and frees it.
pub(super) fn remove(number: u32) -> Result<(), NetworkError> {
    let outer = outer(number);
    if nix::net::if_::if_nametoindex(outer.as_str()).is_ok() {
        // Both ends of the pair. With the namespace they would go too, but some time later.
        host::ip(&format!("link delete {outer}\n"))?;
    }
    let path = namespace(number);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(NetworkError::io(format!("unmount {}", path.display()))(error.into())),
    }
    [path, claim_file(number)].iter().try_for_each(|file| remove_file(file))
}

/// Removes a file that may not be there.
pub(super) fn remove_file(file: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::io(format!("remove {}", file.display()))(error))
        }
        _ => Ok(()),
    }
}

/// Does something on a thread that is in the network of a number: what it opens and starts stays there. Blocking.
pub(super) fn enter<T: Send>(
    number: u32,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let path = namespace(number);
    on_thread(|| {
        let file = File::open(&path).map_err(NetworkError::io(format!("open {}", path.display())))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetworkError::io(format!("enter {}", path.display()))(error.into()))?;
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("network".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(NetworkError::io("start a thread"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_its_nodes_until_that_node_is_removed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let node = |id: &str, dir: &str| Owner { node_id: id.to_owned(), node_id_file: Path::new(dir).join("node-id") };
        let here = dir.path().to_str().expect("a path");
        let (first, second) = (node("first", here), node("second", here));
        fs::write(&first.node_id_file, "first\n").expect("its id");
        let slot = Slot::make(&first, Taps::Named).expect("a network");
        let number = slot.number();
        let of = |owner: &Owner| {
            let (owned, abandoned) = owned_by_or_abandoned(owner).expect("claims");
            (owned.contains(&number), abandoned.contains(&number))
        };
        assert_eq!((of(&first), of(&second)), ((true, false), (false, false)));
        // Another node has the directory now; then nobody has.
        fs::write(&first.node_id_file, "second").expect("another id");
        assert_eq!(of(&second), (false, true));
        fs::remove_file(&first.node_id_file).expect("removed");
        assert_eq!(of(&second), (false, true));
        slot.discard().expect("removed");
        assert_eq!(of(&first), (false, false));
    }

    #[test]
    fn a_guest_finds_the_same_hardware_address_in_every_network() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        for taps in [Taps::Named, Taps::Open] {
            let slot = Slot::make(&Owner::this_process(), taps).expect("a network");
            let address = enter(slot.number(), || {
                let devices = nix::ifaddrs::getifaddrs().expect("devices");
                let of_tap = devices.filter(|it| it.interface_name == TAP).filter_map(|it| it.address);
                Ok(of_tap.filter_map(|it| it.as_link_addr().and_then(|link| link.addr())).next())
            });
            slot.discard().expect("removed");
            let words = address.expect("entered").map(super::super::words);
            assert_eq!(words.as_deref(), Some(TAP_MAC));
        }
    }

    /// The first `ip netns add` on a machine mounts `/run/netns` over itself, which hides all that was mounted in it.
    #[test]
    fn a_network_goes_though_somebody_made_the_first_namespace_with_ip_meanwhile() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        let work = || {
            // A machine on which nobody ever did, as far as this thread sees.
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
            while umount2("/run/netns", MntFlags::MNT_DETACH).is_ok() {}
            let slot = Slot::make(&Owner::this_process(), Taps::Named).expect("a network");
            let claimed = claim_file(slot.number());
            let name = format!("first-{}", std::process::id());
            host::ip(&format!("netns add {name}\n")).expect("a namespace");
            let discarded = slot.discard();
            host::ip(&format!("netns delete {name}\n")).expect("removed");
            discarded.expect("removed");
            assert!(!claimed.exists(), "{} is left", claimed.display());
        };
        thread::scope(|scope| scope.spawn(work).join().expect("the thread"));
    }
}
