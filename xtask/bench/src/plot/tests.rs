//! Pictures are the same for the same data, show every point in its place, and accept any name.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;
use crate::data::{Axis, FORMAT, Group};

fn curve(logarithmic: bool, lines: &[&[(f64, f64)]]) -> Curve {
    let axis = |title: &str| Axis { title: title.to_owned(), logarithmic };
    let line = |(at, points): (usize, &&[(f64, f64)])| Line {
        name: format!("line {at}"),
        points: points.to_vec(),
    };
    Curve {
        name: "pause".to_owned(),
        title: "Pause".to_owned(),
        x: axis("dirty pages"),
        y: axis("us"),
        lines: lines.iter().enumerate().map(line).collect(),
    }
}

fn report(curves: Vec<Curve>) -> Report {
    Report {
        format: FORMAT,
        revision: String::new(),
        machine: Default::default(),
        quick: true,
        seconds: 1,
        groups: vec![Group { curves, ..Group::default() }],
        skipped: Vec::new(),
    }
}

/// The positions of the marks in this colour, including the legend's mark.
fn marks(picture: &str, colour: &str) -> Vec<(i32, i32)> {
    let number = |line: &str, key: &str| -> i32 {
        let from = line.split_once(&format!(" {key}=\"")).unwrap().1;
        from.split_once('"').unwrap().0.parse().unwrap()
    };
    let circles = picture.lines().filter(|line| line.starts_with("<circle"));
    circles
        .filter(|line| line.contains(colour))
        .map(|line| (number(line, "cx"), number(line, "cy")))
        .collect()
}

/// Checks that each opened tag is closed, in order: a name has then opened no tag. Returns the
/// tags.
fn tags(picture: &str) -> Vec<String> {
    let mut open: Vec<&str> = Vec::new();
    let mut seen = Vec::new();
    for tag in picture.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0) {
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else {
            let name = tag.split([' ', '/']).next().unwrap();
            if !tag.ends_with('/') {
                open.push(name);
            }
            seen.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    seen
}

#[test]
fn the_same_data_give_the_same_bytes() {
    let curve = curve(true, &[&[(16.0, 100.0), (1024.0, 900.0)], &[(16.0, 50.0)]]);
    let picture = draw(&curve).unwrap();
    assert_eq!(picture, draw(&curve).unwrap());
    assert_eq!(picture.matches("<svg").count(), 1);
    assert!(picture.contains("fill=\"#FFFFFF\""), "white below it, for dark pages");
    for text in ["Pause", "dirty pages", "us", "line 0", "line 1"] {
        assert!(picture.contains(&format!(">\n{text}\n</text>")), "{text}: {picture}");
    }
}

#[test]
fn every_point_is_marked_further_right_and_up_the_larger_it_is() {
    for logarithmic in [false, true] {
        let picture = draw(&curve(
            logarithmic,
            &[&[(1.0, 10.0), (10.0, 100.0), (100.0, 1000.0)], &[(5.0, 5.0)]],
        ))
        .unwrap();
        let first = marks(&picture, "#0072B2");
        assert_eq!(first.len(), 3 + 1, "three points and the legend's: {picture}");
        assert_eq!(marks(&picture, "#D55E00").len(), 1 + 1);
        let steps: Vec<(i32, i32)> =
            first[..3].windows(2).map(|two| (two[1].0 - two[0].0, two[0].1 - two[1].1)).collect();
        assert!(steps.iter().all(|step| step.0 > 0 && step.1 > 0), "{steps:?}");
        let apart = (steps[1].0 - steps[0].0).abs();
        // A factor of ten is the same step on a logarithmic axis, and ten times the step on a
        // linear axis.
        assert_eq!(apart <= 1, logarithmic, "{steps:?}");
    }
}

#[test]
fn what_has_no_place_on_a_logarithmic_axis_is_counted() {
    let points: &[(f64, f64)] = &[(0.0, 3.0), (1.0, 0.0), (10.0, 4.0), (20.0, f64::NAN)];
    let picture = draw(&curve(true, &[points])).unwrap();
    assert_eq!(marks(&picture, "#0072B2").len(), 1 + 1);
    assert!(picture.contains("line 0 (3 points have no place on a logarithmic axis)"));
    assert!(!picture.contains("NaN") && !picture.contains("inf"));
}

#[test]
fn few_points_and_none_are_drawn() {
    for logarithmic in [false, true] {
        let one: &[(f64, f64)] = &[(7.0, 7.0)];
        let zero: &[(f64, f64)] = &[(0.0, 0.0)];
        for lines in [&[][..], &[&[][..]], &[one], &[zero], &[one, zero]] {
            tags(&draw(&curve(logarithmic, lines)).unwrap());
        }
    }
}

#[test]
fn a_hostile_name_is_text() {
    let name = "</text><script>alert('x')</script>\"&\u{0}\u{1b}\u{ffff}\n]]>";
    let plain = curve(false, &[&[(1.0, 2.0)]]);
    let mut hostile = plain.clone();
    hostile.title = name.to_owned();
    hostile.x.title = name.to_owned();
    hostile.y.title = name.to_owned();
    hostile.lines[0].name = name.to_owned();
    let picture = draw(&hostile).unwrap();
    assert_eq!(tags(&picture), tags(&draw(&plain).unwrap()));
    assert!(picture.contains("&lt;script&gt;"), "{picture}");
    assert!(!picture.chars().any(|it| it.is_control() && it != '\n'));
}

#[test]
fn files_are_named_by_their_curves() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/pictures");
    let mut other = curve(true, &[&[(1.0, 2.0)]]);
    other.name = "commit_latency-2".to_owned();
    let wrote = write_all(&report(vec![curve(false, &[&[(1.0, 2.0)]]), other]), &path).unwrap();
    assert_eq!(wrote, [path.join("pause.svg"), path.join("commit_latency-2.svg")]);
    let text = fs::read_to_string(&wrote[1]).unwrap();
    assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"), "{text}");
}

