//! How a run ends: first the standby hears of it, then the machine stops, then other machines may
//! have its disks and its name.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ft_core::Term;
use ft_core::primary::{Event, Phase};
use kemari_machine::Ended;

use super::Engine;
use super::claims::Last;
use super::session::{Closed, SendingSession};
use crate::ownership;

/// Time limit for a failed machine to lock the engine's state, in which it sees whether it has a
/// standby.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// Time limit for the standby to read the last message of a machine that ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time limit for released effects to finish at the end. Longer than a look at a fence that gets no
/// answer, or a console that nobody reads.
const REST: Duration = Duration::from_secs(8);
/// As [`REST`], for a machine that is known to be stuck.
const STUCK_REST: Duration = Duration::from_secs(1);
/// Time limit for the arbiter's answer to a claim at the end. The winner of a term waits at most
/// two seconds before it uses it.
const LAST_ANSWER: Duration = Duration::from_secs(5);

impl Engine {
    /// Waits for the end of the running guest, shuts everything down in good order and releases the
    /// term. Returns how the guest has ended. `ends` is called first: the steps after it may wait.
    pub fn to_the_end(self: &Arc<Self>, ends: impl FnOnce(&Ended)) -> Ended {
        // Leak one reference: the thread that drops the last one would have to tear the engine
        // down, and most threads may not. The engine ends with the process.
        std::mem::forget(self.clone());
        let ended = self.machine.wait();
        ends(&ended);
        if let Some(term) = self.conclude(&ended) {
            ownership::release(self.arbiter.as_ref(), term);
        }
        self.note_put_away(ended.clone());
        ended
    }

    /// Stops a machine that has ended. Returns the term to release, if no machine is to continue
    /// the guest and no disk write can still arrive.
    pub fn conclude(self: &Arc<Self>, ended: &Ended) -> Option<Term> {
        // P7: tell the standby first. The steps below may last longer than its heartbeat time-out,
        // and it would then take over.
        let left = match ended {
            Ended::PoweredOff => self.leave(Event::GuestPoweredOff),
            Ended::Signal(_) | Ended::Unprotected(_) => self.leave(Event::OperatorStop),
            Ended::Failed(why) => self.leave_failed(why),
            Ended::Fenced(_) => None,
        };
        let limit = if self.watchdog.is_stalled() { STUCK_REST } else { REST };
        let rests = self.machine.stop_within(limit);
        if !rests {
            log::error!(
                "expected the devices to finish within {limit:?}, found that they have not; released effects that are \
                 not performed yet are lost"
            );
        }
        let (term, closed) = left?;
        let term = self.last_term(term)?;
        // P2: other machines may have the disks and the name once this machine writes nothing more.
        // That holds even if the guest still runs because the device thread is stuck: from here on
        // the gate releases nothing.
        let free = self.machine.gate().free_disks();
        if let Some(closed) = closed {
            // Wait only so that the last message leaves before the process exits.
            let _ = closed.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LAST_WORDS);
        }
        free.then_some(term)
    }

    /// The term in which the machine ends: `term`, or a later one that its last claim has won.
    /// `None` if another machine has won the later one.
    fn last_term(&self, term: Term) -> Option<Term> {
        match self.claims.settled(LAST_ANSWER) {
            Ok(None) => Some(term),
            Ok(Some(Last::Won(won))) => Some(term.max(won)),
            Ok(Some(Last::Lost)) => {
                log::warn!("another machine runs the guest now: no effect is released");
                None
            }
            Err(()) => {
                log::warn!(
                    "the arbiter has not answered within {LAST_ANSWER:?} whether term {} is this machine's: the next start may need \
                     --seize",
                    term.next()
                );
                Some(term)
            }
        }
    }

    /// Tells the standby, if there is one, that this side ends. Returns the term and the channel
    /// that disconnects when the message has left; `None` when the engine is stuck.
    fn leave(self: &Arc<Self>, event: Event) -> Option<(Term, Option<Closed>)> {
        let Some(mut state) = self.lock_within(LAST_WORDS) else {
            log::error!("cannot report the end to the standby: the engine is stuck");
            return None;
        };
        let (term, closed) =
            (state.primary.term(), state.session.as_ref().map(SendingSession::closed));
        self.event_locked(&mut state, event);
        Some((term, closed))
    }

    /// Lets a standby take over at once, before this side has ended. P7: without a standby that
    /// holds a checkpoint no other machine can continue the guest. This side then ends as after an
    /// operator's stop, and the next start does not need to seize the name.
    fn leave_failed(self: &Arc<Self>, why: &str) -> Option<(Term, Option<Closed>)> {
        // Do not wait long: this side still sends signs of life until the watchdog knows of the
        // failure.
        let nobody_else = |phase: Phase| !phase.standby_may_take_over() && phase != Phase::Stopped;
        if let Some(mut state) = self.lock_within(LAST_LOOK)
            && nobody_else(state.primary.phase())
        {
            let term = state.primary.term();
            let closed = state.session.as_ref().map(SendingSession::closed);
            self.event_locked(&mut state, Event::OperatorStop);
            return Some((term, closed));
        }
        self.watchdog.has_failed(why);
        let _ = self.leave(Event::Tick);
        None
    }

    /// Tells the standby why this process dies, whatever state the other threads are in. Waits at
    /// most `patience` until the standby has read it. To the standby this is a lost link with a
    /// reason: it asks the arbiter (P2).
    pub fn last_word(&self, reason: String, patience: Duration) {
        let sender = self.final_sender().take();
        // P7: take the sender first. The standby closes the link now, and this side must not claim
        // the next term because of that.
        if let Some(sender) = &sender {
            sender.send_refusal(reason.clone());
        }
        self.watchdog.has_failed(&reason);
        if let Some(sender) = &sender {
            sender.wait_until_read(patience);
        }
    }

    /// Writes an event to the audit log before this process dies.
    pub fn record_last(&self, event: kemari_audit::Event) {
        if let Some(audit) = &self.options.audit {
            audit.settle(event);
        }
    }
}
