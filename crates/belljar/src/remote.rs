//! `SANDBOX:/path` and local paths, as `cp` takes them.

use std::path::PathBuf;

use crate::cli::value;

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Local(PathBuf),
    /// In a sandbox.
    Sandbox {
        /// Id or name.
        sandbox: String,
        /// Path there; absolute.
        path: String,
    },
}

impl Place {
    /// Parses an argument. What has a colon before any slash is in a sandbox; `./a:b` is a local file.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a path cannot be empty".to_owned());
        }
        let Some((sandbox, path)) = text.split_once(':').filter(|(before, _)| !before.contains('/')) else {
            return Ok(Self::Local(PathBuf::from(text)));
        };
        let sandbox = value::reference(sandbox)
            .map_err(|error| format!("{error}; a local file with a colon is written ./{text}"))?;
        if !path.starts_with('/') {
            return Err(format!("a path in a sandbox is absolute: write {sandbox}:/{path}"));
        }
        if path.split('/').any(|part| part == "..") {
            return Err("a path in a sandbox must not contain `..`; write where it leads".to_owned());
        }
        Ok(Self::Sandbox { sandbox, path: path.to_owned() })
    }
}

/// Last part of a path in a sandbox; `None` for the root.
pub fn file_name(path: &str) -> Option<&str> {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty() && *name != ".")
}

/// `name` inside the directory `path`.
pub fn join(path: &str, name: &str) -> String {
    format!("{}/{name}", path.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, &str)>) {
        let got = Place::parse(text).ok().map(|place| match place {
            Place::Local(path) => (String::new(), path.to_str().expect("text").to_owned()),
            Place::Sandbox { sandbox, path } => (sandbox, path),
        });
        assert_eq!(got.as_ref().map(|(a, b)| (a.as_str(), b.as_str())), expected, "{text:?}");
    }

    #[test]
    fn places_are_told_apart() {
        check("file", Some(("", "file")));
        check("./a:b", Some(("", "./a:b")));
        check("/a:b", Some(("", "/a:b")));
        check("box:/", Some(("box", "/")));
        check("box:/tmp/a:b", Some(("box", "/tmp/a:b")));
        check("box:/tmp/", Some(("box", "/tmp/")));
        check("box:tmp", None);
        check("box:", None);
        check("box:/a/../b", None);
        check("box:/a/..b", Some(("box", "/a/..b")));
        check("BOX:/a", None);
        check(":/a", None);
        check("", None);
    }

    #[test]
    fn names_and_joins() {
        assert_eq!((file_name("/a/b/"), file_name("/"), file_name("/a")), (Some("b"), None, Some("a")));
        assert_eq!((join("/a/", "b"), join("/", "b"), join("/a", "b")), ("/a/b".into(), "/b".into(), "/a/b".into()));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_routable(text in "\\PC{0,40}") {
            if let Ok(Place::Sandbox { sandbox, path }) = Place::parse(&text) {
                prop_assert!(sandbox.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
                prop_assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".."));
                prop_assert_eq!(format!("{sandbox}:{path}"), text);
            }
        }
    }
}
