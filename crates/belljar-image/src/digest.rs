//! Content address of a root file system: `blake3:<hex>` over the bytes of the file, holes read as zeros.
//!
//! So a copy has the same address however sparse it is, and `b3sum rootfs.ext4` checks it by hand. The holes, four
//! fifths of the file, are found by asking the file system instead of being read.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use rustix::{fs as unix, io::Errno};

use crate::error::ImageError;

/// Prefix of a content address, and the hexadecimal digits after it.
const PREFIX: &str = "blake3:";
const HEX_DIGITS: usize = 64;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Hashes the file at `path`.
pub(crate) fn of_file(path: &Path) -> Result<String, ImageError> {
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let hash = hash(&mut file).map_err(ImageError::io("read", path))?;
    Ok(format!("{PREFIX}{}", hash.to_hex()))
}

/// Whether this is an address as [`of_file`] writes it, and so fit to be a directory name.
pub(crate) fn is_valid(digest: &str) -> bool {
    digest.strip_prefix(PREFIX).is_some_and(|hex| {
        hex.len() == HEX_DIGITS && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// What an image is called in the API, and how many hexadecimal digits of its address that has.
const ID_PREFIX: &str = "image_";
const ID_DIGITS: usize = 21;

/// The id of an image with this address.
pub(crate) fn to_id(digest: &str) -> String {
    let hex = digest.strip_prefix(PREFIX).unwrap_or(digest);
    format!("{ID_PREFIX}{}", hex.chars().take(ID_DIGITS).collect::<String>())
}

/// Directory name of an address.
pub(crate) fn to_dir_name(digest: &str) -> String {
    digest.replace(':', "-")
}

fn hash(file: &mut File) -> std::io::Result<blake3::Hash> {
    let size = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let zeros = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let data = next(file, unix::SeekFrom::Data(at), size)?;
        let end = next(file, unix::SeekFrom::Hole(data), size)?;
        while at < data {
            let length = zeros.len().min(usize::try_from(data - at).unwrap_or(usize::MAX));
            hasher.update(&zeros[..length]);
            at += length as u64;
        }
        file.seek(SeekFrom::Start(data))?;
        let mut stretch = file.by_ref().take(end - data);
        loop {
            let length = stretch.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        if at < end {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(hasher.finalize())
}

/// Where data or a hole begins; past the last one, the end of the file.
fn next(file: &File, from: unix::SeekFrom, size: u64) -> std::io::Result<u64> {
    match unix::seek(file, from) {
        Ok(at) => Ok(at.min(size)),
        Err(Errno::NXIO) => Ok(size),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    /// The address must be that of the plain bytes.
    fn check(size: u64, writes: &[(u64, Vec<u8>)]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        for (at, bytes) in writes {
            file.as_file().write_all_at(bytes, *at).unwrap();
        }
        let plain = std::fs::read(file.path()).unwrap();
        assert_eq!(of_file(file.path()).unwrap(), format!("blake3:{}", blake3::hash(&plain)));
    }

    #[test]
    fn files_without_data_or_without_holes() {
        check(0, &[]);
        check(1, &[]);
        check(3 << 20, &[]);
        check(5, &[(0, b"hello".to_vec())]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn holes_are_zeros(
            size in 0u64..4_000_000,
            writes in prop::collection::vec((0u64..4_000_000, prop::collection::vec(any::<u8>(), 1..9000)), 0..6),
        ) {
            check(size, &writes);
        }
    }

    #[test]
    fn what_an_address_looks_like() {
        let good = format!("blake3:{}", "0a".repeat(32));
        assert!(is_valid(&good));
        for bad in ["", "blake3:", "sha256:00", &good[..70], &good.replace("0a", "0A"), &good.replace("0a", "/.")] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
