//! The right to make one system call that lets data out (P2).
//!
//! Each system call that lets data out takes a [`Permit`] by value ([`crate::out`]): one permit for
//! one message. Only [`Permits`] makes permits, from a granting answer of the fence. A permit is
//! not `Copy`, and it expires. So a loop over many messages must request a permit for each. If the
//! process is stopped in that loop, its next message is refused.

use std::io;
use std::time::Duration;

use crate::clock::Moment;
use crate::disk_use::disk_fence::DiskFence;
use crate::far_side::FarSide;
use crate::given_up::{GivenUp, NotPermitted};

/// The fence's permission, for one system call.
#[derive(Debug)]
#[must_use = "a permit is spent right before the call that it permits"]
pub(crate) struct Permit {
    /// When the fence was asked.
    asked: Moment,
    /// How long an answer may be reused.
    good_for: Duration,
    /// The maximum age at which a fresh answer may be used, once. A host that takes the right away
    /// waits longer than this before it performs effects. Zero if the answer is reused.
    max_age: Duration,
}

impl Permit {
    /// Spends the permit right before the system call. Reading the clock takes no system call. The
    /// clock advances while the host is suspended. So a process that was stopped since it asked
    /// finds the permit expired.
    ///
    /// # Errors
    /// `Interrupted` when it has expired. The caller asks again, as after a signal.
    pub(crate) fn spend(self) -> io::Result<()> {
        if self.expired() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn expired(&self) -> bool {
        let age = self.asked.elapsed();
        !(age < self.good_for || age <= self.max_age)
    }

    /// For tests of functions that take a permit.
    #[cfg(test)]
    pub(crate) fn granted() -> Self {
        Self { asked: Moment::now(), good_for: Duration::ZERO, max_age: Duration::MAX }
    }
}

/// Returns the permit for one system call that writes (P2).
pub(crate) type May<'a> = &'a mut dyn FnMut() -> Result<Permit, NotPermitted>;

/// The source of a lane's permits.
pub(crate) struct Permits<'l> {
    far_side: &'l FarSide,
    given_up: &'l GivenUp,
    /// When the fence was asked the question that it last granted.
    asked: Option<Moment>,
    /// A permit that was requested in advance, for the first call of an effect.
    ready: Option<Permit>,
}

impl<'l> Permits<'l> {
    pub(crate) fn new(far_side: &'l FarSide, given_up: &'l GivenUp) -> Self {
        Self { far_side, given_up, asked: None, ready: None }
    }

    /// Requests the permit for the next call now. Waits while the fence gives no answer: the caller
    /// must hold no lock.
    pub(crate) fn ahead(&mut self) -> Result<(), NotPermitted> {
        let permit = self.next()?;
        self.ready = Some(permit);
        Ok(())
    }

    /// Ends an effect. Drops a permit that was requested in advance and not spent, so that no other
    /// effect uses it.
    pub(crate) fn end(&mut self) {
        self.ready = None;
    }

    /// Returns the permit for one call. Asks the fence, unless its last granting answer is [still
    /// valid](crate::Fence::good_for). A refusal is final. Waits while the fence gives no answer:
    /// the caller must hold no lock.
    pub(crate) fn next(&mut self) -> Result<Permit, NotPermitted> {
        self.given_up.count_permit();
        self.refuse_if_given_up()?;
        if let Some(ready) = self.ready.take().filter(|ready| !ready.expired()) {
            return Ok(ready);
        }
        let good_for = self.far_side.good_for();
        if let Some(asked) = self.asked.filter(|asked| asked.elapsed() < good_for) {
            return Ok(Permit { asked, good_for, max_age: Duration::ZERO });
        }
        self.asked = self.far_side.permitted_by(self.given_up, None);
        let asked = self.asked.ok_or(NotPermitted)?;
        Ok(Permit { asked, good_for, max_age: self.far_side.max_age() })
    }

    /// As [`next`](Self::next), for a call that writes to a disk. If the disk has a fence record,
    /// asks the record and the fence each time.
    pub(crate) fn next_write(
        &mut self,
        record: Option<&DiskFence>,
    ) -> Result<Permit, NotPermitted> {
        self.given_up.count_permit();
        self.refuse_if_given_up()?;
        let Some(record) = record else { return self.next() };
        let asked = self.far_side.permitted_by(self.given_up, Some(record));
        self.asked = asked;
        let asked = asked.ok_or(NotPermitted)?;
        Ok(Permit { asked, good_for: Duration::ZERO, max_age: self.far_side.max_age() })
    }

    /// As [`next`](Self::next), for a call that writes to an own disk. The fence is not asked: the
    /// image is this machine's alone. A driver that resets its device takes nothing back (R10).
    pub(crate) fn next_own(&self) -> Result<Permit, NotPermitted> {
        self.given_up.count_permit();
        if self.far_side.lets_nothing_out() {
            return Err(NotPermitted);
        }
        Ok(Permit { asked: Moment::now(), good_for: Duration::ZERO, max_age: Duration::MAX })
    }

    /// Calls `tell` to report an effect, unless the effect has been given up.
    pub(crate) fn tell(&self, tell: impl FnOnce() -> bool) -> Result<(), NotPermitted> {
        self.given_up.unless_set(tell)
    }

    fn refuse_if_given_up(&self) -> Result<(), NotPermitted> {
        let refused = self.given_up.is_set() || self.far_side.lets_nothing_out();
        if refused { Err(NotPermitted) } else { Ok(()) }
    }
}
