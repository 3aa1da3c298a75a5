//! Columns are in their places, every missed target is shown, and names may contain any characters.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use super::*;
use crate::data::{Axis, Curve, FORMAT, Group, Line, Report, Row, Skipped, Spread, Target, Unit};

fn report(rows: Vec<Row>) -> Report {
    let group = Group {
        name: "pause".to_owned(),
        title: "How long the guest stands still".to_owned(),
        how: "From the first kick to the last resume.".to_owned(),
        rows,
        curves: Vec::new(),
    };
    Report {
        format: FORMAT,
        revision: "abc1234".to_owned(),
        machine: [("cores".to_owned(), "2".to_owned())].into(),
        quick: true,
        seconds: 93,
        groups: vec![group],
        skipped: Vec::new(),
    }
}

fn met_row() -> Row {
    Row::new("16 dirty pages", Unit::Microseconds, 123.0)
        .limit(82.0, "collect + copy")
        .target(Target::AtMost(2.0))
        .spread(Spread { count: 9, p50: 123.0, p90: 140.0, p99: 200.0, p999: 999.0, max: 1e6 })
}

fn missed_row() -> Row {
    Row::new("requests", Unit::PerSecond, 700.0)
        .limit(1000.0, "unprotected")
        .target(Target::AtLeast(0.8))
}

/// The cells of the row `name`, with their titles.
fn under_titles(markdown: &str, name: &str) -> Vec<(String, String)> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let lines: Vec<&str> = markdown.lines().filter(|line| line.starts_with('|')).collect();
    let row = lines.iter().find(|line| line.contains(name)).unwrap();
    let (titles, cells) = (cells(lines[0]), cells(row));
    assert_eq!(titles.len(), cells.len(), "{markdown}");
    titles.into_iter().zip(cells).collect()
}

#[test]
fn each_figure_stands_under_its_title() {
    let text = markdown(&report(vec![met_row(), missed_row()]));
    let expected = [
        ("ratio", "1.500"),
        ("target", "&lt;= 2"),
        ("met", "yes"),
        ("value", "123 us"),
        ("limit", "82 us"),
        ("p50", "123"),
        ("p90", "140"),
        ("p99", "200"),
        ("p99.9", "999"),
        ("what", "16 dirty pages"),
        ("the limit is", "collect + copy"),
    ];
    let expected = expected.map(|(title, cell)| (title.to_owned(), cell.to_owned()));
    assert_eq!(under_titles(&text, "16 dirty pages"), expected);
    let missed = under_titles(&text, "requests");
    assert_eq!(missed[1].1, "&gt;= 0.8");
    assert_eq!(missed[2].1, "**NO**");
    assert_eq!(missed[3].1, "700 /s");
    assert_eq!(missed[5].1, "", "a row without a spread shows none");
}

#[test]
fn the_terminal_shows_the_same_columns_in_line() {
    let text = print(&report(vec![met_row(), missed_row()]));
    let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap();
    let ends = |line: &str, word: &str| line.find(word).unwrap() + word.len();
    let (titles, met, missed) = (line("p99.9"), line("16 dirty pages"), line("unprotected"));
    assert_eq!(ends(titles, "ratio"), ends(met, "1.500"));
    assert_eq!(ends(titles, "ratio"), ends(missed, "0.700"));
    assert_eq!(ends(titles, "value"), ends(met, "123 us"));
    assert_eq!(ends(titles, "limit"), ends(met, "82 us"));
    assert_eq!(ends(titles, "p90"), ends(met, "140"));
    assert_eq!(ends(titles, "p99.9"), ends(met, "999"));
    assert_eq!(titles.find("what"), met.find("16 dirty pages"));
    assert_eq!(titles.find("what"), missed.find("requests"));
    assert!(met.contains(" yes ") && missed.contains(" NO "), "{text}");
}

