//! Writes to each field of the configuration space that a driver may write.

use io_gate::ConfigPlace;

use super::world::World;
use super::{Pace, Step, VirtioContract};
use crate::suite::{Log, same};
use crate::violation::{Rule, Violation};

/// One write of a driver.
struct Written {
    offset: usize,
    bytes: Vec<u8>,
}

impl VirtioContract {
    /// Half-way through the example, writes values to each field, in whole and in part. After each
    /// write the field must have its former value or the written one, the device must continue on
    /// another machine as it does on this one, and a reset must undo the write.
    pub(super) fn check_configured(&self) -> Result<(), Violation> {
        let places = (self.make)().config().places().to_vec();
        for place in places.iter().filter(|place| place.writable) {
            for written in values(place, &self.half_way()?) {
                self.check_written(place, &written)?;
            }
        }
        Ok(())
    }

    fn check_written(&self, place: &ConfigPlace, written: &Written) -> Result<(), Violation> {
        let Written { offset, bytes } = written;
        let when = format!("`{}`, after {bytes:x?} written at {offset:#x}", place.name);
        let write = Step::Config { offset: *offset as u64, bytes: bytes.clone() };
        let mut here = self.half_way()?;
        let before = field(&here, place);
        let mut wanted = before.clone();
        let within = offset - place.offset;
        wanted[within..within + bytes.len()].copy_from_slice(bytes);
        here.take(0, &write)?;
        let after = field(&here, place);
        if after != before && after != wanted {
            return Rule::Written
                .broken(format!("{when}: expected its former value {before:x?} or the written {wanted:x?}, found {after:x?}"));
        }
        here.log = Log::new();
        self.play(&mut here, &self.moves(Pace::AtOnce), OUTCOME)?;
        let mut there = self.half_way()?;
        there.take(0, &write)?;
        there = there.move_to((self.make)(), &when)?;
        there.log = Log::new();
        self.play(&mut there, &self.moves(Pace::AtOnce), OUTCOME)?;
        same(Rule::Continuity, &when, &here.log, &there.log)?;
        if there.reset()? != (self.make)().save() {
            return Rule::Reset.broken(format!("{when}: the reset did not undo it"));
        }
        Ok(())
    }

    /// A machine on which half of the example has been played, and every request performed.
    fn half_way(&self) -> Result<World, Violation> {
        let mut world = self.world();
        let moves = self.moves(Pace::AtOnce);
        let begun = self.steps.len() / 2 * 2;
        self.play(&mut world, &moves[..begun], OUTCOME)?;
        Ok(world)
    }
}

const OUTCOME: io_gate::Outcome = io_gate::Outcome::Success(0);

/// The bytes of a field.
fn field(world: &World, place: &ConfigPlace) -> Vec<u8> {
    let mut bytes = vec![0; place.width];
    world.device.config().read(place.offset as u64, &mut bytes);
    bytes
}

/// The writes to try on a field: values at the ends of its range and next to the present one, and
/// each of its bytes alone.
fn values(place: &ConfigPlace, world: &World) -> Vec<Written> {
    let now = field(world, place);
    let first = |byte: u8| {
        let mut bytes = now.clone();
        bytes[0] = byte;
        bytes
    };
    let whole = [
        vec![0; place.width],
        vec![0xff; place.width],
        first(now[0] ^ 1),
        first(now[0].wrapping_add(1)),
        first(2),
        first(0x80),
    ];
    let whole = whole.into_iter().map(|bytes| Written { offset: place.offset, bytes });
    let parts = (0..place.width).flat_map(|at| {
        [0, 1, 0xff].map(|byte| Written { offset: place.offset + at, bytes: vec![byte] })
    });
    whole.chain(parts).collect()
}
