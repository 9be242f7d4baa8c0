//! Control groups: limits of processor time, memory, processes and writing to a disk, and whether the kernel ended a process for want of memory.
//!
//! Version 2 where its controllers are, else version 1. Each VM process has a group of its own, `belljar/vm-PID`, made by its
//! launcher. Format: the kernel's `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/`.

use super::plan::Group;
use crate::driver::DiskLimits;
use crate::limits::GROUP_PATIENCE;
use rustix::fs::{major, minor};
use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const MOUNTS: &str = "/proc/self/mountinfo";
/// Above the groups of VM processes.
const OURS: &str = "belljar";
/// Microseconds in which processor time is accounted for.
const PERIOD: u64 = 100_000;

/// The controllers that can be used here, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Controllers {
    /// The parent of our groups in version 2, and the controllers that it has.
    v2: Option<(PathBuf, Vec<String>)>,
    /// Controllers of version 1: name and the parent of our groups.
    v1: Vec<(String, PathBuf)>,
}

/// What a VM process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Processors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub threads: u64,
    /// What it writes to its disk, where that is limited.
    pub writes: Option<Writes>,
}

/// What a VM process may write to a device in a second. What it reads is not limited: its guest's memory comes from the same
/// device, and a guest is kept from reading too much by its VM program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Writes {
    /// Its numbers.
    device: (u32, u32),
    limits: DiskLimits,
}

