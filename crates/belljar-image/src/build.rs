//! Builds an image: Debian suite in, registered root file system out.
//!
//! ```text
//! resolve --(same packages built before)--> name the old image
//!    \--> install -> finish -> pack -> address -> name the new image
//! ```
//!
//! The build works on the host and runs only Debian's own, signed packages as root there. Called by `belljar image build`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    date, digest,
    error::ImageError,
    ext4,
    limits::{DEFAULT_SIZE_MIB, MAX_CONFIG_BYTES, MAX_EXTRA_PACKAGES, MAX_SIZE_MIB, MIN_SIZE_MIB},
    name::{self, BUILDER_IMAGE, DEFAULT_IMAGE, SYSTEMD_IMAGE},
    packages::{self, Resolved},
    recipe::{self, Purpose},
    record::{Image, ROOTFS, RuntimeConfig, disk_bytes, read_bounded},
    sources::{Mirrors, SUITES},
    store::Store,
    tool, tree,
};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Name to register it under.
    pub name: String,
    /// One of [`SUITES`].
    pub suite: String,
    /// MiB of the file system; between [`MIN_SIZE_MIB`] and [`MAX_SIZE_MIB`]. A sandbox grows it to its disk.
    pub size_mib: u64,
    /// Directory for package lists, kept between builds.
    pub cache_dir: PathBuf,
    /// Mirror in place of the one this host is configured with; `http://` or `https://`.
    pub mirror: Option<String>,
    /// Debian packages beside the usual ones.
    pub extra_packages: Vec<String>,
    /// What it is for, which decides what the usual ones are.
    pub purpose: Purpose,
    /// Whether the certificates that the administrator of this host trusts are trusted in the image too.
    pub extra_ca: bool,
    /// Build even when the same packages gave an image before.
    pub force: bool,
}

impl BuildRequest {
    /// The default image, with its package lists cached in `cache_dir`.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            name: DEFAULT_IMAGE.to_owned(),
            suite: SUITES[0].to_owned(),
            size_mib: DEFAULT_SIZE_MIB,
            cache_dir,
            mirror: None,
            extra_packages: Vec::new(),
            purpose: Purpose::Sandbox,
            extra_ca: true,
            force: false,
        }
    }

    /// What is usual for an image of this name.
    #[must_use]
    pub fn of(name: &str, cache_dir: PathBuf) -> Self {
        let purpose = match name::canonical(name) {
            Ok(BUILDER_IMAGE) => Purpose::Builder,
            Ok(SYSTEMD_IMAGE) => Purpose::Systemd,
            _ => Purpose::Sandbox,
        };
        let suite = match purpose {
            Purpose::Sandbox => SUITES[0],
            Purpose::Systemd | Purpose::Builder => recipe::NEWER_SUITE,
        };
        Self { name: name.to_owned(), suite: suite.to_owned(), purpose, ..Self::new(cache_dir) }
    }

    fn check(&self) -> Result<(), ImageError> {
        let bad = |message: String| Err(ImageError::BadRequest(message));
        name::canonical(&self.name)?;
        if !SUITES.contains(&self.suite.as_str()) {
            return bad(format!("suite {:?} is not one of {}", self.suite, SUITES.join(", ")));
        }
        if !(MIN_SIZE_MIB..=MAX_SIZE_MIB).contains(&self.size_mib) {
            return bad(format!("{} MiB is not between {MIN_SIZE_MIB} and {MAX_SIZE_MIB} MiB", self.size_mib));
        }
        if self.extra_packages.len() > MAX_EXTRA_PACKAGES {
            return bad(format!("more than {MAX_EXTRA_PACKAGES} extra packages"));
        }
        if let Some(package) = self.extra_packages.iter().find(|package| !is_package_name(package)) {
            return bad(format!("{package:?} is not the name of a Debian package"));
        }
        match &self.mirror {
            Some(mirror) if !is_mirror(mirror) => {
                bad(format!("mirror {mirror:?} is not an http:// or https:// address"))
            }
            _ => Ok(()),
        }
    }
}

/// What apt calls a package name: nothing that it or mmdebstrap could take for an option, a version or a list.
fn is_package_name(name: &str) -> bool {
    name.len() >= 2
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
}

fn is_mirror(address: &str) -> bool {
    let plain = address.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    plain && (address.starts_with("http://") || address.starts_with("https://"))
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Number of the step, from 1.
    pub step: usize,
    /// How many there are.
    pub steps: usize,
    /// What is being done.
    pub title: &'static str,
    /// Last message of the program that does it.
    pub detail: Option<String>,
}

/// A finished build.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// Name it is registered under now.
    pub name: String,
    /// The image.
    pub image: Image,
    /// Whether an earlier build had given it already.
    pub cached: bool,
}