#[test]
fn a_missed_target_and_one_that_nobody_could_judge_are_named_at_the_end() {
    let open = Row::new("idle", Unit::Percent, 0.4).target(Target::AtMost(1.0));
    let report = report(vec![met_row(), missed_row(), open]);
    let text = print(&report);
    let last = text.lines().last().unwrap();
    assert_eq!(
        last,
        "targets: 1 met, 1 missed: pause/requests; 1 not judged: no limit: pause/idle"
    );
    let expected = format!("**{last}**");
    assert!(markdown(&report).lines().any(|line| line == expected));
    assert!(text.lines().any(|line| line.contains(" ? ") && line.contains("idle")), "{text}");
}

#[test]
fn what_was_not_measured_is_said() {
    let mut report = report(vec![met_row()]);
    report.skipped =
        vec![Skipped { what: "the peer".to_owned(), why: "install qemu-system-x86".to_owned() }];
    assert!(print(&report).contains("NOT MEASURED: the peer: install qemu-system-x86\n"));
    assert!(markdown(&report).contains("- the peer: install qemu-system-x86\n"));
}

#[test]
fn machine_revision_and_length_are_said() {
    let report = report(vec![met_row()]);
    for text in [print(&report), markdown(&report)] {
        for word in ["cores", "abc1234", "short run", "93 s"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}

#[test]
fn empty_columns_are_left_out() {
    let text = markdown(&report(vec![Row::new("takeover", Unit::Microseconds, 1500.0)]));
    let row = under_titles(&text, "takeover");
    assert_eq!(
        row,
        [("value", "1,500 us"), ("what", "takeover")].map(|(a, b)| (a.into(), b.into()))
    );
}

#[test]
fn a_description_shows_code_as_code() {
    let shown = |how: &str| {
        let mut report = report(vec![met_row()]);
        report.groups[0].how = how.to_owned();
        markdown(&report)
    };
    let text = shown("`kemari run` has a_b; `kemari probe --limits`: medians.");
    let expected = "\n\n`kemari run` has a\\_b; `kemari probe --limits`: medians.\n\n";
    assert!(text.contains(expected), "{text}");
    for odd in ["a `b", "`<script>`", "`{{#include /etc/passwd}}`", "``"] {
        let text = shown(odd);
        assert!(!text.contains(odd) && text.contains("\\`"), "{odd}: {text}");
    }
}

#[test]
fn a_hostile_name_changes_nothing_but_its_cell() {
    let name = "a|b <script>`x` [y](z) {{#include /etc/passwd}}\n<!-- bench: end -->\n# c\u{1b}[2J";
    let mut hostile =
        report(vec![Row::new(name, Unit::Count, 1.0).limit(1.0, name).target(Target::AtMost(0.5))]);
    hostile.groups[0].title = name.to_owned();
    hostile.groups[0].how = name.to_owned();
    hostile.machine.insert(name.to_owned(), name.to_owned());
    hostile.revision = name.to_owned();
    hostile.skipped = vec![Skipped { what: name.to_owned(), why: name.to_owned() }];
    let plain =
        report(vec![Row::new("n", Unit::Count, 1.0).limit(1.0, "n").target(Target::AtMost(0.5))]);
    let text = markdown(&hostile);
    for markup in ["<script", "<!--", "{{", "[y]", "\u{1b}", "\n# c"] {
        assert!(!text.contains(markup), "{markup:?} in {text}");
    }
    let bars = |text: &str| {
        let lines = text.lines().filter(|line| line.starts_with('|'));
        lines.map(|line| line.replace("\\|", "").matches('|').count()).collect::<Vec<_>>()
    };
    assert_eq!(bars(&text), bars(&markdown(&plain)));
    let printed = print(&hostile);
    assert!(!printed.contains('\u{1b}'), "{printed:?}");
    // Headings, one line for the table's titles and one for its row: a line break in a name must
    // not add a line.
    assert_eq!(printed.lines().count(), print(&plain).lines().count() + 1 + 1, "{printed}");

    let document = format!("a\n{}\n{}\nz\n", "<!-- bench: begin -->", "<!-- bench: end -->");
    let once = replace_section(&document, &text).unwrap();
    assert_eq!(replace_section(&once, &text).unwrap(), once);
}

#[test]
fn a_picture_is_shown_by_its_file() {
    let mut report = report(vec![met_row()]);
    let axis = || Axis { title: "x".to_owned(), logarithmic: false };
    let curve = |name: &str| Curve {
        name: name.to_owned(),
        title: "Pause [us]".to_owned(),
        x: axis(),
        y: axis(),
        lines: vec![Line { name: "l".to_owned(), points: vec![(1.0, 2.0)] }],
    };
    report.groups[0].curves = vec![curve("pause-by-pages"), curve("../../x")];
    let text = markdown(&report);
    assert!(text.contains("![Pause \\[us\\]](performance/pause-by-pages.svg)"), "{text}");
    assert!(!text.contains("../.."), "{text}");
}

#[test]
fn the_section_is_replaced_and_nothing_else() {
    let document = "# T\n\nThe marks are `<!-- bench: begin -->` and `<!-- bench: end -->`.\n\n<!-- bench: begin -->\nold\n<!-- bench: end -->\ntail";
    let new = replace_section(document, "new | figures\n").unwrap();
    assert_eq!(
        new,
        "# T\n\nThe marks are `<!-- bench: begin -->` and `<!-- bench: end -->`.\n\n<!-- bench: begin -->\n\nnew | figures\n\n<!-- bench: end -->\ntail"
    );
    assert_eq!(replace_section(&new, "new | figures").unwrap(), new);
}

#[test]
fn missing_doubled_and_swapped_marks_are_refused() {
    let (begin, end) = ("<!-- bench: begin -->\n", "<!-- bench: end -->\n");
    let error = |document: &str| replace_section(document, "x").unwrap_err().to_string();
    let none = error(end);
    assert!(none.contains("begin -->`, found none"), "{none}");
    assert!(error(begin).contains("end -->`, found none"));
    assert!(error(&[begin, begin, end].concat()).contains("found 2"));
    assert!(error(&[end, begin].concat()).contains("in this order"));
}

#[test]
fn numbers_have_three_digits_and_a_fitting_unit() {
    let shown = |unit, value| Scale::of(unit, value).text(value);
    assert_eq!(shown(Unit::Nanoseconds, 12.345), "12.3 ns");
    assert_eq!(shown(Unit::Nanoseconds, 12_345.0), "12.3 us");
    assert_eq!(shown(Unit::Microseconds, 9_999.0), "9,999 us");
    assert_eq!(shown(Unit::Microseconds, 0.5), "0.500 us");
    assert_eq!(shown(Unit::Microseconds, 150_000.0), "150 ms");
    assert_eq!(shown(Unit::Microseconds, 15_000_000.0), "15 s");
    assert_eq!(shown(Unit::Bytes, 17_179_869_184.0), "17.2 GB");
    assert_eq!(shown(Unit::PerSecond, 1_234_567.0), "1,234,567 /s");
    assert_eq!(shown(Unit::MegabytesPerSecond, 1234.6), "1,235 MB/s");
    assert_eq!(shown(Unit::Percent, -0.037), "-0.0370 %");
    assert_eq!(shown(Unit::Count, 1000.0), "1,000");
    assert_eq!(shown(Unit::Microseconds, 0.0), "0 us");
    // A row has the scale of its value, so the tail has the same unit as the median.
    assert_eq!(Scale::of(Unit::Microseconds, 150.0).text(150_000.0), "150,000 us");
    assert_eq!(ratio(2.004), "2.004");
}

#[test]
fn a_file_that_is_no_report_is_told_from_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let error = |text: &str| {
        fs::write(&path, text).unwrap();
        format!("{:#}", read(&path).unwrap_err())
    };
    let missing = format!("{:#}", read(&directory.path().join("none")).unwrap_err());
    assert!(missing.contains("cannot read"), "{missing}");
    assert!(error("ratio 1.5").contains("expected a report"));
    assert!(error("{\"rounds\": []}").contains("found JSON without a number `format`"));
    let other = error("{\"format\": 7}");
    assert!(other.contains("expected a report of format 1, found format 7"), "{other}");
    let torn = error("{\"format\": 1, \"revision\": \"x\"}");
    assert!(torn.contains("missing field"), "{torn}");

    let whole = report(vec![met_row(), missed_row()]);
    fs::write(&path, serde_json::to_string(&whole).unwrap()).unwrap();
    assert_eq!(read(&path).unwrap(), whole);
}
