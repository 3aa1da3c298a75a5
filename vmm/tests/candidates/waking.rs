//! The delay until a notified thread continues: blocked in `epoll_wait` on an event, or spinning
//! for a while first.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::rounds::{Times, head, stay_on, uninterrupted};

const ROUNDS: usize = 1000;
/// Time between two notifications, as between two effects of a guest.
const APART: [Duration; 3] =
    [Duration::from_micros(20), Duration::from_micros(100), Duration::from_millis(1)];

const WINDOWS: [Duration; 3] =
    [Duration::ZERO, Duration::from_micros(50), Duration::from_millis(10)];

/// Notifies the waiting thread.
struct Bell {
    event: EventFd,
    rung: AtomicU64,
    /// Whether the other thread sleeps, or is about to: a write to memory does not wake it.
    sleeps: AtomicBool,
}

impl Bell {
    /// Rings for the `n`th time. The event costs a system call, so it is used only for a sleeping
    /// thread.
    fn ring(&self, n: u64) {
        self.rung.store(n, Ordering::SeqCst);
        if self.sleeps.load(Ordering::SeqCst) {
            self.event.write(1).unwrap();
        }
    }

    /// Waits for the `n`th ring, and spins for `window` first. Returns whether spinning was enough.
    fn wait(&self, epoll: &Epoll, n: u64, window: Duration) -> bool {
        let until = Instant::now() + window;
        while self.rung.load(Ordering::SeqCst) < n && Instant::now() < until {
            std::hint::spin_loop();
        }
        let soon = self.rung.load(Ordering::SeqCst) >= n;
        self.sleeps.store(true, Ordering::SeqCst);
        while self.rung.load(Ordering::SeqCst) < n {
            uninterrupted(|| epoll.wait(-1, &mut [EpollEvent::default()]));
            // An error means that there was nothing to read: the bell was rung without the event.
            let _ = self.event.read();
        }
        self.sleeps.store(false, Ordering::SeqCst);
        soon
    }
}

/// The times from before the ring until the other thread is awake, and the share of waits without
/// sleep.
fn latency(apart: Duration, window: Duration, own_cpus: bool) -> (Times, Times, f64) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let bell = Bell { event, rung: AtomicU64::new(0), sleeps: AtomicBool::new(false) };
    let (mut ringing, mut rung) = (Times::default(), Vec::new());
    let woken = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            own_cpus.then(|| stay_on(1));
            let epoll = Epoll::new().unwrap();
            let interest = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, bell.event.as_raw_fd(), interest).unwrap();
            let all = 1..=ROUNDS as u64;
            all.map(|n| (bell.wait(&epoll, n, window), Instant::now())).collect::<Vec<_>>()
        });
        own_cpus.then(|| stay_on(0));
        for n in 1..=ROUNDS as u64 {
            let next = Instant::now() + apart;
            while Instant::now() < next {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            bell.ring(n);
            ringing.0.push(start.elapsed());
            rung.push(start);
        }
        waiter.join().unwrap()
    });
    assert_eq!(woken.len(), rung.len());
    let times = rung.iter().zip(&woken).map(|(rung, (_, woken))| woken.duration_since(*rung));
    let soon = woken.iter().filter(|(soon, _)| *soon).count() as f64 / ROUNDS as f64;
    (Times(times.collect()), ringing, soon)
}

#[test]
#[ignore = "a measurement"]
fn waking() {
    head(&[
        "processors",
        "told each",
        "spins before it sleeps",
        "until it goes on us p50 / p99",
        "what ringing takes",
        "did not sleep",
    ]);
    for (own, cpus) in [(true, "one each"), (false, "as it comes")] {
        for apart in APART {
            for window in WINDOWS {
                let test = std::thread::spawn(move || latency(apart, window, own));
                let (times, ringing, soon) = test.join().unwrap();
                let soon = soon * 100.0;
                println!("| {cpus} | {apart:?} | {window:?} | {times} | {ringing} | {soon:.0} % |");
            }
        }
    }
}
