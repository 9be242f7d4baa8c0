//! From a reference to what an image is made of: index, manifest and configuration, each verified by its digest.
//!
//! ```text
//! tag or digest ─► index ─(platform)─► index …? ─► manifest ─► configuration
//! ```
//!
//! It asks [`Documents`] for bytes and knows nothing of where they lie.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, Digest, History, ImageConfiguration, ImageIndex, ImageManifest};
use sha2::{Digest as _, Sha256};

use super::{
    error::OciError,
    layer::{Layer, hex},
    source::{Wanted, is_sha256, platform_name},
};
use crate::{
    limits::{MAX_BLOB_BYTES, MAX_DOCUMENT_BYTES, MAX_INDEX_DEPTH, MAX_LAYERS},
    record::{self, HistoryEntry, RuntimeConfig},
};

/// Where documents of an image lie.
pub(super) trait Documents {
    /// The manifest or index that was asked for, its digest not checked if there is none to check it by.
    fn first(&mut self) -> Result<Vec<u8>, OciError>;
    /// A manifest or index by its digest; its bytes are checked by the caller.
    fn manifest(&mut self, digest: &str) -> Result<Vec<u8>, OciError>;
    /// A configuration by its digest; its bytes are checked by the caller.
    fn configuration(&mut self, digest: &str) -> Result<Vec<u8>, OciError>;
    /// What the user asked for, for messages.
    fn name(&self) -> String;
    /// The digest that the user gave.
    fn pinned(&self) -> Option<String>;
}

/// What an image is made of.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Digest of what decides about all of it: the manifest, or the configuration where there is none.
    pub(super) digest: String,
    pub(super) config: ImageConfiguration,
    /// From the lowest to the highest.
    pub(super) layers: Vec<Layer>,
}

/// Finds the image for a platform.
pub(super) fn resolve(origin: &mut dyn Documents, wanted: &Wanted) -> Result<Resolved, OciError> {
    let mut bytes = origin.first()?;
    let mut digest = format!("sha256:{}", hex(Sha256::new().chain_update(&bytes)));
    if let Some(pinned) = origin.pinned() {
        check_digest(&format!("the manifest of {}", origin.name()), &bytes, &pinned)?;
    }
    for _ in 0..=MAX_INDEX_DEPTH {
        let Some(index) = as_index(&bytes, &origin.name())? else {
            return of_manifest(origin, &digest, &bytes, wanted);
        };
        digest = choose(&index, wanted, &origin.name())?;
        bytes = origin.manifest(&digest)?;
        check_digest("the manifest", &bytes, &digest)?;
    }
    let what = format!("the index of {}", origin.name());
    Err(OciError::BadDocument { what, reason: format!("more than {MAX_INDEX_DEPTH} indexes lie in one another") })
}

/// An index, unless it is a manifest.
fn as_index(bytes: &[u8], name: &str) -> Result<Option<ImageIndex>, OciError> {
    let what = format!("the manifest of {name}");
    let value: serde_json::Value = parse(bytes, &what)?;
    if value.get("schemaVersion").and_then(serde_json::Value::as_u64) != Some(2) {
        let reason = "it is none of OCI or of Docker's second version".to_owned();
        return Err(OciError::BadDocument { what, reason });
    }
    if value.get("manifests").is_none() {
        return Ok(None);
    }
    parse(bytes, &format!("the index of {name}")).map(Some)
}

/// Digest of the manifest for a platform. One alone without a platform is for any: its configuration will tell.
fn choose(index: &ImageIndex, wanted: &Wanted, name: &str) -> Result<String, OciError> {
    let found = match index.manifests().as_slice() {
        [only] if only.platform().is_none() => Some(only),
        all => all.iter().find(|one| one.platform().as_ref().is_some_and(|platform| wanted.is_platform(platform))),
    };
    match found {
        Some(found) => sha256(found.digest(), name),
        None => {
            let platforms = index.manifests().iter().filter_map(|one| one.platform().as_ref());
            let mut available: Vec<String> = platforms
                .map(|it| platform_name(&it.os().to_string(), &it.architecture().to_string(), it.variant().as_deref()))
                // So the attestations of a build are marked, which are no images.
                .filter(|name| name != "unknown/unknown")
                .collect();
            available.sort();
            available.dedup();
            Err(OciError::NoPlatform { image: name.to_owned(), wanted: wanted.to_string(), available })
        }
    }
}

