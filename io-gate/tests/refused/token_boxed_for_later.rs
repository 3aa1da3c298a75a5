//! Hiding a token in a closure or a trait object does not hide its lifetime.

use io_gate::{ConsoleTx, Gate, Port};

pub struct Procrastinator {
    later: Vec<Box<dyn FnOnce()>>,
}

impl Procrastinator {
    pub fn process(&mut self, gate: &mut Gate<'_>) {
        let token = gate.token::<ConsoleTx>();
        self.later.push(Box::new(move || token.emit(Port(0), b"late".to_vec())));
    }
}

fn main() {}
