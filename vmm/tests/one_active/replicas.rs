//! Copies of the arbiter's directory and of disks, which only one side writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kemari_testbed::network::Relay;
use kemari_testbed::pair::status::control;
use kemari_testbed::ports::free_address;
use kemari_testbed::process::{Process, in_namespaces};
use rustix::process::Signal;

use super::micro::{KEMARI, PATIENCE};
use super::{Bench, copy, refused};

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
