//! The guest's program: a counter of steps. Step `n` writes some pages, whose contents follow from
//! `n`, and then makes the request that its orders name for that step. The judge can thus check the
//! memory of any moment.

/// The longest time that the guest computes between two writes of pages, in nanoseconds.
pub(crate) const LONGEST_PAUSE: u64 = 300_000;

/// Guest address of the number of the next step.
const COUNTER: u64 = 0x10_0000;
/// Guest address of the pages that the guest writes.
const PAGES: u64 = 0x20_0000;
const COUNT: u64 = 64;
/// Number of pages that a step writes.
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

/// The page of the `which`th write of a step. Two pages are written nearly always, as in real
/// guests.
fn page(step: u64, which: u64) -> u64 {
    if which == 0 { step % 2 } else { mix(step, which) % COUNT }
}

fn value(step: u64, page: u64) -> u64 {
    // Some pages become zero repeatedly, as in real guests.
    if mix(step, page).is_multiple_of(5) { 0 } else { mix(step, page) }
}

/// Load address of the kernel, whose contents are the guest's [`Orders`].
const KERNEL: u64 = 0x10_1000;
/// Guest address of the number of this boot; 0: the guest has not run since the start or reset.
const BOOT: u64 = 0x10_2000;

/// What the guest does at which step. The orders are part of the kernel, so that a reset restores
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// The step at which the guest powers itself off; 0: never.
    pub(crate) off_at: u64,
    /// Number of bytes that a step prints.
    pub(crate) burst: u64,
    /// The step at which the guest asks to be reset; it prints nothing afterwards. 0: never.
    pub(crate) reset_at: u64,
    /// While the reset is not performed, the guest repeats the request after this many further
    /// steps; 0: never.
    pub(crate) insists: u64,
}

impl Orders {
    /// Number of bytes that a boot prints before it asks to be reset.
    pub(crate) fn per_boot(&self) -> u64 {
        self.reset_at * self.burst
    }

    fn words(&self) -> [u64; 4] {
        [self.off_at, self.burst, self.reset_at, self.insists]
    }

    fn read(memory: &mut dyn Memory) -> Self {
        let mut word = |number: u64| memory.read(KERNEL + number * 8);
        Self { off_at: word(0), burst: word(1), reset_at: word(2), insists: word(3) }
    }

    /// The kernel's file: an ELF image with one loaded segment, and the note with the PVH entry.
    pub(crate) fn kernel(&self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const PROGRAM_HEADER: u64 = 56;
        const LOAD: u32 = 1;
        const NOTE: u32 = 4;
        const PVH_ENTRY: u32 = 18;
        let words = self.words();
        let data = HEADER + 2 * PROGRAM_HEADER;
        let (data_len, note_len) = (words.len() as u64 * 8, 20);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        // An executable for x86-64, version 1.
        [2_u16, 62, 1, 0].iter().for_each(|half| file.extend(half.to_le_bytes()));
        [KERNEL, HEADER, 0].iter().for_each(|word| file.extend(word.to_le_bytes()));
        let sizes = [0_u16, 0, HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0];
        sizes.iter().for_each(|half| file.extend(half.to_le_bytes()));
        for (kind, offset, place, len) in
            [(LOAD, data, KERNEL, data_len), (NOTE, data + data_len, 0, note_len)]
        {
            // Readable, writable, executable.
            [kind, 7].iter().for_each(|half| file.extend(half.to_le_bytes()));
            let words = [offset, place, place, len, len, 4];
            words.iter().for_each(|word| file.extend(word.to_le_bytes()));
        }
        words.iter().for_each(|word| file.extend(word.to_le_bytes()));
        [4, 4, PVH_ENTRY].iter().for_each(|word| file.extend(word.to_le_bytes()));
        file.extend(b"Xen\0");
        file.extend((KERNEL as u32).to_le_bytes());
        file
    }
}

/// What the guest asks of the machine at the end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuestRequest {
    /// No request: the guest runs on.
    Nothing,
    /// Write these bytes to the serial line.
    Bytes(Vec<u8>),
    /// Power off; the guest runs on until the machine stops.
    Off,
    /// Reset; the guest runs on until the machine is reset.
    Reset,
}

/// The request at the end of `step`.
pub(crate) fn request(memory: &mut dyn Memory, step: u64) -> GuestRequest {
    let orders = Orders::read(memory);
    if step > 0 && step == orders.off_at {
        return GuestRequest::Off;
    }
    if orders.reset_at > 0 && step >= orders.reset_at {
        let since = step - orders.reset_at;
        let asks = since == 0 || orders.insists > 0 && since.is_multiple_of(orders.insists);
        return if asks { GuestRequest::Reset } else { GuestRequest::Nothing };
    }
    let (boot, first) = (boot(memory), printed(memory, step));
    GuestRequest::Bytes((first..first + orders.burst).map(|number| byte(boot, number)).collect())
}

/// Number of bytes that this boot has printed before `step`.
pub(crate) fn printed(memory: &mut dyn Memory, step: u64) -> u64 {
    let Orders { off_at, burst, reset_at, .. } = Orders::read(memory);
    let step = if reset_at > 0 { step.min(reset_at) } else { step };
    (step - u64::from(off_at > 0 && step > off_at)) * burst
}

/// The byte that `boot` prints at index `number`.
pub(crate) fn byte(boot: u64, number: u64) -> u8 {
    mix(number, 7 + boot) as u8
}

/// The number of the boot in memory; 0: the guest has not run since the start or reset.
pub(crate) fn boot(memory: &mut dyn Memory) -> u64 {
    memory.read(BOOT)
}

/// Numbers the boot when the guest begins to run, as Linux draws a boot id.
pub(crate) fn begin_boot(memory: &mut dyn Memory, number: u64) {
    memory.write(BOOT, number);
}

/// The number of the next step.
pub(crate) fn step(memory: &mut dyn Memory) -> u64 {
    memory.read(COUNTER)
}

/// Performs one of the writes of a step. A step that an interrupt split repeats its writes.
pub(crate) fn write_page(memory: &mut dyn Memory, step: u64, which: u64) {
    let page = page(step, which);
    memory.write(PAGES + page * 4096, value(step, page));
}

/// Ends a step: the vCPU has passed the instruction of its request.
pub(crate) fn end_step(memory: &mut dyn Memory, step: u64) {
    memory.write(COUNTER, step + 1);
}

/// Checks that each page holds what the completed steps have written, or what the next step writes.
/// Returns how far the guest has come, or which page is wrong.
pub(crate) fn check(memory: &mut dyn Memory) -> Result<Place, String> {
    let counter = memory.read(COUNTER);
    let mut expected = [0; COUNT as usize];
    for step in 0..counter {
        for which in 0..PER_STEP {
            let page = page(step, which);
            expected[page as usize] = value(step, page);
        }
    }
    // A boot that has not run has written nothing.
    let runs = boot(memory) > 0;
    let next: Vec<u64> =
        (0..if runs { PER_STEP } else { 0 }).map(|which| page(counter, which)).collect();
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
    Ok(Place { boot: boot(memory), printed: printed(memory, counter) })
}

/// How far a guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The boot; 0: the guest has not run since its machine was started or reset.
    pub(crate) boot: u64,
    /// Number of bytes that this boot has printed.
    pub(crate) printed: u64,
}
