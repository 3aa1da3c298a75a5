//! Mistakes in a command line of `cargo xtask`: each is refused with a message that names it,
//! before anything is built or written.
//!
//! `@` is a directory with a report (`report.json`), notes (`notes`), a directory (`dir`) and a
//! FIFO (`fifo`) in it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A command line, and the words that the error must contain.
type Case = (&'static str, &'static [&'static str]);

const NUMBERS: &[Case] = &[
    ("run-pair --rounds x", &["--rounds", "'x'", "expected rounds (1 to 100000)"]),
    ("run-pair --rounds 0", &["1 to 100000"]),
    ("run-pair --rounds -1", &["'-1'", "1 to 100000"]),
    ("run-pair --seed x", &["expected a seed (0 to 9223372036854775807)"]),
    ("run-pair --load 5s", &["expected milliseconds (0 to 3600000)"]),
    ("run-pair --cpus 0", &["expected vCPUs (1 to 254)"]),
    ("run-pair --cpus 255", &["1 to 254"]),
    ("run-pair --memory 1G", &["expected MiB, without a unit (2 to 16777216)"]),
    ("run-pair --memory 1", &["2 to 16777216"]),
    ("run-pair --writers 0", &["expected clients (1 to 1000)"]),
    ("run-pair --dirty -5", &["expected pages a second (0 to 10000000)"]),
    ("run-pair --slow 0", &["how many times longer (1 to 1000)"]),
    ("torture --minutes x", &["expected minutes (1 to 10080)"]),
    ("torture --minutes 99999999999999999999", &["1 to 10080"]),
    ("torture --minutes 0", &["1 to 10080"]),
    ("torture --failovers 0", &["expected failovers (1 to 1000000)"]),
    ("torture --seed -1", &["expected a seed"]),
    ("torture --rounds 0", &["expected faults (1 to 100000)"]),
    ("sim --seed x", &["--seed", "expected a seed (0 to 9223372036854775807)"]),
    ("sim --seeds 0", &["expected worlds (1 to 1000000000000)"]),
    ("sim --seeds 1e6", &["expected worlds"]),
    ("sim --minutes 0", &["1 to 10080"]),
    ("sim --first 18446744073709551615", &["expected a seed"]),
    ("sim --jobs 0", &["expected worlds at once (1 to 1024)"]),
    ("sim --bugs --rounds 0", &["expected rounds (1 to 1000)"]),
    ("sim --drivers --seed x", &["expected a seed"]),
    ("sim --drivers --seeds 0", &["expected worlds"]),
    ("sim --drivers --jobs 0", &["expected worlds at once (1 to 1024)"]),
    ("sim --drivers --defects --rounds 0", &["expected rounds (1 to 1000)"]),
    ("sim --model --machines 1", &["expected machines (2 to 8)"]),
    ("sim --model --terms x", &["expected terms (2 to 20)"]),
    ("sim --model --epochs 0", &["expected epochs (1 to 20)"]),
    ("sim --model --links 21", &["expected connections (1 to 20)"]),
    ("sim --mutants --every 0", &["expected a step (1 to 100000)"]),
    ("sim --mutants --seeds x", &["expected worlds"]),
    ("sim --mutants --sample 0", &["expected mutants (1 to 100000)"]),
    ("sim --mutants --sample 5 --seed x", &["expected a seed"]),
    ("sim --mutants --jobs 0", &["expected mutants at once (1 to 1024)"]),
    ("faults --sample 0", &["expected faults (1 to 100000)"]),
    ("faults --seed x", &["expected a seed"]),
    ("faults --jobs 0", &["expected pairs at once (1 to 1024)"]),
    ("fuzz --minutes x", &["expected minutes (1 to 10080)"]),
    ("fuzz --seed 4294967296", &["expected a seed (0 to 4294967295)"]),
    ("bench compare @report.json @report.json --tolerance x", &["expected a percentage"]),
    ("bench compare @report.json @report.json --tolerance -1", &["expected a percentage"]),
];

const WORDS: &[Case] = &[
    ("run-pair --kill thunder", &["--kill: expected primary, standby", "found `thunder`", "all"]),
    ("run-pair --kill corrupt", &["--kill corrupt", "add --loopback"]),
    ("run-pair --kill primary,throttle", &["--kill throttle", "add --loopback"]),
    ("run-pair --kill ", &["--kill"]),
    ("run-pair --net-model e1000", &["--net-model e1000", "add --guest linux"]),
    ("run-pair --guest linux --device pager", &["--device", "remove --guest linux"]),
    ("run-pair --guest linux --lab --interactive", &["--lab", "no --interactive"]),
    ("run-pair --device nix", &["--device: expected one of beeper", "found `nix`", "new-device"]),
    ("run-pair --device beeper,console=none", &["--device: expected one of beeper"]),
    ("run-pair --cpus 5", &["--cpus 5", "1 to 4", "micro-guest", "--guest linux"]),
    ("run-pair --cpus 99", &["--cpus 99", "1 to 4"]),
    ("run-pair --memory 16777216", &["--memory 16777216", "this host has"]),
    ("run-pair -- --x", &["flags for kemari", "--ack-timeout", "found `--x`"]),
    ("run-pair -- x", &["found `x`"]),
    ("run-pair -- --ack-timeout", &["`--ack-timeout`", "found none"]),
    ("run-pair -- --ack-timeout 5s", &["`--ack-timeout`", "1 to 3600000", "found `5s`"]),
    ("run-pair -- --stall-timeout=100", &["5000 to 3600000"]),
    ("run-pair -- --seccomp=perhaps", &["on, log, off", "`perhaps`"]),
    ("run-pair -- --serial none", &["`--serial`", "run-pair sets it"]),
    ("run-pair --guest linux -- --x", &["found `--x`"]),
    ("run-pair --interactive", &["--interactive", "expected a terminal"]),
    ("run-pair --guest linux --interactive", &["--interactive", "expected a terminal"]),
    ("run-pair --json @notes", &["--json", "it is left alone"]),
    ("run-pair --json @none/report.json", &["--json", "found no directory"]),
    ("run-pair --kemari @none", &["--kemari: expected a program"]),
    ("run-pair --guest windows", &["--guest", "micro, linux"]),
    ("run-pair --kill deleted-tap --loopback", &["--kill deleted-tap", "remove --loopback"]),
    ("run-pair --kill deleted-tap,slow-network", &["--kill deleted-tap,slow-network", "a socket"]),
    ("run-pair --kill slow-arbiter --arbiter etcd", &["--kill slow-arbiter", "remove --arbiter"]),
    ("run-pair --kill two-arbiters --arbiter etcd", &["--kill two-arbiters", "a directory"]),
    ("run-pair --kill reset --guest linux", &["--kill reset", "remove --guest linux"]),
    ("torture --fault thunder", &["--fault: expected primary, standby", "found `thunder`"]),
    ("torture --tls --plain", &["--tls", "--plain"]),
    ("torture --json @notes", &["--json", "it is left alone"]),
    ("torture --kemari @none", &["--kemari: expected a program"]),
    ("sim --speed 5", &["--speed"]),
    ("sim --seed 1 --seeds 2", &["--seed", "--seeds"]),
    ("sim --only x", &["--bugs"]),
    ("sim --model --seed 1", &["--seed"]),
    ("sim --mutants --bugs", &["--bugs"]),
    ("sim --bugs --seeds 5", &["--bugs", "--seeds"]),
    ("sim --bugs --until-broken", &["--bugs", "--until-broken"]),
    ("sim --drivers --story thunder", &["--story", "old-session", "thunder"]),
    ("sim --drivers --bugs", &["--bugs"]),
    ("sim --drivers --only x", &["--defects"]),
    ("sim --drivers --every-kind --seed 5", &["--every-kind", "--seed"]),
    ("sim --drivers --defects --seeds 5", &["--defects", "--seeds"]),
    (
        "sim --drivers --defects --only thunder",
        &["no defect's name contains this text", "old-session"],
    ),
    ("faults --call thunder", &["--call: expected a system call", "found `thunder`"]),
    ("faults --results @notes", &["--results", "it is left alone"]),
    ("faults --results @none/results", &["--results", "found no directory"]),
    ("faults --table @notes", &["--table", "it is left alone"]),
    ("faults --table @none/table.md", &["--table", "found no directory"]),
    ("faults --only thunder", &["--only", "device", "thunder"]),
    ("faults --fault thunder", &["--fault", "error, short, delay, hang"]),
    ("faults --cells @none", &["--cells", "cannot read", "none"]),
    ("faults --cells @fifo", &["--cells", "expected a regular file"]),
    ("faults --cells @notes --sample 3", &["--cells", "--sample"]),
    ("faults --kemari @none", &["--kemari: expected a program"]),
    ("bench --only thunder", &["--only: expected checkpoint", "or peers", "found `thunder`"]),
    ("bench --only peers,thunder", &["found `thunder`"]),
    ("bench --json @notes", &["--json", "it is left alone"]),
    ("bench --plots @notes", &["--plots: expected a directory"]),
    ("bench --kemari @none", &["--kemari: expected a program"]),
    ("bench compare @none @report.json", &["cannot read", "none"]),
    ("bench show @notes", &["expected a report"]),
    ("bench show @fifo", &["cannot read", "fifo", "expected a regular file"]),
    ("bench show /dev/zero", &["cannot read /dev/zero", "expected a regular file"]),
    ("bench show @dir", &["dir", "expected a regular file"]),
    ("gate --allow @fifo", &["fifo", "expected a regular file"]),
    ("fuzz --target wire --replay @fifo", &["--replay: expected a file"]),
    ("run-pair --kemari @fifo", &["--kemari: expected a program"]),
    ("run-pair --json @dir", &["--json", "it is left alone"]),
    ("fuzz --target thunder", &["--target: expected one of wire, ", "found `thunder`"]),
    ("fuzz --target wire --replay @none", &["--replay: expected a file"]),
    ("fuzz --target wire --target pages --replay @notes", &["one --target, found 2: wire, pages"]),
    ("fuzz --replay @notes", &["--target"]),
    ("new-device Pager --kind mmio", &["snake case", "found `Pager`"]),
    ("new-device ../pager --kind mmio", &["snake case"]),
    ("new-device pager", &["--kind"]),
    ("new-device pager --kind pci", &["mmio, virtio"]),
    ("test nothing-has-this-name", &["no step's name contains this text", "the steps are: "]),
    ("gate --layer thunder", &["--layer", "types"]),
    ("gate --sarif @notes", &["--sarif", "it is left alone"]),
    (
        "gate --self-test --attack thunder",
        &["--attack", "xtask/gate-check/attacks", "found `thunder`"],
    ),
    ("gate --attack x", &["--self-test"]),
    ("certs @certs", &["--host"]),
    ("certs @certs --host ..", &["`..`", "name or the address of a host"]),
    ("certs @certs --host .", &["`.`", "name or the address of a host"]),
    ("certs @certs --host ", &["``", "name or the address of a host"]),
    ("certs @certs --host /tmp/abs", &["`/tmp/abs`", "name or the address of a host"]),
    ("certs @certs --host a --host ../b", &["`../b`", "name or the address of a host"]),
    ("certs @certs --host a,../b", &["`../b`", "name or the address of a host"]),
    ("certs @certs --host a,", &["``", "name or the address of a host"]),
    ("certs @certs --host a b", &["name or the address of a host"]),
    ("certs @certs --host a:b", &["`a:b`", "name or the address of a host"]),
    ("certs @certs --host -a", &["-a"]),
    ("certs @certs --host a --host a,b", &["`a`", "found it twice"]),
    ("certs @certs --host 1.2.3", &["`1.2.3`", "name or the address of a host"]),
    ("certs @certs --host 1.2.3.4.5", &["`1.2.3.4.5`", "name or the address of a host"]),
    ("certs @certs --host 256.1.1.1", &["`256.1.1.1`", "name or the address of a host"]),
    ("certs @certs --host 7", &["`7`", "name or the address of a host"]),
    ("certs @certs --host a-", &["`a-`", "name or the address of a host"]),
    ("certs @certs --host A --host a", &["`a`", "found it twice"]),
    ("certs @certs --host ::1 --host 0:0:0:0:0:0:0:1", &["found it twice"]),
    ("certs @notes --host a", &["notes/a", "Not a directory"]),
    ("certs /dev/null --host a", &["/dev/null/a", "Not a directory"]),
    ("certs @fifo --host a", &["fifo/a", "Not a directory"]),
    ("certs @ --host a --host dir", &["dir", "remove it, or choose another"]),
];

/// A directory with the files that the cases name, and a stand-in for `cargo` that records each
/// call.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("notes"), "notes").unwrap();
    fs::write(at("report.json"), "{}").unwrap();
    fs::create_dir(at("dir")).unwrap();
    let permissions = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), permissions).unwrap();
    let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexit 1\n", at("built").display());
    fs::write(at("cargo"), script).unwrap();
    fs::set_permissions(at("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn xtask(place: &Path, line: &str) -> Output {
    let at = format!("{}/", place.display());
    // A value that is empty or contains a space stands at the end of its line.
    let (words, last) = match line.split_once("--host ") {
        Some((words, last)) if !last.contains(" --") => {
            (words, vec!["--host".to_owned(), last.to_owned()])
        }
        _ => (line, Vec::new()),
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(words.trim_end().split(' ').map(|word| word.replace('@', &at)));
    if words.ends_with("--kill ") {
        command.arg("");
    }
    command.args(last).env("CARGO", place.join("cargo")).stdin(Stdio::null());
    command.output().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn all_are_refused(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (line, expected) in cases {
        let place = place();
        let before = names(place.path());
        let output = xtask(place.path(), line);
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            wrong.push(format!("`{line}` is taken"));
        }
        for words in *expected {
            if !said.contains(words) {
                wrong.push(format!("`{line}`: expected `{words}`, found: {said}"));
            }
        }
        if said.contains("invalid digit") || said.contains("panicked") {
            wrong.push(format!("`{line}`: {said}"));
        }
        let after = names(place.path());
        if after != before {
            wrong.push(format!("`{line}`: expected {before:?}, found {after:?}"));
        }
        if fs::read_to_string(place.path().join("notes")).unwrap() != "notes" {
            wrong.push(format!("`{line}` writes over notes"));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_number_that_is_none_is_refused_with_what_was_expected() {
    all_are_refused(NUMBERS);
}

#[test]
fn a_word_that_cannot_be_is_refused_before_anything_is_built_or_written() {
    all_are_refused(WORDS);
}

/// Fails if the stand-in for cargo is not called: then the other tests would prove nothing.
#[test]
fn a_good_command_line_is_built_for() {
    for line in ["sim --seeds 5", "sim --model", "sim --mutants --list", "fuzz --target wire"] {
        let place = place();
        xtask(place.path(), line);
        assert!(place.path().join("built").exists(), "`{line}` built nothing");
    }
}

#[test]
fn help_needs_no_build() {
    for line in [
        "sim --help",
        "sim --model --help",
        "sim --mutants --help",
        "sim --drivers --help",
        "faults --help",
        "torture --list",
        "test --help",
    ] {
        let place = place();
        let output = xtask(place.path(), line);
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {output:?}");
        assert!(!place.path().join("built").exists(), "`{line}` built something");
    }
}

/// The help of `sim` names all simulations.
#[test]
fn the_help_of_sim_names_what_else_it_runs() {
    let place = place();
    let help = String::from_utf8(xtask(place.path(), "sim --help").stdout).unwrap();
    for flag in ["--bugs", "--drivers", "--defects", "--mutants", "--model"] {
        assert!(help.contains(flag), "no {flag} in {help}");
    }
}

/// The help of `test` names all steps.
#[test]
fn the_help_of_test_has_every_step_on_a_line() {
    let place = place();
    let help = xtask(place.path(), "test --help").stdout;
    let help = String::from_utf8(help).unwrap();
    let refusal = xtask(place.path(), "test nothing-has-this-name").stderr;
    let refusal = String::from_utf8(refusal).unwrap();
    let (_, steps) = refusal.trim_end().split_once("the steps are: ").unwrap();
    assert!(steps.split("; ").count() > 10, "{steps}");
    for step in steps.split("; ") {
        let is_its_line =
            |line: &str| line.strip_prefix("  ").is_some_and(|line| line.starts_with(step));
        assert!(help.lines().any(is_its_line), "no `{step}` in {help}");
    }
}

#[test]
fn credentials_are_written_into_a_directory_for_each_host() {
    let place = place();
    let output = xtask(place.path(), "certs @certs --host a.example,192.0.2.1 --host fe80::1");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(&place.path().join("certs")), ["a.example", "fe80::1"]);
    assert_eq!(names(&place.path().join("certs/fe80::1")), ["ca.pem", "cert.pem", "key.pem"]);
}
