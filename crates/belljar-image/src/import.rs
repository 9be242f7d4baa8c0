//! Taking over a root file system that was made elsewhere.

use std::{fs, path::Path};

use crate::{
    ImageError,
    build::seal,
    record::{Image, ROOTFS, RuntimeConfig},
    store::Store,
};

impl Store {
    /// Copies the ext4 file `rootfs` into the store and names it.
    ///
    /// # Errors
    /// [`ImageError::BadName`] for the name, [`ImageError::Io`] for a file that cannot be copied.
    pub fn import(&self, name: &str, rootfs: &Path, config: RuntimeConfig) -> Result<Image, ImageError> {
        let (stage, _lock) = self.stage()?;
        let out = stage.join("image");
        fs::create_dir(&out).map_err(ImageError::io("create", &out))?;
        let copy = out.join(ROOTFS);
        fs::copy(rootfs, &copy).map_err(ImageError::io("copy", rootfs))?;
        let image = seal(&copy, config)?;
        image.write(&out)?;
        self.commit(&out, &image, name, &image.digest)
    }
}
