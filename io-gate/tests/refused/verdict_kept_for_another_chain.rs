//! A verdict is about the chain of its own session: it cannot be kept and given for another.

use io_gate::{BlockFlush, Gate, Port, Verdict};

pub struct Repeater {
    last: Option<Verdict<'static>>,
}

impl Repeater {
    pub fn process(&mut self, gate: &mut Gate<'_>) {
        self.last = Some(gate.token::<BlockFlush>().stage(Port(0)));
    }
}

fn main() {}
