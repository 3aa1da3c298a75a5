//! The driver of a primary, and the guest that it runs.

use ft_core::pages::{Compression, PAGE_SIZE, Page, PageFrame, PageFrames};
use ft_core::primary::{Action, Event as P, Report};
use ft_core::wire::{ByeReason, Data, EpochDigest, Hashes, Kind, Message, Outgoing};
use ft_core::{Epoch, LinkId, Term};
use io_gate::host::{GuestBytes, GuestRange, MemoryFault, Origin, lend_chain};
use io_gate::{BlockFlush, BlockWrite, ConsoleTx, NetTx, Payload, Port};

use super::network::split;
use super::{KERNEL, KERNEL_BYTES, MS, World, trace};
use crate::guest::{Guest, PAGES, State, Wanted};
use crate::node::{Active, Role, Taken, Task};
use crate::random::Random;

/// P9: the reason for winning a term is the reason for asking for it, whatever happened in between.
pub(super) const OTHER_REASON: &str = "P9: the arbiter was not asked for this reason";

/// Memory of a chain whose bytes this simulation stores elsewhere.
struct Nowhere;

impl GuestBytes for Nowhere {
    fn read_at(&self, addr: u64, _into: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault(addr))
    }

    fn write_at(&self, addr: u64, _from: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault(addr))
    }
}

impl World {
    pub(super) fn primary_does(&mut self, node: usize, action: Action) {
        match action {
            Action::Connect => {
                let event = self.connect(node);
                // Usually at once. If it takes time, the operator may in the meantime order that no
                // standby is wanted.
                let takes = if self.random.one_in(4) { self.random.below(150 * MS) } else { 0 };
                let due = self.now + takes;
                let active = self.active(node);
                (active.dials, active.search.idle) = (Some((due, event)), 0);
            }
            Action::Send { link, frame } => {
                if matches!(frame.message, Message::Bye { reason: ByeReason::Detach, .. }) {
                    self.active(node).detaches = Some(0);
                }
                let wanted =
                    self.active(node).searches || !matches!(frame.message, Message::Hello(_));
                assert!(wanted, "P7: a primary joins a standby, although the operator wants none");
                self.send(link, &frame);
            }
            Action::CloseLink { link, reason } => {
                trace!(self, "{node} primary closes: {reason}");
                self.close(link);
                let active = self.active(node);
                (active.precopy, active.detaches, active.says_protected) = (None, None, None);
                active.seals_first = None;
            }
            Action::StartPrecopy { link, options, session, images } => {
                assert!(
                    self.has_welcomed(link, session),
                    "P4: memory is sent in a session that its standby did not open"
                );
                self.echo(link, true);
                let sent = Active::none_sent(&mut self.random);
                let active = self.active(node);
                active.digest = EpochDigest::new(session);
                active.verify = options.verify;
                if !deliberate!(KeepSent) {
                    active.sent = sent;
                }
                active.sessions += 1;
                let (epoch, term) = (active.ledger.epoch(), active.core.term());
                let kernel = KERNEL_BYTES.chunks(2).filter(|_| images == [KERNEL]);
                let frames: Vec<Task> = kernel
                    .map(|part| {
                        let (mut bytes, message) =
                            (Vec::new(), Message::Image(Data(part.to_vec())));
                        let frame = Outgoing { epoch, term, message };
                        active.digest.add(&frame.encode(&mut bytes).unwrap(), 0);
                        Task::Send(link, bytes)
                    })
                    .collect();
                if deliberate!(LoseDirtySet) && active.sessions > 1 {
                    active.precopy = Some(PAGES);
                } else {
                    active.precopy = Some(0);
                    active.guest.dirty = [false; PAGES];
                }
                self.nodes[node].tasks.extend(frames);
            }
            Action::SealFirst { link } => self.active(node).seals_first = Some(link),
            Action::Hold => self.active(node).ledger.hold(),
            Action::Release { proof, .. } => {
                let limit = self.primary_options().heartbeat_timeout;
                self.nodes[node].waits = 0;
                let active = self.active(node);
                assert!(
                    active.silence <= limit,
                    "P2: an acknowledgement that came after a silence of {:?} is acted upon",
                    active.silence
                );
                let term = active.core.term().0;
                self.observer.releases(term, proof.epoch().0);
                let released = self.active(node).ledger.release(proof);
                self.enqueue(node, released);
            }
            Action::RunAlone(proof) => {
                trace!(self, "{node} runs alone in term {}", proof.term());
                let (term, process) = (proof.term().0, self.nodes[node].process);
                let winner = self.register.winners.get(&term).copied();
                self.observer.acts(term, process, winner);
                self.observer.tally.ran_alone += 1;
                self.active(node).asks_operator = false;
                let released = self.active(node).ledger.run_alone(proof);
                self.enqueue(node, released);
            }
            Action::AskArbiter { term, why } => {
                self.active(node).asked = Some(why);
                self.suspects();
                self.nodes[node].waits = 0;
                self.nodes[node].client.wanted = Some(term.0);
            }
            Action::Stop { reason, fenced } => {
                trace!(self, "{node} primary stops, fenced {fenced}: {reason}");
                if fenced {
                    self.observer.tally.fenced += 1;
                    let (last, holder) = self.register.last();
                    let (term, process) =
                        (self.active(node).core.term().0, self.nodes[node].process);
                    assert!(
                        last > term && holder != process,
                        "P7: a machine was fenced, but no other machine took its place"
                    );
                }
                self.kill(node, false);
            }
            Action::Report(report) => {
                trace!(self, "{node} primary: {report}");
                let active = self.active(node);
                match report {
                    Report::WaitingForOperator { ref reason } => {
                        active.asks_operator = true;
                        active.asked = Some(reason.clone());
                    }
                    Report::RunsAlone { ref reason, .. } => {
                        assert!(Some(reason) == active.asked.as_ref(), "{OTHER_REASON}");
                    }
                    Report::Protected { .. } => active.says_protected = Some(true),
                    Report::Degraded { .. } => active.says_protected = Some(false),
                    _ => {}
                }
                self.note(&report);
            }
        }
    }

