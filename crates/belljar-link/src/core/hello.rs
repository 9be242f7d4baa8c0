//! The two records of the handshake: the host's HELLO and the guest's ACK.
//!
//! ```text
//!  0               16        20       24       32     36
//!  | magic (16)    | version | epoch  | nonce  | crc32 |     little endian; crc32 over the first 32 bytes
//! ```
//!
//! This layout and the two magics never change, whatever the version, so that two ends that cannot talk to each other
//! can at least say so. Neither magic starts with a byte that is a frame type or padding.

/// Bytes of a record.
pub const HELLO_LEN: usize = 36;
/// Bytes of a magic.
pub const MAGIC_LEN: usize = 16;
/// Bytes before the checksum.
const SUMMED: usize = HELLO_LEN - 4;

/// Set in every epoch. It makes the last byte of every frame's trailer non-zero, so that padding never completes a
/// frame that was cut, not even one cut inside its trailer.
pub const EPOCH_BIT: u32 = 0x8000_0000;

/// Which of the two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloKind {
    /// Host to guest: a session starts.
    Hello,
    /// Guest to host: it has started.
    Ack,
}

impl HelloKind {
    /// The bytes that the record starts with.
    #[must_use]
    pub fn magic(self) -> &'static [u8; MAGIC_LEN] {
        match self {
            HelloKind::Hello => b"\xb5belljar/hello\r\n",
            HelloKind::Ack => b"\xb6belljar/h-ack\r\n",
        }
    }
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// [`crate::limits::VERSION`] of its sender.
    pub version: u32,
    /// Names the session; every frame carries it. Has [`EPOCH_BIT`].
    pub epoch: u32,
    /// Chosen by the host, repeated by the guest: tells this answer from one to an earlier host.
    pub nonce: u64,
}

impl Hello {
    /// A new session of this version, with a random epoch and nonce.
    #[must_use]
    pub fn random() -> Hello {
        Hello { version: crate::limits::VERSION, epoch: rand::random::<u32>() | EPOCH_BIT, nonce: rand::random() }
    }

    /// Appends the record.
    pub fn encode(&self, kind: HelloKind, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(kind.magic());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.nonce.to_le_bytes());
        let crc = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads a record, or `None` if these bytes are not one of `kind`.
    #[must_use]
    pub fn parse(kind: HelloKind, bytes: &[u8; HELLO_LEN]) -> Option<Hello> {
        let (summed, crc) = bytes.split_first_chunk::<SUMMED>()?;
        let (magic, rest) = summed.split_first_chunk::<MAGIC_LEN>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (epoch, nonce) = rest.split_first_chunk::<4>()?;
        let epoch = u32::from_le_bytes(*epoch);
        if magic != kind.magic() || crc != crc32fast::hash(summed).to_le_bytes() || epoch & EPOCH_BIT == 0 {
            return None;
        }
        Some(Hello { version: u32::from_le_bytes(*version), epoch, nonce: u64::from_le_bytes(nonce.try_into().ok()?) })
    }

    /// What the host sends first: padding that completes any frame the guest may be in the middle of, then HELLO.
    #[must_use]
    pub fn preamble(&self) -> Vec<u8> {
        let mut out = vec![0; super::frame::MAX_FRAME + 1];
        self.encode(HelloKind::Hello, &mut out);
        out
    }
}
