//! A device of unknown kind. The guest writes numbered lines to the device's first queue or, if it
//! has no queue, byte by byte to its first register. An outside observer sees whether a line is
//! lost.

use crate::memory::{self, Zeroed};
use crate::virtio::queue::{Part, Queue};
use crate::virtio::transport::Transport;
use core::fmt::{self, Write};

/// Time between two lines, in nanoseconds.
const PERIOD_NS: u64 = 2_000_000;
const LINE_LEN: usize = 32;

#[repr(C, align(64))]
struct Buffers {
    line: [u8; LINE_LEN],
    answer: [u8; LINE_LEN],
}

// SAFETY: integers only.
unsafe impl Zeroed for Buffers {}

/// The way to write to the device.
enum Way {
    Queue { queue: Queue, buffers: &'static mut Buffers, waiting: bool },
    Register { base: u64 },
}

/// The device.
pub struct Other {
    way: Way,
    number: u64,
    due: u64,
}

impl Other {
    /// A virtio device.
    pub fn start(transport: Transport) -> Self {
        transport.negotiate(0);
        let queue = Queue::new(transport, 0, 4);
        transport.start();
        let way = Way::Queue { queue, buffers: memory::allocate(), waiting: false };
        Self { way, number: 0, due: 0 }
    }

    /// A device without queues, with registers at `base`.
    pub fn at(base: u64) -> Self {
        Self { way: Way::Register { base }, number: 0, due: 0 }
    }

    /// Sends the next line if it is due. Returns whether there was work.
    pub fn poll(&mut self, now: u64) -> bool {
        let mut busy = false;
        if let Way::Queue { queue, waiting, .. } = &mut self.way
            && *waiting
        {
            match queue.take_used() {
                Some(_) => (*waiting, busy) = (false, true),
                None => return false,
            }
        }
        if now < self.due {
            return busy;
        }
        self.due = now + PERIOD_NS;
        self.number += 1;
        let mut line = Line { bytes: [0; LINE_LEN], len: 0 };
        // Ignore the result: the buffer has room for any number.
        let _ = writeln!(line, "line {}", self.number);
        self.send(&line.bytes[..line.len]);
        true
    }

    fn send(&mut self, line: &[u8]) {
        match &mut self.way {
            Way::Queue { queue, buffers, waiting } => {
                buffers.line[..line.len()].copy_from_slice(line);
                let text = Part {
                    address: buffers.line.as_ptr() as u64,
                    length: line.len() as u32,
                    writable: false,
                };
                let answer = Part {
                    address: buffers.answer.as_ptr() as u64,
                    length: LINE_LEN as u32,
                    writable: true,
                };
                queue.offer(0, &[text, answer]);
                queue.notify();
                *waiting = true;
            }
            Way::Register { base } => {
                for byte in line {
                    // SAFETY: a register of the device that the command line names.
                    unsafe { (*base as *mut u8).write_volatile(*byte) };
                }
            }
        }
    }
}

/// A buffer for a line.
struct Line {
    bytes: [u8; LINE_LEN],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
