//! The network of each VM: a namespace of its own, with a tap, a way out, and rules.
//!
//! ```text
//!   guest eth0 10.0.2.15 ── tap0 10.0.2.2 │ namespace belljar-N │ up0 ══ bjnetN │ host ── masquerade ──> elsewhere
//!                                         ├─ 10.0.2.3: the resolver's sockets
//!                                         └─ 10.0.2.4: the proxy's, for sandboxes with secrets
//!
//!  (free) --claim--> making --made--> ready --plug--> in use by one VM process --unplug--> gone
//!                       └─ failed: undone               └─ the node died: found by its home, or swept
//! ```
//! The addresses inside are the same everywhere, so a restored guest keeps what it was told. What tells networks apart is a
//! number, and with it the names and the addresses of the pair of devices that leads out; numbers are claimed for the whole
//! host ([`slot`]), since other nodes may run on it.
//!
//! A VM process has one network from its start to its end. Its home (the directory of the sandbox, spare or template) holds
//! a file `network` with the number, written before anything is plugged in.
//!
//! Without the rights or the programs for that ([`Network::open`]), VMs have QEMU's user-mode network: no rules are
//! enforced then but "nothing at all".
//!
//! It knows no sandboxes and no policies; [`crate::egress`] says what may pass. Called by [`crate::sandbox::boot`], the
//! templates and the node's start.

mod device;
mod dial;
mod gate;
mod host;
mod nft;
mod slot;

use std::{
    collections::{HashMap, HashSet},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use belljar_vmm::{Capabilities, NetworkSpec};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub(crate) use crate::egress::ruleset::words;

pub(crate) use self::{
    gate::{Gate, GateError, check, lay_rules},
    host::mtu,
    slot::Owner,
};
use self::{
    nft::Nft,
    slot::{Slot, Taps},
};
use crate::{
    Context, blocking, chain,
    egress::resolver::Upstream,
    limits::{NETWORK_CONNECTIONS, NETWORK_NEW_PER_SECOND, NETWORKS_READY},
    program::ProgramError,
};

/// The guest's address and what it is told of its surroundings; those of QEMU's user-mode network, so that a guest need not
/// know which one it has.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Where requests to hosts go that a secret is bound to.
pub(crate) const PROXY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
pub(crate) const PREFIX: u8 = 24;
/// The devices of a namespace: towards the guest, and out.
pub(crate) const TAP: &str = "tap0";
pub(crate) const UPLINK: &str = "up0";

/// File in a VM's home that holds the number of its network.
pub(crate) const FILE: &str = "network";
/// File beside it: which names the open addresses belong to. Also in the directory of a standstill.
pub(crate) const NAMES: &str = "network.names";

/// What the operator wants; as text `auto`, `namespaces` or `user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkSetting {
    /// Namespaces where they can be had.
    #[default]
    Auto,
    /// Namespaces, or the node does not start.
    Namespaces,
    /// QEMU's user-mode network.
    User,
}

impl fmt::Display for NetworkSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Namespaces => "namespaces",
            Self::User => "user",
        })
    }
}

impl FromStr for NetworkSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Namespaces, Self::User];
        all.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| "write auto, namespaces or user".to_owned())
    }
}

/// A network that cannot be made, or not be removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A system call or a file.
    #[error("cannot {operation}")]
    Io {
        /// What was tried.
        operation: String,
        /// Why not.
        source: io::Error,
    },
    /// `ip` or `nft`.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// All numbers are taken.
    #[error("all {0} networks of this host are in use")]
    Exhausted(u32),
}

impl NetworkError {
    fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }
}

/// Makes a network as those of sandboxes, and removes it: whether that works is hard to tell otherwise. Blocking.
pub fn probe() -> Result<(), NetworkError> {
    host::prepare(&[])?;
    let made = Slot::make(&Owner::this_process(), Taps::Named).and_then(|slot| slot.discard());
    // Both are tried; the first error tells more.
    made.and(host::tidy())
}

/// What one sandbox may take of the host's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkLimits {
    /// Megabits per second, in each direction; `None`: as much as there is.
    pub megabits: Option<u32>,
    /// Connections that it may begin in a second.
    pub new_connections: u32,
    /// Connections that it may have at once.
    pub connections: u32,
}

