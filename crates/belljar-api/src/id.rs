//! Ids and names of sandboxes: made and checked in one place.

use crate::limits::{ID_LEN, NAME_MAX_LEN};

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A fresh id: 21 characters of `[0-9a-z]` from the operating system's generator.
pub fn new_id() -> String {
    (0..ID_LEN).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

/// Whether `text` has the form of an id; a name never does.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| ALPHABET.contains(&b))
}

/// Why a name was refused; the text names the rule and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than a DNS label.
    #[error("name {0:?} has {len} characters; use 1 to 63", len = .0.chars().count())]
    Length(String),
    /// A character outside `[a-z0-9-]`, or a wrong first or last one.
    #[error(
        "name {0:?} is not allowed: use lowercase letters, digits and hyphens, start with a letter, do not end with a hyphen"
    )]
    Characters(String),
    /// It would be mistaken for an id.
    #[error("name {0:?} looks like a sandbox id (21 lowercase letters and digits); make it shorter or longer")]
    LooksLikeId(String),
}

/// Checks a sandbox name against the rules of the wire protocol.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.chars().count() > NAME_MAX_LEN {
        return Err(NameError::Length(name.chars().take(80).collect()));
    }
    let allowed = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let first = name.as_bytes()[0].is_ascii_lowercase();
    if !allowed || !first || name.ends_with('-') {
        return Err(NameError::Characters(name.to_owned()));
    }
    if is_id(name) {
        return Err(NameError::LooksLikeId(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ids_and_names_are_not() {
        for _ in 0..1000 {
            let id = new_id();
            assert!(is_id(&id), "{id}");
        }
        for good in ["a", "box-1", "a23456789012345678901-", "x".repeat(63).as_str()] {
            let good = good.trim_end_matches('-').to_owned() + "b";
            assert_eq!(check_name(&good[..good.len().min(63)]), Ok(()), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "ä", "a23456789012345678901", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
