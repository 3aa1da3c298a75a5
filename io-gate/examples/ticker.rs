//! One small device, driven end to end by a toy host: a chain arrives, an effect is staged, the
//! epoch is sealed and acknowledged, the effect is performed, and the chain is completed.
//!
//! `cargo run -p io-gate --example ticker`

use std::cell::RefCell;
use std::error::Error;

use io_gate::host::{
    ChainOutcome, EffectOp, GuestBytes, GuestRange, Ledger, Origin, Performable, Request,
    lend_chain, new_gate,
};
use io_gate::{
    Chain, ConsoleTx, Device, DeviceError, Gate, Identity, MemoryFault, Outcome, Payload, Port,
    SavedState, StateError, Verdict, saved_state,
};

// The device, as its author writes it. Nothing here can reach the outside.

const IDENTITY: Identity = Identity { kind: "ticker", virtio_id: 42, state_version: 1 };
const TAPE: Port = Port(0);
const OK: u8 = 0;
const FAILED: u8 = 1;

saved_state! {
    /// Prints each line from the guest after its number. One status byte goes back.
    #[derive(Default)]
    struct Ticker {
        lines: u64,
    }
}

impl Device for Ticker {
    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn queues(&self) -> &[u16] {
        &[8]
    }

    fn reset(&mut self) {
        self.lines = 0;
    }

    fn process<'e>(
        &mut self,
        _queue: u16,
        chain: &mut Chain<'_>,
        gate: &mut Gate<'e>,
    ) -> Result<Verdict<'e>, DeviceError> {
        // An input needs no token.
        let mut line = vec![0; chain.readable().min(80)];
        chain.read(&mut line)?;
        if line.is_empty() {
            chain.write(&[FAILED])?;
            return Ok(Verdict::Done(1));
        }
        self.lines += 1;
        let mut text = format!("{}: ", self.lines).into_bytes();
        text.extend(line);
        // An effect needs a token, and staging it gives the verdict.
        Ok(gate.token::<ConsoleTx>().stage(TAPE, Payload::inline(text)))
    }

    fn complete(&mut self, _queue: u16, chain: &mut Chain<'_>, outcome: Outcome) -> u32 {
        let status = if matches!(outcome, Outcome::Success(_)) { OK } else { FAILED };
        chain.write(&[status]).map_or(0, |()| 1)
    }

    fn save(&self) -> SavedState {
        SavedState::of(&IDENTITY, self)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        *self = state.open(&IDENTITY)?;
        Ok(())
    }
}

// The far side: a VMM, reduced to one queue, one page and one console.

/// Guest memory of one page. A VMM also marks written pages dirty (P8).
struct Page(RefCell<[u8; 4096]>);

impl Page {
    fn range<R>(
        &self,
        addr: u64,
        len: usize,
        access: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, MemoryFault> {
        let start = usize::try_from(addr).map_err(|_| MemoryFault(addr))?;
        let mut page = self.0.borrow_mut();
        let bytes = page.get_mut(start..).and_then(|rest| rest.get_mut(..len));
        bytes.map(access).ok_or(MemoryFault(addr))
    }
}

impl GuestBytes for Page {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        self.range(addr, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    fn write_at(&self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        self.range(addr, from.len(), |bytes| bytes.copy_from_slice(from))
    }
}

/// The guest's one request: a line at the start of the page, and room for a status byte after it.
const LINE: &[u8] = b"hello, world";
const STATUS_AT: u64 = 1024;
const NO_STATUS: u8 = 0xff;

fn request(page: &Page) -> Chain<'_> {
    let readable = GuestRange { addr: 0, len: LINE.len() as u32 };
    let writable = GuestRange { addr: STATUS_AT, len: 1 };
    lend_chain(page, vec![readable], vec![writable])
}

fn status(page: &Page) -> Result<u8, MemoryFault> {
    let mut status = [0];
    page.read_at(STATUS_AT, &mut status)?;
    Ok(status[0])
}

/// Performs one effect. Only a released effect has this type.
fn perform(effect: &Performable) -> Outcome {
    match &effect.record().request {
        Request::Effect(EffectOp::ConsoleTx { bytes, .. }) => {
            println!("{}", String::from_utf8_lossy(bytes.inline_bytes().unwrap_or_default()));
            Outcome::Success(0)
        }
        _ => Outcome::Unsupported,
    }
}

fn finish(
    ledger: &mut Ledger,
    device: &mut Ticker,
    page: &Page,
    effect: Performable,
) -> Result<(), MemoryFault> {
    let outcome = perform(&effect);
    let written = device.complete(0, &mut request(page), outcome);
    ledger.settle(effect);
    println!("the chain goes back with {written} byte written, status {}", status(page)?);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let page = Page(RefCell::new([0; 4096]));
    page.range(0, LINE.len(), |bytes| bytes.copy_from_slice(LINE)).map_err(fault)?;
    page.write_at(STATUS_AT, &[NO_STATUS]).map_err(fault)?;
    let mut device = Ticker::default();
    let (mut ledger, mut authority) = new_gate();

    // The guest notifies the queue.
    let origin = Origin::Chain { slot: 0, queue: 0, head: 0 };
    let outcome =
        ledger.chain_session(origin, |gate| device.process(0, &mut request(&page), gate))?;
    let ChainOutcome::Waiting(id) = outcome else { return Err("the line was not staged".into()) };
    println!("effect {} is held in epoch {}; nothing has left", id.0, ledger.epoch());
    assert!(ledger.take_ready().is_empty());
    assert_eq!(status(&page).map_err(fault)?, NO_STATUS);

    // The epoch ends. A VMM would now send memory, device state and the requests in flight to the
    // standby.
    let (epoch, state, in_flight) = (ledger.seal(), device.save(), ledger.in_flight());
    println!("epoch {epoch} is sealed, with {} request in flight", in_flight.len());

    // The standby has acknowledged the epoch: spend the proof, and the effect leaves.
    let proof = authority.acknowledged(epoch);
    for effect in ledger.release(proof) {
        finish(&mut ledger, &mut device, &page, effect).map_err(fault)?;
    }

    // If this machine dies before the acknowledgement arrives, another machine adopts the effect
    // and performs it.
    page.write_at(STATUS_AT, &[NO_STATUS]).map_err(fault)?;
    let (mut heir, mut right) = new_gate();
    let mut twin = Ticker::default();
    twin.restore(&state)?;
    heir.adopt(epoch, ledger.next_id(), in_flight);
    for effect in heir.run_alone(right.alone(io_gate::host::Term(1))) {
        assert!(effect.is_replay());
        finish(&mut heir, &mut twin, &page, effect).map_err(fault)?;
    }
    ledger.seal();
    heir.seal();
    let (here, there) = (ledger.counts(), heir.counts());
    assert_eq!((here.issued, here.staged, here.performed), (1, 1, 1));
    assert_eq!((there.issued, there.replayed), (0, 1));
    assert_eq!(status(&page).map_err(fault)?, OK);
    Ok(())
}

fn fault(MemoryFault(addr): MemoryFault) -> String {
    format!("expected an address below 4096, found {addr:#x}")
}
