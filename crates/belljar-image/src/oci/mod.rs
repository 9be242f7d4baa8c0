//! Imports an image: an OCI image of a registry, a directory or a file in, registered root file system out.
//!
//! ```text
//! source ─► manifest, configuration ─(imported before)─► name the old image
//!               └─► for each layer: transfer ─► unpack ─┬─► pack ─► address ─► name the new image
//!                         ▲  kept when that breaks off  │
//!                         └─────────────────────────────┘
//! ```
//!
//! - `source`: what the user writes. `manifest`: what the image is made of; it asks one of `registry`, `layout` and
//!   `docker_archive`. `credentials` and `challenge`: who asks a registry.
//! - `transfer` and `blobs`: layers on their way from a registry. `layer`: its bytes. `archive` and `pax`: the tar in it.
//!   `unpack`: what that does to the tree. `root`: a tree out of which no path leads.
//!
//! It runs nothing of the image. Who made it may want to harm this machine: everything has a bound (`limits`), and is
//! verified by the digests of the manifest. Called by `belljar image import`, and by the node for builds over the API.

mod archive;
mod blobs;
mod challenge;
mod credentials;
mod docker_archive;
mod error;
mod layer;
mod layout;
#[cfg(test)]
mod loopback;
mod manifest;
mod pax;
mod registry;
mod root;
mod source;
#[cfg(test)]
mod testing;
mod transfer;
mod unpack;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use self::layer::hex;
#[cfg(test)]
pub(crate) use self::testing::is_root;
use self::{
    blobs::Blobs,
    credentials::Credentials,
    docker_archive::DockerArchive,
    layer::{Content, Layer},
    layout::Layout,
    manifest::Resolved,
    registry::Registry,
    source::{Source, Wanted},
    transfer::{Pace, Transfer},
    unpack::{Total, Tree},
};
pub use self::{
    credentials::{DockerAuths, Login},
    error::OciError,
};
use crate::{
    build::{BuiltImage, seal},
    draft,
    error::ImageError,
    ext4, limits, name,
    record::{Image, ROOTFS},
    stop::Stop,
    store::Store,
};

/// Part of every import's key. Raise it with every change here or in `ext4.rs` that changes an image.
const VERSION: u32 = 1;

/// What to import.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// `REGISTRY/NAME:TAG`, `NAME@sha256:…`, `oci:DIR[:TAG]` or `docker-archive:FILE[:NAME:TAG]`.
    pub source: String,
    /// Name to register it under; without one, the last part of the repository with its tag.
    pub name: Option<String>,
    /// `OS/ARCH[/VARIANT]`; without one, what virtual machines here can run.
    pub platform: Option<String>,
    /// Whether a registry may speak HTTP, or HTTPS with a certificate that nobody knows.
    pub insecure: bool,
    /// Who asks the registry.
    pub login: Option<Login>,
    /// Docker's directory, where `docker login` stores who asks.
    pub docker_dir: Option<PathBuf>,
    /// What somebody else has stored like that; wins over the directory.
    pub docker_auths: Option<DockerAuths>,
    /// MiB of the file system; without a number, what the files need and at least [`limits::DEFAULT_SIZE_MIB`].
    pub size_mib: Option<u64>,
    /// Import even when the same layers gave an image before.
    pub force: bool,
    /// Whether its name is not there for every project.
    pub private: bool,
    /// What is told of where it comes from, in place of the source; the digest is added.
    pub origin: Option<String>,
    /// Stops it.
    pub stop: Stop,
}

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportProgress {
    /// Another image is being made in this store, or the manifest is being fetched.
    Resolve,
    /// A layer is transferred.
    Fetch(LayerProgress),
    /// A layer is unpacked.
    Unpack(LayerProgress),
    /// The file system is packed.
    Pack,
    /// Its content address is computed.
    Address,
}

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Number of the layer, from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// Its digest.
    pub digest: String,
    /// Bytes done.
    pub have: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The limits that are different in tests.
