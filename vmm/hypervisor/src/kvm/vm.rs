//! One virtual machine: its memory slots, interrupt controllers, timer and vCPUs, created in the
//! order that KVM requires.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    CpuId, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY,
    kvm_enable_cap, kvm_irqchip, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::error::{VmError, ioctl_error};
use super::{cpuid, msr, offered};
use crate::layout;
use crate::memory::{DirtyTracker, GuestMemory};

/// Options of the machine.
#[derive(Clone, Copy, Debug)]
pub struct VmOptions {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Whether to emulate the 8254 timer in KVM. Stock kernels calibrate their clocks with it. A
    /// guest that knows that it is virtual does not need it, and a checkpoint then need not save
    /// its state.
    pub pit: bool,
}

/// Maximum number of vCPUs with 8-bit APIC ids: 0xff is the broadcast address.
const MAX_APIC_ID_CPUS: u32 = 254;

/// A virtual machine in KVM.
pub struct Vm {
    fd: Arc<VmFd>,
    memory: GuestMemory,
    options: VmOptions,
    manual_protect: bool,
    /// The CPUID that KVM supports.
    cpuid: CpuId,
    /// The CPUID that vCPUs are offered; set when they are created.
    offered: OnceLock<CpuId>,
}

impl Vm {
    /// Creates a VM around `memory`, without dirty logging.
    ///
    /// Order (KVM API): the TSS and identity map before any vCPU; the irqchip before vCPUs, since
    /// their local APICs belong to it; the PIT after the irqchip that it interrupts.
    ///
    /// # Errors
    /// When KVM does not support this number of vCPUs, or refuses a call: the error names it.
    pub fn new(kvm: &Kvm, memory: GuestMemory, options: VmOptions) -> Result<Vm, VmError> {
        let max = (kvm.get_max_vcpus() as u32).min(MAX_APIC_ID_CPUS);
        if options.cpus == 0 || options.cpus > max {
            return Err(VmError::Cpus { wanted: options.cpus, max });
        }
        let fd = kvm.create_vm().map_err(ioctl_error("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP_ADDR)
            .map_err(ioctl_error("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS_ADDR as usize)
            .map_err(ioctl_error("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(ioctl_error("KVM_CREATE_IRQCHIP"))?;
        let pit = options.pit && kvm.check_extension(Cap::Pit2);
        if pit {
            // Emulate the speaker port 0x61 in the kernel too: Linux calibrates the TSC with it.
            let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            fd.create_pit2(config).map_err(ioctl_error("KVM_CREATE_PIT2"))?;
        }
        let cpuid = cpuid::supported(kvm)
            .map_err(|source| VmError::Ioctl { call: "KVM_GET_SUPPORTED_CPUID", source })?;
        let manual_protect = enable_manual_protect(&fd);
        let vm = Vm {
            fd: Arc::new(fd),
            memory,
            options: VmOptions { pit, ..options },
            manual_protect,
            cpuid,
            offered: OnceLock::new(),
        };
        vm.set_memory_slots(0)?;
        Ok(vm)
    }

    /// Creates the vCPUs with their CPUID, reset state and local interrupt pins. Call it once.
    ///
    /// # Errors
    /// When KVM refuses a call: the error names it.
    pub fn create_vcpus(&self) -> Result<Vec<VcpuFd>, VmError> {
        let create =
            |index| self.fd.create_vcpu(u64::from(index)).map_err(ioctl_error("KVM_CREATE_VCPU"));
        let fds = (0..self.options.cpus).map(create).collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = fds.first() {
            let settled = self.settle_offer(first)?;
            self.offered.get_or_init(|| settled);
        }
        for (index, fd) in (0..).zip(&fds) {
            self.set_cpuid(fd, index)?;
            msr::set_boot_defaults(fd);
            set_local_interrupts(fd)?;
        }
        Ok(fds)
    }

    fn set_cpuid(&self, fd: &VcpuFd, index: u32) -> Result<(), VmError> {
        let cpuid = cpuid::for_vcpu(self.offered_cpuid(), index, self.options.cpus)
            .map_err(|_| VmError::Cpuid)?;
        fd.set_cpuid2(&cpuid).map_err(ioctl_error("KVM_SET_CPUID2"))
    }

    /// The host's features that can be offered: those whose registers can be saved here. Tries them
    /// on a vCPU that has all of them for now; KVM accepts another CPUID until the vCPU runs.
    fn settle_offer(&self, first: &VcpuFd) -> Result<CpuId, VmError> {
        self.set_cpuid(first, 0)?;
        let mut entries = self.cpuid.as_slice().to_vec();
        let cpuid = cpuid::for_vcpu(&self.cpuid, 0, 1).map_err(|_| VmError::Cpuid)?;
        let withheld = offered::withhold_unsaveable(
            &mut entries,
            &cpuid,
            |msr| msr::get_one(first, msr),
            |msr| msr::is_saveable(first, msr),
        );
        if !withheld.is_empty() {
            log::debug!(
                "not offered to the guest, since KVM cannot save them: {}",
                withheld.join(", ")
            );
        }
        CpuId::from_entries(&entries).map_err(|_| VmError::Cpuid)
    }

    /// The VM's descriptor. It stays in this module, because it can bind a foreign descriptor (P5).
    pub(super) fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// Masks both 8259s, as a PC's firmware leaves them. KVM creates them unmasked with vector 0. A
    /// guest that uses only the I/O APIC never programs them, and would take a device's interrupt
    /// for a processor exception.
    ///
    /// # Errors
    /// When KVM refuses a call: the error names it.
    pub fn mask_legacy_interrupts(&self) -> Result<(), VmError> {
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(ioctl_error("KVM_GET_IRQCHIP"))?;
            chip.chip.pic.imr = 0xff;
            self.fd.set_irqchip(&chip).map_err(ioctl_error("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }

    /// Guest RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The machine's options; `pit` says whether it has a PIT.
    pub fn options(&self) -> VmOptions {
        self.options
    }

    /// The CPUID that KVM supports on this host; once vCPUs exist, without features that cannot be
    /// saved.
    pub fn offered_cpuid(&self) -> &CpuId {
        self.offered.get().unwrap_or(&self.cpuid)
    }

    /// Makes KVM log the vCPUs' writes, also while they run. Pages written before are not in the
    /// log: a pre-copy starts with [`DirtyTracker::mark_all`].
    ///
    /// # Errors
    /// When KVM refuses to change a memory slot.
    pub fn start_dirty_log(&self) -> Result<(), VmError> {
        self.set_memory_slots(KVM_MEM_LOG_DIRTY_PAGES)
    }

    /// The collector of dirty pages. Its looks fail before
    /// [`start_dirty_log`](Self::start_dirty_log). Have one per VM: each look resets what the next
    /// one sees.
    pub fn dirty_tracker(&self) -> DirtyTracker {
        DirtyTracker::new(Arc::clone(&self.fd), &self.memory, self.manual_protect)
    }

    /// Registers each region of RAM as a slot, or changes the flags of existing slots.
    fn set_memory_slots(&self, flags: u32) -> Result<(), VmError> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr() as u64,
            };
            // SAFETY: the region is mapped memory of exactly this size; `self.memory` keeps it
            // mapped for as long as the VM's descriptor is held by this object, and DirtyTracker,
            // the other holder, keeps the mappings as well.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(ioctl_error("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }
}

/// Lets the monitor clear the log by its own calls (KVM_CLEAR_DIRTY_LOG): reading the log is then
/// cheap, and KVM write-protects only the pages that were dirty. Without this, reading clears the
/// log.
fn enable_manual_protect(fd: &VmFd) -> bool {
    let supported = fd.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
    if supported & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as i32 == 0 {
        return false;
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    cap.args[0] = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
    fd.enable_cap(&cap).is_ok()
}

/// Byte offsets of LVT0 and LVT1 in the local APIC's register page.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
/// LVT delivery modes: external interrupt (from the 8259), and NMI.
const LVT_EXTINT: u32 = 0x700;
const LVT_NMI: u32 = 0x400;

/// Wires the local interrupt pins as a PC's firmware does: LINT0 receives the 8259's interrupts,
/// LINT1 is NMI.
fn set_local_interrupts(fd: &VcpuFd) -> Result<(), VmError> {
    let mut lapic = fd.get_lapic().map_err(ioctl_error("KVM_GET_LAPIC"))?;
    for (offset, value) in [(APIC_LVT0, LVT_EXTINT), (APIC_LVT1, LVT_NMI)] {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            lapic.regs[offset + i] = byte as _;
        }
    }
    fd.set_lapic(&lapic).map_err(ioctl_error("KVM_SET_LAPIC"))
}
