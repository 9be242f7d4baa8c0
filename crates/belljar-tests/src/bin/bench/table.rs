//! Samples, and the table they are shown in.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use crate::progress;

/// Durations of one figure.
#[derive(Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
        self.0.sort_by(f64::total_cmp);
    }

    /// Those of another, too.
    pub(crate) fn take(&mut self, other: Self) {
        self.0.extend(other.0);
        self.0.sort_by(f64::total_cmp);
    }

    /// Many at once: sorted once.
    pub(crate) fn of(all: Vec<Duration>) -> Self {
        let mut all: Vec<f64> = all.iter().map(|took| took.as_secs_f64() * 1000.0).collect();
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Median, milliseconds.
    pub(crate) fn p50(&self) -> f64 {
        self.quantile(50)
    }

    fn quantile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

struct Row {
    name: String,
    n: usize,
    p50: f64,
    p99: Option<f64>,
    unit: &'static str,
    note: String,
}

/// All figures of a run.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn samples(&mut self, name: &str, samples: &Samples, note: &str) {
        let (p50, p99) = (samples.p50(), Some(samples.quantile(99)));
        self.push(Row { name: name.into(), n: samples.0.len(), p50, p99, unit: "ms", note: note.into() });
    }

    pub(crate) fn value(&mut self, name: &str, value: f64, unit: &'static str, note: &str) {
        self.push(Row { name: name.into(), n: 1, p50: value, p99: None, unit, note: note.into() });
    }

    /// Tells it at once, too: what comes after may fail, and take long.
    fn push(&mut self, row: Row) {
        progress(&row.to_string());
        self.0.push(row);
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| json!({"figure": row.name, "n": row.n, "p50": row.p50, "p99": row.p99, "unit": row.unit, "against": row.note});
        self.0.iter().map(row).collect()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, n, p50, p99, unit, note } = self;
        let p99 = p99.map_or(String::from("-"), |it| format!("{it:.2}"));
        write!(out, "{name:<52} {n:>4} {p50:>9.2} {p99:>9}  {unit:<5} {note}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:<52} {:>4} {:>9} {:>9}  {:<5} against", "figure", "n", "p50", "p99", "unit")?;
        self.0.iter().try_for_each(|row| writeln!(out, "{row}"))
    }
}
