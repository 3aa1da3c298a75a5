//! The state of a machine in KVM: what a save reads from a paused machine, and the order in which a
//! restore writes it.

mod control;

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_MSR_ENTRIES, Msrs, kvm_clock_data, kvm_debugregs, kvm_irqchip,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr};

use super::error::VmError;
use super::msr;
use super::vcpus::{VcpuError, VcpuSet};
use super::vm::Vm;

use self::request::{KVM_GET_XSAVE, KVM_GET_XSAVE2, KVM_SET_XSAVE};

/// The ioctls for which kvm-ioctls takes no buffer of the caller's size.
#[allow(missing_docs)] // the macros make functions of the ioctls' own names and take no comment
mod request {
    use kvm_bindings::kvm_xsave;
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

    const KVMIO: u32 = 0xae;
    ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
    ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
}

/// Size of the XSAVE area before KVM_CAP_XSAVE2, and the minimum that KVM_SET_XSAVE reads.
const XSAVE_MIN: usize = 4096;

/// Why state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// An ioctl failed.
    #[error("{call}: {source}")]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// A register cannot be read.
    #[error("KVM_GET_MSRS stopped at MSR {index:#x}")]
    GetMsr {
        /// The register.
        index: u32,
    },
    /// A register cannot be written.
    #[error(
        "KVM_SET_MSRS refused MSR {index:#x} = {data:#x}: the hosts' processors or kernels differ"
    )]
    SetMsr {
        /// The register.
        index: u32,
        /// The value.
        data: u64,
    },
    /// The XSAVE area does not fit this host.
    #[error(
        "saved XSAVE area of {found} bytes, this host uses {expected}: the hosts' processors differ"
    )]
    XsaveSize {
        /// The host's size in bytes.
        expected: usize,
        /// The saved size in bytes.
        found: usize,
    },
    /// The number of vCPUs differs.
    #[error(
        "saved state of {found} vCPUs, the machine has {expected}: start both sides with the same --cpus"
    )]
    VcpuCount {
        /// vCPUs of the machine.
        expected: usize,
        /// vCPUs in the saved state.
        found: usize,
    },
    /// One side has a PIT and the other has none.
    #[error("saved state {}, the machine {}: start both sides with the same \
    flags", has_pit(*.found), has_pit(*.expected))]
    Pit {
        /// Whether the machine has one.
        expected: bool,
        /// Whether the saved state has one.
        found: bool,
    },
    /// The vCPUs are not paused.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The machine refuses a call.
    #[error(transparent)]
    Vm(#[from] VmError),
}

fn has_pit(yes: bool) -> &'static str {
    if yes { "has a PIT" } else { "has no PIT" }
}

fn ioctl_error(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |e| StateError::Ioctl { call, source: std::io::Error::from_raw_os_error(e.errno()) }
}

/// The parts of a vCPU that a save reads on this host. Determined once, so that each save makes as
/// few calls as possible.
pub struct SavePlan {
    /// The requests for the MSRs, in as few calls as KVM allows, without values.
    msrs: Vec<Msrs>,
    xsave_size: usize,
    xsave2: bool,
    xcrs: bool,
    tsc_khz: bool,
    tsc_control: bool,
    /// The guest's TSC frequency in kHz, which only [`VcpuState::restore`] changes. Outer `None`:
    /// not read yet; inner `None`: the host does not report it.
    frequency: Mutex<Option<Option<u32>>>,
}

