//! What the tests of an import share: layers that are made here, trees that can be compared, and root where it is needed.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::layer::hex;

/// Whether this test can change owners and make devices; says so by name where not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test}: skipped: owners and devices need root");
    }
    root
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

/// A tar archive that is made entry by entry.
pub(super) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(super) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    /// Any entry; its name is written as it is, which no library would do with a hostile one.
    pub(super) fn raw(mut self, kind: tar::EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        header.set_size(content.len() as u64);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(super) fn file(self, name: &str, content: &str) -> Self {
        self.raw(tar::EntryType::Regular, name, "", 0o644, content.as_bytes())
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.raw(tar::EntryType::Directory, name, "", 0o750, b"")
    }

    pub(super) fn symlink(self, name: &str, to: &str) -> Self {
        self.raw(tar::EntryType::Symlink, name, to, 0o777, b"")
    }

    pub(super) fn hard_link(self, name: &str, to: &str) -> Self {
        self.raw(tar::EntryType::Link, name, to, 0o644, b"")
    }

    /// PAX records for the entry that follows.
    pub(super) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }
}

/// Everything in a tree: kind, mode, owner, time, what it is a link to or what is in it, and its attributes.
pub(super) fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let kind = rustix::fs::FileType::from_raw_mode(meta.mode());
        let content = if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if meta.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if meta.is_file() {
            format!("{} bytes {}", meta.len(), sha256(&fs::read(&path).unwrap()))
        } else {
            let device = meta.rdev();
            format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
        };
        let time = (meta.mtime(), meta.mtime_nsec());
        let text = format!(
            "{kind:?} {:o} {}:{} {time:?} {content} {}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            attributes(&path)
        );
        if !meta.is_dir() && meta.nlink() > 1 {
            first_names.entry(meta.ino()).or_insert_with(Vec::new).push(name.clone());
        }
        found.insert(name, text);
    }
    // Names of one file name each other.
    for names in first_names.values_mut() {
        names.sort();
        for name in names.iter() {
            found.get_mut(name).unwrap().push_str(&format!(" = {names:?}"));
        }
    }
    found
}

fn attributes(path: &Path) -> String {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut names: Vec<&[u8]> = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 64 << 10];
        let name = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        text.push_str(&format!("{}={:02x?}", name.to_string_lossy(), &value[..length]));
    }
    text
}
