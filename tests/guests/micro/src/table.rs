//! The guest's key-value table in memory. Each entry has a check value.

use crate::faults;
use crate::memory::Zeroed;
use kemari_workload::{MAX_KEYS, chain_after};

#[derive(Clone, Copy)]
struct Entry {
    key: u32,
    used: bool,
    value: u64,
    check: u64,
}

/// The table: open addressing, without removal. Zeros are an empty table.
pub struct Table {
    entries: [Entry; MAX_KEYS],
    count: usize,
}

// SAFETY: integers and booleans; an unused entry is all zeros.
unsafe impl Zeroed for Table {}

fn check_of(key: u32, value: u64) -> u64 {
    chain_after(value, key, 0, 0, 0)
}

impl Table {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.count
    }

    /// The index of `key`, or the free index for it; `None` if the table is full.
    fn place(&self, key: u32) -> Option<usize> {
        let start = check_of(key, 0) as usize;
        (0..MAX_KEYS)
            .map(|step| start.wrapping_add(step) % MAX_KEYS)
            .find(|&place| !self.entries[place].used || self.entries[place].key == key)
    }

    /// The value of `key`. A damaged entry counts as a fault.
    pub fn get(&self, key: u32) -> Option<u64> {
        let entry = &self.entries[self.place(key)?];
        if entry.used && entry.check != check_of(key, entry.value) {
            faults::bad_entry(key);
        }
        entry.used.then_some(entry.value)
    }

    /// Sets `key` to `value`. The caller must have checked that there is room.
    pub fn put(&mut self, key: u32, value: u64) {
        let place = self.place(key).expect("room is reserved when a put is accepted");
        if !self.entries[place].used {
            self.count += 1;
        }
        self.entries[place] = Entry { key, used: true, value, check: check_of(key, value) };
    }

    /// Checks all entries, and returns the number of damaged ones.
    pub fn verify(&self) -> u64 {
        let damaged =
            |entry: &&Entry| entry.used && entry.check != check_of(entry.key, entry.value);
        let bad = self.entries.iter().filter(damaged);
        bad.inspect(|entry| faults::bad_entry(entry.key)).count() as u64
    }
}
