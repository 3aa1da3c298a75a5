//! Tests of the scaffold: names and plans.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use super::name::Name;
use super::{CATALOGUE, Kind, LIBRARY, plan, with_module};
use crate::build::repository;

#[test]
fn names_are_checked() {
    assert_eq!(Name::parse("rain_gauge2").unwrap().type_name(), "RainGauge2");
    for bad in ["", "Pager", "2pager", "a-b", "a__b", "a_", "mod", "contract", "epoch_counter"] {
        let error = Name::parse(bad).unwrap_err().to_string();
        assert!(error.contains(&format!("`{bad}`")), "{error}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let taken = plan(repository(), &Name::parse("block").unwrap(), Kind::Virtio);
    assert!(taken.err().unwrap().to_string().contains("devices/src/block.rs"));
    let inside = plan(repository(), &Name::parse("e1000").unwrap(), Kind::Mmio);
    assert!(inside.err().unwrap().to_string().contains("devices/src/e1000"));
}

#[test]
fn the_lines_are_where_they_belong() {
    let changes = plan(repository(), &Name::parse("pager").unwrap(), Kind::Mmio).unwrap();
    let text = |path: &str| &changes.iter().find(|c| c.path == Path::new(path)).unwrap().text;
    let library = text(LIBRARY);
    assert!(library.contains("mod net;\nmod pager;\nmod power;\n"), "{library}");
    assert!(library.contains("pub use pager::Pager;\npub use power"), "{library}");
    let entry = "Entry::registers::<devices::Pager>(\"pager\"),";
    assert!(text(CATALOGUE).contains(entry));
}

/// Regression: the device `ticker_tape` was inserted between an attribute and its module, where
/// rustfmt refuses it.
#[test]
fn an_attribute_stays_with_its_module() {
    let library = "mod power;\n#[cfg(test)]\nmod test_support;\n\npub use power::Power;\n";
    for (name, expected) in [
        ("rain_gauge", "mod power;\nmod rain_gauge;\n#[cfg(test)]\nmod test_support;\n\n"),
        ("ticker_tape", "mod power;\n#[cfg(test)]\nmod test_support;\nmod ticker_tape;\n\n"),
        ("alarm", "mod alarm;\nmod power;\n#[cfg(test)]\nmod test_support;\n\n"),
    ] {
        let text = with_module(library, &Name::parse(name).unwrap()).unwrap();
        assert!(text.starts_with(expected), "{text}");
    }
}
