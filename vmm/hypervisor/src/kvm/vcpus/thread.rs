//! The thread of one vCPU: it runs the guest while ordered to, and parks at a point where the
//! vCPU's state is complete.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::control::{Order, Shared, Vcpu, lock};
use super::run::{Ran, fatal_exit, run_once, waits_for_startup};
use crate::kvm::exit::FatalExit;

/// How long KVM may refuse to run a vCPU and ask for a retry. No limit applies to a vCPU that waits
/// for its start-up interrupt.
const AGAIN_FOR: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(1);

impl Shared {
    pub(super) fn thread_main(&self, index: usize) {
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
        let interrupted = match run_once(fd, &*self.handler) {
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
}
