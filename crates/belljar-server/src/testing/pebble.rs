//! A real ACME server, Let's Encrypt's `pebble`, with a DNS server of its own, on a loopback address of its own. It looks at
//! every proof.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::AcmeConfig;

/// Where it serves ACME.
const PORT: u16 = 14000;
/// Where it shows its root.
const MANAGEMENT: u16 = 15000;
/// Where it looks for TLS-ALPN-01.
const TLS: u16 = 5001;
/// Where its DNS server answers, and is told what to answer.
const DNS: u16 = 8053;
const DNS_MANAGEMENT: u16 = 8055;
/// Starts a program that ends with the test, also where that is killed.
const TIED: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// A running `pebble`.
pub(super) struct Pebble {
    address: String,
    dir: tempfile::TempDir,
    /// Its root, PEM.
    pub(super) root: String,
    server: Child,
    _dns: Child,
}

impl Pebble {
    /// Its certificates hold for so many seconds.
    pub(super) async fn start(validity: u32) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let address = own_address();
        let issued = rcgen::generate_simple_self_signed([address.clone()]).expect("certificate");
        fs::write(dir.path().join("cert.pem"), issued.cert.pem()).expect("certificate");
        fs::write(dir.path().join("key.pem"), issued.signing_key.serialize_pem()).expect("key");
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("{address}:{PORT}"),
            "managementListenAddress": format!("{address}:{MANAGEMENT}"),
            "certificate": dir.path().join("cert.pem"),
            "privateKey": dir.path().join("key.pem"),
            "httpPort": 1,
            "tlsPort": TLS,
            "certificateValidityPeriod": validity,
        }});
        let config_file = dir.path().join("pebble.json");
        fs::write(&config_file, config.to_string()).expect("configuration");
        let dns = spawn(Command::new(TIED[0]).args(&TIED[1..]).args([
            "pebble-challtestsrv",
            "-dns01",
            &format!("{address}:{DNS}"),
            "-management",
            &format!("{address}:{DNS_MANAGEMENT}"),
            "-defaultIPv4",
            &address,
            "-defaultIPv6=",
            "-http01=",
            "-https01=",
            "-tlsalpn01=",
        ]));
        let mut command = Command::new(TIED[0]);
        command.args(&TIED[1..]).args(["pebble", "-dnsserver", &format!("{address}:{DNS}"), "-config"]);
        // It would sleep for seconds before each look, and now and then take an older proof for a new one.
        command.arg(&config_file).envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")]);
        let mut server = spawn(&mut command);
        for port in [PORT, MANAGEMENT, DNS_MANAGEMENT, DNS] {
            while TcpStream::connect((address.as_str(), port)).await.is_err() {
                if let Some(status) = server.try_wait().expect("pebble") {
                    panic!(
                        "`pebble` does not run ({status}); `cargo xtask setup` installs it, on Debian as the package pebble"
                    );
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let root = curl(&dir.path().join("cert.pem"), &format!("https://{address}:{MANAGEMENT}/roots/0")).await;
        Self { address, dir, root, server, _dns: dns }
    }

    /// Where it looks for the server that is to be proved.
    pub(super) fn tls(&self) -> String {
        format!("{}:{TLS}", self.address)
    }

    /// What a server is told to get its certificates here.
    pub(super) fn config(&self, dir: &Path) -> AcmeConfig {
        AcmeConfig {
            dir: dir.join("acme"),
            server: format!("https://{}:{PORT}/dir", self.address),
            contact: Some("admin@sb.test".into()),
            ca: Some(self.dir.path().join("cert.pem")),
            dns_hook: None,
        }
    }

    pub(super) async fn stop(mut self) {
        self.server.kill().await.expect("pebble");
    }

    /// A DNS hook; what it is told goes into [`Hook::calls`].
    pub(super) fn hook(&self) -> Hook {
        let dir = tempfile::tempdir().expect("directory");
        let (path, at) = (dir.path().join("hook"), dir.path().display());
        let management = format!("http://{}:{DNS_MANAGEMENT}", self.address);
        let text = format!(
            r#"#!/bin/sh
if [ -e {at}/broken ]; then echo "the provider says no" >&2; exit 3; fi
echo "$1 $2" >> {at}/calls
if [ -e {at}/stuck ]; then exec sleep 60; fi
case "$1" in
    add) exec curl -fsS -d "{{\"host\":\"$2.\",\"value\":\"$3\"}}" {management}/set-txt ;;
    remove) exec curl -fsS -d "{{\"host\":\"$2.\"}}" {management}/clear-txt ;;
esac
"#
        );
        fs::write(&path, text).expect("hook");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        Hook { path, dir }
    }
}

/// See [`Pebble::hook`].
pub(super) struct Hook {
    pub(super) path: PathBuf,
    dir: tempfile::TempDir,
}

impl Hook {
    /// Whether it fails.
    pub(super) fn set_broken(&self, broken: bool) {
        self.set("broken", broken);
    }

    /// Whether it hangs, and does not what it is told.
    pub(super) fn set_stuck(&self, stuck: bool) {
        self.set("stuck", stuck);
    }

    /// Waits until it is told something, and has written that down: the file is there before its first line is.
    pub(super) async fn told(&self) {
        let calls = self.dir.path().join("calls");
        while !fs::read_to_string(&calls).is_ok_and(|text| text.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn set(&self, flag: &str, set: bool) {
        let flag = self.dir.path().join(flag);
        if set { fs::write(flag, "").expect("flag") } else { fs::remove_file(flag).expect("flag") }
    }

    /// What it was told since the last time.
    pub(super) fn calls(&self) -> Vec<String> {
        let file = self.dir.path().join("calls");
        let text = fs::read_to_string(&file).expect("calls");
        fs::remove_file(&file).expect("calls");
        text.lines().map(str::to_owned).collect()
    }
}

/// The ports are fixed, so each `pebble` of this machine has an address: of the process, and of the test in it.
fn own_address() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let [_, a, b, c] = ((std::process::id() << 2) | (COUNT.fetch_add(1, Ordering::Relaxed) & 3)).to_be_bytes();
    format!("127.{}.{b}.{c}", a | 0x40)
}

fn spawn(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().unwrap_or_else(|error| panic!("cannot run {:?}: {error}", command.as_std()))
}

async fn curl(ca: &Path, url: &str) -> String {
    let output = Command::new("curl").args(["-fsS", "--cacert"]).arg(ca).arg(url).output().await.expect("curl");
    assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("PEM")
}