#[derive(Debug, Clone)]
struct Caps {
    unpacked_bytes: u64,
    entries: u64,
    ratio_free_bytes: u64,
    reserve_bytes: u64,
    stall: Duration,
    document: Duration,
    rate_window: Duration,
    pause: Duration,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            unpacked_bytes: limits::MAX_UNPACKED_BYTES,
            entries: limits::MAX_ENTRIES,
            ratio_free_bytes: limits::RATIO_FREE_BYTES,
            reserve_bytes: limits::RESERVE_BYTES,
            stall: limits::STALL_LIMIT,
            document: limits::DOCUMENT_LIMIT,
            rate_window: limits::RATE_WINDOW,
            pause: limits::ATTEMPT_PAUSE,
        }
    }
}

/// Says whether an image reference names a registry, and nothing on this machine.
///
/// # Errors
/// [`OciError::NotRemote`], or [`OciError::BadSource`] for what is no reference at all.
pub fn check_reference(reference: &str) -> Result<(), OciError> {
    match Source::parse(reference)? {
        Source::Registry(_) => Ok(()),
        Source::Layout { .. } | Source::Archive { .. } => Err(OciError::NotRemote(reference.to_owned())),
    }
}

/// Imports an image and registers it in `store`, or registers the one that the same layers gave before. Blocks for the
/// whole time; one image at a time is made in a store, and a second import of one name is refused.
///
/// # Errors
/// [`ImageError`] names the input that is at fault; the store is then as it was, but for layers that arrived whole or in
/// part, which the next attempt goes on from.
pub fn import(
    store: &Store,
    request: &ImportRequest,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<BuiltImage, ImageError> {
    import_within(&Caps::default(), store, request, progress)
}

/// Names the image that an import of an archive gave, by the digest of its configuration; the source is not looked at.
/// `None` when there was no such import, or its image has gone.
///
/// # Errors
/// [`ImageError::BadName`], or [`ImageError::Stopped`].
pub fn reimport(
    store: &Store,
    request: &ImportRequest,
    name: &str,
    config_digest: &str,
) -> Result<Option<Image>, ImageError> {
    let name = name::canonical(name)?;
    let _claim = store.claim(name)?;
    store.reuse(name, &key(request, config_digest), !request.private, || request.stop.pass())
}

fn import_within(
    caps: &Caps,
    store: &Store,
    request: &ImportRequest,
    progress: &mut dyn FnMut(ImportProgress),
) -> Result<BuiltImage, ImageError> {
    let source = Source::parse(&request.source)?;
    let wanted = Wanted::parse(request.platform.as_deref())?;
    let own = source.default_name();
    let name = match &request.name {
        Some(given) => name::canonical(given)?,
        None => name::canonical(&own).map_err(|_| OciError::NoName(own.clone()))?,
    };
    if let Some(size) = request.size_mib.filter(|size| !(limits::MIN_SIZE_MIB..=limits::MAX_SIZE_MIB).contains(size)) {
        let (min, max) = (limits::MIN_SIZE_MIB, limits::MAX_SIZE_MIB);
        return Err(ImageError::BadRequest(format!("{size} MiB is not between {min} and {max} MiB")));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NeedsRoot);
    }
    let _claim = store.claim(name)?;
    progress(ImportProgress::Resolve);
    let (stage, lock) = store.stage()?;
    let job = Job { caps, store, request, source: &source, wanted: &wanted, name, stage: &stage };
    let result = job.run(progress);
    let cleaned = fs::remove_dir_all(&stage).map_err(ImageError::io("remove", &stage));
    drop(lock);
    let imported = result?;
    cleaned?;
    Ok(imported)
}

/// Where the layers come from.
enum Origin {
    Registry(Box<Registry>),
    Layout(Layout),
    Archive(DockerArchive),
}

struct Job<'a> {
    caps: &'a Caps,
    store: &'a Store,
    request: &'a ImportRequest,
    source: &'a Source,
    wanted: &'a Wanted,
    name: &'a str,
    stage: &'a Path,
}

