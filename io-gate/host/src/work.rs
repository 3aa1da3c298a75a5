//! The state of a lane while it performs: its permits, and the completions to report.

use io_gate::Outcome;
use io_gate::host::{Performable, Request};

use crate::completion::{Completion, Kind, Performed};
use crate::far_side::FarSide;
use crate::given_up::{GivenUp, NotPermitted};
use crate::observer::Noted;
use crate::permit::Permits;

/// See the module.
pub(crate) struct Work<'l> {
    pub(crate) far_side: &'l FarSide,
    pub(crate) permits: Permits<'l>,
    done: Vec<Completion>,
}

impl<'l> Work<'l> {
    pub(crate) fn new(far_side: &'l FarSide, given_up: &'l GivenUp) -> Self {
        Self { far_side, permits: Permits::new(far_side, given_up), done: Vec::new() }
    }

    /// Begins an effect: asks the fence, and informs the observer, so that the effect is recorded
    /// before it happens. An input needs neither.
    pub(crate) fn begin(&mut self, request: &Performable) -> Result<(), NotPermitted> {
        self.far_side.assert_own(request);
        let Request::Effect(_) = request.record().request else { return Ok(()) };
        // P2: if the process is stopped while it informs the observer, the permit is too old at the
        // first system call.
        self.permits.ahead()?;
        let (Some(observer), Some(effect)) =
            (self.far_side.observer(), Noted::of(request.record()))
        else {
            return Ok(());
        };
        let (replay, term) = (request.is_replay(), self.far_side.term());
        self.permits.tell(|| observer.performing(effect, replay, term))
    }

    /// Completes a request.
    pub(crate) fn done(&mut self, request: Performable, outcome: Outcome, data: Vec<u8>) {
        let done = self.far_side.settle_detached(Performed { request, outcome, data });
        self.done.extend(done.map(|done| Completion(Kind::Performed(done))));
    }

    /// Ends an effect that was begun and turned out not to be permitted. It stays in flight: it
    /// must not be reported as performed, and the machine that has the right performs it.
    pub(crate) fn withheld(&self, request: Performable) {
        if let (Some(observer), Some(effect)) =
            (self.far_side.observer(), Noted::of(request.record()))
        {
            observer.withheld(effect);
        }
        self.not_permitted(request);
    }

    /// As [`withheld`](Self::withheld), for an effect that was not begun.
    pub(crate) fn not_permitted(&self, request: Performable) {
        let mut ledger = self.far_side.ledger();
        ledger.settle_if_abandoned(request);
        self.far_side.take_up(ledger);
    }

    /// Gives the completions of chains to the device thread.
    pub(crate) fn post(&mut self) {
        self.far_side.post_all(&mut self.done);
    }
}
