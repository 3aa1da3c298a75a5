//! The contract of a device that is driven by registers.

use std::sync::Arc;

use io_gate::host::{Ledger, Origin, Performable, Request, Term, new_gate};
use io_gate::{Gate, Port, RegisterDevice, SavedState, StateError};

use crate::memory::{Memory, brief};
use crate::saved::{self, Stateful};
use crate::suite::{Log, guarded, same, step};
use crate::violation::{Rule, Violation};

type Make = Arc<dyn Fn() -> Box<dyn RegisterDevice> + Send + Sync>;

const SLOT: u16 = 7;
/// Bytes of guest memory for a bus master.
const MEMORY: usize = 1 << 20;
/// Maximum number of calls of `proceed` after an access, more than any access needs.
const ROUNDS: usize = 1 << 16;
const SEEDS: u64 = 60;
const ACCESSES: usize = 200;
/// Lengths of input that often break parsers: nothing, less than a header, a frame, more than a
/// frame.
const LENGTHS: [usize; 8] = [0, 1, 11, 12, 13, 72, 1526, 20_000];

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, len: usize },
    Write { offset: u64, bytes: Vec<u8> },
    Input { port: Port, data: Vec<u8> },
    Memory { addr: u64, bytes: Vec<u8> },
}

impl Step {
    fn offset(&self) -> Option<u64> {
        match self {
            Self::Read { offset, .. } | Self::Write { offset, .. } => Some(*offset),
            Self::Input { .. } | Self::Memory { .. } => None,
        }
    }
}

/// A register device, and an example of a driver's accesses.
#[derive(Clone)]
pub struct RegisterContract {
    make: Make,
    steps: Vec<Step>,
    window: u64,
    bus_master: bool,
}

impl RegisterContract {
    /// The contract of a device. `make` makes it in its state after power-on.
    #[must_use]
    pub fn new(make: impl Fn() -> Box<dyn RegisterDevice> + Send + Sync + 'static) -> Self {
        Self { make: Arc::new(make), steps: Vec::new(), window: 0x100, bus_master: false }
    }

    /// The length of the device's window in bytes, for invalid accesses [default: 0x100].
    #[must_use]
    pub fn window(mut self, len: u64) -> Self {
        self.window = len;
        self
    }

    /// The device masters the bus: it is lent guest memory.
    #[must_use]
    pub fn bus_master(mut self) -> Self {
        self.bus_master = true;
        self
    }

    /// The guest reads `len` bytes at `offset`.
    #[must_use]
    pub fn read(mut self, offset: u64, len: usize) -> Self {
        self.steps.push(Step::Read { offset, len });
        self
    }

    /// The guest writes a register.
    #[must_use]
    pub fn write(mut self, offset: u64, bytes: &[u8]) -> Self {
        self.steps.push(Step::Write { offset, bytes: bytes.to_vec() });
        self
    }

    /// Data arrives at a port.
    #[must_use]
    pub fn input(mut self, port: Port, data: &[u8]) -> Self {
        self.steps.push(Step::Input { port, data: data.to_vec() });
        self
    }

    /// The guest writes its own memory: rings and buffers for a bus master. The memory has 1 MiB.
    #[must_use]
    pub fn memory(mut self, addr: u64, bytes: &[u8]) -> Self {
        self.steps.push(Step::Memory { addr, bytes: bytes.to_vec() });
        self
    }

    /// Checks the whole contract.
    ///
    /// # Panics
    /// When the device breaks the contract. The message names the rule, what was seen, and what to
    /// change.
    #[track_caller]
    pub fn check(self) {
        if let Err(violation) = self.try_check() {
            panic!("\n{violation}\n");
        }
    }

    /// As [`check`](Self::check).
    ///
    /// # Errors
    /// The first violation.
    pub fn try_check(self) -> Result<(), Violation> {
        guarded(move || {
            if self.steps.is_empty() {
                return Rule::Script.broken("an example without any access");
            }
            self.check_continuity()?;
            self.check_state()?;
            self.check_reset()?;
            self.check_chaos()
        })
    }

    /// Runs random guests: see [`fuzz`](crate).
    ///
    /// # Panics
    /// When the device breaks the contract. The message contains the seed to repeat the run.
    #[track_caller]
    pub fn fuzz(self) {
        if let Err(violation) = self.try_fuzz() {
            panic!("\n{violation}\n");
        }
    }

    /// As [`fuzz`](Self::fuzz).
    ///
    /// # Errors
    /// The first violation.
    pub fn try_fuzz(self) -> Result<(), Violation> {
        crate::fuzz::run(move |seed| self.try_guest(seed))
    }