impl Writes {
    /// Those of a disk's file. `None` where nothing is limited, or where the kernel has no device for the file system.
    pub(crate) fn of(disk: &Path, limits: DiskLimits) -> Option<Self> {
        let dev = fs::metadata(disk).ok().filter(|_| limits != DiskLimits::default())?.dev();
        let place = Path::new("/sys/dev/block").join(format!("{}:{}", major(dev), minor(dev))).canonicalize().ok()?;
        // A partition is limited with its whole.
        let whole = if place.join("partition").exists() { place.parent()? } else { &place };
        let numbers = fs::read_to_string(whole.join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some(Self { device: (major.parse().ok()?, minor.parse().ok()?), limits })
    }

    fn device(self) -> String {
        format!("{}:{}", self.device.0, self.device.1)
    }
}

const WANTED: [&str; 4] = ["cpu", "memory", "pids", IO];
/// As version 2 calls it, and as version 1 does.
const IO: &str = "io";
const BLKIO: &str = "blkio";

impl Controllers {
    /// Finds them, and makes the groups that ours are below. Those that cannot be used are left out: see its words.
    #[must_use]
    pub fn find() -> Self {
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        let mut found = Self::default();
        for (kind, options, point) in mounts.lines().filter_map(parse_mount) {
            match kind {
                "cgroup2" if found.v2.is_none() => found.v2 = open_v2(&point),
                "cgroup" => {
                    for name in WANTED {
                        let is_new = !found.v1.iter().any(|(known, _)| known == name);
                        let ours = point.join(OURS);
                        let wanted = if name == IO { BLKIO } else { name };
                        if is_new
                            && options.split(',').any(|option| option == wanted)
                            && fs::create_dir_all(&ours).is_ok()
                        {
                            found.v1.push((name.to_owned(), ours));
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some((_, names)) = &found.v2 {
            found.v1.retain(|(name, _)| !names.contains(name));
        }
        found
    }

    /// Names of the controllers that can be used.
    fn names(&self) -> Vec<&str> {
        let v2 = self.v2.iter().flat_map(|(_, names)| names.iter());
        v2.chain(self.v1.iter().map(|(name, _)| name)).map(String::as_str).collect()
    }

    /// Whether all that we want can be limited.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let names = self.names();
        WANTED.iter().all(|name| names.contains(name))
    }

    /// The groups of one VM process.
    pub(crate) fn groups(&self, shares: Shares) -> Vec<Group> {
        let v2 = self.v2.iter().filter(|(_, names)| !names.is_empty()).map(|(parent, names)| Group {
            parent: parent.clone(),
            settings: names.iter().flat_map(|name| settings_v2(name, shares)).collect(),
        });
        let v1 =
            self.v1.iter().map(|(name, parent)| Group { parent: parent.clone(), settings: settings_v1(name, shares) });
        v2.chain(v1.filter(|group| !group.settings.is_empty())).collect()
    }
}

/// Whether the kernel ended a process of these groups for want of memory.
pub(crate) fn were_out_of_memory(groups: &[PathBuf]) -> bool {
    let count = |file: &Path| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    groups.iter().any(|group| count(&group.join("memory.events")) + count(&group.join("memory.oom_control")) > 0)
}

/// Removes groups of a process that is gone, or about to be: then a thread waits for that. What is not there is fine.
pub(crate) fn remove(groups: &[PathBuf]) {
    let busy: Vec<_> = groups.iter().filter(|group| !try_remove(group)).cloned().collect();
    if !busy.is_empty() {
        thread::spawn(move || {
            // Version 1 tells nobody when a group has become empty.
            for pause in (0..GROUP_PATIENCE).map(|step| Duration::from_millis(1 << step)) {
                thread::sleep(pause);
                if busy.iter().all(|group| try_remove(group)) {
                    return;
                }
            }
            tracing::warn!(?busy, "control groups of a VM process stay behind");
        });
    }
}

/// Whether it is gone.
fn try_remove(group: &Path) -> bool {
    fs::remove_dir(group).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
}

impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[&str]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        let names = self.names();
        let missing: Vec<_> = WANTED.into_iter().filter(|name| !names.contains(name)).collect();
        write!(f, "control groups limit {}", list(&names))?;
        if missing.is_empty() { Ok(()) } else { write!(f, ", not {}", list(&missing)) }
    }
}

/// Name of a process's group.
pub(super) fn name(pid: u32) -> String {
    format!("vm-{pid}")
}

/// Kind, options and mount point of a line of `mountinfo`; see `proc(5)`.
fn parse_mount(line: &str) -> Option<(&str, &str, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    Some((kind, options, PathBuf::from(point)))
}

/// Has the controllers handed down to our parent group.
fn open_v2(root: &Path) -> Option<(PathBuf, Vec<String>)> {
    let ours = root.join(OURS);
    fs::create_dir_all(&ours).ok()?;
    for name in WANTED {
        // One that is not there cannot be handed down, which shows below.
        for group in [root, &ours] {
            drop(fs::write(group.join("cgroup.subtree_control"), format!("+{name}")));
        }
    }
    let handed = fs::read_to_string(ours.join("cgroup.subtree_control")).ok()?;
    let names: Vec<_> = handed.split_whitespace().filter(|name| WANTED.contains(name)).map(str::to_owned).collect();
    if names.is_empty() {
        // Another one has them.
        drop(fs::remove_dir(&ours));
        return None;
    }
    Some((ours, names))
}

fn quota(shares: Shares) -> u64 {
    PERIOD * u64::from(shares.processors)
}

fn settings_v2(controller: &str, shares: Shares) -> Vec<(String, String)> {
    let one = |file: &str, value: String| vec![(file.to_owned(), value)];
    match controller {
        "cpu" => one("cpu.max", format!("{} {PERIOD}", quota(shares))),
        "memory" => one("memory.max", shares.memory.to_string()),
        "pids" => one("pids.max", shares.threads.to_string()),
        IO => shares.writes.map_or_else(Vec::new, |writes| {
            let DiskLimits { bytes, requests } = writes.limits;
            let bytes = bytes.map(|bytes| format!(" wbps={bytes}")).unwrap_or_default();
            let requests = requests.map(|requests| format!(" wiops={requests}")).unwrap_or_default();
            one("io.max", format!("{}{bytes}{requests}", writes.device()))
        }),
        _ => Vec::new(),
    }
}

fn settings_v1(controller: &str, shares: Shares) -> Vec<(String, String)> {
    if let (IO, Some(writes)) = (controller, shares.writes) {
        let setting = |what: &str, limit: Option<NonZeroU64>| {
            limit.map(|limit| (format!("blkio.throttle.write_{what}_device"), format!("{} {limit}", writes.device())))
        };
        let DiskLimits { bytes, requests } = writes.limits;
        return [setting("bps", bytes), setting("iops", requests)].into_iter().flatten().collect();
    }
    let all: &[(&str, u64)] = match controller {
        "cpu" => &[("cpu.cfs_period_us", PERIOD), ("cpu.cfs_quota_us", quota(shares))],
        "memory" => &[("memory.limit_in_bytes", shares.memory)],
        "pids" => &[("pids.max", shares.threads)],
        _ => &[],
    };
    all.iter().map(|(file, value)| ((*file).to_owned(), value.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let check = |line: &str, expected: Option<(&str, &str, &str)>| {
            let expected = expected.map(|(kind, options, point)| (kind, options, PathBuf::from(point)));
            assert_eq!(parse_mount(line), expected, "{line}");
        };
        let v1 = "31 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";
        check(v1, Some(("cgroup", "rw,cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct")));
        check(
            "29 23 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate",
            Some(("cgroup2", "rw,nsdelegate", "/sys/fs/cgroup")),
        );
        check("", None);
        check("29 23 0:25 / /x rw", None);
    }

    #[test]
    fn limits_are_what_was_asked_for() {
        let shares = Shares { processors: 2, memory: 1 << 30, threads: 100, writes: None };
        let both = Controllers {
            v2: Some(("/two/belljar".into(), vec!["memory".into()])),
            v1: vec![("cpu".into(), "/cpu/belljar".into()), ("pids".into(), "/pids/belljar".into())],
        };
        let groups = both.groups(shares);
        let settings: Vec<_> = groups.iter().flat_map(|group| group.settings.clone()).collect();
        let expected = [
            ("memory.max", "1073741824"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "200000"),
            ("pids.max", "100"),
        ];
        assert_eq!(settings, expected.map(|(file, value)| (file.to_owned(), value.to_owned())));
        assert_eq!(both.to_string(), "control groups limit memory, cpu, pids, not io");
        let all =
            Controllers { v1: [both.v1.as_slice(), &[("io".into(), "/io/belljar".into())]].concat(), ..both.clone() };
        assert!(all.is_complete() && !both.is_complete() && !Controllers::default().is_complete());
        assert_eq!(all.groups(shares), groups, "where nothing is limited, nothing is made");
        assert_eq!(Controllers::default().to_string(), "control groups limit nothing, not cpu, memory, pids, io");
        let limits = DiskLimits { bytes: NonZeroU64::new(5 << 20), requests: NonZeroU64::new(7) };
        let shares = Shares { writes: Some(Writes { device: (8, 16), limits }), ..shares };
        assert_eq!(settings_v2("io", shares), [("io.max".to_owned(), "8:16 wbps=5242880 wiops=7".to_owned())]);
        let expected =
            [("blkio.throttle.write_bps_device", "8:16 5242880"), ("blkio.throttle.write_iops_device", "8:16 7")];
        assert_eq!(settings_v1("io", shares), expected.map(|(file, value)| (file.to_owned(), value.to_owned())));
        assert_eq!(settings_v2("cpu", shares), [("cpu.max".to_owned(), "200000 100000".to_owned())]);
    }
}
