//! What PAX and GNU headers say about the member of a tar archive that follows them. Pure.

use crate::limits::{MAX_ATTRIBUTE_BYTES, MAX_SEGMENTS};

/// A stretch of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// Everything that was said.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    /// Of GNU headers; PAX wins.
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) modified: Option<(i64, u32)>,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Name of a sparse file, whose `path` is made up.
    sparse_name: Option<Vec<u8>>,
    /// Its size with its holes.
    pub(super) sparse_size: Option<u64>,
    sparse_major: u64,
    /// Starts and lengths, in turn.
    sparse_map: Option<Vec<u64>>,
}

impl Extensions {
    pub(super) fn is_empty(&self) -> bool {
        self.long_name.is_none() && self.long_link.is_none() && self.path.is_none() && self.link.is_none()
    }

    pub(super) fn name(&self) -> Option<Vec<u8>> {
        self.sparse_name.clone().or_else(|| self.path.clone()).or_else(|| self.long_name.clone())
    }

    pub(super) fn link(&self) -> Option<Vec<u8>> {
        self.link.clone().or_else(|| self.long_link.clone())
    }

    /// Takes in the records of one header: `LENGTH KEY=VALUE\n`, where the length counts all of it.
    pub(super) fn add(&mut self, mut records: &[u8]) -> Result<(), String> {
        let bad = || "a PAX header is malformed".to_owned();
        while !records.is_empty() {
            let space = records.iter().take(20).position(|&byte| byte == b' ').ok_or_else(bad)?;
            let length = number(&records[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
            let record = records.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
            self.take(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        let bytes: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > MAX_ATTRIBUTE_BYTES {
            return Err(format!("a member has more than {MAX_ATTRIBUTE_BYTES} bytes of extended attributes"));
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let text = || {
            if value.contains(&0) { Err("a name has a zero byte".to_owned()) } else { Ok(Some(value.to_vec())) }
        };
        let count = || {
            let bad = || format!("{} is no number", String::from_utf8_lossy(key));
            number(value).map(Some).ok_or_else(bad)
        };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err("an extended attribute has a bad name".to_owned());
            }
            self.attributes.retain(|(known, _)| known != name);
            self.attributes.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        match key {
            // An empty value takes back what an earlier header said.
            b"path" => self.path = text()?.filter(|name| !name.is_empty()),
            b"linkpath" => self.link = text()?.filter(|name| !name.is_empty()),
            b"size" => self.size = count()?,
            b"uid" => self.uid = count()?,
            b"gid" => self.gid = count()?,
            b"mtime" => self.modified = Some(time(value).ok_or("a time is no number")?),
            b"GNU.sparse.name" => self.sparse_name = text()?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_size = count()?,
            b"GNU.sparse.major" => self.sparse_major = count()?.unwrap_or_default(),
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> =
                    value.split(|&byte| byte == b',').take(2 * MAX_SEGMENTS + 1).map(number).collect();
                self.sparse_map = Some(numbers.ok_or("a sparse file has a bad map")?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                self.sparse_map.get_or_insert_default().extend(count()?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the map of a sparse file stands before its data.
    pub(super) fn map_in_data(&self) -> bool {
        self.sparse_major == 1
    }

    /// The map of a sparse file that stands in the headers, and its size.
    pub(super) fn map(&self) -> Result<Option<(Vec<Segment>, u64)>, String> {
        let (Some(map), Some(size)) = (&self.sparse_map, self.sparse_size) else { return Ok(None) };
        if !map.len().is_multiple_of(2) || map.len() / 2 > MAX_SEGMENTS {
            return Err("a sparse file has a bad map".to_owned());
        }
        let segment = |pair: &[u64]| Segment { start: pair[0], length: pair[1] };
        Ok(Some((map.chunks_exact(2).map(segment).collect(), size)))
    }
}

/// Whether segments are in order, lie within a file of this size and have all of its data.
pub(super) fn check(segments: &[Segment], size: u64, data: u64) -> Result<(), String> {
    let mut at = 0;
    let mut sum = 0;
    for segment in segments {
        let end = segment.start.checked_add(segment.length).filter(|&end| end <= size);
        at = end.filter(|_| segment.start >= at).ok_or("has pieces out of order or beyond its end")?;
        sum += segment.length;
    }
    if sum == data { Ok(()) } else { Err(format!("has {data} bytes of data and a map for {sum}")) }
}

fn number(text: &[u8]) -> Option<u64> {
    // `parse` would take a plus sign, too.
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-12.5` and the like, as seconds rounded down and nanoseconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    const DIGITS: usize = 9;
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, part) = text.split_once('.').unwrap_or((text, ""));
    let magnitude = i64::try_from(number(seconds.trim_start_matches('-').as_bytes())?).ok()?;
    let digits: String = part.chars().chain(std::iter::repeat('0')).take(DIGITS).collect();
    let nanos = u32::try_from(number(digits.as_bytes())?).ok()?;
    Some(match (seconds.starts_with('-'), nanos) {
        (false, _) => (magnitude, nanos),
        (true, 0) => (-magnitude, 0),
        (true, _) => (-magnitude - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let check = |text: &str, expect| assert_eq!(time(text.as_bytes()), expect, "{text}");
        check("12", Some((12, 0)));
        check("12.5", Some((12, 500_000_000)));
        check("1.0000000019", Some((1, 1)));
        check("-1", Some((-1, 0)));
        check("-1.25", Some((-2, 750_000_000)));
        check("", None);
        check("1e5", None);
    }

    #[test]
    fn records() {
        let check = |records: &[u8], expect: Result<&str, &str>| {
            let mut found = Extensions::default();
            let got = found.add(records).map(|()| format!("{:?} {:?} {:?}", found.path, found.uid, found.attributes));
            assert_eq!(got.as_deref().map_err(String::as_str), expect);
        };
        check(b"", Ok("None None []"));
        check(b"8 path=\n", Ok("None None []"));
        check(b"8 uid=7\n9 path=a\n", Ok("Some([97]) Some(7) []"));
        // A line feed within a value is not its end.
        check(b"21 SCHILY.xattr.a=\n\nb\n8 uid=7\n", Err("a PAX header is malformed"));
        check(b"22 SCHILY.xattr.a=\n\nb\n8 uid=7\n", Ok("None Some(7) [([97], [10, 10, 98])]"));
        check(b"9 uid=-7\n", Err("uid is no number"));
        check(b"99999999999999999999999 a=b\n", Err("a PAX header is malformed"));
        check(b"8 uid=7", Err("a PAX header is malformed"));
        check(b"3 a\n", Err("a PAX header is malformed"));
    }

    #[test]
    fn maps() {
        let check = |pairs: &[(u64, u64)], size, data, good| {
            let segments: Vec<_> = pairs.iter().map(|&(start, length)| Segment { start, length }).collect();
            assert_eq!(check(&segments, size, data).is_ok(), good, "{pairs:?}");
        };
        check(&[], 10, 0, true);
        check(&[(0, 5), (7, 3)], 10, 8, true);
        check(&[(0, 5), (7, 3)], 10, 9, false);
        check(&[(0, 5), (4, 3)], 10, 8, false);
        check(&[(0, 5), (8, 3)], 10, 8, false);
        check(&[(u64::MAX, 2)], 10, 2, false);
    }
}
