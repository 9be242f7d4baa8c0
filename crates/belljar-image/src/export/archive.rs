//! What stands around a layer: its configuration, a manifest, an index, and a tar archive of all of it in the OCI layout.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, Write},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType;

use super::stream::{self, Member};
use crate::{oci::hex, record::Image, store::Named};

/// Whether the layer of an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// With gzip: for files that are kept or sent.
    Gzip,
    /// Not, and holes of files are written out: for a builder, which unpacks it at once. What gives layers back there
    /// (tar-split) makes more of a sparse file than it was told of, and an export of what was built on it fails.
    None,
}

/// A layer that is being written: hashed before and after it is packed.
pub(super) struct Layer {
    packer: Hashed<Packer>,
}

enum Packer {
    Gzip(GzEncoder<Hashed<BufWriter<File>>>),
    None(Hashed<BufWriter<File>>),
}

/// A layer that is complete.
pub(super) struct Finished {
    file: File,
    /// Bytes, packed.
    pub(super) size: u64,
    /// Hexadecimal digits of the hash of the packed bytes.
    packed: String,
    /// And of the unpacked ones.
    unpacked: String,
    /// Its media type.
    kind: &'static str,
}

impl Layer {
    pub(super) fn begin(file: File, packing: Packing) -> Self {
        let file = Hashed::new(BufWriter::new(file));
        Self {
            packer: Hashed::new(match packing {
                // Fast: the larger half of an image's time goes into this, and the next best level saves a few per cent.
                Packing::Gzip => Packer::Gzip(GzEncoder::new(file, Compression::fast())),
                Packing::None => Packer::None(file),
            }),
        }
    }

    pub(super) fn finish(self) -> io::Result<Finished> {
        let Hashed { to, hash } = self.packer;
        let unpacked = hex(hash);
        let (Hashed { to, hash }, kind) = match to {
            Packer::Gzip(gzip) => (gzip.finish()?, "application/vnd.oci.image.layer.v1.tar+gzip"),
            Packer::None(plain) => (plain, "application/vnd.oci.image.layer.v1.tar"),
        };
        let mut file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
        let size = file.stream_position()?;
        file.rewind()?;
        Ok(Finished { file, size, packed: hex(hash), unpacked, kind })
    }
}

impl Write for Layer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.packer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.packer.flush()
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::None(plain) => plain.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.flush(),
            Self::None(plain) => plain.flush(),
        }
    }
}

struct Hashed<W> {
    to: W,
    hash: Sha256,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A document as it stands in the archive.
struct Blob {
    digits: String,
    text: Vec<u8>,
}

impl Blob {
    fn new(value: &Value) -> Self {
        let text = value.to_string().into_bytes();
        Self { digits: hex(Sha256::new().chain_update(&text)), text }
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({ "mediaType": kind, "digest": format!("sha256:{}", self.digits), "size": self.text.len() })
    }
}

/// Writes the archive; gives the digest of the manifest.
pub(super) fn write(named: &Named, mut layer: Finished, to: &mut dyn Write) -> io::Result<String> {
    let config = Blob::new(&configuration(&named.image, &layer.unpacked));
    let manifest = Blob::new(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [{
            "mediaType": layer.kind,
            "digest": format!("sha256:{}", layer.packed),
            "size": layer.size,
        }],
    }));
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": named.name });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry],
    });
    let mut to = BufWriter::new(to);
    let mut put = |name: &str, size: u64, content: &mut dyn io::Read| {
        let member = Member {
            kind: EntryType::Regular,
            name: name.as_bytes(),
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            device: (0, 0),
            attributes: &[],
            size,
            map: None,
        };
        stream::begin(&mut to, &member)?;
        if io::copy(content, &mut to)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream::pad(&mut to, size)
    };
    let mut text = |name: &str, text: &[u8]| put(name, text.len() as u64, &mut &*text);
    text("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    text("index.json", index.to_string().as_bytes())?;
    for blob in [&config, &manifest] {
        text(&format!("blobs/sha256/{}", blob.digits), &blob.text)?;
    }
    put(&format!("blobs/sha256/{}", layer.packed), layer.size, &mut layer.file)?;
    stream::end(&mut to)?;
    to.flush()?;
    Ok(format!("sha256:{}", manifest.digits))
}

/// What engines are told of the image.
fn configuration(image: &Image, layer: &str) -> Value {
    /// The user of an image that names none.
    const USER: &str = crate::recipe::USER;
    let said = &image.config;
    let mut config = Map::new();
    let env: Vec<String> = said.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let ports: Map<String, Value> = said.exposed_ports.iter().map(|port| (port.clone(), json!({}))).collect();
    for (key, value, is_there) in [
        ("Env", json!(env), !env.is_empty()),
        ("User", json!(said.user.as_deref().unwrap_or(USER)), true),
        ("WorkingDir", json!(said.workdir), said.workdir.is_some()),
        ("Entrypoint", json!(said.entrypoint), !said.entrypoint.is_empty()),
        ("Cmd", json!(said.cmd), !said.cmd.is_empty()),
        ("Labels", json!(said.labels), !said.labels.is_empty()),
        ("ExposedPorts", Value::Object(ports), !said.exposed_ports.is_empty()),
    ] {
        if is_there {
            config.insert(key.to_owned(), value);
        }
    }
    // Whatever made layers once made none of this one: engines count them.
    let mut history: Vec<Value> = image
        .history
        .iter()
        .map(|step| {
            let mut entry = json!({ "created_by": step.created_by, "empty_layer": true });
            if let Some(created) = &step.created {
                entry["created"] = json!(created);
            }
            if !step.comment.is_empty() {
                entry["comment"] = json!(step.comment);
            }
            entry
        })
        .collect();
    history.push(json!({ "created": image.created_at, "created_by": "belljar image export" }));
    json!({
        "created": image.created_at,
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        "history": history,
    })
}

/// As OCI calls the processor of this machine, whose images these are.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
