//! An effect happens once: a `Performable` cannot be cloned.

use io_gate::host::Performable;

pub fn mirror(effect: &Performable) -> [Performable; 2] {
    [effect.clone(), effect.clone()]
}

fn main() {}