    fn note(&mut self, report: &Report) {
        let tally = &mut self.observer.tally;
        match report {
            Report::Protected { .. } => {
                tally.protected += 1;
                tally.reprotected += u64::from(tally.takeovers + tally.ran_alone > 1);
            }
            Report::Verified { verified, .. } => {
                assert!(verified.agree, "P8: {verified:?}");
                tally.verified += 1;
            }
            Report::LinkLost { reason } if reason.contains("has not been acknowledged") => {
                tally.given_up += 1;
            }
            Report::WaitingForOperator { .. } => {
                tally.operator_waits += 1;
                self.suspects();
            }
            Report::Stalled { .. } => tally.stalls += 1,
            _ => {}
        }
    }

    /// Lets the guest run, and the engine with it.
    pub(super) fn work(&mut self, node: usize) {
        match &self.nodes[node].role {
            Role::Passive(passive) if passive.check.is_some() => return self.answer_check(node),
            Role::Active(_) if self.nodes[node].stuck_until > self.now => return,
            Role::Active(_) => {}
            _ => return,
        }
        self.settle(node);
        // Sometimes the guest is idle: then only heartbeats are sent.
        let rests = (self.seed + self.at / 500).is_multiple_of(4);
        if !rests {
            self.run_guest(node);
        }
        if !self.is_active(node) || !self.nodes[node].tasks.is_empty() {
            return;
        }
        let sealer_held_until = self.active(node).taken.as_ref().map(|taken| taken.until);
        if sealer_held_until.is_some_and(|until| until <= self.now) {
            return self.submit(node);
        }
        if self.active(node).precopy.is_some() {
            return self.precopy(node);
        }
        if sealer_held_until.is_some() {
            return;
        }
        if let Some(link) = self.active(node).seals_first.take() {
            self.seal(node, link);
            return self.run_tasks(node);
        }
        let seals = self.random.one_in(2);
        let active = self.active(node);
        let clean = active.ledger.held() == 0 && active.guest.dirty == [false; PAGES];
        if seals && !(rests && clean) && active.core.may_seal() {
            let link = active.core.link().expect("an epoch is sealed for a session");
            self.seal(node, link);
            self.run_tasks(node);
        }
    }

