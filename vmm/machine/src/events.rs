//! Events of the whole machine, and its end for the thread that waits for it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use kemari_hypervisor::kvm::FatalExit;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An event for the device thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// A vCPU cannot continue.
    Fatal {
        /// The vCPU's number.
        vcpu: usize,
        /// The reason.
        exit: FatalExit,
    },
}

/// Why the machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest or the operator powered it off.
    PoweredOff,
    /// A signal ended it.
    Signal(i32),
    /// Another machine has the right to run the guest (P2).
    Fenced(String),
    /// It was not protected in time, or the standby refused it.
    Unprotected(String),
    /// It failed.
    Failed(String),
}

impl Ended {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PoweredOff => 0,
            Self::Signal(number) => 128_u8.saturating_add(u8::try_from(*number).unwrap_or(u8::MAX)),
            Self::Fenced(_) => 3,
            Self::Unprotected(_) => 5,
            Self::Failed(_) => 1,
        }
    }
}

/// The machine's events and its end.
pub struct Events {
    queue: Mutex<VecDeque<MachineEvent>>,
    event: EventFd,
    ended: Mutex<Option<Ended>>,
    ended_changed: Condvar,
}

impl Events {
    /// Creates an empty queue of events.
    ///
    /// # Errors
    /// When the descriptor cannot be created.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(VecDeque::new()),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            ended: Mutex::new(None),
            ended_changed: Condvar::new(),
        })
    }

    /// Queues an event for the device thread.
    pub(crate) fn post(&self, event: MachineEvent) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        // Fails only if the counter is at its maximum: then it is readable already.
        let _ = self.event.write(1);
    }

    /// Readable while there are events.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    pub(crate) fn take(&self) -> Vec<MachineEvent> {
        // Fails only if nothing was signalled.
        let _ = self.event.read();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Ends the machine. Only the first call has an effect.
    pub fn end(&self, ended: Ended) {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(ended);
            self.ended_changed.notify_all();
        }
    }

    /// Waits until the machine has ended.
    #[must_use]
    pub fn wait(&self) -> Ended {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(ended) = &*slot {
                return ended.clone();
            }
            slot = self.ended_changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the machine has ended, at most for `limit`.
    #[must_use]
    pub fn wait_within(&self, limit: Duration) -> Option<Ended> {
        let slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended_changed.wait_timeout_while(slot, limit, |slot| slot.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Why the machine ended; `None`: it has not ended.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts_and_has_a_code() {
        let events = Events::new().expect("a descriptor");
        assert_eq!(events.ended(), None);
        events.end(Ended::Signal(15));
        events.end(Ended::PoweredOff);
        assert_eq!(events.wait(), Ended::Signal(15));
        assert_eq!(Ended::Signal(2).exit_code(), 130);
        assert_eq!(Ended::Fenced(String::new()).exit_code(), 3);
    }
}
