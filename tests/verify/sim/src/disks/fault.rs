//! What can go wrong in a world with own disks.

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// A process dies.
    Crash(usize),
    /// A host loses power.
    PowerOff(usize),
    /// All hosts lose power.
    Blackout,
    /// A host loses power at the end of one of its next writes; the flag: all hosts do.
    PowerOffAfter(usize, u32, bool),
    /// A process is stopped for some milliseconds.
    Pause(usize, u64),
    /// A connection breaks.
    Break(usize),
    /// A host hears nothing from another for some milliseconds.
    Partition(usize, usize, u64),
    /// A host hears nothing, and does not reach the arbiter.
    Isolate(usize, u64),
    /// The arbiter does not answer for some milliseconds.
    ArbiterDown(u64),
    /// A host cannot reach the arbiter for some milliseconds.
    ArbiterCut(usize, u64),
    /// The next write to an image fails: an error of the device, or a full file system.
    WriteFails(usize),
    /// The next sync of an image fails.
    SyncFails(usize),
    /// A host's storage does not answer for some milliseconds.
    Hang(usize, u64),
    /// The image of a host that is off, and not in the set, is replaced by another file.
    Swap(usize),
    /// The storage of a host that is off, and not in the set, is set back to an earlier
    /// state.
    SetBack(usize),
    /// A host's disk is lost, if another host has the data.
    Lose(usize),
}
