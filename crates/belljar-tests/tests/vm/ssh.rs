//! Sandboxes over SSH, with OpenSSH's own clients.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use belljar_tests::{Sandbox, World};
use serde_json::json;
use tempfile::TempDir;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of what is carried whole: more than every window and buffer on the way.
const LARGE: usize = 12_000_000;

/// A server that listens for SSH, a sandbox named `box`, and a configuration for OpenSSH.
struct Ssh {
    world: World,
    dir: TempDir,
}

impl Ssh {
    fn start() -> Self {
        let world = World::start_with(&[("BELLJAR_SSH_LISTEN", "127.0.0.1:0".to_owned())]);
        let ssh = Self { dir: TempDir::new().unwrap(), world };
        ssh.sandbox();
        let block = ssh.world.ok(&["ssh-config", "box", "--host", "box"]);
        // The same with another user name.
        let port = block.replace("Host box", "Host port").replace("User box", "User 8000-box");
        let unknown = block.replace("Host box", "Host unknown").replace("User box", "User no-such-box");
        fs::write(ssh.path("config"), format!("{block}{port}{unknown}")).unwrap();
        ssh
    }

    fn sandbox(&self) -> Sandbox<'_> {
        match self.world.http().get("/sandboxes/box").json["id"].as_str() {
            Some(id) => self.world.sandbox(id),
            None => self.world.create(&json!({"name": "box"})),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `PROGRAM -F config ARGS`.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.path("config")).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command("ssh", args).output().unwrap()
    }

    /// A program that has to succeed; its stdout.
    #[track_caller]
    fn ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program, args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {output:?}\n{}", self.world.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// A file of the given size that does not compress.
    fn large(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut random = File::open("/dev/urandom").unwrap().take(LARGE as u64);
        std::io::copy(&mut random, &mut File::create(&path).unwrap()).unwrap();
        path
    }

    /// Waits until a command in the sandbox succeeds, without SSH.
    fn until(&self, script: &str) {
        let end = Instant::now() + PATIENCE;
        while self.sandbox().run(script).end["exit_code"] != 0 {
            assert!(Instant::now() < end, "never: {script}");
        }
    }
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

#[track_caller]
fn check(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*out), (Some(code), stdout), "{error}");
    assert!(error.contains(stderr), "{error:?} does not say {stderr:?}");
}

/// Kills what it holds.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn programs_shells_and_terminals_work() {
    let ssh = Ssh::start();
    check(&ssh.run(&["box", "echo out; echo err >&2; exit 7"]), 7, "out\n", "err");
    assert_eq!(ssh.ok("ssh", &["box", "id -un; pwd"]), "tl-user\n/home/tl-user\n");
    assert_eq!(ssh.run(&["box", "kill -9 $$"]).status.code(), Some(255), "as OpenSSH has it");
    assert_eq!(ssh.ok("ssh", &["-o", "SetEnv=A=b", "box", "echo $A ${SSH_CONNECTION%% *}"]), "b 127.0.0.1\n");
    // What it left behind keeps no connection: as under sshd, what it left its pipes to does.
    assert_eq!(ssh.ok("ssh", &["box", "sleep 1000 >/dev/null 2>&1 </dev/null & echo left"]), "left\n");

    // A shell without a terminal reads its script from stdin.
    let mut shell = ssh.command("ssh", &["-T", "box"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo $((6*7)); shopt -q login_shell && echo login\n").unwrap();
    assert_eq!(shell.wait_with_output().unwrap().stdout, b"42\nlogin\n");

    // A terminal of the client's size, kind and speed of change.
    let line =
        format!("stty rows 33 cols 111; ssh -F {} -tt box 'stty size; tty; echo $TERM'", ssh.path("config").display());
    let terminal = Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "vt220").output().unwrap();
    let shown = String::from_utf8_lossy(&terminal.stdout);
    assert!(shown.contains("33 111") && shown.contains("/dev/pts/") && shown.contains("vt220"), "{shown}");

    let refused = ssh.run(&["unknown", "true"]);
    check(&refused, 255, "", "Sandbox not found");
}

