//! Layers, one above the other, become a file tree. As root: it keeps owners, attributes and device nodes.
//!
//! A layer's `.wh.NAME` removes NAME of the layers below, `.wh..wh..opq` all that they have in a directory; what the same
//! layer brings stays, in whatever order it comes. What a layer brings anew replaces what was there; a directory only
//! takes on its mode, owner and time. Nothing outside of the tree is touched: see `root`. Called by `import`.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::{
    fs::{self, AtFlags, Gid, Mode, OFlags, Uid, XattrFlags},
    io::Errno,
};

use super::{
    Caps,
    archive::{Archive, ArchiveError, Kind, Member, printable},
    error::OciError,
    root::{self, Place, Root, WHITEOUT},
};
use crate::limits::SPACE_CHECK_BYTES;

/// Removes all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins what a file system for layers noted for itself.
const OWN_NOTES: &[u8] = b".wh..wh.";

/// Bytes of a file that are handled at once. Where all of them are zero there will be a hole.
const CHUNK: usize = 128 << 10;

/// Unit in which a tree's size is counted: a block of its file system.
const BLOCK: u64 = 4096;

/// A tree that layers are unpacked to.
pub(super) struct Tree<'a> {
    path: PathBuf,
    root: Root,
    caps: &'a Caps,
    /// What was unpacked so far.
    pub(super) total: Total,
    /// Bytes that were written since the disk was looked at.
    unchecked: u64,
    buffer: Vec<u8>,
}

/// Sums of all layers; what was replaced by a later one counts too.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) entries: u64,
    /// Of data, in whole blocks.
    pub(super) bytes: u64,
    /// Newest time of a file, seconds since 1970.
    pub(super) newest: i64,
}

/// Names that the present layer brought, each a hash of its directory's number and itself.
#[derive(Default)]
struct Brought(HashSet<u64>);

impl Brought {
    fn add(&mut self, dir: u64, name: &[u8]) {
        self.0.insert(Self::key(dir, name));
    }

    fn has(&self, dir: u64, name: &[u8]) -> bool {
        self.0.contains(&Self::key(dir, name))
    }

    fn key(dir: u64, name: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&dir.to_le_bytes()).update(name);
        let mut key = [0; 8];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(key)
    }
}

/// Why one member was not unpacked.
enum Fault {
    /// It makes no sense.
    Bad(String),
    System(Errno),
    Archive(ArchiveError),
    Limit(OciError),
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Bad(reason)
    }
}

