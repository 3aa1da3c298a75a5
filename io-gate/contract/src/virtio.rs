//! The contract of a virtio device.

mod chaos;
mod configured;
mod fuzz;
mod gate;
mod world;

use std::sync::Arc;

use io_gate::{Device, Outcome, Port, SavedState, StateError};

use crate::saved::{self, Stateful};
use crate::suite::{Log, guarded, same};
use crate::violation::{Rule, Violation};
use gate::Disks;
use world::World;

/// Makes the device as a machine does at power-on.
pub(crate) type Make = Arc<dyn Fn() -> Box<dyn Device> + Send + Sync>;

/// One thing that happens to a device.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Request { queue: u16, readable: Vec<u8>, room: usize },
    Input { port: Port, data: Vec<u8>, room: usize },
    Config { offset: u64, bytes: Vec<u8> },
}

/// A virtio device, and an example of a driver's requests.
#[derive(Clone)]
pub struct VirtioContract {
    make: Make,
    steps: Vec<Step>,
    /// The features that each step needs.
    needs: Vec<u64>,
    /// Features on which no request depends.
    without_requests: u64,
}

/// When requests in flight are performed.
#[derive(Clone, Copy, Debug)]
enum Pace {
    AtOnce,
    TwoBehind,
    AtTheEnd,
}

/// One move of a run.
#[derive(Clone, Copy)]
enum Move {
    Step(usize),
    Settle,
}

const OUTCOMES: [Outcome; 3] = [Outcome::Success(0), Outcome::Failed, Outcome::Unsupported];

impl VirtioContract {
    /// The contract of a device. `make` makes it in its state after power-on.
    #[must_use]
    pub fn new(make: impl Fn() -> Box<dyn Device> + Send + Sync + 'static) -> Self {
        Self { make: Arc::new(make), steps: Vec::new(), needs: Vec::new(), without_requests: 0 }
    }

    /// The driver makes a chain available: bytes for the device to read, and room in bytes for it
    /// to write.
    #[must_use]
    pub fn request(self, queue: u16, readable: &[u8], room: usize) -> Self {
        self.add(Step::Request { queue, readable: readable.to_vec(), room })
    }

    /// Data arrives at a port, and the driver offers chains with `room` bytes each.
    #[must_use]
    pub fn input(self, port: Port, data: &[u8], room: usize) -> Self {
        self.add(Step::Input { port, data: data.to_vec(), room })
    }

    /// The driver writes to the configuration space.
    #[must_use]
    pub fn configure(self, offset: u64, bytes: &[u8]) -> Self {
        self.add(Step::Config { offset, bytes: bytes.to_vec() })
    }

    /// The step added last needs these features: the device refuses it if the driver has not
    /// accepted all of them.
    #[must_use]
    pub fn needs(mut self, features: u64) -> Self {
        if let Some(needs) = self.needs.last_mut() {
            *needs |= features;
        }
        self
    }

    /// No request depends on these features. Each feature that the device offers must be listed
    /// here or in a [`needs`](Self::needs) of the example.
    #[must_use]
    pub fn without_requests(mut self, features: u64) -> Self {
        self.without_requests |= features;
        self
    }

