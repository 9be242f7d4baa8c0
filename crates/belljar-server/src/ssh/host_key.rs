//! The server's one host key: made at the first start, and the same ever after.

use std::{fs, io, path::Path};

use rand::{TryRng, rngs::SysRng};
use russh::keys::{
    PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

use super::{SshError, keys::fingerprint};
use crate::secret_file;

/// What the key's comment says.
const COMMENT: &str = "belljar";

/// Reads the key, or makes one.
pub(super) fn load_or_make(path: &Path) -> Result<PrivateKey, SshError> {
    match read(path)? {
        Some(key) => Ok(key),
        None => make(path),
    }
}

/// The fingerprint of the key in a file, `SHA256:…`; `None` when there is no such file.
pub fn host_key_fingerprint(path: &Path) -> Result<Option<String>, SshError> {
    Ok(read(path)?.map(|key| fingerprint(key.public_key())))
}

fn read(path: &Path) -> Result<Option<PrivateKey>, SshError> {
    let failed = |operation| move |source| SshError::HostKeyFile { operation, path: path.to_owned(), source };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read")(error)),
    };
    let bad = |why: String| SshError::HostKey { path: path.to_owned(), why };
    if let Some(why) = secret_file::exposure(path).map_err(failed("read"))? {
        return Err(bad(why));
    }
    PrivateKey::from_openssh(text.as_bytes()).map(Some).map_err(|error| bad(error.to_string()))
}

fn make(path: &Path) -> Result<PrivateKey, SshError> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).map_err(|error| SshError::Randomness(error.to_string()))?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment(COMMENT);
    let bad = |error: russh::keys::ssh_key::Error| SshError::HostKey { path: path.to_owned(), why: error.to_string() };
    let text = key.to_openssh(LineEnding::LF).map_err(bad)?;
    // Half a key would be refused at every later start.
    let written = secret_file::write(path, text.as_bytes());
    written.map_err(|source| SshError::HostKeyFile { operation: "write", path: path.to_owned(), source })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_only() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("key");
        assert_eq!(host_key_fingerprint(&path).expect("look"), None);
        let first = load_or_make(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        let second = load_or_make(&path).expect("read");
        assert_eq!(first.public_key(), second.public_key());
        let shown = host_key_fingerprint(&path).expect("look").expect("key");
        assert!(shown.starts_with("SHA256:"), "{shown}");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
        let words = load_or_make(&path).expect_err("open to all").to_string();
        assert!(words.contains("mode is 644"), "{words}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        fs::write(&path, "something").expect("write");
        let words = load_or_make(&path).expect_err("no key").to_string();
        assert!(words.contains("is not an SSH host key") && words.contains("remove it"), "{words}");
        let missing = load_or_make(&dir.path().join("no/key")).expect_err("no directory").to_string();
        assert!(missing.contains("cannot write") && missing.contains("no/key"), "{missing}");
    }
}
