//! What a test may have left on the machine: processes, mounts, files.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait_while;

/// A process that has to do with a directory.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) name: String,
}

/// Processes whose working directory, arguments, open files or mounts lie in `dir`.
pub(crate) fn processes_of(dir: &Path) -> Vec<Process> {
    let own = std::process::id();
    let devices = devices_of(dir);
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let concerned = pids.filter(|&pid| u32::try_from(pid).is_ok_and(|pid| pid != own) && touches(pid, dir, &devices));
    concerned
        .map(|pid| Process {
            pid,
            name: fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned(),
        })
        .collect()
}

fn touches(pid: i32, dir: &Path, devices: &[String]) -> bool {
    let text = dir.display().to_string();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mounts = mounts_of_process(pid);
    String::from_utf8_lossy(&arguments).contains(&text)
        || mounts
            .iter()
            .any(|mount| mount.contains(&text) || devices.iter().any(|device| mount.split(' ').nth(2) == Some(device)))
        || cwd.is_ok_and(|cwd| cwd.starts_with(dir))
        || files.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.starts_with(dir))
}

/// The mounts of a process that has a namespace of them, as one that is jailed has.
fn mounts_of_process(pid: i32) -> Vec<String> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    if namespace(&pid.to_string()) == namespace("self") {
        return Vec::new();
    }
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    table.lines().map(str::to_owned).collect()
}

/// Numbers of the devices that are mounted below `dir`.
fn devices_of(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let below =
        table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(dir)));
    below.filter_map(|line| line.split(' ').nth(2).map(str::to_owned)).collect()
}

/// Mount points below `dir`.
fn mounts_of(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

/// Loop devices that are backed by a file below `dir`.
fn loops_of(dir: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let files = devices.filter_map(|it| fs::read_to_string(it.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file.trim()).starts_with(dir)).collect()
}

/// Numbers of networks that belong to the node of `dir`.
fn networks_of(dir: &Path) -> Vec<String> {
    let Ok(node_id) = fs::read_to_string(dir.join("data/node-id")) else { return Vec::new() };
    let claims = fs::read_dir("/run/belljar/networks").into_iter().flatten().flatten();
    let own = claims.filter(|it| fs::read_to_string(it.path()).is_ok_and(|owner| owner.contains(node_id.trim())));
    own.filter_map(|it| it.file_name().into_string().ok()).collect()
}

/// Everything that is left, in words.
pub(crate) fn find(dir: &Path) -> Vec<String> {
    let processes = processes_of(dir).into_iter().map(|it| format!("process {} {}", it.pid, it.name));
    let mounts = mounts_of(dir).into_iter().map(|it| format!("mount {it}"));
    let loops = loops_of(dir).into_iter().map(|it| format!("loop device on {it}"));
    let networks = networks_of(dir).into_iter().map(|it| format!("network {it}"));
    processes.chain(mounts).chain(loops).chain(networks).collect()
}

/// Ends and unmounts what is left, so that one failed test does not disturb the next.
pub(crate) fn clean(dir: &Path) {
    for process in processes_of(dir) {
        kill_and_wait(process.pid);
    }
    for point in mounts_of(dir) {
        let _ = Command::new("umount").arg(point).status();
    }
    for number in networks_of(dir) {
        let _ = Command::new("ip").args(["link", "delete", &format!("bjnet{number}")]).stderr(Stdio::null()).status();
        let namespace = format!("/run/belljar/netns/{number}");
        let _ = Command::new("umount").arg(&namespace).status();
        for file in [namespace, format!("/run/belljar/networks/{number}")] {
            let _ = fs::remove_file(file);
        }
    }
}

/// SIGKILL, and back when the process is gone.
pub(crate) fn kill_and_wait(pid: i32) {
    if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
        return;
    }
    // A zombie is gone for our purpose: it is its parent's to collect. But its other threads may still be on their way
    // out of the kernel, and hold its files and locks until then.
    let alive = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        stat.rsplit(") ").next().is_some_and(|rest| !(rest.is_empty() || rest.starts_with('Z') && threads <= 1))
    };
    wait_while(alive);
}
