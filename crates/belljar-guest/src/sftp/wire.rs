//! The form of SFTP packets, version 3 (draft-ietf-secsh-filexfer-02). Names are bytes, as the kernel has them.

use std::{
    ffi::OsStr,
    fs::Metadata,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use belljar_api::time::date;

use crate::limits::SFTP_PACKET_MAX;

/// Packet types.
pub(super) mod kind {
    pub(in super::super) const INIT: u8 = 1;
    pub(in super::super) const VERSION: u8 = 2;
    pub(in super::super) const OPEN: u8 = 3;
    pub(in super::super) const CLOSE: u8 = 4;
    pub(in super::super) const READ: u8 = 5;
    pub(in super::super) const WRITE: u8 = 6;
    pub(in super::super) const LSTAT: u8 = 7;
    pub(in super::super) const FSTAT: u8 = 8;
    pub(in super::super) const SETSTAT: u8 = 9;
    pub(in super::super) const FSETSTAT: u8 = 10;
    pub(in super::super) const OPENDIR: u8 = 11;
    pub(in super::super) const READDIR: u8 = 12;
    pub(in super::super) const REMOVE: u8 = 13;
    pub(in super::super) const MKDIR: u8 = 14;
    pub(in super::super) const RMDIR: u8 = 15;
    pub(in super::super) const REALPATH: u8 = 16;
    pub(in super::super) const STAT: u8 = 17;
    pub(in super::super) const RENAME: u8 = 18;
    pub(in super::super) const READLINK: u8 = 19;
    pub(in super::super) const SYMLINK: u8 = 20;
    pub(in super::super) const STATUS: u8 = 101;
    pub(in super::super) const HANDLE: u8 = 102;
    pub(in super::super) const DATA: u8 = 103;
    pub(in super::super) const NAME: u8 = 104;
    pub(in super::super) const ATTRS: u8 = 105;
    pub(in super::super) const EXTENDED: u8 = 200;
    pub(in super::super) const EXTENDED_REPLY: u8 = 201;
}

const ATTR_SIZE: u32 = 1;
const ATTR_OWNER: u32 = 2;
const ATTR_MODE: u32 = 4;
const ATTR_TIMES: u32 = 8;
const ATTR_EXTENDED: u32 = 1 << 31;

/// Reads one packet; `None` at the end of the stream. A length that no client sends ends the session.
pub(super) fn read_packet(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut length[1..])?,
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length == 0 || length > SFTP_PACKET_MAX {
        let words = format!("a packet of {length} bytes; the most is {SFTP_PACKET_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    let mut packet = vec![0; length];
    from.read_exact(&mut packet)?;
    Ok(Some(packet))
}

/// A packet is shorter than what it says.
#[derive(Debug)]
pub(super) struct Short;

/// The rest of a packet.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Short> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Short)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        self.take(8)?.try_into().map(u64::from_be_bytes).map_err(|_| Short)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| Short)?)
    }

    /// A path; the empty one is the directory where the session began.
    pub(super) fn path(&mut self) -> Result<PathBuf, Short> {
        let bytes = self.bytes()?;
        Ok(PathBuf::from(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Short> {
        let flags = self.u32()?;
        let has = |flag| flags & flag != 0;
        let mut attributes = Attributes::default();
        if has(ATTR_SIZE) {
            attributes.size = Some(self.u64()?);
        }
        if has(ATTR_OWNER) {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if has(ATTR_MODE) {
            attributes.mode = Some(self.u32()?);
        }
        if has(ATTR_TIMES) {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if has(ATTR_EXTENDED) {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

/// What a client wants a file to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Of access and of change, seconds since the epoch.
    pub(super) times: Option<(u32, u32)>,
}

/// A packet that is being written.
pub(super) struct Packet(Vec<u8>);

impl Packet {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    /// An answer to request `id`.
    pub(super) fn answer(kind: u8, id: u32) -> Self {
        Self::new(kind).u32(id)
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self = self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend(bytes);
        self
    }

    pub(super) fn path(self, path: &Path) -> Self {
        self.bytes(path.as_os_str().as_bytes())
    }

    pub(super) fn no_attributes(self) -> Self {
        self.u32(0)
    }

    pub(super) fn attributes(self, of: &Metadata) -> Self {
        // The protocol's times end in 2106.
        let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
        self.u32(ATTR_SIZE | ATTR_OWNER | ATTR_MODE | ATTR_TIMES)
            .u64(of.size())
            .u32(of.uid())
            .u32(of.gid())
            .u32(of.mode())
            .u32(seconds(of.atime()))
            .u32(seconds(of.mtime()))
    }

    /// The packet with its length in front.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// A line as `ls -l` shows it, for people; programs read the attributes.
pub(super) fn long_name(name: &OsStr, of: &Metadata) -> Vec<u8> {
    let kind = match of.mode() & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let letters: String =
        (0..9).rev().map(|bit| if of.mode() >> bit & 1 == 1 { ['x', 'w', 'r'][bit % 3] } else { '-' }).collect();
    let (year, month, day) = date(of.mtime().div_euclid(86_400));
    let minutes = of.mtime().rem_euclid(86_400) / 60;
    let mut line = format!(
        "{kind}{letters} {:>4} {:<8} {:<8} {:>10} {year:04}-{month:02}-{day:02} {:02}:{:02} ",
        of.nlink(),
        of.uid(),
        of.gid(),
        of.size(),
        minutes / 60,
        minutes % 60,
    )
    .into_bytes();
    line.extend(name.as_bytes());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_never_says_more_than_it_has() {
        let mut fields = Fields(&[0, 0, 0, 9, 1, 2]);
        assert!(fields.bytes().is_err());
        assert!(Fields(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).attributes().is_err());
        let too_long: &[u8] = &[0x7f, 0xff, 0xff, 0xff];
        assert!(read_packet(&mut &*too_long).is_err());
        assert!(read_packet(&mut [0_u8; 4].as_slice()).is_err());
        assert!(matches!(read_packet(&mut b"".as_slice()), Ok(None)));
        assert!(read_packet(&mut [0, 0].as_slice()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let mut fields = Fields(&bytes);
            while fields.attributes().is_ok() && fields.path().is_ok() {}
        }
    }
}
