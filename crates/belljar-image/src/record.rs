//! What the store keeps about an image, on disk as JSON and in memory.
//!
//! Both files carry a format number; a file of another number, or larger than its bound, is refused and never guessed at.
//! What was added later is left out where it says nothing, so both older and newer versions read such a file.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    digest,
    error::ImageError,
    limits::{MAX_HISTORY, MAX_HISTORY_BYTES, MAX_RECORD_BYTES},
};

/// Format number of `image.json`.
const IMAGE_FORMAT: u32 = 1;
/// Format number of a name's file.
const NAME_FORMAT: u32 = 1;

/// Name of the root file system in an image's directory.
pub(crate) const ROOTFS: &str = "rootfs.ext4";
/// Name of the record in an image's directory.
pub(crate) const RECORD: &str = "image.json";

/// The label that says what a machine of the image has as its process 1; without it that is the agent. It goes along wherever an
/// image's configuration goes: into images that are built on top of it, and through registries.
pub const INIT_LABEL: &str = "belljar.init";
/// The value of [`INIT_LABEL`] of an image whose `/sbin/init` is systemd.
pub const INIT_SYSTEMD: &str = "systemd";

/// What a sandbox takes over from its image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Environment variables of every process.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` is the user's home.
    pub workdir: Option<String>,
    /// `name`, `uid` or `uid:gid`; `None` is `tl-user`.
    pub user: Option<String>,
    /// Program that starts with the sandbox.
    pub entrypoint: Vec<String>,
    /// Its arguments.
    pub cmd: Vec<String>,
    /// What its maker notes about it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Ports that its programs listen on: `8080/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
}

/// One step of what its maker did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    /// When, as its maker writes it: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Whatever its maker notes about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether it changed no file.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl HistoryEntry {
    /// Bytes of its words.
    fn bytes(&self) -> usize {
        self.created.as_ref().map_or(0, String::len) + self.created_by.len() + self.comment.len()
    }
}

/// As much of a history as a record keeps: the last steps of it, oldest first. What is cut off is only for people.
pub(crate) fn bounded(mut history: Vec<HistoryEntry>) -> Vec<HistoryEntry> {
    let mut left = MAX_HISTORY_BYTES;
    let kept = history.iter().rev().take(MAX_HISTORY).take_while(|entry| {
        let fits = entry.bytes() <= left;
        left = left.saturating_sub(entry.bytes());
        fits
    });
    let kept = kept.count();
    history.split_off(history.len() - kept)
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Content address of the root file system: `blake3:<64 hex>`.
    pub digest: String,
    /// The root file system: a raw ext4 file, never written to.
    pub rootfs: PathBuf,
    /// Bytes of that file, holes included.
    pub size_bytes: u64,
    /// Bytes it took on disk when it was built.
    pub disk_bytes: u64,
    /// When it was built, RFC 3339 in UTC.
    pub created_at: String,
    /// Debian suite it was built from; empty for one that was imported.
    pub suite: String,
    /// Where it was imported from, with the digest that it had there.
    pub origin: Option<String>,
    /// Its Debian packages and their versions.
    pub packages: BTreeMap<String, String>,
    /// What a sandbox takes over from it.
    pub config: RuntimeConfig,
    /// How it came about, where its maker says so; oldest first.
    pub history: Vec<HistoryEntry>,
    /// Whether its bytes were there before, with another configuration.
    pub(crate) is_variant: bool,
}

impl Image {
    /// What it is called in the API: `image_` and the first 21 hexadecimal digits of its content address, or of a hash of
    /// that and its configuration, when another image has the same bytes.
    #[must_use]
    pub fn id(&self) -> String {
        if !self.is_variant {
            return digest::to_id(&self.digest);
        }
        let mut hasher = blake3::Hasher::new();
        // Text and maps of text: it cannot fail.
        hasher.update(self.digest.as_bytes()).update(&serde_json::to_vec(&self.config).unwrap_or_default());
        digest::to_id(&hasher.finalize().to_hex())
    }

    /// What has to be kept of `self` where `there` has the same bytes; `None` when it says the same.
    pub(crate) fn beside(&self, there: &Self) -> Option<Variant> {
        let variant = Variant {
            created_at: self.created_at.clone(),
            origin: self.origin.clone(),
            config: self.config.clone(),
            history: self.history.clone(),
        };
        let says = |image: &Self| (image.origin.clone(), image.config.clone(), image.history.clone());
        (says(self) != says(there)).then_some(variant)
    }

    /// The image that has these bytes, and says what the variant says.
    pub(crate) fn varied(self, variant: Option<&Variant>) -> Self {
        let Some(Variant { created_at, origin, config, history }) = variant.cloned() else { return self };
        let is_variant = config != self.config;
        Self { created_at, origin, config, history, is_variant, ..self }
    }

    /// Quick check, some microseconds: the file is there, has its size and an ext4 superblock.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] says what does not match.
    pub fn verify(&self) -> Result<(), ImageError> {
        /// Where the superblock has its two magic bytes, and which.
        const MAGIC_AT: u64 = 1024 + 0x38;
        const MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();
        let mut file = File::open(&self.rootfs).map_err(|error| self.damaged(format!("{ROOTFS}: {error}")))?;
        let size = file.metadata().map_err(ImageError::io("read", &self.rootfs))?.len();
        if size != self.size_bytes {
            return Err(self.damaged(format!("{ROOTFS} has {size} bytes instead of {}", self.size_bytes)));
        }
        let mut magic = [0; 2];
        file.seek(SeekFrom::Start(MAGIC_AT))
            .and_then(|_| file.read_exact(&mut magic))
            .map_err(|error| self.damaged(format!("{ROOTFS}: {error}")))?;
        if magic != MAGIC {
            return Err(self.damaged(format!("{ROOTFS} is not an ext4 file system")));
        }
        Ok(())
    }

