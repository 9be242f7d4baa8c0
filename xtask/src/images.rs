//! Builds the images that tests use into the image store, as a user would: with `belljar image build`.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{artifacts, cargo, paths, run};

/// The image of a sandbox that names none, and the one that Dockerfiles are built in: what everybody begins with.
pub(crate) const USUAL: &[&str] = &["belljar/debian", "belljar/builder"];
/// And the one with systemd and Docker, which is three times as large.
pub(crate) const ALL: &[&str] = &["belljar/debian", "belljar/builder", "belljar/debian-systemd"];

/// Builds the binary, then the images.
pub(crate) fn run() -> Result<()> {
    build(&cargo::build_belljar(false)?, ALL)
}

/// Builds these images with this binary; a second or two when their packages have not changed.
pub(crate) fn build(belljar: &Path, names: &[&str]) -> Result<()> {
    let store = paths::image_store()?;
    for &name in names {
        let mut build = Command::new(belljar);
        build.args(["image", "build", name]).env("BELLJAR_IMAGE_STORE", &store);
        run::step(&format!("image: build {name}"), &mut build)?;
    }
    artifacts::make_current("image_store", &store)
}
