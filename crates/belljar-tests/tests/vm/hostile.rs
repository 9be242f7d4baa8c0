//! Guests that misbehave: each ends with a reason, and its neighbour does not notice.

use std::os::unix::fs::MetadataExt;

use belljar_tests::World;
use serde_json::json;

/// Runs `script` as root in one sandbox; a neighbour must go on, and the first must end for `reason`.
fn check(script: &str, reason: &str) {
    let world = World::start();
    let neighbour = world.create(&json!({}));
    let sandbox = world.create(&json!({}));
    sandbox.start(&json!({"command": "sh", "args": ["-c", script], "user": "root"}));
    let ended = world.ended(&sandbox.id);
    assert_eq!(ended["termination_reason"], reason, "{ended}");
    assert_eq!(neighbour.sh("echo fine"), "fine");
    assert_eq!(world.vm_pids().len(), 1);
}

#[test]
fn a_guest_that_reboots_ends() {
    check("echo b > /proc/sysrq-trigger", "guest_shutdown");
}

#[test]
fn a_guest_that_panics_ends() {
    check("echo c > /proc/sysrq-trigger", "guest_shutdown");
}

#[test]
fn a_console_flood_costs_nothing() {
    let world = World::start();
    let neighbour = world.create(&json!({}));
    let sandbox = world.create(&json!({}));
    sandbox.start(
        &json!({"command": "sh", "args": ["-c", "yes flood > /dev/console"], "user": "root", "stdout_mode": "discard"}),
    );
    assert_eq!(neighbour.sh("sleep 3; echo fine"), "fine");
    assert_eq!(sandbox.sh("echo fine too"), "fine too");
    let bytes: u64 = walk(&world.data().join("volume/sandboxes")) + walk(&world.data().join("log"));
    assert!(bytes < 8 << 20, "{bytes} bytes of logs");
}

/// Bytes on disk of the files below `dir`; disks do not count, and holes take nothing.
fn walk(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => walk(&path),
            path if path.extension().is_some_and(|it| it == "ext4") => 0,
            path => std::fs::metadata(path).map_or(0, |it| it.blocks() * 512),
        })
        .sum()
}

#[test]
fn a_killed_vmm_is_told() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    let pid = world.vm_pids()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(world.ended(&sandbox.id)["termination_reason"], "vmm_exited");
}
