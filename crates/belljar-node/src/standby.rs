//! VM processes that wait for a guest: started ahead, each in its jail and with its network, so that a restore, a wake or a copy
//! need not wait for that.
//!
//! ```text
//! (none) --a guest of this kind goes on--> being made --> ready --take--> a sandbox's: `network` and `run/` are moved to it
//!   ^                                          \-- failed   \-- one of another kind is wanted --> ended
//!   └──────────────────────────────────────────┘
//! ```
//! One is a directory among those of the spares, with the same fate when the node starts or stops. It knows processors and memory
//! ([`Kind`]) and nothing else: unlike a spare ([`crate::templates`]) it has no guest, holds next to no memory, and fits every
//! image. Called by [`crate::sandbox::boot`]; only where the driver can ([`belljar_vmm::Capabilities::prepares`]).

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belljar_api::{id::new_id, sandbox::Resources};
use belljar_vmm::{NetworkSpec, Prepared};

use crate::{
    Context, blocking, chain,
    limits::STANDBY_MAX,
    network,
    sandbox::boot::{self, BootError, vm_spec},
    templates::Unclaimed,
};

/// What a process is started for: processors, and memory in MiB.
type Kind = (u32, u64);

/// A process that waits, and what its guest's card will be connected to.
#[derive(Debug)]
struct Ready {
    kind: Kind,
    home: PathBuf,
    process: Prepared,
    network: NetworkSpec,
}

/// One that was taken out. What is not moved elsewhere goes with it.
pub(crate) struct Taken {
    /// Before its directory goes, nobody drives it any more.
    pub(crate) process: Prepared,
    pub(crate) network: NetworkSpec,
    pub(crate) home: Unclaimed,
}

/// All of a node's; the one of the kind that was wanted last is the last.
#[derive(Debug, Default)]
pub(crate) struct Standby(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ready: Vec<Ready>,
    making: Vec<Kind>,
}

impl Inner {
    /// Whether another one is to be made. Then it is noted, and those of kinds that nobody has wanted for longest have to go.
    fn begin(&mut self, kind: Kind) -> Option<Vec<Ready>> {
        if self.making.contains(&kind) || self.ready.iter().any(|ready| ready.kind == kind) {
            return None;
        }
        self.making.push(kind);
        let excess = (self.ready.len() + self.making.len()).saturating_sub(STANDBY_MAX);
        Some(self.ready.drain(..excess.min(self.ready.len())).collect())
    }

    fn end(&mut self, kind: Kind, made: Option<Ready>) {
        self.making.retain(|making| *making != kind);
        self.ready.extend(made);
    }
}

impl Standby {
    /// One for a guest with these resources. Another takes its place.
    pub(crate) fn take(&self, ctx: &Arc<Context>, resources: &Resources) -> Option<Taken> {
        let kind = kind(resources);
        let found = {
            let mut inner = self.lock();
            let at = inner.ready.iter().position(|ready| ready.kind == kind);
            at.map(|at| inner.ready.remove(at))
        };
        refill(ctx, resources);
        found.map(|ready| taken(ctx, ready))
    }

    /// Lets go of all of them.
    pub(crate) fn clear(&self) {
        self.lock().ready.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind(resources: &Resources) -> Kind {
    (boot::vcpus(resources), resources.memory_mb)
}

fn taken(ctx: &Arc<Context>, ready: Ready) -> Taken {
    let Ready { home, process, network, .. } = ready;
    Taken { process, network, home: Unclaimed::new(ctx.clone(), home) }
}

/// Makes one in the background, unless there is one.
pub(crate) fn refill(ctx: &Arc<Context>, resources: &Resources) {
    if !ctx.driver.capabilities().prepares {
        return;
    }
    let kind = kind(resources);
    let Some(excess) = ctx.standby.lock().begin(kind) else { return };
    excess.into_iter().for_each(|ready| drop(taken(ctx, ready)));
    let (this, resources) = (ctx.clone(), resources.clone());
    ctx.spawn(async move {
        // Sandboxes that are being started have the machine first.
        this.calm.wait().await;
        let home = Unclaimed::new(this.clone(), this.storage.spares().join(new_id()));
        let made = make(&this, home.dir(), &resources).await;
        let made = made.map(|(process, network)| Ready { kind, home: home.keep(), process, network });
        let made = made.inspect_err(|error| {
            tracing::warn!(error = chain(error), "cannot keep a VM process ready");
        });
        this.standby.lock().end(kind, made.ok());
    });
}

async fn make(ctx: &Arc<Context>, home: &Path, resources: &Resources) -> Result<(Prepared, NetworkSpec), BootError> {
    let (this, run_dir) = (ctx.clone(), home.join(boot::RUN));
    blocking(move || {
        this.faults.point("standby: prepare")?;
        boot::make_run_dir(&run_dir)
    })
    .await?;
    let network = network::plug(ctx, home).await?;
    let spec = vm_spec(ctx, "standby", home, resources, network.clone());
    let process = ctx.driver.prepare(&spec).await?;
    network::lay_rules(ctx, home).await?;
    Ok((process, network))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(kind: Kind) -> Ready {
        Ready { kind, home: "/nowhere".into(), process: Prepared::new(()), network: NetworkSpec::None }
    }

    #[test]
    fn there_is_one_of_a_kind_and_the_kinds_of_late_stay() {
        let mut inner = Inner::default();
        let max = u32::try_from(STANDBY_MAX).expect("few");
        for n in 0..max {
            assert!(inner.begin((n, 1)).expect("it is the first").is_empty());
            assert!(inner.begin((n, 1)).is_none(), "it is being made");
            inner.end((n, 1), Some(ready((n, 1))));
            assert!(inner.begin((n, 1)).is_none(), "it is there");
        }
        let gone = inner.begin((max, 1)).expect("another kind");
        assert_eq!(gone.iter().map(|ready| ready.kind).collect::<Vec<_>>(), [(0, 1)]);
        inner.end((max, 1), None);
        assert!(inner.begin((max, 1)).expect("that failed").is_empty());
    }
}
