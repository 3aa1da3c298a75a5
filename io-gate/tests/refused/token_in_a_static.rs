//! A static outlives every call, so no token can be in it.

use std::sync::Mutex;

use io_gate::{EffectToken, Gate, NetTx};

static FOR_LATER: Mutex<Option<EffectToken<'static, 'static, NetTx>>> = Mutex::new(None);

pub fn process(gate: &mut Gate<'_>) {
    *FOR_LATER.lock().unwrap() = Some(gate.token::<NetTx>());
}

fn main() {}
