//! Images in a directory in the OCI image layout: `index.json`, and blobs that are named by their digests.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use oci_spec::image::{Descriptor, ImageIndex};

use super::{
    error::OciError,
    manifest::{Documents, parse},
    source::Which,
};
use crate::{error::ImageError, limits::MAX_DOCUMENT_BYTES};

/// Says in an index what an image in it is called.
const NAME: &str = "org.opencontainers.image.ref.name";

/// A directory, and what is wanted of it.
pub(super) struct Layout {
    dir: PathBuf,
    which: Option<Which>,
    name: String,
}

impl Layout {
    pub(super) fn new(dir: &Path, which: Option<Which>, name: String) -> Self {
        Self { dir: dir.to_owned(), which, name }
    }

    /// A blob by its digest, and its size.
    pub(super) fn blob(&self, digest: &str) -> Result<(File, u64), ImageError> {
        let path = self.dir.join("blobs").join(digest.replace(':', "/"));
        open_plain(&path).map_err(|error| match error {
            ImageError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                self.missing(digest).into()
            }
            other => other,
        })
    }

    fn document(&self, digest: &str) -> Result<Vec<u8>, OciError> {
        let what = format!("{digest} of {}", self.name);
        let bad = |error: ImageError| OciError::BadDocument { what: what.clone(), reason: chain(&error) };
        let (file, _) = match self.blob(digest) {
            Err(ImageError::Oci(error)) => return Err(error),
            other => other.map_err(bad)?,
        };
        bounded(file, &what)
    }

    fn missing(&self, digest: &str) -> OciError {
        OciError::NotFound { image: digest.to_owned(), place: self.dir.display().to_string(), available: Vec::new() }
    }

    fn index(&self) -> Result<ImageIndex, OciError> {
        let path = self.dir.join("index.json");
        let what = path.display().to_string();
        match open_plain(&path) {
            Ok((file, _)) => parse(&bounded(file, &what)?, &what),
            Err(error) => Err(OciError::BadDocument { what, reason: chain(&error) }),
        }
    }

    fn not_found(&self, index: &ImageIndex) -> OciError {
        let mut available: Vec<String> = index.manifests().iter().filter_map(tag).map(str::to_owned).collect();
        available.sort();
        let image = match &self.which {
            Some(Which::Tag(tag)) => tag.clone(),
            _ => "without a tag".to_owned(),
        };
        OciError::NotFound { image, place: self.dir.display().to_string(), available }
    }
}

impl Documents for Layout {
    fn first(&mut self) -> Result<Vec<u8>, OciError> {
        let digest = match &self.which {
            Some(Which::Digest(digest)) => digest.clone(),
            which => {
                let index = self.index()?;
                let found = match which {
                    Some(Which::Tag(wanted)) => index.manifests().iter().find(|one| tag(one) == Some(wanted)),
                    _ => Some(index.manifests()).filter(|all| all.len() == 1).and_then(|all| all.first()),
                };
                found.ok_or_else(|| self.not_found(&index))?.digest().to_string()
            }
        };
        if !super::source::is_sha256(&digest) {
            let what = format!("the index of {}", self.name);
            return Err(OciError::BadDocument { what, reason: format!("the digest {digest:?} is no SHA-256") });
        }
        // What the index says is checked like what a user says.
        self.which = Some(Which::Digest(digest.clone()));
        self.document(&digest)
    }

    fn manifest(&mut self, digest: &str) -> Result<Vec<u8>, OciError> {
        self.document(digest)
    }

    fn configuration(&mut self, digest: &str) -> Result<Vec<u8>, OciError> {
        self.document(digest)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn pinned(&self) -> Option<String> {
        match &self.which {
            Some(Which::Digest(digest)) => Some(digest.clone()),
            _ => None,
        }
    }
}

fn tag(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(NAME).map(String::as_str)
}

/// Opens a file that is a file: a pipe would let us wait for ever.
pub(super) fn open_plain(path: &Path) -> Result<(File, u64), ImageError> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path);
    let file = file.map_err(ImageError::io("open", path))?;
    let found = file.metadata().map_err(ImageError::io("read", path))?;
    if found.is_file() {
        return Ok((file, found.len()));
    }
    let reason = "it is no file".to_owned();
    Err(OciError::BadDocument { what: path.display().to_string(), reason }.into())
}

fn bounded(file: File, what: &str) -> Result<Vec<u8>, OciError> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| OciError::BadDocument { what: what.to_owned(), reason: error.to_string() })?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(OciError::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT_BYTES });
    }
    Ok(bytes)
}

/// An error with its cause, for a message that takes one text.
fn chain(error: &ImageError) -> String {
    match error {
        ImageError::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}
