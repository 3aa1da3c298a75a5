//! The report for people: one line per layer, then each finding with the reason and the remedy.

use std::fmt::Write;

use super::{Looked, merged};
use crate::finding::{Finding, Outcome};
use crate::layer::Layer;

/// Maximum number of findings that are shown in full.
const SHOWN: usize = 40;

/// The report.
pub(crate) fn human(looked: &[Looked]) -> String {
    let mut text = String::new();
    for looked in looked {
        let verdict = match &looked.outcome {
            Outcome::Looked(findings) if findings.is_empty() => "passed".to_owned(),
            Outcome::Looked(findings) => format!("FAILED: {} found", findings.len()),
            Outcome::NotReached(why) => {
                format!("not reached, since the code does not compile: {why}")
            }
            Outcome::Broken(why) => format!("COULD NOT RUN: {why}"),
        };
        let (layer, about) = (looked.layer, looked.layer.about());
        let _ = writeln!(
            text,
            "{layer:<12} {about:<58} {:>5.1} s  {verdict}",
            looked.time.as_secs_f64()
        );
    }
    let merged = merged(looked);
    for (finding, also) in merged.iter().take(SHOWN) {
        let _ = write!(text, "\n{}", one(finding, also));
    }
    if merged.len() > SHOWN {
        let _ = writeln!(text, "\n... and {} more: see --json", merged.len() - SHOWN);
    }
    text
}

fn one(finding: &Finding, also: &[Layer]) -> String {
    let place = finding.place.as_ref().map_or_else(String::new, |place| {
        format!("{}:{}:{}: ", place.file.display(), place.line, place.column)
    });
    let also = match also {
        [] => String::new(),
        _ => {
            let names: Vec<&str> = also.iter().map(|layer| layer.name()).collect();
            format!("; also {}", names.join(", "))
        }
    };
    format!(
        "{place}{} [{}: {}{also}]\n    why:     {}\n    instead: {}\n",
        finding.what, finding.layer, finding.rule, finding.why, finding.instead
    )
}