impl<'a> Tree<'a> {
    /// An empty tree in the directory `path`, which is made.
    pub(super) fn new(path: &Path, caps: &'a Caps) -> io::Result<Self> {
        std::fs::create_dir(path)?;
        let root = Root::open(path)?;
        // The first layer says when the root was made, if any does.
        fs::futimens(root.directory(&[])?, &root::times((0, 0)))?;
        fs::chmod(path, Mode::from_raw_mode(0o755))?;
        let (total, buffer) = (Total::default(), vec![0; CHUNK]);
        Ok(Self { path: path.to_owned(), root, caps, total, unchecked: 0, buffer })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unpacks one layer; gives what is behind it in its stream.
    pub(super) fn apply<R: Read>(&mut self, layer: &str, source: R) -> Result<R, OciError> {
        let mut archive = Archive::new(source);
        let mut brought = Brought::default();
        self.check_space()?;
        while let Some(member) = archive.next().map_err(|error| of_archive(layer, error))? {
            self.total.entries += 1;
            if self.total.entries > self.caps.entries {
                let what = format!("the number of files up to layer {layer}");
                return Err(OciError::TooLarge { what, limit: self.caps.entries });
            }
            self.member(&member, &mut archive, &mut brought).map_err(|fault| named(layer, &member, fault))?;
        }
        Ok(archive.into_rest())
    }

    /// Makes a directory that the image names and no layer has, as a container engine would.
    pub(super) fn ensure_directory(&self, path: &str) -> Result<(), OciError> {
        let about = |reason: String| OciError::BadDocument { what: format!("the working directory {path:?}"), reason };
        let place = Place::parse(path.as_bytes()).map_err(about)?;
        let mut parts = place.above;
        parts.extend(place.name);
        self.root.make_directory(&parts).map(drop).map_err(|error| about(error.to_string()))
    }

    fn member<R: Read>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        brought: &mut Brought,
    ) -> Result<(), Fault> {
        let place = Place::parse(&member.name)?;
        let Some(name) = place.name else {
            return self.root_itself(member);
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&place.above, name, brought);
        }
        let dir = self.root.make_directory(&place.above)?;
        let kept = fs::fstat(&dir)?;
        brought.add(kept.st_ino, name);
        match member.kind {
            Kind::Directory => make_directory(&dir, name)?,
            Kind::HardLink => self.hard_link(&dir, name, &member.link)?,
            _ => {
                root::remove(&dir, name, &|_, _| true)?;
                self.make(&dir, name, member, archive)?;
            }
        }
        if member.kind != Kind::HardLink {
            finish(&dir, name, member)?;
            self.note_time(member);
        }
        Ok(root::restore_times(&dir, &kept)?)
    }

    /// The directory that everything lies in.
    fn root_itself(&mut self, member: &Member) -> Result<(), Fault> {
        if member.kind != Kind::Directory {
            return Err(Fault::Bad("stands where the root directory belongs".to_owned()));
        }
        let dir = self.root.directory(&[])?;
        finish(&dir, b".", member)?;
        self.note_time(member);
        Ok(())
    }

    fn whiteout(&self, above: &[&[u8]], name: &[u8], brought: &Brought) -> Result<(), Fault> {
        let gone = &name[WHITEOUT.len()..];
        root::check_name(gone)?;
        let dir = match self.root.directory(above) {
            // There is nothing to remove.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        let of_below = |dir: u64, name: &[u8]| !brought.has(dir, name);
        if name == OPAQUE {
            root::remove_content(&dir, &of_below)?;
        } else if !name.starts_with(OWN_NOTES) {
            let kept = fs::fstat(&dir)?;
            root::remove(&dir, gone, &of_below)?;
            root::restore_times(&dir, &kept)?;
        }
        Ok(())
    }

    fn hard_link(&self, dir: &OwnedFd, name: &[u8], to: &[u8]) -> Result<(), Fault> {
        let to_place =
            Place::parse(to).map_err(|reason| format!("is a link to {:?}, which {reason}", printable(to)))?;
        let missing = || Fault::Bad(format!("is a link to {:?}, which is not there", printable(to)));
        let target = to_place.name.ok_or_else(missing)?;
        let target_dir = self.root.directory(&to_place.above).map_err(|_| missing())?;
        let found = root::look(&target_dir, target)?.ok_or_else(missing)?;
        if root::is_directory(&found) {
            return Err(Fault::Bad(format!("is a link to {:?}, which is a directory", printable(to))));
        }
        if root::look(dir, name)?.is_some_and(|old| (old.st_dev, old.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        root::remove(dir, name, &|_, _| true)?;
        // A link at the end is linked itself, and not followed.
        let flags = AtFlags::empty();
        Ok(fs::linkat(&target_dir, OsStr::from_bytes(target), dir, OsStr::from_bytes(name), flags)?)
    }

    /// Makes what is neither a directory nor a hard link, where nothing is.
    fn make<R: Read>(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), Fault> {
        let name = OsStr::from_bytes(name);
        let private = Mode::from_raw_mode(0o600);
        let node = |kind| {
            let device = fs::makedev(member.device.0, member.device.1);
            fs::mknodat(dir, name, kind, private, device)
        };
        match member.kind {
            Kind::Symlink if member.link.is_empty() => return Err(Fault::Bad("is a link to nothing".to_owned())),
            Kind::Symlink => fs::symlinkat(OsStr::from_bytes(&member.link), dir, name)?,
            Kind::CharDevice => node(fs::FileType::CharacterDevice)?,
            Kind::BlockDevice => node(fs::FileType::BlockDevice)?,
            Kind::Fifo => node(fs::FileType::Fifo)?,
            Kind::File | Kind::HardLink | Kind::Directory => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(fs::openat(dir, name, flags, private)?);
                self.fill(&file, member, archive)?;
            }
        }
        Ok(())
    }

    /// Writes the data of a file, its holes left out.
    fn fill<R: Read>(&mut self, file: &File, member: &Member, archive: &mut Archive<R>) -> Result<(), Fault> {
        let data: u64 = member.segments.iter().map(|segment| segment.length).sum();
        let blocks = data.next_multiple_of(BLOCK) + member.segments.len().saturating_sub(1) as u64 * BLOCK;
        self.total.bytes = self.total.bytes.saturating_add(blocks);
        if self.total.bytes > self.caps.unpacked_bytes {
            let what = "what the layers unpack to".to_owned();
            return Err(Fault::Limit(OciError::TooLarge { what, limit: self.caps.unpacked_bytes }));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        for segment in &member.segments {
            let (mut at, mut left) = (segment.start, segment.length);
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                let count = fill_buffer(archive, &mut buffer[..wanted]).map_err(Fault::Archive)?;
                let chunk = &buffer[..count];
                if count < CHUNK || chunk.iter().any(|&byte| byte != 0) {
                    file.write_all_at(chunk, at).map_err(of_system)?;
                    self.written(count as u64)?;
                }
                at += count as u64;
                left -= count as u64;
            }
        }
        self.buffer = buffer;
        file.set_len(member.size).map_err(of_system)
    }

    fn written(&mut self, count: u64) -> Result<(), Fault> {
        self.unchecked += count;
        if self.unchecked >= SPACE_CHECK_BYTES {
            self.unchecked = 0;
            self.check_space().map_err(Fault::Limit)?;
        }
        Ok(())
    }

    fn check_space(&self) -> Result<(), OciError> {
        super::check_space(&self.path, 0, self.caps)
    }

    /// Times of the future are somebody's wrong clock.
    fn note_time(&mut self, member: &Member) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if u64::try_from(member.modified.0).is_ok_and(|time| time <= now) {
            self.total.newest = self.total.newest.max(member.modified.0);
        }
    }
}

