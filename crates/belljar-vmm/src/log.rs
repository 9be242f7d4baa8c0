//! What a VM process writes to its standard error: kept in memory, in a file that cannot grow.
//!
//! A plain file would be unbounded (a guest can provoke warnings), a pipe would need a reader and block or kill the VM
//! process when we die. A memory file sealed at its size is neither: further writes fail, which a logging process
//! survives. It lives as long as the process has it open, and an adopting process finds it there.

use crate::limits::{LOG_BYTES, LOG_TAIL_BYTES};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// The log of one VM process.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    /// An empty one, to be given to a process as its standard error.
    pub(crate) fn create() -> io::Result<Self> {
        let fd = memfd_create("belljar-vmm-log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, LOG_BYTES)?;
        fcntl_add_seals(&fd, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self(File::from(fd)))
    }

    /// That of a process started earlier.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/fd/2"))?))
    }

    /// The last bytes written, at most `limit`.
    pub(crate) fn tail(&self, limit: u64) -> io::Result<Vec<u8>> {
        // The file always has its full size; what was written ends before the first NUL. (The offset of the writer
        // would tell, too, but is not shared with a file opened through /proc.)
        let mut bytes = vec![0; usize::try_from(LOG_BYTES).map_err(io::Error::other)?];
        let read = self.0.read_at(&mut bytes, 0)?;
        bytes.truncate(bytes.iter().take(read).position(|byte| *byte == 0).unwrap_or(read));
        let excess = bytes.len().saturating_sub(usize::try_from(limit).map_err(io::Error::other)?);
        bytes.drain(..excess);
        Ok(bytes)
    }

    /// The last lines as text for an error message.
    pub(crate) fn message(&self) -> String {
        let bytes = self.tail(LOG_TAIL_BYTES).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        if text.is_empty() { "(nothing)".to_owned() } else { text.to_owned() }
    }
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn keeps_the_first_bytes_and_never_grows() {
        let log = Log::create().unwrap();
        assert_eq!(log.message(), "(nothing)");
        let mut writer = log.0.try_clone().unwrap();
        writer.write_all(b"qemu: no such file\n").unwrap();
        assert_eq!(log.message(), "qemu: no such file");
        while writer.write_all(&[b'x'; 1000]).is_ok() {}
        assert!(writer.write_all(b"y").is_err());
        assert_eq!(log.0.metadata().unwrap().len(), LOG_BYTES);
        assert_eq!(log.message().len() as u64, LOG_TAIL_BYTES);
        assert!(log.tail(u64::MAX).unwrap().starts_with(b"qemu: no such file\n"));
    }
}