impl Job<'_> {
    fn run(&self, progress: &mut dyn FnMut(ImportProgress)) -> Result<BuiltImage, ImageError> {
        // Whoever held the lock may have taken long.
        self.request.stop.check()?;
        let blobs = Blobs::open(&self.store.blobs_dir())?;
        let (mut origin, resolved) = self.resolve()?;
        let key = self.key(&resolved);
        if !self.request.force
            && let Some(image) =
                self.store.reuse(self.name, &key, !self.request.private, || self.request.stop.pass())?
        {
            return Ok(BuiltImage { name: self.name.to_owned(), image, cached: true });
        }
        // Nobody else may enter: what lies in here has set-user-id programs and device nodes.
        private_dir(&self.stage.join("oci"))?;
        let root = self.stage.join("oci/root");
        let mut tree = Tree::new(&root, self.caps).map_err(ImageError::io("create", &root))?;
        for (index, layer) in resolved.layers.iter().enumerate() {
            let about = LayerProgress {
                number: index + 1,
                of: resolved.layers.len(),
                digest: layer.name.clone(),
                have: 0,
                total: layer.packed.as_ref().map_or(0, |(_, size)| *size),
            };
            let (file, size) = self.open(&mut origin, &blobs, index, layer, &about, progress)?;
            if let Err(error) = self.unpack(&mut tree, layer, file, size, about, progress) {
                self.request.stop.check()?;
                // Only what the next attempt could use is kept: not a layer that is at fault itself.
                if let (ImageError::Oci(fault), Some((digest, _))) = (&error, &layer.packed)
                    && !matches!(fault, OciError::NoSpace { .. } | OciError::Entry { .. })
                {
                    blobs.forget(digest)?;
                }
                return Err(error);
            }
        }
        self.request.stop.check()?;
        let image = self.pack(&tree, &resolved, progress)?;
        let out = image.rootfs.parent().unwrap_or(self.stage);
        self.request.stop.pass()?;
        let image = self.store.commit(out, &image, self.name, Some(&key), !self.request.private)?;
        for (digest, _) in resolved.layers.iter().filter_map(|layer| layer.packed.as_ref()) {
            blobs.forget(digest)?;
        }
        Ok(BuiltImage { name: self.name.to_owned(), image, cached: false })
    }

    fn resolve(&self) -> Result<(Origin, Resolved), ImageError> {
        let shown = self.source.to_string();
        Ok(match self.source {
            Source::Registry(reference) => {
                let mut registry = Registry::new(
                    reference.clone(),
                    self.credentials(reference.registry())?,
                    self.request.insecure,
                    self.caps,
                );
                let resolved = manifest::resolve(&mut registry, self.wanted)?;
                (Origin::Registry(Box::new(registry)), resolved)
            }
            Source::Layout { dir, which } => {
                let mut layout = Layout::new(dir, which.clone(), shown);
                let resolved = manifest::resolve(&mut layout, self.wanted)?;
                (Origin::Layout(layout), resolved)
            }
            Source::Archive { file, name } => {
                let mut archive = DockerArchive::open(file, shown, self.stage, self.caps)?;
                let resolved = archive.resolve(name.as_deref(), self.wanted)?;
                (Origin::Archive(archive), resolved)
            }
        })
    }

    /// Who asks this registry.
    fn credentials(&self, registry: &str) -> Result<Credentials, OciError> {
        let ImportRequest { login, docker_auths, docker_dir, .. } = self.request;
        match (login, docker_auths, docker_dir) {
            (Some(login), ..) => Ok(Credentials::Login(login.clone())),
            (None, Some(auths), _) => auths.of(registry),
            (None, None, Some(dir)) => credentials::stored(registry, dir),
            (None, None, None) => Ok(Credentials::Anonymous),
        }
    }

    /// Where a layer can be read, and how many bytes it has there.
    fn open(
        &self,
        origin: &mut Origin,
        blobs: &Blobs,
        index: usize,
        layer: &Layer,
        about: &LayerProgress,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<(io::Take<File>, u64), ImageError> {
        let (file, size) = match origin {
            Origin::Archive(archive) => return archive.layer(index),
            Origin::Layout(layout) => layout.blob(&layer.name)?,
            Origin::Registry(registry) => {
                let Some((digest, size)) = &layer.packed else {
                    let reason = "it has no digest".to_owned();
                    return Err(OciError::BadLayer { layer: layer.name.clone(), reason }.into());
                };
                let mut fetched = |have| progress(ImportProgress::Fetch(LayerProgress { have, ..about.clone() }));
                let whole = blobs.whole(digest)?;
                let transfer = Transfer {
                    registry,
                    blobs,
                    caps: self.caps,
                    digest,
                    size: *size,
                    progress: &mut fetched,
                    stop: &self.request.stop,
                    pace: Pace::new(),
                };
                (whole.map_or_else(|| { transfer }.run(), Ok)?, *size)
            }
        };
        // One byte more than there should be shows what is too large.
        Ok((file.take(size.saturating_add(1)), size))
    }

    fn unpack(
        &self,
        tree: &mut Tree,
        layer: &Layer,
        file: io::Take<File>,
        size: u64,
        about: LayerProgress,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<(), ImageError> {
        let mut have = 0;
        let counted = Counted {
            file,
            stop: &self.request.stop,
            count: &mut |count| {
                have += count;
                progress(ImportProgress::Unpack(LayerProgress { have, total: size, ..about.clone() }));
            },
        };
        let content = Content::open(layer, counted, size, self.caps)?;
        Ok(tree.apply(&layer.name, content)?.finish()?)
    }

    /// Makes the file system of the tree, and says what it is.
    fn pack(
        &self,
        tree: &Tree,
        resolved: &Resolved,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<Image, ImageError> {
        let config = manifest::runtime_config(&resolved.config);
        tree.ensure_directory(config.workdir.as_deref().unwrap_or("/"))?;
        progress(ImportProgress::Pack);
        let out = self.stage.join("image");
        fs::create_dir(&out).map_err(ImageError::io("create", &out))?;
        let rootfs = out.join(ROOTFS);
        let size_mib = self.request.size_mib.unwrap_or_else(|| size_for(tree.total));
        check_space(&out, tree.total.bytes, self.caps)?;
        ext4::pack(tree.path(), &rootfs, size_mib, tree.total.newest)?;
        self.request.stop.check()?;
        progress(ImportProgress::Address);
        let mut image = seal(&rootfs, config)?;
        image.origin = Some(match (&self.request.origin, self.source) {
            (Some(told), _) => format!("{told}@{}", resolved.digest),
            (None, Source::Registry(reference)) if reference.digest().is_some() => reference.to_string(),
            (None, source) => format!("{source}@{}", resolved.digest),
        });
        image.history = manifest::history(&resolved.config);
        image.write(&out)?;
        Ok(image)
    }

    fn key(&self, resolved: &Resolved) -> String {
        key(self.request, &resolved.digest)
    }
}

/// A hash over everything that decides what is in the image.
fn key(request: &ImportRequest, digest: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"oci").update(&VERSION.to_le_bytes());
    hasher.update(&request.size_mib.unwrap_or(0).to_le_bytes()).update(digest.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// Says how much was read, and reads nothing more once that is of no use.
struct Counted<'a> {
    file: io::Take<File>,
    stop: &'a Stop,
    count: &'a mut dyn FnMut(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check().map_err(io::Error::other)?;
        let count = self.file.read(buffer)?;
        (self.count)(count as u64);
        Ok(count)
    }
}

/// MiB of a file system that has room for these files, their inodes and some more.
fn size_for(total: Total) -> u64 {
    /// Of the file system for each inode, as `mkfs.ext4` has it.
    const BYTES_PER_INODE: u64 = 16384;
    /// For directories, inodes and the maps of what is free: a sixteenth, and as much again that stays free.
    const SPARE: u64 = 8;
    let for_bytes = total.bytes + total.bytes / SPARE + ((limits::JOURNAL_MIB + 64) << 20);
    let for_inodes = (total.entries + total.entries / SPARE) * BYTES_PER_INODE;
    for_bytes.max(for_inodes).div_ceil(1 << 20).clamp(limits::DEFAULT_SIZE_MIB, limits::MAX_SIZE_MIB)
}

fn private_dir(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(path).map_err(ImageError::io("create", path))
}

/// Whether `needed` bytes can be written where `path` lies, and enough stays free.
fn check_space(path: &Path, needed: u64, caps: &Caps) -> Result<(), OciError> {
    draft::check_space(path, needed, caps.reserve_bytes)
}

#[cfg(test)]
#[path = "real_test.rs"]
mod real_tests;

#[cfg(test)]
#[path = "import_test.rs"]
mod tests;
