//! For each flag that names a file: `kemari` does not remove, empty or overwrite a file that it has
//! not created.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kemari_testbed::pair::status::control;
use kemari_testbed::process::Process;
use micro::{KEMARI, PATIENCE};
use rustix::process::Signal;

/// Upper bound for a refused start; a start that is not refused is ended then.
const REFUSAL: Duration = Duration::from_secs(30);

/// A directory with a disk image that must never change.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk.img"), Self::disk()).unwrap();
        Self { dir }
    }

    fn disk() -> Vec<u8> {
        (0..1 << 20).map(|at: u32| (at % 251) as u8).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The flags of a line, with the directory in place of `@`.
    fn flags(&self, line: &str) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        line.split(' ').map(|flag| flag.replace('@', &dir)).collect()
    }

    fn start(&self, command: &str, line: &str) -> Process {
        let mut kemari = Command::new(KEMARI);
        kemari.arg(command).env("RUST_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null());
        if command == "run" {
            kemari.args(["--memory", "64", "--kernel"]).arg(micro::image());
        }
        if !line.contains("--serial") {
            kemari.args(["--serial", "none"]);
        }
        kemari.args(self.flags(line));
        Process::start("kemari", kemari, &self.path("log")).unwrap()
    }

    /// Starts `command`, which must end with the exit code for an operator's mistake and print all
    /// of `expected`.
    #[track_caller]
    fn refused(&self, command: &str, line: &str, expected: &[&str]) {
        let before = self.contents();
        let mut process = self.start(command, line);
        let ended = process.wait_exit(REFUSAL);
        if ended.is_none() {
            process.signal(Signal::TERM);
            process.wait_exit(REFUSAL);
        }
        // No line contains this text: the wait ends when all output was read.
        process.wait_line("\0", REFUSAL);
        let text = process.lines().join("\n");
        assert_eq!(self.contents(), before, "{command} {line}: {text}");
        assert_eq!(ended.and_then(|ended| ended.code()), Some(2), "{command} {line}: {text}");
        for part in expected {
            assert!(text.contains(part), "{command} {line}: expected `{part}` in: {text}");
        }
    }

    /// Path, inode and contents of each file, except for the log of the process.
    fn contents(&self) -> Vec<(PathBuf, u64, Vec<u8>)> {
        let mut found: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| !path.ends_with("log"))
            .map(|path| {
                let metadata = fs::symlink_metadata(&path).unwrap();
                let text = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                (path, metadata.ino(), text)
            })
            .collect();
        found.sort();
        found
    }

    /// Runs a machine with these flags.
    #[track_caller]
    fn running(&self, line: &str) -> Process {
        let flags = format!("{line} --control @up");
        let process = self.start("run", &flags);
        let begun = std::time::Instant::now();
        // The control socket exists before it answers.
        while control(Path::new(KEMARI), &self.path("up"), &["status"]).is_err() {
            let said = process.lines().join("\n");
            assert!(begun.elapsed() < PATIENCE && !said.contains("kemari: "), "{line}: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    }

    /// Waits until the file `name` has a complete line that begins with `line`.
    #[track_caller]
    fn printed(&self, name: &str, line: &str) {
        let begun = std::time::Instant::now();
        loop {
            let text = fs::read_to_string(self.path(name)).unwrap();
            if text
                .split_inclusive('\n')
                .any(|found| found.starts_with(line) && found.ends_with('\n'))
            {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "expected `{line}` in {name}: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[track_caller]
fn end(mut process: Process) {
    process.signal(Signal::TERM);
    let ended = process.wait_exit(PATIENCE).and_then(|ended| ended.code());
    assert_eq!(ended, Some(143), "{}", process.lines().join("\n"));
}

const STANDBY: &str = "--listen unix:@link --arbiter none";

#[test]
fn a_file_where_a_socket_is_to_be() {
    let place = Place::new();
    let found = ["disk.img", "regular file", "left alone"];
    place.refused("run", "--control @disk.img", &[&found[..], &["--control"]].concat());
    place.refused("standby", &format!("{STANDBY} --control @disk.img"), &found);
    place.refused("standby", "--listen unix:@disk.img", &[&found[..], &["--listen"]].concat());
    place.refused("run", "--net dgram=@disk.img:@peer", &[&found[..], &["--net"]].concat());
    fs::create_dir(place.path("directory")).unwrap();
    place.refused("run", "--control @directory", &["a directory"]);
    symlink("nowhere", place.path("dangling")).unwrap();
    place.refused("run", "--control @dangling", &["symbolic link"]);
}

#[test]
fn a_socket_on_which_a_process_listens() {
    let place = Place::new();
    let stream = UnixListener::bind(place.path("stream")).unwrap();
    let datagrams = UnixDatagram::bind(place.path("datagrams")).unwrap();
    for socket in ["stream", "datagrams"] {
        let found = [socket, "another process"];
        place.refused("run", &format!("--control @{socket}"), &found);
        place.refused("standby", &format!("{STANDBY} --control @{socket}"), &found);
        place.refused("standby", &format!("--listen unix:@{socket}"), &found);
        place.refused("run", &format!("--net dgram=@{socket}:@peer"), &found);
    }
    drop((stream, datagrams));
    // No process listens on the sockets any more. The socket at `up`, where `running` puts its
    // control socket, has no listener either.
    drop(UnixListener::bind(place.path("up")).unwrap());
    let process = place.running("--net dgram=@datagrams:@peer");
    assert!(fs::metadata(place.path("datagrams")).unwrap().file_type().is_socket());
    end(process);
    assert!(!place.path("datagrams").exists() && !place.path("up").exists());
}

/// When the machine ends, the file at its path may belong to another process.
#[test]
fn a_file_that_took_the_place_of_ones_own() {
    let place = Place::new();
    let process = place.running("--net dgram=@net:@peer --pid-file @pid --audit @audit");
    for name in ["up", "net", "pid", "audit.1.3"] {
        fs::remove_file(place.path(name)).unwrap();
        fs::write(place.path(name), "somebody else's").unwrap();
    }
    // Empty, like the files that a log has not reached yet.
    fs::remove_file(place.path("audit.1.2")).unwrap();
    fs::write(place.path("audit.1.2"), "").unwrap();
    end(process);
    assert!(place.path("audit.1.2").exists() && !place.path("audit.1.1").exists());
    for name in ["up", "net", "pid", "audit.1.3"] {
        assert_eq!(fs::read_to_string(place.path(name)).unwrap(), "somebody else's", "{name}");
    }
}

#[test]
fn a_pid_file_over_something_else() {
    let place = Place::new();
    place.refused("run", "--pid-file @disk.img", &["--pid-file", "disk.img", "left alone"]);
    place.refused("standby", &format!("{STANDBY} --pid-file @disk.img"), &["--pid-file"]);
    fs::write(place.path("notes"), "12 apples\n").unwrap();
    place.refused("run", "--pid-file @notes", &["notes"]);
    fs::write(place.path("empty"), "").unwrap();
    place.refused("run", "--pid-file @empty", &["a regular file of 0 bytes"]);
    symlink(place.path("disk.img"), place.path("link")).unwrap();
    place.refused("run", "--pid-file @link", &["symbolic link"]);
    let fifo = std::ffi::CString::new(place.path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    place.refused("run", "--pid-file @fifo", &["FIFO"]);
    // The process with this number has ended, and no `kemari` has created the file.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    fs::write(place.path("number"), format!("{}\n", gone.id())).unwrap();
    place.refused("run", "--pid-file @number", &["number", "left alone"]);
}

#[test]
fn a_pid_file_of_a_kemari_that_was_killed() {
    let place = Place::new();
    let mut process = place.running("--pid-file @pid");
    let read = || fs::read_to_string(place.path("pid")).unwrap();
    assert_eq!(read().trim(), process.pid().to_string());
    // The file belongs to a running process.
    place.refused("run", "--pid-file @pid", &["pid", "another process"]);
    process.signal(Signal::KILL);
    process.wait_exit(PATIENCE);
    // The number in the file may have been reused: here by a live process.
    fs::write(place.path("pid"), read().replace(&process.pid().to_string(), "1")).unwrap();
    let process = place.running("--pid-file @pid");
    assert_eq!(read().trim(), process.pid().to_string());
    end(process);
    assert!(!place.path("pid").exists());
}

#[test]
fn console_files_are_never_emptied() {
    let place = Place::new();
    fs::write(place.path("notes"), "of before\n").unwrap();
    let process = place.running("--serial file=@notes --virtio-console file=@new");
    end(process);
    let notes = fs::read_to_string(place.path("notes")).unwrap();
    assert!(notes.starts_with("of before\n"), "{notes}");
    // Fixed data that looks random: only the contents may decide.
    let random: Vec<u8> =
        (1_u32..5000).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (name, bytes) in [
        ("other.qcow2", &b"QFI\xfb\0\0\0\x03"[..]),
        ("other.img", &[0; 512]),
        ("luks", b"LUKS\xba\xbe\0\x02"),
        ("sqlite", b"SQLite format 3\0\x10\0"),
        ("document.pdf", b"%PDF-1.7\n1 0 obj\n"),
        ("random.img", &random),
        ("latin1", b"caf\xe9 au lait\n"),
        // Files of another machine: its arbiter's, its disk's mark, its pid.
        ("terms.json", b"{\"holder\":\"primary@host\",\"term\":1}\n"),
        ("term-1.json", b"{\"holder\":\"primary@host\",\"term\":1}\n"),
        ("id", b"0123456789abcdef0123456789abcdef\n"),
        ("mark", b"01234567-89ab-cdef-0123-456789abcdef"),
        ("other.pid", b"4711\n"),
    ] {
        fs::write(place.path(name), bytes).unwrap();
        for flag in ["--serial", "--virtio-console"] {
            let line = format!("{flag} file=@{name}");
            place.refused("run", &line, &[name, "left alone"]);
            place.refused("standby", &format!("{STANDBY} {line}"), &[name, "left alone"]);
        }
    }
}

#[test]
fn a_console_file_of_another_machine_is_not_emptied() {
    let place = Place::new();
    let mut process = place.running("--serial file=@console --virtio-console file=@other");
    // Wait for the guest's last output: the file is compared afterwards.
    place.printed("console", "micro-guest ready");
    let line = "--serial file=@console";
    place.refused("run", line, &["console", "another process uses it"]);
    // A machine that takes over prints to the same file, so a standby may name it.
    place.refused("standby", &format!("--listen unix:@no/link {line}"), &["no/link"]);
    process.signal(Signal::KILL);
    process.wait_exit(PATIENCE);
    end(place.running(line));
}

#[test]
fn guest_memory_over_something_else() {
    let place = Place::new();
    fs::write(place.path("other"), vec![7; 64 << 20]).unwrap();
    let mut kemari = Command::new(KEMARI);
    let other = place.path("other");
    kemari.args(["run", "--serial", "none", "--kernel"]).arg(micro::image()).stdin(Stdio::null());
    kemari.args(["--memory", &format!("64,file={},share=on", other.display())]);
    let mut process = Process::start("kemari", kemari, &place.path("log")).unwrap();
    let ended = process.wait_exit(REFUSAL).and_then(|ended| ended.code());
    process.kill();
    assert!(fs::read(&other).unwrap().iter().all(|byte| *byte == 7));
    assert_eq!(ended, Some(2), "{:?}", process.lines());
}

/// One file, under any names, cannot be both a disk and a file that is overwritten.
#[test]
fn a_path_in_two_roles() {
    let place = Place::new();
    fs::create_dir(place.path("sub")).unwrap();
    symlink(place.path("disk.img"), place.path("symbolic")).unwrap();
    fs::hard_link(place.path("disk.img"), place.path("hard")).unwrap();
    fs::copy(micro::image(), place.path("kernel")).unwrap();
    let disk = "--disk path=@disk.img";
    for name in ["disk.img", "sub/../disk.img", "symbolic", "hard"] {
        for (line, flag) in [
            (format!("{disk} --serial file=@{name}"), "--serial"),
            (format!("{disk} --virtio-console file=@{name}"), "--virtio-console"),
            (format!("{disk} --pid-file @{name}"), "--pid-file"),
            (format!("{disk} --control @{name}"), "--control"),
            (format!("{disk} --disk path=@{name}"), "--disk"),
            (format!("{disk},readonly=on --disk path=@{name},readonly=on"), "--disk"),
            (format!("{disk},fence=@{name}"), "fence"),
            (format!("{disk} --initrd @{name}"), "--initrd"),
            (format!("{disk} --net dgram=@{name}:@peer"), "--net"),
            (format!("{disk} --net stream=@{name}"), "--net"),
            (format!("{disk} --arbiter etcd:localhost:2379 --arbiter-ca @{name}"), "--arbiter-ca"),
        ] {
            place.refused("run", &line, &[flag, "--disk", "given twice"]);
        }
    }
    // Files that do not exist yet.
    for line in [
        "--pid-file @new --control @new",
        "--pid-file @new --control @sub/../new",
        "--serial file=@new --virtio-console file=@new",
        "--serial file=@new --pid-file @new",
        "--net dgram=@new:@peer --control @new",
        "--net dgram=@new:@new",
        "--disk path=@disk.img --serial file=@disk.img.kemari-mark",
        "--disk path=@disk.img --serial file=@disk.img.kemari-counter-mark",
        "--disk path=@disk.img --pid-file @disk.img.kemari-fence",
        "--audit @new --pid-file @new.1.0",
    ] {
        place.refused("run", line, &["given twice"]);
    }
    for line in [
        "--listen unix:@new --control @new",
        "--listen unix:@new --pid-file @new",
        "--listen unix:@new --standby unix:@new",
        "--listen 127.0.0.1:7090 --standby 127.0.0.1:7090",
        "--listen unix:@link --disk path=@disk.img --serial file=@disk.img",
    ] {
        place.refused("standby", line, &["given twice"]);
    }
    // Two consoles may share this device, because it keeps nothing.
    end(place.running("--serial file=/dev/null --virtio-console file=/dev/null"));
}

/// A failed start releases what it has taken: the corrected command need not seize the name.
#[test]
fn a_start_that_failed_holds_no_name() {
    let place = Place::new();
    fs::create_dir(place.path("arbiter")).unwrap();
    let arbiter = "--arbiter file:@arbiter";
    place.refused("run", &format!("{arbiter} --control @disk.img"), &["--control"]);
    place.refused("run", &format!("{arbiter} --pid-file @disk.img"), &["--pid-file"]);
    // These errors are found when the backends are opened, after the name was claimed.
    place.refused("run", &format!("{arbiter} --audit @log --serial file=@no/log"), &["no/log"]);
    place.refused("run", &format!("{arbiter} --pid-file @pid --net dgram=@no/a:@b"), &["no/a"]);
    end(place.running(arbiter));
}

/// The threads of a process, each with its blocked signals (proc(5), SigBlk).
fn masks(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mask = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        Some((name.trim().to_owned(), u64::from_str_radix(blocked.trim(), 16).unwrap()))
    };
    // A thread that has ended since then has no mask.
    let masks: Vec<_> = tasks.filter_map(|task| mask(task.unwrap())).collect();
    assert!(masks.iter().any(|(name, _)| name == "vcpu0"), "{masks:?}");
    masks
}

/// Fails if an unused signal, or the end of the machine's terminal, ends the machine like a kill.
#[test]
fn a_signal_leaves_no_file_behind() {
    // Under nohup, the test runner ignores this signal, and the new process would ignore it, too.
    // SAFETY: a system call; no handler is installed.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    let place = Place::new();
    let mut process = place.running("--pid-file @pid");
    let named = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGPWR, libc::SIGIO];
    for signal in named.into_iter().chain([libc::SIGRTMIN() + 3, libc::SIGRTMAX()]) {
        // SAFETY: a system call without memory.
        assert_eq!(unsafe { libc::kill(process.pid().cast_signed(), signal) }, 0);
        let answer = control(Path::new(KEMARI), &place.path("up"), &["status"]);
        assert!(answer.is_ok(), "signal {signal}: {}", process.lines().join("\n"));
    }
    // The kernel delivers a signal to any thread that accepts it, and SIGXCPU to one that uses the
    // processor. The filter of a thread that may not write to the handler's pipe would end the
    // process, so that thread must block these signals.
    let confined = ["vcpu0", "devices", "power", "log", "signals", "ticker", "watchdog", "control"];
    for (name, blocked) in masks(process.pid()) {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU] {
            let takes = blocked & 1 << (signal - 1) == 0;
            assert!(!(takes && confined.contains(&name.as_str())), "{name} takes signal {signal}");
        }
    }
    process.signal(Signal::HUP);
    let ended = process.wait_exit(PATIENCE).and_then(|ended| ended.code());
    assert_eq!(ended, Some(128 + libc::SIGHUP), "{}", process.lines().join("\n"));
    assert!(!place.path("pid").exists() && !place.path("up").exists());
}
