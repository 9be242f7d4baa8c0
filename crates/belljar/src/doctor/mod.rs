//! What this machine can do, for `belljar doctor`: probed, not guessed. Nothing is changed, and nothing is left behind.
//!
//! It looks at what `up` would use with the same settings. [`machine`] asks the operating system.

mod machine;

use std::{error::Error, fs::File, io::Read, path::Path};

use belljar_image::{DEFAULT_IMAGE, Store};
use belljar_node::{Machine, check_gpus};
use belljar_server::{Standing, TlsSource, standings};
use belljar_vmm::{
    DriverKind,
    probe::{Kvm, Program, ProgramProblem, Programs},
};
use serde::Serialize;

use crate::settings::{SSH_HOST_KEY_FILE, Settings, UpSettings};

/// First bytes of an ELF file.
const ELF: [u8; 4] = [0x7f, b'E', b'L', b'F'];
/// First bytes of a cpio archive, as the kernel takes it.
const CPIO: [u8; 4] = *b"0707";

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// Something works less well, or not at all, but sandboxes run.
    Warn,
    /// Without it no sandbox runs.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub mark: Mark,
    /// What was found.
    pub detail: String,
    /// What a person can do about it.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, mark: Mark::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, mark: Mark::Warn, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, mark: Mark::Missing, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which a sandbox needs it.
    pub checks: Vec<Check>,
    /// Driver that `up` picks; null when none can.
    pub driver: Option<String>,
    /// Why that one.
    pub reason: String,
    /// How to get a better one.
    pub better: Option<String>,
    /// Whether a sandbox can run.
    pub can_run: bool,
}

/// Looks at everything. Takes some tens of milliseconds.
pub fn examine(settings: &Settings, up: &UpSettings) -> Report {
    let machine = Machine::probe(Some(&up.vmm_dir), up.network.kind);
    let choice = machine.choose(&up.driver);
    let mut checks = vec![kvm_check(&machine.kvm)];
    checks.extend(programs(&machine, choice.driver));
    checks.push(file("kernel", &up.kernel, ELF, "an ELF kernel", "kernel"));
    checks.push(file("initramfs", &up.initrd, CPIO, "a cpio archive", "guest"));
    checks.push(image(&up.image_store));
    checks.extend(gpus(up));
    checks.push(ssh(&settings.data_dir, up));
    checks.push(https(up));
    checks.extend(machine::checks(&settings.data_dir, up));
    let can_run = checks.iter().all(|check| check.mark != Mark::Missing);
    Report {
        checks,
        driver: choice.driver.map(|driver| driver.to_string()),
        reason: choice.reason,
        better: choice.better,
        can_run,
    }
}

/// Without one that can be used nothing runs; without one that would be better it runs less well.
fn programs(machine: &Machine, chosen: Option<DriverKind>) -> [Check; 3] {
    let Programs { firecracker, cloud_hypervisor, qemu } = &machine.programs;
    let check = |name, title: &str, found: &Result<Program, ProgramProblem>, is_needed: bool| match found {
        Ok(program) => Check::ok(name, format!("{title} {} ({})", program.version, program.path.display())),
        Err(problem) if chosen.is_none() => Check::missing(name, problem.to_string(), problem.remedy()),
        Err(problem) if is_needed => Check::warn(name, problem.to_string(), problem.remedy()),
        Err(problem) => Check::ok(name, format!("{problem}; not needed here")),
    };
    let usable = matches!(machine.kvm, Kvm::Usable { .. });
    let mut checks = [
        check("firecracker", "Firecracker", firecracker, usable),
        check("cloud_hypervisor", "Cloud Hypervisor", cloud_hypervisor, chosen == Some(DriverKind::CloudHypervisor)),
        check("qemu", "QEMU", qemu, matches!(chosen, None | Some(DriverKind::Qemu { .. } | DriverKind::Process))),
    ];
    // Without KVM, these are no way out; and one of them is enough.
    for (check, found) in checks.iter_mut().zip([firecracker, cloud_hypervisor]) {
        if chosen.is_none() && found.is_err() && (!usable || check.name == "cloud_hypervisor") {
            check.mark = Mark::Warn;
        }
    }
    checks
}

