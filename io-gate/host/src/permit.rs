//! The right to make one system call that lets something out (P2).
//!
//! Whatever reaches the outside takes a [`Permit`] by value ([`crate::out`]): one message, one permit. Only [`Permits`] makes
//! them, from the fence's yes; a permit is no copy, and it expires. So a loop over many messages has to come back here for
//! each, however it is written, and a process that was stopped in it finds out before the next one.

use std::io;
use std::time::Duration;

use crate::backend::disk_fence::DiskFence;
use crate::clock::Moment;
use crate::core::Core;
use crate::given_up::{GivenUp, NotPermitted};

/// The fence's yes, for one system call.
#[derive(Debug)]
#[must_use = "a permit is spent right before the call that it permits"]
pub(crate) struct Permit {
    asked: Moment,
    /// How long a yes may be used again.
    good_for: Duration,
    /// How old a yes may be that has just come and is acted upon once: no older than whoever takes the right away keeps still
    /// for. Zero: it has not just come.
    max_age: Duration,
}

impl Permit {
    /// Right before the system call. The clock is read without one, and goes on in a suspended host, so that a process that
    /// was stopped since it asked finds out here.
    ///
    /// # Errors
    /// `Interrupted` when it has expired: as after a signal, the caller asks again.
    pub(crate) fn spend(self) -> io::Result<()> {
        if self.expired() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn expired(&self) -> bool {
        let age = self.asked.elapsed();
        !(age < self.good_for || age <= self.max_age)
    }

    /// For tests of what takes one.
    #[cfg(test)]
    pub(crate) fn granted() -> Self {
        Self { asked: Moment::now(), good_for: Duration::ZERO, max_age: Duration::MAX }
    }
}

/// Gives the permit for one system call that writes (P2).
pub(crate) type May<'a> = &'a mut dyn FnMut() -> Result<Permit, NotPermitted>;

/// Where a lane gets its permits from.
pub(crate) struct Permits<'l> {
    core: &'l Core,
    given_up: &'l GivenUp,
    /// When the question was asked to which the last answer was yes.
    asked: Option<Moment>,
    /// Asked for ahead, for the first call of an effect.
    ready: Option<Permit>,
}

impl<'l> Permits<'l> {
    pub(crate) fn new(core: &'l Core, given_up: &'l GivenUp) -> Self {
        Self { core, given_up, asked: None, ready: None }
    }

    /// The permit for the next call, asked for now: while nobody can tell, this waits, so nothing is locked here.
    pub(crate) fn ahead(&mut self) -> Result<(), NotPermitted> {
        let permit = self.next()?;
        self.ready = Some(permit);
        Ok(())
    }

    /// The effect for which a permit was asked ahead is dealt with: what was not spent is spent on nothing else.
    pub(crate) fn end(&mut self) {
        self.ready = None;
    }

    /// The permit for one call. The fence is asked, unless its last yes is [still good](crate::Fence::good_for). Once the
    /// answer was no, it stays no. While nobody can tell, this waits: so nothing is locked here.
    pub(crate) fn next(&mut self) -> Result<Permit, NotPermitted> {
        self.refuse_if_given_up()?;
        if let Some(ready) = self.ready.take().filter(|ready| !ready.expired()) {
            return Ok(ready);
        }
        let good_for = self.core.good_for();
        if let Some(asked) = self.asked.filter(|asked| asked.elapsed() < good_for) {
            return Ok(Permit { asked, good_for, max_age: Duration::ZERO });
        }
        self.asked = self.core.permitted_by(self.given_up, None);
        let asked = self.asked.ok_or(NotPermitted)?;
        Ok(Permit { asked, good_for, max_age: self.core.max_age() })
    }

    /// As [`next`](Self::next), for a call that writes to a disk: the fence is asked each time, and the record beside the
    /// disk, where there is one.
    pub(crate) fn next_write(
        &mut self,
        record: Option<&DiskFence>,
    ) -> Result<Permit, NotPermitted> {
        self.refuse_if_given_up()?;
        let Some(record) = record else { return self.next() };
        let asked = self.core.permitted_by(self.given_up, Some(record));
        self.asked = asked;
        let asked = asked.ok_or(NotPermitted)?;
        Ok(Permit { asked, good_for: Duration::ZERO, max_age: self.core.max_age() })
    }

    /// Has an effect told of, unless it was given up meanwhile.
    pub(crate) fn tell(&self, tell: impl FnOnce() -> bool) -> Result<(), NotPermitted> {
        self.given_up.unless_set(tell)
    }

    fn refuse_if_given_up(&self) -> Result<(), NotPermitted> {
        let refused = self.given_up.is_set() || self.core.lets_nothing_out();
        if refused { Err(NotPermitted) } else { Ok(()) }
    }
}
