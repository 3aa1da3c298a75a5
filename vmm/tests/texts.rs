//! Every command and flag exists that a message, a help text or a document names.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use kemari_flags::kemari::{HANDED_ON, OF_RUN_PAIR, Value};
use kemari_vmm::cli::Cli;

/// Flags of other programs in our texts.
const OF_OTHERS: &[&str] = &[
    // losetup.
    "--detach",
    "--find",
    "--show",
    // cargo and its xtask.
    "--all-targets",
    "--audit-dir",
    "--bin",
    "--features",
    "--manifest-path",
    "--no-default-features",
    "--package",
    "--release",
    "--self-test",
    "--target",
    "--workspace",
    "--bench",
    "--example",
    // xtask's commands.
    "--cpus",
    "--failovers",
    "--guest",
    "--interactive",
    "--json",
    "--kill",
    "--rounds",
    "--seed",
    "--seeds",
    // etcdctl, qemu, systemd, mount tools.
    "--client-cert-auth",
    "--prefix",
    "--property",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(under: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
}

/// The texts that users read: documents, and sources for their messages and help.
fn texts(places: &[(&str, &str)]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for (place, ending) in places {
        let path = root().join(place);
        if path.is_dir() {
            files(&path, ending, &mut found);
        } else {
            found.push(path);
        }
    }
    assert!(found.len() > places.len(), "{found:?}");
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

fn product() -> Vec<(PathBuf, String)> {
    texts(&[("vmm/src", ".rs"), ("ft-core/src", ".rs"), ("io-gate/host/src", ".rs")])
}

fn everything() -> Vec<(PathBuf, String)> {
    let mut all = product();
    all.extend(texts(&[("docs", ".md"), ("README.md", ""), ("CONTRIBUTING.md", "")]));
    all
}

fn names(command: &Command) -> BTreeSet<String> {
    command.get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

fn flags(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_long());
    let mut all: BTreeSet<String> = own.map(|flag| format!("--{flag}")).collect();
    all.extend(["--help".to_owned(), "--version".to_owned()]);
    all.extend(command.get_subcommands().flat_map(flags));
    all
}

/// A word without the punctuation around it.
fn bare(word: &str) -> &str {
    let word = word.split(['=', '\\', '[', '(']).next().unwrap_or_default();
    word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-').trim_end_matches('-')
}

/// The command lines in a text: those in backquotes, and those on their own line.
fn command_lines(text: &str) -> Vec<String> {
    let quoted = text.split('`').skip(1).step_by(2).filter(|quoted| !quoted.contains('\n'));
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.trim().trim_start_matches("$ ").to_owned());
    let all = quoted.map(str::to_owned).chain(lines);
    all.filter(|line| line.starts_with("kemari ")).collect()
}

/// What is wrong with the names in a command line, if anything.
fn wrong(line: &str, cli: &Command) -> Option<String> {
    let mut command = cli;
    let mut words = line.split_whitespace().skip(1).peekable();
    while let Some(word) = words.next() {
        if word.starts_with("--") {
            let flag = bare(word);
            let argument = command.get_arguments().find(|argument| {
                argument.get_long().is_some_and(|long| format!("--{long}") == flag)
            });
            let known = argument.is_some() || ["--help", "--version"].contains(&flag);
            if !known {
                return Some(format!("`{line}`: {} has no {flag}", command.get_name()));
            }
            let takes = argument.is_some_and(|argument| argument.get_action().takes_values());
            if takes && !word.contains('=') {
                words.next();
            }
            continue;
        }
        let name = bare(word);
        let is_name = word.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if command.has_subcommands() && is_name {
            match command.find_subcommand(name) {
                Some(found) => command = found,
                None => return Some(format!("`{line}`: {} has no {name}", command.get_name())),
            }
        }
    }
    None
}

#[test]
fn every_command_line_in_a_text_can_be_given() {
    let cli = Cli::command();
    let (mut seen, mut mistakes) = (0, Vec::new());
    for (path, text) in everything() {
        for line in command_lines(&text) {
            // A sentence that begins with the program's name is not a command line.
            let first = line.split_whitespace().nth(1).unwrap_or_default();
            if first.starts_with('-') || names(&cli).contains(bare(first)) || line.len() < 30 {
                seen += 1;
                mistakes
                    .extend(wrong(&line, &cli).map(|what| format!("{}: {what}", path.display())));
            }
        }
    }
    assert!(seen > 20, "{seen}");
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

/// The check itself must be able to fail.
#[test]
fn mistakes_are_found() {
    let cli = Cli::command();
    for line in [
        "kemari start",
        "kemari ctl --control /run/web.sock drop",
        "kemari ctl --sock /run/web.sock status",
        "kemari run --kernel vmlinux --no-such-flag",
        "kemari audit check FILE",
    ] {
        assert_eq!(command_lines(&format!("do `{line}` now")), [line]);
        assert!(wrong(line, &cli).is_some(), "{line}");
    }
    let right = "kemari ctl --control=/run/web.sock --timeout 5 protect host:7000";
    assert_eq!(wrong(right, &cli), None);
}

/// An operator can run every command that the protocol's state machines name.
#[test]
fn every_command_that_the_core_names_exists() {
    let cli = Cli::command();
    let ctl = names(cli.find_subcommand("ctl").unwrap());
    let mut seen = BTreeSet::new();
    for (path, text) in texts(&[("ft-core/src/primary", ".rs"), ("ft-core/src/standby", ".rs")]) {
        let in_tests = path.parent().is_some_and(|folder| folder.ends_with("tests"));
        if in_tests || path.ends_with("tests.rs") {
            continue;
        }
        // Messages are string literals; a command in a message is in backquotes.
        for literal in text.split('"').skip(1).step_by(2) {
            for word in literal.split('`').skip(1).step_by(2) {
                let plain = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
                if plain && !word.is_empty() {
                    assert!(
                        ctl.contains(word),
                        "{}: `{word}` is no command of ctl",
                        path.display()
                    );
                    seen.insert(word.to_owned());
                }
            }
        }
    }
    for command in ["run-alone", "take-over", "discard"] {
        assert!(seen.contains(command), "{seen:?}");
    }
}

/// Fails if `cargo xtask run-pair -- FLAGS` refuses a flag of both sides, or accepts one that both
/// refuse.
#[test]
fn the_flags_that_run_pair_hands_on_are_those_of_both_sides() {
    let cli = Cli::command();
    let [run, standby] = ["run", "standby"].map(|name| cli.find_subcommand(name).unwrap());
    // A standby has these flags only to refuse them, and this program has no devices of these
    // kinds.
    let of_none = ["memory", "vfio", "vdpa", "pmem", "ioeventfd", "irqfd"];
    let both: BTreeSet<&str> = run
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .filter(|long| standby.get_arguments().any(|other| other.get_long() == Some(*long)))
        .filter(|long| *long != "help" && !of_none.contains(long))
        .collect();
    let listed = HANDED_ON.iter().map(|(name, _)| *name).chain(OF_RUN_PAIR.iter().copied());
    let listed: BTreeSet<&str> = listed.filter(|name| !of_none.contains(name)).collect();
    assert_eq!(both, listed);

    let takes = |flag: &str| {
        let line = ["kemari", "standby", "--listen", "unix:/link", flag];
        <Cli as clap::Parser>::try_parse_from(line).is_ok()
    };
    for (name, value) in HANDED_ON {
        let argument = standby.get_arguments().find(|it| it.get_long() == Some(name)).unwrap();
        assert!(argument.get_action().takes_values(), "{name}");
        match value {
            Value::Number(range) => {
                let (least, most) = (*range.start(), *range.end());
                for number in [least, most] {
                    assert!(takes(&format!("--{name}={number}")), "{name} {number}");
                }
                for number in [least.checked_sub(1), most.checked_add(1)].into_iter().flatten() {
                    assert!(!takes(&format!("--{name}={number}")), "{name} {number}");
                }
            }
            Value::Word(words) => {
                let known: Vec<String> = argument
                    .get_possible_values()
                    .iter()
                    .map(|value| value.get_name().to_owned())
                    .collect();
                assert_eq!(known, *words, "{name}");
            }
            Value::Text => {}
        }
    }
}

#[test]
fn every_flag_in_a_message_exists() {
    let known = flags(&Cli::command());
    let mut mistakes = BTreeSet::new();
    for (path, text) in product() {
        for (number, line) in text.lines().enumerate() {
            for word in line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
                let flag = word.strip_prefix("--").filter(|rest| {
                    rest.starts_with(|c: char| c.is_ascii_lowercase()) && !rest.contains("--")
                });
                let Some(flag) = flag.map(|flag| format!("--{}", flag.trim_end_matches('-')))
                else {
                    continue;
                };
                if !known.contains(&flag) && !OF_OTHERS.contains(&flag.as_str()) {
                    mistakes.insert(format!("{}:{}: {flag}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(mistakes.is_empty(), "\n{}", mistakes.into_iter().collect::<Vec<_>>().join("\n"));
}
