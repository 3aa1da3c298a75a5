//! The vCPU threads: they run the guest, serve its exits, and park at a point where their state is
//! complete.

mod control;
mod immediate_exit;
mod run;
mod thread;

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, Once, OnceLock, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::exit::ExitHandler;
use control::{Control, LOOK_FOR_OUT, Order, Shared, Vcpu, lock};
use immediate_exit::ImmediateExit;
use run::run_nothing;

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
