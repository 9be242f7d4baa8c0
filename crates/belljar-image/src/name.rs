//! Image names: which are valid, what they stand for, and how they become file names. Pure.

use crate::{error::ImageError, limits::MAX_NAME_CHARS};

/// The image of a sandbox that names none.
pub const DEFAULT_IMAGE: &str = "belljar/debian";

/// The image that Dockerfiles are built in.
pub const BUILDER_IMAGE: &str = "belljar/builder";

/// The image whose machines boot systemd and have Docker.
pub const SYSTEMD_IMAGE: &str = "belljar/debian-systemd";

/// Names of the hosted service that its clients and examples use, and another one of ours, and what stands behind them.
const ALIASES: [(&str, &str); 5] = [
    ("belljar/debian-minimal", DEFAULT_IMAGE),
    ("tensorlake/ubuntu-minimal", DEFAULT_IMAGE),
    ("tensorlake/debian-minimal", DEFAULT_IMAGE),
    ("tensorlake/ubuntu-systemd", SYSTEMD_IMAGE),
    ("tensorlake/ubuntu-vnc", "belljar/desktop"),
];

/// The name an image is registered under: aliases followed, the tag `latest` dropped.
///
/// # Errors
/// [`ImageError::BadName`] when no image can have this name.
pub fn canonical(name: &str) -> Result<&str, ImageError> {
    validate(name).map_err(|reason| ImageError::BadName { name: shortened(name), reason })?;
    let name = name.strip_suffix(":latest").unwrap_or(name);
    Ok(ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, real)| real))
}

/// Whether a name is one of those that this product makes: what clients rely on everywhere.
#[must_use]
pub fn is_managed(name: &str) -> bool {
    /// What such names begin with.
    const OURS: &str = "belljar/";
    canonical(name).is_ok_and(|name| name.starts_with(OURS))
}

/// `[a-z0-9][a-z0-9._/-]*` with an optional `:tag` of `[A-Za-z0-9_][A-Za-z0-9._-]*`.
fn validate(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > MAX_NAME_CHARS {
        return Err("is longer than 128 characters");
    }
    let (path, tag) = name.split_once(':').map_or((name, None), |(path, tag)| (path, Some(tag)));
    if !path.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err("does not start with a lower-case letter or a digit");
    }
    if !path.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b)) {
        return Err("has a character other than lower-case letters, digits and `._/-`");
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("has an empty part between slashes");
    }
    match tag {
        None => Ok(()),
        Some(tag) if tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') => {
            let good = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            if good { Ok(()) } else { Err("has a tag with a character other than letters, digits and `._-`") }
        }
        Some(_) => Err("has a tag that does not start with a letter or a digit"),
    }
}

/// A name fit for a message, however long the input was.
fn shortened(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

/// File name of a valid name's record. Only `/` and `:` need an escape, and `%` occurs in no valid name.
pub(crate) fn to_file_name(name: &str) -> String {
    format!("{}.json", name.replace('/', "%2F").replace(':', "%3A"))
}

#[cfg(test)]
#[path = "name_test.rs"]
mod tests;