/// A directory at a name, whatever was there; an old one loses its attributes, which the layer says anew.
fn make_directory(dir: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
    match root::look(dir, name)? {
        Some(found) if root::is_directory(&found) => {
            let path = root::path_in(dir, name);
            let mut list = vec![0; 64 << 10];
            let length = fs::llistxattr(&path, &mut list[..])?;
            for attribute in list[..length].split(|&byte| byte == 0).filter(|attribute| !attribute.is_empty()) {
                fs::lremovexattr(&path, attribute)?;
            }
        }
        found => {
            if found.is_some() {
                root::remove(dir, name, &|_, _| true)?;
            }
            fs::mkdirat(dir, OsStr::from_bytes(name), Mode::from_raw_mode(0o700))?;
        }
    }
    Ok(())
}

/// Owner, attributes, mode and time, in this order: a new owner takes capabilities and the set-uid bit away.
fn finish(dir: &OwnedFd, name: &[u8], member: &Member) -> Result<(), Fault> {
    let os_name = OsStr::from_bytes(name);
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    fs::chownat(dir, os_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !member.attributes.is_empty() {
        let path = root::path_in(dir, name);
        for (attribute, value) in &member.attributes {
            fs::lsetxattr(&path, attribute.as_slice(), value, XattrFlags::empty()).map_err(|error| {
                format!("has the extended attribute {:?}, which cannot be kept here: {error}", printable(attribute))
            })?;
        }
    }
    if member.kind != Kind::Symlink {
        fs::chmodat(dir, os_name, Mode::from_raw_mode(member.mode), AtFlags::empty())?;
    }
    Ok(fs::utimensat(dir, os_name, &root::times(member.modified), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn fill_buffer<R: Read>(archive: &mut Archive<R>, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
    let mut have = 0;
    while have < buffer.len() {
        match archive.read_data(&mut buffer[have..])? {
            0 => break,
            count => have += count,
        }
    }
    Ok(have)
}

fn of_system(error: io::Error) -> Fault {
    Fault::System(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// With the name of the layer.
fn of_archive(layer: &str, error: ArchiveError) -> OciError {
    let bad = |reason: String| OciError::BadLayer { layer: layer.to_owned(), reason };
    match error {
        ArchiveError::Io(error) => OciError::of_io(error, |error| bad(error.to_string())),
        ArchiveError::Malformed(reason) => bad(reason),
    }
}

/// With the names of the layer and of the member.
fn named(layer: &str, member: &Member, fault: Fault) -> OciError {
    let (layer, entry) = (layer.to_owned(), printable(&member.name));
    match fault {
        Fault::Limit(error) => error,
        Fault::Archive(error) => of_archive(&layer, error),
        Fault::Bad(reason) => OciError::BadEntry { layer, entry, reason },
        Fault::System(Errno::NOTDIR) => bad_entry(layer, entry, "lies below something that is no directory"),
        Fault::System(Errno::LOOP) => bad_entry(layer, entry, "lies behind links that lead in a circle"),
        Fault::System(Errno::NAMETOOLONG) => bad_entry(layer, entry, "lies too deep"),
        Fault::System(Errno::NOENT) => bad_entry(layer, entry, "lies below a link that leads nowhere"),
        Fault::System(error) => OciError::Entry { layer, entry, source: error.into() },
    }
}

fn bad_entry(layer: String, entry: String, reason: &str) -> OciError {
    OciError::BadEntry { layer, entry, reason: reason.to_owned() }
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod tests;
