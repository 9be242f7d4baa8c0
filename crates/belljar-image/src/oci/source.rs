//! What a user writes to say which image: a reference to a registry, a directory or a file. Pure.

use std::{fmt, path::PathBuf};

use oci_spec::{distribution::Reference, image::Platform};

use super::error::OciError;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A registry.
    Registry(Reference),
    /// A directory in the OCI image layout, and which of its images.
    Layout { dir: PathBuf, which: Option<Which> },
    /// A file as `docker save` writes it, and which of its images.
    Archive { file: PathBuf, name: Option<String> },
}

/// Which image of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    Tag(String),
    /// `sha256:…`
    Digest(String),
}

impl Source {
    pub(super) fn parse(text: &str) -> Result<Self, OciError> {
        let bad = |reason: &str| OciError::BadSource { source_name: text.to_owned(), reason: reason.to_owned() };
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, which) = layout(rest);
            return if dir.is_empty() {
                Err(bad("names no directory"))
            } else {
                Ok(Self::Layout { dir: dir.into(), which })
            };
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = rest.split_once(':').map_or((rest, None), |(file, name)| (file, Some(name.to_owned())));
            return if file.is_empty() {
                Err(bad("names no file"))
            } else {
                Ok(Self::Archive { file: file.into(), name })
            };
        }
        let reference = text.strip_prefix("docker://").unwrap_or(text);
        let parsed =
            Reference::try_from(reference).map_err(|error| bad(&format!("is no image of a registry: {error}")))?;
        match parsed.digest() {
            Some(digest) if !is_sha256(digest) => Err(bad("is pinned by something else than a SHA-256 in lower case")),
            _ => Ok(Self::Registry(parsed)),
        }
    }

    /// The last part of the repository with its tag: a name for the image, unless the user says another one.
    pub(super) fn default_name(&self) -> String {
        let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let with_tag = |name: String, tag: Option<&str>| tag.map_or(name.clone(), |tag| format!("{name}:{tag}"));
        match self {
            Self::Registry(reference) => with_tag(last(reference.repository()), reference.tag()),
            Self::Layout { dir, which } => {
                let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                match which {
                    Some(Which::Tag(tag)) => with_tag(name, Some(tag)),
                    _ => name,
                }
            }
            Self::Archive { name: Some(name), .. } => last(name),
            Self::Archive { file, .. } => {
                file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(out),
            Self::Layout { dir, which: None } => write!(out, "oci:{}", dir.display()),
            Self::Layout { dir, which: Some(Which::Tag(tag)) } => write!(out, "oci:{}:{tag}", dir.display()),
            Self::Layout { dir, which: Some(Which::Digest(digest)) } => write!(out, "oci:{}@{digest}", dir.display()),
            Self::Archive { file, name: None } => write!(out, "docker-archive:{}", file.display()),
            Self::Archive { file, name: Some(name) } => write!(out, "docker-archive:{}:{name}", file.display()),
        }
    }
}

/// `DIR`, `DIR:TAG` or `DIR@sha256:…`
fn layout(text: &str) -> (&str, Option<Which>) {
    if let Some((dir, digest)) = text.split_once('@').filter(|(_, digest)| is_sha256(digest)) {
        return (dir, Some(Which::Digest(digest.to_owned())));
    }
    match text.rsplit_once(':') {
        // A slash is in no tag, so the colon belongs to the directory.
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(Which::Tag(tag.to_owned()))),
        _ => (text, None),
    }
}

/// The only digests that are taken: every registry and tool has them.
pub(super) fn is_sha256(digest: &str) -> bool {
    const DIGITS: usize = 64;
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == DIGITS && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// Which of an image's variants is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    os: String,
    arch: String,
    variant: Option<String>,
}

impl Wanted {
    /// `OS/ARCH` or `OS/ARCH/VARIANT`; without one, what virtual machines here can run.
    pub(super) fn parse(text: Option<&str>) -> Result<Self, OciError> {
        let Some(text) = text else {
            let arch = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            return Ok(Self { os: "linux".to_owned(), arch: arch.to_owned(), variant: None });
        };
        let parts: Vec<&str> = text.split('/').collect();
        let good =
            |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
        match parts.as_slice() {
            [os, arch, variant @ ..] if variant.len() <= 1 && parts.iter().all(good) => Ok(Self {
                os: (*os).to_owned(),
                arch: (*arch).to_owned(),
                variant: variant.first().map(|variant| (*variant).to_owned()),
            }),
            _ => Err(OciError::BadPlatform(text.to_owned())),
        }
    }

    /// Whether an image for this platform is what is wanted.
    pub(super) fn is(&self, os: &str, arch: &str, variant: Option<&str>) -> bool {
        self.os == os && self.arch == arch && (self.variant.is_none() || self.variant.as_deref() == variant)
    }

    pub(super) fn is_platform(&self, platform: &Platform) -> bool {
        self.is(&platform.os().to_string(), &platform.architecture().to_string(), platform.variant().as_deref())
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&platform_name(&self.os, &self.arch, self.variant.as_deref()))
    }
}

/// `OS/ARCH` or `OS/ARCH/VARIANT`.
pub(super) fn platform_name(os: &str, arch: &str, variant: Option<&str>) -> String {
    variant.map_or_else(|| format!("{os}/{arch}"), |variant| format!("{os}/{arch}/{variant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_the_names_that_they_give() {
        let check = |text: &str, shown: &str, name: &str| {
            let source = Source::parse(text).unwrap();
            assert_eq!((source.to_string().as_str(), source.default_name().as_str()), (shown, name));
        };
        let pin = format!("sha256:{}", "0a".repeat(32));
        check("alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check("docker://alpine:3", "docker.io/library/alpine:3", "alpine:3");
        check("localhost:5000/team/tool:v2", "localhost:5000/team/tool:v2", "tool:v2");
        check(&format!("h.example/a/b@{pin}"), &format!("h.example/a/b@{pin}"), "b");
        check("oci:/srv/debian", "oci:/srv/debian", "debian");
        check("oci:/srv/debian:12", "oci:/srv/debian:12", "debian:12");
        check("oci:/srv:x/debian", "oci:/srv:x/debian", "debian");
        check(&format!("oci:dir@{pin}"), &format!("oci:dir@{pin}"), "dir");
        check("docker-archive:/srv/a.tar", "docker-archive:/srv/a.tar", "a");
        check("docker-archive:a.tar:team/tool:v2", "docker-archive:a.tar:team/tool:v2", "tool:v2");
    }

    #[test]
    fn what_is_no_source() {
        let check = |text: &str, expect: &str| {
            let error = Source::parse(text).unwrap_err().to_string();
            assert!(error.contains(expect) && error.contains("docker-archive:FILE"), "{error}");
        };
        check("", "repository name must have at least one component");
        check("Alpine", "is no image of a registry");
        check("../x", "is no image of a registry");
        check("a@sha256:00", "is no image of a registry");
        check(&format!("a@sha512:{}", "0".repeat(128)), "something else than a SHA-256");
        check("oci:", "names no directory");
        check("docker-archive::x", "names no file");
    }

    #[test]
    fn platforms() {
        let wanted = |text| Wanted::parse(Some(text)).unwrap();
        assert!(wanted("linux/arm").is("linux", "arm", Some("v7")));
        assert!(wanted("linux/arm/v7").is("linux", "arm", Some("v7")));
        assert!(!wanted("linux/arm/v6").is("linux", "arm", Some("v7")));
        assert!(!wanted("linux/amd64").is("windows", "amd64", None));
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(Wanted::parse(Some(bad)).is_err(), "{bad}");
        }
    }
}