    fn run_guest(&mut self, node: usize) {
        let mut random = Random::new(self.random.next());
        let active = self.active(node);
        active.guest.run(&mut random);
        let (guest, ledger, console) = (&mut active.guest, &mut active.ledger, &mut active.console);
        let chain = |head| Origin::Chain { slot: 1, queue: 0, head };
        let staged = match random.below(10) {
            0..2 => {
                let bytes = guest.output();
                ledger.detached_session(*console, |gate| {
                    gate.token::<ConsoleTx>().emit(Port(0), bytes);
                });
                Ok(())
            }
            _ if guest.is_busy() => Ok(()),
            2..4 => {
                *console = console.wrapping_add(1).max(2);
                let bytes = guest.output();
                let head = guest.ask(Wanted::Packet);
                let frame = Payload::inline(bytes);
                let stage = ledger.chain_session(chain(head), |gate| {
                    Ok(gate.token::<NetTx>().stage(Port(0), frame))
                });
                stage.map(drop)
            }
            4..6 => {
                let (wanted, bytes) = guest.write(&mut random);
                let Wanted::Write { sector, .. } = wanted else { unreachable!("it is a write") };
                let head = guest.ask(wanted);
                let data = Payload::inline(bytes);
                let stage = ledger.chain_session(chain(head), |gate| {
                    Ok(gate.token::<BlockWrite>().stage(Port(0), sector as u64, data))
                });
                stage.map(drop)
            }
            6 => {
                let wanted = guest.flush();
                let head = guest.ask(wanted);
                let stage = ledger.chain_session(chain(head), |gate| {
                    Ok(gate.token::<BlockFlush>().stage(Port(0)))
                });
                stage.map(drop)
            }
            7 => {
                let sector = random.index(crate::guest::SECTORS);
                let head = guest.ask(Wanted::Read { sector });
                let room = vec![GuestRange { addr: 0, len: 512 }];
                let mut lent = lend_chain(&Nowhere, Vec::new(), room);
                let space = lent.take_space(512).unwrap();
                let stage = ledger.chain_session(chain(head), |gate| {
                    Ok(gate.block_read(Port(0), sector as u64, space))
                });
                stage.map(drop)
            }
            _ => Ok(()),
        };
        staged.unwrap();
        let ready = self.active(node).ledger.take_ready();
        self.enqueue(node, ready);
    }

    /// Tells the guest which requests were performed.
    fn settle(&mut self, node: usize) {
        if self.random.one_in(3) {
            return;
        }
        while let Some((item, outcome, data)) = self.active(node).performed.pop_front() {
            let origin = item.record().origin;
            let active = self.active(node);
            active.ledger.settle(item);
            let Origin::Chain { head, .. } = origin else { continue };
            match active.guest.complete(head, outcome, data) {
                Wanted::Flush { covers } if matches!(outcome, io_gate::Outcome::Success(_)) => {
                    self.storage.saw_flushed(&covers);
                }
                Wanted::Read { .. } => self.observer.tally.reads += 1,
                _ => {}
            }
        }
        self.look_at_disk(node);
    }

    /// P3: the disk contains what the guest saw complete, or an outstanding write.
    fn look_at_disk(&mut self, node: usize) {
        let process = self.nodes[node].process;
        let last = self.register.last();
        let content = self.storage.content;
        let active = self.active(node);
        if last != (active.core.term().0, process) || active.fenced_off {
            return;
        }
        for (sector, tag) in content.into_iter().enumerate() {
            let tag = active.host_cache.get(&sector).map_or(tag, |cached| cached.0);
            assert!(
                active.guest.may_find(sector, tag),
                "P3: sector {sector} holds {tag:x}, and the guest saw {:x} complete",
                active.guest.registers.sectors[sector].completed
            );
        }
    }

    /// Ends the epoch: its state is captured now, and sent once the core knows of it.
    fn seal(&mut self, node: usize, link: LinkId) {
        let fails = !self.healing && !self.calm && self.random.one_in(150);
        let Role::Active(active) = &mut self.nodes[node].role else { return };
        let (epoch, term) = (active.ledger.seal(), active.core.term());
        if fails {
            trace!(self, "{node} cannot take epoch {epoch}");
            self.observer.tally.unsealed += 1;
            let reason = "the state cannot be read".to_string();
            return self.first(node, std::iter::once(Task::Primary(P::LinkLost { link, reason })));
        }
        let mut bytes = Vec::new();
        let dirty = std::mem::take(&mut active.guest.dirty);
        let pages = (0..PAGES).filter(|page| dirty[*page]);
        send_changes(active, (epoch, term), pages, &mut bytes);
        let (guest, digest) = (&active.guest, &mut active.digest);
        let state = State {
            registers: guest.registers.clone(),
            in_flight: active.ledger.in_flight(),
            next_id: active.ledger.next_id(),
        };
        let message = Message::State(Data(postcard::to_allocvec(&state).unwrap()));
        let header = Outgoing { epoch, term, message }.encode(&mut bytes).unwrap();
        digest.add(&header, 0);
        let hashes = active.verify.then(|| hashes(guest));
        let message = Message::End(digest.end(epoch, hashes));
        Outgoing { epoch, term, message }.encode(&mut bytes).unwrap();
        self.observer.seals(term.0, epoch.0, guest);
        trace!(self, "{node} seals epoch {epoch} of term {term}");
        let frames = split(&bytes);
        // The guest goes on, and the checkpoint is encoded, before the core learns of it. Sometimes
        // the next session has begun by then.
        let held = !self.calm && self.random.one_in(30);
        let until = self.now + if held { self.random.below(250 * MS) } else { 0 };
        self.active(node).taken = Some(Taken { link, epoch, dirty, frames, until });
        if !held && !self.random.one_in(3) {
            self.submit(node);
        }
    }

