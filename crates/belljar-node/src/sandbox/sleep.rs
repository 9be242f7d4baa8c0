//! Putting a sandbox to sleep and waking it; see the drawing in the parent module.
//!
//! ```text
//! fall_asleep: unlink view -> stop (freeze, pause, keep) -> write, sync `sleep.new` -> rename to `sleep` -> record: Suspended
//! wake:        resident VM goes on, or a new one from `sleep` -> configure -> record: Running -> rename `sleep` away
//! ```
//! There is one way to sleep, whoever asked for it, and one to wake. What sleeps is on disk and durable before anybody is
//! told so; the VM process is kept at a standstill for a while only so that a wake takes milliseconds.

use std::{path::Path, pin::pin};

use belljar_api::{log::level, node::NodeState};
use tokio::time::Instant;

use super::{
    NotAwake,
    boot::{BootError, Booted, end_vm},
    frozen::{self, FreezeError, Meanwhile, Parts},
    mail::Work,
    task::{Stage, Task},
};
use crate::{
    blocking, chain,
    guest::GuestError,
    limits::{RELINK_TIMEOUT, UNDO_PAUSE},
    network, pressure,
    storage::StorageError,
};

/// The complete standstill of a sleeping sandbox, in its directory.
pub(super) const SLEEP: &str = "sleep";
/// One that is being written.
pub(super) const SLEEP_NEW: &str = "sleep.new";

impl Task {
    /// Puts it to sleep; where that fails it goes on as it was. `idle`: asked for by the clock, so that a connection that
    /// came in the same moment wins.
    pub(super) async fn fall_asleep(&mut self, booted: Booted, idle: bool) -> Stage {
        let begun = Instant::now();
        // Tried again only after it has been idle for as long again.
        self.activity.touch();
        if !self.ctx.driver.capabilities().snapshots {
            self.trouble("cannot be suspended", "this node's driver cannot put a sandbox to sleep");
            return Stage::Awake(booted);
        }
        self.publish(NodeState::Suspending, None);
        // A connection is counted before it looks for the link, which is gone now: one that is not seen here will ask to
        // wake the sandbox.
        if idle && self.activity.is_open() {
            return Stage::Awake(booted);
        }
        let why = match self.lie_down(&booted).await {
            Ok(()) => match self.now_asleep().await {
                Ok(()) => {
                    self.note(level::INFO, &format!("suspended in {} ms", begun.elapsed().as_millis()));
                    return Stage::Asleep(Some(booted));
                }
                Err(why) => why,
            },
            Err(error) if error.is_no_space() => format!("the node's disk is full: {}", chain(&error)),
            Err(error) => chain(&error),
        };
        self.trouble("cannot be suspended", &why);
        self.drop_standstills().await;
        self.carry_on(booted).await
    }

    /// Makes `sleep` complete and durable; the VM stands still then.
    async fn lie_down(&self, booted: &Booted) -> Result<(), FreezeError> {
        let new = self.dir.join(SLEEP_NEW);
        self.ctx.faults.point("sleep: clear")?;
        remove(&new).await?;
        let still = frozen::stop(&self.ctx, booted, &self.dir, &new, Parts::All, Meanwhile::StandsStill).await?;
        let base = self.ctx.driver.capabilities().takes_changes.then(|| self.dir.join(frozen::MEMORY));
        still.beyond(base).finish(&self.ctx, true).await?;
        self.ctx.faults.point("sleep: rename")?;
        let (to, dir) = (self.dir.join(SLEEP), self.dir.clone());
        blocking(move || {
            crate::storage::remove_dir(&to)?;
            std::fs::rename(&new, &to).map_err(StorageError::io("rename a standstill to", &to))?;
            frozen::sync_dir(&dir)
        })
        .await?;
        Ok(())
    }

    /// Writes the word that makes `sleep` the truth.
    async fn now_asleep(&mut self) -> Result<(), String> {
        let mut next = self.record.clone();
        next.state = NodeState::Suspended;
        next.trouble = None;
        self.ctx.faults.point("sleep: record").map_err(|error| chain(&error))?;
        if let Err(error) = next.save(&self.dir) {
            // It may have got to the disk all the same.
            self.save();
            return Err(chain(&error));
        }
        self.record = next;
        Ok(())
    }

    /// Removes standstills that are not what the record says. At worst they take space until the next time.
    pub(super) async fn drop_standstills(&self) {
        for dir in [SLEEP_NEW, SLEEP] {
            if let Err(error) = remove(&self.dir.join(dir)).await {
                tracing::warn!(%error, "what is left of a standstill stays behind");
            }
        }
    }

