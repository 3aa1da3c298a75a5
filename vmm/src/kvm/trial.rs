//! Whether this host's KVM takes a saved state: tried on a machine made for it and thrown away.

use kvm_ioctls::Kvm;

use super::state::{ClockPolicy, SavePlan, StateError, VcpuState, VmState};
use super::{Vm, VmError, VmOptions};
use crate::memory::{self, MemoryError};

/// Why a state cannot be taken on here.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// There is no machine to try it on.
    #[error("a machine to try the state on cannot be had: {0}")]
    Vm(#[from] VmError),
    /// Nor memory for it.
    #[error("a machine to try the state on cannot be had: {0}")]
    Memory(#[from] MemoryError),
    /// KVM refuses the state.
    #[error("this host's KVM refuses the state: {0}")]
    State(#[from] StateError),
}

/// Writes the state to a machine like the one it was saved from.
///
/// Not to the machine that is to run: KVM writes guest memory when it is given the registers of its clock, and a checkpoint
/// would no longer be what was sent (P4). What the trial touches of its own memory is a few pages.
///
/// # Errors
/// What KVM refuses.
pub fn try_state(
    kvm: &Kvm,
    memory_bytes: u64,
    options: VmOptions,
    state: &VmState,
    vcpus: &[VcpuState],
) -> Result<(), TrialError> {
    let vm = Vm::new(kvm, memory::create_scratch(memory_bytes)?, options)?;
    let fds = vm.create_vcpus()?;
    if fds.len() != vcpus.len() {
        return Err(StateError::VcpuCount { expected: fds.len(), found: vcpus.len() }.into());
    }
    state.restore(&vm, ClockPolicy::Continue)?;
    if let Some(first) = fds.first() {
        let plan = SavePlan::new(kvm, &vm, first)?;
        fds.iter().zip(vcpus).try_for_each(|(fd, vcpu)| vcpu.restore(fd, &plan))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// P4: what KVM will not take is found out when it comes, not when it is needed.
    #[test]
    fn p4_a_register_that_kvm_refuses_is_named() {
        let kvm = crate::kvm::open().unwrap();
        let options = VmOptions { cpus: 2, pit: true };
        let vm = Vm::new(&kvm, memory::create_scratch(16 << 20).unwrap(), options).unwrap();
        let fds = vm.create_vcpus().unwrap();
        let plan = SavePlan::new(&kvm, &vm, &fds[0]).unwrap();
        let mut vcpus: Vec<VcpuState> =
            fds.iter().map(|fd| VcpuState::save(fd, &plan).unwrap()).collect();
        let state = VmState::save(&vm).unwrap();
        let options = vm.options();
        try_state(&kvm, 16 << 20, options, &state, &vcpus).unwrap();

        vcpus[1].add_msr(0x4d4d_4d4d, 7);
        let error = try_state(&kvm, 16 << 20, options, &state, &vcpus).unwrap_err().to_string();
        assert!(error.contains("0x4d4d4d4d") && error.contains("KVM refuses"), "{error}");
        vcpus.pop();
        let error = try_state(&kvm, 16 << 20, options, &state, &vcpus).unwrap_err();
        assert!(matches!(error, TrialError::State(StateError::VcpuCount { .. })), "{error}");
    }
}
