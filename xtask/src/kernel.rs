//! Builds kernels: Debian's source, our configuration (`guest/kernel/belljar.config`), an ELF `vmlinux`. One for guests, and
//! one with a few settings more for the machine that [`crate::nested`] emulates.
//!
//! Takes six to eight minutes on two cores, once: the result lies in the cache under a hash of both. A kernel of our
//! configuration is used as long as it is there; `--update` asks for Debian's newest source. Needs no root, and no
//! package beside the compilers that `setup` installs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{artifacts, paths, run, setup};

/// Debian's package of the source.
const SOURCE: &str = "linux-source-6.12";
/// A kernel that we build.
struct Kind {
    name: &'static str,
    /// Directory in the cache.
    shelf: &'static str,
    /// Files of settings, in the repository; where two name a symbol, the later one counts.
    configs: &'static [&'static str],
}

const GUEST: Kind = Kind { name: "kernel", shelf: "kernel", configs: &["guest/kernel/belljar.config"] };
const OUTER: Kind = Kind {
    name: "outer kernel",
    shelf: "outer-kernel",
    configs: &["guest/kernel/belljar.config", "guest/kernel/outer.config"],
};
/// Kernels that stay in the cache: the current one and two to go back to.
const KEPT: usize = 3;

/// `kernel.json`, beside the kernel.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Version of the Debian package it was built from.
    source_version: String,
    /// Hash of the configuration.
    config: String,
}

/// Builds the guests', or finds the one that was built before. Gives the path of `vmlinux`.
pub(crate) fn run(update: bool) -> Result<PathBuf> {
    let [vmlinux] = built([&GUEST], update)?;
    artifacts::make_current("kernel", &vmlinux)?;
    Ok(vmlinux)
}

/// The same for the machine around VMs. Where the guests' is missing too it is built in passing: from one tree, the second takes
/// a part of the time.
pub(crate) fn outer() -> Result<PathBuf> {
    let [guest, outer] = built([&GUEST, &OUTER], false)?;
    artifacts::make_current("kernel", &guest)?;
    Ok(outer)
}

fn built<const N: usize>(kinds: [&Kind; N], update: bool) -> Result<[PathBuf; N]> {
    let cache = paths::cache()?;
    let _lock = run::lock(&cache.join("kernel.lock"))?;
    let mut source = Source { work: cache.join("kernel-work"), tree: None };
    let mut found = [const { PathBuf::new() }; N];
    for (kind, found) in kinds.into_iter().zip(&mut found) {
        let (shelf, config) = (cache.join(kind.shelf), kind.config()?);
        let config_key = artifacts::key(&[config.as_bytes()]);
        *found = match built_before(&shelf, &config_key)? {
            Some(before) if !update => before,
            _ => newest(kind, &shelf, &config, config_key, &mut source)?,
        };
    }
    artifacts::remove_dir(&source.work)?;
    Ok(found)
}

/// Debian's newest source, unpacked when the first kernel is built from it.
struct Source {
    work: PathBuf,
    tree: Option<PathBuf>,
}

impl Source {
    fn tree(&mut self, version: &str) -> Result<PathBuf> {
        if let Some(tree) = &self.tree {
            return Ok(tree.clone());
        }
        artifacts::remove_dir(&self.work)?;
        fs::create_dir_all(&self.work).with_context(|| format!("cannot create {}", self.work.display()))?;
        let tree = unpack(&self.work, version)?;
        self.tree = Some(tree.clone());
        Ok(tree)
    }
}

impl Kind {
    /// All settings, each once.
    fn config(&self) -> Result<String> {
        let read = |name: &&str| {
            fs::read_to_string(paths::repository().join(name)).with_context(|| format!("cannot read {name}"))
        };
        let texts = self.configs.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok(if let [one] = &texts[..] { one.clone() } else { merged(&texts) })
    }
}

/// The last setting of each symbol.
fn merged(texts: &[String]) -> String {
    let settings = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.split_once('='));
    let settings: BTreeMap<&str, &str> = settings.filter(|(symbol, _)| symbol.starts_with("CONFIG_")).collect();
    settings.into_iter().map(|(symbol, value)| format!("{symbol}={value}\n")).collect()
}

/// The kernel of Debian's newest source.
fn newest(kind: &Kind, shelf: &Path, config: &str, config_key: String, source: &mut Source) -> Result<PathBuf> {
    let version = source_version()?;
    let key = artifacts::key(&[version.as_bytes(), config.as_bytes()]);
    let vmlinux = shelf.join(&key).join("vmlinux");
    if vmlinux.is_file() {
        return Ok(vmlinux);
    }
    let tree = source.tree(&version)?;
    let (made, config_path) = (source.work.join("made"), source.work.join("belljar.config"));
    artifacts::remove_dir(&made)?;
    fs::create_dir(&made).with_context(|| format!("cannot create {}", made.display()))?;
    fs::write(&config_path, config).context("cannot write a kernel's settings")?;
    build(kind, &tree, &config_path, config, &made.join("vmlinux"))?;
    let record = serde_json::to_string_pretty(&Record { source_version: version, config: config_key })?;
    fs::write(made.join("kernel.json"), record).context("cannot write kernel.json")?;
    artifacts::publish(&made, shelf, &key)?;
    artifacts::prune(shelf, KEPT)?;
    Ok(vmlinux)
}