    /// Lets a VM that stands still, or was about to, go on.
    pub(super) async fn carry_on(&mut self, booted: Booted) -> Stage {
        if self.ctx.driver.capabilities().saving_ends_link {
            return self.link_anew(booted, "its link ended when it was saved".to_owned()).await;
        }
        match self.go_on(&booted).await {
            Ok(()) => Stage::Awake(booted),
            Err(error) => self.relink(booted, format!("it does not go on: {}", chain(&error))).await,
        }
    }

    async fn go_on(&self, booted: &Booted) -> Result<(), BootError> {
        booted.vm.resume().await?;
        let (plan, late) = (self.plan(), GuestError::Late(RELINK_TIMEOUT));
        let configure = plan.configure(&booted.link, &booted.runtime);
        tokio::time::timeout(RELINK_TIMEOUT, configure).await.unwrap_or(Err(late.into()))
    }

    /// A new node process finds it asleep: what is left of a VM is no use, since nobody was told that it runs.
    pub(super) async fn adopt_asleep(&mut self) -> Stage {
        if let Err(error) = remove(&self.dir.join(SLEEP_NEW)).await {
            tracing::warn!(%error, "what is left of a standstill stays behind");
        }
        self.vm_left = true;
        self.give_back(None).await;
        Stage::Asleep(None)
    }

    /// Sleeps until somebody wants it.
    pub(super) async fn asleep(&mut self, mut resident: Option<Booted>) -> Stage {
        if !self.wakers.is_empty() && self.record.spec.settings.auto_resume {
            return self.wake(resident).await;
        }
        self.stop_holding_back();
        self.publish(NodeState::Suspended, None);
        self.answer_wakers(&Err(NotAwake::Disabled));
        let mut pause = UNDO_PAUSE.0;
        let mut until = pin!(tokio::time::sleep(if resident.is_some() { self.ctx.resident } else { pause }));
        loop {
            let vm = resident.as_ref().map(|booted| booted.vm.clone());
            let exit = async {
                match &vm {
                    Some(vm) => vm.wait().await,
                    None => std::future::pending().await,
                }
            };
            let holds = resident.is_some() || self.vm_left;
            let work = tokio::select! {
                biased;
                _ = exit => Work::Release,
                work = self.next_work() => work,
                () = &mut until, if holds => Work::Release,
            };
            // Whoever holds it is in the way of the next who drives it.
            drop(vm);
            match work {
                Work::Nothing | Work::Tell(_) | Work::Idle(_) => {}
                Work::Settings => self.republish(),
                Work::Release => {
                    self.give_back(resident.take()).await;
                    until.as_mut().reset(Instant::now() + pause);
                    pause = (pause * 2).min(UNDO_PAUSE.1);
                }
                Work::End(ending) => return Stage::Over(ending),
                // It may have been asked for while it was shown as awake.
                Work::Suspend => self.publish(NodeState::Suspended, None),
                Work::Wake(reply) if !self.record.spec.settings.auto_resume => {
                    let _ = reply.send(Err(NotAwake::Disabled));
                }
                Work::Wake(reply) => {
                    self.wakers.push(reply);
                    return self.wake(resident).await;
                }
                Work::Resume => return self.wake(resident).await,
                Work::Rollback(id) => return self.rollback(resident, id).await,
                work @ (Work::Snapshot(..) | Work::Copy(_)) => {
                    self.refuse(work, "the sandbox is asleep: resume it first");
                }
            }
        }
    }

    /// Gives the host its memory back: ends the VM process, which is only a short cut.
    pub(super) async fn give_back(&mut self, resident: Option<Booted>) {
        let ended = match resident {
            // Its own control connection: there may be others that hold it, and a second one would wait for them.
            Some(booted) => {
                let ended = self.end_resident(booted).await;
                self.vm_left = ended.is_err();
                ended
            }
            None if self.vm_left => self.end_left().await,
            None => Ok(()),
        };
        if let Err(error) = ended {
            // Nothing is lost, and it is tried again.
            tracing::warn!(sandbox = self.record.sandbox_id, error = chain(&error), "a VM process stays behind");
        }
    }

    async fn end_resident(&self, booted: Booted) -> Result<(), BootError> {
        booted.vm.kill().await?;
        self.note_blocked(&booted).await;
        drop(booted);
        let (ctx, dir) = (self.ctx.clone(), self.dir.clone());
        Ok(blocking(move || network::unplug(&ctx.network, &dir)).await?)
    }

