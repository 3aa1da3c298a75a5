//! Errors of `kemari run`: one line that says what to do, exit code 2, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kemari_testbed::process::{Process, in_namespaces, tied_to_us};
use micro::{KEMARI, PATIENCE};

fn kemari(arguments: &[&str]) -> Command {
    let mut command = Command::new(KEMARI);
    command.args(arguments).stdin(Stdio::null()).env("RUST_LOG", "info");
    command
}

/// Runs `command` to its end, which must be an operator's error.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(stdout.is_empty(), "the guest has run");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// As [`refused`], for the program's own messages, which have one line.
#[track_caller]
fn refused_in_a_line(command: &mut Command, expected: &[&str]) {
    let text = refused(command);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("kemari: "), "{text}");
    for part in expected {
        assert!(text.contains(part), "expected `{part}` in: {text}");
    }
}

fn run(flags: &[&str]) -> Command {
    let mut command = kemari(&["run", "--serial", "none", "--memory", "64", "--kernel"]);
    command.arg(micro::image()).args(flags);
    command
}

fn run_kernel(kernel: &Path, flags: &[&str]) -> Command {
    let mut command = kemari(&["run", "--serial", "none", "--memory", "64", "--kernel"]);
    command.arg(kernel).args(flags);
    command
}

/// Runs `kemari run` in new mount and user namespaces, after a line of shell. `None` where they are
/// not permitted.
fn in_namespace(shell: &str, flags: &[&str]) -> Option<Command> {
    let mut command = in_namespaces(shell)?;
    command.arg(KEMARI);
    command
        .args(["run", "--serial", "none", "--memory", "64", "--kernel"])
        .arg(micro::image())
        .args(flags);
    command.stdin(Stdio::null());
    Some(command)
}

#[test]
fn no_kernel() {
    refused_in_a_line(&mut kemari(&["run", "--serial", "none"]), &["--kernel FILE"]);
}

#[test]
fn a_kernel_that_is_not_there() {
    refused_in_a_line(
        &mut run_kernel(Path::new("/nowhere/vmlinux"), &[]),
        &["/nowhere/vmlinux", "No such file", "--kernel"],
    );
}

#[test]
fn a_kernel_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    fs::write(&path, "no kernel at all, but long enough to be looked at\n".repeat(100)).unwrap();
    refused_in_a_line(&mut run_kernel(&path, &[]), &["not a kernel", "bzImage", "--kernel"]);
    fs::write(&path, "").unwrap();
    refused_in_a_line(&mut run_kernel(&path, &[]), &["--kernel"]);
    refused_in_a_line(&mut run_kernel(dir.path(), &[]), &["--kernel"]);
}

#[test]
fn an_initrd_that_is_not_there_or_too_large() {
    refused_in_a_line(&mut run(&["--initrd", "/nowhere/initrd"]), &["/nowhere/initrd", "--initrd"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("initrd");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    refused_in_a_line(&mut run(&["--initrd", path.to_str().unwrap()]), &["raise --memory"]);
}

#[test]
fn a_disk_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    let flag = format!("path={}", disk.display());
    refused_in_a_line(&mut run(&["--disk", &flag]), &["disk.img", "No such file", "--disk"]);
    fs::write(&disk, [0; 1000]).unwrap();
    refused_in_a_line(
        &mut run(&["--disk", &flag]),
        &["multiple of 512", "found 1000", "truncate -s %512"],
    );
    fs::write(&disk, []).unwrap();
    refused_in_a_line(&mut run(&["--disk", &flag]), &["at least 512 bytes"]);
    refused_in_a_line(
        &mut run(&["--disk", &format!("path={}", dir.path().display())]),
        &["--disk"],
    );
    refused_in_a_line(&mut run(&["--disk", &flag, "--disk", &flag]), &["given twice"]);
}

#[test]
fn a_disk_that_is_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    fs::write(&disk, [0; 4096]).unwrap();
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let flag = format!("path={}", disk.display());
    // Root may write despite the mode: use a read-only mount.
    let shell =
        format!("mount --bind {0} {0} && mount -o remount,bind,ro {0}", dir.path().display());
    let Some(mut command) = in_namespace(&shell, &["--disk", &flag]) else { return };
    refused_in_a_line(&mut command, &["cannot be written", ",readonly=on"]);
}

#[test]
fn a_disk_that_another_machine_uses() {
    let mut guest = micro::Guest::boot(1);
    guest.ask(kemari_workload::Op::Ping);
    let flag = format!("path={}", guest.dir.path().join("disk.img").display());
    refused_in_a_line(&mut run(&["--disk", &flag]), &["another process uses it"]);
    refused_in_a_line(
        &mut run(&["--disk", &format!("{flag},readonly=on")]),
        &["another process uses it"],
    );
}

