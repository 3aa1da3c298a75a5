//! The guide in docs/ names files, anchors, refusals and attacks. These tests check that each of
//! them exists, and that the guide omits none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::build::repository;

const REFUSED: &str = "io-gate/tests/refused";
const ATTACKS: &str = "xtask/gate-check/attacks";
/// The marker that names the source of the code below it.
const CODE: &str = "<!-- code: ";

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names in a directory that end in `end`, without that ending.
fn names(directory: &str, end: &str) -> BTreeSet<String> {
    let names: BTreeSet<String> = fs::read_dir(repository().join(directory))
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().to_str()?.strip_suffix(end).map(str::to_owned)
        })
        .collect();
    assert!(!names.is_empty(), "{directory}: expected files, found none");
    names
}

/// The texts between `open` and `close`.
fn between<'t>(text: &'t str, open: &str, close: char) -> Vec<&'t str> {
    text.split(open).skip(1).filter_map(|rest| rest.split(close).next()).collect()
}

/// The name and text of each chapter.
fn chapters() -> Vec<(String, String)> {
    let files = names("docs", ".md").into_iter().filter(|name| name != "SUMMARY");
    files.map(|name| (format!("{name}.md"), read(format!("docs/{name}.md")))).collect()
}

/// The lines between the marks of an anchor.
fn anchored(text: &str, anchor: &str) -> Option<String> {
    let named = |line: &str, mark: &str| {
        line.split_once(mark).is_some_and(|(_, name)| name.trim() == anchor)
    };
    let lines: Vec<&str> = text.lines().collect();
    let begin = lines.iter().position(|line| named(line, "ANCHOR: "))?;
    let end = lines.iter().position(|line| named(line, "ANCHOR_END: "))?;
    let inside = lines.get(begin + 1..end)?;
    (!inside.is_empty()).then(|| inside.join("\n"))
}

#[test]
fn every_chapter_is_in_the_summary() {
    let summary = read("docs/SUMMARY.md");
    let listed: BTreeSet<&str> = between(&summary, "](", ')').into_iter().collect();
    let there = chapters();
    let there: BTreeSet<&str> = there.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(listed, there, "docs/SUMMARY.md lists what is not there, or leaves something out");
}

/// A chapter with each piece of code as it is in the tree, and the number of pieces. A piece is the
/// fenced block after `<!-- code: PATH:ANCHOR -->`.
fn with_code(chapter: &str, text: &str) -> (String, usize) {
    let (mut out, mut rest, mut pieces) = (String::new(), text, 0);
    while let Some((before, after)) = rest.split_once(CODE) {
        let (source, after) = after.split_once(" -->\n```").unwrap();
        let (language, after) = after.split_once('\n').unwrap();
        let (_, after) = after.split_once("\n```").unwrap();
        let (path, anchor) = match source.split_once(':') {
            Some((path, anchor)) => (path, Some(anchor)),
            None => (source, None),
        };
        let text = read(path);
        let code = anchor.map_or(Some(text.clone()), |anchor| anchored(&text, anchor));
        let code = code.unwrap_or_else(|| {
            panic!("docs/{chapter}: expected `ANCHOR: {source}` with lines below it, found none")
        });
        out += &format!("{before}{CODE}{source} -->\n```{language}\n{}\n```", code.trim_end());
        (rest, pieces) = (after, pieces + 1);
    }
    (out + rest, pieces)
}

/// The guide's code is the compiled code. `KEMARI_MEND_DOCS=1` rewrites the chapters.
#[test]
fn every_piece_of_code_is_the_trees() {
    let mut seen = 0;
    for (chapter, text) in chapters() {
        let (right, pieces) = with_code(&chapter, &text);
        seen += pieces;
        if right != text && std::env::var_os("KEMARI_MEND_DOCS").is_some() {
            fs::write(repository().join("docs").join(&chapter), &right).unwrap();
        } else {
            assert!(
                right == text,
                "docs/{chapter}: its code is not the tree's: KEMARI_MEND_DOCS=1 cargo test -p xtask book"
            );
        }
        assert!(!text.contains("{{#include"), "docs/{chapter}: expected code, found where it is");
    }
    assert!(seen > 0, "expected pieces of code, found none");
}

/// The text of the rules is written in one place. `KEMARI_MEND_DOCS=1` rewrites the chapter.
#[test]
fn the_rules_are_as_the_gate_says_them() {
    let right = crate::gate::chapter_of_rules();
    if std::env::var_os("KEMARI_MEND_DOCS").is_some() {
        fs::write(repository().join("docs/rules.md"), &right).unwrap();
    }
    assert!(
        read("docs/rules.md") == right,
        "docs/rules.md: its rules are not the gate's: KEMARI_MEND_DOCS=1 cargo test -p xtask book"
    );
}

