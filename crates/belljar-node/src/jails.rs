//! Whether VM processes are jailed: the setting, and what this machine can do.

use std::{ffi::OsString, fmt, io, os::unix::fs::DirBuilderExt, path::Path, str::FromStr, sync::Arc};

use belljar_vmm::jail::{self, Controllers, Jail};
use serde::Deserialize;

/// What the operator wants; as text `auto`, `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailSetting {
    /// As root, jailed, or the node does not start; as another user, who can make no jail, not.
    #[default]
    Auto,
    /// Jailed, or the node does not start.
    On,
    /// Not.
    Off,
}

impl fmt::Display for JailSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for JailSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::On, Self::Off];
        all.into_iter().find(|it| it.to_string() == text).ok_or_else(|| "write auto, on or off".to_owned())
    }
}

/// The setting, and what makes jails.
#[derive(Debug, Clone, Default)]
pub struct JailOptions {
    /// Whether.
    pub kind: JailSetting,
    /// A program that calls [`jail::enter`], and its arguments.
    pub launcher: Vec<OsString>,
}

/// VM processes cannot be jailed as they should be.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A jail was tried, and could not be made.
    #[error(
        "VM processes cannot be jailed here: {0}; give what is missing, or take --jail off, which leaves a guest that breaks out of its VM with all rights of this user"
    )]
    Impossible(String),
    /// Not root.
    #[error("only root can jail VM processes: run as root, or without --jail on")]
    NotRoot,
}

/// The jail of the setting, tried out in a directory of its own below `dir`; `None`: there is none to be.
pub fn open(options: &JailOptions, dir: &Path) -> Result<Option<Jail>, JailError> {
    let is_root = nix::unistd::geteuid().is_root();
    match options.kind {
        JailSetting::Off => return Ok(None),
        JailSetting::Auto if !is_root => return Ok(None),
        JailSetting::On if !is_root => return Err(JailError::NotRoot),
        JailSetting::Auto | JailSetting::On => {}
    }
    let jail = Jail { launcher: options.launcher.clone().into(), controllers: Arc::new(Controllers::find()) };
    let at = dir.join(format!("jail-{}", std::process::id()));
    let tried = try_out(&jail, &at);
    if let Err(error) = std::fs::remove_dir_all(&at)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, dir = %at.display(), "what was needed to try out a jail stays behind");
    }
    tried.map(|()| Some(jail)).map_err(JailError::Impossible)
}

/// On a thread of its own: the caller may be in a runtime, or in none.
fn try_out(jail: &Jail, at: &Path) -> Result<(), String> {
    let attempt = || {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(at);
        made.map_err(|error| format!("{}: {error}", at.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(jail::try_out(jail, at)).map_err(|error| crate::chain(&error))
    };
    std::thread::scope(|scope| scope.spawn(attempt).join()).unwrap_or_else(|_| Err("the attempt panicked".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named() {
        for text in ["auto", "on", "off"] {
            assert_eq!(text.parse::<JailSetting>().expect(text).to_string(), text);
        }
        assert_eq!("yes".parse::<JailSetting>().expect_err("none"), "write auto, on or off");
    }

    #[test]
    fn what_cannot_be_is_told_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = |kind| JailOptions { kind, launcher: vec!["/no/such/launcher".into()] };
        assert!(open(&options(JailSetting::Off), dir.path()).expect("no jail").is_none());
        let wanted = open(&options(JailSetting::On), dir.path()).map(drop).expect_err("no jail").to_string();
        if nix::unistd::geteuid().is_root() {
            assert!(wanted.contains("No such file") && wanted.contains("--jail off"), "{wanted}");
        } else {
            assert!(wanted.contains("only root"), "{wanted}");
            assert!(open(&options(JailSetting::Auto), dir.path()).expect("no jail").is_none());
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
    }
}
