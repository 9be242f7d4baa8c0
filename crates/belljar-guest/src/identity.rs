//! Who this machine is, as its own programs see it: names, machine id, the sandbox's token.
//!
//! A copy of a sandbox is another sandbox: it gets a machine id and a token of its own, and what it knew its parent by is
//! gone before a program of it runs again. A sandbox that merely slept is the one it was.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
};

use nix::unistd::sethostname;

use crate::{paths::Owner, random, setup::warn};

/// Where the token lies; the directory is on a tmpfs, so it is never on the disk.
const TOKEN_DIRECTORY: &str = "/run/belljar";
const TOKEN: &str = "identity-token";
const MACHINE_ID: &str = "/etc/machine-id";
/// A copy of it in images that did not make it a link.
const MACHINE_ID_COPY: &str = "/var/lib/dbus/machine-id";
/// Mode of what every program may read.
const READABLE: u32 = 0o644;

pub(crate) fn set_hostname(name: &str) {
    warn("host name", sethostname(name).map_err(io::Error::from));
    warn("/etc/hostname", write_file("/etc/hostname", &format!("{name}\n")));
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    warn("/etc/hosts", write_file("/etc/hosts", &hosts_with(&hosts, name)));
}

/// `/etc/hosts` in which the machine's own name resolves, as Debian does it.
fn hosts_with(hosts: &str, name: &str) -> String {
    const OWN: &str = "127.0.1.1";
    let is_own = |line: &&str| line.split_whitespace().next() == Some(OWN);
    let mut text = String::new();
    if !hosts.lines().any(|line| line.split_whitespace().skip(1).any(|word| word == "localhost")) {
        text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    for line in hosts.lines().filter(|line| !is_own(line)) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&format!("{OWN}\t{name}\n"));
    text
}

/// Gives the machine an id that no other has. What stands on the disk is the image's or, where the disk comes from a
/// snapshot, another sandbox's.
pub(crate) fn renew_machine_id() -> io::Result<()> {
    let id = format!("{}\n", random::hex::<16>());
    write_file(MACHINE_ID, &id)?;
    match fs::symlink_metadata(MACHINE_ID_COPY) {
        Ok(metadata) if metadata.is_file() => write_file(MACHINE_ID_COPY, &id),
        _ => Ok(()),
    }
}

/// Writes the token for the default user to read, or removes it when it is empty. Nobody ever sees half of it, or an old
/// one after this.
pub(crate) fn write_token(token: &str, owner: Option<Owner>) -> io::Result<()> {
    write_token_in(Path::new(TOKEN_DIRECTORY), token, owner)
}

fn write_token_in(directory: &Path, token: &str, owner: Option<Owner>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    let (path, new) = (directory.join(TOKEN), directory.join(format!(".{TOKEN}.new")));
    remove_if_there(&new)?;
    if token.is_empty() {
        return remove_if_there(&path);
    }
    let mut file = File::options().write(true).create_new(true).mode(0o400).open(&new)?;
    file.write_all(token.as_bytes())?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    fs::rename(new, path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces what is in a file, and a link by a file: `/etc/resolv.conf` often points into a `/run` that is not there.
///
/// In place, while nobody reads it: a file that is emptied and written again is one that ext4 puts on the disk at once.
pub(crate) fn write_file(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    let path = path.as_ref();
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(READABLE).custom_flags(libc::O_NOFOLLOW);
    let mut file = match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            fs::remove_file(path)?;
            options.open(path)?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            options.open(path)?
        }
        opened => opened?,
    };
    file.write_all(text.as_bytes())?;
    let metadata = file.metadata()?;
    if metadata.len() != text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    if metadata.permissions().mode() & 0o7777 != READABLE {
        file.set_permissions(fs::Permissions::from_mode(READABLE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_in_hosts_once() {
        let first = hosts_with("", "one");
        assert_eq!(first, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tone\n");
        assert_eq!(hosts_with(&first, "two"), first.replace("one", "two"));
        assert_eq!(hosts_with("127.0.0.1 localhost\n1.2.3.4 x", "a"), "127.0.0.1 localhost\n1.2.3.4 x\n127.0.1.1\ta\n");
    }

    #[test]
    fn a_file_is_what_was_written_last() {
        let directory = tempfile::tempdir().expect("a directory");
        let check = |name: &str, text: &str| {
            let path = directory.path().join(name);
            write_file(&path, text).expect("written");
            let metadata = fs::symlink_metadata(&path).expect("the file");
            assert!(metadata.is_file() && metadata.permissions().mode() & 0o7777 == READABLE, "{name}: {metadata:?}");
            assert_eq!(fs::read_to_string(&path).expect("the file"), text);
        };
        for text in ["one\n", "longer than that\n", "two\n", "", "three\n"] {
            check("file", text);
        }
        check("no/such/directory/file", "text");
        fs::write(directory.path().join("target"), "another's").expect("a file");
        std::os::unix::fs::symlink("target", directory.path().join("link")).expect("a link");
        std::os::unix::fs::symlink("nothing", directory.path().join("dead")).expect("a link");
        check("link", "own");
        check("dead", "own");
        assert_eq!(fs::read_to_string(directory.path().join("target")).expect("the file"), "another's");
        fs::set_permissions(directory.path().join("file"), fs::Permissions::from_mode(0o600)).expect("private");
        check("file", "four\n");
    }

    #[test]
    fn the_token_is_replaced_whole_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path().join("belljar");
        let file = directory.join(TOKEN);
        for token in ["first", "second"] {
            write_token_in(&directory, token, None).expect("written");
            assert_eq!(fs::read_to_string(&file).expect("the token"), token);
            assert_eq!(fs::metadata(&file).expect("the token").permissions().mode() & 0o777, 0o400);
        }
        // What a crash left behind is in nobody's way.
        fs::write(directory.join(".identity-token.new"), "half").expect("written");
        write_token_in(&directory, "third", None).expect("written");
        assert_eq!(fs::read_dir(&directory).expect("the directory").count(), 1);
        write_token_in(&directory, "", None).expect("removed");
        assert_eq!(fs::read_dir(&directory).expect("the directory").count(), 0);
    }
}
