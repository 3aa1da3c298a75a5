//! `kemari disk` on real files: what it makes, says and judges, and that it overwrites nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use ft_core::disks::{Area, DiskId, Generation, Seq, Sidecar, State};
use kemari_inject::{Call, CallResult, Injector, intercept};
use kemari_replication::own_disk::OwnDisk;
use serde_json::{Value, json};

const KEMARI: &str = env!("CARGO_BIN_EXE_kemari");
const PAIR: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
/// Upper bound for a command on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `kemari disk` with these words; a word that begins with `@` is a file of this place.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(KEMARI);
        command.arg("disk");
        for word in line.split(' ') {
            match word.strip_prefix('@') {
                Some(name) => command.arg(self.path(name)),
                None => command.arg(word),
            };
        }
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command that succeeds; returns what it prints.
    fn done(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(0), "{line}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Checks a command's exit code, and that it names these words and changes no file.
    fn refused(&self, code: i32, line: &str, words: &[&str]) {
        let before = self.contents();
        let output = self.run(line);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        for word in words {
            assert!(text.contains(word), "{line}: no `{word}` in {text}");
        }
        assert!(before == self.contents(), "{line}: a file was changed, made or removed");
    }

    fn info(&self, name: &str) -> Value {
        serde_json::from_str(&self.done(&format!("info @{name} --json"))).unwrap()
    }

    fn contents(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap());
        let content = |path: &Path| path.is_file().then(|| fs::read(path).unwrap());
        let of = |entry: fs::DirEntry| {
            (entry.file_name().into_string().unwrap(), content(&entry.path()))
        };
        entries.map(of).collect()
    }

    fn names(&self) -> Vec<String> {
        self.contents().into_keys().collect()
    }

    /// Changes the sidecar of an image, as a machine that uses it does.
    fn record(&self, name: &str, change: impl FnOnce(&mut Sidecar), area: Option<&Area>) {
        let mut store = OwnDisk::open(&self.path(name), None).unwrap().store;
        let mut next = store.sidecar().clone();
        change(&mut next);
        store.record(&next).unwrap();
        area.iter().for_each(|area| store.write_marks(area).unwrap());
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// Spoils bytes of a file.
fn spoil(path: &Path, at: u64) {
    File::options().write(true).open(path).unwrap().write_all_at(&[0x5a; 600], at).unwrap();
}

#[test]
fn a_pair_is_made_by_one_command_on_each_host() {
    let place = Place::new();
    let text = place.done("init @a.raw --size 64");
    let pair = text.trim().rsplit(' ').next().unwrap();
    assert!(text.contains("image and sidecar"), "{text}");
    fs::write(place.path("b.raw"), vec![0; 64 << 20]).unwrap();
    place.done(&format!("init @b.raw --pair {pair}"));
    let [a, b] = ["a.raw", "b.raw"].map(|name| place.info(name));
    assert_eq!((&a["pair"], &b["pair"]), (&json!(pair), &json!(pair)));
    assert_ne!(a["disk"], b["disk"]);
    assert_ne!(a["generation"]["id"], b["generation"]["id"]);
    assert_eq!(a["found"]["size"], json!(64 << 20));
    for name in ["a.raw", "b.raw"] {
        place.done(&format!("check @{name}"));
    }
    assert_eq!(place.names(), ["a.raw", "a.raw.kemari", "b.raw", "b.raw.kemari"]);
}

#[test]
fn info_says_all_that_a_sidecar_has() {
    let place = Place::new();
    place.done(&format!("init @web.raw --size 64 --pair {PAIR}"));
    let marks = Area {
        peer: Some(DiskId(5)),
        cleared: Seq(40),
        coarse: [1].into(),
        fine: [0, 64, 1023].into(),
        ..Area::default()
    };
    let change = |sidecar: &mut Sidecar| {
        let (term, id) = (3, 0xa);
        sidecar.lineage = sidecar.lineage.continued(Generation { term, id });
        (sidecar.durable, sidecar.peer) = (Seq(42), Some(DiskId(5)));
        sidecar.pending = Some(Generation { term: 4, id: 0xb });
    };
    place.record("web.raw", change, Some(&marks));
    let info = place.info("web.raw");
    let id = |last: &str| format!("{last:0>32}");
    assert_eq!(info["pair"], PAIR);
    assert_eq!(info["peer"], "00000000-0000-0000-0000-000000000005");
    assert_eq!(info["generation"], json!({ "term": 3, "id": id("a") }));
    assert_eq!(info["parents"].as_array().unwrap().len(), 1);
    assert_eq!(info["pending"], json!({ "term": 4, "id": id("b") }));
    assert_eq!((&info["state"], &info["durable"]), (&json!("whole"), &json!(42)));
    assert_eq!((&info["fits"], &info["in_use"]), (&json!(true), &json!(false)));
    let slots = json!([{ "valid": true, "version": 2 }, { "valid": true, "version": 3 }]);
    assert_eq!(info["slots"], slots);
    // One extent, and two blocks outside of it.
    let bytes = (4 << 20) + 2 * (64 << 10);
    assert_eq!(info["marks"]["bytes"], json!(bytes));
    assert_eq!((&info["marks"]["coarse"], &info["marks"]["fine"]), (&json!(1), &json!(3)));
    let text = place.done("info @web.raw");
    let bytes = format!("{bytes} bytes are marked");
    for part in [PAIR, "3/0000000a", "4/0000000b", "up to entry 42", "version 3", &bytes] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
}

#[test]
fn check_says_by_its_exit_code_what_is_wrong() {
    let place = Place::new();
    let fresh = |name: &str| place.done(&format!("init @{name} --size 4 --pair {PAIR}"));
    fresh("whole");
    place.record("whole", |_| {}, Some(&Area { fine: [1].into(), ..Area::default() }));
    place.refused(0, "check @whole", &["whole", PAIR, "65536 bytes are marked"]);

    fresh("inconsistent");
    place.record("inconsistent", |sidecar| sidecar.state = State::Inconsistent, None);
    place.refused(4, "check @inconsistent", &["a resync has not ended", "as a standby"]);

    fresh("failed");
    place.record("failed", |sidecar| sidecar.state = State::Failed, None);
    place.refused(5, "check @failed", &["one has failed", "new image"]);

    fresh("replaced");
    fs::copy(place.path("replaced"), place.path("copy")).unwrap();
    fs::rename(place.path("copy"), place.path("replaced")).unwrap();
    place.refused(3, "check @replaced", &["expected inode", "replaced, or copied", "--pair"]);

    fresh("pending");
    let claim = Some(Generation { term: 9, id: 1 });
    place.record("pending", |sidecar| sidecar.pending = claim, None);
    place.refused(0, "check @pending", &["9/00000001", "the arbiter knows it"]);

    fresh("torn");
    spoil(&place.path("torn.kemari"), 4096);
    place.refused(0, "check @torn", &["slot 1 is damaged"]);
    spoil(&place.path("torn.kemari"), 0);
    place.refused(2, "check @torn", &["valid slot", "left alone", "full resync"]);

    fresh("marks");
    spoil(&place.path("marks.kemari"), 3 * 4096 + 100);
    place.refused(0, "check @marks", &["compares all of the image"]);
    assert_eq!(place.info("marks")["marks"], json!({ "valid": false, "bytes": 4 << 20 }));
}

#[test]
fn a_sidecar_in_use_can_be_looked_at_and_is_not_made_again() {
    let place = Place::new();
    place.done("init @web.raw --size 4");
    let used = OwnDisk::open(&place.path("web.raw"), None).unwrap();
    assert_eq!(place.info("web.raw")["in_use"], json!(true));
    place.refused(0, "check @web.raw", &["another process uses it"]);
    place.refused(2, "init @web.raw", &["another process uses it"]);
    drop(used);
    place.refused(2, "init @web.raw", &["expected no sidecar", "move it away"]);
}

#[test]
fn mistakes_change_no_file_and_say_what_to_do() {
    let place = Place::new();
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(4096, 0);
    for (name, content) in [
        ("disk", vec![0; 4096]),
        ("odd", vec![0; 1000]),
        ("empty", Vec::new()),
        ("qcow2", qcow2),
        ("taken", vec![0; 4096]),
        ("taken.kemari", b"notes\n".to_vec()),
        ("new.kemari", b"notes\n".to_vec()),
        ("linked", vec![0; 4096]),
    ] {
        fs::write(place.path(name), content).unwrap();
    }
    fs::create_dir(place.path("directory")).unwrap();
    std::os::unix::fs::symlink(place.path("disk"), place.path("linked.kemari")).unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("init", &["IMAGE"]),
        ("init @nothing", &["expected an image, found no file", "--size"]),
        ("init @no/where --size 4", &["No such file"]),
        ("init @nothing --size 0", &["--size", "MiB", "1 to"]),
        ("init @nothing --size 4G", &["for instance 4096"]),
        ("init @nothing --size -1", &["MiB, without a unit"]),
        ("init @disk --size 1", &["1048576", "found 4096", "--size"]),
        ("init @disk --pair web", &["--pair", "expected a UUID"]),
        ("init @disk --pair 00000000-0000-0000-0000-000000000000", &["not zero"]),
        ("init @directory", &["a directory"]),
        ("init @odd", &["multiple of 512", "1000"]),
        ("init @empty", &["at least 512 bytes"]),
        ("init @qcow2", &["a qcow2 image", "qemu-img convert"]),
        ("init @taken", &["left alone", "6 bytes", "another name"]),
        ("init @new --size 4", &["left alone"]),
        ("init @linked", &["a symbolic link", "left alone"]),
        ("init @disk --meta @directory", &["a directory", "left alone"]),
        ("info @nothing", &["found no file", "disk init"]),
        ("info @disk", &["found no file", "kemari disk init"]),
        ("info @taken", &["valid slot", "left alone"]),
        ("check @disk", &["found no file"]),
        ("check @directory", &["a directory"]),
        ("check @disk --meta @taken.kemari", &["valid slot"]),
        ("forget @disk", &["forget"]),
    ];
    for (line, words) in cases {
        let code = if line.contains("no/where") { 1 } else { 2 };
        place.refused(code, line, words);
    }
}

