//! What `belljar ssh` keeps on this machine, below the configuration directory: a key of its own, and the host keys of
//! the servers it was used with.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use belljar_api::ssh_key::SshGateway;

use crate::report::Failure;

const KEY: &str = "id_ed25519";
const KNOWN_HOSTS: &str = "known_hosts";

/// Where `ssh` connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    host_key: String,
}

impl Server {
    /// The gateway of the server with this API.
    pub fn new(api_url: &str, gateway: &SshGateway) -> anyhow::Result<Self> {
        let url = url::Url::parse(api_url).with_context(|| format!("{api_url} is not an address"))?;
        let host = url.host_str().ok_or_else(|| Failure::new(format!("{api_url} names no host")))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        // It goes into a file of lines and words.
        if gateway.host_key.contains(char::is_control) {
            return Err(Failure::new("the server's host key is not one").into());
        }
        Ok(Self { host, port: gateway.port, host_key: gateway.host_key.clone() })
    }

    /// The file of host keys.
    pub fn known_hosts(&self, dir: &Path) -> PathBuf {
        dir.join(KNOWN_HOSTS)
    }

    /// Writes the host key into the file, in place of an older one: the API said it, over a connection that we trust with
    /// our key.
    pub fn remember(&self, dir: &Path) -> anyhow::Result<()> {
        make_dir(dir)?;
        let path = self.known_hosts(dir);
        let failed = || format!("cannot write {}", path.display());
        let old = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let new = with_host(&old, &self.name(), &self.host_key);
        if new != old {
            let mut file = tempfile::NamedTempFile::new_in(dir).with_context(failed)?;
            file.write_all(new.as_bytes()).with_context(failed)?;
            file.persist(&path).with_context(failed)?;
        }
        Ok(())
    }

    /// As `known_hosts` names it.
    fn name(&self) -> String {
        if self.port == 22 { self.host.clone() } else { format!("[{}]:{}", self.host, self.port) }
    }
}

/// The lines of a file of host keys with this one, and no other of the same host.
fn with_host(old: &str, name: &str, key: &str) -> String {
    let others = old.lines().filter(|line| line.split(' ').next() != Some(name));
    let mut new: String = others.flat_map(|line| [line, "\n"]).collect();
    new.push_str(&format!("{name} {key}\n"));
    new
}

/// Our key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Directory of everything.
    pub dir: PathBuf,
    /// The private key.
    pub path: PathBuf,
    /// The public one, a line.
    pub public: String,
    /// `SHA256:…`
    pub fingerprint: String,
}

impl Identity {
    /// Finds the key in the directory, or makes one.
    pub fn find_or_make(dir: &Path) -> anyhow::Result<Self> {
        make_dir(dir)?;
        let path = dir.join(KEY);
        if !path.exists() {
            make_key(dir, &path)?;
        }
        let public = keygen(&["-y".as_ref(), "-f".as_ref(), path.as_os_str()], None)?;
        let shown = keygen(&["-l", "-E", "sha256", "-f", "-"].map(OsStr::new), Some(&public))?;
        let fingerprint = shown.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(Self { dir: dir.to_owned(), path, public: public.trim().to_owned(), fingerprint })
    }
}

/// Makes a key under another name and then gives it its own, so that two at once end with one.
fn make_key(dir: &Path, path: &Path) -> anyhow::Result<()> {
    let making = tempfile::tempdir_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    let new = making.path().join(KEY);
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let comment = format!("belljar@{host}");
    let words: [&OsStr; 8] = ["-q", "-t", "ed25519", "-N", "", "-C", &comment, "-f"].map(OsStr::new);
    keygen(&[words.as_slice(), &[new.as_os_str()]].concat(), None)?;
    match fs::hard_link(&new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("cannot write {}", path.display())),
    }
}

fn keygen(words: &[&OsStr], input: Option<&str>) -> anyhow::Result<String> {
    const PROGRAM: &str = "ssh-keygen";
    let mut command = Command::new(PROGRAM);
    command.args(words).stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| not_there(PROGRAM, error))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // What it does not want to read it will complain about itself.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().context("ssh-keygen")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new("ssh-keygen failed").because(words).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Why a program of OpenSSH does not run.
pub fn not_there(program: &str, error: io::Error) -> Failure {
    Failure::new(format!("cannot run {program}"))
        .because(error)
        .hint("install OpenSSH's client; on Debian it is the package openssh-client")
}

/// A path as a value of an OpenSSH option: whole where it has spaces, and without its `%` signs being put out.
pub fn quote(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.contains([' ', '\t', '#']) { format!("\"{text}\"") } else { text }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn gateway(key: &str) -> SshGateway {
        SshGateway { port: 2222, host_key: key.to_owned(), fingerprint: String::new() }
    }

    #[test]
    fn a_host_key_takes_the_place_of_the_older_one() {
        let dir = tempfile::tempdir().expect("directory");
        let dir = dir.path().join("ssh");
        let other = Server::new("http://[::1]:8900", &gateway("ssh-ed25519 BBBB")).expect("server");
        other.remember(&dir).expect("written");
        for key in ["ssh-ed25519 AAAA", "ssh-ed25519 CCCC"] {
            let server = Server::new("https://box.test/", &gateway(key)).expect("server");
            server.remember(&dir).expect("written");
            let text = fs::read_to_string(server.known_hosts(&dir)).expect("file");
            assert_eq!(text, format!("[::1]:2222 ssh-ed25519 BBBB\n[box.test]:2222 {key}\n"));
        }
        assert!(Server::new("http://x", &gateway("a\nb")).is_err());
        assert_eq!(fs::metadata(&dir).expect("directory").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_key_is_made_once() {
        let dir = tempfile::tempdir().expect("directory");
        let first = Identity::find_or_make(dir.path()).expect("made");
        assert_eq!(Identity::find_or_make(dir.path()).expect("found"), first);
        assert!(first.public.starts_with("ssh-ed25519 ") && first.fingerprint.starts_with("SHA256:"), "{first:?}");
        assert_eq!(fs::metadata(&first.path).expect("key").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing else is left");
    }

    #[test]
    fn paths_are_whole_values() {
        assert_eq!(quote(Path::new("/a/b")), "/a/b");
        assert_eq!(quote(Path::new("/a b/100%")), "\"/a b/100%%\"");
    }
}
