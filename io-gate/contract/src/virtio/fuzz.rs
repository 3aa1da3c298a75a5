//! A random guest.

use super::chaos::Driver;
use super::world::World;
use super::{Make, Step};
use crate::violation::Violation;

const MOVES: u16 = 150;

/// Runs the random guest of a seed against a device.
pub(super) fn guest(make: &Make, steps: &[Step], seed: u64) -> Result<(), Violation> {
    let mut world = World::new(make(), 4);
    let mut driver = Driver::new(&world, steps, seed);
    begin_again(&mut driver, &mut world)?;
    for moves in 0..MOVES {
        match driver.random.u8(0..32) {
            0..=15 => driver.request(&mut world)?,
            16..=19 => driver.input(&mut world)?,
            20..=25 => driver.settle(&mut world)?,
            26 => driver.swap(&mut world),
            27..=28 => driver.configure(&mut world)?,
            29 => begin_again(&mut driver, &mut world)?,
            _ => {
                let when = format!("saved and restored after {moves} moves");
                world = world.move_to(make(), &when)?;
            }
        }
    }
    Ok(())
}

/// Resets the device and accepts random features.
fn begin_again(driver: &mut Driver<'_>, world: &mut World) -> Result<(), Violation> {
    world.reset()?;
    let features = driver.features(world);
    world.activate(features)
}
