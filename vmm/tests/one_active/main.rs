//! P2 in unusual cases: an arbiter that is not the same for both sides, or whose data went back,
//! never leads to two machines that both act. Real processes, one image, one directory.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod ends;
mod holders;
#[path = "../micro/mod.rs"]
mod micro;
mod one_disk;
mod replicas;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kemari_testbed::pair::status::{Status, control};
use kemari_testbed::process::Process;

use micro::{KEMARI, PATIENCE};

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
