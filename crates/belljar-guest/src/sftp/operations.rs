//! What each SFTP request does to the file system.

use std::{
    ffi::OsString,
    fs::{self, FileTimes, OpenOptions, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, fchown},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{UtimensatFlags, utimensat},
        statvfs::statvfs,
        time::TimeSpec,
    },
};

use super::{
    Answer, Failure, Open, Session,
    wire::{Attributes, Fields, Packet, kind, long_name},
};
use crate::limits::{SFTP_DATA_MAX, SFTP_HANDLES_MAX, SFTP_NAMES, SFTP_PACKET_MAX};

const OPEN_READ: u32 = 0x01;
const OPEN_WRITE: u32 = 0x02;
const OPEN_APPEND: u32 = 0x04;
const OPEN_CREATE: u32 = 0x08;
const OPEN_TRUNCATE: u32 = 0x10;
const OPEN_NEW: u32 = 0x20;
/// The bits of a mode that a client may set.
const MODE_BITS: u32 = 0o7777;

impl Session {
    pub(super) fn open_file(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let (path, flags, attributes) = (fields.path()?, fields.u32()?, fields.attributes()?);
        let has = |flag| flags & flag != 0;
        let append = has(OPEN_APPEND);
        let file = OpenOptions::new()
            .read(has(OPEN_READ))
            .write(has(OPEN_WRITE) && !append)
            .append(append)
            .create(has(OPEN_CREATE))
            .truncate(has(OPEN_TRUNCATE) && !append)
            .create_new(has(OPEN_CREATE) && has(OPEN_NEW))
            .mode(attributes.mode.map_or(0o666, |mode| mode & MODE_BITS))
            // A pipe or a terminal must not hold the session up.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let handle = self.enter(Open::File { file, append })?;
        Ok(Some(Packet::answer(kind::HANDLE, id).bytes(&handle.to_be_bytes())))
    }

    pub(super) fn read(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let (file, _) = self.file(fields)?;
        let (offset, length) = (fields.u64()?, fields.u32()?);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(SFTP_DATA_MAX);
        let mut data = vec![0; length];
        match file.read_at(&mut data, offset)? {
            0 if length > 0 => Err(Failure::End),
            count => Ok(Some(Packet::answer(kind::DATA, id).bytes(&data[..count]))),
        }
    }

    pub(super) fn write(&mut self, fields: &mut Fields<'_>) -> Answer {
        let (mut file, append) = self.file(fields)?;
        let (offset, data) = (fields.u64()?, fields.bytes()?);
        match append {
            true => io::Write::write_all(&mut file, data)?,
            false => file.write_all_at(data, offset)?,
        }
        Ok(None)
    }

    pub(super) fn stat_open(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let metadata = match self.opened(fields)? {
            Open::File { file, .. } => file.metadata()?,
            Open::Directory { path, .. } => fs::metadata(path)?,
        };
        Ok(Some(Packet::answer(kind::ATTRS, id).attributes(&metadata)))
    }

    pub(super) fn change_open(&mut self, fields: &mut Fields<'_>) -> Answer {
        let (file, _) = self.file(fields)?;
        let wanted = fields.attributes()?;
        if let Some(size) = wanted.size {
            file.set_len(size)?;
        }
        if let Some(mode) = wanted.mode {
            file.set_permissions(Permissions::from_mode(mode & MODE_BITS))?;
        }
        if let Some((accessed, modified)) = wanted.times {
            let at = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
            file.set_times(FileTimes::new().set_accessed(at(accessed)).set_modified(at(modified)))?;
        }
        if let Some((uid, gid)) = wanted.owner {
            fchown(file, Some(uid), Some(gid))?;
        }
        Ok(None)
    }

    pub(super) fn open_directory(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = fields.path()?;
        let mut names: Vec<OsString> = vec![".".into(), "..".into()];
        for entry in fs::read_dir(&path)? {
            names.push(entry?.file_name());
        }
        let handle = self.enter(Open::Directory { path, names: names.into_iter() })?;
        Ok(Some(Packet::answer(kind::HANDLE, id).bytes(&handle.to_be_bytes())))
    }

    pub(super) fn read_directory(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let Open::Directory { path, names } = self.opened(fields)? else { return Err(Failure::NoHandle) };
        let mut found = Vec::new();
        for name in names {
            // What was removed meanwhile is not told.
            if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                found.push((name, metadata));
            }
            if found.len() == SFTP_NAMES {
                break;
            }
        }
        if found.is_empty() {
            return Err(Failure::End);
        }
        let start = Packet::answer(kind::NAME, id).u32(u32::try_from(found.len()).unwrap_or(0));
        Ok(Some(found.iter().fold(start, |packet, (name, metadata)| {
            packet.bytes(name.as_bytes()).bytes(&long_name(name, metadata)).attributes(metadata)
        })))
    }
}

