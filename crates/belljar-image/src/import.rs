//! Taking over a root file system that was made elsewhere.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{
    ImageError, date, digest,
    record::{Image, ROOTFS, RuntimeConfig, disk_bytes},
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
        let meta = fs::metadata(&copy).map_err(ImageError::io("read", &copy))?;
        let image = Image {
            digest: digest::of_file(&copy)?,
            rootfs: copy,
            size_bytes: meta.len(),
            disk_bytes: disk_bytes(&meta),
            created_at: date::now(),
            suite: String::new(),
            origin: None,
            packages: BTreeMap::new(),
            config,
        };
        image.write(&out)?;
        self.commit(&out, &image, name, &image.digest)
    }
}
