//! P2 in unusual cases: an arbiter that is not the same for both sides, or whose data went back,
//! never leads to two machines that both act. Real processes, one image, one directory.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kemari_testbed::network::Relay;
use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::ports::free_address;
use kemari_testbed::process::{Process, in_namespaces};
use micro::{KEMARI, PATIENCE};
use rustix::process::Signal;

/// The directory of a test, with the machine's disk and the sides' files.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("disk.img")).unwrap().set_len(16 << 20).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spelled(&self, flag: &str, before: &str, name: &str) -> String {
        format!("{flag}{before}{}", self.path(name).display())
    }

    /// For each side, a flag with the side's own directory.
    fn sides(&self, before: &str, after: &str) -> [String; 2] {
        ["here", "there"].map(|name| format!("{before}{}{after}", self.path(name).display()))
    }

    /// Starts a side called `name` with these flags; its output is in a file of that name.
    fn side(&self, name: &str, flags: &[&str]) -> Process {
        self.side_by(Command::new(KEMARI), name, flags)
    }

    /// As [`side`](Self::side), with a command that ends in the binary's path.
    fn side_by(&self, mut command: Command, name: &str, flags: &[&str]) -> Process {
        command.args(flags.iter().take(1)).args([
            "--rng",
            "--virtio-console=none",
            "--serial=none",
        ]);
        command.arg(self.spelled("--control=", "", &format!("{name}.sock")));
        command.arg(self.spelled("--net=", "stream=", "nobody"));
        if !flags.iter().any(|flag| flag.starts_with("--disk")) {
            command.arg(self.spelled("--disk=", "path=", "disk.img"));
        }
        command.args(&flags[1..]).stdin(Stdio::null()).env("RUST_LOG", "info");
        Process::start(name, command, &self.path(&format!("{name}.log"))).unwrap()
    }

    fn run(&self, name: &str, flags: &[&str]) -> Process {
        let kernel = format!("--kernel={}", micro::image().display());
        let mut all = vec!["run", "--memory=64", &kernel];
        all.extend(flags);
        self.side(name, &all)
    }

    fn status(&self, name: &str) -> Option<Status> {
        Status::ask(Path::new(KEMARI), &self.path(&format!("{name}.sock"))).ok()
    }

    fn control(&self, side: &Process, command: &[&str]) {
        let socket = self.path(&format!("{}.sock", side.name()));
        control(Path::new(KEMARI), &socket, command).unwrap();
    }

    /// Waits until a side reports this state.
    #[track_caller]
    fn wait_state(&self, side: &Process, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.status(side.name()).is_some_and(|status| status.state() == state) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{} is never {state}: {}", side.name(), side.lines().join("\n"));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The exit code and output of the side that may not run.
#[track_caller]
fn refused(mut side: Process) -> (i32, String) {
    let status = side.wait_exit(PATIENCE);
    // No line contains this text: the wait ends when all output was read.
    assert_eq!(side.wait_line("\0", PATIENCE), None);
    let said = side.lines().join("\n");
    let status = status.unwrap_or_else(|| panic!("it runs: {said}"));
    (status.code().unwrap(), said)
}

/// P2: two directories are two arbiters, and each would let its side continue. The standby's
/// directory has a term of the same number, from an earlier run that was killed.
#[test]
fn p2_a_standby_with_a_directory_of_its_own_is_refused() {
    let bench = Bench::new();
    let (ours, theirs) =
        (bench.spelled("--arbiter=", "file:", "a"), bench.spelled("--arbiter=", "file:", "b"));
    let mut earlier = bench.run("earlier", &[&theirs]);
    bench.wait_state(&earlier, "alone");
    earlier.kill();
    let _ = fs::remove_file(bench.path("disk.img.kemari-fence"));
    let listen = free_address().unwrap();
    let relay = Relay::to(listen).unwrap();
    let standby = bench.side("standby", &["standby", &theirs, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let primary = bench.run("primary", &[&ours, &format!("--standby={}", relay.address())]);
    let line = primary.wait_line("refuses", PATIENCE);
    let line = line.unwrap_or_else(|| panic!("it was not refused: {}", primary.lines().join("\n")));
    for name in ["a", "b"] {
        assert!(line.contains(&bench.spelled("", "file:", name)), "{line}");
    }
    assert!(line.contains("they differ"), "{line}");
}

/// Keeps a copy of the arbiter's directory `from` up to date in `to`, in this direction only.
struct Replica {
    over: Arc<AtomicBool>,
    copier: Option<JoinHandle<()>>,
}

impl Replica {
    fn of(from: PathBuf, to: PathBuf) -> Self {
        let over = Arc::<AtomicBool>::default();
        let ends = over.clone();
        copy_whole_files(&from, &to);
        let copier = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                copy_whole_files(&from, &to);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { over, copier: Some(copier) }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.copier.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// Copies each changed file at once, as `rsync` does. Skips files that have disappeared.
fn copy_whole_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let Ok(bytes) = fs::read(entry.path()) else { continue };
        if fs::read(&target).is_ok_and(|there| there == bytes) {
            continue;
        }
        let partial = to.join("partial");
        fs::write(&partial, bytes).unwrap();
        fs::rename(partial, target).unwrap();
    }
}

/// Checks the refusal of a standby whose directory `there` shows all files of the primary's, and
/// accepts writes that the primary never sees. The mark arrives there, so only the first attempts
/// to join may be refused for a missing mark. The refusal names both places.
#[track_caller]
fn refused_for_its_replica(bench: &Bench, standby: &Process, places: &[String; 2]) {
    standby.wait_line("listening on", PATIENCE).unwrap();
    let (link, socket) = (bench.spelled("", "unix:", "link"), bench.path("primary.sock"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = control(Path::new(KEMARI), &socket, &["protect", &link]);
        let said = match answer {
            Err(refusal) => format!("{refusal:#}"),
            Ok(_) => panic!("it is {}", bench.status("primary").unwrap().state()),
        };
        if said.contains("the standby wrote the counter-mark") {
            assert!(places.iter().all(|place| said.contains(place)), "{said}");
            break;
        }
        let copied = ["they differ", "they are different files", "they use different disks"];
        let is_late = copied.iter().any(|reason| said.contains(reason));
        assert!(is_late && Instant::now() < deadline, "{said}");
    }
    assert_eq!(bench.status("primary").unwrap().state(), "alone");
    standby.wait_line("the standby wrote the counter-mark", PATIENCE).unwrap();
}

/// P2: the standby uses a copy of the directory that is kept up to date. The copy has the mark, but
/// a term that is won in one is not seen in the other: after a takeover both sides would be alone,
/// in one term.
#[test]
fn p2_a_standby_with_a_replica_that_is_kept_up_is_refused() {
    let bench = Bench::new();
    let [ours, theirs] = bench.sides("--arbiter=file:", "");
    let primary = bench.run("primary", &[&ours]);
    bench.wait_state(&primary, "alone");
    let name = only_child(&bench.path("here")).file_name().unwrap().to_owned();
    let _replica = Replica::of(bench.path("here").join(&name), bench.path("there").join(&name));
    let listen = bench.spelled("--listen=", "unix:", "link");
    let standby = bench.side("standby", &["standby", &theirs, &listen]);
    refused_for_its_replica(&bench, &standby, &bench.sides("file:", ""));
}

/// A command whose process sees, at `there`, an overlay file system over the directory `here`;
/// `None` where that is not permitted.
fn layered(bench: &Bench) -> Option<Command> {
    for name in ["upper", "work", "there"] {
        fs::create_dir(bench.path(name)).unwrap();
    }
    let layers = [("lowerdir=", "here"), (",upperdir=", "upper"), (",workdir=", "work")];
    let layers = layers.map(|(option, name)| bench.spelled(option, "", name)).concat();
    let mount = format!("mount -t overlay none -o {layers} {}", bench.path("there").display());
    let mut trial = in_namespaces(&mount)?;
    if !trial.arg("true").status().unwrap().success() {
        kemari_not_tested::not_tested("this machine lays no file system over a directory");
        return None;
    }
    in_namespaces(&mount)
}

/// P2: the same with an overlay file system over the primary's directory.
#[test]
fn p2_a_standby_with_a_layer_over_the_directory_is_refused() {
    let bench = Bench::new();
    let [ours, theirs] = bench.sides("--arbiter=file:", "");
    let primary = bench.run("primary", &[&ours]);
    bench.wait_state(&primary, "alone");
    let Some(mut command) = layered(&bench) else { return };
    command.arg(KEMARI);
    let listen = bench.spelled("--listen=", "unix:", "link");
    let standby = bench.side_by(command, "standby", &["standby", &theirs, &listen]);
    refused_for_its_replica(&bench, &standby, &bench.sides("file:", ""));
}

/// The primary has the files beside a disk in the directory `here`, and the standby has them in
/// `there`.
struct Beside {
    arbiter: String,
    disks: [String; 2],
    places: [String; 2],
}

impl Beside {
    /// The files beside the image itself. Both sides use one arbiter, or none.
    fn image(bench: &Bench, arbiter: String) -> Self {
        fs::create_dir(bench.path("here")).unwrap();
        fs::File::create(bench.path("here/disk.img")).unwrap().set_len(1 << 20).unwrap();
        // From an earlier session: an overlay that looked before a name existed continues to hide
        // the name.
        fs::write(bench.path("here/disk.img.kemari-mark"), [b'0'; 32]).unwrap();
        let places = bench.sides("", "/disk.img.kemari-counter-mark");
        Self { arbiter, disks: bench.sides("--disk=path=", "/disk.img"), places }
    }

    /// The fence record of an image that both sides see.
    fn record(bench: &Bench, arbiter: String) -> Self {
        fs::create_dir(bench.path("here")).unwrap();
        let disk = bench.spelled("--disk=", "path=", "disk.img");
        let disks = bench.sides(&format!("{disk},fence="), "/record");
        Self { arbiter, disks, places: bench.sides("", "/record.kemari-counter-mark") }
    }

    fn primary(&self, bench: &Bench) -> Process {
        let primary = bench.run("primary", &[&self.arbiter, &self.disks[0]]);
        bench.wait_state(&primary, "alone");
        primary
    }

    /// Starts the standby with `command`, which ends in the binary's path, and expects a refusal.
    fn standby_is_refused(&self, bench: &Bench, command: Command) {
        let listen = bench.spelled("--listen=", "unix:", "link");
        let flags = ["standby", &self.arbiter, &self.disks[1], &listen];
        let standby = bench.side_by(command, "standby", &flags);
        refused_for_its_replica(bench, &standby, &self.places);
    }
}

/// P2, P3: the standby has a copy of an image, or of its fence record, that is kept up to date. It
/// sees all writes of the primary, but its own writes after a takeover would not be in the
/// primary's. Fails if only the standby checks.
#[test]
fn p3_a_standby_with_a_replica_of_a_disk_or_its_record_is_refused() {
    let arbiter = |bench: &Bench| bench.spelled("--arbiter=", "file:", "arbiter");
    let cases: [fn(&Bench, String) -> Beside; 2] = [Beside::image, Beside::record];
    for case in cases {
        let bench = Bench::new();
        let beside = case(&bench, arbiter(&bench));
        let _primary = beside.primary(&bench);
        let _replica = Replica::of(bench.path("here"), bench.path("there"));
        beside.standby_is_refused(&bench, Command::new(KEMARI));
    }
    // Without an arbiter, the operator would lose acknowledged data.
    let bench = Bench::new();
    let beside = Beside::image(&bench, "--arbiter=none".to_owned());
    let _primary = beside.primary(&bench);
    let _replica = Replica::of(bench.path("here"), bench.path("there"));
    beside.standby_is_refused(&bench, Command::new(KEMARI));
}

/// P3: the same with an overlay file system over the image's directory.
#[test]
fn p3_a_standby_with_a_layer_over_the_image_is_refused() {
    let bench = Bench::new();
    let beside = Beside::image(&bench, bench.spelled("--arbiter=", "file:", "arbiter"));
    let _primary = beside.primary(&bench);
    let Some(mut command) = layered(&bench) else { return };
    command.arg(KEMARI);
    beside.standby_is_refused(&bench, command);
}

/// P2: after an orderly run the directory is copied, a second run starts, the copy is restored, and
/// the other side starts. The record of the second run's term is gone, and its number would be
/// granted again.
#[test]
fn p2_a_directory_that_went_back_makes_no_second_machine() {
    for fence in ["", ",fence=off"] {
        let bench = Bench::new();
        let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
        let disk = format!("{}{fence}", bench.spelled("--disk=", "path=", "disk.img"));
        let flags = [arbiter.as_str(), disk.as_str()];
        let mut first = bench.run("first", &flags);
        bench.wait_state(&first, "alone");
        first.signal(Signal::TERM);
        first.wait_exit(PATIENCE).unwrap();
        let (terms, saved) = (bench.path("arbiter/kemari"), bench.path("saved"));
        let terms = if terms.exists() { terms } else { only_child(&bench.path("arbiter")) };
        copy(&terms, &saved);
        let second = bench.run("second", &flags);
        bench.wait_state(&second, "alone");
        fs::remove_dir_all(&terms).unwrap();
        copy(&saved, &terms);
        let third = bench.run("third", &flags);
        // The fence record and the lock of the disk are newer than the arbiter's records.
        let (code, said) = refused(third);
        assert_eq!(code, 2, "{said}");
        let whom = if fence.is_empty() {
            format!("pid {}", second.pid())
        } else {
            "another process uses it".into()
        };
        assert!(said.contains(&whom), "{said}");
        assert_eq!(bench.status("second").unwrap().state(), "alone");
        // The failed start has taken nothing that the running machine has.
        assert!(!terms.join(format!("term-{:020}.json", 2)).exists(), "{said}");
    }
}

fn only_child(dir: &Path) -> PathBuf {
    let mut entries: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.retain(|path| path.is_dir());
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

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
fn who_requires_protection_waits_for_a_standby_that_is_not_there_yet() {
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

/// P2: a record that only one side reads stops no machine: after a takeover the former side would
/// find it unchanged. The copy names the same machine, term and holder.
#[test]
fn p2_a_standby_with_a_fence_record_of_its_own_is_refused() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let primary = bench.run("primary", &[&arbiter]);
    bench.wait_state(&primary, "alone");
    fs::copy(bench.path("disk.img.kemari-fence"), bench.path("copy")).unwrap();
    let listen = bench.spelled("", "unix:", "link");
    let disk =
        bench.spelled("--disk=", "path=", "disk.img") + &bench.spelled(",fence=", "", "copy");
    let standby =
        bench.side("standby", &["standby", &arbiter, &disk, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let socket = bench.path("primary.sock");
    let answer = control(Path::new(KEMARI), &socket, &["protect", &listen]).unwrap_err();
    let said = format!("{answer:#}");
    for name in ["disk.img.kemari-fence", "copy"] {
        assert!(said.contains(&bench.spelled("", "", name)), "{said}");
    }
    assert!(said.contains("they are different files"), "{said}");
}

/// P2: a process that has the image open is alive, even if the operator believes otherwise. A
/// seizure overrides records, and it does not override locks, even if the image has another name
/// without a record beside it.
#[test]
fn p2_a_seizure_passes_over_no_lock_of_a_process_that_lives() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "arbiter");
    let listen = bench.spelled("", "unix:", "link");
    fs::hard_link(bench.path("disk.img"), bench.path("other.img")).unwrap();
    let other = bench.spelled("--disk=", "path=", "other.img");
    let seizes = |holder: &Process| {
        let flags: [&[&str]; 4] = [&[&arbiter], &[&arbiter, &other], &[], &[&other]];
        for flags in flags {
            let (code, said) = refused(bench.run("seizing", &[&["--seize"], flags].concat()));
            assert_eq!(code, 2, "{said}");
            assert!(said.contains("another process uses it"), "{said}");
            assert_eq!(bench.status(holder.name()).unwrap().state(), "alone");
        }
    };
    let standby = bench.side("standby", &["standby", &arbiter, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let mut primary = bench.run("primary", &[&arbiter]);
    bench.wait_state(&primary, "alone");
    seizes(&primary);
    // A successor uses the locks that a stopped side has left to it.
    bench.control(&primary, &["protect", &listen]);
    bench.wait_state(&primary, "protected");
    primary.signal(Signal::STOP);
    standby.wait_line("took over in term 2", PATIENCE).unwrap();
    bench.wait_state(&standby, "alone");
    primary.kill();
    seizes(&standby);
}

/// A loop device of a file, which exists as long as this value.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made.ok().filter(|made| made.status.success()) {
            Some(made) => Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())),
            None => {
                kemari_not_tested::not_tested("this needs losetup, and the right to use it");
                None
            }
        }
    }

    /// A loop device with a second node. The image's name is removed, so only the device can be
    /// locked, as for a device without a file.
    fn with_another_node(bench: &Bench) -> Option<(Self, PathBuf)> {
        let device = Self::of(&bench.path("disk.img"))?;
        fs::remove_file(bench.path("disk.img")).unwrap();
        let number = fs::metadata(&device.0).unwrap().rdev();
        let (major, minor) = (libc::major(number).to_string(), libc::minor(number).to_string());
        let node = bench.path("node");
        let made = Command::new("mknod").arg(&node).args(["b", &major, &minor]).status();
        if !made.is_ok_and(|made| made.success()) || fs::File::open(&node).is_err() {
            kemari_not_tested::not_tested("this needs mknod, and the right to use it");
            return None;
        }
        Some((device, node))
    }

    fn disk(&self) -> String {
        format!("--disk=path={}", self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// P2: one disk has many names on a host.
#[test]
fn p2_a_loop_device_is_kept_apart_from_its_file_and_from_others_of_it() {
    let bench = Bench::new();
    let Some(one) = Loop::of(&bench.path("disk.img")) else { return };
    let Some(other) = Loop::of(&bench.path("disk.img")) else { return };
    let file = bench.spelled("--disk=", "path=", "disk.img");
    for (has, wants) in
        [(&file, one.disk()), (&one.disk(), file.clone()), (&one.disk(), other.disk())]
    {
        let mut machine = bench.run("machine", &[has]);
        bench.wait_state(&machine, "alone");
        let (code, said) = refused(bench.run("second", &[&wants]));
        assert_eq!(code, 2, "{has}, {wants}: {said}");
        assert!(said.contains("another process uses it"), "{has}, {wants}: {said}");
        machine.signal(Signal::TERM);
        machine.wait_exit(PATIENCE).unwrap();
    }
}

/// P2. Fails if the program locks the node by which a device was opened: each node is a file of its
/// own.
#[test]
fn p2_two_nodes_of_one_device_are_one_disk() {
    let bench = Bench::new();
    let Some((device, node)) = Loop::with_another_node(&bench) else { return };
    let node = format!("--disk=path={}", node.display());
    for (has, wants) in [(device.disk(), &node), (node.clone(), &device.disk())] {
        let mut machine = bench.run("machine", &[&has]);
        bench.wait_state(&machine, "alone");
        let (code, said) = refused(bench.run("second", &[wants]));
        assert_eq!(code, 2, "{has}, {wants}: {said}");
        assert!(said.contains("another process uses it"), "{has}, {wants}: {said}");
        machine.signal(Signal::TERM);
        machine.wait_exit(PATIENCE).unwrap();
    }
}

/// P2. Fails if the two sides lock different files: one side finds the kernel's node; the other, in
/// its own container, finds only the node that both were given.
#[test]
fn p2_one_node_is_one_disk_also_where_dev_is_not_the_hosts() {
    let bench = Bench::new();
    let Some((_device, node)) = Loop::with_another_node(&bench) else { return };
    let disk = format!("--disk=path={}", node.display());
    let contained = || {
        let shell = "mount -t tmpfs none /dev; mknod /dev/kvm c 10 232; mknod /dev/null c 1 3; \
                     mknod /dev/urandom c 1 9; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-ec", shell, "sh", KEMARI]);
        command
    };
    let kernel = format!("--kernel={}", micro::image().display());
    let flags = ["run", "--memory=64", &kernel, &disk];
    for inside_first in [false, true] {
        let start = |name: &str, inside: bool| match inside {
            true => bench.side_by(contained(), name, &flags),
            false => bench.side(name, &flags),
        };
        let mut machine = start("machine", inside_first);
        bench.wait_state(&machine, "alone");
        let (code, said) = refused(start("second", !inside_first));
        assert_eq!(code, 2, "{inside_first}: {said}");
        assert!(said.contains("another process uses it"), "{inside_first}: {said}");
        machine.signal(Signal::TERM);
        machine.wait_exit(PATIENCE).unwrap();
    }
}

/// P2: a mounted file system holds its device exclusively, as this test does.
#[test]
fn p2_a_device_that_the_host_uses_is_no_disk() {
    let bench = Bench::new();
    let Some(device) = Loop::of(&bench.path("disk.img")) else { return };
    let holds = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
    let listen = bench.spelled("--listen=", "unix:", "link");
    for disk in [device.disk(), format!("{},direct=on", device.disk())] {
        let (code, said) = refused(bench.run("machine", &[&disk]));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("the host has it mounted") && said.contains("lsblk"), "{said}");
    }
    drop(holds);
    let standby = bench.side("standby", &["standby", &device.disk(), &listen]);
    let machine = bench.run("machine", &[&device.disk()]);
    bench.wait_state(&machine, "alone");
    let holds = fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
    standby.wait_line("the host has it mounted", PATIENCE).unwrap();
    drop(holds);
    standby.wait_line("nothing is missing any more", PATIENCE).unwrap();
}

// ---- After an orderly end, nothing has a holder. ----

/// A protected pair on one arbiter: the standby and the primary.
fn protected_pair(bench: &Bench, arbiter: &str) -> (Process, Process) {
    let listen = free_address().unwrap();
    let standby = bench.side("standby", &["standby", arbiter, &format!("--listen={listen}")]);
    standby.wait_line("listening on", PATIENCE).unwrap();
    let primary = bench.run("primary", &[arbiter, &format!("--standby={listen}")]);
    bench.wait_state(&primary, "protected");
    (standby, primary)
}

/// Ends the side as an operator does, and checks that neither the disk nor the name has a holder.
#[track_caller]
fn ends_and_leaves_all_free(bench: &Bench, mut side: Process, arbiter: &str) {
    side.signal(Signal::TERM);
    let ended = side.wait_exit(PATIENCE).and_then(|ended| ended.code());
    assert_eq!(ended, Some(143), "{}", side.lines().join("\n"));
    for (name, flags) in [("plain", &[][..]), ("fresh", &[arbiter])] {
        let mut next = bench.run(name, flags);
        bench.wait_state(&next, "alone");
        next.signal(Signal::TERM);
        assert!(next.wait_exit(PATIENCE).is_some(), "{}", next.lines().join("\n"));
    }
}

/// Fails if the end releases the term that the machine had, instead of the term that it is about to
/// win.
#[test]
fn a_primary_that_ends_while_it_asks_gives_back_what_it_wins() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (mut standby, primary) = protected_pair(&bench, &arbiter);
    let records = fs::read_dir(bench.path("a")).unwrap().next().unwrap().unwrap().path();
    // A slow directory: the winner of the next term waits for two seconds.
    fs::write(records.join(format!("pace-{:020}", 1)), "1000000").unwrap();
    standby.kill();
    let won = records.join(format!("term-{:020}.json", 2));
    let deadline = Instant::now() + PATIENCE;
    while !won.exists() {
        assert!(Instant::now() < deadline, "it does not ask: {}", primary.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(5));
    }
    ends_and_leaves_all_free(&bench, primary, &arbiter);
}

/// Fails if a standby that is ended during its wait as a winner does not report that it has won, or
/// does not release the term.
#[test]
fn a_standby_that_ends_as_a_winner_ends_by_the_signal() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (standby, mut primary) = protected_pair(&bench, &arbiter);
    let records = fs::read_dir(bench.path("a")).unwrap().next().unwrap().unwrap().path();
    // A slow directory: the winner of the next term waits for a second.
    fs::write(records.join(format!("pace-{:020}", 1)), "500000").unwrap();
    primary.kill();
    let won = records.join(format!("term-{:020}.json", 2));
    let deadline = Instant::now() + PATIENCE;
    while !won.exists() {
        assert!(Instant::now() < deadline, "it does not ask: {}", standby.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(5));
    }
    ends_and_leaves_all_free(&bench, standby, &arbiter);
}

