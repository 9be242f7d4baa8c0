//! The image with systemd: the whole machine, Docker and Compose in it, and that they live through sleep, copies and restores.

use std::{fs, path::Path, process::Command};

use belljar_tests::{Sandbox, World, wait_while};
use serde_json::json;

const IMAGE: &str = "tensorlake/ubuntu-systemd";
/// Port of the composed services.
const PORT: u16 = 8080;

/// Two services of an image that has one program: the one in front asks the one behind it.
const COMPOSE: &str = r##"
services:
  back:
    image: tiny
    command: [sh, -c, "mkdir /srv; echo words from behind > /srv/index.html; exec httpd -f -p 80 -h /srv"]
  front:
    image: tiny
    depends_on: [back]
    ports: ["8080:80"]
    command:
      - sh
      - -c
      - |
        mkdir -p /www/cgi-bin
        printf '#!/bin/sh\necho\nwget -qO- http://back/\n' > /www/cgi-bin/ask
        chmod +x /www/cgi-bin/ask
        exec httpd -f -p 80 -h /www
"##;

/// An archive of a root file system with `busybox` alone.
fn tiny(dir: &Path) -> fs::File {
    let (root, archive) = (dir.join("root"), dir.join("root.tar"));
    fs::create_dir_all(root.join("bin")).unwrap();
    let script = "cp \"$(command -v busybox)\" \"$0/bin/busybox\" && cd \"$0\" && mkdir tmp etc \
                  && for it in sh cat chmod echo httpd mkdir printf sleep wget; do ln -s busybox bin/$it; done \
                  && tar --owner=0 --group=0 -cf \"$1\" .";
    let made = Command::new("sh").args(["-c", script]).args([&root, &archive]).status().unwrap();
    assert!(made.success());
    fs::File::open(archive).unwrap()
}

/// What the services say through the ingress.
#[track_caller]
fn check_services(sandbox: &Sandbox<'_>) {
    let page = sandbox.http().header("x-tensorlake-sandbox-port", &PORT.to_string()).get("/cgi-bin/ask");
    assert_eq!((page.status, page.bytes.as_slice()), (200, b"words from behind\n".as_slice()), "{page:?}");
}

/// When a unit was there, by the machine's own clock.
fn active_since(sandbox: &Sandbox<'_>, unit: &str) -> u64 {
    let text = sandbox.sh(&format!("systemctl show --value -p ActiveEnterTimestampMonotonic {unit}"));
    text.parse().unwrap_or_else(|_| panic!("{unit}: {text}"))
}

#[test]
fn systemd_runs_and_containers_live_through_sleep_copies_and_restores() {
    let world = World::start();
    let sandbox = world.create(&json!({"image": IMAGE, "name": "box", "timeout_secs": 0, "exposed_ports": [PORT]}));
    // What is written before all has started is there afterwards.
    assert_eq!(sandbox.sh("cat /proc/1/comm; echo early > /tmp/early"), "systemd");
    let up = sandbox.sh("sudo systemctl is-system-running --wait || systemctl --failed");
    assert_eq!(up, "running");
    assert_eq!(sandbox.sh("cat /tmp/early"), "early");
    assert!(active_since(&sandbox, "belljar-agent.service") < active_since(&sandbox, "multi-user.target"));
    assert!(sandbox.sh("journalctl -u docker -o cat").contains("API listen on"));

    let dir = tempfile::tempdir().unwrap();
    let put = sandbox.http().put("/api/v1/files?path=/tmp/tiny.tar", tiny(dir.path()));
    assert!(put.status < 300, "{put:?}");
    let put = sandbox.http().put("/api/v1/files?path=/workspace/compose.yaml", COMPOSE.as_bytes());
    assert!(put.status < 300, "{put:?}");
    sandbox.sh("docker import /tmp/tiny.tar tiny && docker save tiny > /tmp/saved.tar && docker rmi tiny && docker load < /tmp/saved.tar");
    assert_eq!(sandbox.sh("docker run --rm tiny cat /proc/1/comm"), "cat");
    sandbox.sh("cd /workspace && docker compose up --detach --quiet-pull 2>&1");
    check_services(&sandbox);

    let containers =
        "docker inspect -f '{{.Name}} {{.State.Running}} {{.State.Pid}} {{.State.StartedAt}}' $(docker ps -q)";
    let (running, boot_id) = (sandbox.sh(containers), sandbox.boot_id());
    assert_eq!(running.matches(" true ").count(), 2, "{running}");
    world.suspend("box");
    check_services(&sandbox);
    assert_eq!((sandbox.sh(containers), sandbox.boot_id()), (running.clone(), boot_id.clone()));
    assert_eq!(sandbox.sh("systemctl is-system-running; journalctl -n 1 -q -o cat | wc -l"), "running\n1");

    let copies = world.copy(&sandbox.id, 1);
    assert_eq!((copies[0].sh(containers), copies[0].boot_id()), (running, boot_id));
    check_services(&copies[0]);
    check_services(&sandbox);
    let identity = "cat /etc/machine-id; hostname";
    assert_ne!(copies[0].sh(identity), sandbox.sh(identity));
    // It ends as a machine does that is switched off.
    copies[0].start(&json!({"command": "sudo", "args": ["systemctl", "poweroff"]}));
    world.ended(&copies[0].id);

    // A boot from what is on the disk alone.
    let snapshot = world.snapshot(&sandbox.id, "filesystem");
    sandbox.delete();
    let restored = world.create(&json!({"snapshot_id": snapshot["id"]}));
    assert_eq!(restored.sh("cat /proc/1/comm; ls /workspace"), "systemd\ncompose.yaml");
    restored.delete();
    world.wait_until_clean();
}

#[test]
fn a_golden_snapshot_has_all_of_systemd_up() {
    let world = World::golden_with(&[("BELLJAR_SPARES", "1".to_owned())]);
    let kept = || world.entries("templates").iter().filter(|it| !it.ends_with(".building")).count();
    let first = world.create(&json!({"image": IMAGE}));
    wait_while(|| kept() < 2);
    first.delete();
    let sandboxes = [0; 2].map(|_| world.create(&json!({"image": IMAGE})));
    for sandbox in &sandboxes {
        assert_eq!(sandbox.sh("systemctl is-system-running; docker ps -q"), "running");
    }
    let [one, other] = &sandboxes;
    assert_eq!(one.boot_id(), other.boot_id(), "both are restored");
    assert_ne!(one.sh("cat /etc/machine-id"), other.sh("cat /etc/machine-id"));
    for sandbox in sandboxes {
        sandbox.delete();
    }
}
