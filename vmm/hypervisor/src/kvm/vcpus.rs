//! The vCPU threads: they run the guest, serve its exits, and park at a point where their state is
//! complete.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_EXIT_IO_IN, KVM_MP_STATE_UNINITIALIZED, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::exit::{ExitHandler, FatalExit};

/// Why the vCPUs cannot be started or used.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// A thread cannot be started.
    #[error("cannot start the thread of vCPU {vcpu}: {source}")]
    Spawn {
        /// The vCPU.
        vcpu: usize,
        /// The system's error.
        source: std::io::Error,
    },
    /// The handler of the signal that interrupts KVM_RUN cannot be installed.
    #[error("cannot install the handler of the vCPU kick signal: {0}")]
    Signal(std::io::Error),
    /// KVM cannot run the first vCPU.
    #[error(
        "KVM cannot run the guest (it may be unable to start its own kernel thread): KVM_RUN: {0}"
    )]
    Enter(std::io::Error),
    /// A caller needs the vCPUs' state while the guest runs.
    #[error("the vCPUs are running: pause them before their state is read or written")]
    Running,
    /// There is no such vCPU.
    #[error("expected a vCPU number below {count}, found {vcpu}")]
    NoSuchVcpu {
        /// The requested vCPU.
        vcpu: usize,
        /// Number of vCPUs.
        count: usize,
    },
}

/// The order to the vCPU threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Park,
    Stop,
}

struct Control {
    order: Order,
    /// Number of vCPUs outside their run loop: parked, dead, or ended. Their descriptors are not
    /// locked.
    out: usize,
    /// Number of vCPUs that cannot continue.
    dead: usize,
    /// Number of times that dead vCPUs were revived.
    revivals: u64,
    /// The job for the threads of parked vCPUs. Each job has a number.
    job: Option<Job>,
    job_number: u64,
    /// Number of vCPUs that have done the job.
    done: usize,
}

/// Work on every parked vCPU; each vCPU's own thread does it.
type Job = Arc<dyn Fn(usize, &mut VcpuFd) + Send + Sync>;

/// How long to poll for a change before sleeping: the pause for a checkpoint is shorter than waking
/// a thread takes.
const LOOK_FOR_OUT: Duration = Duration::from_micros(100);
const LOOK_FOR_ORDER: Duration = Duration::from_micros(300);

/// How long KVM may refuse to run a vCPU and ask for a retry. No limit applies to a vCPU that waits
/// for its start-up interrupt.
const AGAIN_FOR: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(1);

/// How often a vCPU polls for room at the gate. Many requests on other threads make room, and
/// waking a thread for each would cost too much.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(1);

struct Shared {
    control: Mutex<Control>,
    /// These follow `control`, so that a thread can poll for a change without the lock. `control`
    /// decides.
    order_seen: AtomicU8,
    out_seen: AtomicUsize,
    job_seen: AtomicU64,
    done_seen: AtomicUsize,
    /// Whether threads may poll: the host has at least one processor more than the machine has
    /// vCPUs.
    looks: bool,
    /// Wakes the vCPU threads when `order` changes.
    order_changed: Condvar,
    /// Wakes a pausing thread when all vCPUs are out, or have done the job.
    all_out: Condvar,
    vcpus: Vec<Vcpu>,
    handler: Arc<dyn ExitHandler>,
    before_first_run: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct Vcpu {
    /// Its thread holds the lock while it runs the guest or does a job.
    fd: Mutex<VcpuFd>,
    immediate_exit: ImmediateExit,
    /// The number of the last job that its thread has taken.
    job_taken: AtomicU64,
}

/// The flag in the shared `kvm_run` page that makes the next KVM_RUN return at once (KVM API,
/// immediate_exit).
struct ImmediateExit(NonNull<AtomicU8>);

// SAFETY: the pointer leads into the kvm_run mapping of the VcpuFd that lives in the same `Vcpu`,
// which is unmapped only when that is dropped; all accesses through it are atomic, and the kernel
// reads the flag once per KVM_RUN.
unsafe impl Send for ImmediateExit {}
// SAFETY: as for Send.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn of(fd: &mut VcpuFd) -> Self {
        let run: *mut kvm_run = fd.get_kvm_run();
        // SAFETY: `run` points to a mapped kvm_run, so the address of its field is valid and not
        // null. AtomicU8 has the layout of u8.
        let flag = unsafe { NonNull::new_unchecked((&raw mut (*run).immediate_exit).cast()) };
        ImmediateExit(flag)
    }

    fn set(&self, on: bool) {
        // SAFETY: see the comment at `Send`: the mapping outlives `self`.
        let flag = unsafe { self.0.as_ref() };
        flag.store(u8::from(on), Ordering::SeqCst);
    }
}

