//! `run-pair --interactive` with a real pair: it reports events that no key has caused, and an
//! orderly end is not an error.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod micro;

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kemari_testbed::micro::{DISK_BYTES, Load, guest};
use kemari_testbed::pair::config::{Kill, PairConfig};
use kemari_testbed::pair::status::control;
use kemari_testbed::pair::{Progress, RunContext, interactive};
use kemari_testbed::switch::Switch;
use micro::{KEMARI, PATIENCE};
use rustix::process::{Pid, Signal, kill_process};

/// All text on the screen. One test plays at a time.
static SCREEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static PLAYING: Mutex<()> = Mutex::new(());

fn show(bytes: &[u8]) {
    SCREEN.lock().unwrap().extend_from_slice(bytes);
}

fn screen() -> String {
    String::from_utf8_lossy(&SCREEN.lock().unwrap()).into_owned()
}

fn wait_for(words: &str) {
    let begun = Instant::now();
    while !screen().contains(words) {
        assert!(begun.elapsed() < PATIENCE, "no `{words}` on the screen: {}", screen());
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str) {}
    fn line(&self, _: &str) {}
}

fn config() -> PairConfig {
    let load = Load { writers: 1, seed: 1, dirty: 0, resend: Duration::from_millis(50) };
    PairConfig {
        kemari: KEMARI.into(),
        guest: guest(micro::image().into(), 64, 1, load),
        kills: vec![Kill::Primary],
        rounds: 1,
        seed: 1,
        operations_after: 1,
        load: Duration::ZERO,
        verify: false,
        slow: 1,
        tls: false,
        audit: false,
        device: None,
        loopback: true,
        net_model: Default::default(),
        arbiter: Default::default(),
        flags: Vec::new(),
    }
}

/// Starts an interactive run whose files are in `dir`; returns the sender of its keys, and its end.
fn play(dir: &Path) -> (Sender<Vec<u8>>, JoinHandle<Result<(), String>>) {
    SCREEN.lock().unwrap().clear();
    File::create(dir.join("disk.img")).unwrap().set_len(DISK_BYTES).unwrap();
    let (typed, keys) = channel();
    let dir = dir.to_owned();
    let play = move || {
        let switch = Switch::new(&dir, &["a", "b"]).unwrap();
        let context = RunContext {
            config: &config(),
            dir: &dir,
            switch: &switch,
            small_disk: None,
            progress: &Silent,
            stop: Arc::default(),
        };
        interactive::run(&context, &keys, show).map_err(|error| format!("{error:#}"))
    };
    let playing = std::thread::spawn(play);
    wait_for("q quits");
    (typed, playing)
}

/// Waits until the standby named `standby` in `dir` can take over.
fn is_ready(dir: &Path, standby: &str) {
    let socket = dir.join(format!("{standby}.ctl"));
    let begun = Instant::now();
    loop {
        let status = control(Path::new(KEMARI), &socket, &["status"]);
        if status.as_ref().is_ok_and(|status| status["state"] == "ready") {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{standby}: {status:?}; {}", screen());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_takeover_that_no_key_asked_for_is_followed() {
    let _turn = PLAYING.lock().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (typed, playing) = play(dir.path());
    is_ready(dir.path(), "01-standby-b");
    let socket = dir.path().join("01-standby-b.ctl");
    control(Path::new(KEMARI), &socket, &["take-over"]).unwrap();
    wait_for("no key asked for that");
    wait_for("host b has taken over");
    wait_for("protected by a fresh standby");
    typed.send(b"\x1dp".to_vec()).unwrap();
    wait_for("the primary is dead");
    wait_for("host a has taken over");
    typed.send(b"\x1dq".to_vec()).unwrap();
    assert_eq!(playing.join().unwrap(), Ok(()), "{}", screen());
}

/// The process with this role whose files are in `dir`.
fn process_of(dir: &Path, role: &str) -> Pid {
    let ours = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains(&format!("\0{role}\0")) && words.contains(&dir.display().to_string())
    };
    let found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<i32>().ok().filter(ours)
    });
    Pid::from_raw(found.last().unwrap()).unwrap()
}

/// Fails if the keys wait for a side that does not answer.
#[test]
fn the_keys_work_while_a_side_is_stopped() {
    const ASKED_EVERY: Duration = Duration::from_secs(1);
    let _turn = PLAYING.lock().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (typed, playing) = play(dir.path());
    is_ready(dir.path(), "01-standby-b");
    kill_process(process_of(dir.path(), "standby"), Signal::STOP).unwrap();
    let shown = || screen().matches("host a: ").count();
    let begun = Instant::now();
    // The run asks both sides for their status several times in this period.
    while begun.elapsed() < 3 * ASKED_EVERY {
        let before = shown();
        typed.send(b"\x1di".to_vec()).unwrap();
        let sent = Instant::now();
        while shown() == before {
            assert!(sent.elapsed() < PATIENCE, "the keys are not taken: {}", screen());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    typed.send(b"\x1dq".to_vec()).unwrap();
    assert_eq!(playing.join().unwrap(), Ok(()), "{}", screen());
}

/// Ctrl-A x ends the guest while a standby holds a checkpoint.
#[test]
fn the_end_of_the_guest_by_a_key_is_no_failure() {
    let _turn = PLAYING.lock().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (typed, playing) = play(dir.path());
    is_ready(dir.path(), "01-standby-b");
    typed.send(b"\x01x".to_vec()).unwrap();
    assert_eq!(playing.join().unwrap(), Ok(()), "{}", screen());
    assert!(screen().contains("the guest was ended"), "{}", screen());
}
