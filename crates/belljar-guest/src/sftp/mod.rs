//! An SFTP server for one client: `belljar-guest --sftp`, started by `exec` as the user whose files they are.
//!
//! It is the agent's own file, so that every image has it. It is one plain loop over stdin and stdout, with the rights
//! of its user and nothing else: it knows neither the agent nor a sandbox. One request is done after the other, as
//! clients expect; they keep many under way to hide the time in between.

mod operations;
mod wire;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::PathBuf,
};

use nix::errno::Errno;

use self::wire::{Fields, Packet, Short, kind, read_packet};
use crate::limits::SFTP_HANDLES_MAX;

/// What tells the program that it is this one.
pub const OPTION: &str = "--sftp";

const VERSION: u32 = 3;
/// What we can do beside version 3, as OpenSSH names it.
const EXTENSIONS: [(&str, &str); 6] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("end of file")]
    End,
    #[error("{0}")]
    System(#[from] io::Error),
    #[error("the request is cut short")]
    Malformed,
    #[error("there is no such open file")]
    NoHandle,
    #[error("{SFTP_HANDLES_MAX} files are open already; close one first")]
    TooManyHandles,
    #[error("the target exists")]
    Exists,
    #[error("this server does not know the request")]
    Unsupported,
}

impl From<Short> for Failure {
    fn from(_: Short) -> Self {
        Self::Malformed
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl Failure {
    /// The protocol's number for it.
    fn code(&self) -> u32 {
        match self {
            Self::End => 1,
            Self::System(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => 2,
                io::ErrorKind::PermissionDenied => 3,
                _ => 4,
            },
            Self::NoHandle | Self::TooManyHandles | Self::Exists => 4,
            Self::Malformed => 5,
            Self::Unsupported => 8,
        }
    }
}

/// What a request is answered with: a packet, or that it was done.
type Answer = Result<Option<Packet>, Failure>;

/// What a client has open.
enum Open {
    File {
        file: File,
        append: bool,
    },
    /// The names that were not told yet.
    Directory {
        path: PathBuf,
        names: std::vec::IntoIter<OsString>,
    },
}

/// One client.
#[derive(Default)]
struct Session {
    open: HashMap<u32, Open>,
    last: u32,
}

impl Session {
    fn enter(&mut self, open: Open) -> Result<u32, Failure> {
        if self.open.len() >= SFTP_HANDLES_MAX {
            return Err(Failure::TooManyHandles);
        }
        self.last = self.last.wrapping_add(1);
        self.open.insert(self.last, open);
        Ok(self.last)
    }

    fn opened(&mut self, fields: &mut Fields<'_>) -> Result<&mut Open, Failure> {
        let number = fields.bytes()?.try_into().map(u32::from_be_bytes).map_err(|_| Failure::NoHandle)?;
        self.open.get_mut(&number).ok_or(Failure::NoHandle)
    }

    fn file(&mut self, fields: &mut Fields<'_>) -> Result<(&File, bool), Failure> {
        match self.opened(fields)? {
            Open::File { file, append } => Ok((file, *append)),
            Open::Directory { .. } => Err(Failure::NoHandle),
        }
    }

    fn close(&mut self, fields: &mut Fields<'_>) -> Answer {
        let number = fields.bytes()?.try_into().map(u32::from_be_bytes).map_err(|_| Failure::NoHandle)?;
        self.open.remove(&number).map(|_| None).ok_or(Failure::NoHandle)
    }

    /// Does one request.
    fn answer(&mut self, packet: &[u8]) -> Packet {
        let mut fields = Fields(packet);
        let (Ok(kind), Ok(id)) = (fields.u8(), fields.u32()) else { return status(0, Err(&Failure::Malformed)) };
        if kind == kind::INIT {
            return version();
        }
        match self.dispatch(kind, id, &mut fields) {
            Ok(Some(packet)) => packet,
            Ok(None) => status(id, Ok(())),
            Err(failure) => status(id, Err(&failure)),
        }
    }

    fn dispatch(&mut self, kind: u8, id: u32, fields: &mut Fields<'_>) -> Answer {
        match kind {
            kind::OPEN => self.open_file(id, fields),
            kind::CLOSE => self.close(fields),
            kind::READ => self.read(id, fields),
            kind::WRITE => self.write(fields),
            kind::FSTAT => self.stat_open(id, fields),
            kind::FSETSTAT => self.change_open(fields),
            kind::OPENDIR => self.open_directory(id, fields),
            kind::READDIR => self.read_directory(id, fields),
            kind::STAT => operations::stat(id, fields, true),
            kind::LSTAT => operations::stat(id, fields, false),
            kind::SETSTAT => operations::change(fields),
            kind::REMOVE => operations::remove(fields),
            kind::MKDIR => operations::make_directory(fields),
            kind::RMDIR => operations::remove_directory(fields),
            kind::REALPATH => operations::real_path(id, fields),
            kind::RENAME => operations::rename(fields),
            kind::READLINK => operations::read_link(id, fields),
            kind::SYMLINK => operations::symlink(fields),
            kind::EXTENDED => match fields.bytes()? {
                b"posix-rename@openssh.com" => operations::replace(fields),
                b"hardlink@openssh.com" => operations::hard_link(fields),
                b"statvfs@openssh.com" => operations::file_system(id, fields),
                b"expand-path@openssh.com" => operations::expand_path(id, fields),
                b"limits@openssh.com" => Ok(Some(operations::limits(id))),
                b"fsync@openssh.com" => {
                    self.file(fields)?.0.sync_all()?;
                    Ok(None)
                }
                _ => Err(Failure::Unsupported),
            },
            _ => Err(Failure::Unsupported),
        }
    }
}

fn version() -> Packet {
    let start = Packet::new(kind::VERSION).u32(VERSION);
    EXTENSIONS.iter().fold(start, |packet, (name, data)| packet.bytes(name.as_bytes()).bytes(data.as_bytes()))
}

fn status(id: u32, result: Result<(), &Failure>) -> Packet {
    let (code, words) = match result {
        Ok(()) => (0, "done".to_owned()),
        Err(failure) => (failure.code(), failure.to_string()),
    };
    Packet::answer(kind::STATUS, id).u32(code).bytes(words.as_bytes()).bytes(b"en")
}

/// Serves until the client has gone.
pub(crate) fn serve(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let (mut from, mut to) = (BufReader::with_capacity(64 * 1024, from), BufWriter::with_capacity(64 * 1024, to));
    let mut session = Session::default();
    while let Some(packet) = read_packet(&mut from)? {
        to.write_all(&session.answer(&packet).finish())?;
        // Answers to requests that came together go out together.
        if from.buffer().is_empty() {
            to.flush()?;
        }
    }
    to.flush()
}

#[cfg(test)]
#[path = "sftp_test.rs"]
mod tests;
