//! Machines whose process 1 is systemd: hands them over to it, and is one of its services afterwards.
//!
//! ```text
//! process 1, from the initramfs: init ─► [`hand_over`]: the agent and its unit into /run ─► exec /sbin/init
//! systemd: belljar-agent.service, before all but the journal ─► the agent, as in any other machine
//!          ─(configured, or settling: [`go_ahead`])─► sysinit.target ─► every other service
//! ```
//!
//! The image knows nothing of it: what it lacks lies in `/run`, which is a new tmpfs at each boot. As a service the agent has
//! a cgroup that systemd has delegated to it; the processes that it starts are in there, and come and go without systemd.
//! What the sandbox is to be comes over the link, as ever, and the services wait for it: they have the right names, clock and
//! network from the beginning. Called by `init` and `system`.

use std::{
    convert::Infallible,
    fs,
    os::unix::{fs::symlink, net::UnixDatagram},
    path::Path,
};

use anyhow::Context;
use belljar_api::process::UserSpec;
use nix::{
    mount::{MsFlags, mount},
    unistd::execv,
};

use crate::{
    agent::Agent, identity::write_file, launch::Request, limits::SYSTEM_UP_MAX, settle::run_once, setup::warn,
};

/// The program that an image with systemd has as its process 1.
const INIT: &str = "/sbin/init";
/// Where the agent is found by its unit.
const AGENT: &str = "/run/belljar/agent";
/// Units of this boot; those of the image's administrator in `/etc` win.
const UNITS: &str = "/run/systemd/system";
/// Settings of systemd itself for this boot.
const SETTINGS: &str = "/run/systemd/system.conf.d/belljar.conf";

/// The agent's unit. It counts as started when systemd may go on. It is not stopped at a shutdown, but killed at its end, so that the
/// sandbox can be talked to until then. When it ends there is nothing left that the machine could be reached by. It speaks to the
/// console and not to the journal: that may stand still, and the agent must not wait for it.
const UNIT: &str = "\
[Unit]
Description=Belljar agent
DefaultDependencies=no
Before=sysinit.target
IgnoreOnIsolate=yes
RefuseManualStop=yes
SuccessAction=reboot-force
FailureAction=reboot-force

[Service]
Type=notify
TimeoutStartSec=infinity
ExecStart=/run/belljar/agent --service
Slice=-.slice
Delegate=yes
KillMode=process
OOMPolicy=continue
OOMScoreAdjust=-1000
TasksMax=infinity
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
";

/// What else a machine of ours needs: units and parts of units.
const PARTS: [(&str, &str); 2] = [
    // Nothing switches a machine off but its end, which the VMM notices at a restart.
    ("systemd-poweroff.service.d/belljar.conf", "[Unit]\nSuccessAction=reboot-force\n"),
    ("systemd-halt.service.d/belljar.conf", "[Unit]\nSuccessAction=reboot-force\n"),
];

/// Units that have no place here. Nobody sits at the console, and without udev systemd would wait for its device for a minute and a
/// half. The kernel has no modules. `/tmp` stays on the disk, where it was before systemd began: the agent serves files already. And
/// a sandbox is not an installation to be kept up to date: many of them would fetch package lists at once, when they wake.
const MASKED: [&str; 8] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "getty@.service",
    "modprobe@.service",
    "serial-getty@.service",
    "systemd-modules-load.service",
    "tmp.mount",
];

/// An end must not take long: what does not stop is killed.
const SETTINGS_TEXT: &str = "[Manager]\nDefaultTimeoutStopSec=10s\n";

/// Makes systemd process 1. The root file system is `/`, and `/run` is mounted.
pub(crate) fn hand_over() -> anyhow::Result<Infallible> {
    write(Path::new(AGENT), "")?;
    // The program itself lies in the initramfs, which no path leads to any more.
    mount(Some("/proc/self/exe"), AGENT, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind the agent to {AGENT}"))?;
    let units = Path::new(UNITS);
    write(&units.join("belljar-agent.service"), UNIT)?;
    for (path, text) in PARTS {
        write(&units.join(path), text)?;
    }
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    link("../belljar-agent.service", &units.join("sysinit.target.wants/belljar-agent.service"))?;
    write(Path::new(SETTINGS), SETTINGS_TEXT)?;
    let name = std::ffi::CString::new(INIT).context(INIT)?;
    execv(&name, &[&name]).with_context(|| format!("{INIT}: the image says that it has systemd"))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    write_file(path, text).with_context(|| path.display().to_string())
}

fn link(to: &str, path: &Path) -> anyhow::Result<()> {
    let linked = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| symlink(to, path));
    linked.with_context(|| path.display().to_string())
}

/// Lets systemd start the services. Said again, it changes nothing.
pub(crate) fn go_ahead() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    warn("notify systemd", UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path)).map(drop));
}

/// Waits until everything has started that starts with the machine, whether it could or not.
pub(crate) async fn up(agent: &Agent) {
    let request = Request {
        command: "systemctl".to_owned(),
        args: ["is-system-running", "--wait"].map(str::to_owned).to_vec(),
        // Who asks systemd itself, and not the bus, which is one of the things that are to start.
        user: Some(UserSpec::Ids { uid: 0, gid: Some(0) }),
        ..Request::default()
    };
    if let Err(error) = run_once(agent, request, SYSTEM_UP_MAX).await {
        tracing::info!("not waited for systemd: {error}");
    }
}