    /// Reads the whole file and compares its content address: a second or two.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when any byte differs from what was built.
    pub fn verify_content(&self) -> Result<(), ImageError> {
        self.verify()?;
        let found = digest::of_file(&self.rootfs)?;
        if found == self.digest {
            Ok(())
        } else {
            Err(self.damaged(format!("the content of {ROOTFS} has the address {found}")))
        }
    }

    fn damaged(&self, reason: String) -> ImageError {
        let path = self.rootfs.parent().unwrap_or(&self.rootfs).to_owned();
        ImageError::Damaged { digest: self.digest.clone(), path, reason }
    }

    /// Reads the image in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(RECORD);
        let record: ImageRecord = read_json(&path)?;
        check_format(&path, record.format, IMAGE_FORMAT)?;
        if dir.file_name().is_none_or(|name| name != digest::to_dir_name(&record.digest).as_str()) {
            return Err(ImageError::BadRecord {
                path,
                reason: format!("it describes another image, {}", record.digest),
            });
        }
        Ok(Self {
            digest: record.digest,
            rootfs: dir.join(ROOTFS),
            size_bytes: record.size_bytes,
            disk_bytes: record.disk_bytes,
            created_at: record.created_at,
            suite: record.suite,
            origin: record.origin,
            packages: record.packages,
            config: record.config,
            history: record.history,
            is_variant: false,
        })
    }

    /// Writes the record into `dir`, where the root file system already lies.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), ImageError> {
        let record = ImageRecord {
            format: IMAGE_FORMAT,
            digest: self.digest.clone(),
            size_bytes: self.size_bytes,
            disk_bytes: self.disk_bytes,
            created_at: self.created_at.clone(),
            suite: self.suite.clone(),
            origin: self.origin.clone(),
            config: self.config.clone(),
            packages: self.packages.clone(),
            history: self.history.clone(),
        };
        write_json(&dir.join(RECORD), &record)
    }
}

/// `image.json`.
#[derive(Debug, Serialize, Deserialize)]
struct ImageRecord {
    format: u32,
    digest: String,
    size_bytes: u64,
    disk_bytes: u64,
    created_at: String,
    suite: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    config: RuntimeConfig,
    packages: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<HistoryEntry>,
}

/// What an image says of itself that has the bytes of another. Two images of elsewhere often differ in nothing but their
/// configuration: then there is one file, and each name knows what its image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Variant {
    created_at: String,
    origin: Option<String>,
    config: RuntimeConfig,
    history: Vec<HistoryEntry>,
}

/// A name's file: which image it stands for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    format: u32,
    pub(crate) name: String,
    pub(crate) digest: String,
    /// Whether it is there for every project; those of older versions all are.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub(crate) public: bool,
    /// What its image says, where that is not what the image's own record says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<Variant>,
}

fn yes() -> bool {
    true
}

impl NameRecord {
    pub(crate) fn new(name: &str, digest: &str, public: bool, variant: Option<Variant>) -> Self {
        Self { format: NAME_FORMAT, name: name.to_owned(), digest: digest.to_owned(), public, variant }
    }

    /// The same, for every project or not.
    pub(crate) fn shown(self, public: bool) -> Self {
        Self { public, ..self }
    }

    /// The same for another name.
    pub(crate) fn called(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    pub(crate) fn read(path: &Path) -> Result<Self, ImageError> {
        let record: Self = read_json(path)?;
        check_format(path, record.format, NAME_FORMAT)?;
        if !digest::is_valid(&record.digest) {
            return Err(ImageError::BadRecord {
                path: path.to_owned(),
                reason: "its digest is not a content address".into(),
            });
        }
        Ok(record)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), ImageError> {
        write_json(path, self)
    }
}

/// Bytes that a file takes on disk, holes left out.
pub(crate) fn disk_bytes(file: &fs::Metadata) -> u64 {
    /// Unit of `st_blocks`, whatever the file system.
    const STAT_BLOCK: u64 = 512;
    file.blocks() * STAT_BLOCK
}

fn check_format(path: &Path, found: u32, expected: u32) -> Result<(), ImageError> {
    if found == expected {
        return Ok(());
    }
    let reason = format!("it has format {found}, this version of belljar reads format {expected}");
    Err(ImageError::BadRecord { path: path.to_owned(), reason })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let bytes = read_bounded(path, MAX_RECORD_BYTES)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ImageError::BadRecord { path: path.to_owned(), reason: error.to_string() })
}

/// Reads a file that may not have more than `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(ImageError::BadRecord { path: path.to_owned(), reason: format!("it has more than {limit} bytes") });
    }
    Ok(bytes)
}

/// Writes beside `path`, then renames over it: a reader finds the old file or the new one.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| ImageError::BadRecord { path: path.to_owned(), reason: error.to_string() })?;
    text.push(b'\n');
    if text.len() as u64 > MAX_RECORD_BYTES {
        // It could be written, and nobody could read it again.
        let reason = format!("its record would have more than {MAX_RECORD_BYTES} bytes");
        return Err(ImageError::BadRecord { path: path.to_owned(), reason });
    }
    let new = path.with_extension("json.new");
    let mut file = File::create(&new).map_err(ImageError::io("create", &new))?;
    let written = file
        .write_all(&text)
        .and_then(|()| file.sync_all())
        .map_err(ImageError::io("write", &new))
        .and_then(|()| fs::rename(&new, path).map_err(ImageError::io("rename a file to", path)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
#[path = "record_test.rs"]
mod tests;
