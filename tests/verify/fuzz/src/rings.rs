//! Virtqueues in guest memory (virtio 1.2, section 2.7): descriptor tables, rings and indirect
//! tables, with any contents that change at any time. The device sits in its slot, behind a gate
//! that holds effects.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use io_gate::Port;
use io_gate::host::{CommitAuthority, new_gate};
use io_gate_host::{GateHost, GateOptions, GuestMemory, SlotState, Unfenced, VirtioSlot};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio;
use crate::{Target, over};

pub(crate) const RINGS: Target = Target {
    name: "rings",
    what: "virtqueues in guest memory, changed at any time, and saved states of slots, to every virtio device",
    run: |bytes| over(rings(&mut Unstructured::new(bytes))),
    seeds,
};

const SLOT: u16 = 3;
/// End of the low guest memory; more memory follows after a hole.
const LOW: u64 = 64 << 10;
const HIGH: u64 = 128 << 10;
const HIGH_LEN: usize = 16 << 10;
const VERSION_1: u64 = 1 << 32;
/// The page size: the table and each ring of a queue take one page. `BUFFERS` is the address of the
/// requests' buffers.
const PAGE: u64 = 0x1000;
const BUFFERS: u64 = 0x9000;
/// Queues and memory are small, so that few rounds are needed.
const SIZE: u16 = 16;

fn seeds() -> Vec<Vec<u8>> {
    let ramp: Vec<u8> = (0..=255).collect();
    vec![vec![0; 128], vec![0xff; 128], ramp.repeat(4)]
}

struct World {
    memory: Arc<GuestMemory>,
    gate: Arc<GateHost>,
    authority: CommitAuthority,
    which: u8,
    slot: VirtioSlot,
}

impl World {
    fn new(which: u8) -> Self {
        let regions = [(GuestAddress(0), LOW as usize), (GuestAddress(HIGH), HIGH_LEN)];
        let memory = Arc::new(GuestMemory::from_ranges(&regions).expect("little memory"));
        let (ledger, authority) = new_gate();
        let gate =
            GateHost::new(ledger, memory.clone(), Arc::new(Unfenced), GateOptions::default())
                .expect("a thread");
        let slot = VirtioSlot::new(SLOT, virtio(which), gate.clone());
        Self { memory, gate, authority, which, slot }
    }

    /// Commits an epoch: the gate releases the held effects, the backends do not answer, and the
    /// requests are completed.
    fn commit(&mut self) {
        let sealed = self.gate.seal();
        let proof = self.authority.acknowledged(sealed.epoch);
        self.gate.release(proof);
        self.complete();
    }

    fn complete(&mut self) {
        for completion in self.gate.take_completions() {
            let _ = self.slot.complete(completion);
        }
    }

    /// A slot must accept its own saved state, after any input. A standby that refused that state
    /// would leave the guest unprotected (P7).
    fn moves_on(&self) {
        let saved = self.slot.save();
        let mut twin = VirtioSlot::new(SLOT, virtio(self.which), self.gate.clone());
        twin.restore(&saved).unwrap_or_else(|error| panic!("its own state: {error}: {saved:?}"));
        assert_eq!(twin.save(), saved, "another state than was restored");
        // A slot does not drop its device.
        drop(twin.into_device());
    }

    /// A generated state is refused, or accepted and saved again without change.
    fn made_up(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mut state: SlotState = self.slot.save();
        match input.int_in_range(0..=5)? {
            0 => state.features = input.arbitrary()?,
            1 => state.active = !state.active,
            2 => state.pending_input.push((input.int_in_range(0..=2)?, input.arbitrary()?)),
            3 => drop(state.queues.pop()),
            _ => {}
        }
        for queue in &mut state.queues {
            match input.int_in_range(0..=11)? {
                0 => queue.size = input.arbitrary()?,
                1 => queue.max_size = input.arbitrary()?,
                2 => queue.desc_table = input.arbitrary()?,
                3 => queue.avail_ring = input.arbitrary()?,
                4 => queue.used_ring = input.arbitrary()?,
                5 => queue.next_avail = input.arbitrary()?,
                6 => queue.next_used = input.arbitrary()?,
                7 => queue.ready = !queue.ready,
                8 => queue.event_idx = !queue.event_idx,
                _ => {}
            }
        }
        let mut twin = VirtioSlot::new(SLOT, virtio(self.which), self.gate.clone());
        if twin.restore(&state).is_ok() {
            let saved = twin.save();
            assert_eq!(saved.queues, state.queues);
            assert_eq!((saved.features, saved.active), (state.features, state.active));
            // The new slot takes over the requests in flight of the former slot, which is therefore
            // reset.
            self.slot.reset();
            self.slot = twin;
            let _ = self.slot.retry_all();
        }
        Ok(())
    }
}

fn address(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match input.int_in_range(0..=15)? {
        0 => input.arbitrary()?,
        1 => LOW - input.int_in_range(0..=64)?,
        2 => HIGH + input.int_in_range(0..=HIGH_LEN as u64)?,
        3 => input.int_in_range(0..=LOW)?,
        _ => BUFFERS + input.int_in_range(0..=0x6fff)?,
    })
}

/// A descriptor (virtio 1.2, section 2.7.5).
fn descriptor(input: &mut Unstructured<'_>) -> Result<[u8; 16]> {
    let len: u32 = match input.int_in_range(0..=9)? {
        0 => input.arbitrary()?,
        1 => 0,
        2 => 1,
        3 | 4 => 16,
        5 => 512,
        6 => 16 * input.int_in_range(0..=20)?,
        _ => input.int_in_range(0..=3000)?,
    };
    let flags: u16 =
        if input.ratio(1, 16)? { input.arbitrary()? } else { input.int_in_range(0..=7)? };
    let next: u16 =
        if input.ratio(1, 16)? { input.arbitrary()? } else { input.int_in_range(0..=SIZE)? };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address(input)?.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    Ok(bytes)
}