    /// Tells the core of a checkpoint that was taken. P4: the core refuses one whose session has
    /// ended in the meantime, and its pages still have to be sent.
    fn submit(&mut self, node: usize) {
        let now = self.nodes[node].core_time(self.now);
        let active = self.active(node);
        let Some(Taken { link, epoch, dirty, frames, .. }) = active.taken.take() else { return };
        if active.core.link() != Some(link) {
            let refused = active.core.handle(now, P::Sealed { link, epoch }).is_err();
            assert!(
                refused,
                "P4: a checkpoint of a session that has ended is taken for one of the next"
            );
            active.guest.dirty = std::array::from_fn(|page| active.guest.dirty[page] | dirty[page]);
            self.observer.tally.void_seals += 1;
            return;
        }
        let frames = frames.into_iter().map(|frame| Task::Send(link, frame));
        let sealed = Task::Primary(P::Sealed { link, epoch });
        let tasks: Vec<Task> = std::iter::once(sealed).chain(frames).collect();
        if let Some(fate) = self.nodes[node].nap.take() {
            // After everything was sent, or a part of it.
            let steps = tasks.len() as u64 + self.random.below(4);
            self.nodes[node].fuse = Some((steps, fate));
        }
        self.first(node, tasks.into_iter());
    }

    fn precopy(&mut self, node: usize) {
        let active = self.active(node);
        let page = active.precopy.take().expect("asked before");
        let link = active.core.link().expect("memory is sent in a session");
        if page == PAGES {
            return self.give(node, Task::Primary(P::PrecopyDone { link }));
        }
        active.precopy = Some(page + 1);
        let mut bytes = Vec::new();
        let about = (active.ledger.epoch(), active.core.term());
        send_bulk(&active.guest, &mut active.digest, about, page, &mut bytes);
        self.give(node, Task::Send(link, bytes));
    }
}

fn send_bulk(
    guest: &Guest,
    digest: &mut EpochDigest,
    (epoch, term): (Epoch, Term),
    page: usize,
    bytes: &mut Vec<u8>,
) {
    let mut frame = PageFrame::begin(bytes, Kind::Bulk, epoch, term, Compression::Lz4);
    frame.push(address(page), |to| copy(guest, page, to)).unwrap();
    digest.add(&frame.finish().unwrap(), 1);
}

fn send_changes(
    active: &mut Active,
    (epoch, term): (Epoch, Term),
    pages: impl Iterator<Item = usize>,
    bytes: &mut Vec<u8>,
) {
    let Active { guest, digest, sent, .. } = active;
    let mut frames = PageFrames::default();
    frames.begin(PAGES);
    for page in pages {
        frames.push(address(page), |to| copy(guest, page, to)).unwrap();
    }
    let done = if sent.begin_checkpoint() {
        frames.finish_changes(sent, (epoch, term), bytes, |header, pages, _| {
            digest.add(header, pages);
            Ok::<_, ()>(())
        })
    } else {
        frames.finish_each(epoch, term, |header, pages, frame| {
            digest.add(header, pages);
            bytes.extend_from_slice(frame);
            Ok(())
        })
    };
    done.unwrap();
}

fn address(page: usize) -> u64 {
    (page * PAGE_SIZE) as u64
}

fn copy(guest: &Guest, page: usize, to: &mut Page) -> Result<(), ()> {
    to.copy_from_slice(&guest.memory[page]);
    Ok(())
}

pub(super) fn hashes(guest: &Guest) -> Hashes {
    let memory =
        guest.memory.iter().fold(17, |sum, page| xxhash_rust::xxh3::xxh3_64_with_seed(page, sum));
    Hashes { memory, state: guest.registers.history }
}