/// Locks `mutex`, even if it is poisoned: a vCPU thread that panics is reported as fatal, and the
/// others must still be paused.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The vCPUs of a machine and their threads, parked at the start.
///
/// Call its methods on any thread except those of vCPUs.
pub struct VcpuSet {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl VcpuSet {
    /// Starts one thread per vCPU, parked. Set or restore their state, then call
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// When a thread cannot be started, the signal handler cannot be installed, or KVM does not run
    /// the first vCPU.
    pub fn spawn(fds: Vec<VcpuFd>, handler: Arc<dyn ExitHandler>) -> Result<VcpuSet, VcpuError> {
        install_kick_handler()?;
        let count = fds.len();
        let vcpus = fds
            .into_iter()
            .map(|mut fd| Vcpu {
                immediate_exit: ImmediateExit::of(&mut fd),
                fd: Mutex::new(fd),
                job_taken: AtomicU64::new(0),
            })
            .collect();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            order_seen: AtomicU8::new(Order::Park as u8),
            out_seen: AtomicUsize::new(0),
            looks: processors > count,
            job_seen: AtomicU64::new(0),
            done_seen: AtomicUsize::new(0),
            control: Mutex::new(Control {
                order: Order::Park,
                out: 0,
                dead: 0,
                revivals: 0,
                job: None,
                job_number: 0,
                done: 0,
            }),
            order_changed: Condvar::new(),
            all_out: Condvar::new(),
            vcpus,
            handler,
            before_first_run: OnceLock::new(),
        });
        let mut set = VcpuSet { shared, threads: Vec::new() };
        for index in 0..set.len() {
            let shared = Arc::clone(&set.shared);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || shared.thread_main(index))
                .map_err(|source| VcpuError::Spawn { vcpu: index, source })?;
            set.threads.push(thread);
        }
        set.wait_all_out();
        set.try_run()?;
        Ok(set)
    }

    /// Makes KVM do its work for the first run of a vCPU, without running the guest. Since Linux
    /// 6.14, KVM then starts a thread of this process's user (`kvm-nx-lpage-recovery`). If that
    /// thread cannot start, `KVM_RUN` fails with EAGAIN. P7, P9: a standby sees this failure before
    /// it is ready, not at a takeover.
    fn try_run(&self) -> Result<(), VcpuError> {
        let (reply, answer) = sync_channel(1);
        // Run it on the vCPU's own thread: KVM waits for a grace period when another thread runs
        // the vCPU later.
        self.each(move |index, fd| {
            if index == 0 {
                let _ = reply.send(run_nothing(fd));
            }
        })?;
        answer.recv().map_or(Ok(()), |ran| ran.map_err(VcpuError::Enter))
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.shared.vcpus.len()
    }

    /// Whether there are no vCPUs. A machine has at least one.
    pub fn is_empty(&self) -> bool {
        self.shared.vcpus.is_empty()
    }

    /// Sets a function that each vCPU's thread calls before it first enters the guest. Only the
    /// first call has an effect; make it before [`resume`](Self::resume).
    pub fn before_first_run(&self, call: impl Fn() + Send + Sync + 'static) {
        // A second call does nothing: a machine starts once.
        let _ = self.shared.before_first_run.set(Box::new(call));
    }

    /// Takes all vCPUs out of the guest. Returns when each has finished its pending I/O and is
    /// parked.
    ///
    /// Kicks all before it waits for any, so the pause takes as long as the slowest vCPU, not as
    /// long as all of them in turn.
    pub fn pause(&self) {
        self.order(Order::Park);
        self.wait_all_out();
    }

    /// Resumes the vCPUs.
    pub fn resume(&self) {
        let mut control = lock(&self.shared.control);
        if control.order == Order::Park {
            self.shared.set_order(&mut control, Order::Run);
            self.shared.order_changed.notify_all();
        }
    }

    /// Whether all vCPUs are parked, by [`pause`](Self::pause) or since their start.
    pub fn is_paused(&self) -> bool {
        let control = lock(&self.shared.control);
        control.order != Order::Run && control.out == self.len()
    }

    /// Whether a vCPU cannot continue and is not revived yet. Its state in KVM is then unusable:
    /// for instance, AMD processors leave no state after a triple fault.
    pub fn has_dead(&self) -> bool {
        lock(&self.shared.control).dead > 0
    }

    /// Lets dead vCPUs run again at the next [`resume`](Self::resume), after a reset has set their
    /// state anew. The vCPUs must be paused.
    pub fn revive(&self) {
        let mut control = lock(&self.shared.control);
        control.revivals += 1;
        control.dead = 0;
        drop(control);
        self.shared.order_changed.notify_all();
    }

    /// Ends the threads. The vCPUs' state remains readable.
    pub fn stop(&mut self) {
        self.order(Order::Stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread ended in a panic");
            }
        }
    }

    /// Makes each vCPU's thread do `job` on its vCPU, all at once: the KVM data of a vCPU is in the
    /// caches of the processor on which it ran. The vCPUs must be paused and not stopped.
    ///
    /// # Errors
    /// When the vCPUs are running or stopped.
    pub fn each(
        &self,
        job: impl Fn(usize, &mut VcpuFd) + Send + Sync + 'static,
    ) -> Result<(), VcpuError> {
        let shared = &self.shared;
        let mut control = lock(&shared.control);
        if control.order != Order::Park || control.out != self.len() {
            return Err(VcpuError::Running);
        }
        control.job = Some(Arc::new(job));
        control.job_number += 1;
        control.done = 0;
        shared.done_seen.store(0, Ordering::Release);
        shared.job_seen.store(control.job_number, Ordering::Release);
        shared.order_changed.notify_all();
        drop(control);
        let all = self.len();
        shared.look(LOOK_FOR_OUT, || shared.done_seen.load(Ordering::Acquire) == all);
        let mut control = lock(&shared.control);
        while control.done < all {
            control = shared.all_out.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
        control.job = None;
        Ok(())
    }

    /// Whether [`each`](Self::each) can be used: the threads still exist.
    pub fn can_work(&self) -> bool {
        lock(&self.shared.control).order != Order::Stop
    }

    /// Calls `f` with a parked vCPU.
    ///
    /// # Errors
    /// When there is no such vCPU, or it is not parked.
    pub fn with_vcpu<R>(
        &self,
        index: usize,
        f: impl FnOnce(&mut VcpuFd) -> R,
    ) -> Result<R, VcpuError> {
        let vcpu = self
            .shared
            .vcpus
            .get(index)
            .ok_or(VcpuError::NoSuchVcpu { vcpu: index, count: self.len() })?;
        if !self.is_paused() {
            return Err(VcpuError::Running);
        }
        Ok(f(&mut lock(&vcpu.fd)))
    }

    fn order(&self, order: Order) {
        self.shared.set_order(&mut lock(&self.shared.control), order);
        self.shared.order_changed.notify_all();
        for (vcpu, thread) in self.shared.vcpus.iter().zip(&self.threads) {
            // Set the flag first, then signal. A vCPU between its check of the order and KVM_RUN
            // sees the flag. A vCPU inside KVM_RUN has already read the flag, and the signal takes
            // it out.
            vcpu.immediate_exit.set(true);
            if let Err(e) = thread.kill(SIGRTMIN()) {
                log::error!("cannot signal a vCPU thread: {e}");
            }
        }
    }

    fn wait_all_out(&self) {
        let all = self.len();
        self.shared.look(LOOK_FOR_OUT, || self.shared.out_seen.load(Ordering::Acquire) == all);
        let mut control = lock(&self.shared.control);
        while control.out < self.len() {
            control = self.shared.all_out.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Installs the handler of the kick signal. The signal only has to interrupt KVM_RUN: the handler
/// does nothing, and the call does not restart.
fn install_kick_handler() -> Result<(), VcpuError> {
    extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_signal_handler(SIGRTMIN(), kicked)
            .map_err(|e| VcpuError::Signal(std::io::Error::from_raw_os_error(e.errno())));
    });
    result
}

/// Whether this vCPU waits for another one to start it.
fn waits_for_startup(fd: &VcpuFd) -> bool {
    fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_UNINITIALIZED)
}

