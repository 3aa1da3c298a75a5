//! Tests that comments are as narrow as the code: rustfmt's own `comment_width` is not stable.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use crate::build::repository;

/// As wide as rustfmt lets code be.
const WIDTH: usize = 100;

/// The numbers of the lines that are comments and too wide. A row of a table cannot be wrapped.
fn too_wide(text: &str) -> Vec<usize> {
    let is_wide = |line: &str| {
        let text = line.trim_start().strip_prefix("//");
        let text = text.map(|text| text.trim_start_matches(['/', '!', ' ']));
        line.chars().count() > WIDTH && text.is_some_and(|text| !text.starts_with('|'))
    };
    text.lines().enumerate().filter(|(_, line)| is_wide(line)).map(|(at, _)| at + 1).collect()
}

/// Adds the places of comments that are too wide in all Rust files below a folder.
fn search(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            search(&path, found);
        } else if name.ends_with(".rs") {
            let lines = too_wide(&fs::read_to_string(&path).unwrap());
            found.extend(lines.iter().map(|line| format!("{}:{line}", path.display())));
        }
    }
}

#[test]
fn no_comment_is_wider_than_the_code() {
    let mut found = Vec::new();
    search(repository(), &mut found);
    assert!(
        found.is_empty(),
        "comments of more than {WIDTH} columns: wrap them:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_wide_comment_is_found_and_a_table_is_not() {
    let word = "word ".repeat(20);
    let text = format!("// {word}\n    /// {word}\n//! | {word}\n// short\nlet {word};\n");
    assert_eq!(too_wide(&text), [1, 2]);
}