impl NetworkLimits {
    /// What [`Self::megabits`] may be.
    pub const MEGABITS: RangeInclusive<u32> = 1..=100_000;
    /// What [`Self::new_connections`] may be.
    pub const NEW_CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
    /// What [`Self::connections`] may be. Each takes about 400 bytes of the kernel's memory.
    pub const CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;

    fn bytes_per_second(self) -> Option<u64> {
        self.megabits.map(|megabits| u64::from(megabits) * 1_000_000 / 8)
    }
}

impl Default for NetworkLimits {
    fn default() -> Self {
        Self { megabits: None, new_connections: NETWORK_NEW_PER_SECOND, connections: NETWORK_CONNECTIONS }
    }
}

impl fmt::Display for NetworkLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(megabits) = self.megabits {
            write!(f, "{megabits} Mbit/s each way, ")?;
        }
        write!(f, "{} new connections per second, {} connections", self.new_connections, self.connections)
    }
}

/// What the operator decides about networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// What they are made of.
    pub kind: NetworkSetting,
    /// Networks that are not public and may be reached by sandboxes all the same.
    pub allow_private: Vec<IpNet>,
    /// DNS servers that sandboxes' questions go to; those of `/etc/resolv.conf` where there are none.
    pub resolvers: Vec<IpAddr>,
    /// What each sandbox may take.
    pub limits: NetworkLimits,
}

/// The networks of a node.
pub(crate) struct Network {
    options: NetworkOptions,
    /// `None`: QEMU's user-mode network.
    pool: Option<Pool>,
}

struct Pool {
    /// Whose the numbers are.
    owner: Owner,
    /// What the driver takes.
    taps: Taps,
    /// Made ahead, for the next VMs.
    ready: Mutex<Vec<Slot>>,
    /// Of networks that are plugged in and whose rules are still to come, so that they come fast.
    started: Mutex<HashMap<u32, Nft>>,
}

