//! A machine around one virtio device: chains in memory, a ledger, and backends that perform its
//! requests.

use std::collections::BTreeMap;

use io_gate::host::{
    ChainOutcome, EffectId, Epoch, GuestRange, InputOp, Origin, OwnOp, Record, Request,
    lend_merged, write_config,
};
use io_gate::{Chain, Device, Outcome, Port, SavedState};

use super::Step;
use super::gate::{Disks, Gate, Pending, SLOT};
use crate::memory::{Memory, brief};
use crate::suite::{Log, step};
use crate::violation::{Rule, Violation};

/// Bytes of memory that each step has for itself.
const AREA: u64 = 256 << 10;
/// Number of bytes of the configuration space that are read.
const CONFIG: usize = 64;

/// The memory of a request.
#[derive(Clone, Default)]
pub(super) struct Place {
    pub(super) readable: Vec<GuestRange>,
    pub(super) writable: Vec<GuestRange>,
    /// Whether the driver changed it while the device had it, so that the device's writes may be
    /// elsewhere.
    pub(super) changed: bool,
    /// Number of chains of which it consists; `None` for one.
    pub(super) merged: Option<u16>,
    /// Whether no other request uses the same memory, so that every write there is for this one.
    pub(super) own: bool,
}

impl Place {
    fn room(&self) -> usize {
        self.writable.iter().map(|range| range.len as usize).sum()
    }
}

pub(super) struct World {
    pub(super) device: Box<dyn Device>,
    pub(super) log: Log,
    pub(super) memory: Memory,
    gate: Gate,
    /// Requests that are not performed yet, oldest first.
    pending: Vec<Pending>,
    /// Queue and memory of each waiting chain, by its head.
    waiting: BTreeMap<u16, (u16, Place)>,
}

impl World {
    /// A machine whose driver has accepted all features.
    pub(super) fn new(mut device: Box<dyn Device>, steps: usize) -> Self {
        device.activate(device.features());
        Self::with(device, steps)
    }

    /// A machine whose driver has already negotiated features.
    pub(super) fn with(device: Box<dyn Device>, steps: usize) -> Self {
        Self::on(device, steps, Disks::Shared)
    }

