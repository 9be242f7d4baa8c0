use super::*;
use crate::cloud_hypervisor::CloudHypervisor;
use crate::conformance::{IDLE, World};
use crate::firecracker::Firecracker;
use crate::jail::Jail;
use crate::jail::tests::jail;
use std::io::{Read, Write};

/// What makes this test program one with an API: libtest takes the words as names of tests that are not to run. The word behind
/// it is what it answers.
const AS_PROGRAM: &str = "as-a-program-with-an-api";

/// Not a test: a VM program that behaves badly.
#[test]
fn program() {
    let mut words = std::env::args().skip_while(|word| word != AS_PROGRAM);
    if words.next().is_none() {
        return;
    }
    let answer = words.nth(1).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(API).unwrap();
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        // Whoever only looks whether somebody listens says nothing.
        if connection.read(&mut [0; 65536]).unwrap() == 0 {
            continue;
        }
        match answer.as_str() {
            "nothing" => std::mem::forget(connection),
            "nonsense" => connection.write_all(b"not HTTP at all\r\n\r\n").unwrap(),
            "no" => connection
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 26\r\n\r\n{\"fault_message\": \"I won't\"}")
                .unwrap(),
            "its end" => return,
            other => panic!("{other}"),
        }
    }
}

/// How a launch fails with a program that is a shell script.
async fn launch<A: Api>(world: &World, jail: Option<&Jail>, script: &str) -> VmmError {
    let program = Program { path: world.script(script), version: "1".into() };
    let driver = ApiDriver::<A> { limit: Duration::from_millis(1500), ..ApiDriver::new(program) };
    let spec = VmSpec { jail: jail.cloned(), ..world.spec(&IDLE) };
    let error = driver.launch(&spec).await.err().unwrap();
    world.assert_clean();
    error
}

async fn check<A: Api>(script: &str, expected: &str) {
    // In a jail, a script finds no program of this test's.
    let jails = if script.contains(AS_PROGRAM) { vec![None] } else { vec![None, jail()] };
    for jail in jails {
        let error = launch::<A>(&World::new(), jail.as_ref(), script).await;
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected), "{}: {script}: {text}", A::KIND);
    }
}

#[tokio::test]
async fn failing_launches_are_told_and_leave_nothing() {
    let answering = |answer: &str| {
        let program = std::env::current_exe().unwrap();
        let name = "api::tests::program --exact --test-threads=1";
        format!("exec '{}' {name} --skip {AS_PROGRAM} --skip '{answer}'", program.display())
    };
    for (script, expected) in [
        ("echo no such thing >&2; exit 3".to_owned(), "no such thing"),
        ("exit 3".to_owned(), "exit code 3"),
        ("exec sleep 1000".to_owned(), "was not ready within 1.5 s"),
        (answering("nothing"), "was not ready within 1.5 s"),
        (answering("its end"), "ended before the VM was ready"),
        (answering("no"), "I won't"),
    ] {
        check::<Firecracker>(&script, expected).await;
        check::<CloudHypervisor>(&script, expected).await;
    }
    check::<Firecracker>(&answering("nonsense"), "").await;
}

/// However far the launch got.
#[tokio::test]
async fn a_launch_that_nobody_waits_for_leaves_nothing() {
    for jail in [None, jail()] {
        // They are looked at when all were given up: a thread that was about to start one has done so by then.
        let worlds = [0, 1, 2, 5, 10, 20, 50, 100].map(|millis| (millis, World::new()));
        for (millis, world) in &worlds {
            let program = Program { path: world.script("exec sleep 1000"), version: "1".into() };
            let driver = ApiDriver::<Firecracker>::new(program);
            let spec = VmSpec { jail: jail.clone(), ..world.spec(&IDLE) };
            tokio::time::timeout(Duration::from_millis(*millis), driver.launch(&spec)).await.err().unwrap();
        }
        for (_, world) in &worlds {
            // A launcher's end is waited for by a thread of its own; what it started has the disk mounted.
            let is_its = |process: std::path::PathBuf| {
                let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
                std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == world.run_dir())
                    || mounts.contains(world.path("disk").to_str().unwrap())
            };
            let are_left = || std::fs::read_dir("/proc").unwrap().any(|entry| is_its(entry.unwrap().path()));
            while are_left() || !world.files().is_empty() {
                tokio::task::yield_now().await;
            }
            world.assert_clean();
        }
    }
}
