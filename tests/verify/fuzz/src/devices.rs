//! Fuzz targets of the devices: contents of queues and registers from a guest, and saved states
//! from a peer.

use std::cell::RefCell;

use arbitrary::{Result, Unstructured};
use devices::{Block, BlockConfig, Console, E1000, Entropy, Net, NetConfig, PowerControl};
use io_gate::host::{
    ChainOutcome, GuestBytes, GuestRange, Ledger, MemoryFault, Origin, Performable, Request, Term,
    lend_chain, new_gate, write_config,
};
use io_gate::{Device, Outcome, Port, RegisterDevice, SavedState};
use kemari_machine::catalog::{CATALOG, Kind};

use crate::{Target, over};

pub(crate) const CHAINS: Target = Target {
    name: "chains",
    what: "descriptor chains of any shape and contents, to every virtio device",
    run: |bytes| over(chains(&mut Unstructured::new(bytes))),
    seeds,
};

pub(crate) const REGISTERS: Target = Target {
    name: "registers",
    what: "register accesses and rings of any contents, to the e1000 and the power control",
    run: |bytes| over(registers(&mut Unstructured::new(bytes))),
    seeds,
};

pub(crate) const STATES: Target = Target {
    name: "states",
    what: "saved states: refused, or taken on and saved alike",
    run: run_states,
    seeds: state_seeds,
};

const MEMORY: usize = 64 << 10;
const SLOT: u16 = 3;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn seeds() -> Vec<Vec<u8>> {
    let ramp: Vec<u8> = (0..=255).collect();
    vec![vec![0; 64], ramp.repeat(3)]
}

/// Guest memory.
struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn range(
        &self,
        addr: u64,
        len: usize,
    ) -> std::result::Result<std::ops::Range<usize>, MemoryFault> {
        let start = usize::try_from(addr).map_err(|_| MemoryFault(addr))?;
        let end = start.checked_add(len).filter(|end| *end <= MEMORY).ok_or(MemoryFault(addr))?;
        Ok(start..end)
    }
}

impl GuestBytes for Memory {
    fn read_at(&self, addr: u64, into: &mut [u8]) -> std::result::Result<(), MemoryFault> {
        into.copy_from_slice(&self.0.borrow()[self.range(addr, into.len())?]);
        Ok(())
    }

