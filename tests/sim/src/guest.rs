//! A guest whose every output depends on all that it did before.

use io_gate::host::{EffectId, EffectOp, Record, Request};
use serde::{Deserialize, Serialize};

use crate::random::Random;

pub(crate) const PAGES: usize = 4;

/// Everything but memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub(crate) history: u64,
    pub(crate) outputs: u64,
    pub(crate) last_output: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) registers: Registers,
    pub(crate) memory: Vec<[u8; 4096]>,
    pub(crate) dirty: [bool; PAGES],
}

/// One output: it names the one before, so that an observer sees any that is lost or rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) serial: u64,
    pub(crate) after: u64,
    pub(crate) history: u64,
}

/// What a checkpoint carries beside memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) registers: Registers,
    pub(crate) in_flight: Vec<Record>,
    pub(crate) next_id: EffectId,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let memory = vec![[0; 4096]; PAGES];
        Self { registers: Registers::default(), memory, dirty: [false; PAGES] }
    }

    /// Runs on with unforeseeable input, so that no two executions are the same.
    pub(crate) fn run(&mut self, random: &mut Random) {
        let registers = &mut self.registers;
        registers.history = registers.history.rotate_left(5) ^ random.next();
        let page = random.index(PAGES);
        let at = random.index(500) * 8;
        self.memory[page][at..at + 8].copy_from_slice(&registers.history.to_le_bytes());
        self.dirty[page] = true;
    }

    pub(crate) fn output(&mut self) -> Vec<u8> {
        let registers = &mut self.registers;
        registers.outputs += 1;
        let output = Output {
            serial: registers.outputs,
            after: registers.last_output,
            history: registers.history,
        };
        registers.last_output = registers.history;
        postcard::to_allocvec(&output).unwrap()
    }
}

pub(crate) fn output_of(record: &Record) -> Output {
    let Request::Effect(EffectOp::ConsoleTx { bytes, .. }) = &record.request else {
        panic!("not an output: {record:?}")
    };
    postcard::from_bytes(bytes.inline_bytes().unwrap()).unwrap()
}
