//! Runs the real peers. The ignored test starts QEMU (`cargo test -p xtask-bench peer -- --ignored
//! --nocapture`).
#![allow(clippy::unwrap_used)]

use xtask_common::build;

use super::*;

fn show(line: &str) {
    println!("{line}");
}

#[test]
fn what_fails_is_skipped_with_its_reason() {
    let mut measured = Measured::default();
    measured.take("a thing", &|_| {}, Err(anyhow::anyhow!("not here").context("it needs a thing")));
    measured.take("another", &|_| {}, Ok(Group::default()));
    assert_eq!(measured.groups.len(), 1);
    let skipped = &measured.skipped[0];
    assert_eq!(
        (skipped.what.as_str(), skipped.why.as_str()),
        ("a thing", "it needs a thing: not here")
    );
}

#[test]
fn qemu_is_called_by_its_version() {
    let debian = "QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7+deb12u16)\nCopyright";
    assert_eq!(name(debian).unwrap(), "QEMU 7.2.19");
    assert_eq!(name("QEMU emulator version 10.0.2\n").unwrap(), "QEMU 10.0.2");
    assert_eq!(name("nonsense"), None);
}

#[test]
#[ignore = "starts QEMU and kemari on /dev/kvm"]
fn all_peers_are_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let options = Options {
        kemari: &build::kemari().unwrap(),
        guest: &build::micro_guest().unwrap(),
        scratch: scratch.path(),
        memory: 256,
        sets: &[16, 128, 1024],
        quick: true,
        stop: stop::Flag::default(),
        say: &show,
    };
    let measured = measure(&options).unwrap();
    for group in &measured.groups {
        println!("== {}", group.title);
        for row in &group.rows {
            println!("{:60} {:12.1} {} {:?}", row.name, row.value, row.unit.symbol(), row.spread);
        }
    }
    // COLO does not work in every QEMU; the other comparisons do.
    assert!(measured.skipped.iter().all(|skipped| skipped.what.contains("COLO")), "{measured:?}");
    assert_eq!(measured.groups.len() + measured.skipped.len(), 3);
    assert!(measured.groups.iter().all(|group| !group.rows.is_empty()));
    // No file is left behind.
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}
