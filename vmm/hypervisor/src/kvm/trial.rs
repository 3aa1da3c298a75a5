//! Whether this host's KVM takes a saved state: tried on a machine that is there for nothing else.
//!
//! Not on the machine that is to run: KVM writes guest memory when it is given the registers of its clock, and a checkpoint
//! would no longer be what was sent (P4). What the trial touches of its own memory is a few pages.

use std::collections::HashSet;

use kvm_ioctls::{Kvm, VcpuFd};

use super::state::{ClockPolicy, SavePlan, StateError, VcpuState, VmState};
use super::{Vm, VmError, VmOptions};
use crate::memory::{self, MemoryError};

/// Why a state cannot be taken on here.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// There is no machine to try it on.
    #[error("cannot make a machine to try the state on: {0}")]
    Vm(#[from] VmError),
    /// Nor memory for it.
    #[error("cannot make a machine to try the state on: {0}")]
    Memory(#[from] MemoryError),
    /// KVM refuses the state.
    #[error("this host's KVM refuses the state: {0}")]
    State(#[from] StateError),
}

/// So many kinds of state are remembered; a guest that goes about its work has a few dozen.
const REMEMBERED: usize = 4096;

/// A machine to try states on, like the one that they were saved from.
pub struct Trial {
    kvm: Kvm,
    memory_bytes: u64,
    options: VmOptions,
    machine: TrialMachine,
    /// The control parts of vCPUs that KVM has taken.
    taken: HashSet<u64>,
}

struct TrialMachine {
    // Before what they are of.
    vcpus: Vec<VcpuFd>,
    plan: Option<SavePlan>,
    vm: Vm,
}

impl Trial {
    /// Makes the machine, which takes a millisecond or two.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn new(kvm: Kvm, memory_bytes: u64, options: VmOptions) -> Result<Self, TrialError> {
        let machine = TrialMachine::new(&kvm, memory_bytes, options)?;
        Ok(Self { kvm, memory_bytes, options, machine, taken: HashSet::new() })
    }

    /// Whether KVM takes the state, known from states like it: only one with a vCPU whose
    /// [control part](VcpuState::control_part) is new is really tried.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn admit(&mut self, state: &VmState, vcpus: &[VcpuState]) -> Result<(), TrialError> {
        let parts: Vec<u64> = vcpus.iter().map(VcpuState::control_part).collect();
        let alike = parts.iter().all(|part| self.taken.contains(part));
        if alike && vcpus.len() == self.machine.vcpus.len() {
            return Ok(());
        }
        self.attempt(state, vcpus)?;
        if self.taken.len() + parts.len() > REMEMBERED {
            self.taken.clear();
        }
        self.taken.extend(parts);
        Ok(())
    }

    /// Whether KVM takes this very state.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn attempt(&mut self, state: &VmState, vcpus: &[VcpuState]) -> Result<(), TrialError> {
        if self.machine.restore(state, vcpus).is_ok() {
            return Ok(());
        }
        // What counts is a machine that has never been anything else, as the one that is to run.
        self.machine = TrialMachine::new(&self.kvm, self.memory_bytes, self.options)?;
        Ok(self.machine.restore(state, vcpus)?)
    }
}

impl TrialMachine {
    fn new(kvm: &Kvm, memory_bytes: u64, options: VmOptions) -> Result<Self, TrialError> {
        let vm = Vm::new(kvm, memory::create_scratch(memory_bytes)?, options)?;
        let vcpus = vm.create_vcpus()?;
        let plan = vcpus.first().map(|first| SavePlan::new(kvm, &vm, first)).transpose()?;
        Ok(Self { vcpus, plan, vm })
    }

    fn restore(&self, state: &VmState, vcpus: &[VcpuState]) -> Result<(), StateError> {
        let (expected, found) = (self.vcpus.len(), vcpus.len());
        if expected != found {
            return Err(StateError::VcpuCount { expected, found });
        }
        state.restore(&self.vm, ClockPolicy::Continue)?;
        let Some(plan) = &self.plan else { return Ok(()) };
        self.vcpus.iter().zip(vcpus).try_for_each(|(fd, vcpu)| vcpu.restore(fd, plan))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn saved(kvm: &Kvm) -> (VmOptions, VmState, Vec<VcpuState>) {
        let options = VmOptions { cpus: 2, pit: true };
        let vm = Vm::new(kvm, memory::create_scratch(16 << 20).unwrap(), options).unwrap();
        let fds = vm.create_vcpus().unwrap();
        let plan = SavePlan::new(kvm, &vm, &fds[0]).unwrap();
        let vcpus = fds.iter().map(|fd| VcpuState::save(fd, &plan).unwrap()).collect();
        (vm.options(), VmState::save(&vm).unwrap(), vcpus)
    }

    /// P4: what KVM will not take is found out when it comes, not when it is needed.
    #[test]
    fn p4_a_register_that_kvm_refuses_is_named() {
        let kvm = crate::kvm::open().unwrap();
        let (options, state, mut vcpus) = saved(&kvm);
        let mut trial = Trial::new(kvm, 16 << 20, options).unwrap();
        trial.admit(&state, &vcpus).unwrap();

        vcpus[1].add_msr(0x4d4d_4d4d, 7);
        for _ in 0..2 {
            let error = trial.admit(&state, &vcpus).unwrap_err().to_string();
            assert!(error.contains("0x4d4d4d4d") && error.contains("KVM refuses"), "{error}");
        }
        vcpus.pop();
        let error = trial.admit(&state, &vcpus).unwrap_err();
        assert!(matches!(error, TrialError::State(StateError::VcpuCount { .. })), "{error}");
    }

    /// The trial machine goes from state to state as one that has never been anything would.
    #[test]
    fn after_a_refusal_what_is_good_is_taken() {
        let kvm = crate::kvm::open().unwrap();
        let (options, state, vcpus) = saved(&kvm);
        let mut trial = Trial::new(kvm, 16 << 20, options).unwrap();
        for _ in 0..3 {
            let mut bad = vcpus.clone();
            bad[0].add_msr(0x4d4d_4d4d, 7);
            trial.admit(&state, &bad).unwrap_err();
            trial.admit(&state, &vcpus).unwrap();
            trial.attempt(&state, &vcpus).unwrap();
        }
    }
}
