//! Sandboxes outlive the server.

use belljar_tests::{World, wait_while};
use serde_json::json;

/// Runs `restart` in the middle of a sandbox's life; the sandbox must not notice.
fn check(restart: impl Fn(&World)) {
    let world = World::start();
    let sandbox = world.create(&json!({"name": "keeper"}));
    let boot_id = sandbox.boot_id();
    let counter = sandbox.start(
        &json!({"command": "sh", "args": ["-c", "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.1; done"]}),
    );
    let vms = world.vm_pids();

    restart(&world);

    assert_eq!(world.vm_pids(), vms, "the VM was replaced");
    assert_eq!(sandbox.boot_id(), boot_id);
    let before = sandbox.sh("cat /tmp/count");
    assert_ne!(sandbox.sh("sleep 0.5; cat /tmp/count"), before, "the process stands still");
    let info = sandbox.http().get(&format!("/api/v1/processes/{}", counter["pid"])).json;
    assert_eq!(info["status"], "running", "{info}");
    assert_eq!(world.info("keeper").json["status"], "running");
    assert_eq!(sandbox.delete()["termination_reason"], "user");
    world.wait_until_clean();
}

#[test]
fn a_sandbox_survives_a_restart_of_the_server() {
    check(|world| {
        world.down_keep();
        world.up();
    });
}

#[test]
fn a_sandbox_survives_kill_9_of_the_server() {
    check(|world| {
        world.kill_server();
        world.up();
    });
}

#[test]
fn a_vm_that_died_while_the_server_was_away_is_told() {
    let world = World::start();
    let sandbox = world.create(&json!({}));
    world.down_keep();
    for pid in world.vm_pids() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    world.up();
    assert_eq!(world.ended(&sandbox.id)["termination_reason"], "vmm_exited");
}

#[test]
fn two_servers_do_not_share_a_data_directory() {
    let world = World::start();
    let text = world.up_fails();
    assert!(text.contains("error:") && text.contains("in use"), "{text}");
    assert_eq!(world.http().get("/sandboxes").status, 200, "the first one still answers");
}

/// Kills the server a while after `order` was given, for many lengths of the while; what was acknowledged has to be there.
fn check_killed(order: &str, body: &serde_json::Value, acknowledged: impl Fn(&World, &belljar_tests::http::Answer)) {
    let world = World::start_with(&[("BELLJAR_RESIDENT_SECS", "1".to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    let boot_id = sandbox.boot_id();
    for round in 0..8_u64 {
        sandbox.sh(&format!("echo {round} | tee /dev/shm/memory > /workspace/disk"));
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let http = world.http();
                let ask = || http.post(&format!("/sandboxes/box/{order}"), body);
                // The server may go away in the middle of the answer.
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).ok()
            });
            std::thread::sleep(std::time::Duration::from_millis(round * 40));
            world.kill_server();
            asked.join().unwrap()
        });
        world.up();
        if let Some(answer) = answer.filter(|answer| answer.status < 300) {
            acknowledged(&world, &answer);
        }
        // An order that was not carried out before is now, when it may cut off what is running: this comes after it.
        wait_while(|| world.info("box").json["status"] == "suspending");
        world.resume("box");
        assert_eq!(sandbox.sh("cat /dev/shm/memory /workspace/disk"), format!("{round}\n{round}"), "round {round}");
        assert_eq!(sandbox.boot_id(), boot_id, "round {round}");
    }
    sandbox.delete();
    let sandboxes = world.http().get("/sandboxes").json;
    for other in sandboxes["sandboxes"].as_array().unwrap() {
        world.sandbox(other["id"].as_str().unwrap()).delete();
    }
    world.wait_until_clean();
    wait_while(|| !world.entries("passing").is_empty());
}

#[test]
fn kill_9_in_the_middle_of_falling_asleep_loses_nothing() {
    check_killed("suspend?wait_ms=20000", &json!({}), |world, answer| {
        if answer.status == 200 {
            assert_eq!(world.info("box").json["status"], "suspended", "it was acknowledged");
        }
    });
}

#[test]
fn kill_9_in_the_middle_of_a_snapshot_loses_nothing() {
    check_killed("snapshot", &json!({"snapshot_type": "memory"}), |world, answer| {
        let info = world.snapshot_settled(answer.json["snapshot_id"].as_str().unwrap());
        assert!(info["status"] == "completed" || info["status"] == "failed", "{info}");
    });
}

#[test]
fn kill_9_in_the_middle_of_a_copy_loses_nothing() {
    check_killed("copy?times=2", &json!({}), |world, answer| {
        for copy in answer.json["sandboxes"].as_array().unwrap() {
            assert_eq!(world.info(copy["sandbox_id"].as_str().unwrap()).json["status"], "running", "{answer:?}");
        }
    });
}

#[test]
fn a_sleeping_sandbox_survives_the_loss_of_everything_but_the_disk() {
    let world = World::start_with(&[("BELLJAR_RESIDENT_SECS", "3600".to_owned())]);
    let sandbox = world.create(&json!({"name": "box", "timeout_secs": 0}));
    let boot_id = sandbox.boot_id();
    world.suspend("box");
    // As a reboot of the host would: no process of ours is left, nothing is mounted.
    world.kill_server();
    for pid in world.vm_pids() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    wait_while(|| !world.vm_pids().is_empty());
    let volume = world.data().join("volume");
    if world.storage() == volume {
        // The kernel closes the files of an ended process a moment after it shows as ended.
        wait_while(|| !std::process::Command::new("umount").arg(&volume).status().unwrap().success());
    }
    world.up();
    assert_eq!(world.info("box").json["status"], "suspended");
    assert_eq!(sandbox.boot_id(), boot_id);
    sandbox.delete();
}