#[test]
fn a_sidecar_may_have_another_place() {
    let place = Place::new();
    place.done("init @web.raw --size 4 --meta @meta");
    assert_eq!(place.names(), ["meta", "web.raw"]);
    place.done("check @web.raw --meta @meta");
    place.refused(2, "check @web.raw", &["found no file"]);
}

const WRITES: &[i64] =
    &[libc::SYS_pwrite64, libc::SYS_ftruncate, libc::SYS_fsync, libc::SYS_linkat];

fn fails(number: i64, nth: usize, error: i32) -> impl FnMut(&Call) -> CallResult + Send + 'static {
    let mut seen = 0;
    move |call| {
        seen += usize::from(call.number == number);
        match call.number == number && seen == nth {
            true => CallResult::Fail(error),
            false => CallResult::Proceed,
        }
    }
}

/// A full or failing file system. Fails if a file is made under its own name before it is complete,
/// or if the image stays without its sidecar.
#[test]
fn a_command_that_cannot_end_leaves_nothing_behind() {
    let cases = [
        ("the size of the image", libc::SYS_ftruncate, 1, libc::ENOSPC),
        ("the image's name", libc::SYS_linkat, 1, libc::ENOSPC),
        ("the sidecar's content", libc::SYS_pwrite64, 1, libc::ENOSPC),
        ("the sync of the sidecar", libc::SYS_fsync, 3, libc::EIO),
        ("the sidecar's name", libc::SYS_linkat, 2, libc::ENOSPC),
        ("the sync of the directory", libc::SYS_fsync, 4, libc::EIO),
    ];
    for (what, number, nth, error) in cases {
        let place = Place::new();
        let mut command = place.command("init @web.raw --size 64");
        let pending = intercept(&mut command, WRITES).unwrap();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let injector = Injector::start(pending.listener().unwrap(), fails(number, nth, error));
        let output = child.wait_with_output().unwrap();
        injector.finish().unwrap();
        assert_eq!(output.status.code(), Some(1), "{what}: {}", said(&output));
        assert!(said(&output).contains("cannot create it"), "{what}: {}", said(&output));
        assert_eq!(place.names(), [""; 0], "{what}");
    }
}

/// A power loss or a kill in the middle. What is left is taken for no sidecar, and the same command
/// ends the work.
#[test]
fn a_command_that_is_killed_leaves_nothing_that_is_taken_for_a_sidecar() {
    let place = Place::new();
    let mut command = place.command("init @web.raw --size 64");
    let pending = intercept(&mut command, WRITES).unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (writes, is_writing) = channel();
    let injector = Injector::start(pending.listener().unwrap(), move |call| {
        if call.number != libc::SYS_pwrite64 {
            return CallResult::Proceed;
        }
        writes.send(()).unwrap();
        CallResult::Hang
    });
    is_writing.recv_timeout(PATIENCE).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    injector.finish().unwrap();
    assert!(!place.path("web.raw.kemari").exists());
    place.refused(2, "check @web.raw", &["found no file"]);
    place.done("init @web.raw --size 64");
    place.done("check @web.raw");
}
