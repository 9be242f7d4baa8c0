//! Sandboxes outlive the server.

use belljar_tests::World;
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
