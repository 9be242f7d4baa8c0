//! Images in one file as `docker save` writes it: a tar archive with `manifest.json`, a configuration for each image and
//! its layers as tar archives in it. Layers are read where they lie.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    Caps,
    archive::{Archive, ArchiveError, Kind},
    check_space,
    error::OciError,
    layer::{Layer, hex},
    layout::open_plain,
    manifest::{self, Resolved, parse},
    source::Wanted,
};
use crate::{
    error::ImageError,
    limits::{MAX_ARCHIVE_MEMBERS, MAX_DOCUMENT_BYTES, SPACE_CHECK_BYTES},
};

/// What an image in the file is made of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Where a member lies in the file.
#[derive(Debug, Clone)]
enum Member {
    At { start: u64, size: u64 },
    Link(String),
}

/// A file, and where its members lie.
pub(super) struct DockerArchive {
    file: File,
    members: HashMap<String, Member>,
    name: String,
    /// Of each layer of the image, in order.
    layers: Vec<(u64, u64)>,
}

impl DockerArchive {
    /// Opens `path`; one that is packed is unpacked into the directory `stage` first.
    pub(super) fn open(path: &Path, name: String, stage: &Path, caps: &Caps) -> Result<Self, ImageError> {
        let (file, _) = open_plain(path)?;
        let file = plain(file, path, stage, caps)?;
        let what = |error: ArchiveError| {
            let what = path.display().to_string();
            OciError::BadDocument { what, reason: error.to_string() }
        };
        let mut members = HashMap::new();
        let mut archive = Archive::new(BufReader::new(file.try_clone().map_err(ImageError::io("open", path))?));
        while let Some(member) = archive.next().map_err(what)? {
            let name = plain_name(&member.name);
            let found = match member.kind {
                Kind::File => Member::At { start: archive.position(), size: member.size },
                Kind::HardLink => Member::Link(plain_name(&member.link)),
                // Relative to the directory it lies in.
                Kind::Symlink => Member::Link(beside(&name, &plain_name(&member.link))),
                _ => continue,
            };
            members.insert(name, found);
            if members.len() > MAX_ARCHIVE_MEMBERS {
                let what = format!("the number of members of {}", path.display());
                return Err(OciError::TooLarge { what, limit: MAX_ARCHIVE_MEMBERS as u64 }.into());
            }
        }
        Ok(Self { file, members, name, layers: Vec::new() })
    }

    /// Finds the image with this name, or the only one.
    pub(super) fn resolve(&mut self, wanted_name: Option<&str>, wanted: &Wanted) -> Result<Resolved, OciError> {
        let list = "manifest.json";
        let items: Vec<Item> = parse(&self.document(list)?, &format!("{list} of {}", self.name))?;
        let is_wanted = |item: &&Item| match wanted_name {
            Some(name) => item.repo_tags.iter().flatten().any(|tag| same_name(tag, name)),
            None => items.len() == 1,
        };
        let item = items.iter().find(is_wanted).ok_or_else(|| OciError::NotFound {
            image: wanted_name.unwrap_or("without a name").to_owned(),
            place: self.name.clone(),
            available: items.iter().flat_map(|item| item.repo_tags.iter().flatten().cloned()).collect(),
        })?;
        let bytes = self.document(&item.config)?;
        let config = manifest::configuration(&bytes, &self.name, wanted)?;
        let what = format!("the configuration of {}", self.name);
        let diff_ids = manifest::diff_ids(&config, &what)?;
        if diff_ids.len() != item.layers.len() {
            let reason = format!("it has {} layers, and {list} {}", diff_ids.len(), item.layers.len());
            return Err(OciError::BadDocument { what, reason });
        }
        self.layers = item.layers.iter().map(|layer| self.find(layer)).collect::<Result<_, _>>()?;
        // The bytes of the configuration say what is in each layer: they stand for all of the image.
        let digest = format!("sha256:{}", hex(Sha256::new().chain_update(&bytes)));
        let layer = |unpacked: String| Layer { name: format!("sha256:{unpacked}"), packed: None, unpacked };
        Ok(Resolved { digest, config, layers: diff_ids.into_iter().map(layer).collect() })
    }

