//! Sealing: AES-256-GCM with a key from a file. Sealed bytes are a random nonce (12), then the ciphertext with its tag.
//!
//! What was sealed under one name does not open under another, so rows cannot be exchanged.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use belljar_api::secret::SecretValue;
use rand::{TryRng, rngs::SysRng};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::secret_file;

/// Bytes of the key.
const KEY_LEN: usize = 32;

/// Why nothing can be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file.
    #[error("cannot {operation} the key of the secrets, {path}: {source}{}", hint(.source))]
    File {
        /// What was tried.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in the file.
    #[error("{path} is not a key of secrets: {why}; put back the file that was there")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Something was sealed with another key, or has changed since.
    #[error("{what} does not open with the key in {path}; put back the key that belongs to this database")]
    Foreign {
        /// Name of what was sealed.
        what: String,
        /// The key's file.
        path: PathBuf,
    },
    /// The operating system gives no random bytes.
    #[error("no randomness: {0}")]
    Randomness(String),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; put back the file: without it the secrets in the database cannot be read",
        _ => "",
    }
}

/// Seals and opens.
pub(crate) struct Sealer {
    key: LessSafeKey,
    path: PathBuf,
}

impl Sealer {
    /// Reads the key.
    pub(crate) fn read(path: &Path) -> Result<Self, SealError> {
        let failed = |operation| move |source| SealError::File { operation, path: path.to_owned(), source };
        let bad = |why: String| SealError::Key { path: path.to_owned(), why };
        let bytes = fs::read(path).map_err(failed("read"))?;
        if let Some(why) = secret_file::exposure(path).map_err(failed("read"))? {
            return Err(bad(why));
        }
        if bytes.len() != KEY_LEN {
            return Err(bad(format!("it has {} bytes instead of {KEY_LEN}", bytes.len())));
        }
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|error| bad(error.to_string()))?;
        Ok(Self { key: LessSafeKey::new(key), path: path.to_owned() })
    }

    /// Reads the key, or makes one where there is none.
    pub(crate) fn read_or_make(path: &Path) -> Result<Self, SealError> {
        match Self::read(path) {
            Err(SealError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make(path)?;
                Self::read(path)
            }
            read => read,
        }
    }

    /// The bytes that stand for a value.
    pub(crate) fn seal(&self, name: &str, value: &SecretValue) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut text = value.reveal().as_bytes().to_vec();
        let aad = Aad::from(name.as_bytes());
        let tag = self.key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text);
        let tag = tag.map_err(|_| self.foreign(name))?;
        Ok([&nonce[..], &text, tag.as_ref()].concat())
    }

    /// The value that such bytes stand for.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Result<SecretValue, SealError> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(|| self.foreign(name))?;
        let mut text = text.to_vec();
        let aad = Aad::from(name.as_bytes());
        let opened = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut text);
        let opened = opened.map_err(|_| self.foreign(name))?;
        let text = String::from_utf8(opened.to_vec()).map_err(|_| self.foreign(name))?;
        Ok(SecretValue::new(text))
    }

    fn foreign(&self, name: &str) -> SealError {
        SealError::Foreign { what: format!("{name:?}"), path: self.path.clone() }
    }
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|error| SealError::Randomness(error.to_string()))?;
    Ok(bytes)
}

fn make(path: &Path) -> Result<(), SealError> {
    let bytes: [u8; KEY_LEN] = random()?;
    // Half a key would be refused at every later start.
    let written = secret_file::write(path, &bytes);
    written.map_err(|source| SealError::File { operation: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn value(text: &str) -> SecretValue {
        SecretValue::new(text.to_owned())
    }

    /// What is said about sealed bytes that do not open.
    #[track_caller]
    fn check_refused(sealer: &Sealer, name: &str, sealed: &[u8]) {
        let words = sealer.open(name, sealed).expect_err("refused").to_string();
        assert!(words.contains("does not open with the key"), "{words}");
    }

    #[test]
    fn a_sealed_value_opens_with_its_key_and_name_only() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("key");
        let sealer = Sealer::read_or_make(&path).expect("made");
        let sealed = sealer.seal("A", &value("hunter2")).expect("sealed");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(sealed, sealer.seal("A", &value("hunter2")).expect("sealed"), "the same twice");
        let again = Sealer::read_or_make(&path).expect("read");
        assert_eq!(again.open("A", &sealed).expect("opened"), value("hunter2"));
        check_refused(&again, "B", &sealed);
        check_refused(&again, "A", &sealed[..9]);
        for bit in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[bit] ^= 1;
            check_refused(&again, "A", &changed);
        }
        let other = Sealer::read_or_make(&dir.path().join("other")).expect("made");
        check_refused(&other, "A", &sealed);
    }

    #[test]
    fn a_key_file_that_is_not_one_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("key");
        let refused = |path: &Path| Sealer::read(path).err().expect("refused").to_string();
        assert!(refused(&path).contains("put back the file"), "{}", refused(&path));
        drop(Sealer::read_or_make(&path).expect("made"));
        assert_eq!(fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("mode");
        assert!(refused(&path).contains("mode is 640"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        fs::write(&path, "short").expect("write");
        assert!(refused(&path).contains("5 bytes instead of 32"));
    }
}
