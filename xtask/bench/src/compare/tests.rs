//! Tests: which direction is better, what is noise, and which figures appear under A and under B.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use super::*;
use crate::data::{FORMAT, Group, Target, Unit};

fn report(rows: Vec<Row>) -> Report {
    let group = Group { name: "g".to_owned(), rows, ..Group::default() };
    Report {
        format: FORMAT,
        revision: "abc".to_owned(),
        machine: [("cores".to_owned(), "2".to_owned())].into(),
        quick: false,
        seconds: 1,
        groups: vec![group],
        skipped: Vec::new(),
    }
}

fn change(unit: Unit, target: Option<Target>, a: f64, b: f64) -> Change {
    let row = |value| {
        let row = Row::new("r", unit, value).limit(100.0, "l");
        match target {
            Some(target) => row.target(target),
            None => row,
        }
    };
    let (first, second) = (report(vec![row(a)]), report(vec![row(b)]));
    Comparison::of(&first, &second, 10.0).pairs[0].change
}

#[test]
fn slower_is_worse_and_more_in_a_second_is_better() {
    for unit in [Unit::Microseconds, Unit::Nanoseconds, Unit::Bytes, Unit::Percent] {
        assert_eq!(change(unit, None, 100.0, 120.0), Change::Worse, "{unit:?}");
        assert_eq!(change(unit, None, 120.0, 100.0), Change::Better, "{unit:?}");
    }
    for unit in [Unit::PerSecond, Unit::MegabytesPerSecond] {
        assert_eq!(change(unit, None, 100.0, 120.0), Change::Better, "{unit:?}");
        assert_eq!(change(unit, None, 120.0, 100.0), Change::Worse, "{unit:?}");
    }
    for unit in [Unit::Count, Unit::Pages] {
        assert_eq!(change(unit, None, 100.0, 120.0), Change::Differs, "{unit:?}");
        assert_eq!(change(unit, None, 120.0, 100.0), Change::Differs, "{unit:?}");
    }
}

#[test]
fn a_target_says_which_way_is_better_whatever_the_unit() {
    let (most, least) = (Some(Target::AtMost(2.0)), Some(Target::AtLeast(0.8)));
    assert_eq!(change(Unit::Percent, least, 80.0, 95.0), Change::Better);
    assert_eq!(change(Unit::Percent, least, 95.0, 80.0), Change::Worse);
    assert_eq!(change(Unit::Count, most, 10.0, 20.0), Change::Worse);
    assert_eq!(change(Unit::PerSecond, most, 10.0, 20.0), Change::Worse);
}

#[test]
fn what_is_within_the_tolerance_is_noise_from_both_sides() {
    assert_eq!(change(Unit::Microseconds, None, 100.0, 110.0), Change::Noise);
    assert_eq!(change(Unit::Microseconds, None, 110.0, 100.0), Change::Noise);
    assert_eq!(change(Unit::Microseconds, None, 100.0, 110.2), Change::Worse);
    assert_eq!(change(Unit::Microseconds, None, 110.2, 100.0), Change::Better);
    assert_eq!(change(Unit::Microseconds, None, 0.0, 0.0), Change::Noise);
    assert_eq!(change(Unit::Microseconds, None, 0.0, 1.0), Change::Worse);
    assert_eq!(change(Unit::Percent, None, 0.2, 0.6), Change::Noise);
    assert_eq!(change(Unit::Percent, None, -0.2, 0.2), Change::Noise);
    assert_eq!(change(Unit::Percent, None, -2.0, 2.0), Change::Worse);
}

