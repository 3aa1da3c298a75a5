//! Puts the report into a document, as Markdown between two marks.

use anyhow::{Result, bail, ensure};

use super::{Targets, head, table, text};
use crate::data::{Group, Report};
use crate::plot;

const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// The report for a document, whose pictures are beside it in [`plot::DIRECTORY`].
pub(crate) fn markdown(report: &Report) -> String {
    let mut parts =
        vec![format!("Measured by `cargo xtask bench`: {}.", text::markdown(&head(report)))];
    if !report.machine.is_empty() {
        let fact = |(key, value): (&String, &String)| {
            format!("- {}: {}", text::markdown(key), text::markdown(value))
        };
        parts.push("The machine:".to_owned());
        parts.push(report.machine.iter().map(fact).collect::<Vec<_>>().join("\n"));
    }
    parts.push(format!("**{}**", text::markdown(&Targets::of(report).line())));
    parts.extend(report.groups.iter().flat_map(group));
    if !report.skipped.is_empty() {
        let skipped = report.skipped.iter().map(|skipped| {
            format!("- {}: {}", text::markdown(&skipped.what), text::markdown(&skipped.why))
        });
        parts.push("### Not measured".to_owned());
        parts.push(skipped.collect::<Vec<_>>().join("\n"));
    }
    parts.join("\n\n") + "\n"
}

fn group(group: &Group) -> Vec<String> {
    let mut parts = vec![
        format!("### {}", text::markdown(&group.title)),
        text::paragraph(&group.how),
        table(group).markdown().trim_end().to_owned(),
    ];
    // Drawing refuses a curve whose name is not fit for a file, so such a curve has no picture.
    let pictures = group.curves.iter().filter_map(|curve| Some((curve, plot::file(curve).ok()?)));
    parts.extend(pictures.map(|(curve, file)| {
        format!("![{}]({}/{file})", text::markdown(&curve.title), plot::DIRECTORY)
    }));
    parts.retain(|part| !part.is_empty());
    parts
}

/// The document with `report` in place of the text between the marks.
pub(crate) fn replace_section(document: &str, report: &str) -> Result<String> {
    let (_, begin) = mark(document, BEGIN)?;
    let (end, _) = mark(document, END)?;
    ensure!(
        begin <= end,
        "expected the line `{BEGIN}` before the line `{END}`, found it after; put them in this order"
    );
    let (before, after) = (&document[..begin], &document[end..]);
    let newline = if before.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{before}{newline}\n{}\n\n{after}", report.trim()))
}

/// The range of the only line that is `mark`, with its line break.
fn mark(document: &str, mark: &str) -> Result<(usize, usize)> {
    let mut at = 0;
    let mut found = Vec::new();
    for line in document.split_inclusive('\n') {
        if line.trim() == mark {
            found.push((at, at + line.len()));
        }
        at += line.len();
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => bail!(
            "expected a line `{mark}`, found none; add `{BEGIN}` and `{END}` where the report belongs"
        ),
        _ => bail!("expected one line `{mark}`, found {}; leave one of them", found.len()),
    }
}