impl SavePlan {
    /// Makes the plan from a vCPU that has its CPUID and has not run yet.
    ///
    /// # Errors
    /// When KVM refuses to list the registers.
    pub fn new(kvm: &Kvm, vm: &Vm, vcpu: &VcpuFd) -> Result<SavePlan, StateError> {
        let list = msr::saveable(kvm, vcpu)?;
        let msrs = list
            .chunks(KVM_MAX_MSR_ENTRIES)
            .map(|chunk| msr_request(chunk.iter().map(|&index| (index, 0))))
            .collect();
        let xsave_size = vm.fd().check_extension_int(Cap::Xsave2).max(0) as usize;
        Ok(SavePlan {
            msrs,
            xsave_size: xsave_size.max(XSAVE_MIN),
            xsave2: xsave_size > 0,
            xcrs: kvm.check_extension(Cap::Xcrs),
            tsc_khz: kvm.check_extension(Cap::GetTscKhz),
            tsc_control: kvm.check_extension(Cap::TscControl),
            frequency: Mutex::new(None),
        })
    }

    /// The numbers of the registers that a save reads.
    pub fn msr_indices(&self) -> Vec<u32> {
        self.msrs.iter().flat_map(|m| m.as_slice().iter().map(|e| e.index)).collect()
    }

    fn frequency(&self) -> MutexGuard<'_, Option<Option<u32>>> {
        self.frequency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the XSAVE area in bytes.
    pub fn xsave_size(&self) -> usize {
        self.xsave_size
    }

    /// Whether the guest's TSC frequency can differ from the host's.
    pub fn tsc_control(&self) -> bool {
        self.tsc_control
    }
}

fn msr_request(entries: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let entries: Vec<_> =
        entries.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).expect("the caller cut the list at KVM_MAX_MSR_ENTRIES")
}

/// All state by which the guest or KVM can tell a vCPU from a fresh one, except CPUID, which the
/// handshake compares.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// The XSAVE area without its trailing zeros, which need not be sent.
    xsave: Vec<u8>,
    xcrs: Option<kvm_xcrs>,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: Option<u32>,
}

