//! Taking over a root file system that was made elsewhere.

use std::{fs, path::Path};

use crate::{
    ImageError,
    draft::About,
    record::{Image, RuntimeConfig},
    store::Store,
};

impl Store {
    /// Copies the ext4 file `rootfs` into the store and names it.
    ///
    /// # Errors
    /// [`ImageError::BadName`] for the name, [`ImageError::Io`] for a file that cannot be copied.
    pub fn import(&self, name: &str, rootfs: &Path, config: RuntimeConfig) -> Result<Image, ImageError> {
        let draft = self.draft_of_any(name)?;
        fs::copy(rootfs, draft.rootfs()).map_err(ImageError::io("copy", rootfs))?;
        draft.seal(About { config, public: true, ..About::default() })?.commit()
    }
}
