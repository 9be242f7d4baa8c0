//! The vendor's published Python SDK drives the server, unmodified.

use belljar_tests::{
    World,
    python::{python, run},
    world::own_store,
};

/// Runs areas of the smoke script; every step has to pass.
fn check(areas: &[&str]) {
    check_in(&World::start(), areas);
}

fn check_in(world: &World, areas: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/smoke.py");
    let text = run(python(world).arg(script).args(areas));
    assert!(text.trim_end().ends_with(", 0 failed"), "{text}");
}

#[test]
fn basics() {
    check(&["basic"]);
}

#[test]
fn terminals() {
    check(&["pty"]);
}

#[test]
fn ports() {
    check(&["ports"]);
}

#[test]
fn sleep() {
    check(&["sleep"]);
}

#[test]
fn fork() {
    check(&["fork"]);
}

#[test]
fn build() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    check_in(&World::start_with(&[own_store(dir.path())]), &["build"]);
}