/// The smallest device fits on a screen.
#[test]
fn the_smallest_device_is_as_long_as_the_guide_says() {
    let device = read("devices/src/entropy.rs");
    let lines = device.split("\n#[cfg(test)]").next().unwrap().lines().count();
    assert!(lines <= 50, "expected 50 lines at most, found {lines}");
    let said = format!("`devices/src/entropy.rs`: {lines} lines");
    assert!(
        read("docs/write-a-device.md").contains(&said),
        "expected `{said}`, found another text"
    );
}

#[test]
fn every_link_leads_somewhere() {
    let mut texts = chapters();
    for (name, text) in &mut texts {
        *name = format!("docs/{name}");
        assert!(!text.is_empty(), "{name} is empty");
    }
    let more = ["README.md", "CONTRIBUTING.md", "xtask/gate-check/README.md"];
    texts.extend(more.map(|name| (name.to_owned(), read(name))));
    for (name, text) in texts {
        for link in between(&text, "](", ')') {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || link.contains("://") {
                continue;
            }
            let target: PathBuf = repository().join(&name).with_file_name(path);
            assert!(target.exists(), "{name}: the link `{link}` leads nowhere");
        }
    }
}

#[test]
fn every_refusal_is_explained() {
    let chapter = read("docs/what-is-refused.md");
    for name in names(REFUSED, ".rs") {
        for end in ["rs", "stderr"] {
            let piece = format!("{CODE}{REFUSED}/{name}.{end} -->");
            assert!(chapter.contains(&piece), "docs/what-is-refused.md: expected {piece}");
        }
    }
}

#[test]
fn every_attack_is_in_the_table() {
    let refused = read("docs/what-is-refused.md");
    let not_claimed = read("docs/not-claimed.md");
    let table: BTreeSet<&str> = between(&refused, "\n| `", '\n').into_iter().collect();
    let mut expected = 0;
    for name in names(ATTACKS, "") {
        if !repository().join(ATTACKS).join(&name).is_dir() {
            continue;
        }
        expected += 1;
        let attack: toml::Table =
            read(format!("{ATTACKS}/{name}/attack.toml")).parse().unwrap_or_default();
        let title = attack["title"].as_str().unwrap();
        let caught = match attack.get("not_claimed") {
            Some(why) => {
                let why = why.as_str().unwrap();
                let row = not_claimed.lines().any(|line| {
                    line.starts_with(&format!("| `{name}` | "))
                        && line.ends_with(&format!("| {why} |"))
                });
                assert!(row, "docs/not-claimed.md: expected a row of `{name}` that ends in: {why}");
                "passes: [not claimed](not-claimed.md#attacks-that-pass)".to_owned()
            }
            None => {
                let layers = attack["caught_by"].as_array().unwrap().iter();
                let quoted: Vec<_> =
                    layers.map(|layer| format!("`{}`", layer.as_str().unwrap())).collect();
                quoted.join(", ")
            }
        };
        let row = format!("{name}` | {title} | {caught} |");
        assert!(
            table.contains(row.as_str()),
            "docs/what-is-refused.md: expected the row\n| `{row}"
        );
    }
    let rows = refused.split("| attack |").nth(1).unwrap().matches("\n| `").count();
    assert_eq!(rows, expected, "docs/what-is-refused.md lists attacks that are not there");
}

#[test]
fn everything_ungated_is_named() {
    let source = read("vmm/machine/src/ungated.rs");
    let chapter = read("docs/not-claimed.md");
    let names: Vec<&str> = source
        .split("=> (\n")
        .skip(1)
        .filter_map(|row| row.trim_start().strip_prefix('"')?.split('"').next())
        .collect();
    assert!(!names.is_empty(), "vmm/machine/src/ungated.rs: expected rows that begin with a name");
    for name in names {
        assert!(
            chapter.contains(&format!("\n| {name} | ")),
            "docs/not-claimed.md: expected a row of `{name}`"
        );
    }
}

/// The guide shows pieces of a device of this tree, and says that a new device has the same pieces.
#[test]
fn a_new_device_is_as_the_guide_shows_it() {
    let chapter = read("docs/write-a-device.md");
    assert!(
        chapter.contains("\n## Make it your own\n"),
        "cargo xtask new-device names this section"
    );
    let example = read("devices/src/beeper.rs");
    let written = read("xtask/src/new_device/templates/virtio.rs");
    for anchor in ["process", "state"] {
        assert!(chapter.contains(&format!("beeper.rs:{anchor} -->")), "{anchor} is not shown");
        let shown = anchored(&example, anchor).unwrap();
        assert!(
            written.contains(&shown),
            "the template differs from what the guide shows:\n{shown}"
        );
    }
}