    /// Runs one guest of [`fuzz`](Self::fuzz), by its seed.
    ///
    /// # Errors
    /// As [`try_fuzz`](Self::try_fuzz).
    pub fn try_guest(&self, seed: u64) -> Result<(), Violation> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = self.world();
        for access in 0..ACCESSES {
            match random.u8(0..32) {
                0 => step("a reset", || world.device.reset())?,
                1 => {
                    let when = format!("saved and restored after {access} accesses");
                    world = world.move_to((self.make)(), &when)?;
                }
                _ => world.take(&self.random_step(&mut random))?,
            }
        }
        Ok(())
    }

    fn world(&self) -> World {
        World::new((self.make)(), self.bus_master)
    }

    fn play(&self, world: &mut World, range: std::ops::Range<usize>) -> Result<(), Violation> {
        self.steps[range].iter().try_for_each(|next| world.take(next))
    }

    fn check_continuity(&self) -> Result<(), Violation> {
        let all = self.steps.len();
        let (mut reference, mut again) = (self.world(), self.world());
        self.play(&mut reference, 0..all)?;
        self.play(&mut again, 0..all)?;
        same(Rule::Determinism, "the example played twice", &reference.log, &again.log)?;
        for cut in 0..=all {
            let when = format!("saved and restored after {cut} of {all} steps");
            let mut before = self.world();
            self.play(&mut before, 0..cut)?;
            let mut after = before.move_to((self.make)(), &when)?;
            self.play(&mut after, cut..all)?;
            same(Rule::Continuity, &when, &reference.log, &after.log)?;
        }
        Ok(())
    }

    fn check_state(&self) -> Result<(), Violation> {
        for played in [0, self.steps.len() / 2, self.steps.len()] {
            let mut world = self.world();
            self.play(&mut world, 0..played)?;
            saved::check(&mut world, |state| self.go_on_from(state))?;
        }
        Ok(())
    }

    /// Plays the example with a device that has restored `state`.
    fn go_on_from(&self, state: &SavedState) -> Result<(), Violation> {
        let mut device = (self.make)();
        if let Err(error) = device.restore(state) {
            return Rule::RoundTrip.broken(format!("another instance refused it: {error}"));
        }
        self.play(&mut World::new(device, self.bus_master), 0..self.steps.len())
    }

    fn check_reset(&self) -> Result<(), Violation> {
        let all = self.steps.len();
        let power_on = (self.make)().save();
        let mut fresh = self.world();
        self.play(&mut fresh, 0..all)?;
        for cut in 0..=all {
            let when = format!("reset after {cut} of {all} steps");
            let mut world = self.world();
            self.play(&mut world, 0..cut)?;
            world.device.reset();
            if world.device.save() != power_on {
                return Rule::Reset
                    .broken(format!("{when}: the saved state is not the one after power-on"));
            }
            (world.log, world.memory) = (Log::new(), Memory::new(MEMORY));
            self.play(&mut world, 0..all)?;
            same(Rule::Reset, &when, &fresh.log, &world.log)?;
        }
        Ok(())
    }

    /// Plays random accesses between those of the example. A second run moves to another machine at
    /// some point, and must have the same log.
    fn check_chaos(&self) -> Result<(), Violation> {
        for seed in 0..SEEDS {
            let whole = self.chaos(seed, None)?;
            let cut = fastrand::Rng::with_seed(!seed).usize(0..ACCESSES);
            let when = format!("saved and restored after {cut} random accesses (seed {seed})");
            same(Rule::Continuity, &when, &whole, &self.chaos(seed, Some((cut, &when)))?)?;
        }
        Ok(())
    }

    /// Plays random accesses and returns the log, with a move to another machine before one of
    /// them.
    fn chaos(&self, seed: u64, cut: Option<(usize, &str)>) -> Result<Log, Violation> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = self.world();
        for access in 0..ACCESSES {
            if let Some((at, when)) = cut
                && at == access
            {
                world = world.move_to((self.make)(), when)?;
            }
            world.take(&self.random_step(&mut random))?;
        }
        Ok(world.log)
    }

    fn random_step(&self, random: &mut fastrand::Rng) -> Step {
        match random.u8(0..9) {
            0 | 1 => self.steps[random.usize(0..self.steps.len())].clone(),
            2..=4 => Step::Write { offset: self.offset(random), bytes: value(random) },
            5 | 6 => Step::Read { offset: self.offset(random), len: random.usize(0..9) },
            7 => {
                let len = LENGTHS[random.usize(0..LENGTHS.len())];
                Step::Input { port: self.port(), data: bytes(len, random) }
            }
            _ => Step::Memory {
                addr: random.u64(0..MEMORY as u64 - 64),
                bytes: bytes(random.usize(0..64), random),
            },
        }
    }

    /// The port of the example's input, or the first port.
    fn port(&self) -> Port {
        let mut inputs = self.steps.iter().filter_map(|step| match step {
            Step::Input { port, .. } => Some(*port),
            Step::Read { .. } | Step::Write { .. } | Step::Memory { .. } => None,
        });
        inputs.next().unwrap_or(Port(0))
    }

    fn offsets(&self) -> Vec<u64> {
        self.steps.iter().filter_map(Step::offset).collect()
    }

    fn offset(&self, random: &mut fastrand::Rng) -> u64 {
        let special = [0, self.window.saturating_sub(1), self.window, 1 << 32, u64::MAX];
        match random.u8(0..4) {
            0 => random.u64(0..self.window.max(1)),
            1 => special[random.usize(0..special.len())],
            // A register that the example uses.
            _ => random.choice(self.offsets()).unwrap_or(0),
        }
    }
}

