//! Extended attributes as ext4 keeps them, beside an inode or in a block of their own. Pure.

use super::{ExportError, disk::Fields};

/// Name and value.
pub(super) type Attribute = (Vec<u8>, Vec<u8>);

const MAGIC: u32 = 0xEA02_0000;

/// Those behind an inode's own fields.
pub(super) fn in_inode(bytes: &[u8]) -> Result<Vec<Attribute>, ExportError> {
    const HEAD: usize = 4;
    if bytes.len() <= HEAD || Fields(bytes).u32(0) != MAGIC {
        return Ok(Vec::new());
    }
    // Values are found from behind the head here, and from the beginning in a block.
    parse(&bytes[HEAD..], &bytes[HEAD..])
}

/// Those in a block.
pub(super) fn in_block(bytes: &[u8]) -> Result<Vec<Attribute>, ExportError> {
    const HEAD: usize = 32;
    if Fields(bytes).u32(0) != MAGIC {
        return Err(bad());
    }
    parse(&bytes[HEAD..], bytes)
}

fn bad() -> ExportError {
    ExportError::damaged("extended attributes make no sense")
}

fn parse(mut entries: &[u8], values: &[u8]) -> Result<Vec<Attribute>, ExportError> {
    const HEAD: usize = 16;
    let mut found = Vec::new();
    // Four zeros are the end.
    while entries.len() >= 4 && Fields(entries).u32(0) != 0 {
        let fields = Fields(entries);
        let (length, prefix) = (usize::from(fields.u8(0)), fields.u8(1));
        let (offset, size) = (usize::from(fields.u16(2)), fields.u32(8) as usize);
        if fields.u32(4) != 0 {
            return Err(ExportError::Feature("an extended attribute in an inode of its own".into()));
        }
        let name = entries.get(HEAD..HEAD + length).ok_or_else(bad)?;
        let value = values.get(offset..).and_then(|values| values.get(..size)).ok_or_else(bad)?;
        found.push(named(prefix, name, value)?);
        entries = entries.get((HEAD + length).next_multiple_of(4)..).ok_or_else(bad)?;
    }
    Ok(found)
}

/// Gives a name its beginning back, which is a number on the disk.
fn named(prefix: u8, name: &[u8], value: &[u8]) -> Result<Attribute, ExportError> {
    let begin: &[u8] = match prefix {
        1 => b"user.",
        2 => return Ok((b"system.posix_acl_access".to_vec(), access_list(value)?)),
        3 => return Ok((b"system.posix_acl_default".to_vec(), access_list(value)?)),
        4 => b"trusted.",
        6 => b"security.",
        7 => b"system.",
        _ => return Err(bad()),
    };
    Ok(([begin, name].concat(), value.to_vec()))
}

/// An access control list, which programs get in another form: each entry with an id.
fn access_list(value: &[u8]) -> Result<Vec<u8>, ExportError> {
    /// Version of the list on the disk, and of that which programs get.
    const ON_DISK: u32 = 1;
    const SHOWN: u32 = 2;
    /// Entries with an id: of a user and of a group.
    const WITH_ID: [u16; 2] = [0x02, 0x08];
    const NO_ID: u32 = u32::MAX;
    if Fields(value).u32(0) != ON_DISK || value.len() < 4 {
        return Err(bad());
    }
    let (mut shown, mut entries) = (SHOWN.to_le_bytes().to_vec(), &value[4..]);
    while !entries.is_empty() {
        let fields = Fields(entries);
        let (size, id) = if WITH_ID.contains(&fields.u16(0)) { (8, fields.u32(4)) } else { (4, NO_ID) };
        shown.extend_from_slice(entries.get(..4).ok_or_else(bad)?);
        shown.extend_from_slice(&id.to_le_bytes());
        entries = entries.get(size..).ok_or_else(bad)?;
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_access_list_gets_its_ids() {
        // user::rw-, user:1000:r--, mask::r--
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xE8, 3, 0, 0, 0x10, 0, 4, 0];
        let shown = access_list(&disk).unwrap();
        let expected = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 4, 0, 0xE8, 3, 0, 0],
            &[0x10, 0, 4, 0, 255, 255, 255, 255],
        ];
        assert_eq!(shown, expected.concat());
        assert!(access_list(&disk[..18]).is_err() && access_list(&[]).is_err() && access_list(&[2, 0, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 32..300)) {
            let mut bytes = bytes;
            let _ = in_inode(&bytes);
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            let _ = in_inode(&bytes);
            let _ = in_block(&bytes);
        }
    }
}
