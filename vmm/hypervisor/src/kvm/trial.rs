//! Tries whether this host's KVM accepts a saved state, on a machine made only for that.
//!
//! The state is not tried on the machine that will run: KVM writes guest memory when the registers of its clock are set,
//! and the checkpoint would change (P4). The trial touches only a few pages of its own memory.

use std::collections::HashSet;

use kvm_ioctls::{Kvm, VcpuFd};

use super::state::{ClockPolicy, SavePlan, StateError, VcpuState, VmState};
use super::{Vm, VmError, VmOptions};
use crate::memory::{self, MemoryError};

/// Why a state cannot be accepted here.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The trial's machine cannot be made.
    #[error("cannot create a machine to try the state on: {0}")]
    Vm(#[from] VmError),
    /// The trial's memory cannot be allocated.
    #[error("cannot create a machine to try the state on: {0}")]
    Memory(#[from] MemoryError),
    /// KVM refuses the state.
    #[error("this host's KVM refuses the state: {0}")]
    State(#[from] StateError),
}

/// Upper bound for the remembered kinds of state; a guest at its usual work has a few dozen.
const REMEMBERED: usize = 4096;

/// A machine to try states on, like the one that they were saved from.
pub struct Trial {
    kvm: Kvm,
    memory_bytes: u64,
    options: VmOptions,
    machine: TrialMachine,
    /// The control parts of vCPUs that KVM has accepted.
    taken: HashSet<u64>,
}

struct TrialMachine {
    // Dropped before the machine that they belong to.
    vcpus: Vec<VcpuFd>,
    plan: Option<SavePlan>,
    vm: Vm,
}

impl Trial {
    /// Makes the machine, which takes one or two milliseconds.
    ///
    /// # Errors
    /// When the machine cannot be made.
    pub fn new(kvm: Kvm, memory_bytes: u64, options: VmOptions) -> Result<Self, TrialError> {
        let machine = TrialMachine::new(&kvm, memory_bytes, options)?;
        Ok(Self { kvm, memory_bytes, options, machine, taken: HashSet::new() })
    }

    /// Checks that KVM accepts the state, or has accepted states like it: it tries only a state with a vCPU whose [control
    /// part](VcpuState::control_part) is new.
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

    /// Checks that KVM accepts exactly this state.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn attempt(&mut self, state: &VmState, vcpus: &[VcpuState]) -> Result<(), TrialError> {
        if self.machine.restore(state, vcpus).is_ok() {
            return Ok(());
        }
        // Use a machine that has never had another state, like the one that will run.
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

    /// P4: a state that KVM refuses is found when it arrives, not when it is needed.
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

    /// The trial's machine accepts each state as a fresh machine would.
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