    /// A layer by its number, and its size.
    pub(super) fn layer(&self, index: usize) -> Result<(io::Take<File>, u64), ImageError> {
        let failed = || ImageError::io("read", &self.name);
        let (start, size) = self.layers[index];
        let mut file = self.file.try_clone().map_err(failed())?;
        file.seek(SeekFrom::Start(start)).map_err(failed())?;
        Ok((file.take(size), size))
    }

    fn document(&self, member: &str) -> Result<Vec<u8>, OciError> {
        let what = || format!("{member} of {}", self.name);
        let (start, size) = self.find(member)?;
        if size > MAX_DOCUMENT_BYTES {
            return Err(OciError::TooLarge { what: what(), limit: MAX_DOCUMENT_BYTES });
        }
        let mut bytes = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.take(size).read_to_end(&mut bytes))
            .map_err(|error| OciError::BadDocument { what: what(), reason: error.to_string() })?;
        Ok(bytes)
    }

    /// Where a member lies; a link leads to another member, once or twice.
    fn find(&self, member: &str) -> Result<(u64, u64), OciError> {
        const LINKS: usize = 3;
        let mut name = plain_name(member.as_bytes());
        for _ in 0..LINKS {
            match self.members.get(&name) {
                Some(Member::At { start, size }) => return Ok((*start, *size)),
                Some(Member::Link(to)) => name.clone_from(to),
                None => break,
            }
        }
        Err(OciError::BadDocument { what: self.name.clone(), reason: format!("there is no {member:?} in it") })
    }
}

/// The file itself, or what is in it where it is packed.
fn plain(mut file: File, path: &Path, stage: &Path, caps: &Caps) -> Result<File, ImageError> {
    let mut magic = [0; 4];
    let count = file.read(&mut magic).map_err(ImageError::io("read", path))?;
    file.rewind().map_err(ImageError::io("read", path))?;
    let source = BufReader::new(file);
    let mut unpacked: Box<dyn Read> = match magic[..count] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(zstd::Decoder::with_buffer(source).map_err(ImageError::io("unpack", path))?)
        }
        _ => return Ok(source.into_inner()),
    };
    let to = stage.join("archive.tar");
    let mut copy =
        File::options().read(true).write(true).create_new(true).open(&to).map_err(ImageError::io("create", &to))?;
    let mut total = 0;
    loop {
        check_space(stage, SPACE_CHECK_BYTES, caps)?;
        let part = io::copy(&mut unpacked.by_ref().take(SPACE_CHECK_BYTES), &mut copy);
        let part = part.map_err(ImageError::io("unpack", path))?;
        total += part;
        if total > caps.unpacked_bytes {
            let what = format!("what {} unpacks to", path.display());
            return Err(OciError::TooLarge { what, limit: caps.unpacked_bytes }.into());
        }
        if part == 0 {
            copy.rewind().map_err(ImageError::io("read", &to))?;
            return Ok(copy);
        }
    }
}

/// Whether two names mean the same image: `alpine` is `docker.io/library/alpine:latest`.
fn same_name(one: &str, other: &str) -> bool {
    use oci_spec::distribution::Reference;
    match (Reference::try_from(one), Reference::try_from(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

fn plain_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name).trim_start_matches("./").to_owned()
}

/// What `link` means in the directory of `name`.
fn beside(name: &str, link: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_an_archive() {
        assert_eq!(beside("a/layer.tar", "../b/layer.tar"), "b/layer.tar");
        assert_eq!(beside("layer.tar", "../../x"), "x");
        assert!(same_name("docker.io/library/a:latest", "a"));
        assert!(!same_name("a:1", "a:2"));
    }
}