/// Runs a vCPU that has no access pending; KVM returns before it enters the guest.
fn run_nothing(fd: &mut VcpuFd) -> std::io::Result<()> {
    fd.set_kvm_immediate_exit(1);
    let ran = fd.run().map(drop);
    fd.set_kvm_immediate_exit(0);
    match ran {
        Err(error) if error.errno() != libc::EINTR => {
            Err(std::io::Error::from_raw_os_error(error.errno()))
        }
        _ => Ok(()),
    }
}

/// The result of one KVM_RUN.
enum Ran {
    /// KVM_RUN exited, and the exit is served.
    Served,
    /// KVM_RUN was interrupted; no I/O is pending.
    Interrupted,
    /// KVM_RUN did nothing and must be called again.
    Again,
    /// The vCPU cannot continue.
    Fatal(FatalExit),
}

impl Shared {
    fn thread_main(&self, index: usize) {
        let mut counted = false;
        let mut first = true;
        loop {
            let run = catch_unwind(AssertUnwindSafe(|| {
                self.run_until_stopped(index, counted, &mut first)
            }));
            let exit = match run {
                Ok(None) => return,
                Ok(Some(exit)) => exit,
                Err(_) => FatalExit::Panicked,
            };
            // Count it before the handler runs: the handler may make another thread pause, save or
            // revive the machine.
            let revivals = self.count_dead();
            log::error!("vCPU {index}: {exit}");
            self.handler.on_fatal(index, exit);
            if !self.wait_for_revival(index, revivals) {
                return;
            }
            counted = true;
        }
    }