#[test]
fn streams_are_whole_in_both_directions() {
    let ssh = Ssh::start();
    let large = ssh.large("large");
    let sum = |path: &Path| {
        let output = Command::new("sha256sum").stdin(File::open(path).unwrap()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mut up = ssh.command("ssh", &["box", "sha256sum"]);
    assert_eq!(String::from_utf8(up.stdin(File::open(&large).unwrap()).output().unwrap().stdout).unwrap(), sum(&large));
    let back = ssh.path("back");
    let mut cat = ssh.command("ssh", &["box", "cat"]);
    cat.stdin(File::open(&large).unwrap()).stdout(File::create(&back).unwrap());
    assert!(cat.status().unwrap().success());
    assert!(same(&large, &back));
    // Far more comes out than goes in, and none of it is read before the input is there.
    let mut late = ssh.command("ssh", &["box", "head -c 20000000 /dev/zero; sha256sum >&2"]);
    let output = late.stdin(File::open(&large).unwrap()).output().unwrap();
    assert_eq!((output.stdout.len(), String::from_utf8(output.stderr).unwrap()), (20_000_000, sum(&large)));
    // A program that ends with input left tells its exit code all the same.
    let mut short = ssh.command("ssh", &["box", "head -c 4 >/dev/null; exit 6"]);
    assert_eq!(short.stdin(File::open(&large).unwrap()).status().unwrap().code(), Some(6));
}

#[test]
fn files_are_copied_by_scp_sftp_and_rsync() {
    let ssh = Ssh::start();
    let (large, back) = (ssh.large("large"), ssh.path("back"));
    ssh.ok("scp", &["-p", large.to_str().unwrap(), "box:up"]);
    ssh.ok("scp", &["-p", "box:/home/tl-user/up", back.to_str().unwrap()]);
    assert!(same(&large, &back));
    assert_eq!(fs::metadata(&large).unwrap().permissions(), fs::metadata(&back).unwrap().permissions());
    // Directories, by the home directory's short name.
    let tree = ssh.path("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/c d"), "deep").unwrap();
    ssh.ok("scp", &["-r", tree.to_str().unwrap(), "box:~/tree"]);
    assert_eq!(ssh.ok("ssh", &["box", "cat 'tree/a/b/c d'; stat -c %U tree"]), "deeptl-user\n");

    let batch = ssh.path("batch");
    let script = "mkdir d\nput large d/x\nrename d/x d/y\nchmod 600 d/y\nln -s y d/l\nls -l d\nget d/y back2\nrm d/l\nrm d/y\nrmdir d\n";
    fs::write(&batch, script).unwrap();
    let mut sftp = ssh.command("sftp", &["-b", batch.to_str().unwrap(), "box"]);
    let output = sftp.current_dir(ssh.dir.path()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("-rw-------"), "{output:?}");
    assert!(same(&large, &ssh.path("back2")));
    // The server has the user's rights, and no more.
    fs::write(&batch, "put large /etc/passwd\n").unwrap();
    let refused =
        ssh.command("sftp", &["-b", batch.to_str().unwrap(), "box"]).current_dir(ssh.dir.path()).output().unwrap();
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("ermission denied"),
        "{refused:?}"
    );

    rsync(&ssh, &tree);
}

