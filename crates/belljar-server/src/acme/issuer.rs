//! The certificates of an ACME server in use: who gets which, and when the next one is ordered.
//!
//! ```text
//! nothing --begin--> getting --ok--> kept --due, and used or our own--> getting (the old one is shown)
//!                       \--failed--> rests, longer each time --used again, or our own--> getting
//! ```
//! An order is a task of its own, so that a client that goes away does not end it. What is not the server's own may be
//! forgotten, least recently used first; it lies on the disk and comes back from there.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    AcmeConfig, AcmeError,
    account::Registration,
    kept::{Kept, Shelf},
    order,
    proof::{Handshakes, Prover},
    records::Records,
    subject::{Names, Subject},
};
use crate::{
    clock::now_ms,
    ingress::{self, Target},
    limits::{
        ACME_CERTIFICATES_MAX, ACME_CLOCK_CHECK, ACME_ORDERS_MAX, ACME_RETRY_FIRST, ACME_RETRY_MAX, ACME_WAITING_MAX,
    },
};

/// Only for its owner.
const DIR_MODE: u32 = 0o700;

/// See the module.
pub(crate) struct Issuer {
    names: Names,
    own: Vec<Subject>,
    /// Whether there is such a sandbox, and the port is for others.
    shows: Box<dyn Fn(&Target) -> bool + Send + Sync>,
    shelf: Shelf,
    registration: Registration,
    prover: Prover,
    state: Mutex<State>,
    orders: Semaphore,
    stop: CancellationToken,
    /// How many searches ended, and how the last one failed.
    #[cfg(test)]
    pub(crate) ended: watch::Sender<(usize, Option<String>)>,
}

#[derive(Default)]
struct State {
    entries: HashMap<String, Entry>,
    /// Counts uses; a clock for what was used least recently.
    uses: u64,
}

#[derive(Default)]
struct Entry {
    kept: Option<Kept>,
    /// Open while somebody looks for a certificate, and rings when there is one.
    getting: Option<watch::Receiver<()>>,
    failures: u32,
    rests_until: Option<Instant>,
    used: u64,
}

impl Entry {
    fn is_getting(&self) -> bool {
        self.getting.as_ref().is_some_and(|getting| getting.has_changed().is_ok())
    }
}

/// What there is when somebody asks.
struct Found {
    /// A certificate that clients accept.
    usable: bool,
    getting: Option<watch::Receiver<()>>,
}

impl Issuer {
    /// Makes the directories; asks the ACME server nothing yet.
    pub(crate) fn open(
        config: &AcmeConfig,
        names: Names,
        shows: impl Fn(&Target) -> bool + Send + Sync + 'static,
    ) -> Result<Self, AcmeError> {
        config.check()?;
        make_dir(&config.certificates())?;
        let prover = match config.dns_hook.clone() {
            Some(program) => Prover::Dns(Records::open(program, config.records())?),
            None => Prover::Handshake(Handshakes::default()),
        };
        Ok(Self {
            own: names.own(),
            names,
            shows: Box::new(shows),
            shelf: Shelf::new(config.certificates()),
            registration: Registration::new(config)?,
            prover,
            state: Mutex::default(),
            orders: Semaphore::new(ACME_ORDERS_MAX),
            stop: CancellationToken::new(),
            #[cfg(test)]
            ended: watch::Sender::default(),
        })
    }

    /// Ends orders that are under way when it is cancelled.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Sees to it that there is a certificate for the host that a client names, if there is to be one. Waits for the first
    /// one only; the caller limits how long.
    pub(crate) async fn prepare(self: &Arc<Self>, host: Option<&str>) {
        let Some(subject) = self.subject(host) else { return };
        let Found { usable, getting } = self.begin(&subject);
        if let (false, Some(mut getting)) = (usable, getting) {
            // An error is the end of the search, whichever.
            let _ = getting.changed().await;
        }
    }

    /// The proof for an ACME server that looks for one.
    pub(crate) fn proof(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        match &self.prover {
            Prover::Handshake(handshakes) => handshakes.get(&host.to_ascii_lowercase()),
            Prover::Dns(_) => None,
        }
    }