fn of_manifest(origin: &mut dyn Documents, digest: &str, bytes: &[u8], wanted: &Wanted) -> Result<Resolved, OciError> {
    let what = format!("the manifest of {}", origin.name());
    let manifest: ImageManifest = parse(bytes, &what)?;
    let config_digest = sha256(manifest.config().digest(), &what)?;
    let bytes = origin.configuration(&config_digest)?;
    let config_name = format!("the configuration of {}", origin.name());
    check_digest(&config_name, &bytes, &config_digest)?;
    let config = configuration(&bytes, &origin.name(), wanted)?;
    let diff_ids = diff_ids(&config, &config_name)?;
    if diff_ids.len() != manifest.layers().len() {
        let reason = format!("it has {} layers, and its configuration {}", manifest.layers().len(), diff_ids.len());
        return Err(OciError::BadDocument { what, reason });
    }
    let layer = |(packed, unpacked): (&Descriptor, String)| {
        let digest = sha256(packed.digest(), &what)?;
        if packed.size() > MAX_BLOB_BYTES {
            return Err(OciError::TooLarge { what: format!("layer {digest}"), limit: MAX_BLOB_BYTES });
        }
        let hex = digest.trim_start_matches("sha256:").to_owned();
        Ok(Layer { name: digest, packed: Some((hex, packed.size())), unpacked })
    };
    let layers: Result<_, _> = manifest.layers().iter().zip(diff_ids).map(layer).collect();
    Ok(Resolved { digest: digest.to_owned(), config, layers: layers? })
}

/// A configuration, if it is for the platform.
pub(super) fn configuration(bytes: &[u8], name: &str, wanted: &Wanted) -> Result<ImageConfiguration, OciError> {
    let config: ImageConfiguration = parse(bytes, &format!("the configuration of {name}"))?;
    let (os, arch) = (config.os().to_string(), config.architecture().to_string());
    // Not every program that makes images notes the variant here, too.
    if wanted.is(&os, &arch, config.variant().as_deref())
        || config.variant().is_none() && wanted.to_string().starts_with(&format!("{os}/{arch}/"))
    {
        return Ok(config);
    }
    let available = vec![platform_name(&os, &arch, config.variant().as_deref())];
    Err(OciError::NoPlatform { image: name.to_owned(), wanted: wanted.to_string(), available })
}

/// Digests of the layers' content, hexadecimal.
pub(super) fn diff_ids(config: &ImageConfiguration, what: &str) -> Result<Vec<String>, OciError> {
    let ids = config.rootfs().diff_ids();
    if ids.len() > MAX_LAYERS {
        return Err(OciError::TooLarge { what: format!("the number of layers in {what}"), limit: MAX_LAYERS as u64 });
    }
    let id = |id: &String| {
        let bad = || OciError::BadDocument { what: what.to_owned(), reason: format!("{id:?} is no SHA-256") };
        is_sha256(id).then(|| id.trim_start_matches("sha256:").to_owned()).ok_or_else(bad)
    };
    ids.iter().map(id).collect()
}

/// What a sandbox takes over. Where an image says nothing, what container engines do holds: root, in `/`.
pub(super) fn runtime_config(config: &ImageConfiguration) -> RuntimeConfig {
    let config = config.config().clone().unwrap_or_default();
    let pair = |entry: &String| {
        let (name, value) = entry.split_once('=')?;
        (!name.is_empty() && !entry.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
    };
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let mut exposed_ports = config.exposed_ports().clone().unwrap_or_default();
    exposed_ports.sort();
    RuntimeConfig {
        env: config.env().iter().flatten().filter_map(pair).collect(),
        workdir: said(config.working_dir()).or_else(|| Some("/".to_owned())),
        user: said(config.user()).or_else(|| Some("0".to_owned())),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        labels: config
            .labels()
            .iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<BTreeMap<_, _>>(),
        exposed_ports,
    }
}

/// How the image came about, as its maker tells it.
pub(super) fn history(config: &ImageConfiguration) -> Vec<HistoryEntry> {
    let entry = |step: &History| HistoryEntry {
        created: step.created().clone(),
        created_by: step.created_by().clone().unwrap_or_default(),
        comment: step.comment().clone().unwrap_or_default(),
        empty_layer: step.empty_layer().unwrap_or(false),
    };
    record::bounded(config.history().iter().flatten().map(entry).collect())
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, OciError> {
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(OciError::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT_BYTES });
    }
    serde_json::from_slice(bytes)
        .map_err(|error| OciError::BadDocument { what: what.to_owned(), reason: error.to_string() })
}

fn sha256(digest: &Digest, what: &str) -> Result<String, OciError> {
    let text = digest.to_string();
    let reason = format!("the digest {text:?} is no SHA-256");
    if is_sha256(&text) { Ok(text) } else { Err(OciError::BadDocument { what: what.to_owned(), reason }) }
}

fn check_digest(what: &str, bytes: &[u8], expected: &str) -> Result<(), OciError> {
    let found = format!("sha256:{}", hex(Sha256::new().chain_update(bytes)));
    if found == expected {
        return Ok(());
    }
    Err(OciError::WrongDigest { what: what.to_owned(), expected: expected.to_owned(), found })
}

#[cfg(test)]
#[path = "manifest_test.rs"]
mod tests;
