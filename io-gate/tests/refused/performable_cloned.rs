//! An effect happens once: what is to be performed cannot be multiplied.

use io_gate::host::Performable;

pub fn mirror(effect: &Performable) -> [Performable; 2] {
    [effect.clone(), effect.clone()]
}

fn main() {}
