//! A report for people: tables whose first column is the ratio, for a terminal and for a document.

mod document;
pub(super) mod number;
pub(super) mod table;
#[cfg(test)]
mod tests;
pub(super) mod text;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use xtask_common::given_file;

pub(super) use self::document::{markdown, replace_section};
use self::number::{Scale, ratio};
use self::table::{Cell, Column, Table};
use self::text::clean;
use crate::data::{FORMAT, Group, Report, Row, Target};

/// Reads a report that `cargo xtask bench --json` wrote.
pub(super) fn read(path: &Path) -> Result<Report> {
    let shown = path.display();
    let expected = "expected a report that `cargo xtask bench --json FILE` wrote";
    let text = given_file::text(path)?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{shown}: {expected}, found a file that is not JSON"))?;
    let Some(format) = value.get("format").and_then(serde_json::Value::as_u64) else {
        bail!("{shown}: {expected}, found JSON without a number `format`");
    };
    ensure!(
        format == u64::from(FORMAT) || serde_json::from_value::<Report>(value).is_ok(),
        "{shown}: expected a report of format {FORMAT}, found format {format}; measure again, or use the xtask that wrote it"
    );
    // Parse the text again, because errors of this parser name the line.
    serde_json::from_str(&text).with_context(|| format!("{shown}: {expected}, found other JSON"))
}

/// The report for a terminal: tables, the measurements that could not be made, and last the number
/// of met targets.
pub(super) fn print(report: &Report) -> String {
    let mut text = format!("{}\n", head(report));
    if !report.machine.is_empty() {
        text += &format!("machine: {}\n", machine(report));
    }
    for group in &report.groups {
        text += &format!("\n{}: {}\n", clean(&group.name), clean(&group.title));
        if !group.how.is_empty() {
            text += &format!("  {}\n", clean(&group.how));
        }
        for line in table(group).terminal().lines() {
            text += &format!("  {line}\n");
        }
    }
    if !report.skipped.is_empty() {
        text.push('\n');
    }
    for skipped in &report.skipped {
        text += &format!("NOT MEASURED: {}: {}\n", clean(&skipped.what), clean(&skipped.why));
    }
    text + &format!("\n{}\n", Targets::of(report).line())
}

fn head(report: &Report) -> String {
    let revision = match report.revision.as_str() {
        "" => "an unknown revision".to_owned(),
        revision => clean(revision),
    };
    let run = if report.quick { "short run" } else { "full run" };
    format!("{revision}, {run} of {} s", report.seconds)
}

fn machine(report: &Report) -> String {
    let facts = report.machine.iter().map(|(key, value)| format!("{key} {value}"));
    clean(&facts.collect::<Vec<_>>().join(", "))
}

/// The table of a group's figures.
fn table(group: &Group) -> Table<11> {
    let mut table = Table::new([
        Column::right("ratio"),
        Column::left("target"),
        Column::left("met"),
        Column::right("value"),
        Column::right("limit"),
        Column::right("p50"),
        Column::right("p90"),
        Column::right("p99"),
        Column::right("p99.9"),
        Column::left("what"),
        Column::left("the limit is"),
    ]);
    for row in &group.rows {
        table.push(cells(row));
    }
    table
}

fn cells(row: &Row) -> [Cell; 11] {
    let scale = Scale::of(row.unit, row.value);
    let spread = |of: fn(&crate::data::Spread) -> f64| {
        row.spread.as_ref().map(|spread| scale.number(of(spread))).unwrap_or_default()
    };
    [
        row.ratio().map(ratio).unwrap_or_default().into(),
        row.target.map(bound).unwrap_or_default().into(),
        met(row),
        scale.text(row.value).into(),
        row.limit.as_ref().map(|limit| scale.text(limit.value)).unwrap_or_default().into(),
        spread(|spread| spread.p50).into(),
        spread(|spread| spread.p90).into(),
        spread(|spread| spread.p99).into(),
        spread(|spread| spread.p999).into(),
        row.name.clone().into(),
        row.limit.as_ref().map(|limit| limit.of.clone()).unwrap_or_default().into(),
    ]
}

fn bound(target: Target) -> String {
    match target {
        Target::AtMost(bound) => format!("<= {bound}"),
        Target::AtLeast(bound) => format!(">= {bound}"),
    }
}

fn met(row: &Row) -> Cell {
    match (row.target, row.met()) {
        (None, _) => String::new().into(),
        (Some(_), Some(true)) => "yes".to_owned().into(),
        (Some(_), Some(false)) => Cell::strong("NO"),
        (Some(_), None) => Cell::strong("?"),
    }
}

/// The rows whose targets are met or missed.
#[derive(Debug, Default)]
struct Targets {
    met: usize,
    missed: Vec<String>,
    /// Rows with a target and without a ratio, because they have no limit.
    open: Vec<String>,
}

impl Targets {
    fn of(report: &Report) -> Self {
        let mut targets = Self::default();
        for group in &report.groups {
            for row in group.rows.iter().filter(|row| row.target.is_some()) {
                let name = clean(&format!("{}/{}", group.name, row.name));
                match row.met() {
                    Some(true) => targets.met += 1,
                    Some(false) => targets.missed.push(name),
                    None => targets.open.push(name),
                }
            }
        }
        targets
    }

    fn line(&self) -> String {
        let mut line = format!("targets: {} met, {} missed", self.met, self.missed.len());
        if !self.missed.is_empty() {
            line += &format!(": {}", self.missed.join(", "));
        }
        if !self.open.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(
                line,
                "; {} not judged: no limit: {}",
                self.open.len(),
                self.open.join(", ")
            );
        }
        line
    }
}
