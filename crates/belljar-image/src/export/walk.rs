//! From the root of a file system down, as members of a tar stream. Names are sorted, so that the same file system gives the
//! same layer.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Write},
};

use tar::EntryType;

use super::{
    ExportError,
    ext4::{Filesystem, Inode, Kind, ROOT, Stretch},
    stream::{self, Member},
};
use crate::limits::{MAX_DEPTH, MAX_ENTRIES, MAX_PATH_BYTES};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) entries: u64,
    pub(super) sockets: u64,
}

struct Walk<'a, W> {
    filesystem: &'a Filesystem,
    to: W,
    /// Where files with several names were met first.
    met: HashMap<u32, Vec<u8>>,
    directories: HashSet<u32>,
    /// Bytes of files and directories so far. No file system has more than its size: no two of them share a block.
    read: u64,
    read_max: u64,
    /// Whether holes are written out.
    fills_holes: bool,
    walked: Walked,
    progress: &'a mut dyn FnMut(u64),
}

/// Writes everything to `to`, and gives that back.
pub(super) fn walk<W: Write>(
    filesystem: &Filesystem,
    size: u64,
    fills_holes: bool,
    to: W,
    progress: &mut dyn FnMut(u64),
) -> Result<(Walked, W), ExportError> {
    let mut walk = Walk {
        filesystem,
        to,
        met: HashMap::new(),
        directories: HashSet::new(),
        read: 0,
        read_max: size,
        fills_holes,
        walked: Walked::default(),
        progress,
    };
    let root = filesystem.inode(ROOT)?;
    if root.kind != Kind::Directory {
        return Err(ExportError::damaged("its root is no directory"));
    }
    walk.directory(ROOT, &root, &mut b".".to_vec(), 0)?;
    stream::end(&mut walk.to).map_err(ExportError::Write)?;
    Ok((walk.walked, walk.to))
}

impl<W: Write> Walk<'_, W> {
    fn directory(&mut self, number: u32, inode: &Inode, path: &mut Vec<u8>, depth: usize) -> Result<(), ExportError> {
        if !self.directories.insert(number) {
            return Err(ExportError::damaged("a directory is in two places"));
        }
        if depth > MAX_DEPTH {
            return Err(ExportError::damaged("its directories are too deep"));
        }
        self.count(inode.size)?;
        let mut name = path.clone();
        name.push(b'/');
        self.member(EntryType::Directory, inode, &name, b"")?;
        for (name, number) in self.filesystem.entries(inode)? {
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&name);
            if path.len() > MAX_PATH_BYTES {
                return Err(ExportError::damaged("a path is too long"));
            }
            if name.starts_with(b".wh.") {
                return Err(ExportError::Whiteout(shown(path)));
            }
            let child = self.filesystem.inode(number)?;
            // `mke2fs` makes it anew wherever the image is unpacked into an ext4 file system.
            let is_found = depth == 0 && name == b"lost+found" && child.kind == Kind::Directory;
            if !is_found || !self.filesystem.entries(&child)?.is_empty() {
                self.entry(number, &child, path, depth)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, number: u32, inode: &Inode, path: &mut Vec<u8>, depth: usize) -> Result<(), ExportError> {
        if inode.kind == Kind::Directory {
            return self.directory(number, inode, path, depth + 1);
        }
        if inode.links > 1
            && let Some(first) = self.met.get(&number)
        {
            let first = first.clone();
            return self.member(EntryType::Link, inode, path, &first);
        }
        match inode.kind {
            Kind::File => self.file(inode, path)?,
            Kind::Symlink => {
                let target = self.filesystem.link(inode)?;
                self.member(EntryType::Symlink, inode, path, &target)?;
            }
            Kind::CharDevice => self.member(EntryType::Char, inode, path, b"")?,
            Kind::BlockDevice => self.member(EntryType::Block, inode, path, b"")?,
            Kind::Fifo => self.member(EntryType::Fifo, inode, path, b"")?,
            Kind::Socket | Kind::Directory => {
                self.walked.sockets += 1;
                return Ok(());
            }
        }
        if inode.links > 1 {
            self.met.insert(number, path.clone());
        }
        Ok(())
    }

    fn member(&mut self, kind: EntryType, inode: &Inode, name: &[u8], link: &[u8]) -> Result<(), ExportError> {
        self.begin(&describe(kind, inode, name, link))
    }

    fn begin(&mut self, member: &Member<'_>) -> Result<(), ExportError> {
        self.walked.entries += 1;
        if self.walked.entries > MAX_ENTRIES {
            return Err(ExportError::damaged("it has too many files"));
        }
        stream::begin(&mut self.to, member).map_err(ExportError::Write)
    }

    fn file(&mut self, inode: &Inode, path: &[u8]) -> Result<(), ExportError> {
        let stretches = self.filesystem.stretches(inode)?;
        let data: Vec<(u64, u64)> = stretches.iter().map(|it| (it.start, it.length)).collect();
        let map = if self.fills_holes { None } else { stream::sparse_map(&data, inode.size) };
        let mut member = describe(EntryType::Regular, inode, path, b"");
        (member.size, member.map) = (inode.size, map.as_deref());
        self.begin(&member)?;
        let is_sparse = member.map.is_some();
        let full: u64 = data.iter().map(|(_, length)| length).sum();
        // A hole costs nothing on the disk: long ones that are written out must not be more than there is room for.
        let is_long = !is_sparse && inode.size - full >= stream::HOLES_WORTH;
        self.count(if is_long { inode.size } else { full })?;
        let mut at = 0;
        for stretch in &stretches {
            if !is_sparse {
                self.zeros(stretch.start - at)?;
            }
            self.stretch(stretch)?;
            at = stretch.start + stretch.length;
        }
        if !is_sparse {
            self.zeros(inode.size - at)?;
        }
        stream::pad(&mut self.to, stream::stored_size(&member)).map_err(ExportError::Write)
    }

    fn count(&mut self, bytes: u64) -> Result<(), ExportError> {
        self.read = self.read.saturating_add(bytes);
        if self.read > self.read_max {
            return Err(ExportError::damaged("its files have more bytes than it has"));
        }
        (self.progress)(self.read);
        Ok(())
    }

    fn stretch(&mut self, stretch: &Stretch) -> Result<(), ExportError> {
        let Self { filesystem, to, .. } = self;
        filesystem.copy(stretch, &mut |bytes| to.write_all(bytes).map_err(ExportError::Write))
    }

    fn zeros(&mut self, count: u64) -> Result<(), ExportError> {
        io::copy(&mut io::Read::take(io::repeat(0), count), &mut self.to).map(drop).map_err(ExportError::Write)
    }
}

fn describe<'a>(kind: EntryType, inode: &'a Inode, name: &'a [u8], link: &'a [u8]) -> Member<'a> {
    Member {
        kind,
        name,
        link,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        modified: inode.modified,
        device: inode.device(),
        // Those of a link are its first name's.
        attributes: if kind == EntryType::Link { &[] } else { &inode.attributes },
        size: 0,
        map: None,
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path.strip_prefix(b".").unwrap_or(path)).into_owned()
}