#[test]
fn a_name_that_leads_elsewhere_and_a_second_of_the_same_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["", "../pause", "/tmp/x", "a b", "a.b", "\u{e9}"] {
        let mut bad = curve(false, &[]);
        bad.name = name.to_owned();
        let error = write_all(&report(vec![curve(false, &[]), bad]), directory.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("found {name:?}")), "{error}");
    }
    let twice = report(vec![curve(false, &[]), curve(true, &[])]);
    let error = write_all(&twice, directory.path()).unwrap_err();
    assert!(error.to_string().contains("two with the name \"pause\""), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left half done");
}

#[test]
fn an_axis_has_some_round_numbers_whatever_it_shows() {
    use plotters::coord::ranged1d::{BoldPoints, Ranged};
    let ranges: [&[f64]; 8] = [
        &[16.0, 1024.0],
        &[1.0, 100_000.0],
        &[7.0, 9.0],
        &[0.001, 0.0023],
        &[3.0],
        &[1e-3, 1e12],
        &[0.5, 40.0],
        &[],
    ];
    for values in ranges {
        for logarithmic in [false, true] {
            let scale = Scale::around(values.iter().copied(), logarithmic);
            let points = scale.key_points(BoldPoints(10));
            assert!((2..=11).contains(&points.len()), "{values:?}, {logarithmic}: {points:?}");
            assert!(points.windows(2).all(|two| two[0] < two[1]), "{points:?}");
            let range = scale.range();
            assert!(points.iter().all(|it| *it >= range.start && *it <= range.end));
            let labels: BTreeSet<String> = points.iter().map(|point| label(*point)).collect();
            assert_eq!(labels.len(), points.len(), "two labels read the same: {labels:?}");
        }
    }
    assert_eq!([0.3, 2.5, 100_000.0].map(label), ["0.3", "2.5", "100,000"]);
}
