//! What users copy from works: every directory of `examples/` is run as its README says, and prints what it did when it
//! was written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use belljar_tests::{
    World,
    python::{python, run},
};
use serde_json::json;

/// A test for each example, named like its directory.
macro_rules! examples {
    ($($name:ident),*) => {
        const TRIED: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*
    };
}

examples!(agent_harness, build_and_test, coding_session, interpreter, service);

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The example's program, on its way to a World.
fn program(world: &World, name: &str) -> Command {
    let mut program = python(world);
    program.arg(examples().join(name).join("main.py"));
    program
}

#[track_caller]
fn check(name: &str) {
    let world = World::start();
    let printed = run(&mut program(&world, name));
    let expected = read(&examples().join(name).join("output.txt"));
    assert!(printed == expected, "{name} printed\n{printed}\nand not, as its output.txt says,\n{expected}");
    is_clean(&world);
}

/// Neither a sandbox nor a snapshot is there.
#[track_caller]
fn is_clean(world: &World) {
    assert_eq!(world.json(&["ls"])["sandboxes"], json!([]));
    assert_eq!(world.json(&["snapshot", "ls"])["snapshots"], json!([]));
}

/// Runs an example that has to fail; answers what it printed.
#[track_caller]
fn fails(name: &str, argument: &Path) -> String {
    let world = World::start();
    let output = program(&world, name).arg(argument).output().expect("Python starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    is_clean(&world);
    printed
}

#[test]
fn every_example_is_tried_and_listed() {
    let directories = fs::read_dir(examples()).unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = directories.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, TRIED, "give each directory of examples/ a test here");
    let readme = read(&examples().join("README.md"));
    for name in names {
        let row = format!("[{name}]({name}/main.py)");
        assert!(readme.contains(&row), "examples/README.md does not list {row}");
    }
}

#[test]
fn an_agent_harness_that_sees_other_results_fails() {
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("tool_calls.json");
    let call = r#"[{"id": "one", "name": "run_code", "arguments": {"code": "print(2)"}, "expect": "3"}]"#;
    fs::write(&recording, call).unwrap();
    let printed = fails("agent_harness", &recording);
    assert!(printed.ends_with("1 of 1 calls went differently\n"), "{printed}");
}

#[test]
fn a_job_with_a_test_that_fails_fails() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("build.sh"), "").unwrap();
    fs::create_dir(dir.path().join("tests")).unwrap();
    let body = "import unittest\nclass Test(unittest.TestCase):\n def test(self): self.assertEqual(1, ";
    for (name, one) in [("good", 1), ("bad", 2)] {
        fs::write(dir.path().join(format!("tests/test_{name}.py")), format!("{body}{one})\n")).unwrap();
    }
    let printed = fails("build_and_test", dir.path());
    assert!(printed.contains("AssertionError: 1 != 2"), "{printed}");
    assert!(printed.ends_with("1 of 2 shards failed\n"), "{printed}");
}
