//! The end of a session, and of a standby: the machine is dropped, and a term that was won and is
//! not needed is released (P2, P7).

use std::time::{Duration, Instant};

use ft_core::Term;
use ft_core::standby::Event;
use kemari_confine::seccomp::Role;
use kemari_confine::threads;
use kemari_machine::config::MachineConfig;
use kemari_machine::disks;
use kemari_support::aside::Aside;

use super::{Input, StandbyDriver};

/// How long a stopped standby waits for the arbiter's answer.
const LAST_ANSWER: Duration = Duration::from_secs(2);

impl StandbyDriver {
    /// Waits for the arbiter's answer after a stop during the claim of `term`. Releases the term if
    /// it was granted, because this side will not act in it. Returns whether it was granted.
    pub(super) fn give_back(&self, term: Term) -> bool {
        let Some(arbiter) = &self.arbiter else { return false };
        let deadline = Instant::now() + LAST_ANSWER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let given_back = match self.queue.recv_timeout(left) {
                Ok(Input::Event(Event::ArbiterGranted { .. })) => {
                    if let Some(hosted) = &self.hosted {
                        give_disks_back(hosted.machine.config().clone(), term, arbiter.holder());
                    }
                    kemari_arbiter::end(arbiter, term)
                }
                Ok(Input::Event(
                    Event::ArbiterDenied { .. } | Event::ArbiterUnreachable { .. },
                )) => return false,
                Ok(_) => continue,
                Err(_) => {
                    log::warn!(
                        "the arbiter has not answered for {LAST_ANSWER:?} whether this side has term {term}: the next start may \
                         need --seize"
                    );
                    return false;
                }
            };
            if let Err(error) = given_back {
                log::warn!(
                    "term {term} was won and could not be given back, so that the next start needs --seize: {error}"
                );
            }
            return true;
        }
    }

    /// P9: drops the hosted machine without a long wait for its end.
    pub(super) fn let_go(&mut self) {
        self.devices.set(None);
        if let Some(hosted) = self.hosted.take() {
            self.former.take_apart(hosted);
        }
    }

    /// P7: releases `term`, which was won and is no longer needed. This side does not act in it, so
    /// other machines may have the next term and the disks.
    pub(super) fn give_free(&mut self, term: Term) {
        let Some(arbiter) = self.arbiter.clone() else { return };
        let machine = self.asked_for.take_if(|(asked, _)| *asked == term);
        let end = move || {
            if let Some((term, machine)) = machine {
                give_disks_back(machine, term, arbiter.holder());
            }
            match arbiter.end(term) {
                Ok(()) => log::warn!("term {term} was won too late and given back"),
                Err(error) => {
                    log::warn!("term {term} was won and could not be given back: {error}")
                }
            }
        };
        if let Err(error) = threads::start("give-back", Role::Main, end) {
            log::warn!("term {term} was won and could not be given back: {error}");
        }
    }
}

/// P2: releases the disks in `term`, which this side has won and in which it has written nothing.
/// Storage may not answer, and a stop does not wait for it (P9).
fn give_disks_back(machine: MachineConfig, term: Term, holder: &str) {
    let holder = holder.to_owned();
    let work =
        move || disks::give_back(&machine, term.0, &holder).map_err(|error| error.to_string());
    let what = ("disks", "the records of the disks");
    if let Err(error) = Aside::default().run(what, LAST_ANSWER, work) {
        log::warn!(
            "term {term} was won and could not be given back on the disks, so that a start without an arbiter needs \
             --seize: {error}"
        );
    }
}