    fn write_at(&self, addr: u64, from: &[u8]) -> std::result::Result<(), MemoryFault> {
        let range = self.range(addr, from.len())?;
        self.0.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

/// One of the devices that every machine can have, by number.
pub(crate) fn virtio(which: u8) -> Box<dyn Device> {
    match which % BUILT_IN {
        0 => Box::new(Block::new(BlockConfig {
            sectors: 128,
            read_only: false,
            serial: b"x".to_vec(),
            queues: 1,
        })),
        1 => Box::new(Block::new(BlockConfig {
            sectors: 128,
            read_only: true,
            serial: Vec::new(),
            queues: 4,
        })),
        2 => Box::new(Net::new(NetConfig { mac: MAC, offloads: true, pairs: 2 })),
        3 => Box::new(Console::new()),
        _ => Box::new(Entropy::new()),
    }
}

const BUILT_IN: u8 = 5;

/// One of the built-in devices, or one of the devices that a machine gets by name, by number.
fn virtio_or_named(which: u8) -> Box<dyn Device> {
    let named = |kind| match kind {
        Kind::Virtio(make) => Some(make),
        Kind::Registers(_) => None,
    };
    let named: Vec<_> = CATALOG.iter().filter_map(|entry| named(entry.kind)).collect();
    let which = usize::from(which) % (usize::from(BUILT_IN) + named.len());
    match which.checked_sub(usize::from(BUILT_IN)) {
        Some(at) => named[at]()().expect("a device of a crate that is looked at"),
        None => virtio(which as u8),
    }
}

fn ranges(input: &mut Unstructured<'_>) -> Result<Vec<GuestRange>> {
    let mut ranges = Vec::new();
    for _ in 0..input.int_in_range(0..=4)? {
        let addr = if input.ratio(1, 16)? {
            input.arbitrary()?
        } else {
            input.int_in_range(0..=MEMORY as u64)?
        };
        let len = match input.int_in_range(0..=7)? {
            0 => input.arbitrary()?,
            1 => 0,
            2 => 16,
            3 => 1,
            _ => input.int_in_range(0..=2048)?,
        };
        ranges.push(GuestRange { addr, len });
    }
    Ok(ranges)
}

/// A gate that releases each effect at once.
fn open_gate() -> Ledger {
    let (mut ledger, mut authority) = new_gate();
    drop(ledger.run_alone(authority.alone(Term(1))));
    ledger
}

fn chains(input: &mut Unstructured<'_>) -> Result<()> {
    let mut device = virtio_or_named(input.arbitrary()?);
    device.activate(if input.arbitrary()? { device.features() } else { input.arbitrary()? });
    let memory = Memory(RefCell::new(vec![0; MEMORY]));
    let (mut ledger, mut pending): (Ledger, Vec<Performable>) = (open_gate(), Vec::new());
    let queues = u16::try_from(device.queues().len()).expect("a few queues");
    let mut waiting = std::collections::BTreeMap::new();
    for head in 0..24_u16 {
        if input.is_empty() {
            break;
        }
        let contents: Vec<u8> = input.arbitrary()?;
        let at = input.int_in_range(0..=MEMORY - contents.len().min(MEMORY))?;
        let len = contents.len().min(MEMORY - at);
        memory.0.borrow_mut()[at..at + len].copy_from_slice(&contents[..len]);
        let (readable, writable) = (ranges(input)?, ranges(input)?);
        if input.ratio(1, 4)? {
            let port = Port(input.int_in_range(0..=1)?);
            if device.intake_queue(port).is_some() {
                let mut chain = lend_chain(&memory, readable.clone(), writable.clone());
                let _ = device.intake(port, &contents, &mut chain);
            }
        }
        let queue = input.int_in_range(0..=queues.max(1) - 1)?;
        let origin = Origin::Chain { slot: SLOT, queue, head };
        let mut chain = lend_chain(&memory, readable.clone(), writable.clone());
        let done = ledger.chain_session(origin, |gate| device.process(queue, &mut chain, gate));
        if let Ok(ChainOutcome::Waiting(_)) = done {
            waiting.insert(head, (queue, readable, writable));
        }
        pending.extend(ledger.take_ready());
        if input.arbitrary()? && !pending.is_empty() {
            let item = pending.remove(0);
            let outcomes = [Outcome::Success(0), Outcome::Failed, Outcome::Unsupported];
            let (outcome, origin) = (*input.choose(&outcomes)?, item.record().origin);
            ledger.settle(item);
            if let Origin::Chain { head, .. } = origin
                && let Some((queue, readable, writable)) = waiting.remove(&head)
            {
                let room: u64 = writable.iter().map(|range| u64::from(range.len)).sum();
                let mut chain = lend_chain(&memory, readable, writable);
                let written = device.complete(queue, &mut chain, outcome);
                assert!(u64::from(written) <= room, "{written} bytes written to {room}");
            }
        }
        if input.ratio(1, 8)? {
            let (offset, bytes): (u64, [u8; 4]) = (input.arbitrary()?, input.arbitrary()?);
            // Anywhere, and where the fields lie.
            for offset in [offset, offset % 64] {
                ledger.detached_session(SLOT, |gate| {
                    write_config(device.as_mut(), offset, &bytes, gate);
                });
                device.config().read(offset, &mut [0; 8]);
            }
        }
        moves_on(device.as_mut());
    }
    Ok(())
}

/// A device must accept its own saved state, after any input.
fn moves_on(device: &mut dyn Device) {
    let saved = device.save();
    device.restore(&saved).expect("its own state");
    assert!(device.save() == saved, "another state than was restored");
}

fn registers(input: &mut Unstructured<'_>) -> Result<()> {
    let mut device: Box<dyn RegisterDevice> = match input.int_in_range(0..=3)? {
        0 => Box::new(PowerControl::new()),
        _ => Box::new(E1000::new(MAC)),
    };
    let memory = Memory(RefCell::new(vec![0; MEMORY]));
    let mut ledger = open_gate();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        if input.ratio(1, 4)? {
            let contents: Vec<u8> = input.arbitrary()?;
            let at = input.int_in_range(0..=MEMORY - contents.len().min(MEMORY))?;
            let len = contents.len().min(MEMORY - at);
            memory.0.borrow_mut()[at..at + len].copy_from_slice(&contents[..len]);
        }
        let known = [
            0x0, 0x8, 0x14, 0xc0, 0xd0, 0xd8, 0x100, 0x400, 0x2800, 0x2808, 0x2810, 0x2818, 0x3800,
            0x3808, 0x3810, 0x3818,
        ];
        let offset = if input.ratio(1, 6)? { input.arbitrary()? } else { *input.choose(&known)? };
        let value: u32 = match input.int_in_range(0..=3)? {
            0 => input.arbitrary()?,
            1 => input.int_in_range(0..=MEMORY as u32)? & !15,
            2 => input.int_in_range(0..=255)?,
            _ => 1 << input.int_in_range(0..=31)?,
        };
        let data: Vec<u8> = if input.ratio(1, 4)? { input.arbitrary()? } else { Vec::new() };
        let read: bool = input.arbitrary()?;
        ledger.bus_master_session(SLOT, &memory, |gate| {
            if read {
                device.read(offset, &mut [0; 4], gate);
            } else {
                device.write(offset, &value.to_le_bytes(), gate);
            }
            if !data.is_empty() {
                device.intake(Port(0), &data, gate);
            }
            let mut rounds = 0;
            while device.proceed(gate) && !gate.is_full() {
                rounds += 1;
                assert!(rounds < 100_000, "it goes on for ever");
            }
        });
        for item in ledger.take_ready() {
            assert!(matches!(item.record().request, Request::Effect(_)));
            ledger.settle(item);
        }
        let _ = device.line();
        register_moves_on(device.as_mut());
    }
    Ok(())
}

fn register_moves_on(device: &mut dyn RegisterDevice) {
    let saved = device.save();
    device.restore(&saved).expect("its own state");
    assert!(device.save() == saved, "another state than was restored");
}

/// A device that accepts a state can save it, and accepts and saves the result without change. The
/// result may differ from the input: a state may contain more than the device keeps.
fn run_states(bytes: &[u8]) {
    let Ok(state) = postcard::from_bytes::<SavedState>(bytes) else { return };
    for which in 0..BUILT_IN {
        let mut device = virtio(which);
        if device.restore(&state).is_ok() {
            moves_on(device.as_mut());
        }
    }
    let registers: [Box<dyn RegisterDevice>; 2] =
        [Box::new(E1000::new(MAC)), Box::new(PowerControl::new())];
    for mut device in registers {
        if device.restore(&state).is_ok() {
            register_moves_on(device.as_mut());
        }
    }
}

fn state_seeds() -> Vec<Vec<u8>> {
    let encode = |state: &SavedState| postcard::to_allocvec(state).expect("it can be written");
    let mut all: Vec<Vec<u8>> = (0..BUILT_IN).map(|which| encode(&virtio(which).save())).collect();
    all.push(encode(&E1000::new(MAC).save()));
    all.push(encode(&PowerControl::new().save()));
    all
}
