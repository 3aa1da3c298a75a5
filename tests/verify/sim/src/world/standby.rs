//! The driver of a standby.

use ft_core::primary::Primary;
use ft_core::standby::{Action, Event as S, Phase, Report, TakenOver};
use ft_core::wire::Message;
use io_gate::host::{OwnPorts, check_in_flight, new_gate};

use super::primary::{OTHER_REASON, hashes};
use super::{KERNEL, KERNEL_BYTES, World, trace};
use crate::guest::{Guest, State};
use crate::node::Task;

fn write(memory: &mut [[u8; 4096]], address: u64, piece: &[u8]) -> Result<(), String> {
    let (page, at) = (address as usize / 4096, address as usize % 4096);
    let page = memory.get_mut(page).ok_or("outside of memory")?;
    page.get_mut(at..at + piece.len()).ok_or("beyond the page")?.copy_from_slice(piece);
    Ok(())
}

impl World {
    pub(super) fn standby_does(&mut self, node: usize, action: Action) {
        match action {
            Action::Describe { mut hello } => {
                hello.standby_session = self.random.next().max(1);
                self.nodes[node].client.follow(hello.term, &hello.holder);
                let refuses = self.nodes[node].refuses_until > self.now;
                self.observer.tally.refused += u64::from(refuses);
                let event = if refuses || self.random.one_in(20) {
                    S::CannotHost { reason: "no memory".into() }
                } else {
                    // In every other session the standby already has the kernel.
                    hello.boot = None;
                    hello.images = vec![KERNEL; (hello.session % 2) as usize];
                    self.passive(node).lacks_kernel = hello.images.is_empty();
                    S::Described { ours: hello }
                };
                self.nodes[node].tasks.push_back(Task::Standby(event));
            }
            Action::Send { link, frame } => {
                let (at, process) = (self.at, self.nodes[node].process);
                match frame.message {
                    Message::Ack => {
                        self.observer.acknowledges(at, process, frame.term.0, frame.epoch.0);
                        self.passive(node).held_term = frame.term.0;
                    }
                    Message::Welcome(ref hello) => {
                        self.note_welcome(link, (hello.session, hello.standby_session));
                    }
                    Message::Bye { .. } => self.observer.no_longer_holds(process),
                    _ => {}
                }
                self.send(link, &frame);
            }
            Action::CloseLink { link, reason } => {
                trace!(self, "{node} standby closes: {reason}");
                self.close(link);
                let passive = self.passive(node);
                // If another link was turned away, the check goes on.
                if !matches!(passive.core.phase(), Phase::Filling | Phase::Ready) {
                    passive.check = None;
                }
            }
            Action::ApplyBulk(pages) => {
                let memory = &mut self.passive(node).guest.memory;
                pages.for_each_piece(|address, piece| write(memory, address, piece)).unwrap();
            }
            Action::StoreImages(bytes) => self.passive(node).kernel.extend(bytes.0),
            Action::Check(checkpoint) => {
                let passive = self.passive(node);
                let whole = !passive.lacks_kernel || passive.kernel == KERNEL_BYTES;
                assert!(whole, "P7: a checkpoint is held of a guest that cannot be reset");
                let mut parts = checkpoint.state();
                let state: State = postcard::from_bytes(parts.next().unwrap())
                    .expect("P4: a damaged checkpoint passed the checksums");
                let fits = check_in_flight(
                    checkpoint.epoch(),
                    state.next_id,
                    &state.in_flight,
                    &OwnPorts::none(),
                );
                assert!(fits.is_ok(), "P4: a checkpoint that cannot be applied was sent: {fits:?}");
                let room = self.ending || self.calm || !self.random.one_in(80);
                self.passive(node).check = Some((checkpoint.epoch(), room));
            }
            Action::Apply(checkpoint) => {
                let passive = self.passive(node);
                let (term, epoch) = (passive.held_term, checkpoint.epoch());
                let memory = &mut passive.guest.memory;
                checkpoint.for_each_piece(|address, piece| write(memory, address, piece)).unwrap();
                let state: State =
                    postcard::from_bytes(checkpoint.state().next().unwrap()).unwrap();
                passive.guest.registers = state.registers.clone();
                passive.applied = Some((term, epoch.0, state));
                let hashes = checkpoint.hashes().map(|_| hashes(&passive.guest));
                self.check_applied(node, "was applied");
                self.observer.tally.applied += 1;
                if let Some(hashes) = hashes {
                    let event = Task::Standby(S::Hashed { epoch, hashes });
                    self.nodes[node].tasks.push_back(event);
                }
            }
            Action::AskArbiter { term, why } => {
                self.suspects();
                self.nodes[node].waits = 0;
                self.passive(node).asked = Some(why);
                self.passive(node).opens = Some(term.0);
            }
            Action::TakeOver { taken, reason } => {
                trace!(self, "{node} takes over in term {}: {reason}", taken.term());
                let same = Some(&reason) == self.passive(node).asked.as_ref();
                assert!(same, "{OTHER_REASON}");
                self.take_over(node, taken);
            }
            Action::Discard { reason } => {
                trace!(self, "{node} standby discards: {reason}");
                self.observer.tally.discarded += 1;
                let process = self.nodes[node].process;
                let term = self.observer.held(process).map_or(0, |held| held.term);
                let winner = self.register.winners.get(&(term + 1));
                self.observer.discards(process, winner.is_some_and(|winner| *winner != process));
                let passive = self.passive(node);
                passive.guest = Guest::new();
                passive.applied = None;
                passive.opens = None;
                passive.kernel.clear();
            }
            Action::Stop { reason } => {
                trace!(self, "{node} standby stops: {reason}");
                let may = self.passive(node).may_stop;
                assert!(may, "P4: a standby stops on a message that its primary has not sent");
                self.kill(node, false);
            }
            Action::Report(report) => {
                trace!(self, "{node} standby: {report}");
                self.note_standby(node, &report);
            }
        }
    }

