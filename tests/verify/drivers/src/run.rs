//! The command. It runs many worlds, each in a process of its own that ends without cleaning up.

use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use kemari_flags::drivers::{Arguments, Story};

use crate::tally::{self, Tally};
use crate::{raw, scheduler, world};

/// The longest duration of a world, by the world's clock.
const LIMIT: scheduler::Nanos = 120_000_000_000;
/// By the real clock: if no thread gets the turn for this long, a thread is blocked where the
/// scheduler cannot see it. A whole world has no such limit, because the test machine may be slow.
const LONGEST_TURN: Duration = Duration::from_secs(60);
const KEPT: i32 = 0;
const BROKEN: i32 = 1;

static TRACES: AtomicBool = AtomicBool::new(false);

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.child.or(arguments.seed) {
        TRACES.store(arguments.seed.is_some(), Ordering::Relaxed);
        one(seed, arguments.story);
    }
    many(&arguments)
}

/// Prints an event if the trace is wanted.
pub(crate) fn trace(line: &str) {
    if TRACES.load(Ordering::Relaxed) {
        let micros = scheduler::with(|world| world.now) / 1000;
        scheduler::aside(|| raw::say(&format!("{micros:>10} us  {line}")));
    }
}

/// Reports a broken promise and ends the world.
pub(crate) fn broken(why: &str) -> ! {
    raw::say(&format!("BROKEN {why}"));
    exit(BROKEN)
}

/// Ends the process. The threads of the world are not joined.
fn exit(code: i32) -> ! {
    raw::say(&tally::line());
    // SAFETY: nothing remains to be done.
    unsafe { raw::syscall(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]) };
    unreachable!("the process has ended")
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        TRACES.load(Ordering::Relaxed)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && scheduler::me().is_some() {
            let line = scheduler::aside(|| {
                let name = std::thread::current().name().unwrap_or("?").to_owned();
                format!("{:?} {name}: {} {}", scheduler::host(), record.level(), record.args())
            });
            trace(&line);
        }
    }

    fn flush(&self) {}
}

fn one(seed: u64, story: Option<Story>) -> ! {
    static LOG: Log = Log;
    log::set_logger(&LOG).expect("the first logger");
    log::set_max_level(log::LevelFilter::Debug);
    std::panic::set_hook(Box::new(|panic| broken(&format!("panic: {panic}"))));
    std::thread::spawn(watch_turns);
    let dir = tempfile::tempdir().expect("a directory");
    scheduler::begin(seed, LIMIT);
    world::run(seed, story, dir.path());
    let (millis, digest) = scheduler::with(|world| (world.now / 1_000_000, world.digest));
    let turns = scheduler::turns();
    // Print this without a trace as well: equal lines show that two runs were the same world.
    raw::say(&format!("kept: {millis} ms, {turns} turns, {digest:016x}"));
    exit(KEPT)
}

/// Prints the threads of a world that hangs.
fn watch_turns() {
    let mut before = 0;
    loop {
        std::thread::sleep(LONGEST_TURN);
        let turns = scheduler::turns();
        if turns == before {
            scheduler::hung().iter().for_each(|line| raw::say(line));
            broken(&format!("no thread got a turn for {LONGEST_TURN:?}"));
        }
        before = turns;
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let next = AtomicU64::new(arguments.first);
    let end = arguments.first + arguments.seeds;
    let (found, tally) = (Mutex::new(Vec::new()), Mutex::new(Tally::default()));
    let (begun, worlds) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    worlds.fetch_add(1, Ordering::Relaxed);
                    let (said, kept) = child(seed, arguments.story);
                    tally.lock().expect("not poisoned").add(&said);
                    if let Err(why) = kept {
                        println!("seed {seed}: {why}");
                        found.lock().expect("not poisoned").push(seed);
                        if arguments.until_broken {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let found = found.into_inner().expect("not poisoned");
    let tally = tally.into_inner().expect("not poisoned");
    println!("{}", tally.summary());
    let never = tally.never();
    if !never.is_empty() && arguments.story.is_none() {
        println!("in no world: {}", never.join(", "));
    }
    let (worlds, seconds) = (worlds.into_inner(), begun.elapsed().as_secs_f64());
    println!("{worlds} worlds in {seconds:.1} s, {} broken", found.len());
    let is_good = found.is_empty() && (never.is_empty() || !arguments.every_kind);
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a world in its own process; returns its output, and the promise that it broke.
fn child(seed: u64, story: Option<Story>) -> (String, Result<(), String>) {
    match said_by_child(seed, story) {
        Ok((status, text)) if status.success() => (text, Ok(())),
        Ok((status, text)) => {
            let line = text.lines().find(|line| line.starts_with("BROKEN")).map(str::to_owned);
            let why = line.unwrap_or_else(|| format!("{status}: {text}"));
            (text, Err(why))
        }
        Err(error) => (String::new(), Err(error.to_string())),
    }
}

fn said_by_child(seed: u64, story: Option<Story>) -> std::io::Result<(ExitStatus, String)> {
    // A world leaves its files behind; they are removed with this directory.
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env("TMPDIR", dir.path()).args(["--child", &seed.to_string()]);
    if let Some(value) = story.and_then(|story| story.to_possible_value()) {
        command.args(["--story", value.get_name()]);
    }
    let said = command.stdin(Stdio::null()).output()?;
    Ok((said.status, String::from_utf8_lossy(&said.stderr).into_owned()))
}