    /// As [`with`](Self::with), with disks of this kind.
    pub(super) fn on(device: Box<dyn Device>, steps: usize, disks: Disks) -> Self {
        let memory = Memory::new((steps as u64 * AREA) as usize);
        Self {
            device,
            log: Log::new(),
            memory,
            gate: Gate::open(disks),
            pending: Vec::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Number of requests that are not performed yet.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn activate(&mut self, features: u64) -> Result<(), Violation> {
        step(&format!("features {features:#x} accepted"), || self.device.activate(features))
    }

    /// Plays one step of the example.
    pub(super) fn take(&mut self, index: usize, next: &Step) -> Result<(), Violation> {
        let head = index as u16;
        match next {
            Step::Request { queue, readable, room } => {
                let place = self.place(head, readable, *room)?;
                self.request(*queue, head, place)?;
            }
            Step::Input { port, data, room } => self.input(head, *port, data, *room)?,
            Step::Config { offset, bytes } => {
                step(&format!("config write at {offset:#x}"), || {
                    self.gate.ledger.detached_session(SLOT, |gate| {
                        write_config(&mut *self.device, *offset, bytes, gate);
                    });
                })?;
            }
        }
        self.end_of_step()
    }

    /// Puts a request into its memory, split into descriptors as drivers do it.
    fn place(&self, head: u16, readable: &[u8], room: usize) -> Result<Place, Violation> {
        if readable.len() + room > AREA as usize {
            return Rule::Script.broken(format!(
                "a request of {} and {room} bytes: expected at most {AREA} in all",
                readable.len()
            ));
        }
        let base = u64::from(head) * AREA;
        self.memory.put(base, readable);
        let writable = pieces(base + readable.len() as u64, room, room.saturating_sub(1));
        self.memory.forget_writes(&writable);
        let readable = pieces(base, readable.len(), 16);
        Ok(Place { readable, writable, changed: false, merged: None, own: true })
    }

    pub(super) fn request(&mut self, queue: u16, head: u16, place: Place) -> Result<(), Violation> {
        let asked = format!(
            "a chain on queue {queue} with {} and room for {} bytes",
            brief(&self.memory.gather(&place.readable)),
            place.room()
        );
        let origin = Origin::Chain { slot: SLOT, queue, head };
        let outcome = step(&asked, || {
            let mut chain = lend(&self.memory, &place);
            self.gate
                .ledger
                .chain_session(origin, |gate| self.device.process(queue, &mut chain, gate))
        })?;
        match outcome {
            Ok(ChainOutcome::Done(used)) => self.completed("done", head, used, &place)?,
            Ok(ChainOutcome::Waiting(_)) => {
                self.waiting.insert(head, (queue, place));
            }
            Err(error) => self.log.push(format!("chain {head}: refused: {error}")),
        }
        Ok(())
    }

    fn completed(
        &mut self,
        how: &str,
        head: u16,
        used: u32,
        place: &Place,
    ) -> Result<(), Violation> {
        if used as usize > place.room() && !place.changed {
            return Rule::Room
                .broken(format!("chain {head}: {used} bytes written, room for {}", place.room()));
        }
        self.check_used(head, used, place)?;
        let written = brief(&self.memory.gather(&place.writable));
        self.log.push(format!("chain {head}: {how}, {used} used: {written}"));
        Ok(())
    }

    /// The used length counts bytes that were written, from the first without a gap (virtio 1.2,
    /// 2.7.8.2).
    fn check_used(&self, head: u16, used: u32, place: &Place) -> Result<(), Violation> {
        if !place.own || place.changed {
            return Ok(());
        }
        let written = self.memory.written(&place.writable);
        if written < used as usize {
            return Rule::Used.broken(format!(
                "chain {head}: {used} bytes are said to be written, found {written} from its beginning on"
            ));
        }
        Ok(())
    }

    fn input(&mut self, head: u16, port: Port, data: &[u8], room: usize) -> Result<(), Violation> {
        if self.device.intake_queue(port).is_none() {
            return Rule::Script.broken(format!("input at port {}, which takes none", port.0));
        }
        let merges = self.device.merges_input(port);
        let mut rest = data;
        while !rest.is_empty() {
            // A device that merges input gets as many chains as the data needs.
            let chains = if merges { rest.len().div_ceil(room.max(1)) } else { 1 };
            let mut place = self.place(head, &[], room * chains)?;
            place.merged = Some(chains as u16);
            let taken = step(&format!("{} bytes of input", rest.len()), || {
                let mut chain = lend(&self.memory, &place);
                self.device.intake(port, rest, &mut chain)
            })?;
            match taken {
                Ok(intake) if intake.consumed > rest.len() => {
                    return Rule::TakesInput.broken(format!(
                        "{} of {} bytes taken",
                        intake.consumed,
                        rest.len()
                    ));
                }
                Ok(intake) if intake.consumed == 0 || merges && intake.consumed < rest.len() => {
                    return Rule::TakesInput.broken(format!(
                        "{} of {} bytes taken, with room for {room} in each of {chains} chains",
                        intake.consumed,
                        rest.len()
                    ));
                }
                Ok(intake) => {
                    rest = &rest[intake.consumed..];
                    self.completed("input", head, intake.used, &place)?;
                }
                Err(error) => {
                    self.log.push(format!("input {head}: refused: {error}"));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Replaces the chain of the oldest request in flight, which a driver can do but must not.
    pub(super) fn swap_oldest(&mut self, place: Place) {
        let origin = self.pending.first().map(|request| request.record().origin);
        if let Some(Origin::Chain { head, .. }) = origin
            && let Some((_, waiting)) = self.waiting.get_mut(&head)
        {
            *waiting = Place { changed: true, ..place };
        }
    }

    /// Offers data once, with a chain that may be too small. The device may drop it.
    pub(super) fn offer(
        &mut self,
        port: Port,
        data: &[u8],
        place: &Place,
    ) -> Result<(), Violation> {
        let asked = format!(
            "{} bytes of input at port {}, with room for {}",
            data.len(),
            port.0,
            place.room()
        );
        let taken =
            step(&asked, || self.device.intake(port, data, &mut lend(&self.memory, place)))?;
        match taken {
            Ok(intake) if intake.consumed > data.len() => {
                return Rule::TakesInput.broken(format!("{asked}: {} taken", intake.consumed));
            }
            Ok(intake) => {
                self.log.push(format!("{asked}: {} taken", intake.consumed));
                self.completed("input", u16::MAX, intake.used, place)?;
            }
            Err(error) => self.log.push(format!("{asked}: refused: {error}")),
        }
        self.end_of_step()
    }

    /// Performs the oldest request in flight, if there is one.
    pub(super) fn settle_oldest(&mut self, outcome: Outcome) -> Result<(), Violation> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let request = self.pending.remove(0);
        let Origin::Chain { head, .. } = request.record().origin else {
            request.settle(&mut self.gate.ledger);
            return Ok(());
        };
        let Some((queue, place)) = self.waiting.remove(&head) else {
            unreachable!("a chain waits until its request is settled");
        };
        let outcome = self.perform(head, request.record(), outcome);
        let used = step(&format!("completion of chain {head} ({outcome:?})"), || {
            self.device.complete(queue, &mut lend(&self.memory, &place), outcome)
        })?;
        self.completed("completed", head, used, &place)?;
        request.settle(&mut self.gate.ledger);
        self.end_of_step()
    }

    /// Performs a request. The result depends only on the arguments.
    fn perform(&self, head: u16, record: &Record, outcome: Outcome) -> Outcome {
        let Request::Input(InputOp::BlockRead { into, .. } | InputOp::Entropy { into }) =
            &record.request
        else {
            return outcome;
        };
        match outcome {
            Outcome::Success(_) => {
                self.memory.fill(into.guest_ranges(), head.into());
                Outcome::Success(into.len() as u32)
            }
            other => other,
        }
    }

    /// Logs the new requests, and has the gate check its counts.
    pub(super) fn end_of_step(&mut self) -> Result<(), Violation> {
        for request in self.gate.take(&self.memory) {
            let line = self.describe(request.record());
            self.log.push(line);
            self.pending.push(request);
        }
        self.read_config(0, CONFIG)?;
        step("the end of a step", || self.gate.ledger.seal())?;
        Ok(())
    }

    pub(super) fn read_config(&mut self, offset: u64, len: usize) -> Result<(), Violation> {
        let mut config = vec![0; len];
        let asked = format!("a read of {len} bytes of the configuration space at {offset:#x}");
        step(&asked, || self.device.config().read(offset, &mut config))?;
        self.log.push(format!("configuration: {}", brief(&config)));
        Ok(())
    }

    fn describe(&self, record: &Record) -> String {
        let who = match record.origin {
            Origin::Chain { head, .. } => format!("chain {head}"),
            Origin::Detached { .. } => "detached".to_owned(),
        };
        match &record.request {
            Request::Effect(op) | Request::Own(OwnOp { op, .. }) => {
                let bytes = op.payload().map(|payload| self.memory.describe(payload));
                format!("{who}: stages {op:?}: {}", bytes.unwrap_or_default())
            }
            Request::Input(op) => format!("{who}: asks for {op:?}"),
        }
    }

    /// Moves to another machine as a failover does: with the saved state and the requests in
    /// flight.
    pub(super) fn move_to(
        mut self,
        mut device: Box<dyn Device>,
        when: &str,
    ) -> Result<Self, Violation> {
        let (state, in_flight) = (step(when, || self.device.save())?, self.gate.ledger.in_flight());
        let (epoch, next): (Epoch, EffectId) =
            (self.gate.ledger.seal(), self.gate.ledger.next_id());
        if let Err(error) = step(when, || device.restore(&state))? {
            return Rule::RoundTrip.broken(format!("{when}: its own state was refused: {error}"));
        }
        if device.save() != state {
            return Rule::RoundTrip
                .broken(format!("{when}: saved {state:?}, after restoring {:?}", device.save()));
        }
        let mut gate = Gate::open(self.gate.disks());
        let pending = gate.adopt(epoch, next, in_flight, &self.memory);
        (self.device, self.gate, self.pending) = (device, gate, pending);
        Ok(self)
    }

    /// Resets the device for its driver, and returns its state afterwards.
    pub(super) fn reset(&mut self) -> Result<SavedState, Violation> {
        step("a reset", || self.device.reset())?;
        // The far side drops requests in flight at a reset.
        let dropped = std::mem::take(&mut self.pending);
        dropped.into_iter().for_each(|request| request.settle(&mut self.gate.ledger));
        self.waiting.clear();
        Ok(self.device.save())
    }
}

fn lend<'m>(memory: &'m Memory, place: &Place) -> Chain<'m> {
    let merged = place.merged.unwrap_or(1);
    lend_merged(memory, place.readable.clone(), place.writable.clone(), merged)
}

/// Two descriptors: the first `first` bytes, and the rest.
fn pieces(addr: u64, len: usize, first: usize) -> Vec<GuestRange> {
    let first = first.min(len) as u32;
    let rest = len as u32 - first;
    [(addr, first), (addr + u64::from(first), rest)]
        .into_iter()
        .filter(|(_, len)| *len > 0)
        .map(|(addr, len)| GuestRange { addr, len })
        .collect()
}
