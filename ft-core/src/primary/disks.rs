//! The rules of a primary with own disks: outputs wait for the standby's images (R4), and until the
//! set names these images (R6).

use alloc::string::String;
use alloc::vec::Vec;

use super::authority::Authority;
use super::{Action, Phase, Primary, Result};
use crate::disks::{Event, Holds};
use crate::{LinkId, Time, deliberate};

impl Primary {
    /// The standby that the set should name now (R6), if any: its images are durable up to a
    /// checkpoint that covers the resync, and this machine holds its outputs. The driver asks the
    /// arbiter, again if it gets no answer, and reports [`Event::Enlarged`].
    #[must_use]
    pub fn wants_in_set(&self) -> Option<LinkId> {
        let covered =
            self.disks.as_ref().is_some_and(|disks| disks.is_covered() && !disks.is_in_set());
        let early = deliberate!(SetBeforeHold) && self.phase == Phase::Copying;
        if covered && self.phase == Phase::Arming || early { self.link() } else { None }
    }

    /// Whether outputs wait for this side's images after a takeover.
    #[must_use]
    pub fn holds_takeover(&self) -> bool {
        self.disks.as_ref().is_some_and(Holds::holds_takeover)
    }

    /// Whether a standby's Bye does not suffice to run alone (R6): its image may have this
    /// machine's generation, and the set may name it.
    pub(super) fn standby_shares_generation(&self) -> bool {
        self.disks.as_ref().is_some_and(Holds::shares_generation) && !deliberate!(AloneByBye)
    }

    /// When the standby has to be durable: a late report counts like a late acknowledgement (R4).
    pub(super) fn durable_deadline(&self) -> Option<Time> {
        let (_, sealed) = self.disks.as_ref()?.oldest()?;
        self.session.as_ref().map(|_| sealed + self.options.ack_timeout)
    }

    pub(super) fn disks(&mut self, now: Time, event: Event, out: &mut Vec<Action>) -> Result<()> {
        let arms = self.phase == Phase::Arming;
        let Some(disks) = &mut self.disks else {
            return Err(self.illegal_named("disks", "this machine has no own disks"));
        };
        match event {
            Event::Listed { epoch, end, flushed } => disks.listed(epoch, end, flushed),
            Event::StandbyDurable { link, durable } => {
                if self.is_current(link) {
                    self.standby_durable(now, durable, out);
                }
            }
            Event::StandbyFailed { link, reason } => {
                if self.is_current(link) {
                    // R4: outputs continue in a term whose set excludes the standby.
                    self.break_off(now, reason, out);
                }
            }
            Event::Enlarged { link } => {
                if self.is_current(link) && (arms || deliberate!(SetBeforeHold)) {
                    self.enlarged(now, out);
                }
            }
            Event::OwnDurable { durable } => {
                if disks.own_durable(durable) {
                    out.push(Action::RunAlone(self.authority.alone(self.term)));
                    self.look_for_standby(now, out);
                }
            }
            Event::OwnFailed { reason } => self.own_failed(reason, out),
        }
        Ok(())
    }

    fn standby_durable(&mut self, now: Time, durable: crate::disks::Seq, out: &mut Vec<Action>) {
        if let Some(disks) = &mut self.disks {
            disks.durable(durable);
        }
        self.release_durable(now, out);
    }

    fn enlarged(&mut self, now: Time, out: &mut Vec<Action>) {
        if let Some(disks) = &mut self.disks {
            disks.enlarged();
        }
        if let Some(epoch) = self.acknowledged.filter(|_| self.phase == Phase::Arming) {
            self.protected(epoch, out);
        }
        self.release_durable(now, out);
    }

    /// Releases what is acknowledged, and durable as far as it must be.
    pub(super) fn release_durable(&mut self, now: Time, out: &mut Vec<Action>) {
        let (Some(disks), Authority::Durable(authority)) = (&mut self.disks, &mut self.authority)
        else {
            return;
        };
        if let Some((durable, sealed)) = disks.release(authority) {
            let proof = authority.acknowledged(durable);
            out.push(Action::Release { proof, latency: now.since(sealed) });
        }
    }

    /// R5: a failed image is never used again. If the standby can continue the guest, it does: it
    /// is told that this machine does not. If not, the guest stops here, with the reason.
    fn own_failed(&mut self, reason: String, out: &mut Vec<Action>) {
        out.push(Action::Hold);
        self.refuse_further(&reason, out);
        self.stop(reason, false, out);
    }
}
