//! The standby's queue in a process of its own, which is killed, stopped, or has failing storage.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ft_core::Epoch;
use ft_core::disks::{
    Cover, DiskId, Entry, Extent, Generation, Lineage, Operation, PairId, Payload, Seq, State,
};
use kemari_inject::{Call, CallResult, Injector, intercept};
use kemari_replication::own_disk::{Init, Look, News, OwnDisk, QueueOptions, StandbyQueue, init};
use rustix::process::{Pid, Signal, kill_process};

/// The child's directory.
const DIRECTORY: &str = "KEMARI_TEST_OWN_DISKS";
const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4000;
const SIZE: u64 = BLOCKS * BLOCK;
const COARSE: u64 = 4 << 20;
/// Every so many entries is a flush.
const FLUSH: u64 = 9;
/// Entries of an epoch, and those that are sent ahead of the last report.
const EPOCH: u64 = 16;
const AHEAD: u64 = 200;

/// The block that an entry writes; `None` for a flush.
fn block_of(seq: u64) -> Option<u64> {
    (!seq.is_multiple_of(FLUSH))
        .then(|| seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
        .map(|n| n % BLOCKS)
}

/// What an entry writes: its number, again and again.
fn content(seq: u64) -> Vec<u8> {
    seq.to_le_bytes().repeat((BLOCK / 8) as usize)
}

fn entry(seq: u64) -> Entry {
    let write = |block| Operation::Write {
        extent: Extent { disk: 0, start: block * BLOCK, len: BLOCK },
        payload: Payload::Inline(content(seq)),
    };
    Entry { seq: Seq(seq), operation: block_of(seq).map_or(Operation::Flush, write) }
}

/// A standby whose primary never stops writing.
#[test]
#[ignore = "the other tests run it as a process"]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let disk = OwnDisk::open(&Path::new(&directory).join("disk"), None).unwrap();
    let (tell, news) = channel();
    let tell = move |one| {
        // One write for each line, so that a kill cannot leave half of it.
        let line = match &one {
            News::Report(report) => format!("durable {}\n", report.durable.0),
            News::Failed(reason) => format!("failed {reason}\n"),
            _ => String::new(),
        };
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        tell.send(one).unwrap_or_default();
    };
    let limit = 16 << 20;
    let often = Duration::from_millis(5);
    let options = QueueOptions { limit, sync_after: often, record_after: often };
    let queue = StandbyQueue::start(vec![disk], options, tell).unwrap();
    queue.connect();
    while !matches!(news.recv().unwrap(), News::Described(_)) {}
    queue.begin(Seq(0), false, 1).unwrap();
    let lineage = Lineage::new(Generation { term: 1, id: 1 });
    queue.cover(vec![Cover { end: Seq(0), disk: DiskId(2), lineage, point: 3 }]).unwrap();
    let mut performed = 0;
    for epoch in 0.. {
        let (first, end) = (epoch * EPOCH + 1, (epoch + 1) * EPOCH);
        queue.receive(Some(Epoch(epoch)), (first..=end).map(entry).collect()).unwrap();
        queue.commit(Epoch(epoch), &|_, _| None).unwrap();
        while performed + AHEAD < end {
            match news.recv().unwrap() {
                News::Report(report) => performed = report.performed.0,
                // The test ends this process.
                News::Failed(_) => loop {
                    std::thread::park();
                },
                _ => {}
            }
        }
    }
}

struct Standby {
    child: Child,
    lines: Receiver<String>,
    durable: u64,
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        let (pair, size) = (Some(PairId(1)), Some(SIZE));
        init(Init { image: &bench.image(), meta: None, pair, size }).unwrap();
        bench
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "child", "--nocapture"]);
        command.env(DIRECTORY, self.0.path()).stdout(Stdio::piped());
        command
    }

    fn start(&self) -> Standby {
        Standby::of(self.command().spawn().unwrap())
    }

    /// Checks the image and its sidecar after a process has ended at any moment; returns the last
    /// entry that was performed.
    fn judge(&self, reported: u64) -> u64 {
        let look = Look::at(&self.image(), None).unwrap();
        let bytes = fs::read(self.image()).unwrap();
        assert_eq!(bytes.len() as u64, SIZE);
        let found: Vec<u64> = bytes.chunks_exact(BLOCK as usize).map(value).collect();
        let newest = found.iter().copied().max().unwrap();
        // Every entry up to the last flush before the newest write, up to what was reported as
        // durable, and up to what the sidecar says, is there.
        let flush = newest - newest % FLUSH;
        let durable = flush.max(reported).max(look.sidecar.durable.0);
        let mut last = vec![0; BLOCKS as usize];
        for seq in 1..=durable {
            block_of(seq).into_iter().for_each(|block| last[block as usize] = seq);
        }
        let coarse = &look.area.as_ref().expect("no power was lost: the marks are whole").coarse;
        for (block, (found, last)) in (0..).zip(found.into_iter().zip(last)) {
            assert!(
                found >= last,
                "block {block} has entry {found}, expected {last} or a later one"
            );
            assert!(
                found == 0 || block_of(found) == Some(block),
                "block {block} has entry {found}"
            );
            let is_marked = coarse.contains(&(block * BLOCK / COARSE));
            assert!(found == 0 || is_marked, "R3: block {block} was written without a mark");
        }
        newest
    }
}

/// The entry that has written a block.
fn value(block: &[u8]) -> u64 {
    let seq = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert!(seq == 0 || block == content(seq), "a block of two entries");
    seq
}

