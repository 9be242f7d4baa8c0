//! What every driver checks of a [`VmSpec`], and what it tells every guest kernel.

use crate::driver::{Capabilities, VmSpec};
use crate::error::VmmError;
use crate::limits::{CMDLINE_EXTRA_BYTES, MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, PINNING, PINNING_PER_GIB};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What every guest kernel gets. Console output costs an exit per byte, hence `quiet` and errors only. A guest ends itself by
/// rebooting, also after a panic; how, is the driver's to say.
pub(crate) const CMDLINE: &str = "console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on";

/// Adds where the root file system is, and the caller's words.
pub(crate) fn push_rest(line: &mut String, spec: &VmSpec) {
    if spec.disk.is_some() {
        line.push_str(" belljar.root=/dev/vda");
    }
    if !spec.cmdline_extra.is_empty() {
        line.push(' ');
        line.push_str(&spec.cmdline_extra);
    }
}

/// Refuses what a VM program would misread, cannot do, or the machine cannot have.
pub(crate) fn validate(spec: &VmSpec, capabilities: &Capabilities) -> Result<(), VmmError> {
    let bad = |field, reason: String| Err(VmmError::BadSpec { id: spec.id.clone(), field, reason });
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if spec.id.is_empty() || spec.id.len() > 64 || !spec.id.chars().all(plain) {
        return bad("id", "must be 1 to 64 letters, digits, `-` or `_`".to_owned());
    }
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        return bad("vcpus", format!("is {}, must be 1 to {MAX_VCPUS}", spec.vcpus));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&spec.memory_mib) {
        return bad("memory_mib", format!("is {}, must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}", spec.memory_mib));
    }
    if spec.cmdline_extra.len() > CMDLINE_EXTRA_BYTES || spec.cmdline_extra.chars().any(char::is_control) {
        return bad("cmdline_extra", format!("must be one line of at most {CMDLINE_EXTRA_BYTES} bytes"));
    }
    if spec.devices.is_some() && spec.memory.is_none() {
        return bad("memory", "must be the file that belongs to the device state".to_owned());
    }
    if !spec.hidden_features.is_empty() && !capabilities.hides_features {
        return bad("hidden_features", "are told to guests by this VM program whatever is wanted".to_owned());
    }
    if !spec.passed_through.is_empty() && !capabilities.passes_through {
        return bad("passed_through", "cannot be given to guests by this VM program".to_owned());
    }
    if !spec.passed_through.is_empty() && spec.devices.is_some() {
        return bad("passed_through", "cannot be given to a guest that goes on".to_owned());
    }
    let files = [
        ("kernel", Some(&spec.kernel)),
        ("initrd", spec.initrd.as_ref()),
        ("disk", spec.disk.as_ref()),
        ("memory", spec.memory.as_ref()),
    ];
    for (field, path) in files {
        // QEMU takes text, runs in another directory, and reads `name:` at the start of a disk's path as a protocol.
        if let Some(path) = path.filter(|path| !path.is_absolute() || path.to_str().is_none()) {
            return bad(field, format!("`{}` must be an absolute path in UTF-8", path.display()));
        }
    }
    if spec.changes.is_some() && !capabilities.takes_changes {
        return bad("changes", "cannot be put into the memory of this driver's guests".to_owned());
    }
    if spec.changes.is_some() && (spec.devices.is_none() || spec.memory.is_none()) {
        return bad(
            "changes",
            "are those of a guest that goes on, so `devices` and `memory` belong to them".to_owned(),
        );
    }
    Ok(())
}

/// How much longer the launch of a guest may take whose memory all has to be there at once, for the devices that are its.
pub(crate) fn pinning(spec: &VmSpec) -> Duration {
    if spec.passed_through.is_empty() {
        return Duration::ZERO;
    }
    let gibibytes = u32::try_from(spec.memory_mib.div_ceil(1024)).unwrap_or(u32::MAX);
    PINNING_PER_GIB.saturating_mul(gibibytes).min(PINNING)
}

/// A VM program would name a missing file too, but this way the error is typed and nothing had to be started.
pub(crate) fn check_files(spec: &VmSpec) -> Result<(), VmmError> {
    let files = [
        ("kernel", Some(&spec.kernel), false),
        ("initial RAM file system", spec.initrd.as_ref(), false),
        ("disk", spec.disk.as_ref(), true),
    ];
    for (what, path, write) in files {
        let Some(path) = path else { continue };
        let check = || match OpenOptions::new().read(true).write(write).open(path)?.metadata()?.is_file() {
            true => Ok(()),
            false => Err(std::io::Error::from(std::io::ErrorKind::InvalidInput)),
        };
        check().map_err(|source| VmmError::File { id: spec.id.clone(), what, path: path.clone(), source })?;
    }
    Ok(())
}

/// The number of the memory file, if there is one. A shorter one would end the VM in the middle of the guest's life.
pub(crate) fn check_memory(spec: &VmSpec) -> Result<Option<u64>, VmmError> {
    let Some(path) = &spec.memory else { return Ok(None) };
    let what = "memory file";
    let failed = |source| VmmError::File { id: spec.id.clone(), what, path: path.clone(), source };
    let metadata = File::open(path).and_then(|file| file.metadata()).map_err(failed)?;
    let (found, wanted) = (metadata.len(), spec.memory_mib << 20);
    if !metadata.is_file() || found != wanted {
        let reason = format!("file {} has {found} bytes, must have {wanted}", path.display());
        return Err(VmmError::BadSpec { id: spec.id.clone(), field: "memory", reason });
    }
    Ok(Some(metadata.ino()))
}

/// Keeps a second VM, started by mistake, from damaging a disk, for as long as this lives and is not released. For VM programs
/// that take no lock themselves.
#[derive(Debug, Default)]
pub(crate) struct DiskLock(Mutex<Option<File>>);

impl DiskLock {
    /// Of no disk, where there is none.
    pub(crate) fn of(id: &str, disk: Option<&Path>) -> Result<Self, VmmError> {
        Ok(Self(Mutex::new(disk.map(|disk| lock(id, disk)).transpose()?)))
    }

    /// Nobody runs any more who uses the disk, or somebody else drives its VM. Again is fine.
    pub(crate) fn release(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn lock(id: &str, disk: &Path) -> Result<File, VmmError> {
    let what = "disk";
    let failed = |source| VmmError::File { id: id.to_owned(), what, path: disk.to_owned(), source };
    let file = File::open(disk).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(VmmError::DiskInUse { id: id.to_owned(), path: disk.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::HiddenFeatures;
    use crate::driver::{DiskLimits, NetworkSpec, VmSpec};

    /// One whose paths are easily found again.
    pub(crate) fn spec() -> VmSpec {
        VmSpec {
            id: "x".into(),
            run_dir: "/data/run".into(),
            kernel: "/cache/vmlinux".into(),
            initrd: Some("/cache/initrd".into()),
            disk: Some("/data/disk".into()),
            cmdline_extra: "more".into(),
            vcpus: 2,
            memory_mib: 512,
            memory: Some("/data/memory".into()),
            devices: None,
            changes: None,
            disk_limits: DiskLimits::default(),
            hidden_features: HiddenFeatures::default(),
            passed_through: Vec::new(),
            network: NetworkSpec::None,
            jail: None,
        }
    }
}
