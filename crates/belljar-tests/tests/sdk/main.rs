//! The vendor's published Python SDK drives the server, unmodified.

use std::{path::PathBuf, process::Command};

use belljar_tests::{World, world::own_store};

/// The version that the wire format was taken from.
const SDK: &str = "tensorlake==0.5.163";

/// A virtual environment with the SDK, made once per cache.
fn python() -> PathBuf {
    let cache = std::env::var_os("BELLJAR_CACHE").map(PathBuf::from);
    let cache =
        cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache/belljar"))).expect("a home directory");
    let venv = cache.join("venv").join(SDK);
    let python = venv.join("bin/python");
    let installed =
        Command::new(&python).args(["-c", "import tensorlake.sandbox"]).status().is_ok_and(|it| it.success());
    if !installed {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", SDK]));
    }
    python
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs areas of the smoke script; every step has to pass.
fn check(areas: &[&str]) {
    check_in(&World::start(), areas);
}

fn check_in(world: &World, areas: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/smoke.py");
    let text = run(Command::new(python())
        .arg(script)
        .args(areas)
        .env("TENSORLAKE_API_URL", format!("http://{}", world.address()))
        .env("TENSORLAKE_API_KEY", world.key()));
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
