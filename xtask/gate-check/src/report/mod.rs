//! Reports the findings, for people and for programs.

mod github;
mod human;
mod sarif;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub(crate) use self::github::annotations;
pub(crate) use self::human::human;
pub(crate) use self::sarif::write as write_sarif;
use super::finding::{Finding, Outcome};
use super::layer::Layer;
use super::subject::Subject;

/// The result of one layer.
#[derive(Debug)]
pub(crate) struct Looked {
    /// The layer.
    pub(crate) layer: Layer,
    /// Its outcome.
    pub(crate) outcome: Outcome,
    /// The time that it took.
    pub(crate) time: Duration,
}

/// A finding, and the other layers that report the same.
pub(crate) type Merged<'a> = (&'a Finding, Vec<Layer>);

/// Merges the findings of several layers that report the same. The finding of the first layer
/// stays, in the order of the report.
pub(crate) fn merged(looked: &[Looked]) -> Vec<Merged<'_>> {
    let mut merged: Vec<Merged<'_>> = Vec::new();
    for finding in looked.iter().flat_map(|looked| looked.outcome.findings()) {
        let before = merged.iter_mut().find(|(first, _)| same(first, finding));
        match before {
            Some((first, also)) => {
                if first.layer != finding.layer && !also.contains(&finding.layer) {
                    also.push(finding.layer);
                }
            }
            None => merged.push((finding, Vec::new())),
        }
    }
    merged
}

fn same(one: &Finding, other: &Finding) -> bool {
    let file = |finding: &Finding| finding.place.as_ref().map(|place| place.file.clone());
    let error = |finding: &Finding| {
        finding.rule.ends_with("/compile") || finding.rule.starts_with("types/")
    };
    if one == other {
        return true;
    }
    match (error(one), error(other)) {
        (true, true) => one.place == other.place && one.what == other.what,
        // After expansion the compiler gives only an approximate line.
        (false, false) => {
            one.rule == other.rule
                && one.layer != other.layer
                && other.layer == Layer::Expanded
                && file(one).is_some()
                && file(one) == file(other)
        }
        _ => false,
    }
}

/// All findings, unmerged, for programs.
pub(crate) fn json(subject: &Subject, looked: &[Looked]) -> Value {
    let layers: BTreeMap<&str, Value> = looked
        .iter()
        .map(|looked| {
            let milliseconds = u64::try_from(looked.time.as_millis()).unwrap_or(u64::MAX);
            let (state, why) = match &looked.outcome {
                Outcome::Looked(findings) if findings.is_empty() => ("passed", None),
                Outcome::Looked(_) => ("failed", None),
                Outcome::NotReached(why) => ("not-reached", Some(why)),
                Outcome::Broken(why) => ("broken", Some(why)),
            };
            let findings = looked.outcome.findings();
            let value = json!({ "state": state, "why": why, "milliseconds": milliseconds, "findings": findings });
            (looked.layer.name(), value)
        })
        .collect();
    json!({ "root": subject.root, "packages": subject.packages, "layers": layers })
}

fn write(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    xtask_common::report_file::write(path, text + "\n")
}
