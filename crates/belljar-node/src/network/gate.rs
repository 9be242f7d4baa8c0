//! What watches over the network of one VM: its rules, and the resolver that opens them for names.
//!
//! ```text
//! (plugged in: nothing passes) --open--> rules hold, resolver answers --change--> the next rules hold
//!    └─ rules laid: nobody's yet ---^         ├─ dropped with the VM's handle: the sockets close, the rules stay
//!                                             └─ adopted by a later node process: the rules are as they were
//! ```
//! Rules are put into the namespace whole, in one step of the kernel, and noted in the VM's file; a node process that finds
//! the note it would have written leaves them alone, so that what the guest has open stays open. Most sandboxes have the same
//! rules, and to put them there is a good part of what a start takes: a network that waits for its sandbox has them already.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use belljar_api::{
    network::{HostName, NetworkUse},
    sandbox::NetworkConfig,
    secret::SecretRef,
};
use ipnet::{IpNet, Ipv4Net};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    GATEWAY, GUEST, NetworkError, NetworkLimits, PREFIX, PROXY, RESOLVER, TAP, UPLINK, device, dial::Dialer, host,
    nft::Nft, slot,
};
use crate::{
    Context, blocking, chain,
    egress::{
        credentials::{self, Allowance, Proxy},
        policy::{Operator, Policy},
        resolver::{Detour, Firewall, Names, ResolveError, Resolver, Since, resolve_names},
        ruleset::{self, Resolved, Wiring},
    },
};

/// Port of the resolver.
const DNS: u16 = 53;
/// Port of the proxy.
const HTTPS: u16 = 443;

/// Rules and resolver of a VM that lives.
pub(crate) struct Gate {
    number: u32,
    /// The VM's file, with the note.
    file: PathBuf,
    nft: Arc<Nft>,
    /// The guest's hardware address.
    guest: [u8; 6],
    resolver: Resolver,
    /// Of a sandbox with secrets.
    proxy: Option<Proxy>,
    /// What was last asked for, whether it could be had or not.
    asked: NetworkConfig,
    _serving: DropGuard,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("number", &self.number).field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// A policy that cannot be put into force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GateError {
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Names(#[from] ResolveError),
    #[error("network: {0}")]
    Invalid(String),
}

impl Gate {
    /// Puts the rules of a sandbox into the network of the VM of `home`, and answers its questions. `None` where the VM has
    /// a network without rules.
    pub(crate) async fn open(
        ctx: &Arc<Context>,
        home: &Path,
        wanted: &NetworkConfig,
        secrets: &[SecretRef],
        mac: [u8; 6],
    ) -> Result<Option<Self>, GateError> {
        let file = home.join(super::FILE);
        let path = file.clone();
        let Some(note) = blocking(move || slot::read(&path)).await? else { return Ok(None) };
        let number = note.number;
        let nft = Arc::new(ctx.network.nft(number));
        let (udp, tcp) = blocking(move || {
            slot::enter(number, || {
                let udp = UdpSocket::bind((RESOLVER, DNS)).map_err(NetworkError::io("open the resolver's port"))?;
                device::introduce(&udp, mac)?;
                let tcp = TcpListener::bind((RESOLVER, DNS)).map_err(NetworkError::io("open the resolver's port"))?;
                Ok((udp, tcp))
            })
        })
        .await?;
        let stop = CancellationToken::new();
        let allowance = (!secrets.is_empty()).then(|| Allowance::new(ctx.safe.clone(), secrets.to_vec()));
        let detour = allowance.clone().map(|allowance| Arc::new(allowance) as Arc<dyn Detour>);
        let resolver = Resolver::new(Arc::new(ctx.network.upstream()), Arc::new(Rules { nft: nft.clone() }), detour);
        let rules = made_from(ctx, wanted);
        let there = match (note.rules, note.guest) {
            (Some(there), guest) if there == rules && guest == Some(mac) => There::All,
            (Some(there), _) if there == rules => There::Rules,
            _ => There::Nothing,
        };
        let since = if there == There::All { Since::RanOn } else { Since::StoodStill };
        let (remembering, names) = (resolver.clone(), home.join(super::NAMES));
        blocking(move || remembering.remember(&names, since)).await;
        let proxy = match allowance {
            Some(allowance) => Some(open_proxy(ctx, number, &resolver, allowance, stop.clone()).await?),
            None => None,
        };
        let serving = {
            let (resolver, stop) = (resolver.clone(), stop.clone());
            async move {
                if let Err(error) = resolver.serve(udp, tcp, stop).await {
                    tracing::error!(%error, number, "a sandbox's resolver has ended");
                }
            }
        };
        ctx.spawn(serving);
        let (asked, serving) = (wanted.clone(), stop.drop_guard());
        let gate = Self { number, file, nft, guest: mac, resolver, proxy, asked, _serving: serving };
        // A name is resolved when the guest asks for it: nobody waits for that here.
        gate.apply(rules, Names::default(), there).await?;
        Ok(Some(gate))
    }

