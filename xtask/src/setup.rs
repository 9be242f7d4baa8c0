//! Installs what building and running needs, on Debian 12 and 13; elsewhere it says what is missing.
//!
//! Looks before it installs: with everything there it takes no time, no root and no network. Without root it prints the
//! one command that installs the rest, and the caller goes on with what works.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{artifacts, paths, run};

/// First version of QEMU with what Belljar uses (`mapped-ram` snapshots).
const QEMU_MAJOR: u32 = 9;
const QEMU: &str = "qemu-system-x86";
/// Where the newer QEMU of Debian 12 is made known to apt.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/belljar-backports.sources";

/// How to see that a package's content is there, wherever it came from.
enum Probe {
    /// A program in the search path.
    Program(&'static str),
    /// A file.
    File(&'static str),
    /// A command that succeeds.
    Works(&'static [&'static str]),
    /// QEMU of at least [`QEMU_MAJOR`].
    Qemu,
}

/// Everything that is needed, with what has it.
const NEEDED: [(Probe, &str); 27] = [
    (Probe::Qemu, QEMU),
    (Probe::Program("mmdebstrap"), "mmdebstrap"),
    (Probe::File("/usr/share/keyrings/debian-archive-keyring.gpg"), "debian-archive-keyring"),
    (Probe::Program("mkfs.ext4"), "e2fsprogs"),
    (Probe::Program("mkfs.xfs"), "xfsprogs"),
    (Probe::Program("losetup"), "mount"),
    (Probe::Program("unshare"), "util-linux"),
    (Probe::Program("ip"), "iproute2"),
    (Probe::Program("nft"), "nftables"),
    (Probe::Program("sftp"), "openssh-client"),
    (Probe::Program("rsync"), "rsync"),
    (Probe::Program("pebble"), "pebble"),
    (Probe::Program("skopeo"), "skopeo"),
    (Probe::Program("umoci"), "umoci"),
    (Probe::Program("busybox"), "busybox-static"),
    (Probe::Program("gcc"), "gcc"),
    (Probe::File("/usr/lib/x86_64-linux-gnu/libc.a"), "libc6-dev"),
    (Probe::Program("strip"), "binutils"),
    (Probe::Program("make"), "make"),
    (Probe::Program("flex"), "flex"),
    (Probe::Program("bison"), "bison"),
    (Probe::Program("bc"), "bc"),
    (Probe::File("/usr/include/gelf.h"), "libelf-dev"),
    (Probe::Program("xz"), "xz-utils"),
    (Probe::Program("git"), "git"),
    (Probe::Program("curl"), "curl"),
    (Probe::Works(&["python3", "-c", "import ensurepip, venv"]), "python3-venv"),
];

/// Installs what is missing. Succeeds without root too: what then cannot be done fails where it is needed.
pub(crate) fn run() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        run::say("  setup: everything is installed");
        return Ok(());
    }
    let Some(suite) = debian_suite() else {
        run::say(&format!(
            "  setup: this is neither Debian 12 nor 13; please install what these Debian packages have: {}",
            missing.join(" ")
        ));
        return Ok(());
    };
    let backports = missing.contains(&QEMU) && suite == "bookworm";
    if !is_root()? {
        run::say(&format!("  setup: not installed yet: {}", missing.join(" ")));
        run::say("  setup: root can install it with this command; going on without:");
        run::say(&format!("    {}", by_hand(&suite, backports, &missing)?));
        return Ok(());
    }
    let mut target = Vec::new();
    if backports {
        target = vec!["--target-release".to_owned(), format!("{suite}-backports")];
        if add_backports(&suite)? {
            update()?;
        }
    }
    // QEMU alone comes from backports; everything else stays what the suite has.
    let (qemu, others): (Vec<&str>, Vec<&str>) = missing.into_iter().partition(|&package| package == QEMU);
    install("setup: install packages", &[], &others)?;
    install("setup: install QEMU", &target, &qemu)?;
    let left = self::missing();
    if !left.is_empty() {
        bail!("installed, and still not usable: {}", left.join(" "));
    }
    Ok(())
}

/// The directory with the program of a package that tests use and nobody wants installed: it would start a service. From the
/// cache, where it is unpacked when it is first needed.
pub(crate) fn beside(package: &str, program: &str) -> Result<PathBuf> {
    let tools = paths::cache()?.join("tools");
    let (kept, new) = (tools.join(package), tools.join(format!("{package}.new")));
    if !kept.join(program).is_file() {
        artifacts::remove_dir(&new)?;
        fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
        let open = open_package(package, package, &new)?;
        artifacts::remove_dir(&kept)?;
        fs::rename(&open, &kept).with_context(|| format!("cannot create {}", kept.display()))?;
        artifacts::remove_dir(&new)?;
    }
    let program = kept.join(program);
    program.parent().map(Path::to_owned).with_context(|| format!("{package} has no {}", program.display()))
}