/// A value for a register: random bytes, an address in memory, a small number, or a single bit.
fn value(random: &mut fastrand::Rng) -> Vec<u8> {
    let word = match random.u8(0..4) {
        0 => return bytes(random.usize(0..9), random),
        1 => random.u32(0..MEMORY as u32) & !15,
        2 => random.u32(0..256),
        _ => 1 << random.u8(0..32),
    };
    word.to_le_bytes().to_vec()
}

fn bytes(len: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    (0..len).map(|_| random.u8(..)).collect()
}

/// A machine around one register device.
struct World {
    device: Box<dyn RegisterDevice>,
    ledger: Ledger,
    memory: Memory,
    bus_master: bool,
    log: Log,
    pending: Vec<Performable>,
}

impl World {
    fn new(device: Box<dyn RegisterDevice>, bus_master: bool) -> Self {
        let (mut ledger, mut authority) = new_gate();
        let none = ledger.run_alone(authority.alone(Term(1)));
        debug_assert!(none.is_empty(), "a fresh gate holds nothing");
        let (memory, log, pending) = (Memory::new(MEMORY), Log::new(), Vec::new());
        Self { device, ledger, memory, bus_master, log, pending }
    }

    fn session<R>(&mut self, call: impl FnOnce(&mut dyn RegisterDevice, &mut Gate<'_>) -> R) -> R {
        let Self { device, ledger, memory, .. } = self;
        match self.bus_master {
            true => ledger.bus_master_session(SLOT, memory, |gate| call(device.as_mut(), gate)),
            false => ledger.detached_session(SLOT, |gate| call(device.as_mut(), gate)),
        }
    }

    fn take(&mut self, next: &Step) -> Result<(), Violation> {
        let asked = match next {
            Step::Read { offset, len } => format!("a read of {len} bytes at {offset:#x}"),
            Step::Write { offset, bytes } => format!("a write at {offset:#x}: {}", brief(bytes)),
            Step::Input { port, data } => format!("input at port {}: {}", port.0, brief(data)),
            Step::Memory { addr, bytes } => {
                self.memory.put(*addr, bytes);
                return Ok(());
            }
        };
        match next {
            Step::Read { offset, len } => {
                let mut into = vec![0; *len];
                step(&asked, || {
                    self.session(|device, gate| device.read(*offset, &mut into, gate))
                })?;
                self.log.push(format!("{asked}: {}", brief(&into)));
            }
            Step::Write { offset, bytes } => {
                step(&asked, || self.session(|device, gate| device.write(*offset, bytes, gate)))?;
            }
            Step::Input { port, data } => {
                let taken =
                    step(&asked, || self.session(|device, gate| device.intake(*port, data, gate)))?;
                if taken > data.len() {
                    return Rule::TakesInput.broken(format!("{asked}: {taken} bytes taken"));
                }
                self.log.push(format!("{asked}: {taken} taken"));
            }
            Step::Memory { .. } => {}
        }
        self.end_of_step(&asked)
    }

    fn end_of_step(&mut self, asked: &str) -> Result<(), Violation> {
        let mut rounds = 0;
        while step(asked, || self.session(|device, gate| device.proceed(gate)))? {
            rounds += 1;
            if rounds > ROUNDS {
                return Rule::Returns
                    .broken(format!("{asked}: still at work after {ROUNDS} rounds"));
            }
        }
        let line = step(asked, || self.device.line())?;
        self.log.push(format!("line: {line:?}"));
        for request in self.ledger.take_ready() {
            debug_assert!(matches!(request.record().origin, Origin::Detached { .. }));
            if let Request::Effect(op) = &request.record().request {
                let bytes = op.payload().map(|payload| self.memory.describe(payload));
                self.log.push(format!("stages {op:?}: {}", bytes.unwrap_or_default()));
            }
            self.pending.push(request);
        }
        // Settle the oldest request one step late, so that requests are in flight between steps.
        if self.pending.len() > 1 {
            let oldest = self.pending.remove(0);
            self.ledger.settle(oldest);
        }
        step(asked, || self.ledger.seal())?;
        Ok(())
    }

    fn move_to(
        mut self,
        mut device: Box<dyn RegisterDevice>,
        when: &str,
    ) -> Result<Self, Violation> {
        let state = step(when, || self.device.save())?;
        if let Err(error) = step(when, || device.restore(&state))? {
            return Rule::RoundTrip.broken(format!("{when}: its own state was refused: {error}"));
        }
        if device.save() != state {
            return Rule::RoundTrip
                .broken(format!("{when}: saved {state:?}, after restoring {:?}", device.save()));
        }
        let (mut ledger, mut authority) = new_gate();
        let in_flight = self.ledger.in_flight();
        ledger.adopt(self.ledger.seal(), self.ledger.next_id(), in_flight);
        self.pending = ledger.run_alone(authority.alone(Term(2)));
        (self.device, self.ledger) = (device, ledger);
        Ok(self)
    }
}

impl Stateful for World {
    fn save(&self) -> SavedState {
        self.device.save()
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.device.restore(state)
    }
}