impl Standby {
    fn of(mut child: Child) -> Self {
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.for_each(|line| sender.send(line).unwrap_or_default());
        });
        Self { child, lines, durable: 0 }
    }

    /// The next line that the process tells, if it has not ended.
    fn line(&mut self) -> Option<String> {
        let line = self.lines.recv_timeout(PATIENCE).ok()?;
        if let Some(durable) = line.strip_prefix("durable ") {
            self.durable = durable.parse().unwrap();
        }
        Some(line)
    }

    /// Waits until it has reported so many entries as durable.
    fn wait(&mut self, durable: u64) {
        while self.durable < durable {
            self.line().expect("the process goes on");
        }
    }

    fn failure(&mut self) -> String {
        loop {
            let line = self.line().expect("the process goes on");
            if let Some(reason) = line.strip_prefix("failed ") {
                return reason.to_owned();
            }
        }
    }

    /// Ends the process at once; returns the last entry that it has reported as durable.
    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        while self.line().is_some() {}
        self.durable
    }
}

/// R1, R3, R4: wherever the process is killed, the image is as at some flush, with some of the
/// writes after it, and each of these is marked.
#[test]
fn r1_a_queue_that_is_killed_leaves_the_image_as_at_a_flush_and_writes_after_it() {
    let mut seen = 0;
    for round in 0..12 {
        let bench = Bench::new();
        let mut standby = bench.start();
        standby.wait(1 + round * 137);
        let reported = standby.kill();
        seen = seen.max(bench.judge(reported));
        OwnDisk::open(&bench.image(), None).unwrap();
    }
    assert!(seen > 11 * 137, "{seen}");
}

/// R11, P2: a process that is stopped keeps a new one out. Fails without the locks.
#[test]
fn r11_a_stopped_process_keeps_a_new_one_out_until_it_has_ended() {
    let bench = Bench::new();
    let mut standby = bench.start();
    standby.wait(20);
    let pid = Pid::from_child(&standby.child);
    kill_process(pid, Signal::STOP).unwrap();
    let refused = OwnDisk::open(&bench.image(), None).unwrap_err().to_string();
    assert!(refused.contains("another process uses it"), "{refused}");
    let reported = standby.kill();
    OwnDisk::open(&bench.image(), None).unwrap();
    bench.judge(reported);
}

const CALLS: &[i64] =
    &[libc::SYS_pwrite64, libc::SYS_fdatasync, libc::SYS_fallocate, libc::SYS_fsync];

/// Lets the `nth` call of `number` on a file of this name have `answer`. `after` counts the later
/// calls on the image that write or sync.
fn at_nth(
    number: i64,
    name: &'static str,
    nth: usize,
    answer: CallResult,
    after: Arc<AtomicUsize>,
) -> impl FnMut(&Call) -> CallResult + Send + 'static {
    let mut seen = 0;
    move |call| {
        let on = call.descriptor(call.arguments[0]);
        if seen >= nth {
            after.fetch_add(usize::from(on.ends_with("/disk")), Ordering::SeqCst);
        }
        if call.number != number || !on.ends_with(name) {
            return CallResult::Proceed;
        }
        seen += 1;
        if seen == nth { answer } else { CallResult::Proceed }
    }
}

/// R5. Fails if a failed call is made again, or if anything is written to the image after it.
#[test]
fn r5_the_first_failure_is_final() {
    let cases = [
        ("a write", libc::SYS_pwrite64, "/disk", 50, libc::EIO),
        ("a write without room", libc::SYS_pwrite64, "/disk", 70, libc::ENOSPC),
        ("a sync", libc::SYS_fdatasync, "/disk", 5, libc::EIO),
        ("an intent", libc::SYS_pwrite64, "/disk.kemari", 4, libc::EIO),
    ];
    for (what, number, name, nth, error) in cases {
        let bench = Bench::new();
        let mut command = bench.command();
        let pending = intercept(&mut command, CALLS).unwrap();
        let mut standby = Standby::of(command.spawn().unwrap());
        let after = Arc::new(AtomicUsize::new(0));
        let rule = at_nth(number, name, nth, CallResult::Fail(error), after.clone());
        let injector = Injector::start(pending.listener().unwrap(), rule);
        let reason = standby.failure();
        assert!(reason.contains(&format!("os error {error}")), "{what}: {reason}");
        let reported = standby.kill();
        injector.finish().unwrap();
        assert_eq!(after.load(Ordering::SeqCst), 0, "{what}: something was written after it");
        bench.judge(reported);
        let look = Look::at(&bench.image(), None).unwrap();
        assert_eq!(look.sidecar.state, State::Failed, "{what}");
    }
}

/// A short write is no failure as long as the rest can be written.
#[test]
fn a_write_that_the_system_cuts_is_continued() {
    let bench = Bench::new();
    let mut command = bench.command();
    let pending = intercept(&mut command, CALLS).unwrap();
    let mut standby = Standby::of(command.spawn().unwrap());
    let halves = Arc::new(Mutex::new(0));
    let count = halves.clone();
    let injector = Injector::start(pending.listener().unwrap(), move |call| {
        let is_write = call.number == libc::SYS_pwrite64;
        let on_image = is_write && call.descriptor(call.arguments[0]).ends_with("/disk");
        let mut halves = count.lock().unwrap();
        let cut = on_image && call.arguments[2] == BLOCK;
        *halves += usize::from(cut);
        if cut { CallResult::Half } else { CallResult::Proceed }
    });
    standby.wait(100);
    let reported = standby.kill();
    injector.finish().unwrap();
    assert!(*halves.lock().unwrap() > 50);
    // The kill may have come between the halves of the last write.
    let bytes = fs::read(bench.image()).unwrap();
    let torn = |block: &&[u8]| {
        let seq = u64::from_le_bytes(block[..8].try_into().unwrap());
        seq != 0 && **block != content(seq)
    };
    assert!(bytes.chunks_exact(BLOCK as usize).filter(torn).count() <= 1);
    assert!(reported >= 100);
}