const STEPS: [&str; 5] = [
    "look up packages",
    "download and install packages",
    "complete the file tree",
    "pack the file system",
    "compute the content address",
];

/// Builds an image and registers it in `store`, or registers the one that the same packages gave before. Blocks for the
/// whole time, half a minute to a minute for a new image; one build at a time per store.
///
/// # Errors
/// [`ImageError`] names the input or the program that failed; the store is then as it was.
pub fn build(
    store: &Store,
    request: &BuildRequest,
    progress: &mut dyn FnMut(Progress),
) -> Result<BuiltImage, ImageError> {
    request.check()?;
    let mut at = |step: usize, detail: Option<&str>| {
        progress(Progress { step, steps: STEPS.len(), title: STEPS[step - 1], detail: detail.map(str::to_owned) });
    };
    let _claim = store.claim(name::canonical(&request.name)?)?;
    let (stage, lock) = store.stage()?;
    let result = build_in(&stage, store, request, &mut at);
    let cleaned = fs::remove_dir_all(&stage).map_err(ImageError::io("remove", &stage));
    drop(lock);
    let built = result?;
    cleaned?;
    Ok(built)
}

/// Reports a step by its number, with a message.
type Report<'a> = dyn FnMut(usize, Option<&str>) + 'a;

fn build_in(stage: &Path, store: &Store, request: &BuildRequest, at: &mut Report) -> Result<BuiltImage, ImageError> {
    at(1, None);
    let mut mirrors = Mirrors::of_host()?;
    if let Some(mirror) = &request.mirror {
        mirrors = mirrors.with_main(mirror);
    }
    let plan = Plan::new(request, &mirrors)?;
    let name = name::canonical(&request.name)?.to_owned();
    if !request.force
        && let Some(image) = store.reuse(&name, &plan.key, true, || Ok(()))?
    {
        return Ok(BuiltImage { name, image, cached: true });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NeedsRoot);
    }
    at(2, None);
    let started = SystemTime::now();
    let root = stage.join("root");
    install(&root, stage, &plan, request, &mut |line| at(2, Some(line)))?;
    at(3, None);
    let packages = installed_packages(&root)?;
    let time = tree::finish(&root, &plan.sources_in_image, request.purpose.files(), started)?;
    at(4, None);
    let out = stage.join("image");
    fs::create_dir(&out).map_err(ImageError::io("create", &out))?;
    let rootfs = out.join(ROOTFS);
    ext4::pack(&root, &rootfs, request.size_mib, time)?;
    at(5, None);
    let image = describe(&rootfs, request, packages, &plan)?;
    image.write(&out)?;
    let image = store.commit(&out, &image, &name, Some(&plan.key), true)?;
    Ok(BuiltImage { name, image, cached: false })
}

/// Everything that decides what is in the image.
struct Plan {
    sources: String,
    sources_in_image: String,
    packages: Vec<String>,
    /// The administrator's certificates on this host: file name and content.
    certificates: BTreeMap<String, Vec<u8>>,
    resolved: Resolved,
    /// Name of all this in the build cache.
    key: String,
}

impl Plan {
    fn new(request: &BuildRequest, mirrors: &Mirrors) -> Result<Self, ImageError> {
        let sources = mirrors.sources(&request.suite);
        let mut packages: Vec<String> = request.purpose.packages().into_iter().map(str::to_owned).collect();
        packages.extend(request.extra_packages.iter().cloned());
        packages.sort();
        packages.dedup();
        let certificates = if request.extra_ca { host_certificates()? } else { BTreeMap::new() };
        let resolved = packages::resolve(&request.cache_dir, &request.suite, &sources, &packages)?;
        let sources_in_image = mirrors.sources_in_image(&request.suite);
        let key = key(request, &sources_in_image, &certificates, &resolved);
        Ok(Self { sources, sources_in_image, packages, certificates, resolved, key })
    }
}

