//! Which mirror to build from: the one this host is configured with.
//!
//! A host behind a proxy or far from the default mirror has one in its own package sources, and what works for the host
//! works for its sandboxes. Parsing is pure; both of apt's formats are read.

use std::{fs, io, path::Path};

use crate::{error::ImageError, limits::MAX_CONFIG_BYTES, record::read_bounded};

/// Suites that images are built from.
pub const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// Suites that tell a Debian mirror from any other repository in the host's sources.
const DEBIAN_SUITES: [&str; 9] =
    ["oldstable", "stable", "testing", "unstable", "sid", "bullseye", "bookworm", "trixie", "forky"];

const DEFAULT_MAIN: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY: &str = "http://deb.debian.org/debian-security";

/// Keys of the Debian archive: part of every Debian, and of the image.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    /// The mirrors in this host's package sources, Debian's own where it has none.
    pub(crate) fn of_host() -> Result<Self, ImageError> {
        let mut entries = Vec::new();
        let mut read = |path: &Path| -> Result<(), ImageError> {
            let text = String::from_utf8_lossy(&read_bounded(path, MAX_CONFIG_BYTES)?).into_owned();
            if path.extension().is_some_and(|extension| extension == "sources") {
                entries.extend(deb822(&text));
            } else {
                entries.extend(text.lines().filter_map(one_line));
            }
            Ok(())
        };
        let list = Path::new("/etc/apt/sources.list");
        if list.exists() {
            read(list)?;
        }
        let parts = Path::new("/etc/apt/sources.list.d");
        let mut files = match fs::read_dir(parts) {
            Ok(files) => files
                .map(|file| Ok(file?.path()))
                .collect::<io::Result<Vec<_>>>()
                .map_err(ImageError::io("list", parts))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(ImageError::io("list", parts)(error)),
        };
        files.sort();
        for file in files {
            // apt ignores every other name too.
            if file.extension().is_some_and(|extension| extension == "sources" || extension == "list") {
                read(&file)?;
            }
        }
        Ok(Self::choose(&entries))
    }

    /// The same with another mirror for all but security updates.
    pub(crate) fn with_main(self, main: &str) -> Self {
        Self { main: main.trim_end_matches('/').to_owned(), ..self }
    }

    fn choose(entries: &[Entry]) -> Self {
        let first = |suffix: &str, default: &str| {
            let wanted =
                |suite: &String| suite.strip_suffix(suffix).is_some_and(|suite| DEBIAN_SUITES.contains(&suite));
            let found = entries.iter().find(|entry| entry.suites.iter().any(wanted));
            found.map_or(default, |entry| entry.uri.trim_end_matches('/')).to_owned()
        };
        Self { main: first("", DEFAULT_MAIN), security: first("-security", DEFAULT_SECURITY) }
    }

    /// The sources to build `suite` from, in deb822 format.
    pub(crate) fn sources(&self, suite: &str) -> String {
        let stanza = |uri: &str, suites: &str| {
            format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n")
        };
        let main = stanza(&self.main, &format!("{suite} {suite}-updates"));
        let security = stanza(&self.security, &format!("{suite}-security"));
        format!("{main}\n{security}")
    }

    /// The sources of the image itself: a mirror that carries a password stays the host's own.
    pub(crate) fn sources_in_image(&self, suite: &str) -> String {
        let public = |uri: &str, default: &str| if uri.contains('@') { default.to_owned() } else { uri.to_owned() };
        Self { main: public(&self.main, DEFAULT_MAIN), security: public(&self.security, DEFAULT_SECURITY) }
            .sources(suite)
    }
}

/// One repository of the host.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suites: Vec<String>,
}

impl Entry {
    /// Only repositories that a sandbox can reach too: no files, no discs, no lists of mirrors.
    fn new(uri: &str, suites: &str) -> Option<Self> {
        let reachable = uri.starts_with("http://") || uri.starts_with("https://");
        let suites: Vec<String> = suites.split_whitespace().map(str::to_owned).collect();
        (reachable && !suites.is_empty()).then(|| Self { uri: uri.to_owned(), suites })
    }
}

/// `deb [options] uri suite component...`
fn one_line(line: &str) -> Option<Entry> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    Entry::new(words.next()?, words.next()?)
}

/// Paragraphs of `Field: value`, continued by lines that begin with a blank.
fn deb822(text: &str) -> Vec<Entry> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).filter_map(paragraph).collect()
}

fn paragraph(lines: &[&str]) -> Option<Entry> {
    let field = |wanted: &str| {
        let mut lines = lines.iter().skip_while(|line| {
            line.split_once(':').is_none_or(|(name, _)| !name.trim_end().eq_ignore_ascii_case(wanted))
        });
        let mut value = lines.next()?.split_once(':')?.1.trim().to_owned();
        for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
            value.push(' ');
            value.push_str(line.trim());
        }
        Some(value)
    };
    if field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) {
        return None;
    }
    if !field("Types")?.split_whitespace().any(|kind| kind == "deb") {
        return None;
    }
    Entry::new(field("URIs")?.split_whitespace().next()?, &field("Suites")?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `main security` as chosen from one text of either format.
    fn check(text: &str, expect: &str) {
        let entries =
            if text.contains("Types") { deb822(text) } else { text.lines().filter_map(one_line).collect::<Vec<_>>() };
        let mirrors = Mirrors::choose(&entries);
        assert_eq!(format!("{} {}", mirrors.main, mirrors.security), expect, "{text}");
    }

    #[test]
    fn one_line_sources() {
        check("", "http://deb.debian.org/debian http://deb.debian.org/debian-security");
        check(
            "deb http://m.example/debian/ trixie main # near\ndeb [signed-by=/k arch=amd64] https://s.example/sec bookworm-security main",
            "http://m.example/debian https://s.example/sec",
        );
        check(
            "# deb http://a/debian bookworm main\ndeb-src http://b/debian bookworm main\ndeb cdrom:[D] bookworm main\ndeb http://apt.llvm.org/x llvm main",
            "http://deb.debian.org/debian http://deb.debian.org/debian-security",
        );
    }

    #[test]
    fn deb822_sources() {
        check(
            "Types: deb deb-src\n# a comment\nURIs: http://m.example/debian\n http://n.example/debian\nSuites: bookworm\n bookworm-updates\n\nTypes: deb\nURIs: http://m.example/sec\nSuites: bookworm-security\n",
            "http://m.example/debian http://m.example/sec",
        );
        check(
            "Enabled: no\nTypes: deb\nURIs: http://off/debian\nSuites: bookworm\n\nTypes: deb\nURIs: http://backports/debian\nSuites: bookworm-backports",
            "http://deb.debian.org/debian http://deb.debian.org/debian-security",
        );
    }

    #[test]
    fn a_password_stays_on_the_host() {
        let mirrors =
            Mirrors::choose(&deb822("Types: deb\nURIs: https://me:secret@m.example/debian\nSuites: bookworm"));
        assert!(mirrors.sources("bookworm").contains("secret"));
        assert!(!mirrors.sources_in_image("bookworm").contains("secret"));
        assert!(mirrors.sources_in_image("trixie").contains("Suites: trixie trixie-updates\n"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(Types|URIs|Suites|Enabled|deb|#|:|\\[|\\]| |\n|http://x|bookworm){0,40}") {
            let _ = (deb822(&text), text.lines().filter_map(one_line).count());
        }
    }
}