impl VcpuState {
    /// Reads a paused vCPU.
    ///
    /// Order:
    /// - KVM_GET_MP_STATE first: it processes pending INIT and start-up interrupts and so changes
    ///   other state.
    /// - KVM_GET_LAPIC before the MSRs: it updates the APIC's timer registers, the deadline MSR
    ///   among them.
    /// - KVM_GET_VCPU_EVENTS last: it reads what the calls before it may have queued.
    ///
    /// # Errors
    /// When KVM refuses a call: the error names it.
    pub fn save(fd: &VcpuFd, plan: &SavePlan) -> Result<VcpuState, StateError> {
        Ok(VcpuState {
            mp_state: fd.get_mp_state().map_err(ioctl_error("KVM_GET_MP_STATE"))?,
            regs: fd.get_regs().map_err(ioctl_error("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(ioctl_error("KVM_GET_SREGS"))?,
            xsave: get_xsave(fd, plan)?,
            xcrs: match plan.xcrs {
                true => Some(fd.get_xcrs().map_err(ioctl_error("KVM_GET_XCRS"))?),
                false => None,
            },
            debugregs: fd.get_debug_regs().map_err(ioctl_error("KVM_GET_DEBUGREGS"))?,
            // A host with an unstable TSC reports no frequency, and its guest does not use the TSC.
            tsc_khz: match plan.tsc_khz {
                true => *plan.frequency().get_or_insert_with(|| fd.get_tsc_khz().ok()),
                false => None,
            },
            lapic: fd.get_lapic().map_err(ioctl_error("KVM_GET_LAPIC"))?,
            msrs: get_msrs(fd, plan)?,
            events: fd.get_vcpu_events().map_err(ioctl_error("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Writes a vCPU that was created like the saved one (same index, same CPUID) and does not run.
    ///
    /// Order, with KVM's reasons:
    /// - The TSC frequency before the TSC: KVM converts the TSC with it.
    /// - REGS before VCPU_EVENTS: KVM_SET_REGS drops pending exceptions, which the events restore.
    /// - SREGS before LAPIC: the APIC base in SREGS decides whether there is an APIC to restore,
    ///   and its kind.
    /// - LAPIC before MSRs: the TSC deadline has an effect only if the APIC timer is already in
    ///   that mode.
    /// - VCPU_EVENTS last, after all calls that could inject or drop an event.
    ///
    /// # Errors
    /// When KVM refuses a part of the state: the error names it.
    pub fn restore(&self, fd: &VcpuFd, plan: &SavePlan) -> Result<(), StateError> {
        self.restore_tsc_khz(fd, plan)?;
        fd.set_mp_state(self.mp_state).map_err(ioctl_error("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(ioctl_error("KVM_SET_REGS"))?;
        fd.set_sregs(&self.sregs).map_err(ioctl_error("KVM_SET_SREGS"))?;
        set_xsave(fd, plan, &self.xsave)?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(ioctl_error("KVM_SET_XCRS"))?;
        }
        fd.set_debug_regs(&self.debugregs).map_err(ioctl_error("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic).map_err(ioctl_error("KVM_SET_LAPIC"))?;
        set_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events).map_err(ioctl_error("KVM_SET_VCPU_EVENTS"))?;
        // Tells a guest that uses kvmclock that it was paused, so that its watchdogs do not fire
        // (KVM API, KVM_KVMCLOCK_CTRL). EINVAL: the guest does not use kvmclock.
        if let Err(e) = fd.kvmclock_ctrl() {
            log::debug!("KVM_KVMCLOCK_CTRL: {e}");
        }
        Ok(())
    }

    fn restore_tsc_khz(&self, fd: &VcpuFd, plan: &SavePlan) -> Result<(), StateError> {
        let Some(saved) = self.tsc_khz else {
            return Ok(());
        };
        if plan.tsc_control && fd.get_tsc_khz().ok() != Some(saved) {
            fd.set_tsc_khz(saved).map_err(ioctl_error("KVM_SET_TSC_KHZ"))?;
            *plan.frequency() = None;
        }
        Ok(())
    }

    /// Adds an entry for a register, which KVM may refuse.
    #[cfg(test)]
    pub(super) fn add_msr(&mut self, index: u32, data: u64) {
        self.msrs.push((index, data));
    }

    /// The guest's instruction pointer, for messages and debugging.
    pub fn rip(&self) -> u64 {
        self.regs.rip
    }

    /// The general registers.
    pub fn regs(&self) -> &kvm_regs {
        &self.regs
    }

    /// The state without values that advance while the guest does not run (the TSC, the APIC
    /// timer's count). Two saves of a machine that did not run in between are equal without them.
    pub fn without_clocks(&self) -> VcpuState {
        let mut state = self.clone();
        state.msrs.retain(|&(index, _)| index != msr::IA32_TSC);
        // KVM computes the APIC timer's current count, at 0x390, from the host's clock at each
        // read.
        state.lapic.regs[0x390..0x394].fill(0);
        state
    }
}

fn get_xsave(fd: &VcpuFd, plan: &SavePlan) -> Result<Vec<u8>, StateError> {
    let mut area = vec![0u8; plan.xsave_size];
    let (request, call) = if plan.xsave2 {
        (KVM_GET_XSAVE2(), "KVM_GET_XSAVE2")
    } else {
        (KVM_GET_XSAVE(), "KVM_GET_XSAVE")
    };
    // SAFETY: `fd` is a vCPU's descriptor. KVM_GET_XSAVE writes 4096 bytes, KVM_GET_XSAVE2 as many
    // as KVM_CAP_XSAVE2 says; `area` has at least that many, see SavePlan::new. The kernel copies
    // bytes: alignment does not matter.
    let ret = unsafe { ioctl_with_mut_ptr(fd, request, area.as_mut_ptr()) };
    if ret != 0 {
        return Err(StateError::Ioctl { call, source: std::io::Error::last_os_error() });
    }
    let used = area.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
    area.truncate(used);
    Ok(area)
}

fn set_xsave(fd: &VcpuFd, plan: &SavePlan, saved: &[u8]) -> Result<(), StateError> {
    if saved.len() > plan.xsave_size {
        return Err(StateError::XsaveSize { expected: plan.xsave_size, found: saved.len() });
    }
    let mut area = vec![0u8; plan.xsave_size];
    area[..saved.len()].copy_from_slice(saved);
    // SAFETY: `fd` is a vCPU's descriptor; KVM_SET_XSAVE reads as many bytes as KVM_CAP_XSAVE2
    // says, at least 4096, and `area` has them.
    let ret = unsafe { ioctl_with_ptr(fd, KVM_SET_XSAVE(), area.as_ptr()) };
    if ret != 0 {
        return Err(StateError::Ioctl {
            call: "KVM_SET_XSAVE",
            source: std::io::Error::last_os_error(),
        });
    }
    Ok(())
}

fn get_msrs(fd: &VcpuFd, plan: &SavePlan) -> Result<Vec<(u32, u64)>, StateError> {
    let mut all = Vec::new();
    for template in &plan.msrs {
        let mut request = template.clone();
        let got = fd.get_msrs(&mut request).map_err(ioctl_error("KVM_GET_MSRS"))?;
        // KVM stops at the first register that it cannot read, and returns the number of those that
        // it has read.
        if let Some(entry) = request.as_slice().get(got) {
            return Err(StateError::GetMsr { index: entry.index });
        }
        all.extend(request.as_slice().iter().map(|e| (e.index, e.data)));
    }
    Ok(all)
}

fn set_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), StateError> {
    for chunk in msrs.chunks(KVM_MAX_MSR_ENTRIES) {
        let request = msr_request(chunk.iter().copied());
        let set = fd.set_msrs(&request).map_err(ioctl_error("KVM_SET_MSRS"))?;
        if let Some(&(index, data)) = chunk.get(set) {
            return Err(StateError::SetMsr { index, data });
        }
    }
    Ok(())
}

impl VcpuSet {
    /// Reads all vCPUs; they must be paused.
    ///
    /// # Errors
    /// When KVM refuses a call, or a vCPU is not paused.
    pub fn save(&self, plan: &Arc<SavePlan>) -> Result<Vec<VcpuState>, StateError> {
        if !self.can_work() {
            return (0..self.len())
                .map(|i| self.with_vcpu(i, |fd| VcpuState::save(fd, plan))?)
                .collect();
        }
        let (results, saved) = sync_channel(self.len());
        let plan = Arc::clone(plan);
        self.each(move |index, fd| {
            // The channel has room for all results, and the receiver waits.
            let _ = results.send((index, VcpuState::save(fd, &plan)));
        })?;
        let mut states: Vec<_> = saved.into_iter().collect();
        states.sort_by_key(|(index, _)| *index);
        assert!(states.len() == self.len(), "P4: a checkpoint has every vCPU");
        states.into_iter().map(|(_, state)| state).collect()
    }

    /// Writes all vCPUs. They must be paused, and [`VmState::restore`] must have been called
    /// before.
    ///
    /// # Errors
    /// When the number of vCPUs differs, KVM refuses a part of the state, or a vCPU is not paused.
    pub fn restore(&self, plan: &SavePlan, states: &[VcpuState]) -> Result<(), StateError> {
        if states.len() != self.len() {
            return Err(StateError::VcpuCount { expected: self.len(), found: states.len() });
        }
        for (i, state) in states.iter().enumerate() {
            self.with_vcpu(i, |fd| state.restore(fd, plan))??;
        }
        Ok(())
    }
}

/// How the guest's clock continues at a takeover. Under either policy it never steps back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockPolicy {
    /// From the saved value: the time of the takeover is not counted.
    Continue,
    /// From the saved value plus the real time since the save, if both hosts' kernels report real
    /// time (Linux 5.16). The hosts' own clocks must be synchronized; KVM ignores a step backwards
    /// between them.
    CatchUp {
        /// Upper bound of the time that can have passed: a larger difference means that the clock
        /// of one host is wrong.
        at_most: Duration,
    },
}

/// The state of a machine outside its vCPUs: interrupt controllers, timer, clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    irqchips: Vec<kvm_irqchip>,
    pit: Option<kvm_pit_state2>,
    clock: kvm_clock_data,
}

const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl VmState {
    /// Reads a machine whose vCPUs are paused.
    ///
    /// # Errors
    /// When KVM refuses a call: the error names it.
    pub fn save(vm: &Vm) -> Result<VmState, StateError> {
        let fd = vm.fd();
        let irqchips = IRQCHIPS
            .iter()
            .map(|&chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                fd.get_irqchip(&mut chip).map_err(ioctl_error("KVM_GET_IRQCHIP"))?;
                Ok(chip)
            })
            .collect::<Result<_, StateError>>()?;
        let pit = match vm.options().pit {
            true => Some(fd.get_pit2().map_err(ioctl_error("KVM_GET_PIT2"))?),
            false => None,
        };
        // Read the clock last, so that it is not earlier than anything in the state above.
        let clock = fd.get_clock().map_err(ioctl_error("KVM_GET_CLOCK"))?;
        Ok(VmState { irqchips, pit, clock })
    }

    /// The pins of the I/O APIC that wait for delivery or have an asserted level, as bits (its
    /// IRR). Only tests of a device's interrupt pin ask: KVM shows the pin nowhere else.
    #[must_use]
    pub fn asserted_pins(&self) -> u32 {
        let chips = self.irqchips.iter().filter(|chip| chip.chip_id == KVM_IRQCHIP_IOAPIC);
        // SAFETY: KVM_GET_IRQCHIP has filled the I/O APIC's part of the union; any bits are a
        // number.
        chips.fold(0, |pins, chip| pins | unsafe { chip.chip.ioapic.irr })
    }

    /// Writes a fresh machine. Call this before the vCPUs are restored: their MSRs make KVM publish
    /// the machine's clock in guest memory, and the clock must be right by then.
    ///
    /// # Errors
    /// When KVM refuses a part of the state, or only one of the two machines has a PIT.
    pub fn restore(&self, vm: &Vm, policy: ClockPolicy) -> Result<(), StateError> {
        let fd = vm.fd();
        if self.pit.is_some() != vm.options().pit {
            return Err(StateError::Pit { expected: vm.options().pit, found: self.pit.is_some() });
        }
        let host_flags = fd.check_extension_raw(u64::from(KVM_CAP_ADJUST_CLOCK));
        let clock = self.clock_to_set(host_flags, policy, realtime());
        fd.set_clock(&clock).map_err(ioctl_error("KVM_SET_CLOCK"))?;
        for chip in &self.irqchips {
            fd.set_irqchip(chip).map_err(ioctl_error("KVM_SET_IRQCHIP"))?;
        }
        if let Some(pit) = &self.pit {
            fd.set_pit2(pit).map_err(ioctl_error("KVM_SET_PIT2"))?;
        }
        Ok(())
    }

    /// The clock to set. With KVM_CLOCK_REALTIME, KVM itself adds the time since `realtime`, and
    /// nothing if `realtime` is in the future: it never sets the clock below the saved value (KVM
    /// API, KVM_SET_CLOCK). KVM has no upper bound of the added time, so this function applies one.
    fn clock_to_set(&self, host_flags: i32, policy: ClockPolicy, now: Duration) -> kvm_clock_data {
        let saved = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        let ClockPolicy::CatchUp { at_most } = policy else { return saved };
        let flags = self.clock.flags & host_flags.max(0) as u32 & KVM_CLOCK_REALTIME;
        if flags == 0 {
            return saved;
        }
        let passed = now.saturating_sub(Duration::from_nanos(self.clock.realtime));
        if passed > at_most {
            log::warn!(
                "the hosts' clocks differ: they show {} s since the checkpoint, at most {} s are possible. The \
                 guest's clock advances by the smaller time. Synchronize the hosts' clocks",
                passed.as_secs(),
                at_most.as_secs()
            );
            let most = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
            return kvm_clock_data { clock: saved.clock.saturating_add(most), ..saved };
        }
        kvm_clock_data { realtime: self.clock.realtime, flags, ..saved }
    }

    /// The guest's kvmclock in nanoseconds at the time of the save.
    pub fn clock_ns(&self) -> u64 {
        self.clock.clock
    }
}

/// This host's wall clock: the time since 1970.
fn realtime() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::kvm::VmOptions;
    use crate::memory::create_scratch;

    const SECOND: u64 = 1_000_000_000;
    const AT_MOST: Duration = Duration::from_secs(5);
    const CATCH_UP: ClockPolicy = ClockPolicy::CatchUp { at_most: AT_MOST };

    fn saved(clock: u64, realtime: u64) -> VmState {
        let flags = KVM_CLOCK_REALTIME;
        let clock = kvm_clock_data { clock, realtime, flags, ..Default::default() };
        VmState { irqchips: Vec::new(), pit: None, clock }
    }

    /// P7: a host whose clock is wrong by a year does not advance the guest's clock by a year.
    #[test]
    fn p7_the_guests_clock_goes_on_by_no_more_than_can_have_passed() {
        let now = Duration::from_secs(2_000_000_000);
        let ago = |passed: u64| (2_000_000_000 - passed) * SECOND;
        let set = |state: &VmState, policy| {
            let set = state.clock_to_set(KVM_CLOCK_REALTIME as i32, policy, now);
            (set.clock, set.realtime, set.flags)
        };
        // KVM adds a time that can have passed.
        assert_eq!(set(&saved(7, ago(3)), CATCH_UP), (7, ago(3), KVM_CLOCK_REALTIME));
        assert_eq!(set(&saved(7, ago(5)), CATCH_UP), (7, ago(5), KVM_CLOCK_REALTIME));
        // A larger difference means a wrong clock.
        for passed in [6, 3600, 365 * 86400, 2_000_000_000] {
            assert_eq!(set(&saved(7, ago(passed)), CATCH_UP), (7 + 5 * SECOND, 0, 0));
        }
        // The saving host's clock is ahead: KVM adds nothing.
        let ahead = now.as_nanos() as u64 + SECOND;
        assert_eq!(set(&saved(7, ahead), CATCH_UP), (7, ahead, KVM_CLOCK_REALTIME));
        assert_eq!(set(&saved(7, ago(3)), ClockPolicy::Continue), (7, 0, 0));
        let neither = saved(7, ago(3)).clock_to_set(0, CATCH_UP, now);
        assert_eq!((neither.clock, neither.flags), (7, 0));
    }

    /// The same bound with this host's KVM, if it reports real time.
    #[test]
    fn p7_kvm_gets_a_bounded_clock() {
        let kvm = crate::kvm::open().unwrap();
        let memory = create_scratch(4 << 20).unwrap();
        let vm = Vm::new(&kvm, memory, VmOptions { cpus: 1, pit: true }).unwrap();
        let mut state = VmState::save(&vm).unwrap();
        if state.clock.flags & KVM_CLOCK_REALTIME == 0 {
            eprintln!("this host's KVM does not tell real time: it catches up by nothing");
        }
        let begun = std::time::Instant::now();
        state.clock.realtime = state.clock.realtime.saturating_sub(365 * 86400 * SECOND);
        state.restore(&vm, CATCH_UP).unwrap();
        let passed = vm.fd().get_clock().unwrap().clock - state.clock.clock;
        let bound = AT_MOST + begun.elapsed();
        assert!(passed <= bound.as_nanos() as u64, "{} s", passed / SECOND);
    }
}