/// The default image has no rsync: the host's goes there, with its libraries and its loader.
fn rsync(ssh: &Ssh, tree: &Path) {
    let libraries = Command::new("ldd").arg("/usr/bin/rsync").output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let paths: Vec<&str> = libraries.split_whitespace().filter(|word| word.starts_with('/')).collect();
    ssh.ok("ssh", &["box", "mkdir /tmp/rs"]);
    ssh.ok("scp", &[["/usr/bin/rsync"].as_slice(), &paths, &["box:/tmp/rs/"]].concat());
    let remote = "--rsync-path=/tmp/rs/ld-linux-x86-64.so.2 --library-path /tmp/rs /tmp/rs/rsync";
    let shell = format!("ssh -F {}", ssh.path("config").display());
    let sync = |from: &str, to: &str| {
        let output = Command::new("rsync").args(["-a", "--delete", "-e", &shell, remote, from, to]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let from = format!("{}/", tree.display());
    sync(&from, "box:synced/");
    fs::write(tree.join("a/new"), "second").unwrap();
    sync(&from, "box:synced/");
    let copy = ssh.path("copy");
    sync("box:synced/", copy.to_str().unwrap());
    assert_eq!(fs::read_to_string(copy.join("a/new")).unwrap(), "second");
    assert_eq!(fs::read_to_string(copy.join("a/b/c d")).unwrap(), "deep");
}

#[test]
fn ports_are_reached_by_forwarding_and_by_name() {
    let ssh = Ssh::start();
    let sandbox = ssh.sandbox();
    sandbox.sh("mkdir /tmp/www; echo over the port > /tmp/www/x");
    sandbox.start(
        &json!({"command": "python3", "args": ["-m", "http.server", "8000", "--bind", "127.0.0.1", "-d", "/tmp/www"]}),
    );
    ssh.until("bash -c '</dev/tcp/127.0.0.1/8000'");

    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rule = format!("{port}:localhost:8000");
    let forwarding = ssh.command("ssh", &["-N", "-o", "ExitOnForwardFailure=yes", "-L", &rule, "box"]).spawn().unwrap();
    let _forwarding = Killed(forwarding);
    let end = Instant::now() + PATIENCE;
    let get = || -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET /x HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    loop {
        match get() {
            Some(answer) if answer.ends_with("over the port\n") => break,
            other => assert!(Instant::now() < end, "{other:?}"),
        }
    }
    // Several at once over the one connection.
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(get().is_some_and(|answer| answer.ends_with("over the port\n"))));
        }
    });

    let mut by_name = ssh.command("ssh", &["-T", "port"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    by_name.stdin.take().unwrap().write_all(b"GET /x HTTP/1.0\r\n\r\n").unwrap();
    let answer = String::from_utf8(by_name.wait_with_output().unwrap().stdout).unwrap();
    assert!(answer.ends_with("over the port\n"), "{answer}");
    check(&ssh.run(&["port", "ls"]), 255, "", "run programs as `ssh box@");
}

#[test]
fn a_port_of_the_sandbox_leads_to_the_client() {
    let ssh = Ssh::start();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let rule = format!("9000:127.0.0.1:{}", service.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in service.incoming().flatten() {
            // Reads to the end and answers then: both directions end for themselves.
            let mut stream = stream;
            let mut asked = Vec::new();
            let _ = stream.read_to_end(&mut asked);
            let _ = write!(stream, "{} bytes from the client's side", asked.len());
        }
    });
    let forwarding = ssh.command("ssh", &["-N", "-o", "ExitOnForwardFailure=yes", "-R", &rule, "box"]).spawn().unwrap();
    let forwarding = Killed(forwarding);
    ssh.until("bash -c '</dev/tcp/127.0.0.1/9000'");
    let ask = "import socket; s=socket.create_connection(('127.0.0.1',9000)); s.sendall(b'x'*3000000); \
               s.shutdown(1); print(s.makefile().read())";
    for _ in 0..3 {
        assert_eq!(ssh.sandbox().sh(&format!("python3 -c \"{ask}\"")), "3000000 bytes from the client's side");
    }
    // The port is taken, and says so.
    let taken = ssh.run(&["-o", "ExitOnForwardFailure=yes", "-R", &rule, "box", "true"]);
    check(&taken, 255, "", "remote port forwarding failed");
    drop(forwarding);
    ssh.until("! bash -c '</dev/tcp/127.0.0.1/9000'");
}

