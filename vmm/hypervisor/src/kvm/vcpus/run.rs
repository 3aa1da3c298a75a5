//! One KVM_RUN, and the exit that it ends with.

use kvm_bindings::{KVM_EXIT_IO_IN, KVM_MP_STATE_UNINITIALIZED, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::kvm::exit::{ExitHandler, FatalExit};

/// The result of one KVM_RUN.
pub(super) enum Ran {
    /// KVM_RUN exited, and the exit is served.
    Served,
    /// KVM_RUN was interrupted; no I/O is pending.
    Interrupted,
    /// KVM_RUN did nothing and must be called again.
    Again,
    /// The vCPU cannot continue.
    Fatal(FatalExit),
}

/// Runs the vCPU once, and serves its exit.
pub(super) fn run_once(fd: &mut VcpuFd, handler: &dyn ExitHandler) -> Ran {
    let reason = match fd.run() {
        Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
            serve_pio(fd, handler);
            return Ran::Served;
        }
        Ok(VcpuExit::MmioRead(addr, data)) => {
            handler.mmio_read(addr, data);
            return Ran::Served;
        }
        Ok(VcpuExit::MmioWrite(addr, data)) => {
            handler.mmio_write(addr, data);
            return Ran::Served;
        }
        // HLT reaches user space only without an in-kernel APIC; the others are KVM's
        // housekeeping. Neither needs work.
        Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_)) => {
            return Ran::Served;
        }
        Ok(VcpuExit::Intr) => return Ran::Interrupted,
        Ok(VcpuExit::SystemEvent(kind, _)) => {
            return Ran::Fatal(FatalExit::SystemEvent { kind });
        }
        Ok(_) => None,
        Err(e) => match e.errno() {
            libc::EINTR => return Ran::Interrupted,
            libc::EAGAIN => return Ran::Again,
            errno => Some(errno),
        },
    };
    Ran::Fatal(fatal_exit(fd, reason))
}

/// Whether this vCPU waits for another one to start it.
pub(super) fn waits_for_startup(fd: &VcpuFd) -> bool {
    fd.get_mp_state().is_ok_and(|state| state.mp_state == KVM_MP_STATE_UNINITIALIZED)
}

/// Runs a vCPU that has no access pending; KVM returns before it enters the guest.
pub(super) fn run_nothing(fd: &mut VcpuFd) -> std::io::Result<()> {
    fd.set_kvm_immediate_exit(1);
    let ran = fd.run().map(drop);
    fd.set_kvm_immediate_exit(0);
    match ran {
        Err(error) if error.errno() != libc::EINTR => {
            Err(std::io::Error::from_raw_os_error(error.errno()))
        }
        _ => Ok(()),
    }
}

/// Serves a port exit, one element at a time: a `rep ins` or `rep outs` has several elements in one
/// exit.
fn serve_pio(fd: &mut VcpuFd, handler: &dyn ExitHandler) {
    let run: *mut kvm_run = fd.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_IO, so `io` is the union's valid member.
    let io = unsafe { (*run).__bindgen_anon_1.io };
    let size = usize::from(io.size).max(1);
    // SAFETY: KVM puts `count` elements of `size` bytes at `data_offset` inside the mapped kvm_run
    // area; nobody else accesses them until the next KVM_RUN, which needs `fd`, borrowed here.
    let data = unsafe {
        std::slice::from_raw_parts_mut(
            run.cast::<u8>().add(io.data_offset as usize),
            size * io.count as usize,
        )
    };
    for element in data.chunks_exact_mut(size) {
        if u32::from(io.direction) == KVM_EXIT_IO_IN {
            handler.pio_in(io.port, element);
        } else {
            handler.pio_out(io.port, element);
        }
    }
}

/// Why the vCPU cannot continue; `errno` is the error of KVM_RUN, if the call failed.
pub(super) fn fatal_exit(fd: &mut VcpuFd, errno: Option<i32>) -> FatalExit {
    let rip = fd.get_regs().map_or(0, |r| r.rip);
    if let Some(errno) = errno {
        return FatalExit::RunFailed { rip, errno };
    }
    let run = fd.get_kvm_run();
    match run.exit_reason {
        kvm_bindings::KVM_EXIT_SHUTDOWN => FatalExit::TripleFault { rip },
        kvm_bindings::KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that `internal` is the union's valid member.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let count = (internal.ndata as usize).min(internal.data.len());
            FatalExit::InternalError {
                rip,
                suberror: internal.suberror,
                data: internal.data[..count].to_vec(),
            }
        }
        kvm_bindings::KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that `fail_entry` is the union's valid member.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            FatalExit::FailEntry { rip, reason: fail.hardware_entry_failure_reason }
        }
        reason => FatalExit::Unexpected { rip, reason },
    }
}