/// Those that sandboxes are to have.
fn gpus(up: &UpSettings) -> Option<Check> {
    if up.gpus.is_empty() {
        return None;
    }
    let names: Vec<_> = up.gpus.iter().map(ToString::to_string).collect();
    Some(match check_gpus(&up.gpus) {
        Ok(()) => Check::ok("gpus", format!("{}, vfio-pci's", names.join(", "))),
        Err(error) => {
            let remedy = error.source().map_or_else(|| "leave one of them out".to_owned(), ToString::to_string);
            Check::missing("gpus", error.to_string(), remedy)
        }
    })
}

fn kvm_check(kvm: &Kvm) -> Check {
    match kvm.remedy() {
        None => Check::ok("kvm", kvm.to_string()),
        Some(remedy) => Check::warn("kvm", kvm.to_string(), remedy),
    }
}

fn file(name: &'static str, path: &Path, magic: [u8; 4], kind: &str, task: &str) -> Check {
    let remedy = format!("cargo xtask {task}");
    let mut first = [0; 4];
    match File::open(path).and_then(|mut file| file.read_exact(&mut first)) {
        Ok(()) if first == magic => Check::ok(name, path.display().to_string()),
        Ok(()) => Check::missing(name, format!("{} is not {kind}", path.display()), remedy),
        Err(error) => Check::missing(name, format!("{}: {error}", path.display()), remedy),
    }
}

fn image(store: &Path) -> Check {
    let remedy = "belljar image build (as root)";
    // Opening a store makes it.
    if !store.is_dir() {
        return Check::missing("image", format!("{} does not exist", store.display()), remedy);
    }
    match Store::open(store).and_then(|store| store.lookup(DEFAULT_IMAGE)) {
        Ok(image) => match image.verify() {
            Ok(()) => Check::ok("image", format!("{DEFAULT_IMAGE} in {}", store.display())),
            Err(error) => Check::missing("image", error.to_string(), remedy),
        },
        Err(error) => Check::missing("image", error.to_string(), remedy),
    }
}

/// Where the certificates of HTTPS come from, and how those of an ACME server stand.
fn https(up: &UpSettings) -> Check {
    let acme = match up.tls.as_ref().map(|tls| &tls.source) {
        None => return Check::ok("https", "off"),
        Some(TlsSource::Files(files)) => return Check::ok("https", format!("with {}", files.certificate.display())),
        Some(TlsSource::Acme(acme)) => acme,
    };
    let standings = match standings(acme, up.ingress_domain.as_deref(), up.public_url.as_deref()) {
        Ok(standings) => standings,
        Err(error) => return Check::warn("https", error.to_string(), "`belljar up --acme=false` starts without ACME"),
    };
    let words = |(names, standing): &(String, Standing)| match standing {
        Standing::Absent => format!("no certificate for {names} yet"),
        Standing::Fresh { days } => format!("{names} for {days} days"),
        Standing::Overdue { days } => format!("{names} for {days} days, not renewed in time"),
    };
    let detail = format!("from {}: {}", acme.server, standings.iter().map(words).collect::<Vec<_>>().join("; "));
    if standings.iter().all(|(_, standing)| matches!(standing, Standing::Fresh { .. })) {
        Check::ok("https", detail)
    } else {
        Check::warn("https", detail, "`belljar up` orders it; when that fails its log says why")
    }
}

/// Where `up` listens for SSH, and what `ssh` will call it.
fn ssh(data_dir: &Path, up: &UpSettings) -> Check {
    let Some(address) = up.ssh_listen else { return Check::ok("ssh", "off") };
    match belljar_server::host_key_fingerprint(&data_dir.join(SSH_HOST_KEY_FILE)) {
        Ok(Some(fingerprint)) => Check::ok("ssh", format!("{address}, host key {fingerprint}")),
        Ok(None) => Check::ok("ssh", format!("{address}; `belljar up` makes a host key at its first start")),
        Err(error) => Check::warn("ssh", error.to_string(), "`belljar up --ssh-listen none` starts without SSH"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_first_bytes() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("vmlinux");
        let check = |content: &[u8], expected: Mark| {
            std::fs::write(&path, content).expect("write");
            assert_eq!(file("kernel", &path, ELF, "an ELF kernel", "kernel").mark, expected, "{content:?}");
        };
        check(b"\x7fELF rest", Mark::Ok);
        check(b"PK\x03\x04 rest", Mark::Missing);
        check(b"", Mark::Missing);
        assert_eq!(file("kernel", &dir.path().join("none"), ELF, "", "kernel").mark, Mark::Missing);
        let store = dir.path().join("store");
        assert_eq!(image(&store).mark, Mark::Missing);
        assert!(!store.exists(), "a look makes nothing");
    }
}
