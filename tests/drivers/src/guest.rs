//! The guest's program.

use crate::scheduler::Nanos;

/// How long it computes before it writes a page, at most.
pub(crate) const LONGEST_PAUSE: Nanos = 300_000;

/// Where the number of the next step is.
const COUNTER: u64 = 0x10_0000;
/// The pages that it writes.
const PAGES: u64 = 0x20_0000;
const COUNT: u64 = 64;
/// Of these it writes so many a step.
pub(crate) const PER_STEP: u64 = 3;

/// Guest memory, 8 bytes at a time.
pub(crate) trait Memory {
    fn read(&mut self, address: u64) -> u64;
    fn write(&mut self, address: u64, value: u64);
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03);
    x ^= x >> 31;
    x.wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// The pages of a step: some of them are written nearly always, as a guest's are.
fn page(step: u64, which: u64) -> u64 {
    if which == 0 { step % 2 } else { mix(step, which) % COUNT }
}

fn value(step: u64, page: u64) -> u64 {
    // Some pages are zero again and again.
    if mix(step, page).is_multiple_of(5) { 0 } else { mix(step, page) }
}

/// Where the guest is told, before it first runs, at which step it powers itself off; 0: never.
const OFF_AT: u64 = 0x10_1000;

/// How many bytes a step lets out, is told where it is told when to power off.
const BURST: u64 = OFF_AT + 8;

/// What a step asks of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// These bytes are to go out on the serial line.
    Bytes(Vec<u8>),
    /// The machine is to power off; the guest goes on until it does.
    Off,
}

/// Tells the guest, before it first runs, when to power off, and how much each step prints.
pub(crate) fn tell(memory: &mut dyn Memory, off_at: u64, burst: u64) {
    memory.write(OFF_AT, off_at);
    memory.write(BURST, burst);
}

/// What a step asks for.
pub(crate) fn wish(memory: &mut dyn Memory, step: u64) -> Wish {
    let (off_at, burst) = (memory.read(OFF_AT), memory.read(BURST));
    if step > 0 && step == off_at {
        return Wish::Off;
    }
    let first = printed(memory, step);
    Wish::Bytes((first..first + burst).map(byte).collect())
}

/// How much the steps before this one have printed.
pub(crate) fn printed(memory: &mut dyn Memory, step: u64) -> u64 {
    let (off_at, burst) = (memory.read(OFF_AT), memory.read(BURST));
    (step - u64::from(off_at > 0 && step > off_at)) * burst
}

/// The byte of this number.
pub(crate) fn byte(number: u64) -> u8 {
    mix(number, 7) as u8
}

/// The number of the next step.
pub(crate) fn step(memory: &mut dyn Memory) -> u64 {
    memory.read(COUNTER)
}

/// Writes a page of a step; once more where the processor was interrupted in the middle of it.
pub(crate) fn write_page(memory: &mut dyn Memory, step: u64, which: u64) {
    let page = page(step, which);
    memory.write(PAGES + page * 4096, value(step, page));
}

/// The step's byte has been taken: the processor goes on behind the instruction.
pub(crate) fn end_step(memory: &mut dyn Memory, step: u64) {
    memory.write(COUNTER, step + 1);
}

/// Looks at all pages: they hold what the steps before the counter's have written, and perhaps what the next step writes.
/// Gives how much was printed so far, or which page is wrong.
pub(crate) fn check(memory: &mut dyn Memory) -> Result<u64, String> {
    let counter = memory.read(COUNTER);
    let mut expected = [0; COUNT as usize];
    for step in 0..counter {
        for which in 0..PER_STEP {
            let page = page(step, which);
            expected[page as usize] = value(step, page);
        }
    }
    let next: Vec<u64> = (0..PER_STEP).map(|which| page(counter, which)).collect();
    for page in 0..COUNT {
        let found = memory.read(PAGES + page * 4096);
        let good = found == expected[page as usize]
            || (next.contains(&page) && found == value(counter, page));
        if !good {
            return Err(format!(
                "page {page} at step {counter}: expected {:#x}, found {found:#x}",
                expected[page as usize]
            ));
        }
    }
    Ok(printed(memory, counter))
}
