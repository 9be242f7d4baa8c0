//! Tables of text with aligned columns, and how ages and sizes read in them.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// A table. Columns are as wide as their widest cell; the last is not padded.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading.
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_uppercase).to_vec()] }
    }

    /// Appends a row.
    pub fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)).to_vec());
    }
}

/// Names and commands come from guests and images: no control characters of theirs reach the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let (last, before) = row.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
            for (cell, width) in before.iter().zip(&widths) {
                write!(f, "{cell:width$}  ")?;
            }
            writeln!(f, "{last}")?;
        }
        Ok(())
    }
}

/// Time since `then` (milliseconds since the epoch), short.
pub fn age(then_ms: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let then = u128::try_from(then_ms).unwrap_or(0);
    duration(u64::try_from(now.saturating_sub(then) / 1000).unwrap_or(u64::MAX))
}

/// A duration in its largest fitting unit.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in the largest fitting binary unit.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// MiB, as sandboxes have them.
pub fn mebibytes(count: u64) -> String {
    bytes(count.saturating_mul(1024 * 1024))
}

/// What there is, or a dash.
pub fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_harmless() {
        let mut table = Table::new(["id", "name"]);
        table.push(["a".into(), "box".into()]);
        table.push(["longer".into(), "\u{1b}[31mred".into()]);
        assert_eq!(table.to_string(), "ID      NAME\na       box\nlonger  \u{fffd}[31mred\n");
    }

    #[test]
    fn durations_are_short() {
        let got: Vec<_> = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(duration).into();
        assert_eq!(got, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
