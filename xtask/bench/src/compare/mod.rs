//! `cargo xtask bench compare`: compares two reports row by row, and says whether the second is
//! worse.

mod change;
#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use self::change::{Change, Direction, judge};
use super::report::number::{Scale, ratio};
use super::report::read;
use super::report::table::{Cell, Column, Table};
use super::report::text::clean;
use crate::data::{Report, Row};

/// Which reports.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The report to compare with, from `cargo xtask bench --json`.
    pub(super) a: PathBuf,
    /// The report to judge.
    pub(super) b: PathBuf,
    /// Differences up to this count as noise. For a figure that is itself in per cent, half a point
    /// is also noise.
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, allow_negative_numbers = true, value_parser = per_cent)]
    pub(super) tolerance: f64,
}

fn per_cent(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a percentage of 0 or more, without a sign".to_owned())
}

/// Prints both reports side by side; `false` if a figure in `b` is worse by more than `tolerance`
/// per cent.
pub(super) fn run(a: &Path, b: &Path, tolerance: f64) -> Result<bool> {
    let (first, second) = (read(a)?, read(b)?);
    let comparison = Comparison::of(&first, &second, tolerance);
    println!("A: {}, {}", a.display(), origin(&first));
    println!("B: {}, {}", b.display(), origin(&second));
    print!("{}", comparison.text());
    Ok(comparison.count(Change::Worse) == 0)
}

fn origin(report: &Report) -> String {
    let run = if report.quick { "short run" } else { "full run" };
    match clean(&report.revision).as_str() {
        "" => format!("unknown revision, {run}"),
        revision => format!("{revision}, {run}"),
    }
}

/// Group and name of a row.
type Key<'r> = (&'r str, &'r str);

/// A row that both reports have.
#[derive(Debug)]
struct Pair<'r> {
    key: Key<'r>,
    a: &'r Row,
    b: &'r Row,
    direction: Direction,
    change: Change,
}

/// The differences of two reports.
#[derive(Debug)]
struct Comparison<'r> {
    /// In per cent.
    tolerance: f64,
    warnings: Vec<String>,
    pairs: Vec<Pair<'r>>,
    only_a: Vec<Key<'r>>,
    only_b: Vec<Key<'r>>,
}

impl<'r> Comparison<'r> {
    fn of(a: &'r Report, b: &'r Report, tolerance: f64) -> Self {
        let mut warnings = differences(a, b);
        let (in_a, in_b) = (Rows::of(a), Rows::of(b));
        warnings.extend(in_a.twice("A").chain(in_b.twice("B")));
        let mut pairs = Vec::new();
        for (key, one) in &in_a.order {
            let Some(other) = in_b.rows.get(key) else { continue };
            if one.unit != other.unit {
                let units = (one.unit.symbol(), other.unit.symbol());
                warnings.push(format!(
                    "{}: not compared: A in {:?}, B in {:?}",
                    name(key),
                    units.0,
                    units.1
                ));
                continue;
            }
            if one.met() == Some(true) && other.met() == Some(false) {
                warnings
                    .push(format!("{}: its target was met in A, and is missed in B", name(key)));
            }
            let direction = Direction::of(other);
            let change = judge(one, other, direction, tolerance);
            pairs.push(Pair { key: *key, a: one, b: other, direction, change });
        }
        let (only_a, only_b) = (in_a.without(&in_b), in_b.without(&in_a));
        Self { tolerance, warnings, pairs, only_a, only_b }
    }

    fn count(&self, change: Change) -> usize {
        self.pairs.iter().filter(|pair| pair.change == change).count()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for warning in &self.warnings {
            text += &format!("warning: {}\n", clean(warning));
        }
        text += &format!("\n{}\n", self.table().terminal());
        for (which, keys) in [("A", &self.only_a), ("B", &self.only_b)] {
            for key in keys {
                text += &format!("only in {which}: {}\n", name(key));
            }
        }
        text + &format!(
            "{} worse, {} better, {} different but neither worse nor better, {} within {} %\n",
            self.count(Change::Worse),
            self.count(Change::Better),
            self.count(Change::Differs),
            self.count(Change::Noise),
            self.tolerance
        )
    }

    fn table(&self) -> Table<9> {
        let mut table = Table::new([
            Column::left(""),
            Column::right("B/A"),
            Column::right("A"),
            Column::right("B"),
            Column::left("better"),
            Column::right("A/limit"),
            Column::right("B/limit"),
            Column::right("p99 B/A"),
            Column::left("what"),
        ]);
        for pair in &self.pairs {
            table.push(pair.cells());
        }
        table
    }
}

impl Pair<'_> {
    fn cells(&self) -> [Cell; 9] {
        let scale = Scale::of(self.a.unit, self.a.value);
        let of = |numerator: f64, denominator: f64| {
            if denominator == 0.0 { String::new() } else { ratio(numerator / denominator) }
        };
        let tails = self.a.spread.zip(self.b.spread);
        [
            self.change.word().into(),
            of(self.b.value, self.a.value).into(),
            scale.text(self.a.value).into(),
            scale.text(self.b.value).into(),
            self.direction.word().into(),
            self.a.ratio().map(ratio).unwrap_or_default().into(),
            self.b.ratio().map(ratio).unwrap_or_default().into(),
            tails.map(|(a, b)| of(b.p99, a.p99)).unwrap_or_default().into(),
            name(&self.key).into(),
        ]
    }
}

fn name((group, row): &Key<'_>) -> String {
    clean(&format!("{group}/{row}"))
}

/// The rows of a report by their names. If two rows have the same name, the first one is here.
#[derive(Debug)]
struct Rows<'r> {
    order: Vec<(Key<'r>, &'r Row)>,
    rows: BTreeMap<Key<'r>, &'r Row>,
    again: Vec<Key<'r>>,
}

impl<'r> Rows<'r> {
    fn of(report: &'r Report) -> Self {
        let mut found = Self { order: Vec::new(), rows: BTreeMap::new(), again: Vec::new() };
        for group in &report.groups {
            for row in &group.rows {
                let key = (group.name.as_str(), row.name.as_str());
                if let Entry::Vacant(place) = found.rows.entry(key) {
                    place.insert(row);
                    found.order.push((key, row));
                } else {
                    found.again.push(key);
                }
            }
        }
        found
    }

    fn twice(&self, which: &'static str) -> impl Iterator<Item = String> {
        self.again.iter().map(move |key| {
            format!("{}: more than once in {which}; only the first is compared", name(key))
        })
    }

    fn without(&self, other: &Self) -> Vec<Key<'r>> {
        let keys = self.order.iter().map(|(key, _)| *key);
        keys.filter(|key| !other.rows.contains_key(key)).collect()
    }
}

/// Reasons why the two reports are hardly comparable.
fn differences(a: &Report, b: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    if a.format != b.format {
        warnings.push(format!("the formats differ: A {}, B {}", a.format, b.format));
    }
    if a.quick != b.quick {
        let length = |quick| if quick { "a short run" } else { "a full run" };
        warnings.push(format!("A is {}, B {}", length(a.quick), length(b.quick)));
    }
    let keys: BTreeSet<&String> = a.machine.keys().chain(b.machine.keys()).collect();
    for key in keys {
        let value = |report: &Report| {
            report.machine.get(key).map_or("not known", String::as_str).to_owned()
        };
        if value(a) != value(b) {
            warnings.push(format!("the machines differ in {key}: A {}, B {}", value(a), value(b)));
        }
    }
    warnings
}