#[test]
fn a_session_ends_with_its_client_and_wakes_what_sleeps() {
    let ssh = Ssh::start();
    for (name, options) in [("pipes", &["-T"][..]), ("terminal", &["-tt"])] {
        let line = format!("echo $$ > /tmp/{name}; exec sleep 1000");
        let client = ssh.command("ssh", &[options, &["box", &line]].concat()).stdout(Stdio::null()).spawn().unwrap();
        let client = Killed(client);
        ssh.until(&format!("kill -0 $(cat /tmp/{name})"));
        drop(client);
        ssh.until(&format!("! kill -0 $(cat /tmp/{name})"));
    }
    // What wants to outlive its connection does, as under sshd. It says so itself: before `nohup` runs, a hang-up ends it.
    let stays = "nohup sh -c 'echo $$ > /tmp/stays; exec sleep 1000' >/dev/null 2>&1 & sleep 1000";
    let mut client = ssh.command("ssh", &["box", stays]);
    let client = Killed(client.spawn().unwrap());
    ssh.until("kill -0 $(cat /tmp/stays)");
    drop(client);

    let sandbox = ssh.sandbox();
    ssh.world.suspend(&sandbox.id);
    assert_eq!(ssh.ok("ssh", &["box", "kill -0 $(cat /tmp/stays) && echo awake"]), "awake\n");
    assert_eq!(ssh.world.info(&sandbox.id).json["status"], "running");
}

#[test]
fn keys_open_and_are_refused() {
    let ssh = Ssh::start();
    // `belljar ssh` needs no configuration at all, and passes the exit code on.
    assert_eq!(ssh.world.ok(&["ssh", "box", "--", "echo hello"]), "hello\n");
    assert_eq!(ssh.world.cli(&["ssh", "box", "--", "exit 9"]).status.code(), Some(9));
    let keys = ssh.world.json(&["ssh-key", "ls"])["items"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 1, "the key was added once: {keys:?}");

    let other = ssh.path("other");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"]).arg(&other).status();
    assert!(made.unwrap().success());
    let identity = format!("IdentityFile={}", other.display());
    // The configuration's own key is tried, too, unless it is told not to.
    fs::write(ssh.path("config"), fs::read_to_string(ssh.path("config")).unwrap().replace("  IdentityFile ", "  #"))
        .unwrap();
    let login = || ssh.run(&["-o", &identity, "box", "echo in"]);
    check(&login(), 255, "", "Permission denied (publickey)");
    let id = ssh.world.ok(&["ssh-key", "add", other.with_extension("pub").to_str().unwrap(), "--name", "rsa"]);
    check(&login(), 0, "in\n", "");
    let client = ssh.command("ssh", &["-o", &identity, "box", "echo $$ > /tmp/pid; exec sleep 1000"]).spawn().unwrap();
    let mut client = Killed(client);
    ssh.until("kill -0 $(cat /tmp/pid)");
    ssh.world.ok(&["ssh-key", "rm", id.trim()]);
    assert_eq!(client.0.wait().unwrap().code(), Some(255), "it is cut off");
    ssh.until("! kill -0 $(cat /tmp/pid)");
    check(&login(), 255, "", "Permission denied (publickey)");

    let private = ssh.world.cli(&["ssh-key", "add", other.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&private.stderr).contains("this is a private key"), "{private:?}");
}

#[test]
fn a_port_in_use_is_named_and_the_host_key_stays() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ssh = Ssh::start();
    let before = ssh.world.http().get("/platform/v1/ssh-gateway").json["fingerprint"].clone();
    ssh.world.down_keep();
    let output = ssh
        .world
        .command(&["up", "--detach", "--listen", ssh.world.address(), "--ssh-listen", &address])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains(&format!("{address} is in use")), "{words}");
    assert!(words.contains("--ssh-listen none"), "{words}");
    ssh.world.up();
    assert_eq!(ssh.world.http().get("/platform/v1/ssh-gateway").json["fingerprint"], before);
    let doctor = ssh.world.json(&["doctor"]).to_string();
    assert!(doctor.contains(before.as_str().unwrap()), "{doctor}");
}
