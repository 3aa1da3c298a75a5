//! A guest whose every output depends on everything it did before. Its disk driver knows what it
//! may find on its disk, and it remembers what its memory must contain.

use io_gate::Outcome;
use io_gate::host::{EffectId, Record};
use serde::{Deserialize, Serialize};

use crate::random::{Random, mix};

pub(crate) const PAGES: usize = 4;
pub(crate) const SECTORS: usize = 5;
/// Maximum number of outstanding requests.
const DEPTH: usize = 6;

/// The contents of a sector. Tags are never used twice; 0 is the initial content.
pub(crate) type Tag = u64;

/// The guest's knowledge of a sector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SectorView {
    /// The last write that completed.
    pub(crate) completed: Tag,
    serial: u64,
    /// Later writes that failed: what they left behind is unknown.
    failed: Vec<Tag>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    Packet,
    Write {
        sector: usize,
        serial: u64,
        tag: Tag,
    },
    /// Carries the writes that had completed when the flush was requested: they must be durable
    /// afterwards.
    Flush {
        covers: [Tag; SECTORS],
    },
    Read {
        sector: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outstanding {
    pub(crate) head: u16,
    pub(crate) wanted: Wanted,
}

/// The whole state except memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub(crate) history: u64,
    outputs: u64,
    last_output: u64,
    writes: u64,
    next_head: u16,
    pub(crate) sectors: [SectorView; SECTORS],
    pub(crate) outstanding: Vec<Outstanding>,
    /// The last value written to each page.
    marks: [(u16, u64); PAGES],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) registers: Registers,
    pub(crate) memory: Vec<[u8; 4096]>,
    pub(crate) dirty: [bool; PAGES],
}

/// An output. It contains a hash of the outputs before it, so that an observer notices a lost or
/// rolled back output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) serial: u64,
    pub(crate) after: u64,
    pub(crate) history: u64,
}

/// The state that a checkpoint contains beside memory.
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

    /// Runs on with random input, so that two executions differ.
    pub(crate) fn run(&mut self, random: &mut Random) {
        for (page, (at, value)) in self.registers.marks.iter().enumerate() {
            let at = usize::from(*at);
            let found = &self.memory[page][at..at + 8];
            assert!(found == value.to_le_bytes(), "P4: the guest finds its page {page} changed");
        }
        self.take_in(random.next());
        let page = random.index(PAGES);
        if random.one_in(8) {
            // The page may become equal to its earlier contents, and to other pages.
            let byte = random.below(2) as u8;
            self.memory[page].fill(byte);
            self.registers.marks[page].1 = u64::from_le_bytes([byte; 8]);
            self.dirty[page] = true;
            return;
        }
        // Sometimes an old value: a line that is as it was some checkpoints before.
        let (at, value) = match random.one_in(4) {
            true => (usize::from(self.registers.marks[page].0), 0),
            false => (random.index(500) * 8, self.registers.history),
        };
        self.memory[page][at..at + 8].copy_from_slice(&value.to_le_bytes());
        self.registers.marks[page] = (at as u16, value);
        self.dirty[page] = true;
    }

    fn take_in(&mut self, input: u64) {
        self.registers.history = mix(self.registers.history, input);
    }

    /// Number of its outputs so far.
    pub(crate) fn outputs(&self) -> usize {
        self.registers.outputs as usize
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.registers.outstanding.len() >= DEPTH
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

    /// The next write, with its bytes.
    pub(crate) fn write(&mut self, random: &mut Random) -> (Wanted, Vec<u8>) {
        let registers = &mut self.registers;
        registers.writes += 1;
        let (sector, serial) = (random.index(SECTORS), registers.writes);
        let tag = mix(registers.history, serial) | 1;
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(&tag.to_le_bytes());
        bytes[8..16].copy_from_slice(&serial.to_le_bytes());
        (Wanted::Write { sector, serial, tag }, bytes)
    }

    pub(crate) fn flush(&self) -> Wanted {
        Wanted::Flush { covers: std::array::from_fn(|at| self.registers.sectors[at].completed) }
    }

    pub(crate) fn ask(&mut self, wanted: Wanted) -> u16 {
        let registers = &mut self.registers;
        registers.next_head = (registers.next_head + 1) % 1024;
        let head = registers.next_head;
        registers.outstanding.push(Outstanding { head, wanted });
        head
    }

    /// Completes a request.
    pub(crate) fn complete(&mut self, head: u16, outcome: Outcome, data: Option<Tag>) -> Wanted {
        let at = self.registers.outstanding.iter().position(|one| one.head == head);
        let at = at.unwrap_or_else(|| panic!("P3: request {head} completed, but not asked for"));
        if let (Wanted::Read { sector }, Some(tag)) = (&self.registers.outstanding[at].wanted, data)
        {
            assert!(
                self.may_find(*sector, tag),
                "P3: the guest reads {tag:x} from sector {sector}, and knows {:x}",
                self.registers.sectors[*sector].completed
            );
        }
        let wanted = self.registers.outstanding.remove(at).wanted;
        if let Wanted::Write { sector, serial, tag } = wanted {
            let view = &mut self.registers.sectors[sector];
            if !matches!(outcome, Outcome::Success(_)) {
                view.failed.push(tag);
            } else if serial > view.serial {
                *view = SectorView { completed: tag, serial, failed: Vec::new() };
            }
        }
        self.take_in(u64::from(head) ^ data.unwrap_or(7));
        wanted
    }

    /// Whether a sector may contain this, as far as the guest knows.
    pub(crate) fn may_find(&self, sector: usize, tag: Tag) -> bool {
        let view = &self.registers.sectors[sector];
        let under_way = |one: &Outstanding| matches!(one.wanted, Wanted::Write { sector: of, tag: is, .. } if of == sector && is == tag);
        view.completed == tag
            || view.failed.contains(&tag)
            || self.registers.outstanding.iter().any(under_way)
    }
}
