//! One layer from a registry into the store's `tmp/blobs`. What has arrived stays when it breaks off.
//!
//! ```text
//!        ┌── broken off: again, a limited number of times without a byte more ──┐
//! part ──┴─► GET, Range: bytes=<length>- ─► 206: appended · 200: from the start ┴─► complete ─► SHA-256
//!                                                                     wrong: removed; once more if it was a rest
//! ```

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    thread,
    time::Instant,
};

use sha2::Digest;
use ureq::http::StatusCode;

use super::{
    Caps,
    blobs::{Blobs, Part},
    check_space,
    error::OciError,
    registry::{Failure, Registry},
};
use crate::{
    error::ImageError,
    limits::{ATTEMPTS, MIN_WINDOW_BYTES, SPACE_CHECK_BYTES},
    stop::Stop,
};

/// Bytes that are read at once.
const CHUNK: usize = 128 << 10;

/// A transfer.
pub(super) struct Transfer<'a> {
    pub(super) registry: &'a mut Registry,
    pub(super) blobs: &'a Blobs,
    pub(super) caps: &'a Caps,
    /// Hexadecimal digits of the layer's SHA-256.
    pub(super) digest: &'a str,
    pub(super) size: u64,
    /// Told how many bytes there are.
    pub(super) progress: &'a mut dyn FnMut(u64),
    pub(super) pace: Pace,
    pub(super) stop: &'a Stop,
}

/// How much has arrived of late, over all attempts: a registry that sends a byte for each of them is slow as well.
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }
}

impl Transfer<'_> {
    /// Gives the file, verified, at its beginning.
    pub(super) fn run(&mut self) -> Result<File, ImageError> {
        let mut part = self.blobs.part(self.digest)?;
        let had = part.length;
        check_space(self.blobs.dir(), self.size.saturating_sub(had), self.caps)?;
        self.complete(&mut part)?;
        match self.blobs.complete(self.digest, part)? {
            Ok(file) => Ok(file),
            // What was there before may have been the beginning of something else.
            Err(_) if had > 0 => self.run(),
            Err(found) => {
                let (what, expected) = (format!("layer sha256:{}", self.digest), format!("sha256:{}", self.digest));
                Err(OciError::WrongDigest { what, expected, found: format!("sha256:{found}") }.into())
            }
        }
    }

    fn complete(&mut self, part: &mut Part) -> Result<(), ImageError> {
        let mut vain = 0;
        while part.length < self.size {
            self.stop.check()?;
            let before = part.length;
            let failure = match self.attempt(part)? {
                None => continue,
                Some(failure) => failure,
            };
            if let Failure::Final(error) = failure {
                return Err(error.into());
            }
            vain = if part.length > before { 0 } else { vain + 1 };
            if vain == ATTEMPTS {
                return Err(self.registry.unreachable(failure).into());
            }
            thread::sleep(self.caps.pause * 2u32.pow(vain));
        }
        if part.length > self.size {
            let what = format!("layer sha256:{} as the registry sends it", self.digest);
            self.blobs.forget(self.digest)?;
            return Err(OciError::TooLarge { what, limit: self.size }.into());
        }
        Ok(())
    }

    /// Asks for what is missing. Gives why that broke off, if it did.
    fn attempt(&mut self, part: &mut Part) -> Result<Option<Failure>, ImageError> {
        let response = match self.registry.blob(&format!("sha256:{}", self.digest), part.length) {
            Ok(response) => response,
            Err(failure) => return Ok(Some(failure)),
        };
        // It sends everything, or there is nothing behind what we have, which then is something else.
        if response.status() != StatusCode::PARTIAL_CONTENT && part.length > 0 {
            self.blobs.restart(self.digest, part)?;
        }
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(None);
        }
        self.body(part, response.into_body().into_reader())
    }

    fn body(&mut self, part: &mut Part, mut body: impl Read) -> Result<Option<Failure>, ImageError> {
        let io = |operation| ImageError::io(operation, self.blobs.part_path(self.digest));
        part.file.seek(SeekFrom::Start(part.length)).map_err(io("write"))?;
        let mut chunk = vec![0; CHUNK];
        let mut unchecked = 0;
        // One byte more shows that it sends too much.
        while part.length <= self.size {
            (self.progress)(part.length);
            self.stop.check()?;
            let count = match body.read(&mut chunk) {
                Ok(0) if part.length < self.size => {
                    return Ok(Some(Failure::BrokenOff(ureq::Error::Io(std::io::ErrorKind::UnexpectedEof.into()))));
                }
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Ok(Some(Failure::BrokenOff(ureq::Error::Io(error)))),
            };
            part.file.write_all(&chunk[..count]).map_err(io("write"))?;
            part.hash.update(&chunk[..count]);
            part.length += count as u64;
            self.pace.bytes += count as u64;
            unchecked += count as u64;
            if unchecked >= SPACE_CHECK_BYTES {
                unchecked = 0;
                check_space(self.blobs.dir(), 0, self.caps)?;
            }
            if self.pace.since.elapsed() >= self.caps.rate_window {
                if self.pace.bytes < MIN_WINDOW_BYTES && part.length < self.size {
                    return Err(self.stalled().into());
                }
                self.pace = Pace::new();
            }
        }
        Ok(None)
    }

    fn stalled(&self) -> OciError {
        OciError::Stalled {
            what: format!("layer sha256:{}", self.digest),
            registry: self.registry.host.clone(),
            bytes: self.pace.bytes,
            time: self.caps.rate_window,
        }
    }
}
