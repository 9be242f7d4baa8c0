//! One file by HTTP(S), known by its SHA-256. What has arrived stays when the connection or this program ends, and the
//! next attempt asks for the rest.
//!
//! ```text
//!        ┌── broken off: again, a limited number of times without a byte more ──┐
//! part ──┴─► GET, Range: bytes=<length>- ─► 206: appended · 200: from the start ┴─► complete ─► SHA-256
//!                                                                         wrong: removed; once more if it was a rest
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};
use ureq::{
    Agent,
    http::{Response, StatusCode, header},
    tls::{Certificate, RootCerts, TlsConfig},
};

/// Most bytes that are fetched.
const MAX: u64 = 256 << 20;
/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 4;
/// Pause before the second of them; it doubles.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });
/// Until a connection is there, and until an answer begins.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// For the bytes of one answer. Who is slower goes on in the next attempt.
const BODY_LIMIT: Duration = Duration::from_mins(10);
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Why a file is not there, or not taken.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server refuses it.
    #[error("{url}: the server answered {status}")]
    Refused {
        /// Of the file.
        url: String,
        /// The answer.
        status: u16,
    },
    /// No connection, or it broke off, each time.
    #[error("cannot fetch {url}")]
    Connection {
        /// Of the file.
        url: String,
        /// What happened last.
        #[source]
        source: Box<ureq::Error>,
    },
    /// More than is sensible.
    #[error("{url} has more than {MAX} bytes")]
    TooLarge {
        /// Of the file.
        url: String,
    },
    /// It is something else than what is pinned.
    #[error("{from} is not what this version of Belljar takes: its SHA-256 is {found}, not {expected}")]
    WrongSum {
        /// Address or path.
        from: String,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Somebody else fetches it.
    #[error("another `belljar vmm install` is fetching {}", path.display())]
    Busy {
        /// What that one writes.
        path: PathBuf,
    },
    /// A file failed.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Fetches `url` to the file `part`, which may have a beginning of it already. Nobody else fetches it as long as the
/// returned file is open. Blocking.
pub(super) fn fetch(
    url: &str,
    sha256: &str,
    part: &Path,
    progress: &mut dyn FnMut(u64, Option<u64>),
) -> Result<File, FetchError> {
    let io_failed = |source| FetchError::Io { path: part.to_owned(), source };
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(part).map_err(io_failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FetchError::Busy { path: part.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(io_failed(source)),
    }
    let mut job = Job { agent: agent(), url, part, progress };
    let had = file.metadata().map_err(io_failed)?.len();
    let mut got = job.complete(&mut file).and_then(|()| check(&mut file, url, part, sha256));
    // What was there before may have been the beginning of something else.
    if matches!(got, Err(FetchError::WrongSum { .. })) && had > 0 {
        file.set_len(0).map_err(io_failed)?;
        got = job.complete(&mut file).and_then(|()| check(&mut file, url, part, sha256));
    }
    if matches!(got, Err(FetchError::WrongSum { .. } | FetchError::TooLarge { .. })) {
        fs::remove_file(part).map_err(io_failed)?;
    }
    got.map(|()| file)
}

/// Whether a file of this machine is what is pinned.
pub(super) fn verify(file: &mut File, path: &Path, sha256: &str) -> Result<(), FetchError> {
    check(file, &path.display().to_string(), path, sha256)
}

fn check(file: &mut File, from: &str, path: &Path, expected: &str) -> Result<(), FetchError> {
    let found = sum(file).map_err(|source| FetchError::Io { path: path.to_owned(), source })?;
    if found == expected {
        return Ok(());
    }
    Err(FetchError::WrongSum { from: from.to_owned(), expected: expected.to_owned(), found })
}

/// SHA-256 of a whole file, hexadecimal.
fn sum(file: &mut File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    file.rewind()?;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => digest.update(&chunk[..count]),
        }
    }
}

/// With the certificates that this machine trusts: there may be a proxy of the organisation in between.
fn agent() -> Agent {
    let trusted = rustls_native_certs::load_native_certs().certs;
    let roots: Vec<_> = trusted.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots)).build();
    let config = Agent::config_builder().tls_config(tls).http_status_as_error(false);
    let config = config.timeout_connect(Some(ANSWER_LIMIT)).timeout_recv_response(Some(ANSWER_LIMIT));
    config.timeout_recv_body(Some(BODY_LIMIT)).build().into()
}

struct Job<'a> {
    agent: Agent,
    url: &'a str,
    part: &'a Path,
    progress: &'a mut dyn FnMut(u64, Option<u64>),
}

/// What became of one attempt.
enum Attempt {
    Done,
    BrokenOff(ureq::Error),
}

impl Job<'_> {
    /// Asks until the server says that there is no more.
    fn complete(&mut self, file: &mut File) -> Result<(), FetchError> {
        let mut vain = 0;
        loop {
            let before = self.length(file)?;
            let Attempt::BrokenOff(source) = self.attempt(file, before)? else { return Ok(()) };
            vain = if self.length(file)? > before { 0 } else { vain + 1 };
            if vain == ATTEMPTS {
                return Err(FetchError::Connection { url: self.url.to_owned(), source: Box::new(source) });
            }
            thread::sleep(PAUSE * 2u32.pow(vain));
        }
    }

    fn attempt(&mut self, file: &mut File, have: u64) -> Result<Attempt, FetchError> {
        let mut request = self.agent.get(self.url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(Attempt::BrokenOff(error)),
        };
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => have,
            // Nothing is behind what we have: it was complete, or is something else.
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(Attempt::Done),
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Attempt::BrokenOff(ureq::Error::StatusCode(status.as_u16())));
            }
            status => return Err(FetchError::Refused { url: self.url.to_owned(), status: status.as_u16() }),
        };
        file.set_len(start).and_then(|()| file.seek(io::SeekFrom::Start(start))).map_err(self.io())?;
        self.body(file, start, response)
    }

    fn body(&mut self, file: &mut File, start: u64, response: Response<ureq::Body>) -> Result<Attempt, FetchError> {
        let total = response.body().content_length().map(|length| start + length);
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        let mut have = start;
        loop {
            (self.progress)(have, total);
            let count = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Ok(Attempt::BrokenOff(ureq::Error::Io(error))),
            };
            have += count as u64;
            if have > MAX {
                return Err(FetchError::TooLarge { url: self.url.to_owned() });
            }
            file.write_all(&chunk[..count]).map_err(self.io())?;
        }
        match total.is_some_and(|total| have < total) {
            true => Ok(Attempt::BrokenOff(ureq::Error::Io(io::ErrorKind::UnexpectedEof.into()))),
            false => Ok(Attempt::Done),
        }
    }

    fn length(&self, file: &File) -> Result<u64, FetchError> {
        Ok(file.metadata().map_err(self.io())?.len())
    }

    fn io(&self) -> impl FnOnce(io::Error) -> FetchError {
        let path = self.part.to_owned();
        move |source| FetchError::Io { path, source }
    }
}
