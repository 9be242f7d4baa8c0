//! Managed processes: a supervisor that restarts, asks for health, and stops in order.
//!
//! ```text
//!            ┌──────────── pause over, or POST restart ◄───────────┐
//!            ▼                                                     │
//! start ─► running ─(ended, or unhealthy and stopped)─► policy ─► backing_off
//!            ▲                                            │
//!            └──────────── POST restart ◄───────────── stopped
//!
//! DELETE, in any state: stop the process, leave the list, end the task.
//! ```
//!
//! One task owns one supervisor ([`Supervisor::supervise`]); handlers only send it [`Order`]s. What it decides after an
//! end is a pure function ([`next_start`]).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use belljar_api::process::{HealthCheck, HealthStatus, LastExit, ManagedInfo, ManagedStatus, Restart, RestartPolicy};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use crate::{
    health,
    limits::{BACKOFF_MIN, MANAGED_NAME_MAX, ORDERS_MAX, STOP_GRACE},
    process::{End, Plan, Process, StartError, Table},
    random,
    reaper::Exit,
    sync::{lock, now_ms},
};

/// What makes a process managed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) name: Option<String>,
    pub(crate) restart: Restart,
    pub(crate) health_check: Option<HealthCheck>,
}

/// Why no supervisor was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManagedError {
    #[error(
        "name: `{0}` cannot be used; a name is 1 to {MANAGED_NAME_MAX} characters, has no `/` and is not all digits"
    )]
    Name(String),
    #[error("health_check.path: `{0}` cannot be used; it starts with `/` and has no space")]
    HealthPath(String),
    #[error("name: a managed process named `{0}` is there already; delete it first or take another name")]
    NameInUse(String),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Rules {
    fn check(&self) -> Result<(), ManagedError> {
        if let Some(name) = &self.name
            && (name.is_empty()
                || name.chars().count() > MANAGED_NAME_MAX
                || name.contains('/')
                || name.chars().any(char::is_control)
                || name.bytes().all(|byte| byte.is_ascii_digit()))
        {
            return Err(ManagedError::Name(name.clone()));
        }
        match self.health_check.as_ref().and_then(|check| check.path.as_ref()) {
            Some(path) if !path.starts_with('/') || path.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                Err(ManagedError::HealthPath(path.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// A supervisor, as others see it.
pub(crate) struct Managed {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    rules: Rules,
    state: Mutex<State>,
    orders: mpsc::Sender<Order>,
}

#[derive(Debug, Clone)]
struct State {
    status: ManagedStatus,
    restarts: u32,
    health: HealthStatus,
    health_failures: u32,
    last_exit: Option<LastExit>,
    last_error: Option<String>,
    next_restart_at: Option<i64>,
}

enum Order {
    /// Stop for good and leave the list.
    Delete(oneshot::Sender<()>),
    /// Stop if it runs, and start again.
    Restart(oneshot::Sender<Result<Arc<Process>, StartError>>),
}

impl Managed {
    /// As the API shows it.
    pub(crate) fn info(&self) -> ManagedInfo {
        let state = lock(&self.state).clone();
        ManagedInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            status: state.status,
            restart_count: state.restarts,
            restart: self.rules.restart.clone(),
            health_check: self.rules.health_check.clone(),
            health_status: state.health,
            consecutive_health_failures: state.health_failures,
            last_exit: state.last_exit,
            last_error: state.last_error,
            next_restart_at: state.next_restart_at,
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        lock(&self.state).status == ManagedStatus::Stopped
    }

    /// Stops it for good; returns when it is gone.
    pub(crate) async fn delete(&self) {
        let (done, gone) = oneshot::channel();
        if self.orders.send(Order::Delete(done)).await.is_ok() {
            // An error means that the supervisor ended on another's order: as good.
            let _ = gone.await;
        }
    }

    /// As [`Managed::delete`], for a stopped one and without waiting.
    pub(crate) fn dismiss(&self) {
        let _ = self.orders.try_send(Order::Delete(oneshot::channel().0));
    }

    /// Stops it if it runs and starts it again; `None` when it was deleted meanwhile.
    pub(crate) async fn restart(&self) -> Option<Result<Arc<Process>, StartError>> {
        let (done, started) = oneshot::channel();
        self.orders.send(Order::Restart(done)).await.ok()?;
        started.await.ok()
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
    }
}

/// Starts a managed process. The first start is made at once: what cannot be started is refused, not supervised.
pub(crate) fn start(table: &Arc<Table>, plan: Plan, rules: Rules) -> Result<Arc<Process>, ManagedError> {
    rules.check()?;
    // From the look at the name to the entry into the table nobody else may come in between.
    let _naming = lock(&table.naming);
    if let Some(name) = &rules.name
        && let Some(other) = table.find(name).and_then(|process| process.managed.clone())
    {
        if !other.is_stopped() {
            return Err(ManagedError::NameInUse(name.clone()));
        }
        table.forget(&other);
        other.dismiss();
    }
    let (orders, inbox) = mpsc::channel(ORDERS_MAX);
    let state = State {
        status: ManagedStatus::Starting,
        restarts: 0,
        health: health_at_start(&rules),
        health_failures: 0,
        last_exit: None,
        last_error: None,
        next_restart_at: None,
    };
    let (id, name) = (random::hex::<8>(), rules.name.clone());
    let managed = Arc::new(Managed { id, name, rules, state: Mutex::new(state), orders });
    let process = table.start(&plan, table.new_output(), Some(Arc::clone(&managed)))?;
    managed.update(|state| state.status = ManagedStatus::Running);
    let supervisor = Supervisor {
        table: Arc::clone(table),
        managed,
        plan,
        process: Arc::clone(&process),
        inbox,
        start_failed: false,
    };
    tokio::spawn(supervisor.supervise());
    Ok(process)
}

fn health_at_start(rules: &Rules) -> HealthStatus {
    match rules.health_check {
        Some(_) => HealthStatus::Starting,
        None => HealthStatus::Disabled,
    }
}

struct Supervisor {
    table: Arc<Table>,
    managed: Arc<Managed>,
    plan: Plan,
    /// The life it is in, or the last.
    process: Arc<Process>,
    inbox: mpsc::Receiver<Order>,
    /// The last start failed: there is no life to wait for.
    start_failed: bool,
}

/// What ended a wait.
enum Event {
    Ended(End),
    Unhealthy,
    Ordered(Option<Order>),
    PauseOver,
}

impl Supervisor {
    async fn supervise(mut self) {
        // Failures in a row, for the pause; a life longer than the longest pause starts a new row.
        let mut streak = 0;
        let mut started = Instant::now();
        loop {
            let event = self.life().await;
            if started.elapsed() > Duration::from_millis(self.managed.rules.restart.max_backoff_ms) {
                streak = 0;
            }
            let event = match self.pause_after(event, &mut streak).await {
                Some(event) => event,
                None => return,
            };
            let reply = match event {
                Event::Ordered(Some(Order::Restart(reply))) => Some(reply),
                _ => None,
            };
            // A start that is refused only because everything stands still is no failure.
            self.table.reaper.released().await;
            started = Instant::now();
            self.start_again(reply);
        }
    }

    /// Waits until the running process needs a decision. One that could not be started needs it at once.
    async fn life(&mut self) -> Event {
        tokio::select! {
            end = self.process.ended() => Event::Ended(end),
            order = self.inbox.recv() => Event::Ordered(order),
            () = until_unhealthy(&self.managed) => Event::Unhealthy,
        }
    }

    /// Goes from the end of one life to the moment of the next; `None` when there is none because it was deleted.
    async fn pause_after(&mut self, event: Event, streak: &mut u32) -> Option<Event> {
        let failed = match event {
            Event::Ended(end) => self.start_failed || end.exit != Exit::Code(0),
            Event::Unhealthy | Event::PauseOver => true,
            Event::Ordered(Some(Order::Restart(_))) => {
                self.stop().await;
                return Some(event);
            }
            Event::Ordered(order) => {
                self.delete(order).await;
                return None;
            }
        };
        self.stop().await;
        let restarts = lock(&self.managed.state).restarts;
        let event = match next_start(&self.managed.rules.restart, failed, restarts, *streak) {
            Some(pause) => {
                *streak = streak.saturating_add(1);
                self.back_off(pause).await
            }
            None => self.rest().await,
        };
        if let Event::Ordered(Some(Order::Delete(_)) | None) = &event {
            let Event::Ordered(order) = event else { return None };
            self.delete(order).await;
            return None;
        }
        Some(event)
    }

    async fn back_off(&mut self, pause: Duration) -> Event {
        let millis = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX);
        self.managed.update(|state| {
            state.status = ManagedStatus::BackingOff;
            state.next_restart_at = Some(now_ms().saturating_add(millis));
        });
        tokio::select! {
            () = sleep(pause) => Event::PauseOver,
            order = self.inbox.recv() => Event::Ordered(order),
        }
    }

    async fn rest(&mut self) -> Event {
        self.managed.update(|state| state.status = ManagedStatus::Stopped);
        self.process.output.set_finished(true);
        Event::Ordered(self.inbox.recv().await)
    }

    fn start_again(&mut self, reply: Option<oneshot::Sender<Result<Arc<Process>, StartError>>>) {
        self.managed.update(|state| {
            state.status = ManagedStatus::Starting;
            state.restarts = state.restarts.saturating_add(1);
            state.health = health_at_start(&self.managed.rules);
            state.health_failures = 0;
            state.next_restart_at = None;
        });
        let output = Arc::clone(&self.process.output);
        output.set_finished(false);
        let started = self.table.start(&self.plan, output, Some(Arc::clone(&self.managed)));
        self.start_failed = started.is_err();
        match &started {
            Ok(process) => {
                self.process = Arc::clone(process);
                self.managed.update(|state| {
                    state.status = ManagedStatus::Running;
                    state.last_error = None;
                });
            }
            // The old process has ended, so the next turn of the loop treats this as one more failed life.
            Err(error) => self.managed.update(|state| state.last_error = Some(error.to_string())),
        }
        if let Some(reply) = reply {
            let _ = reply.send(started);
        }
    }

    /// SIGTERM, patience, SIGKILL; and whatever outlived the process itself.
    async fn stop(&mut self) {
        let reaper = &self.table.reaper;
        if self.process.end().is_none() {
            if let Err(error) = self.process.signal(reaper, libc::SIGTERM) {
                tracing::warn!("process {}: {error}", self.process.pid);
            }
            if timeout(STOP_GRACE, self.process.ended()).await.is_err() {
                self.process.kill(reaper);
            }
        }
        let end = self.process.ended().await;
        self.process.kill(reaper);
        let (exit_code, signal) = (end.exit_code(), end.signal());
        let last = LastExit { exit_code, signal, oom_killed: end.oom_killed, ended_at: end.at };
        self.managed.update(|state| state.last_exit = Some(last));
    }

    async fn delete(&mut self, order: Option<Order>) {
        self.stop().await;
        self.managed.update(|state| state.status = ManagedStatus::Stopped);
        self.process.output.set_finished(true);
        self.table.forget(&self.managed);
        if let Some(Order::Delete(done)) = order {
            let _ = done.send(());
        }
    }
}

/// Asks for health until a restart is due; for ever where there is no check, or where the policy is not to restart.
async fn until_unhealthy(managed: &Managed) {
    let Some(check) = &managed.rules.health_check else { return std::future::pending().await };
    sleep(Duration::from_millis(check.initial_delay_ms)).await;
    loop {
        let healthy = health::probe(check).await;
        let mut is_due = false;
        managed.update(|state| {
            state.health_failures = if healthy { 0 } else { state.health_failures.saturating_add(1) };
            is_due = state.health_failures >= check.failure_threshold.max(1);
            state.health = match state.health {
                _ if healthy => HealthStatus::Healthy,
                _ if is_due => HealthStatus::Unhealthy,
                other => other,
            };
        });
        if is_due && managed.rules.restart.policy != RestartPolicy::Never {
            return;
        }
        sleep(Duration::from_millis(check.interval_ms).max(BACKOFF_MIN)).await;
    }
}

/// How long to wait before the next start after an end; `None` is not at all.
fn next_start(rule: &Restart, failed: bool, restarts: u32, streak: u32) -> Option<Duration> {
    let wanted = match rule.policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => failed,
        RestartPolicy::Always => true,
    };
    if !wanted || rule.max_restarts.is_some_and(|most| restarts >= most) {
        return None;
    }
    let doubled = rule.initial_backoff_ms.saturating_mul(1_u64.checked_shl(streak).unwrap_or(u64::MAX));
    Some(Duration::from_millis(doubled.min(rule.max_backoff_ms)).max(BACKOFF_MIN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(policy: RestartPolicy, failed: bool, restarts: u32, streak: u32, expected_ms: Option<u64>) {
        let rule = Restart { policy, max_restarts: Some(100), ..Restart::default() };
        assert_eq!(next_start(&rule, failed, restarts, streak), expected_ms.map(Duration::from_millis));
    }

    #[test]
    fn the_policy_decides_and_the_pause_doubles() {
        check(RestartPolicy::Never, true, 0, 0, None);
        check(RestartPolicy::OnFailure, false, 0, 0, None);
        check(RestartPolicy::OnFailure, true, 0, 0, Some(500));
        check(RestartPolicy::Always, false, 1, 1, Some(1000));
        check(RestartPolicy::Always, true, 5, 5, Some(16_000));
        check(RestartPolicy::Always, true, 6, 6, Some(30_000));
        check(RestartPolicy::Always, true, 99, 200, Some(30_000));
        check(RestartPolicy::Always, true, 100, 0, None);
    }

    proptest! {
        #[test]
        fn the_pause_never_shrinks_and_never_exceeds_its_limit(initial in 0u64..100_000, most in 10u64..100_000, streak in 0u32..80) {
            let rule = Restart { policy: RestartPolicy::Always, max_restarts: None, initial_backoff_ms: initial, max_backoff_ms: most };
            let pause = |streak| next_start(&rule, true, 0, streak).expect("always");
            prop_assert!(pause(streak) <= pause(streak + 1));
            prop_assert!(pause(streak) <= Duration::from_millis(most));
        }
    }

    #[test]
    fn names_that_look_like_pids_or_paths_are_refused() {
        for (name, fits) in
            [("web", true), ("12a", true), ("ä b", true), ("", false), ("12", false), ("a/b", false), ("a\n", false)]
        {
            let rules = Rules { name: Some(name.to_owned()), ..Rules::default() };
            assert_eq!(rules.check().is_ok(), fits, "{name:?}");
        }
    }
}
