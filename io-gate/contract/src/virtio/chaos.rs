//! Malformed requests.

use io_gate::Port;
use io_gate::host::GuestRange;

use super::world::{Place, World};
use super::{Make, OUTCOMES, Step};
use crate::suite::{Log, same};
use crate::violation::{Rule, Violation};

const SEEDS: u64 = 40;
const REQUESTS: u16 = 60;
/// Lengths that often break parsers.
const LENGTHS: [usize; 16] =
    [0, 1, 2, 3, 4, 8, 12, 15, 16, 17, 31, 512, 513, 4096, 65_536, 100_000];

/// Gives random requests to a device. The device must continue after each of them, and the gate's
/// counts must be balanced. A second run of the same requests moves to another machine at some
/// point, and must have the same log.
pub(super) fn check(make: &Make, steps: &[Step]) -> Result<(), Violation> {
    for seed in 0..SEEDS {
        let whole = play(make, steps, seed, None)?;
        let cut = fastrand::Rng::with_seed(!seed).u16(0..REQUESTS);
        let when = format!("saved and restored after {cut} random requests (seed {seed})");
        let moved = play(make, steps, seed, Some((cut, &when)))?;
        same(Rule::Continuity, &when, &whole, &moved)?;
    }
    Ok(())
}

/// Plays random requests and returns the log, with a move to another machine before one of them.
fn play(
    make: &Make,
    steps: &[Step],
    seed: u64,
    cut: Option<(u16, &str)>,
) -> Result<Log, Violation> {
    let mut world = World::new(make(), 4);
    let mut driver = Driver::new(&world, steps, seed);
    for head in 0..REQUESTS {
        if let Some((at, when)) = cut
            && at == head
        {
            world = world.move_to(make(), when)?;
        }
        driver.request(&mut world)?;
        driver.input(&mut world)?;
        if driver.random.u8(0..8) == 0 {
            driver.swap(&mut world);
        }
        if driver.random.bool() {
            driver.settle(&mut world)?;
        }
        if driver.random.u8(0..16) == 0 {
            driver.configure(&mut world)?;
        }
    }
    Ok(world.log)
}

/// A driver that partly follows the device's protocol and partly violates it.
pub(super) struct Driver<'s> {
    pub(super) random: fastrand::Rng,
    steps: &'s [Step],
    queues: u16,
    ports: Vec<Port>,
    head: u16,
}

impl<'s> Driver<'s> {
    pub(super) fn new(world: &World, steps: &'s [Step], seed: u64) -> Self {
        let device = &world.device;
        let ports = (0..4).map(Port).filter(|port| device.intake_queue(*port).is_some()).collect();
        let queues = device.queues().len() as u16;
        Self { random: fastrand::Rng::with_seed(seed), steps, queues, ports, head: 0 }
    }

    pub(super) fn request(&mut self, world: &mut World) -> Result<(), Violation> {
        if self.queues == 0 {
            return Ok(());
        }
        let place = malformed(world, self.steps, &mut self.random);
        world.request(self.random.u16(0..self.queues), self.head, place)?;
        // Waiting chains must have different heads.
        self.head += 1;
        world.end_of_step()
    }

    pub(super) fn input(&mut self, world: &mut World) -> Result<(), Violation> {
        let Some(port) = self.random.choice(&self.ports).copied() else { return Ok(()) };
        let len = length(&mut self.random);
        let data: Vec<u8> = (0..len).map(|_| self.random.u8(..)).collect();
        let mut place = malformed(world, self.steps, &mut self.random);
        if world.device.merges_input(port) {
            place.merged = Some(self.random.u16(1..5));
        }
        world.offer(port, &data, &place)
    }

    /// Replaces the chain of a request in flight.
    pub(super) fn swap(&mut self, world: &mut World) {
        let place = malformed(world, self.steps, &mut self.random);
        world.swap_oldest(place);
    }

    pub(super) fn settle(&mut self, world: &mut World) -> Result<(), Violation> {
        world.settle_oldest(OUTCOMES[self.random.usize(0..OUTCOMES.len())])
    }

    pub(super) fn configure(&mut self, world: &mut World) -> Result<(), Violation> {
        let random = &mut self.random;
        let bytes: Vec<u8> = (0..random.usize(0..9)).map(|_| random.u8(..)).collect();
        let special = [0, 1, 7, 8, 60, 4095, u64::MAX];
        let offset = match random.bool() {
            true => special[random.usize(0..special.len())],
            false => random.u64(0..64),
        };
        world.read_config(offset, bytes.len())?;
        world.take(0, &Step::Config { offset, bytes })
    }

    /// Random features: all, none, or some of the offered features.
    pub(super) fn features(&mut self, world: &World) -> u64 {
        let offered = world.device.features();
        match self.random.u8(0..4) {
            0 => offered,
            1 => 0,
            _ => offered & self.random.u64(..),
        }
    }
}

/// A length that often breaks parsers, or a random one.
fn length(random: &mut fastrand::Rng) -> usize {
    let bits = random.u8(1..17);
    match random.bool() {
        true => LENGTHS[random.usize(0..LENGTHS.len())],
        false => random.usize(0..1 << bits),
    }
}

/// A request of the example with some errors, or a wholly random one.
fn malformed(world: &World, steps: &[Step], random: &mut fastrand::Rng) -> Place {
    let requests: Vec<(&Vec<u8>, usize)> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Request { readable, room, .. } => Some((readable, *room)),
            Step::Input { .. } | Step::Config { .. } => None,
        })
        .collect();
    let (mut bytes, mut room) = match requests.get(random.usize(0..=requests.len())) {
        Some((bytes, room)) => ((*bytes).clone(), *room),
        None => {
            let len = length(random);
            ((0..len).map(|_| random.u8(..)).collect(), length(random))
        }
    };
    for _ in 0..random.usize(0..4) {
        match random.u8(0..4) {
            0 => bytes.truncate(random.usize(0..=bytes.len())),
            1 => room = length(random),
            2 if !bytes.is_empty() => {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            _ => bytes.extend((0..random.usize(0..20)).map(|_| random.u8(..))),
        }
    }
    world.memory.put(0, &bytes);
    let mut place = Place {
        readable: cut(0, bytes.len(), random),
        writable: cut(256 << 10, room, random),
        changed: false,
        merged: None,
        own: false,
    };
    if random.u8(0..8) == 0 {
        // Use one range twice.
        let ranges = if random.bool() { &mut place.readable } else { &mut place.writable };
        ranges.extend(random.choice(ranges.clone()));
    } else if random.u8(0..8) == 0 {
        // Add a range beyond the end of memory: a driver may lie, or a device may get another
        // device's chain. The far side accepts chains of up to 2^32 - 1 bytes.
        let most = u32::MAX - (bytes.len() + room) as u32;
        let len = if random.bool() { most } else { random.u32(1..600) };
        let outside = GuestRange { addr: 1 << 40, len };
        if random.bool() { &mut place.readable } else { &mut place.writable }.push(outside);
    }
    place
}

/// Descriptors of random lengths, some of them empty.
fn cut(mut addr: u64, mut len: usize, random: &mut fastrand::Rng) -> Vec<GuestRange> {
    let mut ranges = Vec::new();
    while len > 0 || random.u8(0..6) == 0 {
        let here = if random.bool() { len } else { random.usize(0..=len) };
        ranges.push(GuestRange { addr, len: here as u32 });
        addr += here as u64;
        len -= here;
    }
    ranges
}