    /// Waits until the dead vCPUs are revived; this one counts as out. `false`: ordered to stop.
    fn wait_for_revival(&self, index: usize, revivals: u64) -> bool {
        let control = self.wait_parked(index, |control| {
            control.revivals != revivals || control.order == Order::Stop
        });
        control.order != Order::Stop
    }

    /// Runs the vCPU while ordered to. `counted`: it already counts as out. Returns `None` when
    /// ordered to stop, counted as out, or the reason why it cannot continue, not counted as out.
    fn run_until_stopped(
        &self,
        index: usize,
        mut counted: bool,
        first: &mut bool,
    ) -> Option<FatalExit> {
        let vcpu = &self.vcpus[index];
        loop {
            if !std::mem::take(&mut counted) {
                self.count_out();
            }
            if self.wait_for_order(index) == Order::Stop {
                return None;
            }
            if std::mem::take(first)
                && let Some(call) = self.before_first_run.get()
            {
                call();
            }
            let mut fd = lock(&vcpu.fd);
            if let Some(exit) = self.run_until_parked(vcpu, &mut fd) {
                return Some(exit);
            }
        }
    }

    fn set_order(&self, control: &mut Control, order: Order) {
        control.order = order;
        self.order_seen.store(order as u8, Ordering::Release);
    }

    fn set_out(&self, control: &mut Control, out: usize) {
        control.out = out;
        self.out_seen.store(out, Ordering::Release);
    }