/// The addresses at which a correct driver puts the table and the rings of a queue.
fn place(queue: u16) -> [u64; 3] {
    [0, 1, 2].map(|part| PAGE * (u64::from(queue) * 3 + part))
}

fn set_up(slot: &mut VirtioSlot, queue: u16, input: &mut Unstructured<'_>) -> Result<()> {
    let mut parts = place(queue);
    if input.ratio(1, 8)? {
        parts[input.int_in_range(0..=2)?] = address(input)?;
    }
    let size = if input.ratio(1, 8)? { input.arbitrary()? } else { SIZE };
    slot.set_queue_size(queue, size);
    let halves = |part: u64| (Some(part as u32), Some((part >> 32) as u32));
    let [desc, avail, used] = parts.map(halves);
    slot.set_queue_desc(queue, desc.0, desc.1);
    slot.set_queue_avail(queue, avail.0, avail.1);
    slot.set_queue_used(queue, used.0, used.1);
    slot.set_queue_ready(queue, !input.ratio(1, 8)?);
    Ok(())
}

/// Sets up a queue as a correct driver does.
fn set_up_well(slot: &mut VirtioSlot, queue: u16) {
    let halves = |part: u64| (Some(part as u32), Some((part >> 32) as u32));
    let [desc, avail, used] = place(queue).map(halves);
    slot.set_queue_size(queue, SIZE);
    slot.set_queue_desc(queue, desc.0, desc.1);
    slot.set_queue_avail(queue, avail.0, avail.1);
    slot.set_queue_used(queue, used.0, used.1);
    slot.set_queue_ready(queue, true);
}

/// Makes chains available; the index of the available ring may have any value.
fn offer(world: &World, queue: u16, input: &mut Unstructured<'_>) -> Result<()> {
    let [table, avail, _] = place(queue);
    let write = |at: u64, bytes: &[u8]| {
        world.memory.write_slice(bytes, GuestAddress(at)).expect("the rings' pages are there");
    };
    for index in 0..input.int_in_range(1..=4_u64)? {
        let at = if input.ratio(1, 6)? {
            BUFFERS + 16 * input.int_in_range(0..=255)?
        } else {
            table + 16 * ((index + input.int_in_range(0..=3_u64)?) % u64::from(SIZE))
        };
        write(at, &descriptor(input)?);
    }
    let idx: u16 = world.memory.read_obj(GuestAddress(avail + 2)).expect("as above");
    let head: u16 =
        if input.ratio(1, 16)? { input.arbitrary()? } else { input.int_in_range(0..=3)? };
    write(avail + 4 + 2 * u64::from(idx % SIZE), &head.to_le_bytes());
    let idx = if input.ratio(1, 16)? { input.arbitrary()? } else { idx.wrapping_add(1) };
    write(avail + 2, &idx.to_le_bytes());
    Ok(())
}

fn rings(input: &mut Unstructured<'_>) -> Result<()> {
    let mut world = World::new(input.arbitrary()?);
    if input.arbitrary()? {
        // The gate is open from the start.
        let proof = world.authority.alone(io_gate::host::Term(1));
        world.gate.run_alone(proof);
    }
    let queues = u16::try_from(world.slot.queue_count()).expect("a few queues");
    for queue in 0..queues {
        set_up(&mut world.slot, queue, input)?;
    }
    if world.slot.needs_reset() && input.ratio(3, 4)? {
        // A driver that has read the status resets the device and sets up the queues correctly.
        world.slot.reset();
        (0..queues).for_each(|queue| set_up_well(&mut world.slot, queue));
    }
    let features = if input.ratio(1, 4)? {
        input.arbitrary::<u64>()? & world.slot.device_features() | VERSION_1
    } else {
        world.slot.device_features()
    };
    let _ = world.slot.driver_ok(features);
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let queue = input.int_in_range(0..=queues)?;
        match input.int_in_range(0..=19)? {
            0 => {
                let at = address(input)?;
                let bytes: Vec<u8> = input.arbitrary()?;
                // The guest may write to an address without memory.
                let _ = world.memory.write_slice(&bytes, GuestAddress(at));
            }
            1 | 2 => world.commit(),
            3 => world.slot.reset(),
            4 => drop(world.slot.driver_ok(features)),
            5 => set_up(&mut world.slot, queue, input)?,
            6 => {
                let _ = world.slot.write_config(input.arbitrary()?, &input.arbitrary::<[u8; 4]>()?);
                world.slot.read_config(input.arbitrary()?, &mut [0; 8]);
            }
            7 => {
                let _ = world.slot.intake(Port(input.int_in_range(0..=2)?));
            }
            8 => world.made_up(input)?,
            9 => world.slot.set_queue_ready(queue, input.arbitrary()?),
            10 => {
                let _ = world.slot.retry_all();
            }
            11 | 12 => {
                let _ = world.slot.kick(queue);
            }
            _ => {
                let queue = queue.min(queues.max(1) - 1);
                offer(&world, queue, input)?;
                let _ = world.slot.kick(queue);
            }
        }
        world.complete();
        world.moves_on();
    }
    // The gate asserts its counts of tokens at the end of each epoch.
    world.slot.reset();
    world.commit();
    Ok(())
}
