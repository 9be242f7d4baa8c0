//! Reads a tar stream member by member, with a bound on everything that is kept in memory.
//!
//! Headers are decoded by the crate `tar`; what stands between them is read here, because that crate reads long names and
//! attributes whole however long they are, and takes a line feed in an attribute's value for its end (the value of a
//! capability has one). It knows ustar, GNU and PAX headers, and sparse files as GNU tar writes them. It makes no files.
//!
//! ```text
//! next() ──► header ── L, K, x: kept for the member that follows ─┐
//!              ▲  └─── g: passed over ────────────────────────────┤
//!              └──────────────────────────────────────────────────┘
//!              └─── any other: Member ──► read_data()* ──► next()
//! ```

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::pax::{self, Extensions, Segment};
use crate::limits::{MAX_EXTENSION_BYTES, MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_SEGMENTS};

/// Unit of a tar stream.
const BLOCK_BYTES: usize = 512;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Why a tar stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// The bytes do not come.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes make no sense.
    #[error("{0}")]
    Malformed(String),
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Directory,
}

/// One file, directory, link or device.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Where a link leads; empty for all else.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) modified: (i64, u32),
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    /// Where its data lies in it, in order and without overlap.
    pub(super) segments: Vec<Segment>,
    /// Extended attributes.
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream.
pub(super) struct Archive<R> {
    source: R,
    /// Bytes of the present member that are not read yet, and those that fill its last block.
    data: u64,
    padding: u64,
    /// Bytes read so far.
    position: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, data: 0, padding: 0, position: 0 }
    }

    /// Goes on to the next member; what was not read of the last one is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        self.pass(self.data + self.padding)?;
        let mut found = Extensions::default();
        let mut room = MAX_EXTENSION_BYTES;
        loop {
            let Some(header) = self.header()? else {
                return if found.is_empty() { Ok(None) } else { Err(malformed("it ends within a member")) };
            };
            let size = header.entry_size().map_err(|error| malformed(&error.to_string()))?;
            match header.entry_type() {
                EntryType::GNULongName => found.long_name = Some(until_nul(&self.extension(size, &mut room)?)),
                EntryType::GNULongLink => found.long_link = Some(until_nul(&self.extension(size, &mut room)?)),
                EntryType::XHeader => found.add(&self.extension(size, &mut room)?).map_err(ArchiveError::Malformed)?,
                EntryType::XGlobalHeader => drop(self.extension(size, &mut room)?),
                _ => return self.member(&header, size, found).map(Some),
            }
        }
    }

    /// Reads data of the present member; 0 bytes at its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(malformed("it ends within a file"));
        }
        self.data -= count as u64;
        self.position += count as u64;
        Ok(count)
    }

    /// Where the data of the present member begins in the stream.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// What is behind the last member.
    pub(super) fn into_rest(self) -> R {
        self.source
    }

    fn member(&mut self, header: &Header, stored: u64, found: Extensions) -> Result<Member, ArchiveError> {
        let number = |what: &str, got: io::Result<u64>| {
            let got = got.ok().and_then(|number| u32::try_from(number).ok());
            got.ok_or_else(|| malformed(&format!("{what} of {:?} is no such number", printable(&header.path_bytes()))))
        };
        let name = found.name().unwrap_or_else(|| header.path_bytes().into_owned());
        let link = found.link().or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        if name.len() > MAX_PATH_BYTES || link.len() > MAX_PATH_BYTES {
            return Err(malformed(&format!("{:?} is longer than {MAX_PATH_BYTES} bytes", printable(&name))));
        }
        let kind = kind_of(header.entry_type(), &name, stored)
            .ok_or_else(|| malformed(&format!("{:?} is of an unknown kind", printable(&name))))?;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => (device(header.device_major())?, device(header.device_minor())?),
            _ => (0, 0),
        };
        let modified = found.modified.unwrap_or_else(|| (header.mtime().unwrap_or(0).cast_signed(), 0));
        let mut member = Member {
            kind,
            device,
            modified,
            mode: number("the mode", header.mode().map(u64::from))? & 0o7777,
            uid: number("the owner", found.uid.map_or_else(|| header.uid(), Ok))?,
            gid: number("the group", found.gid.map_or_else(|| header.gid(), Ok))?,
            size: 0,
            segments: Vec::new(),
            attributes: Vec::new(),
            name,
            link: if matches!(kind, Kind::HardLink | Kind::Symlink) { link } else { Vec::new() },
        };
        // All else has no data, whatever its header says.
        let stored = if kind == Kind::File { found.size.unwrap_or(stored) } else { 0 };
        self.data = stored;
        self.padding = stored.wrapping_neg() % BLOCK;
        if kind == Kind::File {
            self.lay_out(header, &found, stored, &mut member)?;
        }
        member.attributes = found.attributes;
        Ok(member)
    }

    /// Finds out where the data of a file lies in it.
    fn lay_out(
        &mut self,
        header: &Header,
        found: &Extensions,
        stored: u64,
        member: &mut Member,
    ) -> Result<(), ArchiveError> {
        let sparse = if header.entry_type() == EntryType::GNUSparse {
            Some(self.old_map(header)?)
        } else if found.map_in_data() {
            let map = self.map_in_data()?;
            Some((map, found.sparse_size.unwrap_or(0)))
        } else {
            found.map().map_err(ArchiveError::Malformed)?
        };
        let (segments, size) = sparse.unwrap_or_else(|| (vec![Segment { start: 0, length: stored }], stored));
        let about = |text: &str| malformed(&format!("{:?} {text}", printable(&member.name)));
        if size > MAX_FILE_BYTES {
            return Err(about(&format!("is larger than {MAX_FILE_BYTES} bytes")));
        }
        pax::check(&segments, size, self.data).map_err(|fault| about(&fault))?;
        (member.segments, member.size) = (segments, size);
        Ok(())
    }

    /// The map of a file that an older GNU tar wrote: in its header and in blocks behind that.
    fn old_map(&mut self, header: &Header) -> Result<(Vec<Segment>, u64), ArchiveError> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file has no GNU header"))?;
        let mut segments = Vec::new();
        let mut take = |blocks: &[tar::GnuSparseHeader]| -> Result<(), ArchiveError> {
            for block in blocks.iter().filter(|block| !block.is_empty()) {
                let number = |got: io::Result<u64>| got.map_err(|error| malformed(&error.to_string()));
                segments.push(Segment { start: number(block.offset())?, length: number(block.length())? });
            }
            if segments.len() > MAX_SEGMENTS { Err(malformed("a sparse file has too many pieces")) } else { Ok(()) }
        };
        take(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            exact(&mut self.source, block.as_mut_bytes())?;
            self.position += BLOCK;
            take(block.sparse())?;
            more = block.is_extended();
        }
        let size = gnu.real_size().map_err(|error| malformed(&error.to_string()))?;
        Ok((segments, size))
    }

    /// The map of a file that a newer GNU tar wrote: the first blocks of its data, a number in each line.
    fn map_in_data(&mut self) -> Result<Vec<Segment>, ArchiveError> {
        let mut numbers = Vec::new();
        let mut wanted = 1;
        let mut digits = String::new();
        let mut block = [0; BLOCK_BYTES];
        while numbers.len() < wanted {
            if self.data < BLOCK {
                return Err(malformed("the map of a sparse file is cut off"));
            }
            exact(&mut self.source, &mut block)?;
            self.data -= BLOCK;
            self.position += BLOCK;
            for &byte in &block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => digits.push(char::from(byte)),
                    b'\n' if numbers.len() < wanted => {
                        numbers.push(digits.parse::<u64>().map_err(|_| malformed("a sparse file has a bad map"))?);
                        digits.clear();
                    }
                    // What fills the last block.
                    _ if numbers.len() == wanted => break,
                    _ => return Err(malformed("a sparse file has a bad map")),
                }
                if let [count] = numbers[..] {
                    let count = usize::try_from(count).ok().filter(|&count| count <= MAX_SEGMENTS);
                    wanted = 1 + 2 * count.ok_or_else(|| malformed("a sparse file has too many pieces"))?;
                }
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| Segment { start: pair[0], length: pair[1] }).collect())
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut header = Header::new_old();
        if !exact_or_end(&mut self.source, header.as_mut_bytes())? {
            return Ok(None);
        }
        self.position += BLOCK;
        let bytes = header.as_bytes();
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        // The field of the sum itself counts as eight spaces.
        let sum: u32 = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]).map(|&byte| u32::from(byte)).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(malformed("it is no tar archive, or damaged"));
        }
        Ok(Some(header))
    }

    /// The content of a header that is about the member that follows.
    fn extension(&mut self, size: u64, room: &mut u64) -> Result<Vec<u8>, ArchiveError> {
        *room = room.checked_sub(size).ok_or_else(|| {
            malformed(&format!("what stands before a member has more than {MAX_EXTENSION_BYTES} bytes"))
        })?;
        let mut content = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        exact(&mut self.source, &mut content)?;
        self.position += size;
        self.pass(size.wrapping_neg() % BLOCK)?;
        Ok(content)
    }

    fn pass(&mut self, count: u64) -> Result<(), ArchiveError> {
        let passed = io::copy(&mut self.source.by_ref().take(count), &mut io::sink())?;
        self.position += passed;
        (self.data, self.padding) = (0, 0);
        // Some programs leave the last padding away.
        if passed == count || count - passed < BLOCK { Ok(()) } else { Err(malformed("it ends within a file")) }
    }
}

