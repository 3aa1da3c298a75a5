//! Mistakes of an operator, one line each. The program refuses at the start, with exit code 2. Its
//! error says what happened, what was expected and found, and what to do. No file is lost or left
//! behind.
//!
//! `@` is a directory with the files that `Place::new` creates.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../micro/mod.rs"]
mod micro;
mod other_cases;
mod place;
mod run_cases;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use micro::KEMARI;
use other_cases::{OTHERS, STANDBY};
use place::Place;
use run_cases::{ADDRESSES, FILES, LISTS, NUMBERS, TOGETHER};

/// A command line, and the texts that its error must contain.
type Case = (&'static str, &'static [&'static str]);

fn kemari(words: impl IntoIterator<Item = impl Into<OsString>>) -> Command {
    let mut command = Command::new(KEMARI);
    command.args(words.into_iter().map(Into::into)).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The flags of a valid machine; a case's own flags replace them.
fn run(place: &Place, line: &str) -> Command {
    let mut words = vec!["run".to_owned()];
    for (flag, value) in
        [("--kernel", micro::image().to_str().unwrap()), ("--memory", "64"), ("--serial", "none")]
    {
        if !line.contains(flag) {
            words.extend([flag.to_owned(), value.to_owned()]);
        }
    }
    words.extend(place.words(line));
    kemari(words)
}

#[track_caller]
fn all(cases: &[Case], command: impl Fn(&Place, &str) -> Command) {
    let place = Place::new();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(line, expected)| {
            let judged = place.judge(command(&place, line), expected);
            judged.err().map(|error| format!("{line}\n    {error}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn numbers() {
    all(NUMBERS, run);
}

#[test]
fn lists_of_keys() {
    all(LISTS, run);
}

#[test]
fn addresses() {
    all(ADDRESSES, run);
}

#[test]
fn files() {
    all(FILES, run);
}

#[test]
fn what_does_not_go_together() {
    all(TOGETHER, run);
}

#[test]
fn standbys() {
    let standby = |place: &Place, line: &str| {
        let serial = if line.contains("--serial") { "" } else { " --serial none" };
        kemari(place.words(&format!("standby {line}{serial}")))
    };
    all(STANDBY, standby);
}

#[test]
fn other_commands() {
    all(OTHERS, |place, line| kemari(place.words(line)));
}

/// P9. Fails if, for any flag with a path, the program waits for a FIFO's writer or reads an
/// endless device without a bound.
#[test]
fn no_command_waits_for_a_path_that_leads_to_no_file() {
    const READ: &[&str] = &[
        "run --kernel @PATH --serial none --memory 64",
        "run --kernel @KERNEL --initrd @PATH --serial none --memory 64",
        "run --kernel @KERNEL --disk path=@PATH --serial none --memory 64",
        "run --kernel @KERNEL --arbiter file:@arbiter --disk path=@disk.img,fence=@PATH --serial none",
        "run --kernel @KERNEL --arbiter file:@PATH --serial none --memory 64",
        "run --kernel @KERNEL --arbiter etcd:127.0.0.1:1 --arbiter-user u --arbiter-password-file @PATH --serial none",
        "run --kernel @KERNEL --arbiter etcd:127.0.0.1:1 --arbiter-ca @PATH --serial none",
        "run --kernel @KERNEL --tls @PATH --serial none --memory 64",
        "run --kernel @KERNEL --pid-file @PATH --serial none --memory 64",
        "run --kernel @KERNEL --memory 64,file=@PATH,share=on --serial none",
        "run --kernel @KERNEL --audit @PATH --serial none --memory 64",
        "standby --listen unix:@link --kernel @PATH --serial none",
        "standby --listen unix:@PATH --serial none --disk path=@disk.img",
        "standby --listen unix:@link --tls @PATH --serial none",
        "standby --listen unix:@link --disk path=@PATH --serial none",
    ];
    let place = Place::new();
    let kernel = micro::image().display().to_string();
    let mut wrong = Vec::new();
    for line in READ {
        for kind in ["fifo", "directory", "socket", "endless.1.0"] {
            // These flags accept a directory, or replace an unused socket.
            let fits = match kind {
                "directory" => line.contains("file:@PATH") || line.contains("--tls"),
                "socket" => line.contains("unix:@PATH"),
                _ => false,
            };
            if fits {
                continue;
            }
            let path = place.dir.path().join(kind).display().to_string();
            let words = line.replace("@PATH", &path).replace("@KERNEL", &kernel);
            let judged = place.judge(kemari(place.words(&words)), &[kind]);
            wrong.extend(judged.err().map(|error| format!("{words}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The program cannot listen: the system has failed, not the command line.
#[test]
fn sockets_to_talk_to() {
    let place = Place::new();
    for (line, expected) in [
        ("@notes", &["--control", "expected a socket", "a regular file"][..]),
        ("@directory", &["expected a socket", "a directory"]),
        ("@fifo", &["expected a socket", "a FIFO"]),
        ("/dev/null", &["expected a socket", "a character device"]),
        ("@LONG", &["1 to 107 bytes"]),
        ("@nothing", &["nothing", "No such file", "--control"]),
        ("@socket", &["socket", "Connection refused", "--control"]),
    ] {
        let command = kemari(place.words(&format!("ctl --control {line} status")));
        let told = place.judge_as(1, command, expected);
        told.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn bytes_that_are_no_text() {
    let place = Place::new();
    for (flag, value) in
        [("--disk", &b"path=/\xff\xfe"[..]), ("--name", b"\xff"), ("--serial", b"file=\x80")]
    {
        let mut command = run(&place, flag);
        command.arg(flag).arg(OsString::from_vec(value.to_vec()));
        // `run` has added the flag without a value: remove that one.
        let mut words: Vec<OsString> = command.get_args().map(ToOwned::to_owned).collect();
        let at = words.iter().position(|word| word == flag).unwrap();
        words.remove(at);
        place.judge(kemari(words), &["expected UTF-8"]).unwrap();
    }
}

/// More devices than a machine has slots for.
#[test]
fn too_many() {
    let place = Place::new();
    let many = |flag: &str, count: usize| -> String {
        (0..count).map(|number| flag.replace('#', &number.to_string()) + " ").collect()
    };
    for (line, expected) in [
        (many("--net stream=@s#", 16), "15 windows"),
        (many("--net stream=@s#,model=e1000", 40), "PCI devices"),
        (many("--device beeper", 16), "15 windows"),
        (many("--net stream=@s#", 300), "15 windows"),
        ("--memory 16777216".to_owned(), "lower --memory"),
    ] {
        place.judge(run(&place, &line), &[expected]).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

/// Every command that prints to standard output runs with a closed pipe and with a full disk.
#[test]
fn standard_output_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (control, audit) = (at("control"), at("audit"));
    let mut guest = micro::Guest::boot_with(1, &["--control", &control, "--audit", &audit]);
    guest.ask(kemari_workload::Op::Ping);
    for line in [
        "--help".to_owned(),
        "help".to_owned(),
        "run --help".to_owned(),
        "--version".to_owned(),
        "probe".to_owned(),
        format!("ctl --control {control} status"),
        format!("ctl --control {control} reset-stats"),
        format!("audit show {audit}"),
        format!("audit verify {audit}"),
    ] {
        let start = |stdout: Stdio| {
            let mut command = kemari(line.split(' '));
            command.stdout(stdout).stderr(Stdio::piped()).output().unwrap()
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let closed = start(writer.into());
        let text = String::from_utf8_lossy(&closed.stderr).into_owned();
        assert!(text.is_empty(), "{line}: {text}");
        assert!(closed.status.code().is_some_and(|code| code != 101 && code != 134), "{line}");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let full = start(full.into());
        let text = String::from_utf8_lossy(&full.stderr).into_owned();
        assert!(text.contains("No space left") && text.lines().count() == 1, "{line}: {text}");
        assert_eq!(full.status.code(), Some(1), "{line}");
    }
    // The error itself cannot be printed either.
    for line in
        ["run", "run --memory 1G", "ctl --control /nowhere status", "audit verify /nowhere/x"]
    {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let code = kemari(line.split(' ')).stderr(full).status().unwrap().code();
        assert!(matches!(code, Some(1 | 2)), "{line}: {code:?}");
    }
}