#[test]
fn a_tap_that_cannot_be_had() {
    refused_in_a_line(
        &mut run(&["--net", "tap=kemari-none0"]),
        &["no such interface", "create=on"],
    );
    // Creating a tap needs a capability; drop it, because root has it.
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    }
    command.arg(KEMARI).args(["run", "--serial", "none", "--memory", "64", "--kernel"]);
    command.arg(micro::image()).args(["--net", "tap=kemari-none0,create=on"]).stdin(Stdio::null());
    refused_in_a_line(&mut command, &["tap=kemari-none0", "create it for this user"]);
}

#[test]
fn kvm_that_is_missing_or_forbidden() {
    if let Some(mut command) = in_namespace("mount -t tmpfs none /dev", &[]) {
        // The namespace's /dev is empty: even standard input comes from outside.
        refused_in_a_line(&mut command, &["/dev/kvm does not exist", "modprobe"]);
    }
    let shell = "mount -t tmpfs none /dev && mknod /dev/kvm c 10 232 2>/dev/null || : >/dev/kvm; chmod 0 /dev/kvm";
    let Some(mut command) = in_namespace(shell, &[]) else { return };
    let text = refused(&mut command);
    assert!(text.contains("/dev/kvm"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn more_memory_than_the_host_has() {
    let mut command = kemari(&["run", "--serial", "none", "--memory", "16777216", "--kernel"]);
    command.arg(micro::image());
    refused_in_a_line(&mut command, &["16384 GiB", "available", "lower --memory"]);
}

/// P9. Fails if the program finds a limit only by a failed allocation, which ends the process.
#[test]
fn less_memory_than_the_machine_needs_may_be_mapped() {
    for (limit, name) in [("-v", "RLIMIT_AS"), ("-d", "RLIMIT_DATA")] {
        // Enough for the guest's memory, but not for everything else.
        let shell = format!("ulimit {limit} 307200 && exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &shell, "sh", KEMARI, "run", "--serial", "none", "--memory", "300"]);
        command.arg("--kernel").arg(micro::image()).stdin(Stdio::null());
        let expected = [name, "1 times 300 MiB", "found 300 MiB", "lower --memory"];
        refused_in_a_line(&mut command, &expected);
    }
}

/// Fails if following the advice leads to other advice, or to a warning.
#[test]
fn the_limit_that_is_advised_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    for limit in ["-v", "-d"] {
        let console = dir.path().join(format!("console{limit}"));
        let with = |kibibytes: &str| {
            let mut command = tied_to_us(Path::new("sh"));
            let shell = format!("ulimit {limit} {kibibytes} && exec \"$@\"");
            command.args(["-c", &shell, "sh", KEMARI, "run", "--memory", "300"]);
            command.arg("--serial").arg(format!("file={}", console.display()));
            command.arg("--kernel").arg(micro::image()).stdin(Stdio::null());
            command
        };
        let said = refused(&mut with("307200"));
        let advice = said.split_once(&format!("`ulimit {limit} ")).unwrap().1;
        let advised = advice.split_once('`').unwrap().0;
        let mut process = Process::start("kemari", with(advised), &dir.path().join("log")).unwrap();
        let begun = Instant::now();
        while !fs::metadata(&console).is_ok_and(|console| console.len() > 0) {
            let lines = process.lines();
            assert!(process.exited().is_none() && begun.elapsed() < PATIENCE, "{lines:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = process.lines().join("\n");
        assert!(!said.contains("RLIMIT"), "{limit} {advised}: {said}");
    }
}

/// P7. Fails if a machine that can run is refused because of a resource that only its protection
/// may need.
#[test]
fn a_limit_that_is_enough_for_the_machine_alone_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let console = dir.path().join("console");
    let mut command = tied_to_us(Path::new("sh"));
    command.args(["-c", "ulimit -d 600000 && exec \"$@\"", "sh", KEMARI, "run", "--memory", "64"]);
    command.arg("--serial").arg(format!("file={}", console.display()));
    command.arg("--kernel").arg(micro::image()).stdin(Stdio::null());
    let mut process = Process::start("kemari", command, &dir.path().join("log")).unwrap();
    let warning = process.wait_line("limit on mapped memory is low", PATIENCE);
    assert!(warning.is_some_and(|line| line.contains("RLIMIT_DATA")), "{:?}", process.lines());
    let begun = Instant::now();
    while !fs::metadata(&console).is_ok_and(|console| console.len() > 0) {
        assert!(process.exited().is_none() && begun.elapsed() < PATIENCE, "{:?}", process.lines());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn values_that_make_no_sense() {
    for (flags, expected) in [
        (&["--cpus", "0"][..], "--cpus"),
        (&["--cpus", "255"], "--cpus"),
        (&["--disk", "disk.img"], "path=FILE"),
        (&["--disk", "path=a,readonly=perhaps"], "readonly=on"),
        (&["--net", "user"], "stream=SOCKETPATH"),
        (&["--net", "tap=t,mac=xx"], "MAC address"),
        (&["--net", "tap=t,mac=01:00:00:00:00:01"], "group address"),
        (&["--name", "a/b"], "letters"),
        (&["--standby", "nonsense"], "HOST:PORT"),
        (&["--arbiter", "oracle"], "file:DIRECTORY"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let text = refused(&mut run(flags));
        assert!(text.contains(expected), "{flags:?}: {text}");
    }
    for (flag, value, expected) in [
        ("--memory", "many", "--memory"),
        ("--memory", "0", "--memory"),
        ("--serial", "pty", "file=PATH"),
    ] {
        let text = refused(kemari(&["run", flag, value, "--kernel"]).arg(micro::image()));
        assert!(text.contains(expected), "{flag} {value}: {text}");
    }
}

#[test]
fn what_no_single_flag_can_tell() {
    let stdio = ["--serial", "stdio", "--virtio-console", "stdio"];
    let mut command = kemari(&["run", "--memory", "64", "--kernel"]);
    command.arg(micro::image()).args(stdio);
    refused_in_a_line(&mut command, &["one standard input"]);
    let nets =
        ["--net", "stream=/a,mac=52:54:00:00:00:01", "--net", "stream=/b,mac=52:54:00:00:00:01"];
    refused_in_a_line(&mut run(&nets), &["two networks have it"]);
    let many: Vec<String> =
        (0..18).flat_map(|i| ["--net".to_owned(), format!("stream=/s{i}")]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused_in_a_line(&mut run(&many), &["18 devices", "15 windows"]);
}

#[test]
fn places_that_cannot_be_written() {
    refused_in_a_line(&mut run(&["--pid-file", "/nowhere/pid"]), &["/nowhere/pid"]);
    let mut command =
        kemari(&["run", "--memory", "64", "--serial", "file=/nowhere/log", "--kernel"]);
    command.arg(micro::image());
    refused_in_a_line(&mut command, &["/nowhere/log"]);
    refused_in_a_line(
        &mut run(&["--net", "dgram=/nowhere/a:/nowhere/b"]),
        &["/nowhere/a", "--net"],
    );
}

#[test]
fn a_command_line_that_is_too_long() {
    let long = "x".repeat(4096);
    refused_in_a_line(&mut run(&["--cmdline", &long]), &["4096 bytes", "--cmdline"]);
}

/// P9: with any limit of descriptors, the program names the limit and the required number, before
/// or while it runs.
#[test]
fn too_few_descriptors_are_said_with_the_limit_and_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    // Below this limit, the loader cannot load the program.
    let (mut limit, mut is_refused) = (12, false);
    loop {
        let mut command = tied_to_us(Path::new("sh"));
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh", KEMARI]);
        command.args(["run", "--serial", "none", "--memory", "64", "--kernel"]).arg(micro::image());
        command.stdin(Stdio::null());
        let mut process = Process::start("kemari", command, &dir.path().join("log")).unwrap();
        let runs = process.wait_line("may stay unprotected", PATIENCE);
        // The loader has failed: descriptors that the test runner has left open count as well.
        if runs.is_none()
            && process.wait_exit(PATIENCE).is_some_and(|ended| ended.code() == Some(127))
        {
            limit += 2;
            assert!(limit < 100, "{:?}", process.lines());
            continue;
        }
        is_refused |= runs.is_none();
        let said = process.lines().join("\n");
        assert!(said.contains("open files"), "with {limit}: {said}");
        assert!(said.contains("`ulimit -Hn`") && said.contains("LimitNOFILE="), "{said}");
        if let Some(line) = runs {
            assert!(line.contains("free descriptors"), "{line}");
            break;
        }
        let ended = process.wait_exit(PATIENCE).unwrap();
        assert!(matches!(ended.code(), Some(1 | 2)), "with {limit}: {ended}: {said}");
        assert!(said.contains(&format!("may have {limit} open files")), "{said}");
        limit += 2;
        assert!(limit < 100, "{said}");
    }
    assert!(is_refused, "it has run with {limit} descriptors");
}
