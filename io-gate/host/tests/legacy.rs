//! A network card with rings of its own behind the gate: it waits while the gate is full, and its
//! writes are marked dirty.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{SLOT, guest_memory};
use devices::E1000;
use io_gate::LineState;
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::{GateHost, GateOptions, GuestMemory, RegisterSlot, Unfenced};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const TCTL: u64 = 0x400;
const TDBAL: u64 = 0x3800;
const TDLEN: u64 = 0x3808;
const TDH: u64 = 0x3810;
const TDT: u64 = 0x3818;
const IMS: u64 = 0xd0;
const RING: u64 = 0x10_0000;
const DESCRIPTORS: u32 = 1024;
const FRAME: u64 = 16_000;
/// The command bits of a descriptor: end of packet, report status.
const COMMAND: u64 = 0x0900_0000;

struct Bench {
    memory: Arc<GuestMemory>,
    gate: Arc<GateHost>,
    authority: CommitAuthority,
    slot: RegisterSlot,
}

impl Bench {
    /// A card whose driver has filled the ring with long frames, and has not notified the card yet.
    fn new() -> Self {
        let (ledger, authority) = new_gate();
        let memory = guest_memory();
        let gate =
            GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default())
                .unwrap();
        let card = Box::new(E1000::new([2, 0, 0, 0, 0, 1]));
        let mut slot = RegisterSlot::new(SLOT, card, gate.clone());
        slot.set_bus_master(true);
        let mut bench = Self { memory, gate, authority, slot };
        for index in 0..u64::from(DESCRIPTORS) {
            let at = GuestAddress(RING + index * 16);
            bench.memory.write_obj(0_u64, at).unwrap();
            bench.memory.write_obj(FRAME | COMMAND, GuestAddress(at.0 + 8)).unwrap();
        }
        for (register, value) in
            [(TDBAL, RING as u32), (TDLEN, DESCRIPTORS * 16), (TCTL, 2), (IMS, 1)]
        {
            let _ = bench.write(register, value);
        }
        bench
    }

    fn write(&mut self, register: u64, value: u32) -> LineState {
        self.slot.write(register, &value.to_le_bytes())
    }

    /// The dirty pages since the last call.
    fn take_dirty(&self) -> Vec<u64> {
        let region = self.memory.find_region(GuestAddress(0)).unwrap();
        let mut dirty = Vec::new();
        region.get_mmap().bitmap().take(|group, bits| {
            let pages = (0..64).filter(|bit| bits >> bit & 1 == 1);
            dirty.extend(pages.map(|bit| group as u64 * 64 + bit));
        });
        dirty
    }

    fn head(&mut self) -> u32 {
        let mut bytes = [0; 4];
        let _ = self.slot.read(TDH, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Gives the card its completions until it has no more work.
    fn settle(&mut self) {
        loop {
            let posted = self.gate.take_completions();
            if posted.is_empty() {
                return;
            }
            posted.into_iter().for_each(|completion| {
                let _ = self.slot.complete(completion);
            });
        }
    }
}

/// P7: a guest that sends without a pause does not make the machine buffer without limit, and its
/// frames leave in the end.
#[test]
fn the_card_waits_in_front_of_a_full_gate_and_goes_on_after_a_release() {
    let mut bench = Bench::new();
    assert_eq!(bench.write(TDT, DESCRIPTORS - 1), LineState::Level(true));
    bench.settle();
    let mut head = bench.head();
    assert!(head > 0 && head < DESCRIPTORS - 1, "{head} of {DESCRIPTORS} frames were staged");
    assert_eq!(bench.gate.held(), head as usize);
    let mut rounds = 0;
    while head < DESCRIPTORS - 1 {
        let sealed = bench.gate.seal();
        bench.gate.release(bench.authority.acknowledged(sealed.epoch));
        bench.settle();
        let now = bench.head();
        assert!(now > head, "a release lets it go on");
        head = now;
        rounds += 1;
    }
    assert!(rounds > 1);
    let sealed = bench.gate.seal();
    bench.gate.release(bench.authority.acknowledged(sealed.epoch));
    let counts = bench.gate.counts();
    assert_eq!((counts.staged, counts.performed), (1023, 1023));
}

/// P8: what the card writes into guest memory is marked dirty.
#[test]
fn what_the_card_writes_is_marked() {
    let mut bench = Bench::new();
    let _ = bench.take_dirty();
    let _ = bench.write(TDT, 1);
    assert_eq!(
        bench.take_dirty(),
        [RING / 4096],
        "the descriptor's status, and nothing that was read"
    );
}
