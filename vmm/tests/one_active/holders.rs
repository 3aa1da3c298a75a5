//! What a machine holds keeps other machines from its disk, and nothing else does.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use kemari_testbed::pair::status::control;
use kemari_testbed::process::Process;
use rustix::process::Signal;

use super::micro::{self, KEMARI, PATIENCE};
use super::{Bench, refused};

/// P2: a killed machine leaves the disk marked; an orderly end frees it.
#[test]
fn p2_a_plain_run_does_not_start_on_the_disk_of_a_machine_that_may_run_elsewhere() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let mut machine = bench.run("machine", &[&arbiter]);
    bench.wait_state(&machine, "alone");
    // The start is refused while the machine runs, and after it was killed: its standby may take
    // over.
    for alive in [true, false] {
        if !alive {
            machine.kill();
        }
        let (code, said) = refused(bench.run("plain", &[]));
        assert_eq!(code, 2, "{said}");
        for part in ["disk.img.kemari-fence", "term 1, held by primary@", "--seize"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(said.contains(&format!("pid {}", machine.pid())), "{said}");
    }
    let mut seized = bench.run("seized", &["--seize"]);
    bench.wait_state(&seized, "alone");
    // A pair does not start on the disk of a running machine without an arbiter either.
    let (code, said) = refused(bench.run("again", &[&arbiter, "--seize"]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("another process uses it"), "{said}");
    seized.signal(Signal::TERM);
    seized.wait_exit(PATIENCE).unwrap();
    let mut again = bench.run("again", &[&arbiter, "--seize"]);
    bench.wait_state(&again, "alone");
    again.signal(Signal::TERM);
    again.wait_exit(PATIENCE).unwrap();
    let plain = bench.run("plain", &[]);
    bench.wait_state(&plain, "alone");
}

/// P2, P3. Fails if a disk or a network of a device by name lacks a protection of `--disk` and
/// `--net`: the fence record, the mark that shows both sides the same disk, the backends of a
/// successor.
#[test]
fn p2_a_disk_of_a_device_by_name_is_guarded_as_any_other() {
    let bench = Bench::new();
    fs::File::create(bench.path("second.img")).unwrap().set_len(1 << 20).unwrap();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let devices = [
        bench.spelled("--device=", "beeper,disk=path=", "second.img"),
        bench.spelled("--device=", "beeper,stream=", "nobody-either"),
    ];
    let link = bench.spelled("", "unix:", "link");
    let with = |flags: &[&str]| {
        let devices = devices.iter().map(String::as_str);
        flags.iter().copied().chain(devices).chain([arbiter.as_str()]).map(str::to_owned).collect()
    };
    let flags: Vec<String> = with(&["standby", &format!("--listen={link}")]);
    let standby = bench.side("standby", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    standby.wait_line("listening on", PATIENCE).unwrap();
    let flags: Vec<String> = with(&[&format!("--standby={link}")]);
    let mut primary = bench.run("primary", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    bench.wait_state(&primary, "protected");
    assert!(bench.path("second.img.kemari-fence").exists());
    assert!(bench.path("second.img.kemari-mark").exists());
    primary.kill();
    bench.wait_state(&standby, "alone");
    let disk = bench.spelled("--disk=", "path=", "second.img");
    let (code, said) = refused(bench.run("plain", &[&disk]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("second.img.kemari-fence"), "{said}");
}

/// P2: the start of the other side fails for another reason. It releases what it has taken, and an
/// error that names a holder names a running one.
#[test]
fn a_start_that_fails_leaves_no_holder_behind() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let pid_file = "--pid-file=/nowhere/pid";
    for flag in [pid_file, "--virtio-console=file=/nowhere/console"] {
        let mut command = Command::new(KEMARI);
        let kernel = format!("--kernel={}", micro::image().display());
        command.args(["run", "--memory=64", "--serial=none", &kernel, &arbiter, flag]);
        command.arg(bench.spelled("--disk=", "path=", "disk.img")).stdin(Stdio::null());
        let side = Process::start("failing", command, &bench.path("failing.log")).unwrap();
        let (code, said) = refused(side);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("/nowhere/"), "{said}");
    }
    let machine = bench.run("machine", &[&arbiter]);
    bench.wait_state(&machine, "alone");
}

/// P2, P7: the former side is stopped and keeps its locks. The standby takes over nevertheless, and
/// the former side ends when it continues.
#[test]
fn p2_a_stopped_side_that_keeps_its_locks_holds_no_takeover_up() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let listen = bench.spelled("", "unix:", "link");
    let standby = bench.side("standby", &["standby", &arbiter, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let mut primary = bench.run("primary", &[&arbiter, &format!("--standby={listen}")]);
    bench.wait_state(&primary, "protected");
    primary.signal(Signal::STOP);
    standby.wait_line("took over in term 2", PATIENCE).unwrap();
    bench.wait_state(&standby, "alone");
    let (code, said) = refused(bench.run("plain", &[]));
    assert_eq!(code, 2, "{said}");
    primary.signal(Signal::CONT);
    let status = primary.wait_exit(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(3), "{}", primary.lines().join("\n"));
}

/// P2: without an arbiter, a standby prevents other machines from using its disks, even while no
/// side runs the guest.
#[test]
fn p2_a_standby_that_waits_for_its_operator_keeps_others_from_its_disk() {
    let bench = Bench::new();
    let listen = bench.spelled("", "unix:", "link");
    let standby = bench.side("standby", &["standby", &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let mut primary = bench.run("primary", &[&format!("--standby={listen}")]);
    bench.wait_state(&primary, "protected");
    let (code, said) = refused(bench.run("plain", &[]));
    assert_eq!(code, 2, "{said}");
    primary.kill();
    bench.wait_state(&standby, "waiting-for-operator");
    let (code, said) = refused(bench.run("plain", &[]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("another process uses it"), "{said}");
    bench.control(&standby, &["take-over"]);
    bench.wait_state(&standby, "alone");
}

/// With `--require-protected`, a primary waits for a standby that does not listen yet, for any kind
/// of address: an unreachable standby has refused nothing.
#[test]
fn a_primary_with_require_protected_waits_for_a_standby_that_is_not_there_yet() {
    let bench = Bench::new();
    fs::create_dir(bench.path("refuses")).unwrap();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let listen = bench.spelled("", "unix:", "refuses/link");
    let flags = [&arbiter, &format!("--standby={listen}"), "--require-protected=60000"];
    let primary = bench.run("primary", &flags);
    primary.wait_line("no standby", PATIENCE).unwrap();
    let listens = format!("--listen={listen}");
    let standby = bench.side("standby", &["standby", &arbiter, &listens]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    bench.wait_state(&primary, "protected");
}

/// P7: an operator's decision does not replace a missing resource.
#[test]
fn p7_a_standby_that_lacks_its_disk_does_not_take_over_for_its_operator() {
    let bench = Bench::new();
    let (link, away) = (bench.path("link.img"), bench.path("away.img"));
    std::os::unix::fs::symlink(bench.path("disk.img"), &link).unwrap();
    let (disk, listen) =
        (bench.spelled("--disk=", "path=", "link.img"), bench.spelled("", "unix:", "link"));
    // A killed side is noticed at once; with this timeout, a busy machine suspects neither side.
    let patient = "--heartbeat-timeout=10000";
    let listening = format!("--listen={listen}");
    let standby = bench.side("standby", &["standby", &disk, &listening, patient]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let mut primary = bench.run("primary", &[&format!("--standby={listen}"), patient]);
    bench.wait_state(&primary, "protected");
    primary.kill();
    bench.wait_state(&standby, "waiting-for-operator");
    fs::rename(&link, &away).unwrap();
    standby.wait_line("could not continue the guest", PATIENCE).unwrap();
    let socket = bench.path("standby.sock");
    let refusal = control(Path::new(KEMARI), &socket, &["take-over"]).unwrap_err();
    assert!(format!("{refusal:#}").contains("has all that the guest needs"), "{refusal:#}");
    assert_eq!(bench.status("standby").unwrap().state(), "waiting-for-operator");
    fs::rename(&away, &link).unwrap();
    standby.wait_line("nothing is missing any more", PATIENCE).unwrap();
    bench.control(&standby, &["take-over"]);
    bench.wait_state(&standby, "alone");
}
