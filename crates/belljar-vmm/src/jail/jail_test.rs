use super::*;
use crate::conformance::World;

/// What makes this test program a launcher: libtest takes the words as names of tests that are not to run.
const AS_LAUNCHER: &str = "as-launcher";

/// A jail whose launcher is this test program, where there can be one: as root.
pub(crate) fn jail() -> Option<Jail> {
    rustix::process::geteuid().is_root().then(|| {
        let words = ["jail::tests::launcher", "--exact", "--test-threads=1", "--skip", AS_LAUNCHER];
        let program = std::env::current_exe().unwrap().into_os_string();
        let launcher = [program].into_iter().chain(words.map(Into::into)).collect();
        Jail { launcher, controllers: Arc::new(Controllers::find()) }
    })
}

fn is_called_as(word: &str) -> bool {
    std::env::args().any(|argument| argument == word)
}

/// Not a test: what [`jail`] starts.
#[test]
#[expect(clippy::exit, reason = "its status is the launcher's")]
fn launcher() {
    if is_called_as(AS_LAUNCHER) {
        std::process::exit(enter().into());
    }
}

/// What makes it a prisoner; the words after it say what it tries.
const AS_PRISONER: &str = "as-prisoner";
/// It gets its files when it is in its jail, and then a file of this name.
const LATE: &str = "late";

/// Not a test: what the tests lock in. Says how each of its attempts went, one per line.
#[test]
fn prisoner() {
    if !is_called_as(AS_PRISONER) {
        return;
    }
    if is_called_as("memory") {
        let mut all = Vec::new();
        loop {
            all.push(vec![1_u8; 1 << 20]);
        }
    }
    while is_called_as(LATE) && !Path::new(LATE).exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let port = std::env::args().find_map(|word| word.strip_prefix("port-")?.parse::<u16>().ok()).unwrap();
    let host_pid = std::env::args().find_map(|word| word.strip_prefix("pid-")?.parse::<i32>().ok()).unwrap();
    let mut text = String::new();
    for (name, outcome) in attempts(port, host_pid) {
        text.push_str(&format!("{name}: {outcome}\n"));
    }
    std::fs::write("report", text).unwrap();
    // Whoever reads that ends it.
    loop {
        std::thread::park();
    }
}

fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(done) => format!("done {done:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn attempts(port: u16, host_pid: i32) -> Vec<(&'static str, String)> {
    use rustix::mount::{MountFlags, mount};
    let mut all = Vec::new();
    let mut add = |name, outcome| all.push((name, outcome));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for field in ["Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"] {
        let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("none");
        add(field.trim_end_matches(':'), value.split_whitespace().next().unwrap_or("").to_owned());
    }
    let list = |path: &str| {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names.join(" ")
    };
    add("root", list("/"));
    add("devices", list("/dev"));
    add("processes", list("/proc"));
    add("interfaces", std::fs::read_to_string("/proc/self/net/dev").unwrap().lines().skip(2).count().to_string());
    add("users", outcome(std::fs::read("/etc/passwd").map(|_| ())));
    add("outside", outcome(std::fs::read("/../../etc/passwd").map(|_| ())));
    add("kernel", outcome(std::fs::read("/proc/sys/kernel/hostname").map(|_| ())));
    let signal = rustix::process::test_kill_process(rustix::process::Pid::from_raw(host_pid).unwrap());
    add("signal", outcome(signal.map_err(io::Error::from)));
    add("host's port", outcome(std::net::TcpStream::connect(("127.0.0.1", port)).map(|_| ())));
    let send = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", "192.0.2.1:53"));
    add("network", outcome(send));
    let root = rustix::fs::Uid::ROOT;
    add("become root", outcome(rustix::thread::set_thread_res_uid(root, root, root).map_err(io::Error::from)));
    let mounted = mount("tmpfs", "/vm", "tmpfs", MountFlags::empty(), None);
    add("mount", outcome(mounted.map_err(io::Error::from)));
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        "disk-of-the-host",
        rustix::fs::FileType::BlockDevice,
        rustix::fs::Mode::RWXU,
        rustix::fs::makedev(8, 0),
    );
    add("make a device", outcome(made.map_err(io::Error::from)));
    add("write to its root", outcome(std::fs::write("/new", "")));
    add("write to a file to read", outcome(std::fs::write("kernel", "x")));
    add("read it", outcome(std::fs::read_to_string("kernel")));
    add("write to its disk", outcome(std::fs::write("disk", "written")));
    add("execute what it wrote", {
        std::fs::write("program", "#!/bin/true\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions("program", mode).unwrap();
        outcome(std::process::Command::new("./program").status().map(|_| ()))
    });
    add("namespace", outcome(new_user_namespace()));
    add("large file", outcome(grow("disk")));
    add("room", outcome(fill_room()));
    add("threads", threads().to_string());
    all
}