    async fn end_left(&mut self) -> Result<(), BootError> {
        end_vm(&self.ctx, &self.dir).await?;
        self.vm_left = false;
        Ok(())
    }

    /// Wakes it. Where that fails it is asleep as before, with the reason in the record, or over.
    pub(super) async fn wake(&mut self, resident: Option<Booted>) -> Stage {
        let begun = Instant::now();
        self.publish(NodeState::Resuming, None);
        let booted = match resident {
            Some(booted) => self.wake_resident(booted).await,
            None => self.wake_from_disk().await,
        };
        let booted = match booted {
            Ok(booted) => booted,
            Err(stage) => return stage,
        };
        if let Err(why) = self.now_awake() {
            // Nobody was told that it runs, so it may still be taken back.
            self.give_back(Some(booted)).await;
            return self.stay_asleep(&why);
        }
        self.activity.touch();
        self.note(level::INFO, &format!("resumed in {} ms", begun.elapsed().as_millis()));
        self.put_away(SLEEP).await;
        Stage::Awake(booted)
    }

    /// Writes the word that makes the VM process the truth.
    fn now_awake(&mut self) -> Result<(), String> {
        self.ctx.faults.point("wake: record").map_err(|error| chain(&error))?;
        let mut next = self.record.clone();
        next.state = NodeState::Running;
        next.trouble = None;
        if let Err(error) = next.save(&self.dir) {
            // It may have got to the disk all the same.
            self.save();
            return Err(chain(&error));
        }
        self.record = next;
        Ok(())
    }

    fn stay_asleep(&mut self, why: &str) -> Stage {
        self.trouble("cannot be resumed", why);
        self.answer_wakers(&Err(NotAwake::Failed(why.to_owned())));
        Stage::Asleep(None)
    }

    /// Removes what it slept in. That takes time, and its name may be needed at once.
    pub(super) async fn put_away(&self, name: &str) {
        let (from, to) = (self.dir.join(name), self.ctx.storage.slept(&belljar_api::id::new_id()));
        let ctx = self.ctx.clone();
        let away = blocking({
            let to = to.clone();
            move || {
                ctx.faults.point("sleep: put away")?;
                match std::fs::rename(&from, &to) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                    other => other.map_err(StorageError::io("rename a standstill to", &to)),
                }
            }
        });
        if let Err(error) = away.await {
            // It is replaced when the sandbox sleeps again.
            return tracing::warn!(%error, "what a sandbox slept in stays behind");
        }
        self.ctx.spawn(async move {
            if let Err(error) = remove(&to).await {
                tracing::warn!(%error, "what a sandbox slept in stays behind");
            }
        });
    }

    async fn wake_resident(&mut self, mut booted: Booted) -> Result<Booted, Stage> {
        // It may have been changed while it slept.
        let gone_on = match self.apply_network(&mut booted).await {
            Ok(()) => self.go_on(&booted).await.map_err(|error| chain(&error)),
            Err(ending) => Err(ending.detail),
        };
        match gone_on {
            Ok(()) => Ok(booted),
            Err(why) => {
                // What is on disk is as good.
                self.note(level::WARN, &format!("its VM does not go on, so it is restored: {why}"));
                self.give_back(Some(booted)).await;
                self.wake_from_disk().await
            }
        }
    }

    async fn wake_from_disk(&mut self) -> Result<Booted, Stage> {
        // A VM process that is still there has the run directory.
        if let Err(error) = self.end_left().await {
            self.vm_left = true;
            return Err(self.stay_asleep(&chain(&error)));
        }
        // Another number than the memory that is about to go on ever saw: its connections are dead.
        self.record.life = rand::random();
        self.last_snapshot = None;
        pressure::make_room(&self.ctx, self.record.spec.resources.memory_mb);
        let (plan, sleep, runtime) = (self.plan(), self.dir.join(SLEEP), self.runtime());
        let revived = async move {
            let _starting = plan.ctx.calm.disturb();
            plan.revive(&sleep, runtime).await
        };
        let revived = self.unless_ended(revived).await;
        match revived {
            Err(ending) => Err(Stage::Over(ending)),
            Ok(Ok(booted)) => Ok(booted),
            Ok(Err(error)) => {
                self.vm_left = true;
                self.give_back(None).await;
                Err(self.stay_asleep(&chain(&error)))
            }
        }
    }
}

async fn remove(dir: &Path) -> Result<(), StorageError> {
    let dir = dir.to_owned();
    blocking(move || crate::storage::remove_dir(&dir)).await
}