/// Downloads a package, as apt is asked for it, to the directory `work`, and opens it there.
pub(crate) fn open_package(what: &str, wanted: &str, work: &Path) -> Result<PathBuf> {
    let step = |doing: &str| format!("{what}: {doing}");
    run::step(&step("download"), Command::new("apt-get").args(["download", wanted]).current_dir(work))?;
    let package = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    let root = work.join("package");
    run::step(&step("open the package"), Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
    Ok(root)
}

/// Debian packages whose content is not there.
pub(crate) fn missing() -> Vec<&'static str> {
    NEEDED.iter().filter(|(probe, _)| !probe.holds()).map(|(_, package)| *package).collect()
}

/// Whether this process may do anything.
pub(crate) fn is_root() -> Result<bool> {
    Ok(run::output(Command::new("id").arg("-u"))?.trim() == "0")
}

impl Probe {
    fn holds(&self) -> bool {
        match self {
            Self::Program(name) => run::find_program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
            Self::Works(command) => {
                let mut probe = Command::new(command[0]);
                probe.args(&command[1..]).stdout(Stdio::null()).stderr(Stdio::null());
                probe.status().is_ok_and(|status| status.success())
            }
            Self::Qemu => {
                let version = run::output(Command::new("qemu-system-x86_64").arg("--version"));
                version.is_ok_and(|text| qemu_major(&text).is_some_and(|major| major >= QEMU_MAJOR))
            }
        }
    }
}

/// `QEMU emulator version 10.0.3 (...)`
fn qemu_major(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

fn debian_suite() -> Option<String> {
    suite_of(&fs::read_to_string("/etc/os-release").ok()?)
}

fn suite_of(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let suite = field("VERSION_CODENAME")?;
    (field("ID")? == "debian" && ["bookworm", "trixie"].contains(&suite.as_str())).then_some(suite)
}

fn install(name: &str, options: &[String], packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let apt = || apt_get(&["install", "--yes", "--no-install-recommends"], options, packages);
    if run::try_step(name, &mut apt())?.ok {
        return Ok(());
    }
    // Most likely the package lists are old, or there are none.
    update()?;
    run::step(name, &mut apt())
}

fn update() -> Result<()> {
    run::step("setup: update package lists", &mut apt_get(&["update"], &[], &[]))
}

fn apt_get(verb: &[&str], options: &[String], packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(verb).args(options).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Adds the backports of the mirror that this machine uses. Gives whether that was needed.
fn add_backports(suite: &str) -> Result<bool> {
    let Some(text) = backports_source(suite)? else {
        return Ok(false);
    };
    fs::write(BACKPORTS_FILE, text).with_context(|| format!("cannot write {BACKPORTS_FILE}"))?;
    Ok(true)
}

/// The text of [`BACKPORTS_FILE`]; `None` when the machine has backports already.
fn backports_source(suite: &str) -> Result<Option<String>> {
    let mut list = Command::new("apt-get");
    list.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]);
    Ok(backports_of(&run::output(&mut list)?, suite))
}

fn backports_of(repositories: &str, suite: &str) -> Option<String> {
    let backports = format!("{suite}-backports");
    let mut pairs = repositories.lines().filter_map(|line| line.split_once(' '));
    if pairs.clone().any(|(_, release)| release == backports) {
        return None;
    }
    let mirror = pairs.find(|(_, release)| *release == suite).map_or("http://deb.debian.org/debian", |(uri, _)| uri);
    Some(format!(
        "Types: deb\nURIs: {mirror}\nSuites: {backports}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    ))
}

/// All of it as one command for the shell of root.
fn by_hand(suite: &str, backports: bool, missing: &[&str]) -> Result<String> {
    let mut commands = Vec::new();
    let mut release = String::new();
    if backports {
        if let Some(text) = backports_source(suite)? {
            commands.push(format!("printf '{}' > {BACKPORTS_FILE}", text.replace('\n', "\\n")));
        }
        release = format!("/{suite}-backports");
    }
    commands.push("apt-get update".to_owned());
    let packages = missing.iter().map(|&name| if name == QEMU { format!("{name}{release}") } else { name.to_owned() });
    commands.push(format!("apt-get install -y --no-install-recommends {}", packages.collect::<Vec<_>>().join(" ")));
    Ok(commands.join(" && "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_suites() {
        assert_eq!(qemu_major("QEMU emulator version 10.0.3 (Debian 1:10.0.3)\nCopyright"), Some(10));
        assert_eq!(qemu_major("nothing"), None);
        let check = |text: &str, expect: Option<&str>| assert_eq!(suite_of(text).as_deref(), expect, "{text}");
        check("ID=debian\nVERSION_CODENAME=bookworm\n", Some("bookworm"));
        check("VERSION_CODENAME=\"trixie\"\nID=\"debian\"\n", Some("trixie"));
        check("ID=ubuntu\nVERSION_CODENAME=noble\n", None);
        check("ID=debian\n", None);
    }

    #[test]
    fn backports_come_from_the_same_mirror() {
        let check = |repositories: &str, expect: Option<&str>| {
            let found = backports_of(repositories, "bookworm");
            let uri = found.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("URIs: ")));
            assert_eq!(uri, expect, "{repositories}");
        };
        check("http://m/debian bookworm\nhttp://m/security bookworm-security", Some("http://m/debian"));
        check("http://m/debian bookworm\nhttp://n/debian bookworm-backports", None);
        check("", Some("http://deb.debian.org/debian"));
    }
}