impl Network {
    /// Finds out what can be had, by making one. Blocking.
    pub(crate) fn open(options: NetworkOptions, driver: Capabilities, owner: Owner) -> Result<Self, NetworkError> {
        let setting = options.kind;
        if setting == NetworkSetting::User || !driver.tap_network {
            return Ok(Self { options, pool: None });
        }
        let taps = if driver.named_tap { Taps::Named } else { Taps::Open };
        let first = || {
            host::prepare(&options.allow_private)?;
            Slot::make(&owner, taps)
        };
        match first() {
            Ok(slot) => {
                let ready = Mutex::new(vec![slot]);
                let pool = Pool { owner, taps, ready, started: Mutex::default() };
                Ok(Self { options, pool: Some(pool) })
            }
            Err(error) if setting == NetworkSetting::Auto => {
                tracing::warn!(
                    error = chain(&error),
                    "no network namespaces: sandboxes have QEMU's user-mode network, and egress rules are not enforced"
                );
                Ok(Self { options, pool: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Where sandboxes' questions go.
    fn upstream(&self) -> Upstream {
        if !self.options.resolvers.is_empty() {
            return Upstream::new(self.options.resolvers.iter().map(|address| SocketAddr::new(*address, 53)));
        }
        // It may be another one than a moment ago: a laptop moves.
        Upstream::from_resolv_conf(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    fn allow_private(&self) -> &[IpNet] {
        &self.options.allow_private
    }

    /// Whether rules hold.
    pub(crate) fn is_enforced(&self) -> bool {
        self.pool.is_some()
    }

    /// What distinguishes guests' network cards: a machine that has met one kind cannot go on with the other.
    pub(crate) fn kind(&self) -> &'static str {
        if self.is_enforced() { "tap" } else { "user" }
    }

    fn pool(&self) -> Option<(&Pool, std::sync::MutexGuard<'_, Vec<Slot>>)> {
        let pool = self.pool.as_ref()?;
        Some((pool, pool.ready.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn started(&self) -> Option<std::sync::MutexGuard<'_, HashMap<u32, Nft>>> {
        Some(self.pool.as_ref()?.started.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the rules of a network are changed through; only its gate asks.
    fn nft(&self, number: u32) -> Nft {
        self.started().and_then(|mut started| started.remove(&number)).unwrap_or_else(|| Nft::of(number))
    }

    /// For the gate that will ask.
    fn keep(&self, number: u32, nft: Nft) {
        if let Some(mut started) = self.started() {
            started.insert(number, nft);
        }
    }

    /// For which node another one is to be made ahead, how, and whether at once: the next VM would have to wait for it.
    fn wants_more(&self) -> Option<(Owner, Taps, bool)> {
        let (pool, ready) = self.pool()?;
        (ready.len() < NETWORKS_READY).then(|| (pool.owner.clone(), pool.taps, ready.is_empty()))
    }

    fn add(&self, slot: Slot) {
        if let Some((_, mut ready)) = self.pool() {
            ready.push(slot);
        }
    }

    fn take(&self) -> Result<Option<Slot>, NetworkError> {
        let Some((pool, mut ready)) = self.pool() else { return Ok(None) };
        let slot = ready.pop();
        drop(ready);
        match slot {
            Some(slot) => Ok(Some(slot)),
            None => Slot::make(&pool.owner, pool.taps).map(Some),
        }
    }

    /// A network for the VM that has `file`; gives what its card is connected to.
    fn plug(&self, file: &Path) -> Result<Option<NetworkSpec>, NetworkError> {
        let Some(slot) = self.take()? else { return Ok(None) };
        let number = slot.number();
        let (tap, nft) = slot.plug(file)?;
        self.keep(number, nft);
        Ok(Some(tap))
    }
}

/// Gives the VM that is about to be started in `home` a network, in which nothing may pass yet.
pub(crate) async fn plug(ctx: &Arc<Context>, home: &Path) -> Result<NetworkSpec, NetworkError> {
    let (this, file) = (ctx.clone(), home.join(FILE));
    let plugged = blocking(move || this.network.plug(&file)).await?;
    let Some(tap) = plugged else { return Ok(NetworkSpec::User { restrict: false }) };
    refill(ctx);
    Ok(tap)
}

/// Makes as many as are to be ready, in the background.
pub(crate) fn refill(ctx: &Arc<Context>) {
    let this = ctx.clone();
    ctx.spawn(async move {
        while let Some((owner, taps, is_urgent)) = this.network.wants_more() {
            if !is_urgent {
                this.calm.wait().await;
            }
            let that = this.clone();
            // Also where this is given up in the middle, what was made gets into the pool, which a leaving node empties.
            match blocking(move || Slot::make(&owner, taps).map(|slot| that.network.add(slot))).await {
                Ok(()) => {}
                // The next VM tries it again, and tells.
                Err(error) => return tracing::warn!(error = chain(&error), "cannot keep a network ready"),
            }
        }
    });
}

/// Removes the network of the VM of `home`, which has ended; nothing where there is none. Blocking.
pub(crate) fn unplug(network: &Network, home: &Path) -> Result<(), NetworkError> {
    let file = home.join(FILE);
    if let Some(note) = slot::read(&file)? {
        drop(network.nft(note.number));
        slot::remove(note.number)?;
        for file in [home.join(NAMES), file] {
            slot::remove_file(&file)?;
        }
    }
    Ok(())
}

/// Removes the networks of this node that no VM of the homes in a directory has, and those of nodes that were removed. Before
/// any new ones are made. Blocking.
pub(crate) fn sweep(network: &Network, homes: &Path) -> Result<(), NetworkError> {
    let Some((pool, ready)) = network.pool() else { return Ok(()) };
    let mut used: HashSet<u32> = ready.iter().map(Slot::number).collect();
    let failed = || NetworkError::io(format!("list {}", homes.display()));
    for home in fs::read_dir(homes).map_err(failed())? {
        used.extend(slot::read(&home.map_err(failed())?.path().join(FILE))?.map(|note| note.number));
    }
    let (owned, abandoned) = slot::owned_by_or_abandoned(&pool.owner)?;
    for number in owned {
        if !used.contains(&number) {
            slot::remove(number)?;
        }
    }
    for number in abandoned {
        tracing::warn!(number, "removing a network of a node whose data directory is gone");
        // Another node may be at it.
        if let Err(error) = slot::remove(number) {
            tracing::warn!(number, error = chain(&error), "that network stays behind");
        }
    }
    Ok(())
}

/// Removes what was made ahead, and what the host had to have if nobody on it has networks any more. Blocking.
pub(crate) fn close(network: &Network) -> Result<(), NetworkError> {
    let Some((_, mut ready)) = network.pool() else { return Ok(()) };
    for slot in ready.drain(..) {
        slot.discard()?;
    }
    host::tidy()
}
