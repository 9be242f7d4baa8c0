//! Which packages, in which versions, a build would install: apt's own solver over a private package list.
//!
//! Nothing of the host's package state is read or changed. The list is kept in the cache directory, so that asking
//! again costs a second and the answer is the same whatever the host has installed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{error::ImageError, limits::MAX_CONFIG_BYTES, record::read_bounded, store::Lock, tool};

/// What a build would install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Packages and their versions.
    pub(crate) packages: BTreeMap<String, String>,
    /// When the suite was published, seconds since 1970. Programs that put a date into the image get this one.
    pub(crate) released: u64,
}

/// Asks the mirrors in `sources` (deb822) what `packages` mean in `suite` today.
pub(crate) fn resolve(cache: &Path, suite: &str, sources: &str, packages: &[String]) -> Result<Resolved, ImageError> {
    let apt = PrivateApt::new(cache, suite, sources)?;
    tool::run(apt.command().arg("update"), &mut |_| {})?;
    // What mmdebstrap's `minbase` installs, then our own.
    let base = ["?essential", "?priority(required)", "apt"];
    let simulated = tool::run(apt.command().args(["--simulate", "install"]).args(base).args(packages), &mut |_| {})?;
    let found: BTreeMap<_, _> = simulated.lines().filter_map(installed).collect();
    if found.is_empty() {
        return Err(ImageError::BadRequest(format!("apt found no packages for the suite {suite}")));
    }
    Ok(Resolved { packages: found, released: apt.released(suite)? })
}

/// `Inst <name> (<version> ...`
fn installed(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.trim_start().strip_prefix('(')?.split([' ', ')']).next()?;
    Some((name.to_owned(), version.to_owned()))
}

/// apt with all of its files in one directory of ours.
struct PrivateApt {
    dir: PathBuf,
    /// apt fails at once when another apt works on the same lists; this lets the second one wait.
    _lock: Lock,
}

impl PrivateApt {
    fn new(cache: &Path, suite: &str, sources: &str) -> Result<Self, ImageError> {
        // One directory for each set of mirrors: apt would drop the lists of the others.
        let hash = blake3::hash(sources.as_bytes()).to_hex();
        let dir = cache.join("apt").join(format!("{suite}-{}", &hash[..16]));
        for part in ["lists/partial", "archives/partial", "parts"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).map_err(ImageError::io("create", part))?;
        }
        let lock = Lock::acquire(&dir.join("belljar.lock"))?;
        for (name, text) in [("parts/debian.sources", sources), ("status", "")] {
            let file = dir.join(name);
            fs::write(&file, text).map_err(ImageError::io("write", file))?;
        }
        Ok(Self { dir, _lock: lock })
    }

    fn command(&self) -> Command {
        let mut command = tool::command("apt-get");
        let path = |name: &str| self.dir.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::SourceList", "/dev/null".to_owned()),
            ("Dir::Etc::SourceParts", path("parts")),
            ("Dir::Etc::Preferences", "/dev/null".to_owned()),
            ("Dir::Etc::PreferencesParts", "/dev/null".to_owned()),
            ("Dir::State", path("")),
            ("Dir::State::Lists", path("lists")),
            ("Dir::State::Status", path("status")),
            ("Dir::Cache", path("")),
            ("Dir::Cache::Archives", path("archives")),
            // The host's settings for proxies hold; these of its settings do not.
            ("APT::Default-Release", String::new()),
            ("APT::Install-Recommends", "false".to_owned()),
            ("APT::Install-Suggests", "false".to_owned()),
            ("APT::Get::AllowUnauthenticated", "false".to_owned()),
            // The directory may be one that only root can enter.
            ("APT::Sandbox::User", "root".to_owned()),
            // A list that cannot be fetched is an error, and not last week's answer.
            ("APT::Update::Error-Mode", "any".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }

    /// The `Date` of the suite's own release file; its updates, published several times a day, do not count.
    fn released(&self, suite: &str) -> Result<u64, ImageError> {
        let lists = self.dir.join("lists");
        let wanted = format!("_dists_{suite}_");
        for entry in fs::read_dir(&lists).map_err(ImageError::io("list", &lists))? {
            let path = entry.map_err(ImageError::io("list", &lists))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.contains(&wanted) && name.ends_with("Release") {
                let text = String::from_utf8_lossy(&read_bounded(&path, MAX_CONFIG_BYTES)?).into_owned();
                let date = text.lines().find_map(|line| line.strip_prefix("Date: "));
                return date.and_then(parse_date).ok_or_else(|| ImageError::BadRecord {
                    path: path.clone(),
                    reason: "it has no readable date".into(),
                });
            }
        }
        Err(ImageError::BadRequest(format!("the mirror has no release file for the suite {suite}")))
    }
}

/// Seconds since 1970 of `Sat, 06 Sep 2025 09:51:06 UTC`.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split_whitespace();
    let day: u64 = words.next()?.parse().ok()?;
    let month_name = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month_name)?;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let days = crate::date::days_from_civil(year, u64::try_from(month).ok()? + 1, day)?;
    (words.next()? == "UTC").then_some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simulated_lines() {
        let check = |line: &str, expect: Option<(&str, &str)>| {
            let expect = expect.map(|(name, version)| (name.to_owned(), version.to_owned()));
            assert_eq!(installed(line), expect, "{line}");
        };
        check("Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []", Some(("libc6", "2.36-9+deb12u14")));
        check("Inst x (1)", Some(("x", "1")));
        check("Conf libc6 (2.36-9 Debian:12 [amd64])", None);
        check("Inst libc6", None);
    }

    #[test]
    fn release_dates() {
        assert_eq!(parse_date("Sat, 06 Sep 2025 09:51:06 UTC"), Some(1_757_152_266));
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        for bad in ["", "Sat, 06 Sep 2025", "Sat, 06 Foo 2025 09:51:06 UTC", "Sat, 99 Sep 2025 09:51:06 UTC"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
