//! The events that a thread waits for on a backend's descriptor: input, while the device thread has
//! room, and room for output, while the lane needs it. Each side changes its own half, under the
//! lock of the state that both share.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::descriptors;
use crate::inputs::{Inputs, Role, Token, Watch};

/// See the module.
pub(crate) struct Interest {
    /// `None` while there is no descriptor to watch: not attached yet, not connected, or broken.
    watch: Option<Watch>,
    input: bool,
    output: bool,
}

impl Interest {
    /// Created before there is a descriptor. Input is wanted from the first one on.
    pub(crate) fn new() -> Self {
        Self { watch: None, input: true, output: false }
    }

    /// Watches a descriptor instead of the former one.
    pub(crate) fn watch(&mut self, watch: Watch) -> io::Result<()> {
        self.watch = Some(watch);
        self.output = false;
        self.update()
    }

    /// Stops watching. Call this before the descriptor is closed. A descriptor that has hung up or
    /// is broken is always ready, and would wake the thread continually.
    pub(crate) fn unwatch(&mut self) {
        self.watch = None;
    }

    pub(crate) fn want_input(&mut self, wanted: bool) {
        if std::mem::replace(&mut self.input, wanted) != wanted {
            self.update_or_log();
        }
    }

    pub(crate) fn want_output(&mut self, wanted: bool) {
        if std::mem::replace(&mut self.output, wanted) != wanted {
            self.update_or_log();
        }
    }

    fn update_or_log(&mut self) {
        if let Err(error) = self.update() {
            log::error!("epoll_ctl on a backend's descriptor: {error}");
        }
    }

    fn update(&mut self) -> io::Result<()> {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, self.input);
        wanted.set(EventSet::OUT, self.output);
        self.watch.as_mut().map_or(Ok(()), |watch| watch.want(wanted))
    }
}

/// Schedules retries at growing intervals, up to a limit, until one succeeds.
pub(crate) struct Retry {
    // Declared before the timer, so that it is dropped first.
    _watch: Watch,
    timer: TimerFd,
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Retry {
    pub(crate) fn new(
        inputs: &Inputs,
        token: Token,
        role: Role,
        first: Duration,
        longest: Duration,
    ) -> io::Result<Self> {
        let timer = descriptors::timer()?;
        let mut watch = inputs.watch(timer.as_raw_fd(), Token { role, ..token });
        watch.want(EventSet::IN)?;
        Ok(Self { _watch: watch, timer, first, longest, next: first })
    }

    /// Schedules the next attempt.
    pub(crate) fn later(&mut self) {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        self.after(delay);
    }

    /// Sets the timer to expire after this delay.
    pub(crate) fn after(&mut self, delay: Duration) {
        if let Err(error) = self.timer.reset(delay, None) {
            log::error!("cannot set a timer: {error}");
        }
    }

    /// Resets the interval after a success.
    pub(crate) fn worked(&mut self) {
        self.next = self.first;
    }

    /// Clears the timer after it has expired.
    pub(crate) fn expired(&mut self) {
        // Do not read the timer: it may have been set again since it expired, and the read would
        // block.
        let _ = self.timer.clear();
    }
}