/// P9. Fails if an arbiter that does not answer fills the log: each request would add the same
/// line.
#[test]
fn an_arbiter_that_does_not_grant_is_told_of_once_and_counted() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (standby, mut primary) = protected_pair(&bench, &arbiter);
    fs::rename(bench.path("a"), bench.path("away")).unwrap();
    primary.kill();
    // One thread writes the log, and another one answers the status.
    let first = standby.wait_line("the arbiter is unreachable", PATIENCE);
    assert!(first.is_some(), "{}", standby.lines().join("\n"));
    let unanswered = || {
        let status = bench.status("standby");
        status.map_or(0, |status| status.number("unanswered"))
    };
    let deadline = Instant::now() + PATIENCE;
    while unanswered() < 4 {
        assert!(Instant::now() < deadline, "it does not ask: {}", standby.lines().join("\n"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let lines = standby.lines();
    let lines_of_it = lines.iter().filter(|line| {
        line.contains("the arbiter is unreachable") && !line.contains("could not continue")
    });
    assert_eq!(lines_of_it.count(), 1, "{}", lines.join("\n"));
}

/// Fails if the end frees only a fence record of its own term: a guest that has released nothing
/// since the takeover has not raised the record.
#[test]
fn a_machine_that_ends_soon_after_a_takeover_leaves_its_disk_free() {
    let bench = Bench::new();
    let arbiter = bench.spelled("--arbiter=", "file:", "a");
    let (standby, mut primary) = protected_pair(&bench, &arbiter);
    primary.kill();
    bench.wait_state(&standby, "alone");
    ends_and_leaves_all_free(&bench, standby, &arbiter);
}