    /// What answers the guest.
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Whether these are other rules than those last asked for.
    pub(crate) fn differs(&self, wanted: &NetworkConfig) -> bool {
        self.asked != *wanted
    }

    /// Puts other rules into force, in one step; on error the old ones stay.
    pub(crate) async fn change(&mut self, ctx: &Arc<Context>, wanted: &NetworkConfig) -> Result<(), GateError> {
        self.asked = wanted.clone();
        let rules = made_from(ctx, wanted);
        let names = match resolve_names(&policy(&rules)?, &ctx.network.upstream()).await {
            Ok(names) => names,
            Err(error) => {
                // It was tried when the change was asked for. The guest may have more luck.
                tracing::warn!(error = chain(&error), "names of a policy");
                Names::default()
            }
        };
        self.apply(rules, names, There::Nothing).await
    }

    async fn apply(&self, rules: slot::Rules, names: Names, there: There) -> Result<(), GateError> {
        let policy = Arc::new(policy(&rules)?);
        for warning in policy.warnings() {
            tracing::warn!(number = self.number, "{warning}");
        }
        let swap = self.resolver.swap(policy.clone(), names).await;
        if there != There::All {
            let rest = ruleset::settle(self.guest);
            let script = match there {
                There::Nothing => script(&policy, swap.resolved(), rules.limits) + &rest,
                There::Rules | There::All => rest,
            };
            let note = slot::Note { number: self.number, rules: Some(rules), guest: Some(self.guest) };
            let (nft, file) = (self.nft.clone(), self.file.clone());
            let waits = policy.closes_dns();
            blocking(move || {
                nft.run(&script)?;
                note.write(&file)?;
                // With names the guest waits for it again and again.
                if !waits {
                    nft.release();
                }
                Ok::<_, NetworkError>(())
            })
            .await?;
        }
        swap.commit().await;
        Ok(())
    }

    /// What was blocked since the last time, in lines for the sandbox's log, and what has passed in all.
    pub(crate) async fn look(&self) -> Result<(Vec<String>, NetworkUse), NetworkError> {
        let nft = self.nft.clone();
        let noted = blocking(move || {
            let noted = nft.ask(ruleset::LIST)?;
            let drops = ruleset::dropped(&noted);
            if !drops.is_empty() {
                nft.run(ruleset::FORGET_DROPS)?;
            }
            Ok::<_, NetworkError>((drops, ruleset::counts(&noted)))
        });
        let (drops, counters) = noted.await?;
        let addresses = drops.into_iter().map(|dropped| dropped.to_string());
        let names = self.resolver.take_refusals().into_iter().map(|refusal| refusal.to_string());
        let requests = self.proxy.iter().flat_map(Proxy::take_refusals);
        Ok((addresses.chain(names).chain(requests).collect(), counters))
    }
}

impl Drop for Gate {
    /// The home may be removed from here on.
    fn drop(&mut self) {
        self.resolver.forget_place();
    }
}

/// What of a sandbox's rules the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    /// Nothing, or other rules.
    Nothing,
    /// The rules, and they are nobody's yet.
    Rules,
    /// The rules, for this guest.
    All,
}

/// Puts the rules of a sandbox that asks for none in particular into the network of the VM of `home`, before it is known whose
/// that will be: until then nothing passes. Nothing is done where a VM has a network without rules.
pub(crate) async fn lay_rules(ctx: &Arc<Context>, home: &Path) -> Result<(), GateError> {
    let file = home.join(super::FILE);
    let rules = made_from(ctx, &NetworkConfig::default());
    let script = script(&policy(&rules)?, &Resolved::default(), rules.limits);
    let this = ctx.clone();
    let laid = blocking(move || {
        let Some(slot::Note { number, .. }) = slot::read(&file)? else { return Ok(()) };
        let nft = this.network.nft(number);
        nft.run(&script)?;
        slot::Note { number, rules: Some(rules), guest: None }.write(&file)?;
        this.network.keep(number, nft);
        Ok::<_, NetworkError>(())
    });
    Ok(laid.await?)
}

