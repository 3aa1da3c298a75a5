//! What the vCPU threads and the threads that pause them share: the order, the counts, and how they
//! wait for each other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::immediate_exit::ImmediateExit;
use crate::kvm::exit::ExitHandler;

/// The order to the vCPU threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    Park,
    Stop,
}

pub(super) struct Control {
    pub(super) order: Order,
    /// Number of vCPUs outside their run loop: parked, dead, or ended. Their descriptors are not
    /// locked.
    pub(super) out: usize,
    /// Number of vCPUs that cannot continue.
    pub(super) dead: usize,
    /// Number of times that dead vCPUs were revived.
    pub(super) revivals: u64,
    /// The job for the threads of parked vCPUs. Each job has a number.
    pub(super) job: Option<Job>,
    pub(super) job_number: u64,
    /// Number of vCPUs that have done the job.
    pub(super) done: usize,
}

/// Work on every parked vCPU; each vCPU's own thread does it.
pub(super) type Job = Arc<dyn Fn(usize, &mut VcpuFd) + Send + Sync>;

/// How long to poll for a change before sleeping: the pause for a checkpoint is shorter than waking
/// a thread takes.
pub(super) const LOOK_FOR_OUT: Duration = Duration::from_micros(100);
const LOOK_FOR_ORDER: Duration = Duration::from_micros(300);

/// How often a vCPU polls for room at the gate. Many requests on other threads make room, and
/// waking a thread for each would cost too much.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(1);

pub(super) struct Shared {
    pub(super) control: Mutex<Control>,
    /// These follow `control`, so that a thread can poll for a change without the lock. `control`
    /// decides.
    pub(super) order_seen: AtomicU8,
    pub(super) out_seen: AtomicUsize,
    pub(super) job_seen: AtomicU64,
    pub(super) done_seen: AtomicUsize,
    /// Whether threads may poll: the host has at least one processor more than the machine has
    /// vCPUs.
    pub(super) looks: bool,
    /// Wakes the vCPU threads when `order` changes.
    pub(super) order_changed: Condvar,
    /// Wakes a pausing thread when all vCPUs are out, or have done the job.
    pub(super) all_out: Condvar,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) handler: Arc<dyn ExitHandler>,
    pub(super) before_first_run: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

pub(super) struct Vcpu {
    /// Its thread holds the lock while it runs the guest or does a job.
    pub(super) fd: Mutex<VcpuFd>,
    pub(super) immediate_exit: ImmediateExit,
    /// The number of the last job that its thread has taken.
    pub(super) job_taken: AtomicU64,
}

/// Locks `mutex`, even if it is poisoned: a vCPU thread that panics is reported as fatal, and the
/// others must still be paused.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn set_order(&self, control: &mut Control, order: Order) {
        control.order = order;
        self.order_seen.store(order as u8, Ordering::Release);
    }

    fn set_out(&self, control: &mut Control, out: usize) {
        control.out = out;
        self.out_seen.store(out, Ordering::Release);
    }

    /// Polls for `change` for up to `time`, if there is a processor to spare.
    pub(super) fn look(&self, time: Duration, change: impl Fn() -> bool) {
        let begun = Instant::now();
        while self.looks && !change() && begun.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    pub(super) fn count_out(&self) {
        let mut control = lock(&self.control);
        let out = control.out + 1;
        self.set_out(&mut control, out);
        if control.out == self.vcpus.len() {
            self.all_out.notify_all();
        }
    }

    /// Counts a vCPU that cannot continue as out and as dead, in one step: a thread that finds all
    /// vCPUs out also finds the dead one (P4).
    pub(super) fn count_dead(&self) -> u64 {
        let mut control = lock(&self.control);
        control.dead += 1;
        let out = control.out + 1;
        self.set_out(&mut control, out);
        if control.out == self.vcpus.len() {
            self.all_out.notify_all();
        }
        control.revivals
    }

    /// Waits while the order is to park. Then counts the vCPU as in again if the order is to run.
    pub(super) fn wait_for_order(&self, index: usize) -> Order {
        let mut control = self.wait_parked(index, |control| control.order != Order::Park);
        if control.order == Order::Run {
            let out = control.out - 1;
            self.set_out(&mut control, out);
        }
        control.order
    }

    /// Waits until `over`; does the jobs that come meanwhile.
    pub(super) fn wait_parked(
        &self,
        index: usize,
        over: impl Fn(&Control) -> bool,
    ) -> MutexGuard<'_, Control> {
        let vcpu = &self.vcpus[index];
        let mut taken = vcpu.job_taken.load(Ordering::Relaxed);
        let mut control = lock(&self.control);
        loop {
            if over(&control) {
                return control;
            }
            if let Some(job) = control.job.clone().filter(|_| control.job_number != taken) {
                taken = control.job_number;
                vcpu.job_taken.store(taken, Ordering::Relaxed);
                drop(control);
                // Count the job even after a panic: the waiting thread then finds that the result
                // is missing.
                let work = AssertUnwindSafe(|| job(index, &mut lock(&vcpu.fd)));
                if catch_unwind(work).is_err() {
                    log::error!("vCPU {index}: a task of its thread ended in a panic");
                }
                drop(job);
                control = lock(&self.control);
                control.done += 1;
                self.done_seen.store(control.done, Ordering::Release);
                if control.done == self.vcpus.len() {
                    self.all_out.notify_all();
                }
            } else if self.looks {
                drop(control);
                let park = Order::Park as u8;
                self.look(LOOK_FOR_ORDER, || {
                    self.order_seen.load(Ordering::Acquire) != park
                        || self.job_seen.load(Ordering::Acquire) != taken
                });
                control = lock(&self.control);
                if !over(&control) && control.job_number == taken {
                    control = self.sleep(control);
                }
            } else {
                control = self.sleep(control);
            }
        }
    }

    fn sleep<'a>(&self, control: MutexGuard<'a, Control>) -> MutexGuard<'a, Control> {
        self.order_changed.wait(control).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits outside the guest for an order, at most [`LOOK_FOR_ROOM`].
    pub(super) fn wait_a_little(&self) {
        let control = lock(&self.control);
        if control.order == Order::Run {
            drop(self.order_changed.wait_timeout(control, LOOK_FOR_ROOM));
        }
    }

    pub(super) fn must_park(&self) -> bool {
        lock(&self.control).order != Order::Run
    }
}
