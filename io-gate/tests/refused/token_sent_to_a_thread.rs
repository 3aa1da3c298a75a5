//! A session ends on the thread that it began on. On another thread an effect could be staged while
//! the machine is being saved.

use io_gate::{ConsoleTx, Gate, Port};

pub fn write_behind(gate: &mut Gate<'_>) {
    let token = gate.token::<ConsoleTx>();
    std::thread::scope(|scope| {
        scope.spawn(move || token.emit(Port(0), b"later".to_vec()));
    });
}

fn main() {}
