//! The vCPUs' interface to the machine around them: port and memory-mapped I/O, and the end of a
//! vCPU.

use std::fmt;

/// Serves the exits of all vCPUs, on their threads, several at once.
///
/// A handler must not pause, resume or stop the vCPUs: its own thread is one of them.
pub trait ExitHandler: Send + Sync {
    /// The guest reads `data.len()` (1, 2 or 4) bytes from a port.
    fn pio_in(&self, port: u16, data: &mut [u8]);
    /// The guest writes `data.len()` (1, 2 or 4) bytes to a port.
    fn pio_out(&self, port: u16, data: &[u8]);
    /// The guest reads `data.len()` (1 to 8) bytes of an address that is not RAM.
    fn mmio_read(&self, addr: u64, data: &mut [u8]);
    /// The guest writes `data.len()` (1 to 8) bytes to an address that is not RAM.
    fn mmio_write(&self, addr: u64, data: &[u8]);
    /// Whether the calling vCPU may enter the guest again. Until it may, its last access is not
    /// executed, and seems slow to the guest. The vCPU waits outside the guest, where it can be
    /// paused.
    fn may_go_on(&self) -> bool {
        true
    }
    /// vCPU `vcpu` cannot continue and no longer runs; the others still do.
    fn on_fatal(&self, vcpu: usize, exit: FatalExit);
}

/// Why a vCPU cannot continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FatalExit {
    /// A triple fault, which resets real hardware. The caller resets the machine.
    TripleFault {
        /// The guest's instruction pointer.
        rip: u64,
    },
    /// KVM cannot emulate an instruction or run the guest (KVM_EXIT_INTERNAL_ERROR).
    InternalError {
        /// The guest's instruction pointer.
        rip: u64,
        /// KVM's suberror: 1 emulation, 2 simultaneous exceptions, 3 event delivery, 4 unexpected
        /// exit.
        suberror: u32,
        /// KVM's additional data; for suberror 1, it includes the bytes of the instruction.
        data: Vec<u64>,
    },
    /// The processor refused the guest's state (KVM_EXIT_FAIL_ENTRY).
    FailEntry {
        /// The guest's instruction pointer.
        rip: u64,
        /// The processor's reason.
        reason: u64,
    },
    /// KVM asks for a shutdown or a reset, or reports a crash (KVM_EXIT_SYSTEM_EVENT).
    SystemEvent {
        /// KVM's event type: 1 shutdown, 2 reset, 3 crash.
        kind: u32,
    },
    /// An exit that this machine never requests.
    Unexpected {
        /// The guest's instruction pointer.
        rip: u64,
        /// KVM's exit reason.
        reason: u32,
    },
    /// KVM_RUN itself failed.
    RunFailed {
        /// The guest's instruction pointer.
        rip: u64,
        /// The error number.
        errno: i32,
    },
    /// The exit handler panicked on the vCPU's thread.
    Panicked,
}

impl fmt::Display for FatalExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FatalExit::TripleFault { rip } => write!(f, "triple fault at rip {rip:#x}"),
            FatalExit::InternalError { rip, suberror, data } => write!(
                f,
                "KVM internal error, suberror {suberror} ({}), at rip {rip:#x}, data {data:x?}",
                suberror_name(*suberror)
            ),
            FatalExit::FailEntry { rip, reason } => {
                write!(
                    f,
                    "the processor refused to enter the guest, reason {reason:#x}, at rip {rip:#x}"
                )
            }
            FatalExit::SystemEvent { kind } => write!(f, "KVM system event {kind}"),
            FatalExit::Unexpected { rip, reason } => {
                write!(f, "unexpected KVM exit {reason} at rip {rip:#x}")
            }
            FatalExit::RunFailed { rip, errno } => write!(
                f,
                "KVM_RUN failed at rip {rip:#x}: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
            FatalExit::Panicked => write!(f, "the vCPU's thread panicked"),
        }
    }
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        1 => "an instruction that KVM cannot emulate",
        2 => "simultaneous exceptions",
        3 => "an exit while an event was delivered",
        4 => "an exit that KVM did not expect",
        _ => "unknown",
    }
}