fn script(policy: &Policy, resolved: &Resolved, limits: NetworkLimits) -> String {
    let wiring = Wiring {
        guest: GUEST,
        gateway: GATEWAY,
        resolver: RESOLVER,
        proxy: PROXY,
        tap: TAP,
        uplink: UPLINK,
        generation: generation(),
        bytes_per_second: limits.bytes_per_second(),
        new_connections_per_second: Some(limits.new_connections),
        connections_max: Some(limits.connections),
    };
    ruleset::compile(policy, resolved, &wiring)
}

/// Begins to carry the requests of a sandbox to the hosts to which its secrets are bound.
async fn open_proxy(
    ctx: &Arc<Context>,
    number: u32,
    resolver: &Resolver,
    allowance: Allowance,
    stop: CancellationToken,
) -> Result<Proxy, GateError> {
    let bind = || TcpListener::bind((PROXY, HTTPS)).map_err(NetworkError::io("open the proxy's port"));
    let (listener, roots) =
        blocking(move || Ok::<_, NetworkError>((slot::enter(number, bind)?, credentials::roots()))).await?;
    let dialer = Arc::new(Dialer { number, resolver: resolver.clone() });
    let proxy = Proxy::new(allowance, dialer, roots).map_err(|error| GateError::Invalid(error.to_string()))?;
    let serving = proxy.clone();
    ctx.spawn(async move {
        if let Err(error) = serving.serve(listener, stop).await {
            tracing::error!(%error, number, "a sandbox's proxy has ended");
        }
    });
    Ok(proxy)
}

impl Detour for Allowance {
    fn around(&self, name: &HostName) -> Option<Ipv4Addr> {
        self.covers(name).then_some(PROXY)
    }
}

/// Says why rules could not be held, if so: a name in them has no address, or none that may be reached.
pub(crate) async fn check(ctx: &Context, wanted: &NetworkConfig) -> Result<(), GateError> {
    resolve_names(&policy(&made_from(ctx, wanted))?, &ctx.network.upstream()).await?;
    Ok(())
}

fn policy(rules: &slot::Rules) -> Result<Policy, GateError> {
    let operator = Operator { allow_private: rules.allow_private.clone(), own: rules.own.clone() };
    Policy::new(&rules.wanted, &operator).map_err(|error| GateError::Invalid(error.to_string()))
}

/// What rules are made from now.
fn made_from(ctx: &Context, wanted: &NetworkConfig) -> slot::Rules {
    slot::Rules {
        wanted: wanted.clone(),
        allow_private: ctx.network.allow_private().to_vec(),
        limits: ctx.network.options.limits,
        own: own(),
    }
}

/// Addresses of this host, and those of sandboxes' networks. They may change at any time, so they are asked for.
fn own() -> Vec<IpNet> {
    let ours: Vec<_> = [(host::RANGE, host::RANGE_PREFIX), (GATEWAY, PREFIX)]
        .into_iter()
        .filter_map(|(address, prefix)| Ipv4Net::new(address, prefix).ok())
        .map(|net| net.trunc())
        .collect();
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|it| Some(it.address?.as_sockaddr_in()?.ip()));
    // Networks of other sandboxes come and go, and rules that say the same are the same.
    let others: BTreeSet<_> = addresses.filter(|address| !ours.iter().any(|net| net.contains(address))).collect();
    ours.into_iter().map(IpNet::V4).chain(others.into_iter().map(|address| IpNet::V4(address.into()))).collect()
}

/// Another number than any script before had in the same namespace, but by a chance of one to four thousand millions.
fn generation() -> u32 {
    rand::random::<u32>().max(1)
}

/// The rules of a network, for the resolver to open and to close.
struct Rules {
    nft: Arc<Nft>,
}

impl Rules {
    async fn run(&self, script: String) -> io::Result<()> {
        let nft = self.nft.clone();
        let run = blocking(move || nft.run(&script)).await;
        run.map_err(|error| io::Error::other(chain(&error)))
    }
}

#[async_trait]
impl Firewall for Rules {
    async fn admit(&self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()> {
        self.run(ruleset::admit(addresses)).await
    }

    async fn deny(&self, addresses: &[(Ipv4Addr, Duration)]) -> io::Result<()> {
        self.run(ruleset::deny(addresses)).await
    }
}