    /// Keeps the server's own certificates fresh, for as long as it is polled.
    pub(crate) async fn run(self: &Arc<Self>) {
        let shelf = self.shelf.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || shelf.sweep(now_ms())).await {
            tracing::error!(%error, "removing certificates that are over");
        }
        self.prover.tidy().await;
        join_all(self.own.iter().map(|subject| self.keep(subject))).await;
    }

    async fn keep(self: &Arc<Self>, subject: &Subject) {
        loop {
            if let Some(mut getting) = self.begin(subject).getting {
                while getting.changed().await.is_ok() {}
            }
            tokio::time::sleep(self.pause(subject)).await;
        }
    }

    /// How long nothing has to be done. The wall clock may jump, and stands still for timers while the machine sleeps, so
    /// that it is looked at once in a while.
    fn pause(&self, subject: &Subject) -> Duration {
        let state = self.lock();
        let Some(entry) = state.entries.get(&subject.key) else { return ACME_RETRY_FIRST };
        let rest = entry.rests_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        let left = entry.kept.as_ref().map_or(0, |kept| kept.due().saturating_sub(now_ms()));
        rest.max(Duration::from_millis(u64::try_from(left).unwrap_or(0)).min(ACME_CLOCK_CHECK))
    }

    fn subject(&self, host: Option<&str>) -> Option<Subject> {
        match host {
            // Clients that name no host ask for an address; they get what there is.
            None => self.own.first().cloned(),
            Some(host) => self.names.find(&host.to_ascii_lowercase(), |host, domain| {
                ingress::below(host, domain).is_some_and(|target| (self.shows)(&target))
            }),
        }
    }

    /// Says what there is, and begins a search where one is needed.
    fn begin(self: &Arc<Self>, subject: &Subject) -> Found {
        let now = now_ms();
        let mut state = self.lock();
        state.uses += 1;
        let used = state.uses;
        let searches = state.entries.values().filter(|entry| entry.is_getting()).count();
        let entry = state.entries.entry(subject.key.clone()).or_default();
        entry.used = used;
        let usable = entry.kept.as_ref().is_some_and(|kept| kept.holds(now));
        let due = entry.kept.as_ref().is_none_or(|kept| kept.due() <= now);
        let rests = entry.rests_until.is_some_and(|until| Instant::now() < until);
        let may_begin = searches < ACME_WAITING_MAX || self.own.contains(subject);
        if due && !rests && !entry.is_getting() && may_begin {
            let (done, getting) = watch::channel(());
            entry.getting = Some(getting);
            // Whatever comes of it: a certificate that is due as soon as it is made must not be ordered without a pause.
            entry.rests_until = Some(Instant::now() + ACME_RETRY_FIRST);
            let (issuer, subject) = (Arc::clone(self), subject.clone());
            tokio::spawn(async move { issuer.stop.run_until_cancelled(issuer.get(&subject, done)).await });
        }
        let getting = entry.getting.clone().filter(|_| entry.is_getting());
        self.forget_least_used(&mut state);
        Found { usable, getting }
    }

    fn forget_least_used(&self, state: &mut State) {
        while state.entries.len() > ACME_CERTIFICATES_MAX {
            let may_go = |key: &String, entry: &Entry| {
                !entry.is_getting() && !self.own.iter().any(|subject| subject.key == *key)
            };
            let candidates = state.entries.iter().filter(|(key, entry)| may_go(key, entry));
            let Some(key) = candidates.min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone()) else { return };
            state.entries.remove(&key);
        }
    }

    /// Looks on the disk, then asks the ACME server. The end of `done` is the end of the search.
    async fn get(&self, subject: &Subject, done: watch::Sender<()>) {
        let got = self.search(subject, &done).await;
        let mut state = self.lock();
        let entry = state.entries.entry(subject.key.clone()).or_default();
        let (names, failed) = (subject.names.join(", "), got.as_ref().err().map(ToString::to_string));
        match got {
            Ok(kept) => (entry.kept, entry.failures) = (Some(kept), 0),
            Err(error) => {
                let pause = rest_after(entry.failures);
                entry.failures = entry.failures.saturating_add(1);
                entry.rests_until = Some(Instant::now() + pause);
                let old = entry.kept.as_ref().is_some_and(|kept| kept.holds(now_ms()));
                let old = if old { "the old certificate stays" } else { "there is no certificate" };
                let seconds = pause.as_secs();
                tracing::error!(%error, "no new certificate for {names}; {old}; trying again in {seconds} s at the earliest");
            }
        }
        drop((state, done));
        #[cfg(test)]
        self.ended.send_modify(|ended| *ended = (ended.0 + 1, failed));
        #[cfg(not(test))]
        drop(failed);
    }

    async fn search(&self, subject: &Subject, done: &watch::Sender<()>) -> Result<Kept, AcmeError> {
        if let Some(kept) = self.read_disk(subject).await {
            if kept.due() > now_ms() {
                return Ok(kept);
            }
            self.lock().entries.entry(subject.key.clone()).or_default().kept = Some(kept);
            done.send_replace(());
        }
        // It is never closed.
        let _place = self.orders.acquire().await;
        let account = self.registration.account().await?;
        let pem = order::run(account, &self.prover, subject).await?;
        let kept = Kept::parse(pem.as_bytes())?;
        let (shelf, key) = (self.shelf.clone(), subject.key.clone());
        match tokio::task::spawn_blocking(move || shelf.write(&key, pem.as_bytes())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "a new certificate is used, but not kept"),
            Err(error) => tracing::error!(%error, "writing a certificate"),
        }
        tracing::info!(names = subject.names.join(", "), "got a certificate from the ACME server");
        Ok(kept)
    }

    /// What the disk has, if it is more than what is in memory.
    async fn read_disk(&self, subject: &Subject) -> Option<Kept> {
        if self.lock().entries.get(&subject.key).is_some_and(|entry| entry.kept.is_some()) {
            return None;
        }
        let (shelf, key) = (self.shelf.clone(), subject.key.clone());
        let read = tokio::task::spawn_blocking(move || shelf.read(&key)).await;
        read.ok().flatten().filter(|kept| kept.holds(now_ms()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Issuer {
    /// What is in memory. One that is over is shown, too: "expired" says more to a person than a refused handshake.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let subject = self.subject(hello.server_name())?;
        let state = self.lock();
        let kept = state.entries.get(&subject.key)?.kept.as_ref()?;
        Some(Arc::clone(&kept.certified))
    }
}

/// How long a name rests that has failed so often before.
fn rest_after(failures: u32) -> Duration {
    ACME_RETRY_FIRST.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(ACME_RETRY_MAX)
}

pub(super) fn make_dir(path: &Path) -> Result<(), AcmeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(path);
    made.map_err(|source| AcmeError::File { operation: "make", path: path.to_owned(), source })
}

#[cfg(test)]
#[path = "issuer_test.rs"]
mod tests;