#[expect(unsafe_code, reason = "the process does nothing else")]
fn new_user_namespace() -> io::Result<()> {
    use rustix::thread::UnshareFlags;
    // SAFETY: descriptors stay shared.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }?)
}

#[expect(unsafe_code, reason = "as a VM program does that wants to know")]
fn grow(file: &str) -> io::Result<()> {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    std::fs::File::options().write(true).open(file)?.set_len(1 << 40)
}

fn fill_room() -> io::Result<()> {
    let piece = vec![1; 1 << 20];
    for number in 0..1000 {
        let name = format!("fill-{number}");
        if let Err(error) = std::fs::write(name, &piece) {
            // Leaves room for the report.
            std::fs::remove_file("fill-0")?;
            return Err(error);
        }
    }
    Ok(())
}

/// How many it can have.
fn threads() -> usize {
    (0..10_000)
        .take_while(|_| {
            std::thread::Builder::new()
                .stack_size(16 << 10)
                .spawn(|| {
                    loop {
                        std::thread::park()
                    }
                })
                .is_ok()
        })
        .count()
}

const THREADS: u64 = 40;
const ROOM_BYTES: u64 = 4 << 20;

/// A prisoner with a file to read and one to write.
struct Prison {
    world: World,
    dir: Arc<RunDir>,
    process: Process,
}

impl Prison {
    /// `None`: this user cannot make jails.
    async fn start(words: &[String]) -> Option<Self> {
        let jail = jail()?;
        let world = World::new();
        std::fs::write(world.path("secret"), "kernel").unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(world.path("secret"), private).unwrap();
        let dir = Arc::new(RunDir::open(&world.run_dir()).unwrap());
        let mut args =
            ["jail::tests::prisoner", "--exact", "--test-threads=1", "--skip", AS_PRISONER].map(str::to_owned).to_vec();
        for word in words {
            args.extend(["--skip".to_owned(), word.clone()]);
        }
        let shares = cgroup::Shares { processors: 1, memory: 96 << 20, threads: THREADS, writes: None };
        let limits = plan::Limits {
            files: 64,
            file_bytes: 8 << 20,
            threads: THREADS,
            locked_bytes: JAIL_LOCKED_BYTES,
            room_bytes: ROOM_BYTES,
            room_files: 32,
        };
        let is_late = words.iter().any(|word| word == LATE);
        let files = vec![
            plan::Entry::new("kernel", &world.path("secret"), false),
            plan::Entry::new("disk", &world.path("disk"), true),
        ];
        let plan = Plan {
            program: std::env::current_exe().unwrap(),
            args,
            files: if is_late { Vec::new() } else { files.clone() },
            kvm: false,
            passed_through: Vec::new(),
            network: plan::Network::Empty,
            limits,
            groups: jail.controllers.groups(shares),
            fds: 0,
        };
        let log = Log::create().unwrap();
        let process = start(&jail, &plan, &dir, &log, &[], None).await.unwrap();
        let prison = Self { world, dir, process };
        if is_late {
            admit(&prison.process, &files).unwrap();
            let error = admit(&prison.process, &files).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "what is there stays");
            std::fs::write(prison.room().join(LATE), "").unwrap();
        }
        Some(prison)
    }

    fn room(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/vm", self.process.pid()))
    }

    async fn end(self) {
        let groups = self.dir.inmate().unwrap().groups;
        self.process.kill().await.unwrap();
        self.dir.clear().unwrap();
        assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
        self.world.assert_clean();
    }
}

#[tokio::test]
async fn a_prisoner_gets_nowhere() {
    gets_nowhere(&[]).await;
}

#[tokio::test]
async fn a_prisoner_that_gets_its_files_late_gets_nowhere_else() {
    gets_nowhere(&[LATE.to_owned()]).await;
}