#[test]
fn a_and_b_stand_under_their_titles() {
    let a = report(vec![Row::new("r", Unit::Microseconds, 100.0).limit(50.0, "l")]);
    let b = report(vec![Row::new("r", Unit::Microseconds, 300.0).limit(60.0, "l")]);
    let text = Comparison::of(&a, &b, 10.0).text();
    let line = |with: &str| text.lines().find(|line| line.contains(with)).unwrap().to_owned();
    let (titles, row) = (line("B/A"), line("g/r"));
    let end = |line: &str, word: &str| line.find(word).unwrap() + word.len();
    assert!(row.starts_with("WORSE"), "{text}");
    assert_eq!(end(&titles, "B/A"), end(&row, "3.000"), "{text}");
    assert_eq!(end(&titles, "   A"), end(&row, "100 us"), "{text}");
    assert_eq!(end(&titles, "A       B"), end(&row, "300 us"), "{text}");
    assert_eq!(end(&titles, "A/limit"), end(&row, "2.000"), "{text}");
    assert_eq!(end(&titles, "B/limit"), end(&row, "5.000"), "{text}");
    assert_eq!(titles.find("better"), row.find("less"), "{text}");
    assert!(
        text.ends_with(
            "1 worse, 0 better, 0 different but neither worse nor better, 0 within 10 %\n"
        )
    );
}

#[test]
fn rows_are_matched_by_group_and_name_not_by_place() {
    let row = |name: &str, value| Row::new(name, Unit::Microseconds, value);
    let a = report(vec![row("x", 1.0), row("gone", 5.0), row("y", 2.0)]);
    let mut b = report(vec![row("y", 2.0), row("x", 1.0)]);
    b.groups.push(Group { name: "h".to_owned(), rows: vec![row("x", 9.0)], ..Group::default() });
    let comparison = Comparison::of(&a, &b, 10.0);
    assert_eq!(comparison.count(Change::Noise), 2);
    assert_eq!(comparison.pairs.len(), 2);
    let text = comparison.text();
    assert!(text.contains("only in A: g/gone\n"), "{text}");
    assert!(text.contains("only in B: h/x\n"), "{text}");
}

#[test]
fn what_makes_reports_hard_to_compare_is_said() {
    let row = |value| {
        Row::new("r", Unit::Microseconds, value).limit(1.0, "l").target(Target::AtMost(2.0))
    };
    let a = report(vec![row(1.99), Row::new("u", Unit::Bytes, 1.0)]);
    let mut b = report(vec![row(2.01), Row::new("u", Unit::Pages, 1.0), row(7.0)]);
    assert_eq!(Comparison::of(&a, &a, 10.0).warnings, Vec::<String>::new());
    b.quick = true;
    b.format = 2;
    b.machine = [("cores".to_owned(), "64".to_owned()), ("cpu".to_owned(), "X".to_owned())].into();
    let text = Comparison::of(&a, &b, 10.0).text();
    for warning in [
        "the formats differ: A 1, B 2",
        "A is a full run, B a short run",
        "the machines differ in cores: A 2, B 64",
        "the machines differ in cpu: A not known, B X",
        "g/u: not compared: A in \"B\", B in \"pages\"",
        "g/r: its target was met in A, and is missed in B",
        "g/r: more than once in B; only the first is compared",
    ] {
        assert!(text.contains(&format!("warning: {warning}\n")), "{warning}: {text}");
    }
}

#[test]
fn the_verdict_is_worse_only_beyond_the_tolerance() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, value: f64| {
        let path = directory.path().join(name);
        let report = report(vec![Row::new("r", Unit::PerSecond, value)]);
        fs::write(&path, serde_json::to_string(&report).unwrap()).unwrap();
        path
    };
    let (fast, slow) = (file("fast", 120.0), file("slow", 100.0));
    assert!(!run(&fast, &slow, 10.0).unwrap());
    assert!(run(&fast, &slow, 25.0).unwrap());
    assert!(run(&slow, &fast, 10.0).unwrap(), "better is not worse");
    assert!(run(&slow, &slow, 0.0).unwrap());
    for wrong in ["-1", "x", "inf", ""] {
        assert!(per_cent(wrong).unwrap_err().contains("percentage"), "{wrong}");
    }
    let missing = run(&fast, &directory.path().join("none"), 10.0).unwrap_err().to_string();
    assert!(missing.contains("none"), "{missing}");
}