    /// Polls for `change` for up to `time`, if there is a processor to spare.
    fn look(&self, time: Duration, change: impl Fn() -> bool) {
        let begun = Instant::now();
        while self.looks && !change() && begun.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    fn count_out(&self) {
        let mut control = lock(&self.control);
        let out = control.out + 1;
        self.set_out(&mut control, out);
        if control.out == self.vcpus.len() {
            self.all_out.notify_all();
        }
    }

    /// Counts a vCPU that cannot continue as out and as dead, in one step: a thread that finds all
    /// vCPUs out also finds the dead one (P4).
    fn count_dead(&self) -> u64 {
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
    fn wait_for_order(&self, index: usize) -> Order {
        let mut control = self.wait_parked(index, |control| control.order != Order::Park);
        if control.order == Order::Run {
            let out = control.out - 1;
            self.set_out(&mut control, out);
        }
        control.order
    }

    /// Waits until `over`; does the jobs that come meanwhile.
    fn wait_parked(
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
    fn wait_a_little(&self) {
        let control = lock(&self.control);
        if control.order == Order::Run {
            drop(self.order_changed.wait_timeout(control, LOOK_FOR_ROOM));
        }
    }

    fn must_park(&self) -> bool {
        lock(&self.control).order != Order::Run
    }

    fn run_until_parked(&self, vcpu: &Vcpu, fd: &mut VcpuFd) -> Option<FatalExit> {
        // Clear the flag before reading the order, so that a later order sets it again.
        vcpu.immediate_exit.set(false);
        let mut complete = false;
        let mut refused = None;
        while !self.must_park() {
            if !self.handler.may_go_on() {
                self.wait_a_little();
                continue;
            }
            match self.step(fd, &mut refused) {
                Ok(interrupted) => complete = interrupted,
                Err(exit) => return Some(exit),
            }
        }
        // KVM API, KVM_RUN: for KVM_EXIT_IO, KVM_EXIT_MMIO and others "the corresponding operations
        // are complete (and guest state is consistent) only after userspace has re-entered the
        // kernel with KVM_RUN". With immediate_exit, KVM completes them and returns EINTR. The
        // completion of one half of an access may lead to an exit for the other half. So an
        // interrupted KVM_RUN has completed all that was pending at its begin, and nothing new is
        // pending.
        vcpu.immediate_exit.set(true);
        while !complete {
            match self.step(fd, &mut refused) {
                Ok(interrupted) => complete = interrupted,
                Err(exit) => return Some(exit),
            }
        }
        vcpu.immediate_exit.set(false);
        None
    }

    /// Runs the vCPU once; returns whether it was interrupted. `refused` is the time of the first
    /// of the runs in a row at which KVM only asked for a retry.
    fn step(&self, fd: &mut VcpuFd, refused: &mut Option<Instant>) -> Result<bool, FatalExit> {
        let interrupted = match self.run_once(fd) {
            // A vCPU that waits for its start-up interrupt may wake without reason, any number of
            // times.
            Ran::Again if waits_for_startup(fd) => false,
            Ran::Again => {
                // P7, P9: KVM does not run this vCPU, and a pausing thread waits for it.
                if refused.get_or_insert_with(Instant::now).elapsed() >= AGAIN_FOR {
                    return Err(fatal_exit(fd, Some(libc::EAGAIN)));
                }
                std::thread::sleep(TRY_AGAIN);
                return Ok(false);
            }
            Ran::Served => false,
            Ran::Interrupted => true,
            Ran::Fatal(exit) => return Err(exit),
        };
        *refused = None;
        Ok(interrupted)
    }

    fn run_once(&self, fd: &mut VcpuFd) -> Ran {
        let handler = &*self.handler;
        let reason = match fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                serve_pio(fd, handler);
                return Ran::Served;
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                handler.mmio_read(addr, data);
                return Ran::Served;
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                handler.mmio_write(addr, data);
                return Ran::Served;
            }
            // HLT reaches user space only without an in-kernel APIC; the others are KVM's
            // housekeeping. Neither needs work.
            Ok(
                VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_),
            ) => {
                return Ran::Served;
            }
            Ok(VcpuExit::Intr) => return Ran::Interrupted,
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                return Ran::Fatal(FatalExit::SystemEvent { kind });
            }
            Ok(_) => None,
            Err(e) => match e.errno() {
                libc::EINTR => return Ran::Interrupted,
                libc::EAGAIN => return Ran::Again,
                errno => Some(errno),
            },
        };
        Ran::Fatal(fatal_exit(fd, reason))
    }
}

/// Serves a port exit, one element at a time: a `rep ins` or `rep outs` has several elements in one
/// exit.
fn serve_pio(fd: &mut VcpuFd, handler: &dyn ExitHandler) {
    let run: *mut kvm_run = fd.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_IO, so `io` is the union's valid member.
    let io = unsafe { (*run).__bindgen_anon_1.io };
    let size = usize::from(io.size).max(1);
    // SAFETY: KVM puts `count` elements of `size` bytes at `data_offset` inside the mapped kvm_run
    // area; nobody else accesses them until the next KVM_RUN, which needs `fd`, borrowed here.
    let data = unsafe {
        std::slice::from_raw_parts_mut(
            run.cast::<u8>().add(io.data_offset as usize),
            size * io.count as usize,
        )
    };
    for element in data.chunks_exact_mut(size) {
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            handler.pio_in(io.port, element);
        } else {
            handler.pio_out(io.port, element);
        }
    }
}

/// Why the vCPU cannot continue; `errno` is the error of KVM_RUN, if the call failed.
fn fatal_exit(fd: &mut VcpuFd, errno: Option<i32>) -> FatalExit {
    let rip = fd.get_regs().map_or(0, |r| r.rip);
    if let Some(errno) = errno {
        return FatalExit::RunFailed { rip, errno };
    }
    let run = fd.get_kvm_run();
    match run.exit_reason {
        kvm_bindings::KVM_EXIT_SHUTDOWN => FatalExit::TripleFault { rip },
        kvm_bindings::KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that `internal` is the union's valid member.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let count = (internal.ndata as usize).min(internal.data.len());
            FatalExit::InternalError {
                rip,
                suberror: internal.suberror,
                data: internal.data[..count].to_vec(),
            }
        }
        kvm_bindings::KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that `fail_entry` is the union's valid member.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            FatalExit::FailEntry { rip, reason: fail.hardware_entry_failure_reason }
        }
        reason => FatalExit::Unexpected { rip, reason },
    }
}