pub(super) fn stat(id: u32, fields: &mut Fields<'_>, follow: bool) -> Answer {
    let path = fields.path()?;
    let metadata = if follow { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
    Ok(Some(Packet::answer(kind::ATTRS, id).attributes(&metadata)))
}

pub(super) fn change(fields: &mut Fields<'_>) -> Answer {
    let (path, wanted) = (fields.path()?, fields.attributes()?);
    let Attributes { size, owner, mode, times } = wanted;
    if let Some(size) = size {
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path)?.set_len(size)?;
    }
    if let Some(mode) = mode {
        fs::set_permissions(&path, Permissions::from_mode(mode & MODE_BITS))?;
    }
    if let Some((accessed, modified)) = times {
        let at = |seconds: u32| TimeSpec::new(seconds.into(), 0);
        utimensat(AT_FDCWD, &path, &at(accessed), &at(modified), UtimensatFlags::FollowSymlink)?;
    }
    if let Some((uid, gid)) = owner {
        chown(&path, Some(uid), Some(gid))?;
    }
    Ok(None)
}

pub(super) fn remove(fields: &mut Fields<'_>) -> Answer {
    fs::remove_file(fields.path()?)?;
    Ok(None)
}

pub(super) fn make_directory(fields: &mut Fields<'_>) -> Answer {
    let (path, attributes) = (fields.path()?, fields.attributes()?);
    let mode = attributes.mode.map_or(0o777, |mode| mode & MODE_BITS);
    fs::DirBuilder::new().mode(mode).create(path)?;
    Ok(None)
}

pub(super) fn remove_directory(fields: &mut Fields<'_>) -> Answer {
    fs::remove_dir(fields.path()?)?;
    Ok(None)
}

/// Version 3 says that nothing is replaced.
pub(super) fn rename(fields: &mut Fields<'_>) -> Answer {
    let (from, to) = (fields.path()?, fields.path()?);
    if fs::symlink_metadata(&to).is_ok() {
        return Err(Failure::Exists);
    }
    fs::rename(from, to)?;
    Ok(None)
}

pub(super) fn replace(fields: &mut Fields<'_>) -> Answer {
    fs::rename(fields.path()?, fields.path()?)?;
    Ok(None)
}

pub(super) fn hard_link(fields: &mut Fields<'_>) -> Answer {
    fs::hard_link(fields.path()?, fields.path()?)?;
    Ok(None)
}

/// Where to, then what: the order of OpenSSH, which every client follows, and not that of the draft.
pub(super) fn symlink(fields: &mut Fields<'_>) -> Answer {
    let (target, link) = (fields.path()?, fields.path()?);
    std::os::unix::fs::symlink(target, link)?;
    Ok(None)
}

fn one_name(id: u32, path: &Path) -> Answer {
    Ok(Some(Packet::answer(kind::NAME, id).u32(1).path(path).path(path).no_attributes()))
}

pub(super) fn read_link(id: u32, fields: &mut Fields<'_>) -> Answer {
    one_name(id, &fs::read_link(fields.path()?)?)
}

pub(super) fn real_path(id: u32, fields: &mut Fields<'_>) -> Answer {
    one_name(id, &resolve(&fields.path()?)?)
}

/// As [`real_path`], after `~` and `~/` were put out; other users' homes are not looked up.
pub(super) fn expand_path(id: u32, fields: &mut Fields<'_>) -> Answer {
    let path = fields.path()?;
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let expanded = path.strip_prefix("~").map_or_else(|_| path.clone(), |rest| home().join(rest));
    one_name(id, &resolve(&expanded)?)
}

/// The path without links and dots. One that is not there yet is put together as it is written: clients ask so for what
/// they are about to make.
fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return Ok(other?),
    }
    let mut resolved = PathBuf::new();
    for part in std::env::current_dir()?.join(path).components() {
        match part {
            Component::ParentDir => drop(resolved.pop()),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) | Component::Normal(_) => resolved.push(part),
        }
    }
    Ok(resolved)
}

pub(super) fn file_system(id: u32, fields: &mut Fields<'_>) -> Answer {
    let path = fields.path()?;
    let found = statvfs(&path)?;
    Ok(Some(
        Packet::answer(kind::EXTENDED_REPLY, id)
            .u64(found.block_size())
            .u64(found.fragment_size())
            .u64(found.blocks())
            .u64(found.blocks_free())
            .u64(found.blocks_available())
            .u64(found.files())
            .u64(found.files_free())
            .u64(found.files_available())
            .u64(found.filesystem_id())
            .u64(u64::from(found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY)))
            .u64(found.name_max()),
    ))
}

/// Longest packet, longest read, longest write, most open handles.
pub(super) fn limits(id: u32) -> Packet {
    [SFTP_PACKET_MAX, SFTP_DATA_MAX, SFTP_DATA_MAX, SFTP_HANDLES_MAX]
        .into_iter()
        .fold(Packet::answer(kind::EXTENDED_REPLY, id), |packet, limit| packet.u64(limit as u64))
}
