//! Builds the default image into the image store, as a user would: with `belljar image build`.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{artifacts, cargo, paths, run};

/// The image of a sandbox that names none.
const DEFAULT_IMAGE: &str = "belljar/debian";

/// Builds the binary, then the image.
pub(crate) fn run() -> Result<()> {
    build(&cargo::build_belljar(false)?)
}

/// Builds the image with this binary; a second or two when its packages have not changed.
pub(crate) fn build(belljar: &Path) -> Result<()> {
    let store = paths::image_store()?;
    let mut build = Command::new(belljar);
    build.args(["image", "build", DEFAULT_IMAGE]).env("BELLJAR_IMAGE_STORE", &store);
    run::step("image: build the default image", &mut build)?;
    artifacts::make_current("image_store", &store)
}
