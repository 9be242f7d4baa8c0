//! Why an image of elsewhere could not be imported. Each message names what was at fault and what to do about it.

use std::{io, path::PathBuf, time::Duration};

/// An import that failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// What was given is no image source.
    #[error(
        "{source_name:?} {reason}; write REGISTRY/NAME:TAG, NAME@sha256:…, oci:DIR[:TAG] or docker-archive:FILE[:NAME:TAG]"
    )]
    BadSource {
        /// As given.
        source_name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A source on this machine, from somebody who may only name a registry.
    #[error(
        "{0:?} is a place on the node's own disk, and over the API an image comes from a registry: write REGISTRY/NAME:TAG or \
         NAME@sha256:…, or use `belljar image import` on the node"
    )]
    NotRemote(String),
    /// The source's own name is none that an image can have here.
    #[error("{0:?}, as the source is called, is no name for an image here; give one with --name")]
    NoName(String),
    /// A platform that nobody writes like this.
    #[error("platform {0:?} is not OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64")]
    BadPlatform(String),
    /// There is no such image.
    #[error("there is no image {image} in {place}{}", listed(.available))]
    NotFound {
        /// Name and tag or digest.
        image: String,
        /// Registry, directory or file.
        place: String,
        /// What there is, where that is known.
        available: Vec<String>,
    },
    /// The image is not made for this platform.
    #[error("{image} is not made for {wanted}{}; choose with --platform", listed(.available))]
    NoPlatform {
        /// Name and tag or digest.
        image: String,
        /// Operating system, architecture and maybe variant.
        wanted: String,
        /// Those that there are.
        available: Vec<String>,
    },
    /// No connection, or it broke off each time.
    #[error("cannot reach the registry {registry}; is its name right, and is --insecure needed?")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What happened last.
        #[source]
        source: Box<ureq::Error>,
    },
    /// A registry that sends nothing, or hardly anything.
    #[error("{what} of {registry} stands still: {bytes} bytes in {} s; the import goes on from there when it is called again", .time.as_secs())]
    Stalled {
        /// What was asked for.
        what: String,
        /// Host and port.
        registry: String,
        /// What arrived.
        bytes: u64,
        /// In this time.
        time: Duration,
    },
    /// The registry wants to know who asks, or does not like the answer.
    #[error(
        "{registry} does not let {who} read {repository}; give --username and --password-stdin, or use `docker login {registry}`"
    )]
    Denied {
        /// Host and port.
        registry: String,
        /// Name of the repository.
        repository: String,
        /// The user, or nobody.
        who: String,
    },
    /// The registry answers with an error.
    #[error("{registry} answered {status} to the request for {what}: {message}")]
    Refused {
        /// Host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// Number of the answer.
        status: u16,
        /// What it said.
        message: String,
    },
    /// Credentials that are stored cannot be used.
    #[error(
        "cannot use the credentials for {registry} from {from}: {reason}; `docker login {registry}` writes them anew"
    )]
    Credentials {
        /// Host and port.
        registry: String,
        /// File or program.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// A document of the image is not what it should be.
    #[error("{what} cannot be used: {reason}; it has to be made again")]
    BadDocument {
        /// Manifest, index or configuration, and of what.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something is larger than is taken.
    #[error("{what} is larger than {limit} bytes, which is the most that is taken")]
    TooLarge {
        /// What it is.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// Bytes are not those that were announced.
    #[error(
        "{what} is not what was announced: it has the digest {found}, not {expected}; do not trust where it comes from"
    )]
    WrongDigest {
        /// What it is.
        what: String,
        /// As announced.
        expected: String,
        /// As computed.
        found: String,
    },
    /// A layer grows out of all proportion.
    #[error(
        "layer {layer} has {packed} bytes and unpacks to more than {limit}: it is taken for an attack on this machine"
    )]
    Bomb {
        /// Its digest.
        layer: String,
        /// Bytes as transferred.
        packed: u64,
        /// Bytes after which it was given up.
        limit: u64,
    },
    /// A layer that cannot be unpacked.
    #[error("layer {layer} cannot be unpacked: {reason}; the image has to be made again")]
    BadLayer {
        /// Its digest.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One file of a layer that cannot be unpacked.
    #[error("layer {layer} cannot be unpacked: {entry:?} {reason}; the image has to be made again")]
    BadEntry {
        /// Digest of the layer.
        layer: String,
        /// Its name there.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refuses to make one file of a layer.
    #[error("cannot unpack {entry:?} of layer {layer}")]
    Entry {
        /// Digest of the layer.
        layer: String,
        /// Its name there.
        entry: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk would be full.
    #[error(
        "{} has {free} bytes free, of which {needed} are needed and {reserve} have to stay free; make room, or choose another \
         --image-store",
        .path.display()
    )]
    NoSpace {
        /// Where the store lies.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What is to be written, as far as that is known.
        needed: u64,
        /// What has to stay free.
        reserve: u64,
    },
}

impl OciError {
    /// As an error of a reader, from which [`OciError::of_io`] takes it out again.
    pub(super) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The error that a reader passed on, or what `otherwise` makes of one of the system.
    pub(super) fn of_io(error: io::Error, otherwise: impl FnOnce(io::Error) -> Self) -> Self {
        error.downcast::<Self>().unwrap_or_else(otherwise)
    }
}

fn listed(available: &[String]) -> String {
    if available.is_empty() { String::new() } else { format!("; there is: {}", available.join(", ")) }
}