fn kind_of(kind: EntryType, name: &[u8], stored: u64) -> Option<Kind> {
    Some(match kind {
        // So were directories marked before there was a kind for them.
        EntryType::Regular if name.ends_with(b"/") && stored == 0 => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Directory => Kind::Directory,
        _ => return None,
    })
}

fn device(number: io::Result<Option<u32>>) -> Result<u32, ArchiveError> {
    number.map(Option::unwrap_or_default).map_err(|_| malformed("a device has no such number"))
}

fn malformed(text: &str) -> ArchiveError {
    ArchiveError::Malformed(text.to_owned())
}

/// A name fit for a message.
pub(super) fn printable(name: &[u8]) -> String {
    const SHOWN: usize = 200;
    String::from_utf8_lossy(&name[..name.len().min(SHOWN)]).into_owned()
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

fn exact(source: &mut impl Read, buffer: &mut [u8]) -> Result<(), ArchiveError> {
    if exact_or_end(source, buffer)? || buffer.is_empty() { Ok(()) } else { Err(malformed("it ends within a member")) }
}

/// Fills the buffer; `false` where there is nothing at all.
fn exact_or_end(source: &mut impl Read, buffer: &mut [u8]) -> Result<bool, ArchiveError> {
    let mut have = 0;
    while have < buffer.len() {
        match source.read(&mut buffer[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(malformed("it ends within a member")),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
#[path = "archive_test.rs"]
mod tests;