    fn note_standby(&mut self, node: usize, report: &Report) {
        match report {
            Report::Filling { term, .. } => {
                let heard = &mut self.passive(node).heard_term;
                assert!(
                    *heard <= term.0,
                    "P2: a standby that has heard of term {heard} follows a primary of term {term}"
                );
                *heard = term.0;
                self.passive(node).asks_operator = false;
            }
            Report::WaitingForOperator { reason } => {
                self.suspects();
                self.passive(node).asked = Some(reason.clone());
                self.passive(node).asks_operator = true;
                self.observer.tally.operator_waits += 1;
            }
            _ => {}
        }
    }

    fn check_applied(&mut self, node: usize, what: &str) {
        let crate::node::Role::Passive(passive) = &self.nodes[node].role else { return };
        let (term, epoch, state) = passive.applied.as_ref().expect("P4: no checkpoint is held");
        assert!(state.registers == passive.guest.registers, "P4: half of a checkpoint {what}");
        self.observer.is_as_sealed(*term, *epoch, &passive.guest, what);
    }

    /// Sends heartbeats during a long check.
    fn show_life(&mut self, node: usize) {
        let now = self.nodes[node].core_time(self.now);
        if let Some((link, frame)) = self.passive(node).core.sign_of_life(now) {
            self.send(link, &frame);
        }
    }

    pub(super) fn answer_check(&mut self, node: usize) {
        if self.nodes[node].hangs_until > self.now {
            return self.show_life(node);
        }
        let (epoch, room) = self.passive(node).check.take().expect("a check is under way");
        let event = if room || self.ending {
            S::Applicable { epoch }
        } else {
            self.observer.tally.not_applicable += 1;
            S::NotApplicable { epoch, reason: "no room".into() }
        };
        self.give(node, Task::Standby(event));
    }

    /// The devices' backends are open, or could not be opened; the arbiter is asked only after
    /// this.
    pub(super) fn has_opened(&mut self, node: usize, term: u64) {
        if self.healing || !self.random.one_in(8) {
            self.nodes[node].client.wanted = Some(term);
            return;
        }
        self.observer.tally.not_ready += 1;
        self.give(node, Task::Standby(S::NotReady { reason: "the tap is taken".into() }));
    }

    fn take_over(&mut self, node: usize, taken: TakenOver) {
        self.check_applied(node, "was continued from");
        self.observer.tally.takeovers += 1;
        let (process, won) = (self.nodes[node].process, taken.term().0);
        let winner = self.register.winners.get(&won).copied();
        self.observer.acts(won, process, winner);
        let options = self.primary_options();
        let now = self.nodes[node].core_time(self.now);
        let passive = self.passive(node);
        let guest = passive.guest.clone();
        let (_, epoch, state) = passive.applied.take().expect("looked at above");
        assert_eq!(epoch, taken.epoch().0, "P4: another checkpoint is applied than is held");
        self.observer.begins_from(won, epoch);
        self.observer.no_longer_holds(process);
        // The storage learns of the term before any other use.
        self.storage.term = self.storage.term.max(won);
        let (mut ledger, authority) = new_gate();
        let in_flight = if deliberate!(DropInFlight) { Vec::new() } else { state.in_flight };
        let base = if deliberate!(EpochFromZero) { ft_core::Epoch(0) } else { taken.epoch() };
        ledger.adopt(base, state.next_id, in_flight);
        let (core, actions) = Primary::after_takeover(authority, options, taken, now);
        self.activate(node, core, ledger, guest, actions);
    }
}