/// The newest kernel of this configuration in the cache.
fn built_before(shelf: &Path, config_key: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    fs::create_dir_all(shelf).with_context(|| format!("cannot create {}", shelf.display()))?;
    for entry in fs::read_dir(shelf).with_context(|| format!("cannot list {}", shelf.display()))? {
        let dir = entry?.path();
        let record = fs::read(dir.join("kernel.json")).ok();
        let record = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        if record.is_some_and(|record| record.config == config_key) && dir.join("vmlinux").is_file() {
            found.push((fs::metadata(&dir)?.modified()?, dir));
        }
    }
    Ok(found.into_iter().max().map(|(_, dir)| dir.join("vmlinux")))
}

/// The version that apt would install.
fn source_version() -> Result<String> {
    let policy = run::output(Command::new("apt-cache").args(["policy", SOURCE]).env("LC_ALL", "C"))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    match candidate {
        Some(version) if version != "(none)" => Ok(version.to_owned()),
        _ => bail!("apt does not know {SOURCE}; run `cargo xtask setup`, or `apt-get update` as root"),
    }
}

/// Downloads the source package, or takes the installed one of the same version, and unpacks it.
fn unpack(work: &Path, version: &str) -> Result<PathBuf> {
    let format = ["--showformat=${Version}", "--show", SOURCE];
    let installed = run::output(Command::new("dpkg-query").args(format)).is_ok_and(|found| found == version);
    let mut root = PathBuf::from("/");
    if !installed {
        root = setup::open_package("kernel source", &format!("{SOURCE}={version}"), work)?;
    }
    let archive = root.join(format!("usr/src/{SOURCE}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xz", "--file"]).arg(&archive).arg("--directory").arg(work);
    run::step("kernel: unpack the source", &mut tar)?;
    Ok(work.join(SOURCE))
}

fn build(kind: &Kind, tree: &Path, config_path: &Path, config: &str, vmlinux: &Path) -> Result<()> {
    let step = |what: &str| format!("{}: {what}", kind.name);
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.current_dir(tree).args(["ARCH=x86_64", target]).env("KCONFIG_ALLCONFIG", config_path);
        // The same source and configuration give the same kernel, whoever builds it where and when.
        make.env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
            .env("KBUILD_BUILD_USER", "belljar")
            .env("KBUILD_BUILD_HOST", "belljar");
        make
    };
    run::step(&step("configure"), &mut make("allnoconfig"))?;
    let made = fs::read_to_string(tree.join(".config")).context("cannot read the kernel's .config")?;
    let lost = lost_settings(config, &made);
    if !lost.is_empty() {
        bail!(
            "the kernel's configuration lost settings of {}:\n  {}\nremove them there or add what they depend on",
            kind.configs.join(" and "),
            lost.join("\n  ")
        );
    }
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    run::step(&step("compile (6-8 min on two cores)"), make("vmlinux").arg(format!("-j{jobs}")))?;
    // The symbols are of no use to a VM and would be read at every start.
    let mut strip = Command::new("strip");
    run::step(&step("strip"), strip.arg("--strip-all").arg("-o").arg(vmlinux).arg(tree.join("vmlinux")))
}

/// Settings of `wanted` that `made` does not have. `=n` is met by a symbol that is not set or does not exist.
fn lost_settings(wanted: &str, made: &str) -> Vec<String> {
    let made: Vec<&str> = made.lines().collect();
    let mut lost = Vec::new();
    for setting in wanted.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_")) {
        let met = match setting.strip_suffix("=n") {
            Some(symbol) => {
                !made.iter().any(|line| line.strip_prefix(symbol).is_some_and(|rest| rest.starts_with('=')))
            }
            None => made.contains(&setting),
        };
        if !met {
            lost.push(setting.to_owned());
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_settings_are_named() {
        let check = |wanted: &str, made: &str, expect: &[&str]| assert_eq!(lost_settings(wanted, made), expect);
        check("# text\nCONFIG_A=y\n\nCONFIG_L=\"x\"\n", "CONFIG_A=y\nCONFIG_L=\"x\"\n", &[]);
        check("CONFIG_A=y\nCONFIG_B=64", "# CONFIG_A is not set\nCONFIG_B=8", &["CONFIG_A=y", "CONFIG_B=64"]);
        check("CONFIG_A=n\nCONFIG_B=n", "# CONFIG_A is not set\nCONFIG_BB=y", &[]);
        check("CONFIG_A=n", "CONFIG_A=y", &["CONFIG_A=n"]);
    }

    #[test]
    fn what_is_set_last_counts() {
        let texts = ["# text\nCONFIG_B=y\nCONFIG_A=n\n".to_owned(), "CONFIG_A=y\nCONFIG_C=\"a=b\"\n".to_owned()];
        assert_eq!(merged(&texts), "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"a=b\"\n");
    }

    #[test]
    fn our_configuration_names_every_symbol_once() {
        for kind in [&GUEST, &OUTER] {
            symbols_are_named_once(&kind.config().unwrap());
        }
    }

    fn symbols_are_named_once(config: &str) {
        let mut symbols: Vec<&str> = config
            .lines()
            .filter(|line| line.starts_with("CONFIG_"))
            .filter_map(|line| line.split('=').next())
            .collect();
        let all = symbols.len();
        symbols.sort_unstable();
        symbols.dedup();
        assert_eq!(symbols.len(), all);
    }
}