    fn add(mut self, step: Step) -> Self {
        self.steps.push(step);
        self.needs.push(0);
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
                return Rule::Script.broken("an example without any request");
            }
            self.check_continuity()?;
            self.check_own_disks()?;
            self.check_state()?;
            self.check_configured()?;
            self.check_reset()?;
            self.check_features()?;
            self.check_negotiated()?;
            chaos::check(&self.make, &self.steps)
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
        fuzz::guest(&self.make, &self.steps, seed)
    }

    fn world(&self) -> World {
        self.world_on(Disks::Shared)
    }

    /// A machine whose driver has accepted all features, with disks of this kind.
    fn world_on(&self, disks: Disks) -> World {
        let mut device = (self.make)();
        device.activate(device.features());
        World::on(device, self.steps.len(), disks)
    }

    fn moves(&self, pace: Pace) -> Vec<Move> {
        let mut moves = Vec::new();
        for index in 0..self.steps.len() {
            moves.push(Move::Step(index));
            let due = match pace {
                Pace::AtOnce => true,
                Pace::TwoBehind => index >= 2,
                Pace::AtTheEnd => false,
            };
            moves.extend(due.then_some(Move::Settle));
        }
        moves.extend(self.steps.iter().map(|_| Move::Settle));
        moves
    }

    fn play(&self, world: &mut World, moves: &[Move], outcome: Outcome) -> Result<(), Violation> {
        for next in moves {
            match *next {
                Move::Step(index) => world.take(index, &self.steps[index])?,
                Move::Settle => world.settle_oldest(outcome)?,
            }
        }
        Ok(())
    }

    /// A device that is saved and restored at any point continues unchanged, and two equal runs
    /// have equal logs.
    fn check_continuity(&self) -> Result<(), Violation> {
        for pace in [Pace::AtOnce, Pace::TwoBehind, Pace::AtTheEnd] {
            for outcome in OUTCOMES {
                let moves = self.moves(pace);
                let mut reference = self.world();
                self.play(&mut reference, &moves, outcome)?;
                let mut again = self.world();
                self.play(&mut again, &moves, outcome)?;
                let when = format!("the example played twice ({pace:?}, {outcome:?})");
                same(Rule::Determinism, &when, &reference.log, &again.log)?;
                for cut in 0..=moves.len() {
                    let when = format!(
                        "saved and restored after {cut} of {} steps ({pace:?}, {outcome:?})",
                        moves.len()
                    );
                    let mut before = self.world();
                    self.play(&mut before, &moves[..cut], outcome)?;
                    let mut after = before.move_to((self.make)(), &when)?;
                    self.play(&mut after, &moves[cut..], outcome)?;
                    same(Rule::Continuity, &when, &reference.log, &after.log)?;
                }
            }
        }
        Ok(())
    }

    /// A device whose disks are own disks causes the same effects, and continues after a takeover,
    /// which completes its requests without performing them again.
    fn check_own_disks(&self) -> Result<(), Violation> {
        for pace in [Pace::TwoBehind, Pace::AtTheEnd] {
            let moves = self.moves(pace);
            let mut shared = self.world();
            self.play(&mut shared, &moves, Outcome::Success(0))?;
            for cut in 0..=moves.len() {
                let when = format!(
                    "with own disks, moved after {cut} of {} steps ({pace:?})",
                    moves.len()
                );
                let mut before = self.world_on(Disks::Own);
                self.play(&mut before, &moves[..cut], Outcome::Success(0))?;
                let mut after = before.move_to((self.make)(), &when)?;
                self.play(&mut after, &moves[cut..], Outcome::Success(0))?;
                same(Rule::Continuity, &when, &shared.log, &after.log)?;
            }
        }
        Ok(())
    }

    fn check_state(&self) -> Result<(), Violation> {
        for pace in [Pace::AtOnce, Pace::AtTheEnd] {
            let mut world = self.world();
            // Stop half-way: with `AtTheEnd`, requests are in flight.
            let moves = self.moves(pace);
            self.play(&mut world, &moves[..moves.len() / 2], Outcome::Success(0))?;
            saved::check(&mut world, |state| self.go_on_from(state))?;
        }
        saved::check(&mut self.world(), |state| self.go_on_from(state))
    }

    /// Plays the example with a device that has restored `state`.
    fn go_on_from(&self, state: &SavedState) -> Result<(), Violation> {
        let mut device = (self.make)();
        if let Err(error) = device.restore(state) {
            return Rule::RoundTrip.broken(format!("another instance refused it: {error}"));
        }
        let mut world = World::with(device, self.steps.len());
        self.play(&mut world, &self.moves(Pace::TwoBehind), Outcome::Success(0))
    }

    fn check_reset(&self) -> Result<(), Violation> {
        let power_on = (self.make)().save();
        let mut fresh = self.world();
        self.play(&mut fresh, &self.moves(Pace::AtOnce), Outcome::Success(0))?;
        let moves = self.moves(Pace::AtTheEnd);
        for cut in 0..=moves.len() {
            let when = format!("reset after {cut} of {} steps", moves.len());
            let mut world = self.world();
            self.play(&mut world, &moves[..cut], Outcome::Success(0))?;
            if world.reset()? != power_on {
                return Rule::Reset
                    .broken(format!("{when}: the saved state is not the one after power-on"));
            }
            world.activate(world.device.features())?;
            world.log = Log::new();
            self.play(&mut world, &self.moves(Pace::AtOnce), Outcome::Success(0))?;
            same(Rule::Reset, &when, &fresh.log, &world.log)?;
        }
        Ok(())
    }

    fn check_features(&self) -> Result<(), Violation> {
        let offered = (self.make)().features();
        let single = (0..64).map(|bit| 1_u64 << bit).filter(|bit| offered & bit != 0);
        let all_but_one =
            (0..64).map(|bit| offered & !(1_u64 << bit)).filter(|set| *set != offered);
        for set in [0, offered].into_iter().chain(single).chain(all_but_one) {
            let mut device = (self.make)();
            device.activate(set);
            let first = device.save();
            device.reset();
            device.activate(offered);
            device.reset();
            device.activate(set);
            if device.save() != first {
                return Rule::Features
                    .broken(format!("{set:#x} accepted again after a reset gives another state"));
            }
            if device.features() != offered {
                return Rule::Features
                    .broken(format!("after {set:#x} is accepted it offers other features"));
            }
            let mut world = World::with(device, self.steps.len());
            self.play(&mut world, &self.moves(Pace::TwoBehind), Outcome::Success(0))?;
        }
        Ok(())
    }

    /// The device serves each step if the driver has accepted all offered features. It does not
    /// serve a step if the driver has not accepted one of the features that the step needs.
    fn check_negotiated(&self) -> Result<(), Violation> {
        let offered = (self.make)().features();
        let said = self.needs.iter().fold(self.without_requests, |all, needs| all | needs);
        if offered & !said != 0 {
            return Rule::Negotiated.broken(format!(
                "the example does not cover the offered features {:#x}",
                offered & !said
            ));
        }
        for (index, needs) in self.needs.iter().enumerate() {
            let served = self.answer(index, offered)?;
            for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| needs & bit != 0) {
                let without = self.answer(index, offered & !bit)?;
                let when = format!("step {index} of the example, with {:#x}", offered & !bit);
                if without.asked > 0 {
                    return Rule::Negotiated.broken(format!("{when}: it was served"));
                }
                if offered & needs == *needs && without.log == served.log {
                    return Rule::Negotiated
                        .broken(format!("{when}: the same as with all: {:?}", served.log));
                }
            }
        }
        Ok(())
    }

    /// The result of one step of the example for a driver that has accepted these features.
    fn answer(&self, index: usize, features: u64) -> Result<StepResult, Violation> {
        let mut device = (self.make)();
        device.activate(features);
        let mut world = World::with(device, self.steps.len());
        world.take(index, &self.steps[index])?;
        Ok(StepResult { asked: world.in_flight(), log: world.log })
    }
}

/// The result of one step.
struct StepResult {
    /// Number of effects and inputs requested.
    asked: usize,
    log: Log,
}

impl Stateful for World {
    fn save(&self) -> SavedState {
        self.device.save()
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), StateError> {
        self.device.restore(state)
    }
}
