//! The bytes of one layer on their way from where they lie to the tree: counted, hashed and unpacked.
//!
//! ```text
//! file ─► Checked (size, digest) ─► gzip, zstd or nothing ─► Checked (bound, digest of the configuration) ─► tar
//! ```
//!
//! How a layer is packed is read from its first bytes; what the manifest says of it is often wrong.

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{Caps, error::OciError};
use crate::limits::{MAX_RATIO, MAX_ZSTD_WINDOW_LOG};

/// Bytes that are read from a file at once.
const READ: usize = 256 << 10;

/// What is known of a layer before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// What it is called in messages: its digest, or its name in an archive.
    pub(super) name: String,
    /// SHA-256 and size of its bytes as they are transferred, where the manifest says them.
    pub(super) packed: Option<(String, u64)>,
    /// SHA-256 of the tar archive in it, hexadecimal.
    pub(super) unpacked: String,
}

/// Bytes that are hashed and counted as they pass.
pub(super) struct Checked<R> {
    source: R,
    hash: Sha256,
    count: u64,
    /// Most bytes that may pass, and the error of more.
    limit: u64,
    exceeded: fn(&Layer, u64) -> OciError,
    layer: Layer,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > self.limit {
            return Err((self.exceeded)(&self.layer, self.limit).into_io());
        }
        Ok(count)
    }
}

impl<R> Checked<R> {
    fn check(self, what: &str, expected: &str) -> Result<R, OciError> {
        let found = hex(self.hash);
        if found == expected {
            return Ok(self.source);
        }
        let (what, expected) = (format!("{what} {}", self.layer.name), format!("sha256:{expected}"));
        Err(OciError::WrongDigest { what, expected, found: format!("sha256:{found}") })
    }
}

/// A digest as hexadecimal digits.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

type Packed<R> = BufReader<Checked<R>>;

enum Unpacker<R: Read> {
    Plain(Packed<R>),
    Gzip(Box<MultiGzDecoder<Packed<R>>>),
    Zstd(zstd::Decoder<'static, Packed<R>>),
}

impl<R: Read> Read for Unpacker<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(source) => source.read(buffer),
            Self::Zstd(source) => source.read(buffer),
        }
    }
}

/// The tar archive in a layer.
pub(super) struct Content<R: Read> {
    source: Checked<Unpacker<R>>,
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source.read(buffer)
    }
}

impl<R: Read> Content<R> {
    /// Begins to read a layer from `source`, of which `size` bytes are its.
    pub(super) fn open(layer: &Layer, source: R, size: u64, caps: &Caps) -> Result<Self, OciError> {
        let io = |error| OciError::of_io(error, |error| bad(layer, &error.to_string()));
        let packed = Checked {
            source,
            hash: Sha256::new(),
            count: 0,
            limit: layer.packed.as_ref().map_or(size, |(_, announced)| *announced),
            exceeded: |layer, limit| OciError::TooLarge { what: format!("layer {}", layer.name), limit },
            layer: layer.clone(),
        };
        let mut packed = BufReader::with_capacity(READ, packed);
        let unpacker = match std::io::BufRead::fill_buf(&mut packed).map_err(io)? {
            [0x1f, 0x8b, ..] => Unpacker::Gzip(Box::new(MultiGzDecoder::new(packed))),
            // A frame of data, or one to be passed over.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut zstd = zstd::Decoder::with_buffer(packed).map_err(io)?;
                zstd.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(io)?;
                Unpacker::Zstd(zstd)
            }
            [b'B', b'Z', b'h', ..] => return Err(bad(layer, "it is packed with bzip2; only gzip and zstd are taken")),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => {
                return Err(bad(layer, "it is packed with xz; only gzip and zstd are taken"));
            }
            _ => Unpacker::Plain(packed),
        };
        let limit = caps.ratio_free_bytes.saturating_add(size.saturating_mul(MAX_RATIO));
        let exceeded = |layer: &Layer, limit| {
            let packed = layer.packed.as_ref().map_or(0, |(_, size)| *size);
            OciError::Bomb { layer: layer.name.clone(), packed, limit }
        };
        let source = Checked { source: unpacker, hash: Sha256::new(), count: 0, limit, exceeded, layer: layer.clone() };
        Ok(Self { source })
    }

    /// Reads what is left, and says whether all of it was what was announced.
    pub(super) fn finish(mut self) -> Result<(), OciError> {
        let layer = self.source.layer.clone();
        let io = |error| OciError::of_io(error, |error| bad(&layer, &error.to_string()));
        io::copy(&mut self.source, &mut io::sink()).map_err(io)?;
        let unpacker = self.source.check("the content of layer", &layer.unpacked)?;
        let mut packed = match unpacker {
            Unpacker::Plain(source) => source,
            Unpacker::Gzip(source) => source.into_inner(),
            Unpacker::Zstd(source) => source.finish(),
        };
        io::copy(&mut packed, &mut io::sink()).map_err(io)?;
        let packed = packed.into_inner();
        match &layer.packed {
            Some((digest, size)) if packed.count == *size => packed.check("layer", digest).map(drop),
            Some((_, size)) => Err(bad(&layer, &format!("it has {} bytes instead of {size}", packed.count))),
            None => Ok(()),
        }
    }
}

fn bad(layer: &Layer, reason: &str) -> OciError {
    OciError::BadLayer { layer: layer.name.clone(), reason: reason.to_owned() }
}

#[cfg(test)]
#[path = "layer_test.rs"]
mod tests;
