//! Tries whether this host's KVM accepts a saved state, on a machine that exists only for this.
//!
//! The machine that will run is not used: KVM writes guest memory when its clock's registers are
//! set, and this would change the checkpoint (P4). A trial touches only a few pages of its own
//! memory.

use std::collections::HashSet;

use kvm_ioctls::{Kvm, VcpuFd};

use super::state::{ClockPolicy, SavePlan, StateError, VcpuState, VmState};
use super::{Vm, VmError, VmOptions};
use crate::memory::{self, MemoryError};

/// Why this host cannot accept a state.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The machine for the trial cannot be created.
    #[error("cannot create a machine to try the state on: {0}")]
    Vm(#[from] VmError),
    /// The memory for the trial cannot be allocated.
    #[error("cannot create a machine to try the state on: {0}")]
    Memory(#[from] MemoryError),
    /// KVM refuses the state.
    #[error("this host's KVM refuses the state: {0}")]
    State(#[from] StateError),
}

/// Upper bound of the remembered control parts (P9). A guest at its usual work has a few dozen.
const REMEMBERED: usize = 4096;

/// A machine to try states on, created like the one that they were saved from.
pub struct Trial {
    kvm: Kvm,
    memory_bytes: u64,
    options: VmOptions,
    machine: TrialMachine,
    /// The control parts of vCPUs that KVM has accepted.
    taken: HashSet<u64>,
}

struct TrialMachine {
    // Fields drop in order: the vCPUs before the machine that they belong to.
    vcpus: Vec<VcpuFd>,
    plan: Option<SavePlan>,
    vm: Vm,
}

impl Trial {
    /// Creates the machine, which takes 1-2 ms.
    ///
    /// # Errors
    /// When the machine cannot be created.
    pub fn new(kvm: Kvm, memory_bytes: u64, options: VmOptions) -> Result<Self, TrialError> {
        let machine = TrialMachine::new(&kvm, memory_bytes, options)?;
        Ok(Self { kvm, memory_bytes, options, machine, taken: HashSet::new() })
    }

    /// Checks that KVM accepts the state, or has accepted states like it: tries a state only if the
    /// [control part](VcpuState::control_part) of one of its vCPUs is new.
    ///
    /// # Errors
    /// When KVM refuses a part of the state: the error names it.
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
    /// When KVM refuses a part of the state: the error names it.
    pub fn attempt(&mut self, state: &VmState, vcpus: &[VcpuState]) -> Result<(), TrialError> {
        if self.machine.restore(state, vcpus).is_ok() {
            return Ok(());
        }
        // Retry on a machine that has never had another state, like the one that will run.
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

    /// P4: a standby finds a state that KVM refuses when the state arrives, not when it takes over.
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

    /// After a refusal, the machine accepts each state that a fresh machine would accept.
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