/// What is not possible in a jail, tried by a process with the identity of a VM process.
async fn gets_nowhere(how: &[String]) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let words = [format!("port-{}", listener.local_addr().unwrap().port()), format!("pid-{}", std::process::id())];
    let Some(prison) = Prison::start(&[&words, how].concat()).await else { return };
    let report = loop {
        match std::fs::read_to_string(prison.room().join("report")) {
            Ok(report) if report.contains("threads: ") => break report,
            _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    println!("{report}");
    let user = FIRST_USER + prison.process.pid();
    let check = |name: &str, expected: &dyn Fn(&str) -> bool| {
        let found = report.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert!(found.is_some_and(expected), "{name}: {found:?}");
    };
    let is = |name: &str, expected: &str| check(name, &|found| found == expected);
    is("Uid", &user.to_string());
    is("Gid", &user.to_string());
    is("Groups", "");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        is(set, "0000000000000000");
    }
    is("NoNewPrivs", "1");
    is("Seccomp", "2");
    check("root", &|found| !found.contains("etc") && !found.contains("root") && !found.contains("home"));
    is("devices", "net null urandom zero");
    is("processes", "1 self thread-self");
    is("interfaces", "1");
    is("users", "NotFound");
    is("outside", "NotFound");
    is("kernel", "NotFound");
    is("host's port", "NetworkUnreachable");
    is("network", "NetworkUnreachable");
    for forbidden in ["become root", "mount", "make a device", "namespace", "execute what it wrote"] {
        is(forbidden, "PermissionDenied");
    }
    is("write to its root", "ReadOnlyFilesystem");
    check("write to a file to read", &|found| found == "ReadOnlyFilesystem" || found == "PermissionDenied");
    is("read it", "done \"kernel\"");
    is("write to its disk", "done ()");
    is("large file", "FileTooLarge");
    is("room", "StorageFull");
    check("threads", &|found| found.parse::<u64>().is_ok_and(|count| count < THREADS));
    // The host's process of that number is not there; where there is one, it is another one.
    check("signal", &|found| !found.starts_with("done"));
    assert_eq!(std::fs::read_to_string(prison.world.path("disk")).unwrap(), "written");
    prison.end().await;
}

#[tokio::test]
async fn a_prisoner_that_takes_all_memory_is_ended_and_that_is_told() {
    let Some(prison) = Prison::start(&["memory".to_owned()]).await else { return };
    if !jail().unwrap().controllers.is_complete() {
        return prison.end().await;
    }
    let ended = prison.process.ended().await;
    assert!(prison.dir.inmate().unwrap().was_out_of_memory(ended), "{ended:?}");
    prison.end().await;
}

#[tokio::test]
async fn what_cannot_be_jailed_is_told_and_leaves_nothing() {
    let Some(jail) = jail() else { return };
    let world = World::new();
    let dir = Arc::new(RunDir::open(&world.run_dir()).unwrap());
    let limits = plan::Limits {
        files: 64,
        file_bytes: 1,
        threads: 10,
        locked_bytes: JAIL_LOCKED_BYTES,
        room_bytes: 1 << 20,
        room_files: 32,
    };
    let good = Plan {
        program: "/bin/true".into(),
        args: Vec::new(),
        files: Vec::new(),
        kvm: false,
        passed_through: Vec::new(),
        network: plan::Network::Empty,
        limits,
        groups: Vec::new(),
        fds: 0,
    };
    let check = async |jail: &Jail, plan: Plan, expected: &str| {
        let log = Log::create().unwrap();
        let error = start(jail, &plan, &dir, &log, &[], None).await.map(|process| process.pid()).unwrap_err();
        assert!(format!("{error:?}").contains(expected), "{error:?}");
        dir.clear().unwrap();
        world.assert_clean();
    };
    let missing = vec![plan::Entry::new("disk", &world.path("missing"), true)];
    check(&jail, Plan { files: missing, ..good.clone() }, "missing").await;
    check(&jail, Plan { program: "no-such-program".into(), ..good.clone() }, "find no-such-program").await;
    check(&jail, Plan { program: world.path("disk"), ..good.clone() }, "run the VM program").await;
    let group = plan::Group { parent: world.path(""), settings: vec![("cpu.max".into(), "1".into())] };
    check(&jail, Plan { groups: vec![group], ..good.clone() }, "cpu.max").await;
    let tap = plan::Network::Tap("no-such-tap-of-mine".into());
    check(&jail, Plan { network: tap, ..good.clone() }, "tap").await;
    let mute = Jail { launcher: Arc::new(["/bin/true".into()]), ..jail.clone() };
    check(&mute, good.clone(), "said nothing").await;
    let none = Jail { launcher: Arc::new(["/no/such/launcher".into()]), ..jail.clone() };
    check(&none, good, "No such file").await;
}
