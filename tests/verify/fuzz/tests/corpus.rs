//! Runs every target on its seeds, on inputs that were found earlier, and on small changes of both.
//! CI runs this test on any machine; `cargo xtask fuzz` runs longer and searches better.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use kemari_fuzz::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    if let Ok(files) = std::fs::read_dir(dir) {
        inputs.extend(files.map(|file| std::fs::read(file.unwrap().path()).unwrap()));
    }
    inputs.push(Vec::new());
    inputs
}

/// Changes bytes. A position is given as a share of the length.
fn change(mut bytes: Vec<u8>, changes: &[(u16, u8, u8)]) -> Vec<u8> {
    for (place, what, value) in changes {
        let at = usize::from(*place) * bytes.len() / (usize::from(u16::MAX) + 1);
        match what % 4 {
            0 if !bytes.is_empty() => bytes[at] = *value,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << (value % 8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, *value),
        }
    }
    bytes
}

/// Fails if `cargo xtask fuzz` would refuse an existing target, or build for a missing one.
#[test]
fn the_targets_are_those_that_the_command_line_takes() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, kemari_flags::FUZZ_TARGETS);
}

#[test]
fn no_input_breaks_a_target() {
    let executions = 3000;
    for target in TARGETS {
        let inputs = inputs(target);
        for input in &inputs {
            (target.run)(input);
        }
        let changed = (
            any::<prop::sample::Index>(),
            proptest::collection::vec((any::<u16>(), any::<u8>(), any::<u8>()), 1..12),
        );
        let config = Config { cases: executions, failure_persistence: None, ..Config::default() };
        let ran = TestRunner::new(config).run(&changed, |(which, changes)| {
            (target.run)(&change(which.get(&inputs).clone(), &changes));
            Ok(())
        });
        ran.unwrap_or_else(|error| panic!("{}: {error}", target.name));
        println!("{}: {} inputs and {executions} changes of them", target.name, inputs.len());
    }
}