/// A hash over everything that decides what is in the image. Each part is preceded by its length.
fn key(request: &BuildRequest, sources: &str, certificates: &BTreeMap<String, Vec<u8>>, resolved: &Resolved) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&recipe::VERSION.to_le_bytes());
    part(&request.size_mib.to_le_bytes());
    part(&resolved.released.to_le_bytes());
    part(sources.as_bytes());
    part(&(certificates.len() as u64).to_le_bytes());
    for (name, content) in certificates {
        part(name.as_bytes());
        part(content);
    }
    for (name, version) in &resolved.packages {
        part(name.as_bytes());
        part(version.as_bytes());
    }
    for hook in request.purpose.hooks() {
        part(hook.as_bytes());
    }
    for (path, text) in request.purpose.files() {
        part(path.as_bytes());
        part(text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn host_certificates() -> Result<BTreeMap<String, Vec<u8>>, ImageError> {
    let dir = Path::new(recipe::OWN_CERTIFICATES);
    let mut found = BTreeMap::new();
    if !dir.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(dir).map_err(ImageError::io("list", dir))? {
        let path = entry.map_err(ImageError::io("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "crt")
            && let Some(name) = path.file_name().and_then(|name| name.to_str())
        {
            found.insert(name.to_owned(), read_bounded(&path, MAX_CONFIG_BYTES)?);
        }
    }
    Ok(found)
}

/// Lets mmdebstrap fill `root`, in a mount namespace of its own: what it mounts there ends with it, however it ends.
fn install(
    root: &Path,
    stage: &Path,
    plan: &Plan,
    request: &BuildRequest,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), ImageError> {
    let sources = stage.join("debian.sources");
    fs::write(&sources, &plan.sources).map_err(ImageError::io("write", &sources))?;
    let certificates = stage.join("certificates");
    fs::create_dir(&certificates).map_err(ImageError::io("create", &certificates))?;
    for (name, content) in &plan.certificates {
        let path = certificates.join(name);
        fs::write(&path, content).map_err(ImageError::io("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(ImageError::io("write", &path))?;
    }
    let mut command = tool::command("unshare");
    command.args(["--mount", "--", "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]);
    command.env("SOURCE_DATE_EPOCH", plan.resolved.released.to_string());
    command.env("BELLJAR_CERTIFICATES", &certificates);
    command.args(recipe::DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
    command.args(proxy_options()?.iter().map(|option| format!("--aptopt={option}")));
    command.arg(format!("--include={}", plan.packages.join(",")));
    if !plan.certificates.is_empty() {
        // Before the package `ca-certificates`, whose installation takes them up.
        let target = format!("\"$1\"{}", recipe::OWN_CERTIFICATES);
        command.arg(format!("--essential-hook=mkdir -p {target} && cp \"$BELLJAR_CERTIFICATES\"/*.crt {target}/"));
    }
    let (user, id) = (recipe::USER, recipe::USER_ID);
    command.arg(format!(
        "--customize-hook=chroot \"$1\" useradd --create-home --uid {id} --user-group --shell /bin/bash {user}"
    ));
    command.args(request.purpose.hooks().iter().map(|hook| format!("--customize-hook={hook}")));
    command.arg(&request.suite).arg(root).arg(&sources);
    tool::run(&mut command, on_line)?;
    Ok(())
}

/// How this host's apt reaches the network, as options for another apt.
fn proxy_options() -> Result<Vec<String>, ImageError> {
    let mut command = tool::command("apt-config");
    command.args(["dump", "--no-empty", "--format", "%f \"%v\";%n", "Acquire"]);
    let all = tool::run(&mut command, &mut |_| {})?;
    Ok(all.lines().filter(|line| line.to_ascii_lowercase().contains("::proxy")).map(str::to_owned).collect())
}

fn installed_packages(root: &Path) -> Result<BTreeMap<String, String>, ImageError> {
    let mut command = tool::command("dpkg-query");
    command.arg(format!("--admindir={}", root.join("var/lib/dpkg").display()));
    let list = tool::run(command.args(["--show", "--showformat=${Package} ${Version}\\n"]), &mut |_| {})?;
    let pair = |line: &str| line.split_once(' ').map(|(name, version)| (name.to_owned(), version.to_owned()));
    Ok(list.lines().filter_map(pair).collect())
}

fn describe(
    rootfs: &Path,
    request: &BuildRequest,
    packages: BTreeMap<String, String>,
    plan: &Plan,
) -> Result<Image, ImageError> {
    let config = recipe::runtime_config(request.purpose, !plan.certificates.is_empty());
    Ok(Image { suite: request.suite.clone(), packages, ..seal(rootfs, config)? })
}

/// Writes a root file system out, protects it and describes it.
pub(crate) fn seal(rootfs: &Path, config: RuntimeConfig) -> Result<Image, ImageError> {
    let file = fs::File::open(rootfs).map_err(ImageError::io("open", rootfs))?;
    file.sync_all().map_err(ImageError::io("write", rootfs))?;
    fs::set_permissions(rootfs, fs::Permissions::from_mode(0o444)).map_err(ImageError::io("protect", rootfs))?;
    let found = file.metadata().map_err(ImageError::io("read", rootfs))?;
    Ok(Image {
        digest: digest::of_file(rootfs)?,
        rootfs: rootfs.to_owned(),
        size_bytes: found.len(),
        disk_bytes: disk_bytes(&found),
        created_at: date::now(),
        suite: String::new(),
        origin: None,
        packages: BTreeMap::new(),
        config,
        history: Vec::new(),
        is_variant: false,
    })
}

#[cfg(test)]
#[path = "build_test.rs"]
mod tests;
