//! Reading and writing the fields of our binary files: little-endian numbers, LEB128 for those that are mostly small.

use std::path::Path;

use super::VaultError;

/// Appends `value` with seven bits a byte, the lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Appends a length and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Takes fields off the front of a file's bytes; names the file when they run out.
pub(super) struct Reader<'a> {
    path: &'a Path,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, rest: bytes }
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> VaultError {
        VaultError::damaged(self.path, why)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], VaultError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.damaged("it ends too early"));
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], VaultError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, VaultError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, VaultError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, VaultError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.array::<1>()?[0];
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged("it holds a number that is too large"))
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, VaultError> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| self.damaged(format!("{value} is too large a number")))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], VaultError> {
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| self.damaged("it ends too early"))?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, VaultError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged("it holds a text that is not UTF-8"))
    }

    /// What is left, at most `count` things of at least `size_min` bytes each: how many to make room for.
    pub(super) fn room(&self, count: u64, size_min: usize) -> usize {
        usize::try_from(count).unwrap_or(usize::MAX).min(self.rest.len() / size_min)
    }

    pub(super) fn end(&self) -> Result<(), VaultError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.damaged("bytes follow its end")) }
    }
}

/// Splits the BLAKE3 checksum off the end of a file's bytes and compares it with what comes before it.
pub(super) fn checked<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], VaultError> {
    let Some((content, checksum)) = bytes.split_last_chunk::<32>() else {
        return Err(VaultError::damaged(path, "it ends too early"));
    };
    if blake3::hash(content).as_bytes() != checksum {
        return Err(VaultError::damaged(path, "its checksum is wrong"));
    }
    Ok(content)
}

/// Checks the magic and the version at the front of a file.
pub(super) fn check_format(reader: &mut Reader<'_>, magic: [u8; 8], version: u32) -> Result<(), VaultError> {
    if reader.array()? != magic {
        return Err(reader.damaged("it is not a file of a snapshot: the magic is missing"));
    }
    match reader.u32()? {
        found if found == version => Ok(()),
        found if found > version => {
            Err(reader.damaged(format!("it has format version {found}, this release knows {version}; use a newer one")))
        }
        found => Err(reader.damaged(format!("format version {found} was never in use"))),
    }
}
